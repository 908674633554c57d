"""The same simulation on the CPU and on the fake GPU, both by plain torch."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch

from dmmlkd_ext.ops import native
from dmmlkd_ext.training.exchange.jagged import JaggedWeights
from dmmlkd_ext.training.exchange.weights import MixingWeights
from dmmlkd_ext.training.methods import METHODS, MethodConfig
from dmmlkd_ext.training.round import Simulation
from tests.training.synthetic import SMALL_TRAINING, make_dataset, make_simulation

TRAINING = dataclasses.replace(SMALL_TRAINING, rounds=2, local_iterations=3, evaluate_every=1, evaluation_samples=8)


@contextmanager
def by_plain_torch() -> Iterator[None]:
    """Let the CPU compute as a GPU does: without native code, and mix by jagged diagonals."""
    divide = MixingWeights._divide

    def jagged(self: MixingWeights, *arguments: Any) -> Any:
        mixing = divide(self, *arguments)
        return mixing._replace(mixer=JaggedWeights(mixing.weights, self._like.device))

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(native, "_library", None)
        patch.setattr(MixingWeights, "_divide", jagged)
        yield


def from_the_first_round(name: str) -> MethodConfig:
    """Return a method whose guidance needs no warm-up, and which has devices, not one, if it is centralized."""
    method = dataclasses.replace(METHODS[name], centralized=False)
    return dataclasses.replace(method, generator=dataclasses.replace(method.generator, warmup_rounds=0))


def simulate(method: MethodConfig | str, where: str, **settings: Any) -> Simulation:
    """Return a small simulation, with missing modalities, before its first round."""
    chosen = from_the_first_round(method) if isinstance(method, str) else method
    settings = {"training": TRAINING, "dataset": make_dataset(missing=0.3), **settings}
    return make_simulation(method=chosen, torch_device=where, **settings)


def assert_same(one: Simulation, other: Simulation) -> None:
    """Compare all parameters and momenta to the bit."""
    for name, block in one.population.blocks.items():
        for kind in ("start", "momentum"):
            found, expected = getattr(block, kind), getattr(other.population.blocks[name], kind)
            assert torch.equal(found.cpu(), expected.cpu()), f"{kind} of {name}"
