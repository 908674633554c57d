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
from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange import mix as exchange
from dmmlkd_ext.training.exchange.mix import Route, Variation
from dmmlkd_ext.training.exchange.ranks import Slice, alone
from dmmlkd_ext.training.guide import GENERATOR, Guidance, GuidanceRound
from dmmlkd_ext.training.keep.callbacks import Callback, EndTraining
from dmmlkd_ext.training.keep.checkpoints import select_rows
from dmmlkd_ext.training.learn import local
from dmmlkd_ext.training.learn.batches import BatchSampler
from dmmlkd_ext.training.measure.evaluation import Evaluation, evaluate
from dmmlkd_ext.training.measure.evaluation_samples import draw_evaluation_samples
from dmmlkd_ext.training.measure.generator_quality import GeneratorQuality
from dmmlkd_ext.training.measure.probe import probe_accuracy
from dmmlkd_ext.training.measure.record import RoundOutcome, make_record
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.wireless.energy import EnergyAccount, initial_budget_joule
from dmmlkd_ext.wireless.topology import metropolis_hastings, spectral_gap
from dmmlkd_ext.wireless.world import RoundLinks, WirelessNetwork

GUIDANCE = "state of the guidance"

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Simulation:
    """Decentralized training of a population, round by round (METHOD 1 to 6).

    Args:
        dataset: what is learned.
        device_samples: the training samples of each device.
        population: parameters and modalities of the devices of this rank.
        network: links, failures, and what computing and sending cost.
        method: what is minimized, exchanged and balanced.
        config: how devices train.
        seed: the run's seed.
        guidance: what pulls the common features to one distribution, or None.
        part: which devices this rank holds; None is all of them. What is one number a device is known on every rank, so
            that links, plans and records are those of one process.
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
        part: Slice | None = None,
    ) -> None:
        self.dataset, self.population, self.network = dataset, population, network
        self.method, self.config, self.guidance = method, config, guidance
        self.round, self.total_rounds = 0, config.rounds
        self.part = part or alone(len(device_samples))
        self.sampler = BatchSampler(
            dataset.train, device_samples, config.batch_size, config.input_noise, seed, self.part.devices
        )
        labels = dataset.train.labels.numpy()
        # What a device without modalities predicts: the class that it has most of, the first of several.
        own = [device_samples[device] for device in self.part.devices.tolist()]
        self.guess = np.array([np.bincount(labels[samples]).argmax() for samples in own], dtype=np.int64)
        self._validated_by = self._draw_evaluation_samples(dataset.validation, "validation samples", seed)
        self._tested_by = self._draw_evaluation_samples(dataset.test, "test samples", seed)
        model: MultiModalNetwork = population.network
        self.holds = np.stack([network.holds(name) for name in model.modalities], axis=1)
        # Links seldom change from one round to the next, and these depend on them alone.
        self._known_gap: tuple[bytes, float] | None = None
        self._known_weights: tuple[bytes, dict[str, tuple[GossipWeights, Route]]] | None = None
        self._make_room()
        macs = [model.forward_macs[name] for name in model.modalities]
        self.iteration_energy = network.iteration_energy_joule(self.holds, macs, config.batch_size)
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
        self.speeds = np.full(self.holds.shape, np.nan)

    def _make_room(self) -> None:
        """Let each block have room for all rows that may ever come from other ranks."""
        if self.part.ranks.size > 1:
            for name, (_, route) in self._weights(self.network.topology.edges).items():
                self.population.blocks[name].make_room(route.halo)

    def _draw_evaluation_samples(self, split: Split, purpose: str, seed: int) -> torch.Tensor | None:
        return draw_evaluation_samples(
            split.labels.numpy(),
            self.config.evaluation_samples,
            self.part.devices,
            len(self.part.owner),
            numpy_generator(seed, purpose),
        )

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
        self.part.ranks.enter_round(self.round + 1)
        links = self.network.draw(self.round, self.energy.remaining_joule)
        metric = balance_metric(self.speeds, self.holds)
        plan = self._plan(links, metric)
        rate = self.config.learning_rate_at(self.round)

        self.population.begin_round()
        batches = self.sampler.draw(self.round, plan.num_iterations)
        guidance = self._guidance(plan)
        own = Plan(plan.iterations[self.part.devices], plan.start[self.part.devices])
        losses = local.train(self.population, batches, own, self.method, self.config, rate, guidance)
        losses = self.part.gather(losses)
        learns = links.devices & self.energy.can_pay(self.overhead + links.cost.energy_joule)
        variations = self._exchange(links, guidance, learns)
        self._account(links, plan, variations, learns)

        self.round += 1
        judged = (*self._evaluations(), self._probe())
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
            self.holds & links.devices[:, None],
        )

    def _guidance(self, plan: Plan) -> GuidanceRound | None:
        if self.guidance is None:
            return None
        return self.guidance.begin_round(self.population, self.round, plan.num_iterations, self.config.batch_size)

    def _exchange(self, links: RoundLinks, guided: GuidanceRound | None, learns: BoolArray) -> dict[str, Variation]:
        """Mix all blocks; what guides learns around it, on the devices that can pay for that (bool [devices])."""
        divided = self._weights(links.edges)
        weights = {name: own for name, (own, _) in divided.items()}
        routes = {name: route for name, (_, route) in divided.items()}
        if self.guidance is not None and guided is not None:
            self.guidance.before_exchange(self.population, guided.moments)
        variations = exchange.mix(self.population, weights, routes, self.part.ranks)
        if self.guidance is not None and guided is not None:
            moments, may_learn = guided.moments, torch.from_numpy(learns[self.part.devices])
            if self.guidance.config.weigh_heads:
                moments.count_at_hand = exchange.with_halo(moments.count, routes[SHARED], self.part.ranks)
            self.guidance.after_exchange(self.population, moments, weights[SHARED], may_learn, self.round)
        columns = self.part.gather(
            {f"{name} {field}": getattr(own, field) for name, own in variations.items() for field in Variation._fields}
        )
        return {name: Variation(*(columns[f"{name} {field}"] for field in Variation._fields)) for name in variations}

    def _weights(self, edges: npt.NDArray[np.int64]) -> dict[str, tuple[GossipWeights, Route]]:
        """Return this rank's mixing weights of each block on the links that work (METHOD 4), and what it exchanges."""
        key = edges.tobytes()
        if self._known_weights is not None and self._known_weights[0] == key:
            return self._known_weights[1]
        weights = {}
        for name, block in self.population.blocks.items():
            members = self.network.holds(name)
            matrix = metropolis_hastings(edges, len(members), members)
            weights[name] = exchange.divide_weights(matrix, np.flatnonzero(members), self.part, block.start.dtype)
        self._known_weights = key, weights
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

    def _evaluations(self) -> tuple[Evaluation | None, Evaluation | None]:
        """Judge the devices by validation and test data in the rounds that are evaluated, after the last one by all."""
        validation, test = self.dataset.validation, self.dataset.test
        if self.round == self.total_rounds:
            return self._evaluate(validation), self._evaluate(test, pool=self._generated())
        if self.round % self.config.evaluate_every:
            return None, None
        return self._evaluate(validation, self._validated_by), self._evaluate(test, self._tested_by)

    def _evaluate(
        self, split: Split, samples: torch.Tensor | None = None, pool: torch.Tensor | None = None
    ) -> Evaluation:
        own = evaluate(self.population, split, self.guess, samples, pool)
        columns = {f"alone {name}": values for name, values in own.alone.items()} | {"joint": own.joint}
        if own.generator is not None:
            columns |= {"nearest_mean": own.generator.nearest_mean, "spread": own.generator.spread}
        columns = self.part.gather(columns)
        quality = None if own.generator is None else GeneratorQuality(columns["nearest_mean"], columns["spread"])
        return Evaluation(columns["joint"], {name: columns[f"alone {name}"] for name in own.alone}, quality)

    def _generated(self) -> torch.Tensor | None:
        """Return the generated features of this rank's devices, if every device knows all classes."""
        if self.guidance is None:
            return None
        pool, known = self.guidance.generate(self.population.blocks[GENERATOR].start, self.round)
        everyone = self.part.gather({"known": known.all(1).numpy()})["known"]
        return pool if everyone.all() and pool.shape[2] > 1 else None

    def consensus_distance(self) -> dict[str, float]:
        """Return, for each block, the root mean square distance of the devices from their mean."""
        return self.population.consensus_distance(self.part)

    def _probe(self) -> dict[str, FloatArray] | None:
        """Probe the encoders once, after the last round, if asked to."""
        if not self.config.probe or self.round != self.total_rounds:
            return None
        return self.part.gather(probe_accuracy(self.population, self.dataset.train, self.dataset.test))

    def imbalance(self) -> FloatArray:
        """Return the coefficient of variation of each device's training speeds, float64 [devices]."""
        return imbalance(self.speeds, self.holds)

    def spectral_gap(self, edges: npt.NDArray[np.int64]) -> float:
        """Return the spectral gap of the mixing of all devices on these links; 0 where they fall apart."""
        key = edges.tobytes()
        if self._known_gap is None or self._known_gap[0] != key:
            self._known_gap = key, spectral_gap(metropolis_hastings(edges, len(self.holds)))
        return self._known_gap[1]

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs; random draws need only the seed and the round.

        `rows` is what belongs to devices: matrices with a row a device, and the devices' numbers.
        """
        devices = {name: self.part.devices[block.devices] for name, block in self.population.blocks.items()}
        rows = {name: {"devices": devices[name], **state} for name, state in self.population.state_dict().items()}
        if self.guidance:
            rows[GUIDANCE] = {"devices": self.part.devices, **self.guidance.state_dict()}
        return {"round": self.round, "energy": self.energy.state_dict(), "speeds": self.speeds, "rows": [rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go on from a `state_dict` of a simulation of the same configuration.

        Args:
            state: `rows` may come in several parts, as any number of ranks left them.

        Raises:
            ValueError: the state is of another population or energy account.
        """
        blocks = self.population.blocks
        devices = {name: self.part.devices[block.devices] for name, block in blocks.items()}
        self.population.load_state_dict({name: select_rows(state["rows"], name, devices[name]) for name in blocks})
        self.energy.load_state_dict(state["energy"])
        self.speeds = np.array(state["speeds"], dtype=np.float64)
        if self.guidance:
            self.guidance.load_state_dict(select_rows(state["rows"], GUIDANCE, self.part.devices))
        self.round = int(state["round"])
