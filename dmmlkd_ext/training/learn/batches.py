"""Batches of all devices at once; those of a round depend on the seed and the round alone."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.learn.noise import NOISE_TABLE, GradientNoise, TableRows

DRAWN_DEVICES = 2**16
"""Devices whose order of samples is drawn at a time, to bound the memory."""


@dataclass(frozen=True)
class RoundBatches:
    """The batches of one round; see `BatchSampler`. Tensors are on the torch device of the training data.

    Attributes:
        split: the training data.
        indices: int64 [iterations, devices, batch], into `split`.
        noise: the table of noise on the features, or None.
        offsets: int64 [iterations, modalities, devices], at least 0: where a batch begins in the table, modulo the
            number of places where a whole batch can begin.
        gradient_noise: for OGM-GE.
    """

    split: Split
    indices: torch.Tensor
    noise: torch.Tensor | None
    offsets: torch.Tensor
    gradient_noise: GradientNoise

    def labels(self, iteration: int, devices: torch.Tensor) -> torch.Tensor:
        """Return the labels of some devices' batches, int64 [devices, batch]."""
        return self.split.labels[self.indices[iteration, devices]]

    def present(self, iteration: int, devices: torch.Tensor) -> torch.Tensor:
        """Return which modalities the samples have, bool [devices, batch, modalities]."""
        return self.split.present[self.indices[iteration, devices]]

    def features(self, iteration: int, modality: str, devices: torch.Tensor) -> torch.Tensor:
        """Return one modality's inputs, noise included, float32 [devices, batch, *shape]."""
        return GroupBatches(self, range(iteration, iteration + 1), devices, {modality: devices}).features(0, modality)


class GroupBatches:
    """The batches of some devices in some iterations, all looked up at once, so that a GPU has less to do in each.

    Attributes:
        labels: int64 [iterations, devices, batch].
        present: bool [iterations, devices, batch, modalities]: which modalities the samples have.

    Args:
        batches: of the round.
        iterations: a range of them.
        devices: int64, counted among the rank's.
        members: of each modality whose inputs are read, those of the devices that read them.
    """

    def __init__(
        self,
        batches: RoundBatches,
        iterations: range,
        devices: torch.Tensor,
        members: Mapping[str, torch.Tensor],
    ) -> None:
        here, split = slice(iterations.start, iterations.stop), batches.split
        chosen = batches.indices[here, devices]
        self.labels, self.present = split.labels[chosen], split.present[chosen]
        self._values = split.features
        self._chosen = {name: batches.indices[here, who] for name, who in members.items()}
        self._noise: dict[str, TableRows] = {}
        for column, (name, values) in enumerate(split.features.items()):
            if batches.noise is not None and name in members:
                size, offsets = values.shape[1:].numel() * chosen.shape[2], batches.offsets[here, column, members[name]]
                self._noise[name] = TableRows.of(batches.noise, size, offsets)

    def features(self, step: int, modality: str) -> torch.Tensor:
        """Return one modality's inputs in the iteration at place `step`, float32 [devices, batch, *shape]."""
        values, chosen = self._values[modality], self._chosen[modality][step]
        samples: torch.Tensor = values.index_select(0, chosen.flatten()).unflatten(0, chosen.shape)  # copies whole rows
        noise = self._noise.get(modality)
        return samples if noise is None else samples + noise.at(step).view_as(samples)


