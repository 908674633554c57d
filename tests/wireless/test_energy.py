"""What computing and broadcasting cost, and batteries that never fall below zero."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.balance import BalanceConfig, plan_iterations
from dmmlkd_ext.wireless.energy import (
    EnergyAccount,
    EnergyConfig,
    broadcast_cost,
    computing_energy_joule,
    computing_time_s,
    draw_frequencies_hz,
    initial_budget_joule,
    iteration_energy_joule,
    training_cycles,
)

HOLDS = np.array([[True, True], [True, False]])
EDGES = np.array([[0, 1], [1, 2]])


def test_computing_follows_its_formulas():
    # 1e-28 * (2e9)^2 * 5e6 * 32 joules, and 5e6 * 32 / 2e9 seconds.
    np.testing.assert_allclose(computing_energy_joule(5e6, 2e9, 32), 0.064)
    np.testing.assert_allclose(computing_time_s(5e6, 2e9, 32), 0.08)
    np.testing.assert_allclose(training_cycles([2e6], cycles_per_mac=0.5), [3e6])


def test_the_fixed_model_charges_held_modalities_alike():
    config = EnergyConfig(iteration_energy_joule=2.0)
    assert iteration_energy_joule(config, HOLDS).tolist() == [[2.0, 2.0], [2.0, 0.0]]


def test_the_wireless_model_charges_by_cycles_and_frequency():
    energy = iteration_energy_joule(
        EnergyConfig(model="wireless"),
        HOLDS,
        cycles_per_sample=[1e6, 2e6],
        frequency_hz=[1e9, 5e8],
        batch_size=10,
    )
    np.testing.assert_allclose(energy, [[1e-3, 2e-3], [2.5e-4, 0.0]])


def test_frequencies_are_drawn_once_within_their_range():
    frequencies = draw_frequencies_hz(EnergyConfig(), 4000, seed=3)
    assert 0.5e9 <= frequencies.min() <= frequencies.max() <= 1.5e9
    np.testing.assert_allclose(frequencies.mean(), 1e9, rtol=0.02)
    np.testing.assert_array_equal(frequencies, draw_frequencies_hz(EnergyConfig(), 4000, seed=3))
    assert (frequencies != draw_frequencies_hz(EnergyConfig(), 4000, seed=4)).any()


def test_a_broadcast_goes_at_the_rate_of_the_worst_link_that_needs_the_block():
    # Device 2 lacks block 1, so that device 1 sends it at the better rate of its other link.
    holds = np.array([[True, True], [True, True], [True, False]])
    cost = broadcast_cost([4e6, 8e6], holds, EDGES, [4e6, 1e6], transmit_power_w=0.1)
    np.testing.assert_allclose(cost.time_s, [1.0 + 2.0, 4.0 + 2.0, 4.0])
    np.testing.assert_allclose(cost.energy_joule, 0.1 * cost.time_s)


def test_a_dead_link_is_not_waited_for_and_a_lone_device_sends_nothing():
    holds = np.ones((3, 1), dtype=bool)
    cost = broadcast_cost([4e6], holds, EDGES, [4e6, 0.0], 0.1, alive=np.array([True, False]))
    assert cost.time_s.tolist() == [1.0, 1.0, 0.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000))
def test_broadcasts_agree_with_a_plain_loop(seed):
    generator = np.random.default_rng(seed)
    count, blocks = int(generator.integers(2, 9)), int(generator.integers(1, 4))
    pairs = np.argwhere(np.triu(generator.random((count, count)) < 0.5, 1))
    rates, bits = generator.uniform(1, 5, len(pairs)), generator.uniform(0, 9, blocks)
    holds = generator.random((count, blocks)) < 0.7
    alive = generator.random(len(pairs)) < 0.8
    cost = broadcast_cost(bits, holds, pairs, rates, 2.0, alive)
    for k in range(count):
        time = 0.0
        for b in range(blocks):
            needed = [
                rates[e]
                for e, (i, j) in enumerate(pairs.tolist())
                if alive[e] and k in (i, j) and holds[i, b] and holds[j, b]
            ]
            time += bits[b] / min(needed) if needed else 0.0
        np.testing.assert_allclose(cost.time_s[k], time)
        np.testing.assert_allclose(cost.energy_joule[k], 2.0 * time)


def test_budgets():
    energy = [[1.0, 2.0], [1.0, 0.0]]
    fraction = initial_budget_joule(EnergyConfig(budget_fraction=0.5), energy, 10, 4, [1.0, 3.0])
    np.testing.assert_allclose(fraction, [4 * (0.5 * 30 + 1), 4 * (0.5 * 10 + 3)])
    assert initial_budget_joule(EnergyConfig(), energy, 10, 4).tolist() == [np.inf, np.inf]
    assert initial_budget_joule(EnergyConfig(budget_joule=7.0), energy, 10, 4).tolist() == [7.0, 7.0]


@settings(deadline=None)
@given(st.floats(0.01, 1), st.floats(0, 1e3))
def test_a_fraction_buys_the_same_training_however_dear_the_exchange_is(fraction, exchange):
    energy = np.array([[1.0, 2.0], [1.0, 0.0]])
    account = EnergyAccount(initial_budget_joule(EnergyConfig(budget_fraction=fraction), energy, 10, 4, exchange))
    share = account.round_budget_joule(4, exchange)
    np.testing.assert_allclose(share, fraction * 10 * energy.sum(axis=1), rtol=1e-9, atol=1e-9 * (1 + exchange))


def test_a_rounds_share_and_what_greedy_may_use():
    account = EnergyAccount([12.0, 2.0])
    np.testing.assert_allclose(account.round_budget_joule(4, 1.0), [2.0, -0.5])
    np.testing.assert_allclose(account.battery_joule(4, [1.0, 0.25]), [8.0, 1.0])
    assert account.can_pay([3.0, 2.5]).tolist() == [True, False]


def test_unspent_energy_stays_with_the_device():
    account = EnergyAccount([12.0])
    account.spend(1.0)
    np.testing.assert_allclose(account.round_budget_joule(3), [11 / 3])
    assert account.spent_joule.tolist() == [1.0]


def test_an_unlimited_account_counts_what_it_spends():
    account = EnergyAccount([np.inf])
    account.spend([5.0])
    assert account.remaining_joule.tolist() == [np.inf]
    assert account.spent_joule.tolist() == [5.0]
    assert account.round_budget_joule(3, 1.0).tolist() == [np.inf]


def test_an_overdraft_is_refused_and_spends_nothing():
    account = EnergyAccount([1.0, 1.0])
    with pytest.raises(ValueError, match="cost_joule must be at most what is left: got 2 J for device 1"):
        account.spend([0.5, 2.0])
    assert account.remaining_joule.tolist() == [1.0, 1.0]


@pytest.mark.parametrize("excess", [1e-3, 1e-6, 1e-8])
def test_an_overdraft_is_refused_however_small(excess):
    account = EnergyAccount([2.0])
    with pytest.raises(ValueError, match="cost_joule must be at most what is left"):
        account.spend([2.0 * (1.0 + excess)])
    assert account.remaining_joule.tolist() == [2.0]


def test_a_cost_above_the_battery_by_rounding_empties_it():
    account = EnergyAccount([0.3])
    account.spend([0.1 + 0.2])
    assert account.remaining_joule.tolist() == [0.0]


@settings(max_examples=60, deadline=None)
@given(st.integers(0, 10_000), st.sampled_from(["balanced", "uniform", "reversed", "separate", "greedy"]))
def test_a_run_never_overdraws_and_a_resumed_one_goes_on_the_same(seed, policy):
    generator = np.random.default_rng(seed)
    rounds, limit, holds = 8, 6, generator.random((5, 3)) < 0.8
    config = EnergyConfig(budget_fraction=float(generator.uniform(0, 1)))
    balance = BalanceConfig(policy)
    energy = np.where(holds, generator.uniform(0.1, 2, (5, 3)), 0.0)
    account = EnergyAccount(initial_budget_joule(config, energy, limit, rounds, 0.5))
    for index in range(rounds):
        exchange = generator.uniform(0, 1, 5)
        available = account.round_budget_joule(rounds - index, exchange)
        battery = account.battery_joule(rounds - index, exchange)
        metric = generator.uniform(0.2, 2, (5, 3))
        plan = plan_iterations(balance, metric, energy, available, battery, limit, holds)
        cost = plan.energy_joule(energy)
        cost += np.where(account.can_pay(exchange), exchange, 0.0)
        account.spend(cost)
        assert (account.remaining_joule >= 0.0).all()
        resumed = EnergyAccount(np.zeros(5))
        resumed.load_state_dict(account.state_dict())
        account = resumed


@pytest.mark.parametrize("fraction", np.arange(1, 10) / 10)
def test_a_share_that_fits_exactly_is_used_up_in_every_round(fraction):
    """Ten tenths of rounding must not cost an iteration: 30 % of 10 iterations is 3, each round."""
    holds = np.ones((1, 3), dtype=bool)
    energy = iteration_energy_joule(EnergyConfig(iteration_energy_joule=0.1), holds)
    config = EnergyConfig(budget_fraction=float(fraction))
    account = EnergyAccount(initial_budget_joule(config, energy, 10, 37))
    for left in range(37, 0, -1):
        available = account.round_budget_joule(left)
        plan = plan_iterations(
            BalanceConfig("uniform"),
            np.ones((1, 3)),
            energy,
            available,
            account.battery_joule(left),
            10,
            holds,
        )
        assert plan.iterations.tolist() == [[round(fraction * 10)] * 3]
        account.spend(plan.energy_joule(energy))


def wireless(**arguments):
    defaults = {"cycles_per_sample": [1.0, 1.0], "frequency_hz": [1.0, 1.0], "batch_size": 1}
    return iteration_energy_joule(EnergyConfig(model="wireless"), HOLDS, **{**defaults, **arguments})


BLOCKS = np.ones((3, 1), dtype=bool)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: EnergyConfig(model="solar"), "model must be one of fixed, wireless; got 'solar'"),
        (lambda: EnergyConfig(budget_fraction=0.1, budget_joule=1.0), "budget_joule must be None when"),
        (lambda: EnergyConfig(budget_basis="mine"), "budget_basis must be one of method, dmml; got .mine."),
        (lambda: EnergyConfig(budget_fraction=-0.1), "budget_fraction must be .* got -0.1"),
        (lambda: EnergyConfig(kappa=0), "kappa must be positive and finite, got 0"),
        (lambda: EnergyConfig(min_frequency_hz=2e9), "min_frequency_hz must be at most .* got 2e"),
        (lambda: draw_frequencies_hz(EnergyConfig(), -1, 0), "num_devices must be at least 0, got -1"),
        (lambda: draw_frequencies_hz(EnergyConfig(), 1, -1), "seed must be at least 0, got -1"),
        (lambda: training_cycles([-1.0]), "forward_macs must be .* got -1"),
        (lambda: training_cycles([1.0], -1.0), "cycles_per_mac must be .* got -1"),
        (lambda: computing_energy_joule(1, np.nan, 1), "frequency_hz must be .* got nan"),
        (lambda: computing_energy_joule(1, 1, 1, -1.0), "kappa must be .* got -1"),
        (lambda: computing_energy_joule(1, 1, -1), "batch_size must be .* got -1"),
        (lambda: computing_energy_joule(-1, 1, 1), "cycles_per_sample must be .* got -1"),
        (lambda: computing_time_s(1, 0, 1), "frequency_hz must be positive, got 0"),
        (lambda: iteration_energy_joule(EnergyConfig(), HOLDS[0]), r"holds must be bool .* got bool \[2\]"),
        (lambda: wireless(batch_size=None), "cycles_per_sample, frequency_hz and batch_size must be given"),
        (lambda: wireless(frequency_hz=[1.0]), r"frequency_hz must have the shape \[2\], got \[1\]"),
        (
            lambda: wireless(cycles_per_sample=[1.0]),
            r"cycles_per_sample must have the shape \[2\] or \[2, 2\]",
        ),
        (
            lambda: broadcast_cost([1.0, 2.0], BLOCKS, EDGES, [1.0, 1.0], 0.1),
            "holds_block must be .* 2 blocks",
        ),
        (lambda: broadcast_cost([-1.0], BLOCKS, EDGES, [1.0, 1.0], 0.1), "block_bits must be .* got -1"),
        (
            lambda: broadcast_cost([1.0], BLOCKS, EDGES, [1.0], 0.1),
            r"rates_bit_per_s must have the shape \[2\]",
        ),
        (lambda: broadcast_cost([1.0], BLOCKS, EDGES, [1.0, 0.0], 0.1), "rates_bit_per_s must be positive"),
        (lambda: broadcast_cost([1.0], BLOCKS, EDGES, [1.0, 1.0], -1), "transmit_power_w must be .* got -1"),
        (
            lambda: broadcast_cost([1.0], BLOCKS, EDGES, [1.0, 1.0], 1, [True]),
            r"alive must have .* got \[1\]",
        ),
        (lambda: initial_budget_joule(EnergyConfig(), [1.0], 1, 1), r"iteration_energy must be .* got \[1\]"),
        (
            lambda: initial_budget_joule(EnergyConfig(), [[1.0]], 0, 1),
            "max_iterations must be at least 1, got 0",
        ),
        (lambda: initial_budget_joule(EnergyConfig(), [[1.0]], 1, 0), "num_rounds must be at least 1, got 0"),
        (
            lambda: initial_budget_joule(EnergyConfig(), [[1.0]], 1, 1, [1.0, 1.0]),
            "exchange_energy_joule must",
        ),
        (lambda: EnergyAccount([-1.0]), "budget_joule must be .* got"),
        (lambda: EnergyAccount([np.nan]), "budget_joule must be .* got"),
        (lambda: EnergyAccount([1.0]).round_budget_joule(0), "remaining_rounds must be at least 1, got 0"),
        (lambda: EnergyAccount([1.0]).battery_joule(0), "remaining_rounds must be at least 1, got 0"),
        (lambda: EnergyAccount([1.0]).spend([-1.0]), "cost_joule must be finite and at least 0, got -1"),
        (lambda: EnergyAccount([1.0]).spend([0.1, 0.1]), r"cost_joule must .* \[1\], got \[2\]"),
        (lambda: EnergyAccount([1.0]).can_pay([np.inf]), "cost_joule must be finite .* got inf"),
        (
            lambda: EnergyAccount([1.0]).load_state_dict({}),
            "state must have the entry remaining_joule, got none",
        ),
        (
            lambda: EnergyAccount([1.0]).load_state_dict(EnergyAccount([1.0, 1.0]).state_dict()),
            "state: remaining_joule must be 1 numbers",
        ),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
