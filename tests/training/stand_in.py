"""Ranks that are played one after the other in one process, for tests of what a rank does by itself."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from dmmlkd_ext.training.ranks import Ranks


class StandIn(Ranks):
    """One of several ranks; what the others contribute to a gathering is given."""

    def __init__(self, rank: int, size: int, others: Sequence[np.ndarray] = ()) -> None:
        super().__init__()
        self.rank, self.size, self._others = rank, size, list(others)

    def gather(self, values: np.ndarray, counts: Sequence[int]) -> list[np.ndarray]:
        parts = [*self._others[: self.rank], values, *self._others[self.rank :]]
        assert [len(part) for part in parts] == list(counts)
        return parts

    def together(self, action: Callable[[], object]) -> object:
        return action()
