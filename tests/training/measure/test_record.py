from __future__ import annotations

import dataclasses
import json
import math

import numpy as np
import pytest

from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.energy import EnergyAccount, EnergyConfig
from dmmlkd_ext.wireless.failures import FailureConfig
from dmmlkd_ext.wireless.mixing import metropolis_hastings, spectral_gap
from tests.training.synthetic import MIXED_SHAPES, SMALL_TRAINING, UNEVEN_HOLDS, make_dataset, make_simulation

KEYS = {
    *("round", "learning_rate", "loss", "accuracy", "modality_accuracy", "generator_quality", "probe_accuracy"),
    *(
        "local_iterations",
        "balance_metric",
        "imbalance",
        "ranking_agreement",
        "energy_spent_joule",
        "energy_left_joule",
        "sent_bits",
    ),
    *("consensus_distance", "working_links", "failed_devices", "simulated_time_s"),
    *("device_loss", "device_time_s", "spectral_gap"),
}
TERMS = {"total", "task", "classification", "similarity", "difference", "generator", "rehearsal"}
BLOCKS = {"shared", *MIXED_SHAPES}


def records(**settings: object) -> list[dict]:
    simulation = make_simulation(**settings)
    return [simulation.run_round() for _ in range(simulation.total_rounds)]


WORLDS = {
    "no limit": {},
    "scarce": {"energy": EnergyConfig(model="wireless", budget_fraction=0.3), "method": "dmml-kd-tb"},
    "no energy": {"energy": EnergyConfig(budget_joule=0.0)},
    "all fail": {"failures": FailureConfig(device_probability=1.0)},
    "generator": {"method": get_method("dmml-kd")},
    "gaussian": {"method": get_method("dmml-kd-gaussian")},
    "sparse samples": {"dataset": make_dataset(missing=0.8)},
    "no test data": {"dataset": make_dataset(samples=90)},
    "one device": {"holds": np.array([[False, True, False]])},
    "a device without modalities": {"holds": np.array([[True] * 3, [False] * 3, [True] * 3])},
}


@pytest.mark.parametrize("world", WORLDS)
def test_records_are_json_with_the_documented_keys(world):
    for number, record in enumerate(records(**WORLDS[world]), start=1):
        assert record == json.loads(json.dumps(record, allow_nan=False))
        assert record.keys() == KEYS
        assert record["loss"].keys() == TERMS
        assert record["consensus_distance"].keys() - {"generator"} == BLOCKS
        assert record["round"] == number
        devices = len(record["imbalance"])
        for key in ("local_iterations", "balance_metric"):
            assert record[key].keys() == MIXED_SHAPES.keys()
            assert all(len(values) == devices for values in record[key].values())
        assert record["device_loss"].keys() == TERMS - {"total"}
        assert all(len(values) == devices for values in record["device_loss"].values())
        for key in ("energy_spent_joule", "energy_left_joule", "sent_bits", "device_time_s"):
            assert len(record[key]) == devices
        if record["accuracy"]:
            assert record["accuracy"].keys() == {"test", "validation"}
            assert record["modality_accuracy"].keys() == MIXED_SHAPES.keys()


def test_what_does_not_apply_is_none():
    first, second = records(energy=EnergyConfig())[:2]
    for column, name in enumerate(MIXED_SHAPES):
        held = UNEVEN_HOLDS[:, column].tolist()
        assert [count is not None for count in first["local_iterations"][name]] == held
        assert [value is not None for value in second["modality_accuracy"][name]] == held
        assert first["balance_metric"][name] == [None] * 5  # no speed is known before the first round
        assert [value is not None for value in second["balance_metric"][name]] == held
    assert first["accuracy"] is None
    assert first["modality_accuracy"] is None
    assert first["energy_left_joule"] == [None] * 5  # no limit
    assert first["loss"]["generator"] is None


def test_the_total_is_the_weighted_sum_of_the_terms():
    simulation = make_simulation()
    loss = simulation.run_round()["loss"]
    weights = simulation.method.losses
    expected = loss["task"] + sum(
        getattr(weights, term) * loss[term] for term in ("classification", "similarity", "difference")
    )
    assert loss["total"] == pytest.approx(expected)


def test_a_term_is_the_mean_of_its_devices():
    record = make_simulation(holds=UNEVEN_HOLDS).run_round()
    trained = [value for value in record["device_loss"]["task"] if value is not None]
    assert len(set(trained)) == len(trained) > 1
    assert record["loss"]["task"] == pytest.approx(np.mean(trained))
    assert record["device_loss"]["generator"] == [None] * 5


def test_the_spectral_gap_is_that_of_the_links_that_work():
    simulation = make_simulation()
    whole = spectral_gap(metropolis_hastings(simulation.world.topology.edges, 5))
    assert 0 < simulation.run_round()["spectral_gap"] == pytest.approx(whole)
    apart = make_simulation(failures=FailureConfig(device_probability=1.0))
    assert apart.run_round()["spectral_gap"] == 0
    failing = make_simulation(failures=FailureConfig(link_probability=0.4))
    gaps = [failing.run_round()["spectral_gap"] for _ in range(failing.total_rounds)]
    expected = [
        spectral_gap(metropolis_hastings(failing.world.draw(index).edges, 5)) for index in range(failing.total_rounds)
    ]
    assert gaps == pytest.approx(expected)
    assert len(set(gaps)) > 1


