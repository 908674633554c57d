"""A simulation and the plain loop that follows it, compared round by round."""

from __future__ import annotations

import numpy as np
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.training.round import Simulation
from tests.training.plain_loop import PlainLoop


def plan_of(record: dict, simulation: Simulation) -> Plan:
    """Return the plan that a round was trained by."""
    counts = record["local_iterations"].values()
    iterations = np.array([[number or 0 for number in column] for column in counts], dtype=np.int64).T
    start = np.zeros_like(iterations)
    if simulation.method.balance.policy == "separate":
        start = iterations.cumsum(axis=1) - iterations
    return Plan(iterations, start)


class Twins:
    """A simulation and the plain loop that follows it, round by round."""

    def __init__(self, simulation: Simulation, device_samples: list) -> None:
        self.simulation = simulation
        self.loop = PlainLoop(
            simulation.population, simulation.dataset.train, device_samples, simulation.method, simulation.config
        )
        self.speeds = np.full(simulation.population.holds.shape, np.nan)

    def run_round(self, tolerance: dict) -> Plan:
        """Run one round of both and compare all that they compute."""
        simulation = self.simulation
        number, links = simulation.round, simulation.world.draw(simulation.round, simulation.energy.remaining_joule)
        begin = {name: self.loop.vectors(name).norm(dim=1).double().numpy() for name in self.loop.columns}
        record = simulation.run_round()
        plan = plan_of(record, simulation)
        batches = simulation.sampler.draw(number, plan.num_iterations)
        losses, distances = self.loop.run_round(batches, plan, record["learning_rate"], links.edges)
        self._compare_state(tolerance)
        self._compare_losses(record, losses, tolerance)
        self._compare_speeds(plan, distances, begin, tolerance)
        return plan

    def _compare_state(self, tolerance: dict) -> None:
        for name, block in self.simulation.population.blocks.items():
            columns = self.loop.columns[name]
            torch.testing.assert_close(block.start[:, columns], self.loop.vectors(name), **tolerance)
            if self.simulation.config.momentum:  # without, the buffer is never read and torch keeps none
                torch.testing.assert_close(block.momentum[:, columns], self.loop.momenta(name), **tolerance)

    def _compare_losses(self, record: dict, losses: dict, tolerance: dict) -> None:
        for term, values in losses.items():
            trained = values[~np.isnan(values)]
            if not len(trained):
                assert record["loss"].get(term) is None
            else:
                np.testing.assert_allclose(record["loss"][term], trained.mean(), **tolerance)

    def _compare_speeds(self, plan: Plan, distances: dict, begin: dict, tolerance: dict) -> None:
        """Follow METHOD 5: v = ||local - start|| / (sqrt(P) tau), and its moving average."""
        balance = self.simulation.method.balance
        for column, name in enumerate(self.simulation.population.network.modalities):
            members = self.loop.members(name)
            size = begin[name] if balance.relative else np.sqrt(len(self.loop.columns[name]))
            for row, device in enumerate(members):
                tau = plan.iterations[device, column]
                if not tau:
                    continue
                scale = size[row] if balance.relative else size
                speed, before = distances[name][device] / (scale * tau), self.speeds[device, column]
                average = balance.smoothing * speed + (1 - balance.smoothing) * before
                self.speeds[device, column] = speed if np.isnan(before) else average
        np.testing.assert_allclose(self.simulation.speeds, self.speeds, **tolerance)
