"""What a round's plan is made of: the share of the energy, what is kept back of it, and the speeds."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.energy import EnergyAccount, EnergyConfig
from tests.training.synthetic import SMALL_TRAINING, TINY_SHAPES, make_dataset, make_simulation, plain_method

ALL = np.ones((4, 2), dtype=bool)
HALF = EnergyConfig(budget_fraction=0.5)


def planned(policy: str, energy: EnergyConfig = HALF) -> Simulation:
    return make_simulation(make_dataset(TINY_SHAPES), ALL, plain_method("dmml", policy=policy), energy=energy)


def iterations(simulation: Simulation) -> list[list[int]]:
    """Run all rounds and return the local iterations of each: those of all devices, one modality after the other."""
    records = [simulation.run_round() for _ in range(simulation.total_rounds - simulation.round)]
    return [[count for column in record["local_iterations"].values() for count in column] for record in records]


def test_the_rounds_that_remain_share_the_energy_evenly_and_use_it_up():
    simulation = planned("uniform")
    assert iterations(simulation) == [[2] * 8] * 4  # half of four
    assert simulation.energy.remaining_joule.tolist() == [0.0] * 4


def test_greedy_trains_as_long_as_the_battery_pays():
    assert iterations(planned("greedy")) == [[4] * 8, [4] * 8, [0] * 8, [0] * 8]


def test_a_modality_that_waits_for_another_costs_nothing():
    separate, uniform = planned("separate"), planned("uniform")
    assert iterations(separate) == iterations(uniform)
    assert separate.energy.spent_joule.tolist() == uniform.energy.spent_joule.tolist()


def test_a_plan_leaves_the_energy_of_the_exchange_and_of_the_generators_learning():
    method = get_method("dmml-kd")
    generator = dataclasses.replace(method.generator, steps=200)
    simulation = make_simulation(
        make_dataset(TINY_SHAPES),
        ALL,
        dataclasses.replace(method, generator=generator),
        energy=EnergyConfig(model="wireless", budget_joule=1.0),
    )
    iteration = simulation.iteration_energy.sum(axis=1)
    further = simulation.world.draw(0).cost.energy_joule + simulation.overhead
    assert (simulation.overhead > SMALL_TRAINING.local_iterations * iteration).all()
    simulation.energy = EnergyAccount(simulation.total_rounds * (further + 2.5 * iteration))
    record = simulation.run_round()
    assert [record["local_iterations"][name] for name in TINY_SHAPES] == [[2] * 4] * 2
    np.testing.assert_allclose(record["energy_spent_joule"], further + 2 * iteration)


@pytest.mark.parametrize("smoothing", [0.25, 0.8])
def test_speeds_are_averaged_with_the_configured_weight(smoothing):
    latest, averaged = (make_simulation(method=plain_method("dmml", smoothing=weight)) for weight in (1.0, smoothing))
    for simulation in (latest, averaged):
        simulation.run_round()
    first = latest.speeds.copy()
    np.testing.assert_array_equal(averaged.speeds, first)
    for simulation in (latest, averaged):
        simulation.run_round()
    assert not np.allclose(latest.speeds, first, rtol=0.01, equal_nan=True)
    np.testing.assert_allclose(averaged.speeds, smoothing * latest.speeds + (1 - smoothing) * first)
