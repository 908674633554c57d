"""The allocation of local iterations against exhaustive search and against an integer program."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import optimize

from dmmlkd_ext.balance import (
    BalanceConfig,
    Plan,
    allocate_iterations,
    balance_metric,
    imbalance,
    plan_iterations,
    register_policy,
    training_speed,
    update_speeds,
)

NAN = float("nan")


@st.composite
def problems(draw, max_modalities=4, max_limit=8):
    """One device; energies in eighths, so that sums are exact and "fits" means the same in any order."""
    modalities = draw(st.integers(1, max_modalities))
    limit = draw(st.integers(1, max_limit))
    metric = draw(st.lists(st.floats(0.05, 4.0), min_size=modalities, max_size=modalities))
    energy = draw(st.lists(st.integers(0, 24), min_size=modalities, max_size=modalities))
    available = draw(st.integers(0, limit * sum(energy) + 8))
    exponent = draw(st.sampled_from([-3.0, -1.0, 0.0, 0.5, 1.0, 2.0, 3.0]))
    return np.array(metric), np.array(energy) / 8, available / 8, limit, exponent


def exhaustive(metric, energy, available, limit, exponent, cost):
    """Return the best (level, -energy) over all integer points, or None when nothing fits."""
    weights = metric**exponent
    best = None
    for tau in itertools.product(range(1, limit + 1), repeat=len(metric)):
        spent = cost(energy, np.array(tau))
        if spent <= available:
            candidate = ((weights * tau).min(), -spent)
            best = candidate if best is None else max(best, candidate)
    return best


def drop_cost(energy, tau):
    return float((energy * tau).sum())


def keep_cost(energy, tau):
    # In twelfths of the energies' unit: exact, unlike a third.
    return float((energy * (2 * tau + tau.max())).sum())


def allocate_one(metric, energy, available, limit, exponent):
    holds = np.ones((1, len(metric)), dtype=bool)
    return allocate_iterations([metric], [energy], [available], limit, holds, exponent)[0]


@settings(max_examples=400, deadline=None)
@given(problems())
def test_allocation_is_the_exhaustive_optimum(problem):
    metric, energy, available, limit, exponent = problem
    tau = allocate_one(metric, energy, available, limit, exponent)
    best = exhaustive(*problem, drop_cost)
    if best is None:
        assert not tau.any()
    else:
        assert ((metric**exponent * tau).min(), -drop_cost(energy, tau)) == best
        assert 1 <= tau.min() <= tau.max() <= limit


def integer_program(weights, energy, available, limit):
    """Maximize the level, then minimize the energy at that level, by scipy's solver."""
    count = len(weights)
    reach = optimize.LinearConstraint(np.c_[np.diag(weights), -np.ones(count)], 0, np.inf)
    afford = optimize.LinearConstraint([[*energy, 0.0]], -np.inf, available)
    bounds = optimize.Bounds(np.r_[np.ones(count), 0], np.r_[np.full(count, limit), np.inf])
    result = optimize.milp(
        np.r_[np.zeros(count), -1.0],
        constraints=[reach, afford],
        bounds=bounds,
        integrality=np.r_[np.ones(count), 0],
        options={"mip_rel_gap": 0.0},
    )
    level = -result.fun
    least = optimize.milp(
        energy,
        constraints=optimize.LinearConstraint(np.diag(weights), level * (1 - 1e-9), np.inf),
        bounds=optimize.Bounds(np.ones(count), np.full(count, limit)),
        integrality=np.ones(count),
        options={"mip_rel_gap": 0.0},
    )
    return level, least.fun


@pytest.mark.parametrize("case", range(12))
def test_allocation_is_the_integer_programs_optimum_at_larger_sizes(case):
    generator = np.random.default_rng(case)
    count, limit = int(generator.integers(6, 13)), int(generator.integers(15, 60))
    metric = np.exp(generator.normal(0, 0.4, count))
    energy = generator.uniform(0.5, 3, count)
    available = generator.uniform(1, limit) * energy.sum()
    weights = metric ** [1.0, 3.0][case % 2]
    tau = allocate_one(metric, energy, available, limit, [1.0, 3.0][case % 2])
    level, spent = integer_program(weights, energy, available, limit)
    np.testing.assert_allclose((weights * tau).min(), level, rtol=1e-6)
    np.testing.assert_allclose((energy * tau).sum(), spent, rtol=1e-6)


