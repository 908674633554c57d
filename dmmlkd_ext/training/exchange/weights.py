"""The mixing weights of every block on the working links, cached while the links stay the same."""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.ops.native import uses_native
from dmmlkd_ext.training.exchange.jagged import JaggedWeights
from dmmlkd_ext.training.exchange.mix import Route, divide_weights
from dmmlkd_ext.training.exchange.ranks import Slice
from dmmlkd_ext.wireless.mixing import metropolis_hastings, spectral_gap

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class BlockMixing(NamedTuple):
    """The mixing of one block, of this rank's devices."""

    weights: GossipWeights
    """On the CPU."""
    route: Route
    """The rows that this rank exchanges for it."""
    mixer: GossipWeights | JaggedWeights
    """The weights for `mix`, on the torch device of the parameters."""


class MixingWeights:
    """Metropolis-Hastings weights by block (METHOD 4): each over the subgraph of its `members`, bool [devices].

    They are computed for parameters like `like`. Where its torch device has no kernel that mixes, plain torch does.
    """

    def __init__(self, members: Mapping[str, BoolArray], part: Slice, like: torch.Tensor) -> None:
        self._members, self._part, self._like = members, part, like
        self._known: tuple[bytes, dict[str, BlockMixing]] | None = None
        self._known_gap: tuple[bytes, float] | None = None

    def of(self, edges: IntArray) -> dict[str, BlockMixing]:
        """Return the mixing of each block over these links."""
        key = edges.tobytes()
        if self._known is None or self._known[0] != key:
            self._known = key, {name: self._divide(edges, members) for name, members in self._members.items()}
        return self._known[1]

    def _divide(self, edges: IntArray, members: BoolArray) -> BlockMixing:
        matrix = metropolis_hastings(edges, len(members), members)
        weights, route = divide_weights(matrix, np.flatnonzero(members), self._part, self._like.dtype)
        where = self._like.device
        if where.type == "cpu":
            return BlockMixing(weights, route, weights)
        if uses_native(self._like):
            return BlockMixing(weights, route.to(where), GossipWeights(*(part.to(where) for part in weights)))
        return BlockMixing(weights, route.to(where), JaggedWeights(weights, where))

    def spectral_gap(self, edges: IntArray) -> float:
        """Return the spectral gap of the mixing of all devices on these links; 0 if the graph is not connected."""
        key = edges.tobytes()
        if self._known_gap is None or self._known_gap[0] != key:
            self._known_gap = key, spectral_gap(metropolis_hastings(edges, len(self._part.owner)))
        return self._known_gap[1]
