"""The accuracy of every device's model, and the quality of its generator."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.ops.native import simulates_natively
from dmmlkd_ext.training.measure.generator_quality import GeneratorQuality, RealFeatures, judge_generator
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]
CHUNK_VALUES = 2**20
"""Input values that the reference evaluates at a time: 4 MiB of float32, so that activations stay in the cache."""
FEATURE_VALUES = 2**22
"""Values of the common features that are kept at a time to judge generators: 16 MiB of float32."""
GPU_FACTOR = 2**6
"""How many times as many a GPU takes: its memory is larger, and it is slow at small pieces."""


@dataclass(frozen=True)
class Evaluation:
    """Accuracies, and how well generated features represent real ones.

    Attributes:
        joint: float64 [devices], with all modalities that the device has; for one without any see `evaluate`.
        alone: float64 [devices] per modality, with that modality alone; NaN where not held.
        generator: of each device, if it was asked for.
    """

    joint: FloatArray
    alone: dict[str, FloatArray]
    generator: GeneratorQuality | None = None


class Judged(NamedTuple):
    """Results of a contiguous range of devices."""

    shares: FloatArray
    """Accuracy with each modality and, in the last row, with all, [modalities + 1, devices]; NaN without samples."""
    features: list[RealFeatures]
    """Of each modality, if asked for; their devices are counted from the first of the range."""
    predicted: torch.Tensor | None = None
    """The class predicted with all modalities, int64 [devices, samples], -1 where a sample does not count; of the
    reference alone."""


@torch.no_grad()
def evaluate(
    population: Population,
    split: Split,
    guess: npt.NDArray[np.int64] | None = None,
    samples: torch.Tensor | None = None,
    pool: torch.Tensor | None = None,
) -> Evaluation:
    """Measure the accuracy of each device's model on samples of `split`, with the modalities that it has.

    A sample that has none of a device's modalities does not count for it. A device without modalities, as in
    `unimodal:m`, predicts one class for all samples, so that methods are compared over the same devices.

    Args:
        population: the devices.
        split: the samples.
        guess: that class, int64 [devices]; None gives NaN for such a device.
        samples: indices of the samples that judge each device, int64 [devices, n]; None is all.
        pool: generated features [devices, classes, n, width], to be judged too, by all samples.

    Raises:
        ValueError: `samples` and `pool` are both given.

    Example:
        >>> from dmmlkd_ext.model.network import MultiModalNetwork
        >>> population = Population(MultiModalNetwork({"wrist": (3,)}, 2, 4, 8), np.array([[True], [False]]), seed=0)
        >>> present, nobody = torch.ones(4, 1, dtype=torch.bool), torch.full((4,), -1)
        >>> split = Split({"wrist": torch.randn(4, 3)}, torch.tensor([0, 1, 1, 1]), present, nobody)
        >>> found = evaluate(population, split, guess=np.array([0, 1]))
        >>> found.joint[1].item(), found.alone["wrist"][1].item()  # the second device can only guess
        (0.75, nan)
    """
    if samples is not None and pool is not None:
        raise ValueError("samples must be None where a pool is judged: it is judged by all")
    devices, names = population.num_devices, population.network.modalities
    shares = np.full((len(names) + 1, devices), np.nan)
    quality = GeneratorQuality(np.full(devices, np.nan), np.full(devices, np.nan))
    judge = judge_natively if _natively(population) else judge_reference
    for part in _parts(population, split, pool is not None) if len(split) else ():
        chosen = None if samples is None else samples[part.start : part.stop]
        judged = judge(population, split, part, chosen, with_features=pool is not None)
        shares[:, part] = judged.shares
        if pool is not None:
            found = judge_generator(judged.features, split.labels, pool[part])
            quality.nearest_mean[part], quality.spread[part] = found.nearest_mean, found.spread
    blind = ~population.holds.any(axis=1)
    if guess is not None and len(split) and blind.any():
        rows = torch.from_numpy(np.flatnonzero(blind)).to(split.labels.device)
        labels = split.labels if samples is None else split.labels[samples[rows]]
        shares[-1, blind] = (labels.cpu().numpy() == guess[blind, None]).mean(axis=1)
    alone = dict(zip(names, shares[:-1], strict=True))
    return Evaluation(shares[-1], alone, None if pool is None else quality)


def _natively(population: Population) -> bool:
    return not population.network.foreign_encoders and simulates_natively(population.blocks[SHARED].start)


def _parts(population: Population, split: Split, with_features: bool) -> Iterator[slice]:
    """Yield the ranges of devices that are judged at a time."""
    return parts_at_once(population, split, with_features, natively=_natively(population))


def parts_at_once(
    population: Population, split: Split, with_features: bool = False, natively: bool = False
) -> Iterator[slice]:
    """Yield the ranges of devices that are judged at a time, so that what is kept of them has a bounded size."""
    devices, network = population.num_devices, population.network
    at_once, factor = max(1, devices), 1 if population.torch_device.type == "cpu" else GPU_FACTOR
    if with_features:
        kept = len(split) * network.feature_width * len(network.modalities)
        at_once = max(torch.get_num_threads(), factor * FEATURE_VALUES // kept)
    if not natively:
        values = len(split) * max(features[0].numel() for features in split.features.values())
        at_once = min(at_once, max(1, factor * CHUNK_VALUES // max(1, values)))
    for begin in range(0, devices, at_once):
        yield slice(begin, min(begin + at_once, devices))


def judge_natively(
    population: Population,
    split: Split,
    part: slice,
    samples: torch.Tensor | None = None,
    with_features: bool = False,
) -> Judged:
    """Judge some devices natively, a few samples of a device at a time: activations stay in the cache.

    Args:
        population: all devices.
        split: the samples, at least one.
        part: the devices.
        samples: indices of the samples that judge each of them, int64 [devices of the part, n]; None is all.
        with_features: whether to return the common features of all samples; `samples` must then be None.

    Raises:
        ValueError: a shape or a dtype does not fit; the message names it.
    """
    network = population.network
    blocks = [population.blocks[name] for name in (SHARED, *network.modalities)]
    rows = [slice(*np.searchsorted(block.devices, [part.start, part.stop])) for block in blocks]
    devices = [
        torch.from_numpy(block.devices[members] - part.start) for block, members in zip(blocks, rows, strict=True)
    ]
    parameters = [block.start[members] for block, members in zip(blocks, rows, strict=True)]
    common = [
        start.new_empty(len(start), len(split), network.feature_width) for start in parameters[1:] if with_features
    ]
    right, counted = torch.ops.dmmlkd.count_right(
        parameters=parameters,
        devices=devices,
        num_devices=part.stop - part.start,
        values=[split.features[name] for name in network.modalities],
        labels=split.labels,
        present=split.present,
        classes=network.num_classes,
        samples=samples,
        common=common,
        **network.encoder_numbers._asdict(),
    )
    shares = (right.double() / counted).numpy()  # 0 / 0: no sample counts
    columns = split.present.unbind(1)
    return Judged(shares, [RealFeatures(*fields) for fields in zip(devices[1:], common, columns, strict=False)])


def judge_reference(
    population: Population,
    split: Split,
    part: slice,
    samples: torch.Tensor | None = None,
    with_features: bool = False,
) -> Judged:
    """Do what `judge_natively` does, in plain torch on all of these devices at once, on any torch device."""
    network, devices, where = population.network, np.arange(part.start, part.stop), population.torch_device
    chosen = torch.arange(len(split), device=where).expand(len(devices), -1) if samples is None else samples
    labels = split.labels[chosen]
    total = torch.zeros(*chosen.shape, network.num_classes, device=where)
    count = torch.zeros(chosen.shape, dtype=torch.int64, device=where)
    head = network.layouts[SHARED].views(population.blocks[SHARED].start)["head"]
    found, features = (
        torch.full((len(network.modalities) + 1, len(devices)), torch.nan, dtype=torch.float64, device=where),
        [],
    )
    for column, name in enumerate(network.modalities):
        block, rows = population.blocks[name], np.flatnonzero(population.holds[part, column])
        here, members = torch.from_numpy(rows).to(where), torch.from_numpy(devices[rows]).to(where)
        weights = network.layouts[name].views(block.start[block.rows_of(devices[rows]).to(where)])
        values = split.features[name]
        inputs = values.expand(len(rows), *values.shape) if samples is None else values[chosen[here]]
        parts = network.forward(name, weights, head[members], inputs)
        logits, present = parts.common_logits + parts.specific_logits, split.present[chosen[here], column]
        found[column, here] = _shares(logits, labels[here], present)
        total[here] += logits * present.unsqueeze(-1)
        count[here] += present
        if with_features:
            features.append(RealFeatures(here, parts.common, split.present[:, column]))
    found[-1] = _shares(total, labels, count > 0)
    return Judged(found.cpu().numpy(), features, torch.where(count > 0, total.argmax(-1), -1))


def _shares(logits: torch.Tensor, labels: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the accuracy, float64 [devices], over the samples that count; NaN if none does."""
    right = ((logits.argmax(-1) == labels) & counted).sum(1).double()
    return right / counted.sum(1).double()
