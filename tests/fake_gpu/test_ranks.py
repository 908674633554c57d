"""Ranks whose rows are on a GPU: they exchange and mix them there."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.training.exchange.mix import mix, with_halo
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice, alone
from dmmlkd_ext.training.exchange.weights import MixingWeights
from dmmlkd_ext.training.population import Population
from tests.distributed.threads import on_threads
from tests.fake_gpu.device import watching
from tests.fake_gpu.twins import by_plain_torch
from tests.training.synthetic import TINY_SHAPES

HOLDS = np.array([[1, 1], [1, 0], [0, 1], [1, 1], [0, 0], [1, 1]], dtype=bool)
EDGES = np.array([[0, 1], [0, 2], [0, 4], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5]])


def trained(part: Slice, where: str) -> tuple[Population, MixingWeights]:
    """Return the devices of a rank after training, each with numbers of its own, and the mixing of all blocks."""
    population = Population(MultiModalNetwork(TINY_SHAPES, 3, 2, 4), HOLDS[part.devices], 0, torch_device=where)
    members = {SHARED: np.ones(6, dtype=bool), **dict(zip(TINY_SHAPES, HOLDS.T, strict=True))}
    weights = MixingWeights(members, part, population.blocks[SHARED].start)
    for name, mixing in weights.of(EDGES).items():
        block = population.blocks[name]
        block.make_room(mixing.route.halo)
        numbers = torch.from_numpy(part.devices[block.devices]).unsqueeze(1).to(where)
        block.local.copy_(block.start + (numbers + 1) ** 0.5)
    return population, weights


@pytest.mark.parametrize("ranks", [2, 3])
def test_they_mix_as_one_process_on_the_cpu(ranks: int) -> None:
    owner = np.array([0, 1, 1, 0, ranks - 1, 0])

    def mixed(rank: Ranks, where: str = "gpu") -> tuple:
        part = Slice(rank, owner) if rank.size > 1 else alone(6)
        population, weights = trained(part, where)
        mixings = weights.of(EDGES)
        routes = {name: mixing.route for name, mixing in mixings.items()}
        moved = mix(population, {name: mixing.mixer for name, mixing in mixings.items()}, routes, rank)
        numbers = torch.from_numpy(part.devices).unsqueeze(1).to(where)
        return part, population, moved, with_halo(numbers, routes[SHARED], rank).flatten().tolist()

    with by_plain_torch():
        (_, whole, variations, everyone), parts = mixed(Ranks(), "cpu"), on_threads(ranks, mixed)
    assert everyone == list(range(6))
    for part, population, moved, at_hand in parts:
        assert at_hand[: len(part.devices)] == part.devices.tolist()
        assert set(at_hand) > set(part.devices)
        for name, block in whole.blocks.items():
            here = torch.from_numpy(np.isin(block.devices, part.devices))
            assert torch.equal(population.blocks[name].start.cpu(), block.start[here])
            for found, wanted in zip(moved[name], variations[name], strict=True):
                np.testing.assert_array_equal(found, wanted[part.devices])


def test_the_host_waits_once_for_all_blocks(gpu: torch.device) -> None:
    population, weights = trained(alone(6), "gpu")
    mixers = {name: mixing.mixer for name, mixing in weights.of(EDGES).items()}
    with watching() as counts:
        mix(population, mixers)
    assert counts.waits.total() == 1
    assert not counts.copies
