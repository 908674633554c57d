from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.ops import GossipWeights, gossip_mix
from dmmlkd_ext.training.exchange.mix import Route, divide_weights, mix, with_halo
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice, alone
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.wireless.mixing import metropolis_hastings
from tests.distributed.threads import Numbered, on_threads
from tests.training.synthetic import identity_weights

SHAPES = {"left": (4,), "right": (3,), "nobody's": (2,)}


def trained_population(holds: np.ndarray, seed: int = 0) -> Population:
    """Return a population whose devices differ, at the round's start and after training."""
    population = Population(MultiModalNetwork(SHAPES, 3, 2, 4), holds, seed)
    generator = torch.Generator().manual_seed(seed)
    for block in population.blocks.values():
        block.start.add_(torch.randn(block.start.shape, generator=generator))
        block.local.copy_(block.start + torch.randn(block.start.shape, generator=generator))
    return population


def matrices(population: Population, edges: np.ndarray) -> dict[str, np.ndarray]:
    """Return the dense mixing matrix of each block."""
    dense = {}
    for name, block in population.blocks.items():
        members = np.isin(np.arange(population.num_devices), block.devices)
        dense[name] = metropolis_hastings(edges, population.num_devices, members).toarray()
    return dense


def weights_of(dense: dict[str, np.ndarray]) -> dict[str, GossipWeights]:
    return {name: GossipWeights.from_dense(torch.from_numpy(matrix).float()) for name, matrix in dense.items()}


