"""The wireless world of one run: the links of a round, and the cost of computing and sending (METHOD 6)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.wireless.channel import Channel, ChannelConfig
from dmmlkd_ext.wireless.energy import (
    BroadcastCost,
    EnergyConfig,
    broadcast_cost,
    computing_energy_joule,
    computing_time_s,
    draw_frequencies_hz,
    iteration_energy_joule,
    training_cycles,
)
from dmmlkd_ext.wireless.failures import FailureConfig, Failures
from dmmlkd_ext.wireless.topology import Topology

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

BITS_PER_PARAMETER = 32
TYPICAL_ROUNDS = 20  # over which the cost of an exchange is averaged for a budget


@dataclass(frozen=True, eq=False)
class RoundLinks:
    """The working links and devices of one round, and the cost of the exchange.

    Attributes:
        edges: int64 [working links, 2].
        devices: bool [devices], False for a device that failed.
        cost: energy and time of the broadcast of each device.
        sent_bits: float64 [devices]; 0 if no neighbour needs a block of the device.
    """

    edges: npt.NDArray[np.int64]
    devices: BoolArray
    cost: BroadcastCost
    sent_bits: FloatArray


class WirelessWorld:
    """Topology, channel, failures and energy model of one run.

    Args:
        topology: all possible links.
        holds_block: which devices have a block, bool [devices] for each block.
        block_parameters: parameters of each block.
        energy: model of the energy; with `fixed`, links never fade and the exchange is free.
        channel: model of the links; used with `wireless` alone.
        failures: links and devices that fail.
        seed: the run's seed.
        exchanges: False for a method without exchange, which sends nothing.
    """

    def __init__(
        self,
        topology: Topology,
        holds_block: Mapping[str, BoolArray],
        block_parameters: Mapping[str, int],
        energy: EnergyConfig,
        channel: ChannelConfig,
        failures: FailureConfig,
        seed: int,
        exchanges: bool = True,
    ) -> None:
        self.topology, self.energy, self.exchanges = topology, energy, exchanges
        self._blocks = list(block_parameters)
        self._holds = np.stack([holds_block[name] for name in block_parameters], axis=1)
        self._bits = np.array([BITS_PER_PARAMETER * size for size in block_parameters.values()], dtype=float)
        self._failures = Failures(failures, topology, seed)
        self._channel = Channel(channel, topology, seed) if energy.model == "wireless" else None
        self._frequency_hz = draw_frequencies_hz(energy, topology.num_devices, seed)

    def holds(self, block: str) -> BoolArray:
        """Return which devices have a block, bool [devices]."""
        return np.asarray(self._holds[:, self._blocks.index(block)])

    def draw(self, round_index: int, battery_joule: FloatArray | None = None) -> RoundLinks:
        """Return the links of a round, counted from 0.

        A device whose battery (float64 [devices], in joules) cannot pay its broadcast neither sends nor receives; None
        is no limit.
        """
        survivors = self._failures.draw(round_index)
        alive, rates = survivors.links.copy(), np.full(len(self.topology.edges), np.inf)
        if self._channel is not None:
            links = self._channel.draw(round_index)
            alive, rates = alive & links.alive, links.rates_bit_per_s
        if not self.exchanges:
            alive[:] = False
        cost = self._cost(alive, rates)
        if battery_joule is not None:
            # A device that drops out can only improve the worst links of other devices, so one pass is enough.
            broke = cost.energy_joule > battery_joule
            alive &= ~broke[self.topology.edges].any(axis=1)
            cost = self._cost(alive, rates)
        edges = self.topology.edges[alive]
        return RoundLinks(edges, survivors.devices, cost, self._sent_bits(edges))

    def typical_exchange_energy_joule(self) -> FloatArray:
        """Return each device's mean energy of an exchange over `TYPICAL_ROUNDS`, float64 [devices], for a budget."""
        rounds = range(TYPICAL_ROUNDS if self._channel is not None and self.exchanges else 1)
        return np.asarray(np.mean([self.draw(index).cost.energy_joule for index in rounds], axis=0))

    def iteration_energy_joule(self, holds: BoolArray, forward_macs: npt.ArrayLike, batch_size: int) -> FloatArray:
        """Return the energy of a training iteration, float64 [devices, modalities], in joules."""
        return iteration_energy_joule(
            self.energy,
            holds,
            cycles_per_sample=training_cycles(forward_macs, self.energy.cycles_per_mac),
            frequency_hz=self._frequency_hz,
            batch_size=batch_size,
        )

    def computing_energy_joule(self, training_macs: float) -> FloatArray:
        """Return the energy of further training per round, float64 [devices], in joules; 0 with the `fixed` model.

        Args:
            training_macs: multiply-accumulates of the forward passes.
        """
        if self.energy.model == "fixed":
            return np.zeros(self.topology.num_devices)
        cycles = training_cycles(training_macs, self.energy.cycles_per_mac)
        return computing_energy_joule(cycles, self._frequency_hz, 1, self.energy.kappa)

    def computing_time_s(self, training_macs: float) -> FloatArray:
        """Return the duration of that training, float64 [devices], in seconds, with either model."""
        return computing_time_s(training_cycles(training_macs, self.energy.cycles_per_mac), self._frequency_hz, 1)

    def iteration_time_s(self, forward_macs: npt.ArrayLike, batch_size: int) -> FloatArray:
        """Return the duration of a training iteration, float64 [devices, modalities], in seconds."""
        cycles = training_cycles(forward_macs, self.energy.cycles_per_mac)
        return computing_time_s(cycles, self._frequency_hz[:, None], batch_size)

    def _cost(self, alive: BoolArray, rates: FloatArray) -> BroadcastCost:
        if self._channel is None:
            nothing = np.zeros(self.topology.num_devices)
            return BroadcastCost(nothing, nothing)
        power = self._channel.config.transmit_power_w
        return broadcast_cost(self._bits, self._holds, self.topology.edges, rates, power, alive)

    def _sent_bits(self, edges: npt.NDArray[np.int64]) -> FloatArray:
        """Return the bits that each device broadcasts: every block that a neighbour needs, once."""
        needed = np.zeros_like(self._holds)
        both = self._holds[edges].all(axis=1)
        for end in range(2):
            np.logical_or.at(needed, edges[:, end], both)
        return np.asarray(needed @ self._bits)
