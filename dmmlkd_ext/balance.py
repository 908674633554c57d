"""Training balance (METHOD 5): how fast each modality trains, and how many local iterations it gets."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.registry import Registry

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


@dataclass(frozen=True)
class BalanceConfig:
    """How local iterations are planned (METHOD 5).

    That iterations are taken from the modalities that train fast, within the remaining energy, is the
    paper's [P]; the formulas, the controls and every default are choices of this project [C].

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> BalanceConfig(policy="balanced").exponent
        3.0
    """

    policy: str = "none"
    """`balanced` solves the max-min problem of METHOD 5. `none` gives every held modality all iterations
    and looks at no energy: for methods without balance when no energy budget is set. Controls: `uniform`,
    the largest common number within the round's energy; `reversed`, favours the fast modalities;
    `separate`, a common number, but one modality after the other and never jointly; `greedy`, the largest
    common number that the whole battery still pays, whatever later rounds need. Or one of your own
    (`register_policy`)."""
    exponent: float = 3.0
    """The p of METHOD 5, at least 0; with 0, `balanced` is `uniform`."""
    relative: bool = False
    """Divide a block's variation by the block's norm instead of the root of its number of parameters."""
    smoothing: float = 0.5
    """Weight of the newest speed in the moving average, above 0 and at most 1."""

    def __post_init__(self) -> None:
        _POLICIES.check(self.policy)
        if not 0.0 <= self.exponent < math.inf:
            raise ValueError(f"exponent must be finite and at least 0, got {self.exponent}")
        if not 0.0 < self.smoothing <= 1.0:
            raise ValueError(f"smoothing must be above 0 and at most 1, got {self.smoothing}")


@dataclass(frozen=True, eq=False)
class Plan:
    """The local iterations of a round: a modality trains in iteration i iff start <= i < start + iterations.

    Attributes:
        iterations: int64 [devices, modalities], 0 where a modality does not train.
        start: int64 [devices, modalities], all 0 in a joint plan.

    Example:
        >>> plan = Plan(np.array([[2, 1]]), np.array([[0, 0]]))
        >>> plan.num_iterations, plan.active(1).tolist()
        (2, [[True, False]])
    """

    iterations: IntArray
    start: IntArray

    @property
    def span(self) -> IntArray:
        """Local iterations of each device in which any of its modalities is active, int64 [devices]."""
        if self.iterations.shape[1] == 0:
            return np.zeros(len(self.iterations), dtype=np.int64)
        end = np.where(self.iterations > 0, self.start + self.iterations, 0)
        return np.asarray(end.max(axis=1), dtype=np.int64)

    @property
    def num_iterations(self) -> int:
        """Local iterations that a loop over all devices at once has to run."""
        return int(self.span.max(initial=0))

    def active(self, iteration: int) -> BoolArray:
        """Return which modalities train in one local iteration, bool [devices, modalities]."""
        return (self.start <= iteration) & (iteration < self.start + self.iterations)

    def energy_joule(self, iteration_energy_joule: npt.ArrayLike) -> FloatArray:
        """Return what the plan costs each device in computing, float64 [devices], in joules.

        A modality that waits while another one of its device trains costs nothing.

        Args:
            iteration_energy_joule: energy of one iteration of each modality, [devices, modalities].

        Raises:
            ValueError: `iteration_energy_joule` has not the plan's shape.
        """
        energy = _matrix("iteration_energy_joule", iteration_energy_joule, self.iterations.shape)
        return _computing_energy(self.iterations, np.where(self.iterations > 0, energy, 0.0))


def _computing_energy(iterations: IntArray, energy: FloatArray) -> FloatArray:
    """Sum the energy over the last axis; the rounded sum never falls when an iteration is added."""
    return np.asarray((energy * iterations).sum(axis=-1))


def training_speed(
    variation_norm: npt.ArrayLike,
    start_norm: npt.ArrayLike,
    num_parameters: npt.ArrayLike,
    iterations: npt.ArrayLike,
    relative: bool = False,
) -> FloatArray:
    """Return how fast each modality trained: the variation an iteration and a parameter (METHOD 5).

    v = ||w(after) - w(before)|| / (sqrt(P) tau), or / (||w(before)|| tau) when `relative`. A metric from the
    parameter variation is the paper's [P], this formula is ours [C].

    Args:
        variation_norm: ||w(after local training) - w(before)||, [devices, modalities].
        start_norm: ||w(before)||, [devices, modalities].
        num_parameters: parameters of each modality's block, [modalities].
        iterations: local iterations that each modality trained, [devices, modalities].
        relative: see `BalanceConfig`.

    Returns:
        float64 [devices, modalities]; NaN where a modality did not train, or where the quotient is not a
        finite number (a diverged block, or a relative variation from zero).

    Raises:
        ValueError: the shapes do not match, or a count is negative.

    Example:
        >>> training_speed([[8.0, 0.0]], [[1.0, 1.0]], [16, 4], [[2, 0]]).tolist()
        [[1.0, nan]]
    """
    variation = _matrix("variation_norm", variation_norm)
    start = _matrix("start_norm", start_norm, variation.shape)
    counts = _matrix("iterations", iterations, variation.shape)
    sizes = _matrix("num_parameters", num_parameters, variation.shape[1:])
    if (counts < 0).any():
        raise ValueError(f"iterations must be at least 0, got {counts.min():g}")
    if (sizes < 1).any():
        raise ValueError(f"num_parameters must be at least 1, got {sizes.min():g}")
    scale = start if relative else np.broadcast_to(np.sqrt(sizes), start.shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        speeds = variation / (scale * counts)
    return np.where((counts > 0) & np.isfinite(speeds), speeds, np.nan)


def update_speeds(previous: npt.ArrayLike, current: npt.ArrayLike, smoothing: float = 0.5) -> FloatArray:
    """Return the exponential moving average of the speeds (METHOD 5 [C]).

    The average is smoothing * current + (1 - smoothing) * previous; NaN is "not observed": the first
    observation is taken as it is, and a round without one keeps the average.

    Args:
        previous: the average so far, [devices, modalities].
        current: this round's `training_speed`, [devices, modalities].
        smoothing: weight of `current`, above 0 and at most 1.

    Raises:
        ValueError: the shapes differ or `smoothing` is out of range.

    Example:
        >>> update_speeds([[1.0, float("nan"), 4.0]], [[3.0, 5.0, float("nan")]]).tolist()
        [[2.0, 5.0, 4.0]]
    """
    if not 0.0 < smoothing <= 1.0:
        raise ValueError(f"smoothing must be above 0 and at most 1, got {smoothing}")
    old = _matrix("previous", previous)
    new = _matrix("current", current, old.shape)
    average = smoothing * new + (1.0 - smoothing) * old
    return np.where(np.isnan(new), old, np.where(np.isnan(old), new, average))


def balance_metric(speeds: npt.ArrayLike, holds: npt.ArrayLike) -> FloatArray:
    """Return b = speed / mean speed of the device's modalities: 1 is balanced, more is fast (METHOD 5 [C]).

    Args:
        speeds: averaged speeds, [devices, modalities], at least 0; NaN where unknown.
        holds: which modalities a device has, bool [devices, modalities].

    Returns:
        float64 [devices, modalities]; NaN where a modality is not held or its speed is unknown. A device
        all of whose speeds are 0 is balanced.

    Raises:
        ValueError: the shapes differ, or a held modality's speed is negative.

    Example:
        >>> balance_metric([[1.0, 3.0, 9.0]], np.array([[True, True, False]])).tolist()
        [[0.5, 1.5, nan]]
    """
    values, known = _known_speeds(speeds, holds)
    mean = values.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    metric = np.divide(values, mean, out=np.ones_like(values), where=mean > 0.0)
    return np.where(known, metric, np.nan)


def imbalance(speeds: npt.ArrayLike, holds: npt.ArrayLike) -> FloatArray:
    """Return each device's coefficient of variation of the speed over its modalities (METHOD 5 [C]).

    Args:
        speeds: averaged speeds, [devices, modalities], at least 0; NaN where unknown.
        holds: which modalities a device has, bool [devices, modalities].

    Returns:
        float64 [devices]: standard deviation (of the population) / mean; 0 for one modality, NaN where no
        speed is known.

    Raises:
        ValueError: the shapes differ, or a held modality's speed is negative.

    Example:
        >>> imbalance([[1.0, 3.0], [2.0, 7.0]], np.array([[True, True], [True, False]])).tolist()
        [0.5, 0.0]
    """
    metric = balance_metric(speeds, holds)
    count = (~np.isnan(metric)).sum(axis=1)
    # The metric has mean 1, so its standard deviation is the coefficient of variation of the speeds.
    squares = np.nan_to_num(metric - 1.0) ** 2
    deviation = np.sqrt(squares.sum(axis=1) / np.maximum(count, 1))
    return np.where(count > 0, deviation, np.nan)


def _known_speeds(speeds: npt.ArrayLike, holds: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return the speeds with 0 where they do not count, and where they count."""
    array = _matrix("speeds", speeds)
    known = _mask("holds", holds, array.shape) & ~np.isnan(array)
    values = np.where(known, array, 0.0)
    _check_nonnegative("speeds", values)
    return values, known


