"""The mixing weights of every block on the working links, cached while the links stay the same."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.training.exchange.mix import Route, divide_weights
from dmmlkd_ext.training.exchange.ranks import Slice
from dmmlkd_ext.wireless.mixing import metropolis_hastings, spectral_gap

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class MixingWeights:
    """Metropolis-Hastings weights by block (METHOD 4): each over the subgraph of its `members`, bool [devices]."""

    def __init__(self, members: Mapping[str, BoolArray], part: Slice, dtype: torch.dtype) -> None:
        self._members, self._part, self._dtype = members, part, dtype
        self._known: tuple[bytes, dict[str, tuple[GossipWeights, Route]]] | None = None
        self._known_gap: tuple[bytes, float] | None = None

    def of(self, edges: IntArray) -> dict[str, tuple[GossipWeights, Route]]:
        """Return, by block, this rank's rows of the weights, and the rows that it exchanges."""
        key = edges.tobytes()
        if self._known is None or self._known[0] != key:
            found = {}
            for name, members in self._members.items():
                matrix = metropolis_hastings(edges, len(members), members)
                found[name] = divide_weights(matrix, np.flatnonzero(members), self._part, self._dtype)
            self._known = key, found
        return self._known[1]

    def spectral_gap(self, edges: IntArray) -> float:
        """Return the spectral gap of the mixing of all devices on these links; 0 if the graph is not connected."""
        key = edges.tobytes()
        if self._known_gap is None or self._known_gap[0] != key:
            self._known_gap = key, spectral_gap(metropolis_hastings(edges, len(self._part.owner)))
        return self._known_gap[1]
