"""The plan of a round's local iterations, and the policies that make it (METHOD 5)."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.balance.allocation import allocate_iterations, computing_energy
from dmmlkd_ext.balance.arrays import BoolArray, FloatArray, IntArray, mask, matrix
from dmmlkd_ext.balance.metrics import METRICS
from dmmlkd_ext.registry import Registry


@dataclass(frozen=True)
class BalanceConfig:
    """How local iterations are planned (METHOD 5).

    Giving fast modalities fewer iterations, within the remaining energy, is the paper's [P]; the formulas, the controls
    and the defaults are choices of this project [C].

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> BalanceConfig(policy="balanced").exponent
        3.0
    """

    policy: str = "none"
    """`balanced` solves the max-min problem of METHOD 5. `none` gives every held modality all iterations, whatever the
    energy. Controls: `uniform`, the largest common number within the round's energy; `random`, the balanced cuts with
    the metric permuted among a device's modalities each round; `reversed`, favours the fast modalities; `separate`, a
    common number, one modality after the other; `greedy`, the largest common number that the whole battery pays,
    whatever later rounds need. Or a policy of yours (`register_policy`)."""
    exponent: float = 3.0
    """The p of METHOD 5, at least 0; with 0, `balanced` is `uniform`."""
    metric: str = "variation"
    """What the speeds are made of (METHOD 5): `variation`, `root`, `movement`, `early`, `first`, `slowdown`, `radial`,
    `drift` and `rank` of the parameter variation; `score`, a reference that is not; or a metric of yours
    (`register_metric`)."""
    relative: bool = False
    """Divide a block's variation by the block's norm instead of the root of its number of parameters; used by the
    metric `variation` alone."""
    smoothing: float = 0.5
    """Weight of the newest value in the metric's moving average, above 0 and at most 1."""

    def __post_init__(self) -> None:
        _POLICIES.check(self.policy)
        METRICS.check(self.metric)
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
        """Number of local iterations in which any modality of a device is active, int64 [devices]."""
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
        """Return each device's energy for computing, float64 [devices], in joules; a waiting modality costs nothing.

        Raises:
            ValueError: `iteration_energy_joule` has not the plan's shape.
        """
        energy = matrix("iteration_energy_joule", iteration_energy_joule, self.iterations.shape)
        return computing_energy(self.iterations, np.where(self.iterations > 0, energy, 0.0))


@dataclass(frozen=True, eq=False)
class RoundBudget:
    """What a policy knows when it plans a round; arrays are [devices, modalities] unless stated.

    Attributes:
        metric: b of `balance_metric`, float64; NaN where it is not known yet, or a modality is not held.
        iteration_energy_joule: energy of one iteration of each modality, float64.
        available_energy_joule: energy that each device may spend on computing in this round, float64 [devices]; -inf
            if it failed.
        battery_joule: energy that each device has left for computing, float64 [devices]; likewise.
        max_iterations: T.
        holds: which modalities can train, bool.
        exponent: p of METHOD 5.
        generator: the randomness of this round, the same whatever the method.
    """

    metric: FloatArray
    iteration_energy_joule: FloatArray
    available_energy_joule: FloatArray
    battery_joule: FloatArray
    max_iterations: int
    holds: BoolArray
    exponent: float
    generator: np.random.Generator

    def allocate(self, metric: FloatArray, available_joule: FloatArray, exponent: float = 1.0) -> IntArray:
        """Return `allocate_iterations` for another metric or energy; a metric of ones gives one common number."""
        energy, limit = self.iteration_energy_joule, self.max_iterations
        return allocate_iterations(metric, energy, available_joule, limit, self.holds, exponent)

    def uniform(self, available_joule: FloatArray) -> IntArray:
        """Return the largest common number of iterations that the energy pays, int64 [devices, modalities]."""
        return self.allocate(np.ones_like(self.metric), available_joule)


Policy = Callable[[RoundBudget], "IntArray | Plan"]


def _random(budget: RoundBudget) -> IntArray:
    """Permute each device's metric among the modalities that can train, each permutation being as likely."""
    shape = budget.metric.shape
    rank = np.argsort(
        np.where(budget.holds, budget.generator.random(shape), 2.0), axis=1
    )  # those that cannot come last
    place = np.argsort(~budget.holds, axis=1, kind="stable")
    permuted = np.full(shape, np.nan)
    np.put_along_axis(permuted, place, np.take_along_axis(budget.metric, rank, axis=1), axis=1)
    return budget.allocate(permuted, budget.available_energy_joule, budget.exponent)


def _separate(budget: RoundBudget) -> Plan:
    iterations = budget.uniform(budget.available_energy_joule)
    return Plan(iterations, np.cumsum(iterations, axis=1) - iterations)


_POLICIES: Registry[Policy] = Registry(
    "policy",
    {
        "none": lambda budget: budget.uniform(np.full(len(budget.holds), np.inf)),
        "balanced": lambda budget: budget.allocate(budget.metric, budget.available_energy_joule, budget.exponent),
        "uniform": lambda budget: budget.uniform(budget.available_energy_joule),
        "random": _random,
        "reversed": lambda budget: budget.allocate(budget.metric, budget.available_energy_joule, -budget.exponent),
        "separate": _separate,
        "greedy": lambda budget: budget.uniform(budget.battery_joule),
    },
)


def register_policy(name: str, policy: Policy) -> None:
    """Register a policy for `method.balance.policy`; call this in a file that `--module` names.

    Args:
        name: what configurations call it.
        policy: maps a `RoundBudget` to the iterations of each modality, int64 [devices, modalities], or to a `Plan` if
            some modalities start later. A plan that costs more than `available_energy_joule` is refused.

    Raises:
        ValueError: `name` is no identifier or belongs to the package, or `policy` is not callable.

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
    generator: np.random.Generator | None = None,
) -> Plan:
    """Plan a round's local iterations by the configured policy (METHOD 5).

    The arguments after `config` are the fields of `RoundBudget`; without a generator, one of the seed 0 is taken.

    Raises:
        ValueError: an argument is out of its range, the shapes do not match, or a registered policy's plan is invalid.

    Example:
        >>> plan = plan_iterations(BalanceConfig("uniform"), [[0.5, 1.5]], [[1.0, 1.0]], [9.0], [90.0], 10,
        ...                        np.array([[True, True]]))
        >>> plan.iterations.tolist()
        [[4, 4]]
    """
    values = matrix("metric", metric)
    budget = RoundBudget(
        values,
        matrix("iteration_energy_joule", iteration_energy_joule, values.shape),
        matrix("available_energy_joule", available_energy_joule, values.shape[:1]),
        matrix("battery_joule", battery_joule, values.shape[:1]),
        max_iterations,
        mask("holds", holds, values.shape),
        config.exponent,
        np.random.default_rng(0) if generator is None else generator,
    )
    planned = _POLICIES[config.policy](budget)
    plan = planned if isinstance(planned, Plan) else Plan(planned, np.zeros(np.shape(planned), dtype=np.int64))
    if not _POLICIES.is_builtin(config.policy):
        _check_plan(config.policy, plan, budget)
    return plan


def _check_plan(policy: str, plan: Plan, budget: RoundBudget) -> None:
    """Refuse a registered policy's plan that is invalid or costs too much."""
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
