"""The places of a block's parameters in its row; the blocks of all devices are one matrix [devices, parameters]."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class ParameterSpec:
    """Shape and initial scale of one parameter tensor of one device.

    Example:
        >>> ParameterSpec((2, 3), std=0.1).size
        6
    """

    shape: tuple[int, ...]
    std: float
    """Standard deviation of the normal initialization; 0 initializes with zeros."""

    @property
    def size(self) -> int:
        """Number of values."""
        return math.prod(self.shape)


@dataclass(frozen=True)
class BlockLayout:
    """The named parameters of a block, the unit of exchange (METHOD 2 [C]), consecutive in a row.

    Example:
        >>> layout = BlockLayout({"weight": ParameterSpec((2, 3), 0.1), "bias": ParameterSpec((3,), 0.0)})
        >>> layout.size
        9
        >>> {name: tuple(view.shape) for name, view in layout.views(torch.zeros(5, 9)).items()}
        {'weight': (5, 2, 3), 'bias': (5, 3)}
    """

    parameters: Mapping[str, ParameterSpec]
    initial: Callable[[torch.Generator], Mapping[str, torch.Tensor]] | None = None
    """Draws the initial values of some parameters before the normal initialization of the rest."""

    @cached_property
    def size(self) -> int:
        """Parameters of the block of one device."""
        return sum(spec.size for spec in self.parameters.values())

    def views(self, matrix: torch.Tensor) -> dict[str, torch.Tensor]:
        """Return views of `matrix` [devices, size], each [devices, *shape]; nothing is copied."""
        views, begin = {}, 0
        for name, spec in self.parameters.items():
            views[name] = matrix[:, begin : begin + spec.size].unflatten(1, spec.shape)
            begin += spec.size
        return views

    def initialize(self, generator: torch.Generator) -> torch.Tensor:
        """Return one device's initial block [size], float32, drawn in the order of the parameters."""
        given = self.initial(generator) if self.initial else {}
        parts = [
            given[name].flatten()
            if name in given
            else torch.randn(spec.size, generator=generator, dtype=torch.float32) * spec.std
            for name, spec in self.parameters.items()
        ]
        return torch.cat(parts)