@settings(max_examples=200, deadline=None)
@given(problems(), st.integers(0, 200))
def test_more_energy_never_lowers_the_level(problem, more):
    metric, energy, available, limit, exponent = problem
    weights = metric**exponent
    less = allocate_one(metric, energy, available, limit, exponent)
    plenty = allocate_one(metric, energy, available + more / 8, limit, exponent)
    assert (weights * plenty).min() >= (weights * less).min()


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.sampled_from(["balanced", "uniform", "reversed", "separate", "greedy"]))
def test_no_plan_costs_more_than_it_may(seed, policy):
    generator = np.random.default_rng(seed)
    shape = (int(generator.integers(1, 20)), int(generator.integers(1, 6)))
    holds = generator.random(shape) < 0.7
    metric = np.where(holds & (generator.random(shape) < 0.9), np.exp(generator.normal(0, 1, shape)), NAN)
    energy = np.where(holds, generator.uniform(0, 2, shape), 0)
    battery = generator.uniform(-1, 60, shape[0])
    available = battery * generator.random(shape[0])
    plan = plan_iterations(BalanceConfig(policy), metric, energy, available, battery, 9, holds)
    limit = np.maximum(battery if policy == "greedy" else available, 0)
    assert (plan.energy_joule(energy) <= limit * (1 + 1e-12)).all()
    assert not plan.iterations[~holds].any()
    trains = plan.iterations.sum(1) > 0
    np.testing.assert_array_equal(plan.iterations[trains] > 0, holds[trains])


def test_devices_of_a_batch_are_solved_as_if_alone():
    generator = np.random.default_rng(3)
    holds = generator.random((50, 4)) < 0.6
    metric, energy = generator.uniform(0.2, 2, (50, 4)), generator.uniform(0.1, 1, (50, 4))
    available = generator.uniform(0, 30, 50)
    together = allocate_iterations(metric, energy, available, 12, holds)
    for k in range(50):
        kept = holds[k]
        alone = allocate_one(metric[k, kept], energy[k, kept], available[k], 12, 3.0)
        np.testing.assert_array_equal(together[k, kept], alone)


def test_the_slow_modality_gets_more_and_reversed_gives_it_fewer():
    metric, energy = [[0.5, 1.5]], [[1.0, 1.0]]
    holds = np.array([[True, True]])

    def iterations(policy):
        return plan_iterations(BalanceConfig(policy), metric, energy, [10], [99], 9, holds).iterations[0].tolist()

    assert iterations("balanced") == [9, 1]
    assert iterations("reversed") == [1, 9]
    assert iterations("uniform") == [5, 5]
    assert iterations("greedy") == iterations("none") == [9, 9]


def test_the_level_stops_where_the_slowest_modality_has_all_iterations():
    assert allocate_one(np.array([0.5, 1.0]), np.ones(2), np.inf, 8, 1.0).tolist() == [8, 4]


def test_an_unknown_metric_is_uniform():
    assert allocate_one(np.array([NAN, NAN]), np.array([1.0, 2.0]), 14.0, 10, 3.0).tolist() == [4, 4]


def test_a_metric_of_zero_is_the_limit_of_small_ones():
    small = allocate_one(np.array([1e-9, 1.0, 2.0]), np.ones(3), 9.0, 10, 3.0)
    np.testing.assert_array_equal(allocate_one(np.array([0.0, 1.0, 2.0]), np.ones(3), 9.0, 10, 3.0), small)
    np.testing.assert_array_equal(allocate_one(np.zeros(2), np.ones(2), 9.0, 10, 3.0), [4, 4])
    np.testing.assert_array_equal(allocate_one(np.zeros(2), np.ones(2), 9.0, 10, -3.0), [4, 4])
    np.testing.assert_array_equal(allocate_one(np.array([0.0, 1.0]), np.ones(2), 9.0, 10, -3.0), [1, 8])


def test_extreme_exponents_neither_overflow_nor_warn():
    np.testing.assert_array_equal(allocate_one(np.array([1e-3, 1.9]), np.ones(2), 9.0, 10, 500.0), [8, 1])
    np.testing.assert_array_equal(allocate_one(np.array([1e-3, 1.9]), np.ones(2), 9.0, 10, -500.0), [1, 8])


def test_a_device_that_cannot_pay_one_iteration_of_all_sits_out():
    holds = np.ones((3, 2), dtype=bool)
    tau = allocate_iterations(np.ones((3, 2)), np.ones((3, 2)), [1.9, -5.0, 2.0], 4, holds)
    assert tau.tolist() == [[0, 0], [0, 0], [1, 1]]


def test_a_device_without_modalities_and_an_empty_batch():
    nothing = allocate_iterations([[1.0, 1.0]], [[1.0, 1.0]], [9.0], 4, np.zeros((1, 2), dtype=bool))
    assert nothing.tolist() == [[0, 0]]
    empty = allocate_iterations(np.zeros((0, 2)), np.zeros((0, 2)), [], 4, np.zeros((0, 2), dtype=bool))
    assert empty.shape == (0, 2)