def allocate_iterations(
    metric: npt.ArrayLike,
    iteration_energy_joule: npt.ArrayLike,
    available_energy_joule: npt.ArrayLike,
    max_iterations: int,
    holds: npt.ArrayLike,
    exponent: float = 3.0,
) -> IntArray:
    """Give each modality its local iterations: the max-min problem of METHOD 5, solved exactly.

    For each device: maximize min_m b_m^p tau_m over the integers 1 <= tau_m <= T whose energy fits, and
    among the maximizers take the one of least energy. [C], under the paper's constraint of the remaining
    energy [P]. The best level is one of the products b_m^p t, t = 1..T, and what a level costs never falls
    with the level, so that a binary search over t for each m finds it: O(M^2 log T) per device, all devices
    at once. More energy never lowers the level, but may move iterations from one modality to another.

    Args:
        metric: b of `balance_metric`, [devices, modalities]; NaN (no observation yet) counts as 1, so that a
            first round is uniform. A metric of 0 is taken as the limit of ever smaller ones.
        iteration_energy_joule: energy of one iteration of each modality, [devices, modalities], at least 0.
        available_energy_joule: what the round may cost each device in computing, [devices]; may be infinite,
            and may be negative, which nothing fits.
        max_iterations: T, at least 1.
        holds: which modalities a device has, bool [devices, modalities].
        exponent: p. Negative turns the allocation around, which is the control `reversed`.

    Returns:
        int64 [devices, modalities]; 0 where not held, and in every modality of a device that cannot pay one
        iteration of all of its modalities: it sits the round out.

    Raises:
        ValueError: an argument is out of its range or the shapes do not match.

    Example:
        >>> allocate_iterations([[0.5, 1.5]], [[1.0, 1.0]], [8.0], 10, np.array([[True, True]]), 1.0).tolist()
        [[6, 2]]
    """
    values = _matrix("metric", metric)
    held = _mask("holds", holds, values.shape)
    energy = np.where(held, _matrix("iteration_energy_joule", iteration_energy_joule, values.shape), 0.0)
    available = _matrix("available_energy_joule", available_energy_joule, values.shape[:1])
    _check_allocation(np.where(held, values, 1.0), energy, available, max_iterations, exponent)
    if values.size == 0:
        return np.zeros(values.shape, dtype=np.int64)
    weights = _level_weights(values, held, exponent, max_iterations)
    slowest = np.where(held, weights, np.inf).min(axis=1)
    cap = np.where(np.isfinite(slowest), slowest, 1.0) * max_iterations

    def fits(level: FloatArray) -> BoolArray:
        tau = _least_iterations(level, weights, max_iterations)
        cost = _computing_energy(tau, energy[:, None, :])
        return np.asarray((level <= cap[:, None]) & (cost <= available[:, None]))

    low = np.zeros(values.shape, dtype=np.int64)  # the most iterations of m whose level is known to fit
    high = np.full(values.shape, max_iterations, dtype=np.int64)
    while (low < high).any():
        middle = (low + high + 1) // 2
        ok = fits(weights * middle)
        low = np.where(ok, middle, low)
        high = np.where(ok, high, middle - 1)
    level = np.where(held, weights * low, 0.0).max(axis=1)
    tau = _least_iterations(level[:, None], weights, max_iterations)[:, 0, :]
    return np.asarray(np.where(held & (level > 0.0)[:, None], tau, 0), dtype=np.int64)


