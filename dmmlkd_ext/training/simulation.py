"""The round. Everything else hangs on it as a callback."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import suppress
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import (
    Plan,
    balance_metric,
    imbalance,
    plan_iterations,
    training_speed,
    update_speeds,
)
from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.models.network import SHARED, MultiModalNetwork
from dmmlkd_ext.network.energy import EnergyAccount, initial_budget_joule
from dmmlkd_ext.network.topology import metropolis_hastings
from dmmlkd_ext.network.wireless import RoundLinks, WirelessNetwork
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.training import exchange, local
from dmmlkd_ext.training.batches import BatchSampler
from dmmlkd_ext.training.callbacks import Callback, EndTraining
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.evaluation import Accuracy, GeneratorQuality, evaluate, judge_generator
from dmmlkd_ext.training.exchange import Variation
from dmmlkd_ext.training.guidance import GENERATOR, Guidance, GuidanceRound
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.training.probe import probe_accuracy
from dmmlkd_ext.training.record import RoundOutcome, make_record

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Simulation:
    """Decentralized training of a population, round by round (METHOD 1 to 6).

    Args:
        dataset: what is learned.
        device_samples: the training samples of each device.
        population: the devices' parameters and modalities.
        network: links, failures, and what computing and sending cost.
        method: what is minimized, exchanged and balanced.
        config: how devices train.
        seed: the run's seed.
        guidance: what pulls the common features to one distribution, or None.
    """

    def __init__(
        self,
        dataset: MultiModalDataset,
        device_samples: Sequence[npt.NDArray[np.int64]],
        population: Population,
        network: WirelessNetwork,
        method: MethodConfig,
        config: TrainingConfig,
        seed: int,
        guidance: Guidance | None = None,
    ) -> None:
        self.dataset, self.population, self.network = dataset, population, network
        self.method, self.config, self.guidance = method, config, guidance
        self.round, self.total_rounds = 0, config.rounds
        self.sampler = BatchSampler(dataset.train, device_samples, config.batch_size, config.input_noise, seed)
        labels = dataset.train.labels.numpy()
        # What a device without modalities predicts: the class that it has most of, the first of several.
        self.guess = np.array([np.bincount(labels[samples]).argmax() for samples in device_samples], dtype=np.int64)
        model: MultiModalNetwork = population.network
        macs = [model.forward_macs[name] for name in model.modalities]
        self.iteration_energy = network.iteration_energy_joule(population.holds, macs, config.batch_size)
        self.iteration_time = network.iteration_time_s(macs, config.batch_size)
        learning_macs = guidance.round_macs if guidance else 0.0
        self.overhead = network.computing_energy_joule(learning_macs)
        self.learning_time = network.computing_time_s(learning_macs)
        budget = initial_budget_joule(
            network.energy,
            self.iteration_energy,
            config.local_iterations,
            config.rounds,
            network.typical_exchange_energy_joule() + self.overhead,
        )
        self.energy = EnergyAccount(budget)
        self.speeds = np.full(population.holds.shape, np.nan)

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Run the rounds that remain; a callback may end the training early."""
        for callback in callbacks:
            callback.on_start(self)
        with suppress(EndTraining):
            while self.round < self.total_rounds:
                record = self.run_round()
                for callback in callbacks:
                    callback.on_round_end(self, record)
        for callback in callbacks:
            callback.on_end(self)

    def run_round(self) -> dict[str, Any]:
        """Run one round on all devices and return its record."""
        links = self.network.draw(self.round, self.energy.remaining_joule)
        metric = balance_metric(self.speeds, self.population.holds)
        plan = self._plan(links, metric)
        rate = self.config.learning_rate_at(self.round)

        self.population.begin_round()
        batches = self.sampler.draw(self.round, plan.num_iterations)
        guidance = self._guidance(plan)
        losses = local.train(self.population, batches, plan, self.method, self.config, rate, guidance)
        learns = links.devices & self.energy.can_pay(self.overhead + links.cost.energy_joule)
        variations = self._exchange(links, guidance, learns)
        self._account(links, plan, variations, learns)

        self.round += 1
        judged = (*self._evaluations(), self._quality(), self._probe())
        outcome = RoundOutcome(links, plan, metric, losses, rate, learns, *judged)
        return make_record(self, outcome)

    def _plan(self, links: RoundLinks, metric: FloatArray) -> Plan:
        """Allot the local iterations; a device that failed, or cannot pay an iteration, sits the round out."""
        remaining_rounds = self.total_rounds - self.round
        exchange_energy = links.cost.energy_joule + self.overhead
        available = self.energy.round_budget_joule(remaining_rounds, exchange_energy)
        battery = self.energy.battery_joule(remaining_rounds, exchange_energy)
        return plan_iterations(
            self.method.balance,
            metric,
            self.iteration_energy,
            np.where(links.devices, available, -np.inf),
            np.where(links.devices, battery, -np.inf),
            self.config.local_iterations,
            self.population.holds & links.devices[:, None],
        )

    def _guidance(self, plan: Plan) -> GuidanceRound | None:
        if self.guidance is None:
            return None
        return self.guidance.begin_round(self.population, self.round, plan.num_iterations, self.config.batch_size)

    def _exchange(self, links: RoundLinks, guided: GuidanceRound | None, learns: BoolArray) -> dict[str, Variation]:
        """Mix all blocks; what guides learns around it, on the devices that can pay for that (bool [devices])."""
        weights = self._weights(links)
        if self.guidance is None or guided is None:
            return exchange.mix(self.population, weights)
        self.guidance.before_exchange(self.population, guided.moments)
        variations = exchange.mix(self.population, weights)
        may_learn = torch.from_numpy(learns)
        self.guidance.after_exchange(self.population, guided.moments, weights[SHARED], may_learn, self.round)
        return variations

    def _weights(self, links: RoundLinks) -> dict[str, GossipWeights]:
        """Return the mixing weights of each block on the links that work (METHOD 4)."""
        weights = {}
        for name, block in self.population.blocks.items():
            members = np.zeros(self.population.num_devices, dtype=np.bool_)
            members[block.devices] = True
            matrix = metropolis_hastings(links.edges, len(members), members)
            weights[name] = GossipWeights.from_scipy(matrix, block.start.dtype)
        return weights

    def _account(self, links: RoundLinks, plan: Plan, variations: dict[str, Variation], learns: BoolArray) -> None:
        """Draw the round's energy and learn how fast each modality trained."""
        computing = plan.energy_joule(self.iteration_energy, self.method.balance.pause)
        self.energy.spend(computing + links.cost.energy_joule + np.where(learns, self.overhead, 0.0))
        names = self.population.network.modalities
        current = training_speed(
            np.stack([variations[name].distance for name in names], axis=1),
            np.stack([variations[name].start for name in names], axis=1),
            [self.population.blocks[name].num_parameters for name in names],
            plan.iterations,
            self.method.balance.relative,
        )
        self.speeds = update_speeds(self.speeds, current, self.method.balance.smoothing)

    def _quality(self) -> GeneratorQuality | None:
        """Judge the generator once, after the last round."""
        if self.guidance is None or self.round != self.total_rounds:
            return None
        pool, known = self.guidance.generate(self.population.blocks[GENERATOR].start, self.round)
        if not known.all() or pool.shape[2] < 2:
            return None
        return judge_generator(self.population, self.dataset.test, pool)

    def _evaluations(self) -> tuple[Accuracy | None, Accuracy | None]:
        """Return the accuracy on validation and test data in the rounds that are evaluated."""
        if self.round % self.config.evaluate_every and self.round != self.total_rounds:
            return None, None
        validation, test = self.dataset.validation, self.dataset.test
        return evaluate(self.population, validation, self.guess), evaluate(self.population, test, self.guess)

    def _probe(self) -> dict[str, FloatArray] | None:
        """Probe the encoders once, after the last round, if asked to."""
        if not self.config.probe or self.round != self.total_rounds:
            return None
        return probe_accuracy(self.population, self.dataset.train, self.dataset.test)

    def imbalance(self) -> FloatArray:
        """Return the coefficient of variation of each device's training speeds, float64 [devices]."""
        return imbalance(self.speeds, self.population.holds)

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs; random draws need only the seed and the round."""
        return {
            "round": self.round,
            "population": self.population.state_dict(),
            "energy": self.energy.state_dict(),
            "speeds": self.speeds,
            "guidance": self.guidance.state_dict() if self.guidance else {},
        }

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a simulation of the same configuration.

        Raises:
            ValueError: the state is of another population or energy account.
        """
        self.population.load_state_dict(state["population"])
        self.energy.load_state_dict(state["energy"])
        self.speeds = np.array(state["speeds"], dtype=np.float64)
        if self.guidance:
            self.guidance.load_state_dict(state["guidance"])
        self.round = int(state["round"])
