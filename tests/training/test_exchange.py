from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.models.network import SHARED, MultiModalNetwork
from dmmlkd_ext.network.topology import metropolis_hastings
from dmmlkd_ext.ops import GossipWeights, gossip_mix
from dmmlkd_ext.training.exchange import divide_weights, mix
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.training.ranks import Slice
from tests.training.stand_in import StandIn
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
        population.begin_round()
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


@settings(max_examples=60, deadline=None)
@given(st.integers(2, 12), st.integers(2, 4), st.floats(0, 0.8), st.integers(0, 99))
def test_the_parts_of_the_ranks_mix_as_the_whole(devices, ranks, density, seed):
    ranks = min(ranks, devices)
    random = np.random.default_rng(seed)
    edges = np.argwhere(np.triu(random.random((devices, devices)) < density, 1))
    owner = random.permutation(np.r_[np.arange(ranks), random.integers(0, ranks, devices - ranks)])
    held = random.random(devices) < 0.8
    members = np.flatnonzero(held)
    matrix = metropolis_hastings(edges, devices, held)
    rows = torch.from_numpy(random.normal(size=(len(members), 3)))
    whole = torch.from_numpy(matrix.toarray()) @ rows
    parts = [Slice(StandIn(rank, ranks), owner) for rank in range(ranks)]
    divided = [divide_weights(matrix, members, part, torch.float64) for part in parts]
    own = [np.flatnonzero(owner[members] == rank) for rank in range(ranks)]
    for rank, (weights, route) in enumerate(divided):
        halo = [rows[own[other]][divided[other][1].sends[rank]] for other in route.receives]
        assert [len(part) for part in halo] == list(route.receives.values())
        assert route.halo == sum(map(len, halo))
        at_hand = torch.cat([rows[own[rank]], *halo])
        torch.testing.assert_close(gossip_mix(at_hand, weights)[: len(own[rank])], whole[own[rank]])
        assert all(len(part.unique()) == len(part) for part in route.sends.values())  # each row once
        assert set(route.sends) == set(route.receives)
