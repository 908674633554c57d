"""Small simulations that any number of ranks runs: uneven, with failures, with little energy."""

from __future__ import annotations

import dataclasses

import numpy as np

from dmmlkd_ext.training.exchange.ranks import Ranks, Slice
from dmmlkd_ext.training.methods import METHODS, MethodConfig
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.energy import EnergyConfig
from dmmlkd_ext.wireless.failures import FailureConfig
from tests.training.synthetic import MIXED_SHAPES, SMALL_TRAINING, make_dataset, make_simulation

SHAPES = MIXED_SHAPES
ROUNDS = 5
SAVED_ROUND = 2

SPREAD_METHODS = sorted(METHODS.keys() - {"centralized"})
"""`centralized` has one device, which several ranks cannot share."""

# vector, wave, image: on two ranks one has no image, on four a rank has one device and that one modality.
HOLDS = np.array(
    [[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0], [0, 0, 1], [1, 0, 0], [1, 1, 0], [0, 1, 0], [0, 0, 0]],
    dtype=np.bool_,
)

OWNERS = {
    1: np.zeros(9, dtype=np.int64),
    2: np.array([0, 0, 0, 0, 0, 1, 1, 1, 0]),
    4: np.array([0, 1, 3, 1, 2, 0, 1, 3, 0]),  # rank 2 has device 4 alone
}


def method(name: str) -> MethodConfig:
    """Return a method whose generator begins in the second round and is cheap."""
    settings = {"warmup_rounds": 1, "ramp_rounds": 2, "steps": 2, "hidden_width": 8, "pool_per_class": 4}
    found = METHODS[name]
    return dataclasses.replace(found, generator=dataclasses.replace(found.generator, **settings))


def build(name: str, ranks: Ranks) -> Simulation:
    """Return this rank's part of the simulation of one method."""
    return make_simulation(
        make_dataset(SHAPES, missing=0.2),
        HOLDS,
        method(name),
        dataclasses.replace(SMALL_TRAINING, rounds=ROUNDS, evaluation_samples=7),
        EnergyConfig(model="wireless", budget_fraction=0.5),
        FailureConfig(link_probability=0.2, device_probability=0.1),
        topology="watts_strogatz",
        part=Slice(ranks, OWNERS[ranks.size]),
    )
