"""Linear probes: how much of the label a modality's encoder output holds, whatever head was trained on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]

RIDGE = 1e-3
"""Penalty of a probe over the mean variance of its inputs, so that the scale of an encoder has no effect [C]."""


@torch.no_grad()
def probe_accuracy(population: Population, train: Split, test: Split) -> dict[str, FloatArray]:
    """Return the test accuracy of a linear probe on each device's encoder outputs z_m, by modality.

    A probe is a ridge regression of one-hot labels, fitted in closed form on all training samples that have the
    modality, not the device's alone, so that its labels have no effect. The gap between an encoder trained alone and
    one trained jointly shows how far joint training neglected the modality ([C], after Peng et al. 2022).

    Returns:
        float64 [devices] per modality; NaN where it is not held, or no sample has it.
    """
    network: MultiModalNetwork = population.network
    accuracies = {}
    for column, name in enumerate(network.modalities):
        block = population.blocks[name]
        fitted, judged = (split.present[:, column] for split in (train, test))
        accuracies[name] = np.full(population.num_devices, np.nan)
        if not (fitted.any() and judged.any() and len(block.devices)):
            continue
        targets = torch.nn.functional.one_hot(train.labels[fitted], network.num_classes).double()
        sides = [split.features[name][split.present[:, column]].unsqueeze(0) for split in (train, test)]
        weights = network.layouts[name].views(block.start)
        right, labels = [], test.labels[judged]
        for row in range(len(block.devices)):
            device_weights = {key: value[row : row + 1] for key, value in weights.items()}
            inputs, unseen = (network.encoders[name].forward(device_weights, side)[0].double() for side in sides)
            right.append((ridge_scores(inputs, targets, unseen).argmax(1) == labels).double().mean())
        accuracies[name][block.devices] = torch.stack(right).cpu().numpy()
    return accuracies


def ridge_scores(inputs: torch.Tensor, targets: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    """Return the scores [m, classes] of unseen samples by ridge regression with an unpenalized intercept.

    Inputs [n, width], targets [n, classes] and unseen samples [m, width] are float64.
    """
    center, middle = inputs.mean(0), targets.mean(0)
    centered = inputs - center
    gram = centered.T @ centered
    penalty = RIDGE * gram.diagonal().mean()
    # With constant inputs, the probe predicts the most frequent class.
    gram.diagonal().add_(torch.where(penalty > 0, penalty, 1.0))
    # Positive definite, so that there is nothing to check, for which a GPU would have to be waited for.
    coefficients = torch.linalg.solve_ex(gram, centered.T @ (targets - middle)).result
    scores: torch.Tensor = (unseen - center) @ coefficients + middle
    return scores
