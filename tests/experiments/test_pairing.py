"""All methods of a seed meet the same data, devices, links and batches: what a comparison pairs by."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import pytest
import torch

from dmmlkd_ext.data import register_dataset, registry
from dmmlkd_ext.experiments.build import build_simulation
from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import METHODS, get_method
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.energy import EnergyConfig
from dmmlkd_ext.wireless.failures import FailureConfig
from tests.training.synthetic import TINY_SHAPES, make_dataset

SHARED = [name for name in (*METHODS, "uniform") if name != "centralized"]
"""Methods that train the devices of a configuration: all but the one that has all data in one place."""


@pytest.fixture(autouse=True)
def _tiny_dataset(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    register_dataset("tiny", lambda seed=0: make_dataset(TINY_SHAPES))


def configure(method: str, **data: Any) -> ExperimentConfig:
    return ExperimentConfig(
        method=get_method(method),
        data=DataConfig("tiny", **{"num_devices": 6, "missing_rate": 0.5, "dirichlet_alpha": 0.5, **data}),
        energy=EnergyConfig(model="wireless"),
        failures=FailureConfig(0.2, 0.1),
        training=TrainingConfig(rounds=3, batch_size=4, input_noise=0.1),
        seed=5,
    )


def samples_of(simulation: Simulation) -> list[set[int]]:
    """Return which training samples the batches of each device are drawn from, by drawing all of them."""
    indices = simulation.sampler.draw(0, len(simulation.dataset.train)).indices
    return [set(indices[:, device].flatten().tolist()) for device in range(indices.shape[1])]


@pytest.mark.parametrize("method", SHARED)
def test_methods_of_a_seed_meet_the_same_world(method: str) -> None:
    one, other = build_simulation(configure("dmml")), build_simulation(configure(method))
    assert samples_of(one) == samples_of(other)
    assert np.array_equal(one.holds, other.holds)
    assert np.array_equal(one.world.topology.edges, other.world.topology.edges)
    assert np.array_equal(one.world.topology.positions_m, other.world.topology.positions_m)
    assert np.array_equal(one.iteration_time, other.iteration_time)  # by each device's processor
    for number in range(3):
        links, others = one.world.draw(number), other.world.draw(number)
        assert np.array_equal(links.devices, others.devices)
        if other.method.exchange:
            assert np.array_equal(links.edges, others.edges)


@pytest.mark.parametrize("method", SHARED)
def test_methods_of_a_seed_begin_and_are_fed_alike(method: str) -> None:
    one, other = build_simulation(configure("dmml")), build_simulation(configure(method))
    for name, block in one.population.blocks.items():
        assert torch.equal(block.start, other.population.blocks[name].start)
    devices = torch.arange(6)
    for number in range(2):
        batches, others = one.sampler.draw(number, 3), other.sampler.draw(number, 3)
        assert torch.equal(batches.indices, others.indices)
        for modality in TINY_SHAPES:
            own, theirs = (drawn.features(2, modality, devices) for drawn in (batches, others))
            assert torch.equal(own, theirs)  # the noise on them, too


@pytest.mark.parametrize("partition", ["dirichlet", "iid"])
def test_who_has_which_samples_does_not_depend_on_who_lacks_a_modality(partition: str) -> None:
    rates = (0.0, 0.5, 1.0)
    built = [build_simulation(configure("dmml", partition=partition, missing_rate=rate)) for rate in rates]
    assert len({simulation.holds.tobytes() for simulation in built}) == 3
    assert samples_of(built[0]) == samples_of(built[1]) == samples_of(built[2])


def test_seeds_differ() -> None:
    """What is compared above is drawn at all."""
    one = build_simulation(configure("dmml"))
    other = build_simulation(dataclasses.replace(configure("dmml"), seed=6))
    assert samples_of(one) != samples_of(other)
    assert not np.array_equal(one.world.topology.positions_m, other.world.topology.positions_m)
    assert not np.array_equal(one.iteration_time, other.iteration_time)
    assert not torch.equal(one.population.blocks["shared"].start, other.population.blocks["shared"].start)
    assert not torch.equal(one.sampler.draw(0, 3).indices, other.sampler.draw(0, 3).indices)
