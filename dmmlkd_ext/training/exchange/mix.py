"""One gossip exchange: every block mixed over the devices that have it (METHOD 4), on one rank or on many.

Each rank mixes the rows of its devices. Rows of neighbours on other ranks are received, once each, into a halo behind
them, and one kernel mixes [local rows; halo rows]. The entries of a row of weights are in the order of the devices'
numbers, so sums have the same bits on any number of ranks. The next block is sent while a block is mixed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from dmmlkd_ext.ops import GossipMixing, GossipWeights, gossip_mix
from dmmlkd_ext.training.exchange.jagged import JaggedWeights
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice
from dmmlkd_ext.training.population import Block, Population

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]


class Variation(NamedTuple):
    """How far a round's training moved a block's parameters, float64 [devices]; NaN where not held."""

    distance: npt.NDArray[np.float64]
    """||local - start||."""
    start: npt.NDArray[np.float64]
    """||start||."""


@dataclass(frozen=True)
class Route:
    """Which rows of a block this rank sends and receives; none on one rank."""

    sends: Mapping[int, torch.Tensor] = field(default_factory=dict)
    """Rank -> the rows of this rank that it needs, int64, increasing."""
    receives: Mapping[int, int] = field(default_factory=dict)
    """Rank -> number of rows received from it; the halo holds them in this order."""

    @property
    def halo(self) -> int:
        """Number of rows received."""
        return sum(self.receives.values())

    def to(self, torch_device: torch.device) -> Route:
        """Return the route of rows on a processor or GPU."""
        return Route({rank: rows.to(torch_device) for rank, rows in self.sends.items()}, self.receives)


def divide_weights(
    matrix: sparse.csr_array, members: IntArray, part: Slice, dtype: torch.dtype = torch.float32
) -> tuple[GossipWeights, Route]:
    """Return this rank's rows of the mixing of one block, and the rows that it exchanges for them.

    Args:
        matrix: [members, members], with a symmetric sparsity pattern and sorted indices.
        members: int64, the numbers of the devices that have the block, increasing.
        part: the devices of this rank.
        dtype: of the parameters.

    Example:
        >>> from dmmlkd_ext.training.exchange.ranks import alone
        >>> weights, route = divide_weights(sparse.csr_array(np.full((2, 2), 0.5)), np.array([0, 2]), alone(3))
        >>> weights.columns.tolist(), route.halo
        ([0, 1, 0, 1], 0)
    """
    if part.ranks.size == 1:
        return GossipWeights.from_scipy(matrix, dtype), Route()
    holder = part.owner[members]
    mine = np.flatnonzero(holder == part.ranks.rank)
    rows = matrix[mine]
    # For each entry: its row on this rank, the member that it weighs, and that member's rank.
    row, member = np.repeat(np.arange(len(mine)), np.diff(rows.indptr)), rows.indices
    rank = holder[member]
    place = np.full(len(members), -1)
    place[mine] = np.arange(len(mine))
    sends, receives, begin = {}, {}, len(mine)
    for other in np.unique(rank[rank != part.ranks.rank]).tolist():
        theirs = np.unique(member[rank == other])
        place[theirs] = begin + np.arange(len(theirs))
        begin += len(theirs)
        receives[other] = len(theirs)
        sends[other] = torch.from_numpy(np.unique(row[rank == other]))
    local = sparse.csr_array((rows.data, place[member], rows.indptr), shape=(len(mine), begin))
    return GossipWeights.from_scipy(local, dtype), Route(sends, receives)


def mix(
    population: Population,
    weights: Mapping[str, GossipWeights | JaggedWeights],
    routes: Mapping[str, Route] | None = None,
    ranks: Ranks | None = None,
) -> dict[str, Variation]:
    """Mix all blocks and measure, in the same pass, how far training moved each row (METHOD 4, 5).

    Args:
        population: after local training; its `start` then holds the mixed parameters.
        weights: by block, [devices of the block, devices of the block and of its halo], on the population's torch
            device.
        routes: by block, likewise; None on one rank.
        ranks: the processes; None is this process alone.

    Raises:
        ValueError: a block's weights are missing or have another size.

    Example:
        >>> from dmmlkd_ext.model.network import MultiModalNetwork
        >>> population = Population(MultiModalNetwork({"wrist": (3,)}, 2, 4, 8), np.ones((2, 1), dtype=bool), seed=0)
        >>> for block in population.blocks.values():  # the second device trained, the first did not
        ...     _ = block.local.copy_(block.start + torch.tensor([[0.0], [1.0]]))
        >>> half = GossipWeights.from_dense(torch.full((2, 2), 0.5))
        >>> moved = mix(population, {name: half for name in population.blocks})
        >>> block = population.blocks["shared"]
        >>> moved["shared"].distance.round(3).tolist() == [0.0, round(block.num_parameters**0.5, 3)]
        True
        >>> torch.equal(block.start[0], block.start[1])
        True
    """
    missing = population.blocks.keys() - weights.keys()
    if missing:
        raise ValueError(f"weights must hold every block, got none for {', '.join(sorted(missing))}")
    ranks, routes = ranks or Ranks(), routes or {}
    names, moved = list(population.blocks), {}
    arrivals = [_begin(population.blocks[names[0]], routes.get(names[0], Route()), ranks, 0)]
    for tag, name in enumerate(names):
        if tag + 1 < len(names):
            following = names[tag + 1]
            arrivals.append(_begin(population.blocks[following], routes.get(following, Route()), ranks, tag + 1))
        arrivals.pop(0)()
        moved[name] = _mix_block(population.blocks[name], weights[name], routes.get(name, Route()))
    return _variations(population, moved)


def with_halo(rows: torch.Tensor, route: Route, ranks: Ranks) -> torch.Tensor:
    """Return rows [devices of a block on this rank, columns] with the rows of its halo behind them."""
    if ranks.size == 1:
        return rows
    at_hand = rows.new_empty(len(rows) + route.halo, rows.shape[1])
    at_hand[: len(rows)] = rows
    _exchange(rows, at_hand[len(rows) :], route, ranks, tag=0)()
    return at_hand


def gather_variations(variations: Mapping[str, Variation], part: Slice) -> dict[str, Variation]:
    """Gather the variations of all ranks' devices."""
    fields = Variation._fields
    mine = {f"{name} {field}": getattr(found, field) for name, found in variations.items() for field in fields}
    everyone = part.gather(mine)
    return {name: Variation(*(everyone[f"{name} {field}"] for field in fields)) for name in variations}