@st.composite
def worlds(draw):
    devices = draw(st.integers(1, 7))
    holds = np.array(
        draw(st.lists(st.lists(st.booleans(), min_size=2, max_size=2), min_size=devices, max_size=devices))
    )
    pairs = [(i, j) for i in range(devices) for j in range(i + 1, devices)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return np.c_[holds, np.zeros(devices, dtype=bool)], np.array(edges, dtype=np.int64).reshape(-1, 2)


@given(worlds(), st.integers(0, 99))
@settings(deadline=None)
def test_every_block_is_mixed_by_its_own_matrix(world, seed):
    holds, edges = world
    population = trained_population(holds, seed)
    local = {name: block.local.clone().double() for name, block in population.blocks.items()}
    start = {name: block.start.clone().double() for name, block in population.blocks.items()}
    dense = matrices(population, edges)
    variations = mix(population, weights_of(dense))
    for name, block in population.blocks.items():
        torch.testing.assert_close(
            block.start.double(), torch.from_numpy(dense[name]) @ local[name], rtol=1e-5, atol=1e-6
        )
        torch.testing.assert_close(block.start.double().sum(0), local[name].sum(0), rtol=1e-4, atol=1e-5)
        assert torch.equal(block.local.double(), local[name])
        holders = np.isin(np.arange(len(holds)), block.devices)
        assert np.isnan(variations[name].distance[~holders]).all()
        assert np.isnan(variations[name].start[~holders]).all()
        distance = (local[name] - start[name]).norm(dim=1)
        np.testing.assert_allclose(variations[name].distance[holders], distance, rtol=1e-5)
        np.testing.assert_allclose(variations[name].start[holders], start[name].norm(dim=1), rtol=1e-5)


def test_a_block_reaches_its_holders_alone():
    # 0 - 1 - 2 - 3: devices 0, 1 and 3 have `right`, but 3 hears of it only from 2, which lacks it.
    holds = np.array([[True, True, False], [True, True, False], [True, False, False], [True, True, False]])
    population = trained_population(holds)
    for block in population.blocks.values():
        block.local.zero_()
        block.local[:1] = 1
    mix(population, weights_of(matrices(population, np.array([[0, 1], [1, 2], [2, 3]]))))
    assert population.blocks["right"].start[:, 0].tolist() == [0.5, 0.5, 0.0]
    shared = population.blocks[SHARED].start[:, 0].tolist()
    assert shared[1] == pytest.approx(1 / 3)
    assert shared[2] == shared[3] == 0


def test_nobody_hears_anybody_by_the_identity():
    population = trained_population(np.ones((4, 3), dtype=bool))
    mix(population, {name: identity_weights(4) for name in population.blocks})
    for block in population.blocks.values():
        assert torch.equal(block.start, block.local)


def test_exchanges_bring_devices_together():
    population = trained_population(np.ones((6, 3), dtype=bool))
    weights = weights_of(matrices(population, np.array([[i, (i + 1) % 6] for i in range(6)])))
    for block in population.blocks.values():
        block.start.copy_(block.local)
    distances = [population.consensus_distance()]
    for _ in range(30):
        for block in population.blocks.values():
            block.begin()
        mix(population, weights)
        distances.append(population.consensus_distance())
    for name in (SHARED, "left", "right"):
        by_round = [distance[name] for distance in distances]
        assert all(later < 0.9 * earlier for earlier, later in pairwise(by_round[:6]))
        assert by_round[-1] < 1e-3 * by_round[0]


def test_missing_and_misshapen_weights_are_refused():
    population = trained_population(np.ones((3, 3), dtype=bool))
    weights = {name: identity_weights(3) for name in population.blocks}
    before = {name: block.start.clone() for name, block in population.blocks.items()}
    with pytest.raises(ValueError, match="weights must hold every block, got none for left, right"):
        mix(population, {name: weights[name] for name in weights if name not in ("left", "right")})
    with pytest.raises(ValueError, match="gossip_mix"):
        mix(population, {**weights, SHARED: identity_weights(2)})
    assert all(torch.equal(block.start, before[name]) for name, block in population.blocks.items())


@st.composite
def divided_graphs(draw):
    """Draw a graph, who has the block, and who holds whom; a rank may hold no member."""
    holds, edges = draw(worlds())
    ranks = draw(st.integers(1, min(3, len(holds))))
    owner = draw(st.lists(st.integers(0, ranks - 1), min_size=len(holds), max_size=len(holds)))
    owner[:ranks] = range(ranks)
    return edges, holds[:, 0], np.array(owner), ranks


@given(divided_graphs(), st.integers(0, 99))
@settings(deadline=None, max_examples=60)
def test_a_rank_mixes_its_rows_to_the_bits_of_one_process(world, seed):
    edges, holders, owner, ranks = world
    members = np.flatnonzero(holders)
    matrix = metropolis_hastings(edges, len(holders), holders)
    rows = torch.randn(len(members), 5, generator=torch.Generator().manual_seed(seed))
    whole = gossip_mix(rows, divide_weights(matrix, members, alone(len(holders)))[0])

    def mixed(rank: Ranks) -> tuple[torch.Tensor, Route]:
        weights, route = divide_weights(matrix, members, Slice(rank, owner))
        own = rows[torch.from_numpy(owner[members] == rank.rank)]
        at_hand = with_halo(own, route, rank)
        assert at_hand.shape == (len(own) + route.halo, 5)
        return gossip_mix(at_hand, weights, torch.empty_like(own)), route

    for rank, (part, route) in enumerate(on_threads(ranks, mixed)):
        assert torch.equal(part, whole[torch.from_numpy(owner[members] == rank)])
        assert rank not in route.sends
        assert rank not in route.receives


def test_a_row_goes_once_to_each_rank_that_needs_it_and_to_no_other():
    # A star: all hear device 0, on rank 0; 1 and 2 are on rank 1, 3 on rank 2, and 4 lacks the block.
    edges = np.array([[0, i] for i in range(1, 5)])
    holders = np.array([True, True, True, True, False])
    matrix, members, owner = metropolis_hastings(edges, 5, holders), np.flatnonzero(holders), np.array([0, 1, 1, 2, 2])
    routes = [divide_weights(matrix, members, Slice(Numbered(rank, 3), owner))[1] for rank in range(3)]
    sends = [{other: rows.tolist() for other, rows in route.sends.items()} for route in routes]
    assert sends == [{1: [0], 2: [0]}, {0: [0, 1]}, {0: [0]}]
    assert [dict(route.receives) for route in routes] == [{1: 2, 2: 1}, {0: 1}, {0: 1}]
    assert [route.halo for route in routes] == [3, 1, 1]


def test_divided_weights_have_the_type_of_the_parameters():
    matrix = metropolis_hastings(np.array([[0, 1]]), 2, np.ones(2, dtype=bool))
    for part in (alone(2), Slice(Numbered(0, 2), np.array([0, 1]))):
        for dtype in (torch.float32, torch.float64):
            assert divide_weights(matrix, np.arange(2), part, dtype)[0].values.dtype == dtype


@pytest.mark.parametrize("ranks", [2, 3])
def test_all_blocks_of_all_ranks_are_mixed_as_by_one_process(ranks):
    holds = np.array([[1, 1, 0], [1, 0, 0], [0, 1, 0], [1, 1, 0], [0, 0, 0], [1, 1, 0]], dtype=bool)
    owner = np.array([0, 1, 1, 0, ranks - 1, 0])
    edges = np.array([[0, 1], [0, 2], [0, 4], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5]])
    whole = trained_population(holds)
    members = {name: np.isin(np.arange(6), block.devices) for name, block in whole.blocks.items()}

    def divide(part: Slice) -> dict[str, tuple[GossipWeights, Route]]:
        return {
            name: divide_weights(metropolis_hastings(edges, 6, own), np.flatnonzero(own), part)
            for name, own in members.items()
        }

    def mixed(rank: Ranks) -> tuple:
        part = Slice(rank, owner)
        population = Population(whole.network, holds[part.devices], 0)
        divided = divide(part)
        for name, block in population.blocks.items():
            own = torch.from_numpy(owner[whole.blocks[name].devices] == rank.rank)
            block.make_room(divided[name][1].halo + 2)  # more than arrives: of links that failed in this round
            block.start.copy_(whole.blocks[name].start[own])
            block.local.copy_(local[name][own])
        weights, routes = ({name: pair[column] for name, pair in divided.items()} for column in range(2))
        return part, mix(population, weights, routes, rank), population

    local = {name: block.local.clone() for name, block in whole.blocks.items()}
    parts = on_threads(ranks, mixed)
    variations = mix(whole, {name: weights for name, (weights, _) in divide(alone(6)).items()})
    for part, own, population in parts:
        for name, block in whole.blocks.items():
            here = torch.from_numpy(owner[block.devices] == part.ranks.rank)
            assert torch.equal(population.blocks[name].start, block.start[here])
            for found, wanted in zip(own[name], variations[name], strict=True):
                np.testing.assert_array_equal(found, wanted[part.devices])