def test_free_iterations_fit_without_energy():
    assert allocate_one(np.ones(2), np.zeros(2), 0.0, 7, 3.0).tolist() == [7, 7]


def test_a_separate_plan_trains_one_modality_at_a_time():
    holds = np.array([[True, False, True], [True, True, True]])
    config = BalanceConfig("separate")
    energy = np.where(holds, 1.0, 0.0)
    plan = plan_iterations(config, np.ones((2, 3)), energy, [6, 6], [6, 6], 5, holds)
    assert plan.iterations.tolist() == [[3, 0, 3], [2, 2, 2]]
    assert plan.num_iterations == 6
    active = np.stack([plan.active(i) for i in range(plan.num_iterations)])
    assert (active.sum(axis=2) == 1).all()
    np.testing.assert_array_equal(active.sum(axis=0), plan.iterations)
    assert not plan.active(plan.num_iterations).any()


def test_waiting_costs_nothing():
    plan = Plan(np.array([[4, 1]]), np.array([[0, 0]]))
    np.testing.assert_allclose(plan.energy_joule([[1.0, 3.0]]), [7.0])


def test_a_plan_costs_what_trains_and_nothing_else():
    joules = [[1.0, 3.0]]
    assert Plan(np.array([[4, 1]]), np.array([[0, 0]])).energy_joule(joules).tolist() == [7.0]
    assert Plan(np.array([[2, 2]]), np.array([[0, 2]])).energy_joule(joules).tolist() == [8.0]  # one waits
    assert Plan(np.array([[2, 0]]), np.array([[0, 0]])).energy_joule(joules).tolist() == [2.0]  # one never trains


@pytest.mark.parametrize(
    ("policy", "common"),
    [("balanced", 2), ("uniform", 2), ("reversed", 2), ("separate", 2), ("greedy", 6), ("none", 10)],
)
def test_greedy_looks_at_the_battery_and_the_others_at_the_rounds_share(policy, common):
    ones, holds = np.ones((1, 2)), np.ones((1, 2), dtype=bool)
    plan = plan_iterations(BalanceConfig(policy), ones, ones, [4.0], [12.0], 10, holds)
    assert plan.iterations.tolist() == [[common, common]]


def test_a_plan_without_modalities_or_devices_is_empty():
    assert Plan(np.zeros((2, 0), dtype=np.int64), np.zeros((2, 0), dtype=np.int64)).num_iterations == 0
    assert Plan(np.zeros((0, 2), dtype=np.int64), np.zeros((0, 2), dtype=np.int64)).num_iterations == 0


def test_speed_is_the_variation_an_iteration_and_a_parameter():
    speeds = training_speed([[6.0, 6.0]], [[2.0, 0.0]], [9, 4], [[2, 3]])
    np.testing.assert_allclose(speeds, [[1.0, 1.0]])
    relative = training_speed([[6.0, 6.0]], [[2.0, 0.0]], [9, 4], [[2, 3]], relative=True)
    np.testing.assert_array_equal(relative, [[1.5, NAN]])


def test_speed_is_unknown_without_training_or_after_divergence():
    speeds = training_speed([[1.0, NAN, np.inf]], [[1.0, 1.0, 1.0]], [1, 1, 1], [[0, 2, 2]])
    assert np.isnan(speeds).all()


def test_speeds_average_over_rounds():
    speeds = np.array([[NAN]])
    for current in (4.0, 2.0, NAN, 7.0):
        speeds = update_speeds(speeds, [[current]])
    np.testing.assert_allclose(speeds, [[5.0]])
    np.testing.assert_allclose(update_speeds([[4.0]], [[2.0]], smoothing=0.25), [[3.5]])


@given(st.lists(st.floats(1e-3, 1e3), min_size=1, max_size=5))
def test_the_metric_has_mean_one_and_gives_the_coefficient_of_variation(speeds):
    holds = np.ones((1, len(speeds)), dtype=bool)
    assert balance_metric([speeds], holds).mean() == pytest.approx(1.0)
    variation = np.std(speeds) / np.mean(speeds)
    np.testing.assert_allclose(imbalance([speeds], holds), [variation], atol=1e-12)


