"""The energy of computing and broadcasting, and the batteries that pay for it (METHOD 5 and 6).

Limiting local iterations by a device's remaining energy is the paper's [P]; the energy model is the standard one of
the field, chosen by this project [C]. Units are joules, seconds, hertz and bits.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.seeding import numpy_generator

FloatArray = npt.NDArray[np.float64]
BoolArray = npt.NDArray[np.bool_]

EnergyModel = Literal["fixed", "wireless"]
BudgetBasis = Literal["method", "dmml"]

# An iteration that trains runs forward once and backward for twice that (METHOD 6: forward alone is a third).
TRAINING_PASSES = 3.0

# A share is raised by this fraction, so that a plan which uses it up exactly fits in spite of rounding.
# `EnergyAccount.spend` forgives a thousand times as much, and empties the battery, never more.
_ROUNDING = 1e-12


@dataclass(frozen=True)
class EnergyConfig:
    """The energy of an iteration and the initial energy of a device (METHOD 6 [C]).

    Raises:
        ValueError: a field is out of its range, or two budgets are given.

    Example:
        >>> EnergyConfig(budget_fraction=0.3).model
        'fixed'
    """

    model: EnergyModel = "fixed"
    """`fixed`: every iteration of every modality costs the same and the exchange is free. `wireless`: computing costs
    by cycles and frequency, broadcasts by bits and rates of the links."""
    iteration_energy_joule: float = 1.0
    """Energy of one iteration of one modality; used by `fixed` alone."""
    budget_fraction: float | None = None
    """Initial budget: this fraction of the energy of all iterations of all held modalities in all rounds, plus the
    energy of all exchanges, so that a small fraction leaves energy for training where sending is expensive. None sets
    no limit unless `budget_joule` does."""
    budget_basis: BudgetBasis = "method"
    """Whose cost `budget_fraction` refers to. `method`: the run's own, so that a method that sends more is given more.
    `dmml`: that of plain DMML with all modalities of the device, so that all methods of a comparison are given the same
    joules; what DMML-KD sends and trains beyond DMML is then paid with iterations. A centralized run has its own."""
    budget_joule: float | None = None
    """Initial budget of every device; excludes `budget_fraction`."""
    kappa: float = 1e-28
    """Effective switched capacitance, in joules per cycle and squared hertz."""
    min_frequency_hz: float = 0.5e9
    """Lowest processor frequency; each device's is drawn uniformly between lowest and highest."""
    max_frequency_hz: float = 1.5e9
    """Highest processor frequency."""
    cycles_per_mac: float = 1.0
    """Processor cycles per multiply-accumulate."""

    def __post_init__(self) -> None:
        if self.model not in get_args(EnergyModel):
            raise ValueError(f"model must be one of {', '.join(get_args(EnergyModel))}; got {self.model!r}")
        if self.budget_basis not in get_args(BudgetBasis):
            raise ValueError(
                f"budget_basis must be one of {', '.join(get_args(BudgetBasis))}; got {self.budget_basis!r}"
            )
        if self.budget_fraction is not None and self.budget_joule is not None:
            raise ValueError("budget_joule must be None when budget_fraction is given, got both")
        for name in ("iteration_energy_joule", "budget_fraction", "budget_joule"):
            value = getattr(self, name)
            if value is not None and not 0.0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")
        for name in ("kappa", "min_frequency_hz", "max_frequency_hz", "cycles_per_mac"):
            if not 0.0 < getattr(self, name) < math.inf:
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        if self.min_frequency_hz > self.max_frequency_hz:
            raise ValueError(
                f"min_frequency_hz must be at most max_frequency_hz={self.max_frequency_hz:g}, "
                f"got {self.min_frequency_hz:g}"
            )


def draw_frequencies_hz(config: EnergyConfig, num_devices: int, seed: int) -> FloatArray:
    """Draw each device's processor frequency, float64 [devices], in hertz (METHOD 6 [C]).

    Raises:
        ValueError: `num_devices` or `seed` is negative.

    Example:
        >>> bool((draw_frequencies_hz(EnergyConfig(), 100, seed=0) <= 1.5e9).all())
        True
    """
    if num_devices < 0:
        raise ValueError(f"num_devices must be at least 0, got {num_devices}")
    generator = numpy_generator(seed, "processor_frequency")
    return generator.uniform(config.min_frequency_hz, config.max_frequency_hz, size=num_devices)


