"""The round of a simulation; observers are callbacks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import (
    Observation,
    Plan,
    balance_metric,
    imbalance,
    needs_of,
    plan_iterations,
    ranking_agreement,
    update_metric,
)
from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange import mix
from dmmlkd_ext.training.exchange.mix import Variation
from dmmlkd_ext.training.exchange.ranks import Slice, alone
from dmmlkd_ext.training.exchange.weights import MixingWeights
from dmmlkd_ext.training.guide import Guidance, GuidanceRound
from dmmlkd_ext.training.keep.callbacks import Callback
from dmmlkd_ext.training.keep.checkpoints import select_rows
from dmmlkd_ext.training.learn import LocalTask, train, why_reference
from dmmlkd_ext.training.learn.batches import BatchSampler
from dmmlkd_ext.training.measure.judge import Judge
from dmmlkd_ext.training.measure.observe import RoundObserver
from dmmlkd_ext.training.measure.record import RoundOutcome, make_record
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.wireless.energy import EnergyAccount, initial_budget_joule
from dmmlkd_ext.wireless.world import RoundLinks, WirelessWorld

GUIDANCE = "state of the guidance"

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]


class Simulation:
    """Decentralized training of a population, round by round (METHOD 1 to 6); read `run_round`.

    Args:
        dataset: what is learned.
        device_samples: the training samples of each device.
        population: parameters and modalities of the devices of this rank.
        world: links, failures, and what computing and sending cost.
        method: what is minimized, exchanged and balanced.
        config: how devices train.
        seed: the run's seed.
        guidance: of the common features, or None.
        part: which devices this rank holds; None is all of them. Links, plans, energies and records of all devices are
            the same on every rank.
        budget_joule: energy that each device starts with, float64 [devices]; None follows the energy's configuration by
            what this method costs.
    """

    data_sha256: str | None = None
    """Hash of the dataset that the simulation was built from, if the builder sets it."""

    def __init__(
        self,
        dataset: MultiModalDataset,
        device_samples: Sequence[npt.NDArray[np.int64]],
        population: Population,
        world: WirelessWorld,
        method: MethodConfig,
        config: TrainingConfig,
        seed: int,
        guidance: Guidance | None = None,
        part: Slice | None = None,
        budget_joule: FloatArray | None = None,
    ) -> None:
        self.dataset, self.population, self.world = dataset, population, world
        self.method, self.config, self.guidance = method, config, guidance
        self.round, self.total_rounds, self.seed = 0, config.rounds, seed
        self.part = part or alone(len(device_samples))
        self.sampler = BatchSampler(
            dataset.train, device_samples, config.batch_size, config.input_noise, seed, self.part.devices
        )
        self.judge = Judge(dataset, device_samples, self.part, config, seed)
        self.weights = MixingWeights(
            {name: world.holds(name) for name in population.blocks}, self.part, population.blocks[SHARED].start.dtype
        )
        self._make_room()
        model: MultiModalNetwork = population.network
        self.holds = np.stack([world.holds(name) for name in model.modalities], axis=1)
        macs = [model.forward_macs[name] for name in model.modalities]
        self.iteration_energy = world.iteration_energy_joule(self.holds, macs, config.batch_size)
        self.iteration_time = world.iteration_time_s(macs, config.batch_size)
        learning_macs = guidance.round_macs if guidance else 0.0
        self.overhead = world.computing_energy_joule(learning_macs)
        self.learning_time = world.computing_time_s(learning_macs)
        if budget_joule is None:
            exchange = world.typical_exchange_energy_joule() + self.overhead
            limit, rounds = config.local_iterations, config.rounds
            budget_joule = initial_budget_joule(world.energy, self.iteration_energy, limit, rounds, exchange)
        self.energy = EnergyAccount(budget_joule)
        self.speeds = np.full(self.holds.shape, np.nan)
        self.memory: dict[str, FloatArray] = {}
        self.agreement: FloatArray | None = None
        needs = needs_of(method.balance.metric) | ({"loss"} if config.ranking else set())
        self.observer = RoundObserver(population, self.part, needs)
        self.blind = self._find_blind(device_samples)

    def _find_blind(self, device_samples: Sequence[npt.NDArray[np.int64]]) -> BoolArray:
        """Return which devices hold no modality that any of their samples has: they have no loss."""
        present = self.dataset.train.present.cpu().numpy()
        return np.array(
            [not (present[mine] & held).any() for mine, held in zip(device_samples, self.holds, strict=True)]
        )

    def _make_room(self) -> None:
        """Allocate the largest halo that each block can need."""
        if self.part.ranks.size > 1:
            for name, (_, route) in self.weights.of(self.world.topology.edges).items():
                self.population.blocks[name].make_room(route.halo)

    @property
    def local_training(self) -> str:
        """The tier that trains: `native`, or `reference` with the reason."""
        reason = why_reference(self.population, self.method)
        return "native" if reason is None else f"reference: {reason}"

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Run the remaining rounds."""
        for callback in callbacks:
            callback.on_start(self)
        while self.round < self.total_rounds:
            record = self.run_round()
            for callback in callbacks:
                callback.on_round_end(self, record)
        for callback in callbacks:
            callback.on_end(self)

    def run_round(self) -> dict[str, Any]:
        """Run one round on all devices and return its record."""
        self.part.ranks.enter_round(self.round + 1)
        links = self.world.draw(self.round, self.energy.remaining_joule)
        metric = balance_metric(self.speeds, self.holds)
        plan = self._plan(links, metric)
        guidance = self._guide(plan)
        losses = self._learn(plan, guidance)
        learns = links.devices & self.energy.can_pay(self.overhead + links.cost.energy_joule)
        variations = self._exchange(links, guidance, learns)
        self._account(links, plan, variations, learns)
        self.round += 1
        judgement = self.judge.judge(self.population, self.guidance, self.round, self.total_rounds)
        rate = self.config.learning_rate_at(self.round - 1)
        return make_record(self, RoundOutcome(links, plan, metric, losses, rate, learns, judgement))

    def _plan(self, links: RoundLinks, metric: FloatArray) -> Plan:
        """Allocate the local iterations; none for a device that failed or cannot pay one iteration."""
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
            numpy_generator(self.seed, "balance", self.round),
        )

    def _guide(self, plan: Plan) -> GuidanceRound | None:
        if self.guidance is None:
            return None
        return self.guidance.begin(self.population, self.round, plan.num_iterations, self.config.batch_size)

    def _learn(self, plan: Plan, guidance: GuidanceRound | None) -> dict[str, FloatArray]:
        """Train the devices of this rank, and return the losses of all devices."""
        mine = Plan(plan.iterations[self.part.devices], plan.start[self.part.devices])
        batches = self.sampler.draw(self.round, plan.num_iterations)
        rate = self.config.learning_rate_at(self.round)
        losses = train(LocalTask(self.population, batches, mine, self.method, self.config, rate, guidance))
        self.observer.after_training(batches)
        everyone = self.part.gather(losses)
        return {name: np.where(self.blind, np.nan, values) for name, values in everyone.items()}

    def _exchange(self, links: RoundLinks, guided: GuidanceRound | None, learns: BoolArray) -> dict[str, Variation]:
        """Mix all blocks; the guidance then learns on the devices `learns` (bool [devices]), which can pay for it."""
        weights = self.weights.of(links.edges)
        if self.guidance is not None and guided is not None:
            self.guidance.before_exchange(self.population, guided.moments)
        variations = mix.mix(
            self.population,
            {name: block for name, (block, _) in weights.items()},
            {name: route for name, (_, route) in weights.items()},
            self.part.ranks,
        )
        self.observer.after_exchange()
        if self.guidance is not None and guided is not None:
            moments, may_learn = guided.moments, torch.from_numpy(learns[self.part.devices])
            heads, route = weights[SHARED]
            if self.guidance.config.weigh_heads:
                moments.count_at_hand = mix.with_halo(moments.count, route, self.part.ranks)
            self.guidance.after_exchange(self.population, moments, heads, may_learn, self.round)
        return mix.gather_variations(variations, self.part)

    def _account(self, links: RoundLinks, plan: Plan, variations: dict[str, Variation], learns: BoolArray) -> None:
        """Spend the round's energy and update the training speeds."""
        computing = plan.energy_joule(self.iteration_energy)
        self.energy.spend(computing + links.cost.energy_joule + np.where(learns, self.overhead, 0.0))
        sizes = [self.population.blocks[name].num_parameters for name in self.population.network.modalities]
        seen = Observation(plan.iterations, np.array(sizes), self.observer.quantities(variations))
        self.speeds = update_metric(self.method.balance, seen, self.memory)
        if self.config.ranking:
            self.agreement = ranking_agreement(self.speeds, seen["loss"], self.holds)

    def consensus_distance(self) -> dict[str, float]:
        """Return, for each block, the root mean square distance of the devices from their mean."""
        return self.population.consensus_distance(self.part)

    def imbalance(self) -> FloatArray:
        """Return the coefficient of variation of each device's training speeds, float64 [devices]."""
        return imbalance(self.speeds, self.holds)

    def spectral_gap(self, edges: npt.NDArray[np.int64]) -> float:
        """Return the spectral gap of the mixing of all devices on these links; 0 if the graph is not connected."""
        return self.weights.spectral_gap(edges)

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs; random draws depend on the seed and the round alone.

        `rows` holds the matrices with one row per device, and the devices' numbers.
        """
        devices = {name: self.part.devices[block.devices] for name, block in self.population.blocks.items()}
        rows = {name: {"devices": devices[name], **state} for name, state in self.population.state_dict().items()}
        if self.guidance:
            rows[GUIDANCE] = {"devices": self.part.devices, **self.guidance.state_dict()}
        balance = {"speeds": self.speeds, "memory": dict(self.memory)}
        return {"round": self.round, "energy": self.energy.state_dict(), **balance, "rows": [rows]}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict` of a simulation of the same configuration, with `rows` from any number of ranks.

        Raises:
            ValueError: the state is of another population or energy account.
        """
        blocks = self.population.blocks
        devices = {name: self.part.devices[block.devices] for name, block in blocks.items()}
        self.population.load_state_dict({name: select_rows(state["rows"], name, devices[name]) for name in blocks})
        self.energy.load_state_dict(state["energy"])
        self.speeds = np.array(state["speeds"], dtype=np.float64)
        self.memory = {name: np.array(values, dtype=np.float64) for name, values in state["memory"].items()}
        if self.guidance:
            self.guidance.load_state_dict(select_rows(state["rows"], GUIDANCE, self.part.devices))
        self.round = int(state["round"])