def test_the_metric_leaves_out_what_is_unknown_or_not_held():
    holds = np.array([[True, True, False], [True, True, True], [False, False, False]])
    speeds = [[1.0, 3.0, NAN], [NAN, NAN, NAN], [1.0, 1.0, 1.0]]
    np.testing.assert_array_equal(balance_metric(speeds, holds)[0], [0.5, 1.5, NAN])
    assert np.isnan(balance_metric(speeds, holds)[1:]).all()
    np.testing.assert_array_equal(imbalance(speeds, holds), [0.5, NAN, NAN])
    np.testing.assert_array_equal(balance_metric([[0.0, 0.0]], np.ones((1, 2), dtype=bool)), [[1.0, 1.0]])


ONE = np.ones((1, 1), dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BalanceConfig(policy="fair"), "policy must be one of none.*'fair'"),
        (lambda: BalanceConfig(exponent=-1), "exponent must be finite and at least 0, got -1"),
        (lambda: BalanceConfig(smoothing=0), "smoothing must be above 0 and at most 1, got 0"),
        (lambda: training_speed([1.0], [1.0], [1], [1]), r"variation_norm must have .*got \[1\]"),
        (
            lambda: training_speed([[1.0]], [[1.0, 2.0]], [1], [[1]]),
            r"start_norm must have the shape \[1, 1\]",
        ),
        (lambda: training_speed([[1.0]], [[1.0]], [0], [[1]]), "num_parameters must be at least 1, got 0"),
        (lambda: training_speed([[1.0]], [[1.0]], [1], [[-1]]), "iterations must be at least 0, got -1"),
        (lambda: update_speeds([[1.0]], [[1.0]], smoothing=2), "smoothing must be .* got 2"),
        (lambda: update_speeds([[1.0]], [[1.0, 2.0]]), r"current must have the shape \[1, 1\], got \[1, 2\]"),
        (lambda: balance_metric([[-1.0]], ONE), "speeds must be .* got -1"),
        (lambda: balance_metric([[1.0]], [[1]]), "holds must be bool of the shape .* got int64"),
        (lambda: imbalance([[np.inf]], ONE), "speeds must be .* got inf"),
        (lambda: allocate_iterations([[-1.0]], [[1.0]], [1], 1, ONE), "metric must be .* got -1"),
        (
            lambda: allocate_iterations([[1.0]], [[-1.0]], [1], 1, ONE),
            "iteration_energy_joule must .* got -1",
        ),
        (
            lambda: allocate_iterations([[1.0]], [[NAN]], [1], 1, ONE),
            "iteration_energy_joule must .* got nan",
        ),
        (lambda: allocate_iterations([[1.0]], [[1.0]], [NAN], 1, ONE), "available_energy_joule .* got nan"),
        (
            lambda: allocate_iterations([[1.0]], [[1.0]], [1, 2], 1, ONE),
            r"available_energy_joule .* got \[2\]",
        ),
        (lambda: allocate_iterations([[1.0]], [[1.0]], [1], 0, ONE), "max_iterations must .* got 0"),
        (
            lambda: allocate_iterations([[1.0]], [[1.0]], [1], 1, ONE, np.inf),
            "exponent must be finite, got inf",
        ),
        (
            lambda: Plan(np.ones((1, 1)), np.ones((1, 1))).energy_joule([1.0]),
            "iteration_energy_joule must have",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


ENERGY = np.array([[1.0, 2.0]])


def plan_by(policy, available=9.0):
    register_policy("mine", policy)
    return plan_iterations(
        BalanceConfig("mine"), [[1.0, 1.0]], ENERGY, [available], [90.0], 10, np.array([[True, True]])
    )


def test_a_policy_of_ones_own_plans():
    assert plan_by(lambda budget: np.array([[5, 2]])).iterations.tolist() == [[5, 2]]
    later = plan_by(lambda budget: Plan(np.array([[1, 1]]), np.array([[0, 1]])))
    assert later.active(1).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("policy", "words"),
    [
        (lambda budget: np.array([[5, 3]]), "must keep to the energy of a round, got 11 J of at most 9 J on device 0"),
        (lambda budget: np.array([[-1, 1]]), "must plan at least 0 iterations"),
        (lambda budget: np.array([[1.0, 1.0]]), r"iterations must be int64 \[1, 2\], got float64 \[1, 2\]"),
        (lambda budget: np.array([1, 1]), r"iterations must be int64 \[1, 2\], got int64 \[2\]"),
    ],
)
def test_what_a_policy_of_ones_own_may_not_plan(policy, words):
    with pytest.raises(ValueError, match="policy 'mine'.* " + words if words.startswith("iter") else words):
        plan_by(policy)


def test_a_policy_that_is_not_known_is_named():
    with pytest.raises(ValueError, match=r"policy must be one of .*; got 'balance'; did you mean 'balanced'"):
        BalanceConfig("balance")
