"""Linear probes: how much of the label a modality's encoder tells, whatever head was trained on it."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]

RIDGE = 1e-3
"""Penalty of a probe, in units of the mean variance of its inputs: encoders of any scale are judged alike."""


@torch.no_grad()
def probe_accuracy(population: Population, train: Split, test: Split) -> dict[str, FloatArray]:
    """Return the test accuracy of a linear probe on each device's encoder outputs z_m, by modality.

    The probe of an encoder is a ridge regression of one-hot labels, fitted in closed form on all training samples that
    have the modality, not on the device's alone: what is judged is the encoder and not the device's labels. The gap
    between an encoder that was trained alone and one that was trained jointly says how far the modality was left
    behind (a choice of ours [C], after what Peng et al. 2022 observe of joint training).

    Args:
        population: the devices, between two rounds.
        train: what the probes are fitted on.
        test: what they are judged on.

    Returns:
        float64 [devices] a modality; NaN where it is not held, or no sample has it.
    """
    network: MultiModalNetwork = population.network
    accuracies = {}
    for column, name in enumerate(network.modalities):
        block = population.blocks[name]
        fitted, judged = (split.present[:, column] for split in (train, test))
        accuracies[name] = np.full(population.num_devices, np.nan)
        if not (fitted.any() and judged.any()):
            continue
        targets = torch.nn.functional.one_hot(train.labels[fitted], network.num_classes).double()
        sides = [split.features[name][split.present[:, column]].unsqueeze(0) for split in (train, test)]
        weights = network.layouts[name].views(block.start)
        for row, device in enumerate(block.devices):
            device_weights = {key: value[row : row + 1] for key, value in weights.items()}
            inputs, unseen = (network.encoders[name].forward(device_weights, side)[0].double() for side in sides)
            predicted = ridge_scores(inputs, targets, unseen).argmax(1)
            accuracies[name][device] = float((predicted == test.labels[judged]).double().mean())
    return accuracies


def ridge_scores(inputs: torch.Tensor, targets: torch.Tensor, unseen: torch.Tensor) -> torch.Tensor:
    """Return the scores [m, classes] of unseen samples by ridge regression with an intercept that is not penalized.

    Args:
        inputs: float64 [n, width].
        targets: float64 [n, classes].
        unseen: float64 [m, width].
    """
    center, middle = inputs.mean(0), targets.mean(0)
    centered = inputs - center
    gram = centered.T @ centered
    # Of an encoder whose outputs are all alike the probe can say only the most frequent class.
    penalty = RIDGE * float(gram.diagonal().mean()) or 1.0
    gram.diagonal().add_(penalty)
    coefficients = torch.linalg.solve(gram, centered.T @ (targets - middle))
    scores: torch.Tensor = (unseen - center) @ coefficients + middle
    return scores
