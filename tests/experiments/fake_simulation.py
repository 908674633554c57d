"""A simulation that costs nothing and whose rounds depend on all earlier ones."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

import numpy as np
import torch

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.training.keep.callbacks import Callback


class FakeSimulation:
    """Its state is a tensor, an array and a random state; seed 13 always fails, seed 14 is killed."""

    def __init__(self, config: ExperimentConfig, seconds_a_round: float = 0.0) -> None:
        self.config = config
        self.round = 0
        self.total_rounds = config.training.rounds
        self.seconds_a_round = seconds_a_round
        self.generator = torch.Generator().manual_seed(config.seed)
        self.values = torch.zeros(config.data.num_devices)
        self.energy = np.full(config.data.num_devices, 10.0)

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        for callback in callbacks:
            callback.on_start(self)
        while self.round < self.total_rounds:
            record = self.run_round()
            for callback in callbacks:
                callback.on_round_end(self, record)
        for callback in callbacks:
            callback.on_end(self)

    def run_round(self) -> dict[str, Any]:
        time.sleep(self.seconds_a_round)
        self.round += 1
        if self.config.seed == 13 and self.round == 2:
            raise RuntimeError("the thirteenth seed fails")
        if self.config.seed == 14 and self.round == 2:
            os.kill(os.getpid(), signal.SIGKILL)
        self.values = 0.9 * self.values + torch.rand(len(self.values), generator=self.generator)
        self.energy -= 0.125
        return self.make_record()

    def make_record(self) -> dict[str, Any]:
        skill = {"local": 0.5, "dmml": 0.6}.get(self.config.method.name, 0.7)
        test = [skill + 0.02 * float(value) for value in self.values]
        evaluated = self.round % self.config.training.evaluate_every == 0 or self.round == self.total_rounds
        return {
            "round": self.round,
            "learning_rate": self.config.training.learning_rate_at(self.round - 1),
            "loss": {"total": 1.0 / self.round, "task": 0.5 / self.round},
            "accuracy": {"test": test, "validation": [value - 0.01 for value in test]} if evaluated else None,
            "modality_accuracy": {"acc": [0.5, None, *test[2:]]} if evaluated else None,
            "consensus_distance": {"shared": 0.25, "acc": 0.5},
            "local_iterations": {"acc": [3] * len(test), "gyr": [None, *[2] * (len(test) - 1)]},
            "imbalance": [0.1] * len(test),
            "energy_spent_joule": [0.125] * len(test),
            "energy_left_joule": [None, *(float(value) for value in self.energy[1:])],
        }

    def state_dict(self) -> dict[str, Any]:
        return {
            "round": self.round,
            "values": self.values,
            "energy": self.energy,
            "generator": self.generator.get_state(),
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.round = state["round"]
        self.values = state["values"]
        self.energy = state["energy"]
        self.generator.set_state(state["generator"])


def build_fake(config: ExperimentConfig) -> FakeSimulation:
    return FakeSimulation(config)


def build_slow_fake(config: ExperimentConfig) -> FakeSimulation:
    return FakeSimulation(config, seconds_a_round=0.01)
