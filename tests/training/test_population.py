from __future__ import annotations

import numpy as np
import pytest
import torch

from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.training.population import Population

HOLDS = np.array([[True, True], [True, False], [False, False]])
NETWORK = MultiModalNetwork({"left": (4,), "right": (3,)}, 3, 2, 5)


def test_a_block_has_one_row_for_each_device_that_has_it():
    blocks = Population(NETWORK, HOLDS, seed=0).blocks
    assert {name: block.devices.tolist() for name, block in blocks.items()} == {
        SHARED: [0, 1, 2],
        "left": [0, 1],
        "right": [0],
    }
    for name, block in blocks.items():
        assert block.start.shape == (len(block.devices), NETWORK.layouts[name].size)
        assert block.num_parameters == NETWORK.layouts[name].size


def test_all_devices_begin_alike_and_at_rest():
    for block in Population(NETWORK, HOLDS, seed=0).blocks.values():
        assert torch.equal(block.start, block.start[:1].expand_as(block.start))
        assert torch.equal(block.local, block.start)
        assert block.local.data_ptr() != block.start.data_ptr()
        assert not block.momentum.any()


def test_a_blocks_beginning_depends_on_the_seed_and_its_name_alone():
    population, again, other = (Population(NETWORK, HOLDS, seed) for seed in (3, 3, 4))
    right = MultiModalNetwork({"right": (3,)}, 3, 2, 5)
    alone = Population(right, HOLDS[:, :1], seed=3)
    for name, block in population.blocks.items():
        assert torch.equal(block.start, again.blocks[name].start)
        assert not torch.equal(block.start, other.blocks[name].start)
    assert torch.equal(alone.blocks["right"].start[0], population.blocks["right"].start[0])


def test_blocks_begin_with_numbers_of_their_own():
    network = MultiModalNetwork({"left": (4,), "right": (4,)}, 3, 8, 5)
    further = {"generator": BlockLayout({"weight": ParameterSpec((6, 8), 1.0)})}
    starts = [block.start[0] for block in Population(network, HOLDS, 0, further).blocks.values()]
    # Of one stream, the first numbers of all blocks would be the same but for their scale.
    shortest = min(map(len, starts))
    likeness = torch.corrcoef(torch.stack([start[:20] for start in starts]))
    assert shortest >= 20
    assert float((likeness - torch.eye(len(starts))).abs().max()) < 0.9


def test_further_blocks_belong_to_every_device():
    further = {"generator": BlockLayout({"weight": ParameterSpec((2, 3), 1.0)})}
    block = Population(NETWORK, HOLDS, 0, further).blocks["generator"]
    assert block.devices.tolist() == [0, 1, 2]
    assert block.start.shape == (3, 6)


def test_rows_are_found_by_device():
    block = Population(NETWORK, np.array([[False, True], [True, True], [True, True]]), 0).blocks["left"]
    assert block.rows_of(np.array([2, 1])).tolist() == [1, 0]


def test_a_round_begins_where_the_exchange_ended():
    population = Population(NETWORK, HOLDS, seed=0)
    for block in population.blocks.values():
        block.local += 1
    for block in population.blocks.values():
        block.begin()
    for block in population.blocks.values():
        assert torch.equal(block.local, block.start)


def test_consensus_distance_is_the_root_mean_square_from_the_mean():
    population = Population(NETWORK, HOLDS, seed=0)
    assert all(distance == pytest.approx(0, abs=1e-6) for distance in population.consensus_distance().values())
    block = population.blocks["left"]
    block.start[0] += 3.0  # both are 1.5 from their mean in every parameter
    expected = 1.5 * block.num_parameters**0.5
    assert population.consensus_distance()["left"] == pytest.approx(expected, rel=1e-5)
    assert population.consensus_distance()["right"] == 0  # one device is its own mean


def test_a_block_that_nobody_has_bears_everything():
    population = Population(NETWORK, np.array([[True, False]]), seed=0)
    assert population.blocks["right"].start.shape == (0, NETWORK.layouts["right"].size)
    assert population.consensus_distance()["right"] == 0


def test_a_state_restores_parameters_and_momentum():
    population, other = Population(NETWORK, HOLDS, seed=0), Population(NETWORK, HOLDS, seed=1)
    for block in population.blocks.values():
        block.start += 1
        block.momentum += 2
    other.load_state_dict(population.state_dict())
    for name, block in population.blocks.items():
        assert torch.equal(other.blocks[name].start, block.start)
        assert torch.equal(other.blocks[name].momentum, block.momentum)
        assert other.blocks[name].start.data_ptr() != block.start.data_ptr()


def test_a_state_of_another_population_changes_nothing():
    population = Population(NETWORK, HOLDS, seed=0)
    state = Population(NETWORK, HOLDS[[0, 1, 1]], seed=1).state_dict()
    before = {name: block.start.clone() for name, block in population.blocks.items()}
    state.pop("right")
    with pytest.raises(ValueError, match=r"block left must have shape .*2, 81.*, got .*3, 81"):
        population.load_state_dict({**state, "left": state["left"], "right": population.state_dict()["right"]})
    with pytest.raises(ValueError, match=r"block right must have shape .*, got None"):
        population.load_state_dict({**population.state_dict(), "right": None})
    assert all(torch.equal(block.start, before[name]) for name, block in population.blocks.items())


@pytest.mark.parametrize(
    "holds",
    [np.ones((3, 3), dtype=bool), np.ones(2, dtype=bool), np.ones((3, 2)), np.ones((3, 2, 1), dtype=bool)],
    ids=["three modalities", "one dimension", "numbers", "three dimensions"],
)
def test_a_bad_mask_is_refused(holds):
    with pytest.raises(ValueError, match=r"holds must be bool \[devices, 2 modalities\], got"):
        Population(NETWORK, holds, seed=0)
