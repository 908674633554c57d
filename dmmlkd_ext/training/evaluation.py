"""Accuracy of every device's own model, and what its generator is worth."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.models.network import SHARED
from dmmlkd_ext.ops._native import simulates_natively
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]
CHUNK_VALUES = 2**20
"""Values of the inputs of the devices that are evaluated at a time: what is made of them stays in the cache."""


@dataclass(frozen=True)
class Accuracy:
    """Shares of right predictions.

    Attributes:
        joint: float64 [devices], by all modalities that the device has; for one without any see `evaluate`.
        alone: float64 [devices] a modality, by that modality alone; NaN where not held.
    """

    joint: FloatArray
    alone: dict[str, FloatArray]


@dataclass(frozen=True)
class GeneratorQuality:
    """How well generated features stand for real ones (METHOD 8), float64 [devices].

    A generator's own head is right about it nearly always and says nothing.

    Attributes:
        nearest_mean: share of the real common features, of all modalities of a device, whose nearest generated class
            mean is that of their class.
        spread: deviation of the generated features within a class over that of the real ones, a mean over the classes
            of which the device's modalities have two samples or more; 1 is alike, NaN if there is no such class.
    """

    nearest_mean: FloatArray
    spread: FloatArray


@torch.no_grad()
def judge_generator(population: Population, split: Split, pool: torch.Tensor) -> GeneratorQuality:
    """Judge generated features [devices, classes, n, d] by the common features of `split` on each device (METHOD 8).

    Example:
        >>> from dmmlkd_ext.models.network import MultiModalNetwork
        >>> population = Population(MultiModalNetwork({"wrist": (3,)}, 2, 4, 8), np.ones((1, 1), dtype=bool), seed=0)
        >>> wrist, labels = torch.randn(6, 3, generator=torch.Generator().manual_seed(0)), torch.tensor([0, 1] * 3)
        >>> split = Split({"wrist": wrist}, labels, torch.ones(6, 1, dtype=torch.bool), torch.full((6,), -1))
        >>> far = torch.full((1, 2, 5, 4), 1e3)
        >>> far[:, 0] = 0.0  # so that every feature is nearest to the first class
        >>> quality = judge_generator(population, split, far)
        >>> quality.nearest_mean.tolist(), quality.spread.tolist()
        ([0.5], [0.0])
    """
    network, classes = population.network, pool.shape[1]
    head = network.layouts[SHARED].views(population.blocks[SHARED].start)["head"]
    means = pool.mean(2)
    right, counted = torch.zeros(len(pool)), torch.zeros(len(pool))
    sums, squares = torch.zeros_like(means), torch.zeros_like(means)
    members_of_class = torch.zeros(len(pool), classes)
    one_hot = torch.nn.functional.one_hot(split.labels, classes).float()
    for column, name in enumerate(network.modalities):
        block = population.blocks[name]
        here = split.present[:, column]
        weights = network.layouts[name].views(block.start)
        for row, device in enumerate(block.devices):
            own = {key: value[row : row + 1] for key, value in weights.items()}
            inputs = split.features[name][here].unsqueeze(0)
            features = network.forward(name, own, head[device : device + 1], inputs).common[0]
            nearest = torch.cdist(features, means[device]).argmin(1)
            right[device] += (nearest == split.labels[here]).sum()
            counted[device] += len(features)
            sums[device] += one_hot[here].T @ features
            squares[device] += one_hot[here].T @ features.square()
            members_of_class[device] += one_hot[here].sum(0)
    size = members_of_class.clamp_min(1).unsqueeze(-1)
    real = (squares / size - (sums / size).square()).clamp_min(0).mean(-1).sqrt()
    made = pool.var(2, correction=0).mean(-1).sqrt()
    ratio = torch.where(members_of_class > 1, made / real, torch.nan).nanmean(1)
    return GeneratorQuality((right / counted).double().numpy(), ratio.double().numpy())


@torch.no_grad()
def evaluate(population: Population, split: Split, guess: npt.NDArray[np.int64] | None = None) -> Accuracy:
    """Return the accuracy of each device's model on all samples of `split`, with the modalities it has.

    A sample that has none of a device's modalities does not count for it. A device without any modality, as all that
    lack m in `unimodal:m`, predicts one class for all samples, so that methods are compared over the same devices.

    Args:
        population: the devices.
        split: the samples.
        guess: that class, int64 [devices]; None gives such a device no accuracy, NaN.

    Example:
        >>> from dmmlkd_ext.models.network import MultiModalNetwork
        >>> population = Population(MultiModalNetwork({"wrist": (3,)}, 2, 4, 8), np.array([[True], [False]]), seed=0)
        >>> present, nobody = torch.ones(4, 1, dtype=torch.bool), torch.full((4,), -1)
        >>> split = Split({"wrist": torch.randn(4, 3)}, torch.tensor([0, 1, 1, 1]), present, nobody)
        >>> accuracy = evaluate(population, split, guess=np.array([0, 1]))
        >>> accuracy.joint[1].item(), accuracy.alone["wrist"][1].item()  # the second device can only guess
        (0.75, nan)
    """
    devices, modalities = population.num_devices, population.network.modalities
    joint = np.full(devices, np.nan)
    alone = {name: np.full(devices, np.nan) for name in modalities}
    if not len(split):
        return Accuracy(joint, alone)
    judge = judge_natively if simulates_natively(population.blocks[SHARED].start) else judge_reference
    judge(population, split, joint, alone)
    if guess is not None:
        blind = ~population.holds.any(axis=1)
        joint[blind] = (split.labels.numpy() == guess[blind, None]).mean(axis=1)
    return Accuracy(joint, alone)


def judge_natively(population: Population, split: Split, joint: FloatArray, alone: dict[str, FloatArray]) -> None:
    """Write the accuracies of `evaluate` natively, some samples of a device at a time: activations stay in the cache.

    Args:
        population: the devices.
        split: the samples, at least one.
        joint: float64 [devices], overwritten; NaN where nothing counts.
        alone: likewise, one a modality.

    Raises:
        ValueError: a shape or a dtype does not fit; the message names it.
    """
    network = population.network
    blocks = [population.blocks[name] for name in (SHARED, *network.modalities)]
    right, counted = torch.ops.dmmlkd.count_right(
        [block.start for block in blocks],
        [torch.from_numpy(block.devices) for block in blocks],
        population.num_devices,
        [split.features[name] for name in network.modalities],
        split.labels,
        split.present,
        *network.encoder_numbers,
        network.num_classes,
    )
    shares = (right.double() / counted).numpy()  # 0 / 0: nothing that counts
    joint[:] = shares[-1]
    for line, name in enumerate(network.modalities):
        alone[name][:] = shares[line]


def judge_reference(population: Population, split: Split, joint: FloatArray, alone: dict[str, FloatArray]) -> None:
    """Do what `judge_natively` does, by operations of torch on some devices at a time."""
    devices = population.num_devices
    values = max(len(split) * features[0].numel() for features in split.features.values())
    chunk = max(1, CHUNK_VALUES // max(1, values))
    for begin in range(0, devices, chunk):
        _judge_chunk(population, split, np.arange(begin, min(begin + chunk, devices)), joint, alone)


def _judge_chunk(
    population: Population,
    split: Split,
    devices: npt.NDArray[np.int64],
    joint: FloatArray,
    alone: dict[str, FloatArray],
) -> None:
    network = population.network
    total = torch.zeros(len(devices), len(split), network.num_classes)
    count = torch.zeros(len(devices), len(split), dtype=torch.int64)
    head = network.layouts[SHARED].views(population.blocks[SHARED].start)["head"]
    for column, name in enumerate(network.modalities):
        block = population.blocks[name]
        members = devices[population.holds[devices, column]]
        if not len(members):
            continue
        weights = network.layouts[name].views(block.start[block.rows_of(members)])
        inputs = split.features[name].expand(len(members), *split.features[name].shape)
        part = network.forward(name, weights, head[torch.from_numpy(members)], inputs)
        logits, present = part.common_logits + part.specific_logits, split.present[:, column]
        alone[name][members] = _accuracy(logits, split.labels, present.expand(len(members), -1))
        position = torch.from_numpy(members - devices[0])
        total[position] += logits * present.unsqueeze(-1)
        count[position] += present
    joint[devices] = _accuracy(total, split.labels, count > 0)


def _accuracy(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> FloatArray:
    """Return the share of right predictions [devices] among the samples that count, NaN where none does."""
    right = ((logits.argmax(-1) == labels) & counted).sum(1).double()
    samples = counted.sum(1).double()
    return (right / samples).numpy()