def _level_weights(metric: FloatArray, held: BoolArray, exponent: float, max_iterations: int) -> FloatArray:
    """Return b^p, finite and positive, without changing any allocation.

    No allocation reaches a level above T times the least weight, so that larger weights may be cut to that.
    """
    base = np.where(held & ~np.isnan(metric), metric, 1.0)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        weights: FloatArray = np.where(held, base**exponent, np.inf)
    least = weights.min(axis=1, keepdims=True)
    # The limit of a vanishing weight: every other one of the device is as good as infinite beside it.
    limit = np.where(weights == 0.0, 1.0, np.inf)
    weights = np.where(least == 0.0, limit, np.where(np.isinf(least), 1.0, weights))
    return np.asarray(np.minimum(weights, max_iterations * weights.min(axis=1, keepdims=True)))


def _least_iterations(level: FloatArray, weights: FloatArray, max_iterations: int) -> IntArray:
    """Return the fewest iterations, at least 1, that reach each level: [devices, levels, modalities].

    The quotient may miss by one in rounding, so it is set right by the products that define the levels.
    Levels out of reach are cut to T + 1.
    """
    target, weight = level[:, :, None], weights[:, None, :]
    count = np.ceil(np.minimum(target / weight, max_iterations + 1.0))
    count -= weight * (count - 1.0) >= target
    count += weight * count < target
    return np.clip(count, 1.0, max_iterations + 1.0).astype(np.int64)


