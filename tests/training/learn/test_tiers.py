"""Who trains in which local iteration; that the numbers are right is tested in test_population_equals_loop.py."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.learn import LocalTask, reference, train, why_reference
from dmmlkd_ext.training.round import Simulation
from tests.training.synthetic import TINY_SHAPES, make_dataset, make_simulation, plain_method

HOLDS = np.array([[True, True], [True, False], [True, True]])


pytestmark = pytest.mark.usefixtures("tier")


def tiny_simulation(method: str = "dmml-kd") -> Simulation:
    return make_simulation(make_dataset(TINY_SHAPES), HOLDS, plain_method(method))


def plan_of(iterations: list[list[int]], start: list[list[int]] | None = None) -> Plan:
    return Plan(np.array(iterations), np.array(start or np.zeros_like(iterations)))


def train_plan(simulation: Simulation, plan: Plan, rate: float = 0.1) -> dict[str, np.ndarray]:
    batches = simulation.sampler.draw(0, 10)
    return train(LocalTask(simulation.population, batches, plan, simulation.method, simulation.config, rate))


def state(simulation: Simulation, block: str, device: int) -> torch.Tensor:
    """Return the trained parameters and the momentum of one device's block."""
    rows = simulation.population.blocks[block]
    row = list(rows.devices).index(device)
    return torch.stack([rows.local[row], rows.momentum[row]])


def test_what_does_not_train_keeps_its_bits():
    simulation = tiny_simulation()
    population = simulation.population
    for block in population.blocks.values():
        block.momentum.normal_(generator=torch.Generator().manual_seed(0))
    names = [(name, device) for name, block in population.blocks.items() for device in block.devices]
    before = {key: state(simulation, *key) for key in names}
    losses = train_plan(simulation, plan_of([[2, 0], [0, 0], [1, 3]]))
    kept = {key for key in names if torch.equal(state(simulation, *key), before[key])}
    assert kept == {("right", 0), (SHARED, 1), ("left", 1)}
    assert np.isnan(losses["task"]).tolist() == [False, True, False]


def test_a_paused_block_stays_where_its_last_iteration_left_it():
    short, long = tiny_simulation(), tiny_simulation()
    train_plan(short, plan_of([[2, 2], [2, 0], [2, 2]]))
    train_plan(long, plan_of([[2, 4], [3, 0], [5, 2]]))
    assert torch.equal(state(short, "left", 0), state(long, "left", 0))
    assert torch.equal(state(short, "right", 2), state(long, "right", 2))
    for block, device in (("right", 0), ("left", 1), ("left", 2), (SHARED, 0)):
        assert not torch.equal(state(short, block, device), state(long, block, device))


def test_a_modality_may_start_after_another():
    simulation = tiny_simulation()
    before = state(simulation, "right", 0)
    separate = plan_of([[2, 3], [0, 0], [0, 0]], [[0, 2], [0, 0], [0, 0]])
    train_plan(simulation, Plan(np.array([[2, 0], [0, 0], [0, 0]]), separate.start))
    assert torch.equal(state(simulation, "right", 0), before)
    left = state(simulation, "left", 0)
    again = tiny_simulation()
    train_plan(again, separate)
    assert torch.equal(state(again, "left", 0), left)
    assert not torch.equal(state(again, "right", 0), before)


def test_a_waiting_modality_is_no_part_of_the_prediction():
    plan = plan_of([[0, 1], [0, 0], [0, 0]])
    changed = tiny_simulation()
    changed.population.blocks["left"].start[0] += 1
    assert train_plan(changed, plan)["task"][0] == train_plan(tiny_simulation(), plan)["task"][0]


def test_a_device_does_not_depend_on_the_others():
    together, alone = tiny_simulation(), tiny_simulation()
    train_plan(together, plan_of([[3, 2], [4, 0], [1, 4]]))
    train_plan(alone, plan_of([[0, 0], [0, 0], [1, 4]]))
    for block in (SHARED, "left", "right"):
        torch.testing.assert_close(state(together, block, 2), state(alone, block, 2), rtol=1e-5, atol=1e-7)