def training_cycles(forward_macs: npt.ArrayLike, cycles_per_mac: float = 1.0) -> FloatArray:
    """Return the cycles that one sample takes in one training iteration: forward, and twice that backward.

    Args:
        forward_macs: multiply-accumulates of each modality's encoder and heads per sample, any shape.
        cycles_per_mac: processor cycles per multiply-accumulate.

    Raises:
        ValueError: an argument is negative or not finite.

    Example:
        >>> training_cycles([100.0]).tolist()
        [300.0]
    """
    macs = _nonnegative("forward_macs", forward_macs)
    return np.asarray(TRAINING_PASSES * macs * _nonnegative("cycles_per_mac", cycles_per_mac))


def computing_energy_joule(
    cycles_per_sample: npt.ArrayLike,
    frequency_hz: npt.ArrayLike,
    batch_size: npt.ArrayLike,
    kappa: float = 1e-28,
) -> FloatArray:
    """Return the energy of an iteration, kappa f^2 cycles B, in joules (METHOD 6 [C]).

    Args:
        cycles_per_sample: processor cycles per sample; the three arrays broadcast.
        frequency_hz: processor frequency.
        batch_size: samples B of a batch.
        kappa: effective switched capacitance.

    Raises:
        ValueError: an argument is negative or not finite.

    Example:
        >>> round(float(computing_energy_joule(1e7, 1e9, 10)), 9)
        0.01
    """
    frequency = _nonnegative("frequency_hz", frequency_hz)
    work = _nonnegative("cycles_per_sample", cycles_per_sample) * _nonnegative("batch_size", batch_size)
    return np.asarray(_nonnegative("kappa", kappa) * frequency**2 * work)


def computing_time_s(
    cycles_per_sample: npt.ArrayLike, frequency_hz: npt.ArrayLike, batch_size: npt.ArrayLike
) -> FloatArray:
    """Return the duration of an iteration, cycles B / f, in seconds (METHOD 6 [C]).

    The arguments are those of `computing_energy_joule`.

    Raises:
        ValueError: an argument is negative or not finite, or a frequency is 0.

    Example:
        >>> float(computing_time_s(1e7, 1e9, 10))
        0.1
    """
    frequency = _nonnegative("frequency_hz", frequency_hz)
    if (frequency == 0.0).any():
        raise ValueError("frequency_hz must be positive, got 0")
    work = _nonnegative("cycles_per_sample", cycles_per_sample) * _nonnegative("batch_size", batch_size)
    return np.asarray(work / frequency)


def iteration_energy_joule(
    config: EnergyConfig,
    holds: BoolArray,
    *,
    cycles_per_sample: npt.ArrayLike | None = None,
    frequency_hz: npt.ArrayLike | None = None,
    batch_size: int | None = None,
) -> FloatArray:
    """Return the energy of one iteration, float64 [devices, modalities], in joules.

    Args:
        config: the model; `fixed` needs nothing more than `holds`.
        holds: which modalities a device has, bool [devices, modalities]; modalities not held cost 0.
        cycles_per_sample: of each modality in training, [modalities] or [devices, modalities].
        frequency_hz: of each device, [devices].
        batch_size: samples of a batch.

    Raises:
        ValueError: `wireless` misses an argument, or one has a wrong shape or value.

    Example:
        >>> iteration_energy_joule(EnergyConfig(), np.array([[True, False]])).tolist()
        [[1.0, 0.0]]
    """
    held = np.asarray(holds)
    if held.ndim != 2 or held.dtype != np.bool_:
        raise ValueError(f"holds must be bool [devices, modalities], got {held.dtype} {list(held.shape)}")
    if config.model == "fixed":
        return np.where(held, config.iteration_energy_joule, 0.0)
    if cycles_per_sample is None or frequency_hz is None or batch_size is None:
        raise ValueError("cycles_per_sample, frequency_hz and batch_size must be given for the wireless model")
    frequency = np.asarray(frequency_hz, dtype=np.float64)
    if frequency.shape != held.shape[:1]:
        raise ValueError(f"frequency_hz must have the shape {[len(held)]}, got {list(frequency.shape)}")
    cycles = np.asarray(cycles_per_sample, dtype=np.float64)
    if cycles.shape not in (held.shape, held.shape[1:]):
        expected = f"{list(held.shape[1:])} or {list(held.shape)}"
        raise ValueError(f"cycles_per_sample must have the shape {expected}, got {list(cycles.shape)}")
    energy = computing_energy_joule(cycles, frequency[:, None], batch_size, config.kappa)
    return np.where(held, energy, 0.0)


@dataclass(frozen=True, eq=False)
class BroadcastCost:
    """The cost to each device of broadcasting its blocks once.

    Attributes:
        energy_joule: float64 [devices].
        time_s: float64 [devices].
    """

    energy_joule: FloatArray
    time_s: FloatArray