def _check_allocation(
    metric: FloatArray, energy: FloatArray, available: FloatArray, limit: int, exponent: float
) -> None:
    _check_nonnegative("metric", np.where(np.isnan(metric), 1.0, metric))
    _check_nonnegative("iteration_energy_joule", energy)
    if np.isnan(available).any():
        raise ValueError("available_energy_joule must be numbers, got nan")
    if int(limit) != limit or limit < 1:
        raise ValueError(f"max_iterations must be an integer of at least 1, got {limit}")
    if not math.isfinite(exponent):
        raise ValueError(f"exponent must be finite, got {exponent}")


@dataclass(frozen=True, eq=False)
class RoundBudget:
    """What a policy plans a round from; arrays are [devices, modalities] unless stated.

    Attributes:
        metric: b of `balance_metric`, float64; NaN where it is not known yet, or a modality is not held.
        iteration_energy_joule: energy of one iteration of each modality, float64.
        available_energy_joule: what this round may cost each device in computing, float64 [devices]; -inf where it
            failed.
        battery_joule: all that a device has left for computing, float64 [devices]; likewise.
        max_iterations: T.
        holds: which modalities can train, bool.
        exponent: p of METHOD 5.
    """

    metric: FloatArray
    iteration_energy_joule: FloatArray
    available_energy_joule: FloatArray
    battery_joule: FloatArray
    max_iterations: int
    holds: BoolArray
    exponent: float

    def allocate(self, metric: FloatArray, available_joule: FloatArray, exponent: float = 1.0) -> IntArray:
        """Return `allocate_iterations` for another metric or energy; a metric of ones is one number for all."""
        energy, limit = self.iteration_energy_joule, self.max_iterations
        return allocate_iterations(metric, energy, available_joule, limit, self.holds, exponent)

    def uniform(self, available_joule: FloatArray) -> IntArray:
        """Return the largest common number of iterations that the energy pays, int64 [devices, modalities]."""
        return self.allocate(np.ones_like(self.metric), available_joule)


Policy = Callable[[RoundBudget], "IntArray | Plan"]


def _separate(budget: RoundBudget) -> Plan:
    iterations = budget.uniform(budget.available_energy_joule)
    return Plan(iterations, np.cumsum(iterations, axis=1) - iterations)


_POLICIES: Registry[Policy] = Registry(
    "policy",
    {
        "none": lambda budget: budget.uniform(np.full(len(budget.holds), np.inf)),
        "balanced": lambda budget: budget.allocate(budget.metric, budget.available_energy_joule, budget.exponent),
        "uniform": lambda budget: budget.uniform(budget.available_energy_joule),
        "reversed": lambda budget: budget.allocate(budget.metric, budget.available_energy_joule, -budget.exponent),
        "separate": _separate,
        "greedy": lambda budget: budget.uniform(budget.battery_joule),
    },
)


def register_policy(name: str, policy: Policy) -> None:
    """Make a policy of one's own known as `method.balance.policy`, by a file that `--module` names.

    Args:
        name: what configurations call it.
        policy: from a `RoundBudget` to the iterations of each modality, int64 [devices, modalities], or to a `Plan`
            where modalities do not all start with the first iteration. It has to keep within
            `available_energy_joule`; what does not is refused when it runs.

    Raises:
        ValueError: the name is no word or one of the package's, or `policy` cannot be called.

    Example:
        >>> def halved(budget: RoundBudget) -> IntArray:
        ...     return budget.uniform(budget.available_energy_joule) // 2
        >>> register_policy("halved", halved)
        >>> plan_iterations(BalanceConfig("halved"), [[1.0]], [[1.0]], [9.0], [90.0], 10, np.array([[True]])).iterations
        array([[4]])
    """
    _POLICIES.add(name, policy)