def _begin(block: Block, route: Route, ranks: Ranks, tag: int) -> Callable[[], None]:
    """Start to exchange the rows that other ranks need, and return a function that waits for the halo."""
    halo = block.at_hand[len(block.devices) : len(block.devices) + route.halo]
    return _exchange(block.local, halo, route, ranks, tag)


def _exchange(rows: torch.Tensor, halo: torch.Tensor, route: Route, ranks: Ranks, tag: int) -> Callable[[], None]:
    sends = [(rank, rows[wanted]) for rank, wanted in route.sends.items()]
    receives = list(zip(route.receives, halo.split(list(route.receives.values())), strict=True))
    return ranks.exchange(sends, receives, tag)


def _mix_block(block: Block, weights: GossipWeights | JaggedWeights, route: Route) -> torch.Tensor:
    """Mix a block; return the squares of both lengths of its `Variation`, float64 [2, devices of the block]."""
    at_hand = block.at_hand[: len(block.devices) + route.halo]
    mixing: torch.Tensor | GossipMixing
    if isinstance(weights, JaggedWeights):
        mixing = weights.mix(at_hand, block.start)
    else:
        mixing = gossip_mix(at_hand, weights, block.start, measure=True)
    assert isinstance(mixing, GossipMixing)
    return torch.stack([mixing.variation, mixing.start])


def _variations(population: Population, squares: Mapping[str, torch.Tensor]) -> dict[str, Variation]:
    """Bring the variations of all blocks to the host, which waits once."""
    lengths = torch.cat(list(squares.values()), 1).sqrt().cpu().split([part.shape[1] for part in squares.values()], 1)
    variations = {}
    for name, found in zip(squares, lengths, strict=True):
        values = np.full((2, population.num_devices), np.nan)
        values[:, population.blocks[name].devices] = found.numpy()
        variations[name] = Variation(*values)
    return variations
