"""What guides, over rounds: fresh noise, statistics of enough features, Adam's steps of each device."""

from __future__ import annotations

import copy
import dataclasses

import numpy as np
import pytest
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.training.guide import GENERATOR
from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.failures import FailureConfig
from tests.training.synthetic import SMALL_TRAINING, TINY_SHAPES, make_dataset, make_simulation

RATE = 3e-3
FROZEN = dataclasses.replace(
    SMALL_TRAINING, local_iterations=1, batch_size=12, learning_rate=1e-30, weight_decay=0.0, input_noise=0.0
)
"""Every device sees all of its twelve samples in a round, and its network stays as it is."""


def guided(
    dataset: MultiModalDataset, kind: str = "network", failures: FailureConfig | None = None, **generator: object
) -> Simulation:
    """Return a simulation of four devices, of twelve samples each, without exchange."""
    method = get_method("dmml-kd")
    settings = {"kind": kind, "warmup_rounds": 0, "ramp_rounds": 1, "steps": 1, "learning_rate": RATE, **generator}
    config = dataclasses.replace(method.generator, **settings)
    return make_simulation(
        dataset,
        np.ones((4, len(dataset.modalities)), dtype=bool),
        dataclasses.replace(method, exchange=False, generator=config),
        FROZEN,
        failures=failures,
        device_samples=np.split(np.arange(48), 4),
    )


def generator_rows(simulation: Simulation) -> torch.Tensor:
    return simulation.population.blocks[GENERATOR].start.clone()


def at_round(simulation: Simulation, state: dict, number: int) -> dict:
    """Run round `number` from a state, whichever round that is of, and return its record."""
    simulation.load_state_dict({**copy.deepcopy(state), "round": number})
    return simulation.run_round()


@pytest.mark.parametrize("kind", ["network", "gaussian"])
def test_what_guides_is_drawn_anew_in_every_round(kind):
    simulation = guided(make_dataset(TINY_SHAPES), kind, pool_per_class=1)
    simulation.run_round()  # after which a gaussian knows the classes
    state = copy.deepcopy(simulation.state_dict())
    first, again, second = (at_round(simulation, state, number)["device_loss"]["generator"] for number in (1, 1, 2))
    assert first == again
    assert not np.isclose(first, second, rtol=1e-3).any()


def test_the_generator_learns_from_fresh_noise_in_every_round():
    simulation = guided(make_dataset(TINY_SHAPES), warmup_rounds=9, moment_weight=0.0)
    state, learned = copy.deepcopy(simulation.state_dict()), []
    for number in (0, 0, 1):
        at_round(simulation, state, number)
        learned.append(generator_rows(simulation))
    assert torch.equal(learned[0], learned[1])
    assert not torch.isclose(learned[0], learned[2], rtol=0, atol=RATE / 10).all(1).any()


@pytest.mark.parametrize("kind", ["network", "gaussian"])
@pytest.mark.parametrize("count", [1, 2])
def test_a_class_of_which_a_device_saw_one_feature_sets_no_target(kind, count):
    # Two datasets that differ in the samples of one class alone, of which the first device has `count`.
    first = make_dataset({"only": (5,)})
    first.train.labels[:12] = torch.tensor([0] * count + [1] * (12 - count))
    second = copy.deepcopy(first)
    second.train.features["only"][:count] += torch.randn(count, 5, generator=torch.Generator().manual_seed(1))
    simulations = [guided(dataset, kind, warmup_rounds=9, steps=3) for dataset in (first, second)]
    for simulation in simulations:
        simulation.run_round()
    one, other = map(generator_rows, simulations)
    assert torch.equal(one[1:], other[1:])
    assert torch.equal(one[0], other[0]) == (count == 1)


def test_a_device_that_sat_out_takes_its_first_step_of_adam_when_it_comes_back(tmp_path):
    schedule = tmp_path / "failures.csv"
    schedule.write_text("round,kind,ids\n0-1,device,2\n")
    failures = FailureConfig(schedule_path=str(schedule))
    simulation = guided(make_dataset(TINY_SHAPES), failures=failures, warmup_rounds=9)
    start = generator_rows(simulation)
    simulation.run_round()
    simulation.run_round()
    assert torch.equal(generator_rows(simulation)[2], start[2])
    simulation.run_round()
    moved = (generator_rows(simulation)[2] - start[2]).abs()
    # A first step is learning rate * gradient / (|gradient| + 1e-8): the learning rate, wherever there is a gradient.
    assert float(moved.max()) == pytest.approx(RATE, rel=1e-3)
