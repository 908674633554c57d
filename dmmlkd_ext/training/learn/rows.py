"""Rows of a block while they train: laid out so that those that train in an iteration need no copy."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.training.population import Block

IntArray = npt.NDArray[np.int64]


class WorkingRows:
    """The rows of some devices in one block, those that train longest first.

    Where all train alike, the rows are a part of the block itself. Else they are copied once, and go back with
    `store`; those that train in an iteration are then the first ones, unless a modality starts later than another.

    Args:
        block: of the population.
        layout: of the block.
        devices: that have the block.
        last: int64 [devices], how many iterations pass until each is done.
    """

    def __init__(self, block: Block, layout: BlockLayout, devices: IntArray, last: IntArray) -> None:
        self.block, self.layout = block, layout
        self.devices = devices[np.argsort(-last, kind="stable")]
        rows = block.rows_of(self.devices)
        self._rows = None if bool((rows.diff() == 1).all()) else rows
        if self._rows is None:
            here = slice(int(rows[0]) if len(rows) else 0, int(rows[-1]) + 1 if len(rows) else 0)
            self.parameters, self.momentum = block.local[here], block.momentum[here]
        else:
            self.parameters, self.momentum = block.local[rows], block.momentum[rows]
        self.gradient = torch.empty_like(self.parameters)

    def of(self, members: IntArray) -> TrainedRows:
        """Return the rows of `members`, in an order of their own."""
        place = np.flatnonzero(np.isin(self.devices, members, assume_unique=True))
        return TrainedRows(self, place)

    def store(self) -> None:
        """Put the rows back into the block."""
        if self._rows is not None:
            self.block.local[self._rows] = self.parameters
            self.block.momentum[self._rows] = self.momentum


class TrainedRows:
    """The rows that train in one iteration.

    Attributes:
        devices: whose rows they are, int64 [rows].
        index: the same, as a tensor.
        parameters: [rows, parameters].
        momentum: likewise.
        gradient: likewise, to be written.
        weights: views of `parameters`, each [rows, *shape].
        gradients: views of `gradient`.
    """

    def __init__(self, whole: WorkingRows, place: IntArray) -> None:
        self._whole, number = whole, len(place)
        self.devices = whole.devices[place]
        self._place = None if number == 0 or place[-1] == number - 1 else torch.from_numpy(place)
        self.index = torch.from_numpy(self.devices)
        self.parameters = whole.parameters[:number] if self._place is None else whole.parameters[self._place]
        self.momentum = whole.momentum[:number] if self._place is None else whole.momentum[self._place]
        self.gradient = whole.gradient[:number]
        self.weights = whole.layout.views(self.parameters)
        self.gradients = whole.layout.views(self.gradient)

    @property
    def is_view(self) -> bool:
        """Whether they lie among the working rows themselves, so that later iterations can go on with them."""
        return self._place is None

    def start(self) -> torch.Tensor:
        """Return what the rows were at the round's start."""
        block = self._whole.block
        return block.start[block.rows_of(self.devices)]

    def store(self) -> None:
        """Put what a step has made of the rows among the working rows, where they are not a part of those."""
        if self._place is not None:
            self._whole.parameters[self._place] = self.parameters
            self._whole.momentum[self._place] = self.momentum
