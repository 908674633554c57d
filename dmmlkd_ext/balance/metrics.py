"""From a round's training to each modality's speed: the choices of the balance metric (METHOD 5 [C]).

The paper's metric is made of the parameter variation [P]; which of its many forms is not known. A metric here is a
function of what a round showed (`Observation`) and of what it keeps between rounds (`Memory`), and returns the speeds
from which `balance_metric` and the allocation follow. It names the quantities that it reads beyond the variation of
whole blocks, so that a run measures no others.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dmmlkd_ext.balance.arrays import FloatArray, IntArray, check_nonnegative, matrix
from dmmlkd_ext.balance.speed import training_speed, update_speeds
from dmmlkd_ext.registry import Registry

if TYPE_CHECKING:
    from dmmlkd_ext.balance.plan import BalanceConfig

Memory = dict[str, FloatArray]
"""What a metric keeps between rounds, float64 [devices, modalities] by name; part of a checkpoint."""

QUANTITIES: Mapping[str, str] = {
    "distance": "||w(after) - w(before)|| of the block, before and after the round's local training",
    "start": "||w(before)|| of the block",
    "encoder distance": "the same of the encoder's parameters alone",
    "encoder start": "||w(before)|| of the encoder",
    "head distance": "the same of the modality's head",
    "head start": "||w(before)|| of the head",
    "head end": "||w(after)|| of the head",
    "mixed distance": "||w(after) - w(mixed)|| of the block, w(mixed) being what the exchange made of it",
    "score": "mean probability that the modality's heads give to the true class, on the round's first batch",
    "loss": "cross-entropy of the modality's heads, likewise; to judge a metric by, not to make one of",
}
"""Name of a quantity of a round -> what it is, for each device and modality."""
UNTRAINED = ("score", "loss")
"""The quantities that are known of a modality that pauses, too."""
ALWAYS = ("distance", "start")
"""The quantities that are measured in any case: the exchange gives them."""
EARLY_ROUNDS = 3
"""Rounds that `early` averages, and for which `rank` must see another order before it takes it."""


@dataclass(frozen=True, eq=False)
class Observation:
    """What a round of local training showed, arrays [devices, modalities] unless stated.

    Attributes:
        iterations: local iterations that each modality trained, int64.
        num_parameters: of each modality's block, int64 [modalities].
        quantities: those that the metric needs, float64, by their names in `QUANTITIES`; NaN where not known.

    Example:
        >>> seen = Observation(np.array([[2, 0]]), np.array([4, 4]), {"distance": np.array([[6.0, 0.0]])})
        >>> seen.per_iteration("distance").tolist()
        [[3.0, nan]]
    """

    iterations: IntArray
    num_parameters: IntArray
    quantities: Mapping[str, FloatArray]

    def __getitem__(self, name: str) -> FloatArray:
        """Return a quantity; NaN where the modality did not train, unless it needs no training."""
        values = self.quantities[name]
        return values if name in UNTRAINED else np.where(self.iterations > 0, values, np.nan)

    def per_iteration(self, name: str, over: str | None = None) -> FloatArray:
        """Return a quantity per local iteration, relative to another one if named; NaN where it is not finite."""
        iterations = self.iterations.astype(np.float64)
        return quotient(self[name], iterations if over is None else self[over] * iterations)


Measure = Callable[[Observation, Memory], FloatArray]


@dataclass(frozen=True)
class Metric:
    """A form of the metric: how it is computed, and what it reads."""

    speeds: Callable[[Observation, Memory, BalanceConfig], FloatArray]
    needs: frozenset[str] = frozenset()

    def __call__(self, seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
        """Return the speeds after a round, and change the memory."""
        return self.speeds(seen, memory, settings)


def quotient(values: FloatArray, divisor: FloatArray) -> FloatArray:
    """Return values / divisor; NaN where that is not finite."""
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        found = values / divisor
    return np.where(np.isfinite(found), found, np.nan)


def average(memory: Memory, name: str, current: FloatArray, smoothing: float) -> FloatArray:
    """Return the moving average of a quantity with its newest value, and keep it in the memory."""
    memory[name] = update_speeds(memory.get(name, np.full_like(current, np.nan)), current, smoothing)
    return memory[name]


def first_rounds(memory: Memory, name: str, current: FloatArray, rounds: int) -> FloatArray:
    """Return the mean of the first observations of a quantity, `rounds` at most; it stays as it is after them.

    Example:
        >>> memory = {}
        >>> [first_rounds(memory, "v", np.array([[value]]), 2).item() for value in (4.0, float("nan"), 2.0, 9.0)]
        [4.0, 4.0, 3.0, 3.0]
    """
    count = memory.get(f"{name} count", np.zeros_like(current))
    mean = memory.get(name, np.full_like(current, np.nan))
    new = ~np.isnan(current) & (count < rounds)
    count = count + new
    old = np.where(np.isnan(mean), current, mean)
    mean = np.where(new, old + (current - old) / np.maximum(count, 1.0), mean)
    memory[name], memory[f"{name} count"] = mean, count
    return mean


def _variation(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    distance, start = seen.quantities["distance"], seen.quantities["start"]
    current = training_speed(distance, start, seen.num_parameters, seen.iterations, settings.relative)
    return average(memory, "speed", current, settings.smoothing)


def _root(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    current = quotient(seen["distance"], seen["start"] * np.sqrt(seen.iterations))
    return average(memory, "speed", current, settings.smoothing)


def _movement(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    current = np.where(seen.iterations > 0, quotient(seen["distance"], seen["start"]), 0.0)
    return average(memory, "speed", current, settings.smoothing)


def _early(seen: Observation, memory: Memory, _: BalanceConfig) -> FloatArray:
    return first_rounds(memory, "speed", seen.per_iteration("distance", over="start"), EARLY_ROUNDS)


def _first(seen: Observation, memory: Memory, _: BalanceConfig) -> FloatArray:
    return first_rounds(memory, "speed", seen.per_iteration("encoder distance", over="encoder start"), 1)


def _slowdown(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    current = seen.per_iteration("distance", over="start")
    first = first_rounds(memory, "first", current, 1)
    return first * np.sqrt(quotient(first, average(memory, "speed", current, settings.smoothing)))


def _radial(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    share = quotient(seen["head end"] - seen["head start"], seen["head distance"])
    return np.exp(2.0 * average(memory, "share", share, settings.smoothing))


def _drift(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    return average(memory, "speed", quotient(seen["distance"], seen["mixed distance"]), settings.smoothing)


def _rank(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    """Return 1, 2, ... from the slowest modality on; another order takes over after `EARLY_ROUNDS` rounds of it."""
    current = average(memory, "variation", seen.per_iteration("distance", over="start"), settings.smoothing)
    order = np.where(np.isnan(current), np.nan, 1.0 + np.argsort(np.argsort(current, axis=1), axis=1))
    kept, challenger = memory.get("order", order), memory.get("challenger", order)
    same = ((order == challenger) | np.isnan(order)).all(axis=1, keepdims=True)
    rounds = np.where(same, memory.get("rounds", np.zeros_like(order)) + 1.0, 1.0)
    unknown = (np.isnan(kept) & ~np.isnan(order)).any(axis=1, keepdims=True)
    memory["order"] = np.where(unknown | (rounds >= EARLY_ROUNDS), order, kept)
    memory["challenger"], memory["rounds"] = order, rounds
    return memory["order"]


def _score(seen: Observation, memory: Memory, settings: BalanceConfig) -> FloatArray:
    return average(memory, "score", seen["score"], settings.smoothing)


METRICS: Registry[Metric] = Registry(
    "metric",
    {
        "variation": Metric(_variation),
        "root": Metric(_root),
        "movement": Metric(_movement),
        "early": Metric(_early),
        "first": Metric(_first, frozenset({"encoder distance", "encoder start"})),
        "slowdown": Metric(_slowdown),
        "radial": Metric(_radial, frozenset({"head distance", "head start", "head end"})),
        "drift": Metric(_drift, frozenset({"mixed distance"})),
        "rank": Metric(_rank),
        "score": Metric(_score, frozenset({"score"})),
    },
)
"""The metrics by name; all but the reference `score` are made of the parameter variation."""


def register_metric(name: str, measure: Measure, needs: Collection[str] = ()) -> None:
    """Register a metric for `method.balance.metric`; call this in a file that `--module` names.

    Args:
        name: what configurations call it.
        measure: maps an `Observation` and the `Memory`, which it may change, to the speeds, float64 [devices,
            modalities], at least 0; NaN where a modality's speed is not known.
        needs: the names in `QUANTITIES` that it reads; `distance` and `start` are always there.

    Raises:
        ValueError: `name` is no identifier or belongs to the package, `measure` is not callable, or `needs` has a name
            that is no quantity.

    Example:
        >>> register_metric("head-alone", lambda seen, memory: seen.per_iteration("head distance"), ["head distance"])
        >>> needs_of("head-alone")
        frozenset({'head distance'})
    """
    unknown = sorted(set(needs) - set(QUANTITIES))
    if unknown:
        raise ValueError(f"needs of a metric must be some of {', '.join(QUANTITIES)}; got {', '.join(unknown)}")
    if not callable(measure):
        raise ValueError(f"metric {name!r} must be callable, got {type(measure).__name__}")
    METRICS.add(name, Metric(lambda seen, memory, _: measure(seen, memory), frozenset(needs)))


def needs_of(name: str) -> frozenset[str]:
    """Return the quantities that a metric reads beyond those that are always there."""
    return METRICS[name].needs - frozenset(ALWAYS)


def update_metric(settings: BalanceConfig, seen: Observation, memory: Memory) -> FloatArray:
    """Return the speeds after a round by the configured metric, and change its memory.

    Raises:
        ValueError: a metric of one's own returns speeds of another shape, or negative or infinite ones.

    Example:
        >>> from dmmlkd_ext.balance import BalanceConfig
        >>> quantities = {"distance": np.array([[6.0, 6.0]]), "start": np.array([[3.0, 1.0]])}
        >>> seen = Observation(np.array([[2, 3]]), np.array([9, 4]), quantities)
        >>> [update_metric(BalanceConfig(metric=name), seen, {}).tolist() for name in ("variation", "early")]
        [[[1.0, 1.0]], [[1.0, 2.0]]]
    """
    speeds = METRICS[settings.metric](seen, memory, settings)
    if not METRICS.is_builtin(settings.metric):
        speeds = matrix(f"speeds of the metric {settings.metric!r}", speeds, seen.iterations.shape)
        check_nonnegative(f"speeds of the metric {settings.metric!r}", np.where(np.isnan(speeds), 0.0, speeds))
    return speeds
