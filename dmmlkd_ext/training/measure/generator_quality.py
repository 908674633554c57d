"""The quality of a generator: how well its features represent real ones (METHOD 8)."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class GeneratorQuality:
    """How well generated features represent real ones (METHOD 8), float64 [devices].

    The accuracy of a device's head on its generator's features is nearly always 1, so it is not used.

    Attributes:
        nearest_mean: share of the real common features, of all modalities of a device, whose nearest generated class
            mean is that of their class.
        spread: standard deviation of the generated features within a class over that of the real ones, a mean over the
            classes of which the device's modalities have at least two samples; NaN if there is no such class.
    """

    nearest_mean: FloatArray
    spread: FloatArray


class RealFeatures(NamedTuple):
    """The common features of one modality, of the devices that have it."""

    devices: torch.Tensor
    """int64 [rows]: the device of each row, counted as in the pool."""
    common: torch.Tensor
    """[rows, samples, width]."""
    present: torch.Tensor
    """bool [samples]: which samples have the modality."""


def judge_generator(features: Sequence[RealFeatures], labels: torch.Tensor, pool: torch.Tensor) -> GeneratorQuality:
    """Judge generated features `pool` [devices, classes, n, width] by the real ones, one entry per modality.

    Example:
        >>> real = RealFeatures(torch.tensor([0]), torch.randn(1, 6, 4), torch.ones(6, dtype=torch.bool))
        >>> far = torch.full((1, 2, 5, 4), 1e3)
        >>> far[:, 0] = 0.0  # so that every feature is nearest to the first class
        >>> quality = judge_generator([real], torch.tensor([0, 1] * 3), far)
        >>> quality.nearest_mean.tolist(), quality.spread.tolist()
        ([0.5], [0.0])
    """
    devices, classes = pool.shape[:2]
    means = pool.mean(2)
    right, counted = means.new_zeros(devices), means.new_zeros(devices)
    sums, squares = torch.zeros_like(means), torch.zeros_like(means)
    members_of_class = means.new_zeros(devices, classes)
    for member in features:
        real, label = member.common[:, member.present], labels[member.present]
        members = torch.nn.functional.one_hot(label, classes).to(real.dtype)
        by_class = members.T.expand(len(real), -1, -1)
        nearest = torch.cdist(real, means[member.devices]).argmin(2)
        right[member.devices] += (nearest == label).sum(1)
        counted[member.devices] += len(label)
        sums[member.devices] += by_class.bmm(real)
        squares[member.devices] += by_class.bmm(real.square())
        members_of_class[member.devices] += members.sum(0)
    size = members_of_class.clamp_min(1).unsqueeze(-1)
    spread = (squares / size - (sums / size).square()).clamp_min(0).mean(-1).sqrt()
    made = pool.var(2, correction=0).mean(-1).sqrt()
    ratio = torch.where(members_of_class > 1, made / spread, torch.nan).nanmean(1)
    found = torch.stack([right / counted, ratio]).double().cpu().numpy()
    return GeneratorQuality(found[0], found[1])
