"""Normal numbers that are read from a table at random places, which costs a copy instead of a draw."""

from __future__ import annotations

import functools
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.seeding import torch_generator

NOISE_TABLE = 2**20
"""Normal numbers in a table of noise (4 MiB of float32)."""


class TableRows(NamedTuple):
    """Where some devices read a table in some iterations.

    Example:
        >>> TableRows.of(torch.arange(5.0), 2, torch.tensor([[0, 3], [4, 1]])).at(1)
        tensor([[0., 1.],
                [1., 2.]])
    """

    windows: torch.Tensor
    """All places where a whole row can begin, a view [places, size]."""
    places: torch.Tensor
    """int64 [iterations, devices]."""

    @classmethod
    def of(cls, table: torch.Tensor, size: int, offsets: torch.Tensor) -> TableRows:
        """Return the rows of `size` numbers that begin at `offsets`, modulo the number of places."""
        windows = table.unfold(0, size, 1)
        return cls(windows, offsets % len(windows))

    def at(self, step: int) -> torch.Tensor:
        """Return the rows of one iteration, [devices, size]."""
        return self.windows[self.places[step]]


class GradientNoise:
    """Normal numbers for the gradients of a round; those of a device are the same on any rank.

    They are read from one table, at a place that is drawn for each device, iteration and modality.

    Args:
        seed: the run's seed.
        round_index: counted from 0.
        num_devices: number of devices on all ranks.
        devices: int64, the numbers of the rank's devices.
        shape: the number of iterations, and of modalities.
        torch_device: where the numbers are read.
    """

    def __init__(
        self,
        seed: int,
        round_index: int,
        num_devices: int,
        devices: npt.NDArray[np.int64],
        shape: tuple[int, int],
        torch_device: torch.device,
    ) -> None:
        self._seed, self._round, self._num_devices = seed, round_index, num_devices
        self._devices, self._shape, self._torch_device = torch.from_numpy(devices), shape, torch_device

    def table(self, parameters: int, dtype: torch.dtype) -> torch.Tensor:
        """Return the table from which rows of that many parameters are read, [numbers]."""
        return _gradient_noise_table(self._seed, max(NOISE_TABLE, 2 * parameters), dtype, self._torch_device)

    @functools.cached_property
    def offsets(self) -> torch.Tensor:
        """Where the rank's devices begin to read, int64 [iterations, modalities, devices].

        Offsets count modulo the number of places in the table where a whole row can begin.
        """
        offsets = torch.empty(*self._shape, len(self._devices), dtype=torch.int64)
        for iteration, lines in enumerate(offsets):
            for column, line in enumerate(lines):
                line.copy_(self._draw(iteration, column))
        return offsets.to(self._torch_device)

    def rows(self, iterations: range, column: int, devices: torch.Tensor, like: torch.Tensor) -> TableRows:
        """Return numbers for some of the rank's devices, a row of the size and dtype of `like` for each.

        Args:
            iterations: in which they are read.
            column: the modality whose gradients get them.
            devices: int64, counted among the rank's.
            like: the parameters of that modality's block, [devices, parameters].
        """
        offsets = self.offsets[iterations.start : iterations.stop, column, devices]
        return TableRows.of(self.table(like.shape[1], like.dtype), like.shape[1], offsets)

    def _draw(self, iteration: int, column: int) -> torch.Tensor:
        draw = torch_generator(self._seed, "gradient noise", self._round, iteration, column)
        return torch.randint(NOISE_TABLE, (self._num_devices,), generator=draw)[self._devices]


@functools.lru_cache(maxsize=2)
def _gradient_noise_table(seed: int, size: int, dtype: torch.dtype, torch_device: torch.device) -> torch.Tensor:
    numbers = torch.randn(size, generator=torch_generator(seed, "gradient noise table"))
    return numbers.to(torch_device, dtype)