def test_the_step_is_bounded_by_the_clipped_gradient():
    simulation = tiny_simulation()
    simulation.config = dataclasses.replace(simulation.config, clip_norm=1e-3, momentum=0.0, weight_decay=0.0)
    train_plan(simulation, plan_of([[1, 1], [1, 0], [1, 1]]), rate=1.0)
    squares = np.zeros(3)
    for block in simulation.population.blocks.values():
        squares[block.devices] += (block.local - block.start).double().square().sum(1).numpy()
    np.testing.assert_allclose(np.sqrt(squares), 1e-3, rtol=1e-2)


def test_terms_that_the_method_lacks_have_no_value():
    losses = train_plan(tiny_simulation("dmml"), plan_of([[1, 1], [1, 0], [1, 1]]))
    assert np.isfinite(losses["task"]).all()
    assert all(np.isnan(values).all() for term, values in losses.items() if term != "task")


def test_a_plan_without_iterations_trains_nothing():
    simulation = tiny_simulation()
    losses = train_plan(simulation, plan_of([[0, 0], [0, 0], [0, 0]]))
    assert all(np.isnan(values).all() for values in losses.values())
    for block in simulation.population.blocks.values():
        assert torch.equal(block.local, block.start)


def test_losses_are_means_over_the_iterations_that_a_device_trained():
    first, both = tiny_simulation(), tiny_simulation()
    one = train_plan(first, plan_of([[1, 1], [1, 0], [1, 1]]))
    two = train_plan(both, plan_of([[2, 2], [1, 0], [2, 2]]))
    assert one["task"][1] == two["task"][1]
    assert one["task"][0] != two["task"][0]


def test_the_proximal_term_pulls_towards_the_rounds_start():
    # FedProx: w <- w - rate (gradient + mu (w - start)); without momentum, decay and clipping.
    rate, mu, runs = 0.1, 0.5, []
    for proximal in (0.0, mu):
        simulation = tiny_simulation("dmml")
        simulation.config = dataclasses.replace(simulation.config, clip_norm=1e6, momentum=0.0, weight_decay=0.0)
        simulation.method = dataclasses.replace(simulation.method, proximal=proximal)
        losses = [train_plan(simulation, plan_of([[number, number], [0, 0], [0, 0]]), rate) for number in (1, 2)]
        assert np.isfinite(losses[1]["task"][0])
        runs.append(simulation)
    # In the first iteration nothing is pulled; in the second, from where the first left both.
    once = tiny_simulation("dmml")
    once.config = dataclasses.replace(once.config, clip_norm=1e6, momentum=0.0, weight_decay=0.0)
    train_plan(once, plan_of([[1, 1], [0, 0], [0, 0]]), rate)
    for name, block in runs[0].population.blocks.items():
        pull = block.local[0] - runs[1].population.blocks[name].local[0]
        torch.testing.assert_close(
            pull, rate * mu * (once.population.blocks[name].local - block.start)[0], atol=1e-6, rtol=1e-4
        )


@pytest.mark.parametrize("method", ["dmml-kd", "mmpareto", "ogm-ge"])
@pytest.mark.parametrize("plan", [[[2, 3], [4, 0], [3, 1]], [[2, 2], [2, 0], [2, 2]]])
def test_a_round_does_not_depend_on_its_chunks(monkeypatch, method, plan):
    whole, parts = tiny_simulation(method), tiny_simulation(method)
    losses = [train_plan(whole, plan_of(plan))]
    monkeypatch.setattr(reference, "CHUNK_VALUES", 1)
    losses.append(train_plan(parts, plan_of(plan)))
    np.testing.assert_array_equal(losses[0]["task"], losses[1]["task"])
    for name, block in whole.population.blocks.items():
        assert torch.equal(block.local, parts.population.blocks[name].local)
        assert torch.equal(block.momentum, parts.population.blocks[name].momentum)


def test_the_tier_has_a_reason():
    simulation = tiny_simulation()
    population, method = simulation.population, simulation.method
    if backend() == "native":
        assert why_reference(population, method) is None
    losses = dataclasses.replace(method.losses, further={"margin": 0.1})
    assert "the loss term margin" in why_reference(population, dataclasses.replace(method, losses=losses))