def broadcast_cost(
    block_bits: npt.ArrayLike,
    holds_block: npt.ArrayLike,
    edges: npt.NDArray[np.int64],
    rates_bit_per_s: npt.ArrayLike,
    transmit_power_w: float,
    alive: npt.ArrayLike | None = None,
) -> BroadcastCost:
    """Return the cost of one exchange: each block is sent once, at the rate of the worst link that needs it.

    A link needs a block when both of its ends hold it; a block that no link needs is not sent. Time is bits / rate,
    energy power * bits / rate; receiving is free (METHOD 6 [C]).

    Args:
        block_bits: size of each block, [blocks], in bits.
        holds_block: which blocks a device has, bool [devices, blocks].
        edges: int64 [edges, 2].
        rates_bit_per_s: rate of each link, [edges].
        transmit_power_w: power of a sender, in watts.
        alive: which links work this round, bool [edges]; None is all.

    Raises:
        ValueError: the shapes do not match, a size or the power is negative, or a working link has no rate.

    Example:
        >>> holds, edges = np.ones((3, 1), dtype=bool), np.array([[0, 1], [1, 2]])
        >>> cost = broadcast_cost([6e6], holds, edges, [2e6, 1e6], transmit_power_w=0.1)
        >>> cost.time_s.tolist()
        [3.0, 6.0, 6.0]
    """
    bits = _nonnegative("block_bits", block_bits)
    holds = np.asarray(holds_block)
    if bits.ndim != 1 or holds.ndim != 2 or holds.shape[1] != len(bits) or holds.dtype != np.bool_:
        got = f"{holds.dtype} {list(holds.shape)}"
        raise ValueError(f"holds_block must be bool [devices, blocks] with {bits.size} blocks, got {got}")
    rates = np.asarray(rates_bit_per_s, dtype=np.float64)
    works = np.ones(len(edges), dtype=np.bool_) if alive is None else np.asarray(alive)
    for name, array in (("rates_bit_per_s", rates), ("alive", works)):
        if array.shape != (len(edges),):
            raise ValueError(f"{name} must have the shape {[len(edges)]}, got {list(array.shape)}")
    if not (rates[works] > 0.0).all():
        raise ValueError(f"rates_bit_per_s must be positive where a link is alive, got {rates[works].min()}")
    links, speed = edges[works], rates[works]
    time = np.zeros(len(holds))
    for block in range(len(bits)):
        worst = np.full(len(holds), np.inf)
        needs = holds[links, block].all(axis=1)
        np.minimum.at(worst, links[needs].ravel(), np.repeat(speed[needs], 2))
        time += bits[block] / worst
    return BroadcastCost(float(_nonnegative("transmit_power_w", transmit_power_w)) * time, time)


def initial_budget_joule(
    config: EnergyConfig,
    iteration_energy: npt.ArrayLike,
    max_iterations: int,
    num_rounds: int,
    exchange_energy_joule: npt.ArrayLike = 0.0,
) -> FloatArray:
    """Return the energy that each device starts with, float64 [devices], in joules; infinite is no limit.

    Args:
        config: the budget, absolute or as a fraction.
        iteration_energy: energy of one iteration of each modality, [devices, modalities], 0 where not held.
        max_iterations: T, the most local iterations of a modality in a round.
        num_rounds: rounds of the run.
        exchange_energy_joule: typical energy of one exchange, [devices] or a number; for `budget_fraction`.

    Raises:
        ValueError: an argument is negative or has a wrong shape.

    Example:
        >>> initial_budget_joule(EnergyConfig(budget_fraction=0.5), [[1.0, 1.0], [1.0, 0.0]], 10, 4).tolist()
        [40.0, 20.0]
    """
    energy = _nonnegative("iteration_energy", iteration_energy)
    if energy.ndim != 2:
        raise ValueError(f"iteration_energy must be [devices, modalities], got {list(energy.shape)}")
    exchange = _per_device("exchange_energy_joule", exchange_energy_joule, len(energy))
    for name, value in (("max_iterations", max_iterations), ("num_rounds", num_rounds)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}")
    if config.budget_joule is not None:
        return np.full(len(energy), config.budget_joule)
    if config.budget_fraction is None:
        return np.full(len(energy), np.inf)
    return np.asarray(num_rounds * (config.budget_fraction * max_iterations * energy.sum(axis=1) + exchange))