class BatchSampler:
    """Draws the batches of all devices.

    In each round every device goes through its samples in a new random order, repeatedly if the round needs more. Input
    noise is read from one table of normal numbers at random places (as in Salimans et al. 2017), which costs a copy
    instead of a draw.

    Args:
        split: the training data, on the processor or GPU that trains. Numbers are drawn on the CPU.
        device_samples: the indices of each device's samples in `split`; at least one per device.
        batch_size: samples of a batch.
        input_noise: standard deviation of the noise on the features; 0 adds none.
        seed: the run's seed.
        chosen: int64, increasing: the devices whose batches are returned; None is all. Numbers are drawn for all
            devices, so that batches do not depend on `chosen`.

    Raises:
        ValueError: a device has no sample, or an index is out of range.

    Example:
        >>> split = Split({"a": torch.arange(4.0).view(4, 1)}, torch.tensor([0, 1, 0, 1]),
        ...               torch.ones(4, 1, dtype=torch.bool), torch.full((4,), -1))
        >>> sampler = BatchSampler(split, [np.array([0, 1]), np.array([2, 3])], 2, 0.0, seed=0)
        >>> batches = sampler.draw(round_index=0, num_iterations=3)
        >>> batches.features(0, "a", torch.tensor([0, 1])).shape
        torch.Size([2, 2, 1])
    """

    def __init__(
        self,
        split: Split,
        device_samples: Sequence[npt.NDArray[np.int64]],
        batch_size: int,
        input_noise: float,
        seed: int,
        chosen: npt.NDArray[np.int64] | None = None,
    ) -> None:
        for device, samples in enumerate(device_samples):
            if len(samples) == 0:
                raise ValueError(f"device_samples must hold at least one sample per device, got none for {device}")
            if samples.min() < 0 or samples.max() >= len(split):
                raise ValueError(f"device_samples must be in [0, {len(split)}), got others for device {device}")
        self.batch_size, self.seed, self._split = batch_size, seed, split
        self._chosen = np.arange(len(device_samples)) if chosen is None else chosen
        self._devices, self._most = len(device_samples), max(map(len, device_samples))
        self._counts = torch.tensor([len(device_samples[device]) for device in self._chosen])
        self._samples = torch.zeros(len(self._chosen), self._most, dtype=torch.int64)
        for row, device in zip(self._samples, self._chosen, strict=True):
            row[: len(device_samples[device])] = torch.from_numpy(np.sort(device_samples[device]))
        largest = max((values[0].numel() for values in split.features.values()), default=0) * batch_size
        self._noise = None
        if input_noise:
            table = torch.randn(max(NOISE_TABLE, 2 * largest), generator=torch_generator(seed, "noise table"))
            self._noise = (table * input_noise).to(split.labels.device)

    def draw(self, round_index: int, num_iterations: int) -> RoundBatches:
        """Return the batches of a round's local iterations."""
        generator = torch_generator(self.seed, "batches", round_index)
        devices, most = self._samples.shape
        keys = self._draw_keys(generator)
        keys[torch.arange(most) >= self._counts.unsqueeze(1)] = 2  # no sample: sorted to the end
        order = keys.argsort(dim=1, stable=True)
        position = torch.arange(num_iterations * self.batch_size) % self._counts.unsqueeze(1)
        indices = self._samples.gather(1, order.gather(1, position))
        indices = indices.view(devices, num_iterations, self.batch_size).transpose(0, 1).contiguous()
        offsets = self._draw_offsets(generator, num_iterations if self._noise is not None else 0)
        where, shape = self._split.labels.device, (num_iterations, len(self._split.features))
        gradient_noise = GradientNoise(self.seed, round_index, self._devices, self._chosen, shape, where)
        return RoundBatches(self._split, indices.to(where), self._noise, offsets.to(where), gradient_noise)

    def _draw_keys(self, generator: torch.Generator) -> torch.Tensor:
        """Draw the sort keys of the samples, [chosen devices, most samples of a device]."""
        keys = torch.empty(len(self._chosen), self._most)
        for begin in range(0, self._devices, DRAWN_DEVICES):
            drawn = torch.rand(min(DRAWN_DEVICES, self._devices - begin), self._most, generator=generator)
            first, last = np.searchsorted(self._chosen, (begin, begin + len(drawn)))
            keys[first:last] = drawn[torch.from_numpy(self._chosen[first:last] - begin)]
        return keys

    def _draw_offsets(self, generator: torch.Generator, num_iterations: int) -> torch.Tensor:
        """Draw where devices read the table of noise, int64 [iterations, modalities, chosen devices]."""
        chosen, places = torch.from_numpy(self._chosen), (len(self._split.features), self._devices)
        offsets = torch.empty(num_iterations, places[0], len(chosen), dtype=torch.int64)
        for iteration in offsets:
            iteration.copy_(torch.randint(NOISE_TABLE, places, generator=generator)[:, chosen])
        return offsets