def plan_iterations(
    config: BalanceConfig,
    metric: npt.ArrayLike,
    iteration_energy_joule: npt.ArrayLike,
    available_energy_joule: npt.ArrayLike,
    battery_joule: npt.ArrayLike,
    max_iterations: int,
    holds: npt.ArrayLike,
) -> Plan:
    """Plan a round's local iterations by the configured policy (METHOD 5).

    Only `none` looks at no energy, and only `greedy` at the battery instead of the round's share.

    Args:
        config: policy and exponent.
        metric: b of `balance_metric`, [devices, modalities].
        iteration_energy_joule: energy of one iteration of each modality, [devices, modalities].
        available_energy_joule: what this round may cost each device in computing, [devices].
        battery_joule: all that a device has left for computing, [devices].
        max_iterations: T, at least 1.
        holds: which modalities a device has, bool [devices, modalities].

    Raises:
        ValueError: an argument is out of its range or the shapes do not match, or a policy of one's own planned what
            cannot be.

    Example:
        >>> plan = plan_iterations(BalanceConfig("uniform"), [[0.5, 1.5]], [[1.0, 1.0]], [9.0], [90.0], 10,
        ...                        np.array([[True, True]]))
        >>> plan.iterations.tolist()
        [[4, 4]]
    """
    values = _matrix("metric", metric)
    budget = RoundBudget(
        values,
        _matrix("iteration_energy_joule", iteration_energy_joule, values.shape),
        _matrix("available_energy_joule", available_energy_joule, values.shape[:1]),
        _matrix("battery_joule", battery_joule, values.shape[:1]),
        max_iterations,
        _mask("holds", holds, values.shape),
        config.exponent,
    )
    planned = _POLICIES[config.policy](budget)
    plan = planned if isinstance(planned, Plan) else Plan(planned, np.zeros(np.shape(planned), dtype=np.int64))
    if not _POLICIES.is_builtin(config.policy):
        _check_plan(config.policy, plan, budget)
    return plan


def _check_plan(policy: str, plan: Plan, budget: RoundBudget) -> None:
    """Refuse a plan of a user's policy that cannot be run or paid."""
    for name, array in (("iterations", plan.iterations), ("start", plan.start)):
        if not isinstance(array, np.ndarray) or array.dtype != np.int64 or array.shape != budget.metric.shape:
            got = f"{array.dtype} {list(array.shape)}" if isinstance(array, np.ndarray) else type(array).__name__
            raise ValueError(f"policy {policy!r}: {name} must be int64 {list(budget.metric.shape)}, got {got}")
    if (plan.iterations < 0).any() or (plan.start < 0).any() or (plan.iterations[~budget.holds] > 0).any():
        raise ValueError(f"policy {policy!r} must plan at least 0 iterations, and 0 where a modality cannot train")
    cost, most = plan.energy_joule(budget.iteration_energy_joule), np.maximum(budget.available_energy_joule, 0.0)
    over = np.flatnonzero(cost > most * (1 + 1e-9))
    if len(over):
        raise ValueError(
            f"policy {policy!r} must keep to the energy of a round, got {cost[over[0]]:g} J of at most "
            f"{most[over[0]]:g} J on device {over[0]}"
        )


def _matrix(name: str, value: npt.ArrayLike, shape: tuple[int, ...] | None = None) -> FloatArray:
    array = np.asarray(value, dtype=np.float64)
    if shape is None and array.ndim != 2:
        raise ValueError(f"{name} must have the shape [devices, modalities], got {list(array.shape)}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(array.shape)}")
    return array


def _mask(name: str, value: npt.ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape != shape:
        got = f"{array.dtype} of the shape {list(array.shape)}"
        raise ValueError(f"{name} must be bool of the shape {list(shape)}, got {got}")
    return array


def _check_nonnegative(name: str, values: FloatArray) -> None:
    bad = ~(np.isfinite(values) & (values >= 0.0))
    if bad.any():
        raise ValueError(f"{name} must be finite and at least 0 where a modality is held, got {values[bad][0]}")