class EnergyAccount:
    """The batteries of all devices, which never fall below zero (METHOD 5, 6).

    Example:
        >>> account = EnergyAccount([10.0, 4.0])
        >>> account.spend([4.0, 0.0])
        >>> account.round_budget_joule(remaining_rounds=2, exchange_energy_joule=1.0).round(6).tolist()
        [2.0, 1.0]
    """

    def __init__(self, budget_joule: npt.ArrayLike) -> None:
        """Start with a budget for each device, [devices], in joules; infinite is no limit.

        Raises:
            ValueError: a budget is negative or not a number.
        """
        budget = np.array(budget_joule, dtype=np.float64)
        if budget.ndim != 1 or not (budget >= 0.0).all():
            raise ValueError(f"budget_joule must be [devices], each at least 0, got {budget.tolist()}")
        self._remaining = budget
        self._spent = np.zeros_like(budget)

    @property
    def remaining_joule(self) -> FloatArray:
        """Energy that each device has left, float64 [devices]."""
        return self._remaining.copy()

    @property
    def spent_joule(self) -> FloatArray:
        """Energy that each device has spent, float64 [devices], also without a limit."""
        return self._spent.copy()

    def round_budget_joule(self, remaining_rounds: int, exchange_energy_joule: npt.ArrayLike = 0.0) -> FloatArray:
        """Return the energy for computing in this round: remaining / rounds left - exchange (METHOD 5 [C]).

        The result is negative where the exchange alone costs more than the round's share. Unused energy is divided
        among the remaining rounds.

        Args:
            remaining_rounds: rounds left, this one included, at least 1.
            exchange_energy_joule: energy of this round's exchange, [devices] or a number.

        Raises:
            ValueError: an argument is out of its range or has a wrong shape.
        """
        exchange = _per_device("exchange_energy_joule", exchange_energy_joule, len(self._remaining))
        share = self._remaining / _rounds(remaining_rounds)
        return np.asarray(share * (1.0 + _ROUNDING) - exchange)

    def battery_joule(self, remaining_rounds: int, exchange_energy_joule: npt.ArrayLike = 0.0) -> FloatArray:
        """Return the energy for computing if every round left costs this round's exchange (`greedy` [C]).

        Arguments and errors are those of `round_budget_joule`.
        """
        exchange = _per_device("exchange_energy_joule", exchange_energy_joule, len(self._remaining))
        reserve = _rounds(remaining_rounds) * exchange
        return np.asarray(self._remaining * (1.0 + _ROUNDING) - reserve)

    def can_pay(self, cost_joule: npt.ArrayLike) -> BoolArray:
        """Return which devices have that much left, bool [devices].

        Raises:
            ValueError: a cost is negative or not finite, or the shape is wrong.
        """
        return np.asarray(_per_device("cost_joule", cost_joule, len(self._remaining)) <= self._remaining)

    def spend(self, cost_joule: npt.ArrayLike) -> None:
        """Take a cost from each battery, [devices] or a number, in joules.

        A cost that exceeds the remaining energy by a rounding error empties the battery.

        Raises:
            ValueError: a cost is negative, not finite or more than a device has, or the shape is wrong; nothing is
                spent then.
        """
        cost = _per_device("cost_joule", cost_joule, len(self._remaining))
        short = cost > self._remaining * (1.0 + 1e3 * _ROUNDING)
        if short.any():
            device = int(np.flatnonzero(short)[0])
            raise ValueError(
                f"cost_joule must be at most what is left: got {cost[device]:g} J for device {device}, "
                f"which has {self._remaining[device]:g} J"
            )
        paid = np.minimum(cost, self._remaining)
        self._remaining = self._remaining - paid
        self._spent = self._spent + paid

    def state_dict(self) -> dict[str, FloatArray]:
        """Return copies of the state that a resumed run needs."""
        return {"remaining_joule": self.remaining_joule, "spent_joule": self.spent_joule}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict` of an account of as many devices.

        Raises:
            ValueError: an entry is missing, has another shape, or is negative.
        """
        loaded = []
        for name in ("remaining_joule", "spent_joule"):
            if name not in state:
                raise ValueError(f"state must have the entry {name}, got {', '.join(state) or 'none'}")
            array = np.array(state[name], dtype=np.float64)
            if array.shape != self._remaining.shape or not (array >= 0.0).all():
                raise ValueError(f"state: {name} must be {len(self._remaining)} numbers of at least 0")
            loaded.append(array)
        self._remaining, self._spent = loaded


def _rounds(remaining_rounds: int) -> int:
    if remaining_rounds < 1:
        raise ValueError(f"remaining_rounds must be at least 1, got {remaining_rounds}")
    return remaining_rounds


def _nonnegative(name: str, value: npt.ArrayLike) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    bad = ~(np.isfinite(array) & (array >= 0.0))
    if bad.any():
        raise ValueError(f"{name} must be finite and at least 0, got {array[bad][0]}")
    return array


def _per_device(name: str, value: npt.ArrayLike, num_devices: int) -> FloatArray:
    array = _nonnegative(name, value)
    if array.shape not in ((), (num_devices,)):
        raise ValueError(f"{name} must be a number or have the shape {[num_devices]}, got {list(array.shape)}")
    return np.broadcast_to(array, (num_devices,))