def test_a_round_without_training_has_no_loss():
    for record in records(energy=EnergyConfig(budget_joule=0.0)):
        assert set(record["loss"].values()) == {None}
        assert sum(count or 0 for counts in record["local_iterations"].values() for count in counts) == 0


def test_a_diverged_loss_is_seen():
    training = dataclasses.replace(SMALL_TRAINING, learning_rate=1e30, clip_norm=1e30)
    losses = [record["loss"]["total"] for record in records(training=training)]
    assert losses[-1] is not None
    assert not math.isfinite(losses[-1])


def timed_simulation(**settings: object) -> Simulation:
    return make_simulation(energy=EnergyConfig(model="wireless"), **settings)


def test_a_round_lasts_until_the_slowest_device_has_computed_and_sent():
    simulation = timed_simulation()
    cost = simulation.world.draw(0).cost
    record = simulation.run_round()
    iterations = np.array([[count or 0 for count in counts] for counts in record["local_iterations"].values()]).T
    times = (iterations * simulation.iteration_time).sum(axis=1) + cost.time_s
    assert record["device_time_s"] == pytest.approx(times.tolist())
    assert record["simulated_time_s"] == pytest.approx(times.max())


def test_a_generators_learning_takes_time_as_it_takes_energy():
    simulation = timed_simulation(method=get_method("dmml-kd"))
    guidance, cost = simulation.guidance, simulation.world.draw(0).cost
    # Forward, and twice that backward, one cycle a multiply-accumulate; E = kappa f^2 cycles and t = cycles / f.
    cycles = 3 * guidance.round_macs
    frequency = np.sqrt(simulation.overhead / (1e-28 * cycles))
    record = simulation.run_round()
    iterations = np.array([[count or 0 for count in counts] for counts in record["local_iterations"].values()]).T
    slowest = (iterations * simulation.iteration_time).sum(axis=1) + cost.time_s + cycles / frequency
    assert record["simulated_time_s"] == pytest.approx(slowest.max())
    without = (iterations * simulation.iteration_time).sum(axis=1) + cost.time_s
    assert slowest.max() > 1.001 * without.max()


def test_what_does_not_learn_takes_no_time():
    idle, learning = (timed_simulation(method=get_method("dmml-kd")) for _ in range(2))
    idle.overhead = np.full(5, 1e9)
    idle.energy = EnergyAccount(np.full(5, 100.0))
    cost = idle.world.draw(0).cost
    assert idle.run_round()["simulated_time_s"] == pytest.approx(cost.time_s.max())
    assert learning.run_round()["simulated_time_s"] > cost.time_s.max()


def test_energy_is_what_computing_and_sending_cost():
    simulation = timed_simulation()
    cost = simulation.world.draw(0).cost
    record = simulation.run_round()
    iterations = np.array([[count or 0 for count in counts] for counts in record["local_iterations"].values()]).T
    expected = (iterations * simulation.iteration_energy).sum(axis=1) + cost.energy_joule
    np.testing.assert_allclose(record["energy_spent_joule"], expected)


def test_what_a_generator_learns_is_charged_to_those_that_learn():
    simulation = timed_simulation(method=get_method("dmml-kd"))
    simulation.energy = EnergyAccount(np.array([1e6, 1e6, 0.0, 1e6, 1e6]))
    cost = simulation.world.draw(0, simulation.energy.remaining_joule).cost
    record = simulation.run_round()
    iterations = np.array([[count or 0 for count in counts] for counts in record["local_iterations"].values()]).T
    expected = (iterations * simulation.iteration_energy).sum(axis=1) + cost.energy_joule + simulation.overhead
    expected[2] = 0.0  # has nothing
    assert (simulation.overhead > 0).all()
    np.testing.assert_allclose(record["energy_spent_joule"], expected)


def test_the_imbalance_is_that_of_the_devices_speeds():
    simulation = make_simulation()
    record = simulation.run_round()
    for device, (own, held) in enumerate(zip(simulation.speeds, simulation.holds, strict=True)):
        speeds = own[held & np.isfinite(own)]
        expected = np.std(speeds) / np.mean(speeds) if len(speeds) > 1 else 0.0
        assert (record["imbalance"][device] or 0.0) == pytest.approx(expected)
    assert max(value or 0.0 for value in record["imbalance"]) > 0.05


def test_sent_bits_are_those_of_the_blocks_that_a_neighbour_has():
    holds = np.array([[True, False, False], [True, True, False], [False, True, True]])
    simulation = make_simulation(holds=holds, topology="star")  # 1 and 2 hear 0 alone
    size = {name: 32 * block.num_parameters for name, block in simulation.population.blocks.items()}
    assert simulation.run_round()["sent_bits"] == [
        size["shared"] + size["vector"],
        size["shared"] + size["vector"],
        size["shared"],
    ]
