"""The forms of the balance metric, and the control that permutes it, against their definitions in METHOD 5."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from dmmlkd_ext.balance import (
    BalanceConfig,
    Observation,
    balance_metric,
    needs_of,
    plan_iterations,
    ranking_agreement,
    register_metric,
    update_metric,
)
from dmmlkd_ext.balance.metrics import METRICS, QUANTITIES
from dmmlkd_ext.training.round import Simulation
from tests.training.synthetic import SMALL_TRAINING, make_dataset, make_simulation, plain_method

NAN = float("nan")


def speeds_of(name: str, rounds: list[dict[str, list[float]]], iterations: list[list[int]] | None = None) -> np.ndarray:
    """Return the speeds of one device after some rounds, each given by its quantities."""
    memory: dict[str, np.ndarray] = {}
    for index, quantities in enumerate(rounds):
        trained = [2] * len(next(iter(quantities.values()))) if iterations is None else iterations[index]
        arrays = {key: np.array([values], dtype=float) for key, values in quantities.items()}
        seen = Observation(np.array([trained]), np.full(len(trained), 4), arrays)
        speeds = update_metric(BalanceConfig(metric=name), seen, memory)
    return speeds[0]


def moved(*distances: float) -> dict[str, list[float]]:
    return {"distance": list(distances), "start": [2.0] * len(distances)}


def test_the_variation_is_the_one_of_the_speeds_tests():
    np.testing.assert_allclose(speeds_of("variation", [moved(8.0, 4.0), moved(4.0, 4.0)]), [1.5, 1.0])


def test_early_freezes_after_three_observed_rounds():
    rounds = [moved(4.0, 8.0), moved(8.0, 8.0), moved(12.0, 8.0), moved(99.0, 8.0), moved(99.0, 80.0)]
    # The second modality pauses in the second round, so that its third observation is in the fourth.
    pause = [[2, 2], [2, 0], [2, 2], [2, 2], [2, 2]]
    np.testing.assert_allclose(speeds_of("early", rounds, pause), [2.0, 2.0])
    np.testing.assert_allclose(speeds_of("early", rounds[:1]), [1.0, 2.0])


def test_first_is_of_the_encoder_in_the_first_round():
    rounds = [
        {"encoder distance": [6.0, 3.0], "encoder start": [3.0, 3.0]},
        {"encoder distance": [0.1, 9.0], "encoder start": [3.0, 3.0]},
    ]
    np.testing.assert_allclose(speeds_of("first", rounds), [1.0, 0.5])


def test_slowdown_calls_fast_what_moved_and_moves_no_more():
    still = speeds_of("slowdown", [moved(8.0, 8.0), moved(0.0, 8.0)])
    np.testing.assert_allclose(still, [2.0 * np.sqrt(2.0 / 1.0), 2.0])


def test_root_divides_by_the_root_of_the_iterations():
    np.testing.assert_allclose(speeds_of("root", [moved(8.0, 8.0)], [[4, 16]]), [2.0, 1.0])


def test_movement_is_of_the_whole_round_so_that_what_paused_is_slow():
    np.testing.assert_allclose(speeds_of("movement", [moved(8.0, 2.0)], [[4, 1]]), [4.0, 1.0])
    np.testing.assert_allclose(speeds_of("movement", [moved(8.0, 8.0), moved(8.0, 0.0)], [[4, 4], [4, 0]]), [4.0, 2.0])


def test_radial_is_the_share_of_the_heads_variation_that_lengthens_it():
    rounds = [{"head distance": [2.0, 2.0], "head start": [3.0, 3.0], "head end": [4.0, 2.0]}]
    np.testing.assert_allclose(speeds_of("radial", rounds), np.exp([1.0, -1.0]))


def test_drift_is_the_variation_over_the_distance_to_what_is_mixed():
    alone = speeds_of("drift", [{**moved(6.0, 6.0), "mixed distance": [2.0, 0.0]}])
    np.testing.assert_array_equal(alone, [3.0, NAN])  # an isolated device says nothing


def test_rank_takes_another_order_after_three_rounds_of_it():
    rounds = [moved(1.0, 2.0, 3.0)] + 6 * [moved(900.0, 2.0, 3.0)]
    orders = [speeds_of("rank", rounds[:count]).tolist() for count in range(1, 8)]
    assert orders == [[1, 2, 3]] * 3 + [[3, 1, 2]] * 4
    swinging = [moved(1.0, 2.0), moved(100.0, 2.0), moved(1.0, 400.0), moved(9000.0, 2.0), moved(1.0, 99000.0)]
    assert speeds_of("rank", swinging).tolist() == [1, 2]


def test_the_score_is_known_of_what_is_paused_too():
    rounds = [{"score": [0.4, 0.2]}, {"score": [0.6, 0.4]}]
    np.testing.assert_allclose(speeds_of("score", rounds, [[2, 2], [2, 0]]), [0.5, 0.3])


@pytest.mark.parametrize("name", METRICS.names())
def test_what_did_not_train_leaves_a_metric_as_it_was(name):
    first = {quantity: [1.0, 2.0, 3.0] for quantity in QUANTITIES}
    later = {quantity: [5.0, 7.0, 5.0] for quantity in QUANTITIES if quantity != "score"} | {"score": [NAN] * 3}
    if name == "movement":
        pytest.skip("a pause is no movement")
    before = speeds_of(name, [first])
    np.testing.assert_array_equal(speeds_of(name, [first, later], [[2, 2, 2], [0, 0, 0]]), before)
    assert (balance_metric(before[None], np.ones((1, 3), dtype=bool)) > 0).all()


def part_norms(simulation: Simulation, name: str, begin: torch.Tensor, mixed: torch.Tensor) -> dict[str, np.ndarray]:
    """Return what a metric may ask for, from the views of the layout."""
    block, layout = simulation.population.blocks[name], simulation.population.network.layouts[name]
    before, after = layout.views(begin), layout.views(block.local)
    parts = {"head": ["head"], "encoder": [key for key in before if key not in ("head", "projection")]}

    def norm(of: list[torch.Tensor]) -> np.ndarray:
        return torch.cat([values.flatten(1) for values in of], 1).double().norm(dim=1).numpy()

    found = {"mixed distance": norm([block.local - mixed])}
    for part, keys in parts.items():
        found[f"{part} distance"] = norm([after[key] - before[key] for key in keys])
        found[f"{part} start"] = norm([before[key] for key in keys])
    return found | {"head end": norm([after["head"]])}


def test_a_round_measures_what_the_metric_asks_for_and_nothing_else():
    measured: list[Observation] = []
    wanted = [name for name in QUANTITIES if name not in ("distance", "start")]

    def note(seen, memory):
        measured.append(seen)
        return seen.per_iteration("distance")

    register_metric("noting", note, wanted)
    simulation = make_simulation(make_dataset(missing=0.2), method=plain_method("dmml-kd-tb", metric="noting"))
    for _ in range(2):
        begin = {name: block.start.clone() for name, block in simulation.population.blocks.items()}
        simulation.run_round()
        for column, name in enumerate(simulation.population.network.modalities):
            block = simulation.population.blocks[name]
            for quantity, expected in part_norms(simulation, name, begin[name], block.start).items():
                values = measured[-1].quantities[quantity][:, column]
                np.testing.assert_allclose(values[block.devices], expected, rtol=1e-4, err_msg=quantity)
                assert np.isnan(np.delete(values, block.devices)).all()
            score = measured[-1].quantities["score"][block.devices, column]
            assert ((score > 0) & (score < 1)).all()
    register_metric("noting", note)
    simulation = make_simulation(method=plain_method("dmml-kd-tb", metric="noting"))
    simulation.run_round()
    assert measured[-1].quantities.keys() == {"distance", "start"}


def test_the_score_is_the_probability_of_the_true_class_by_the_heads_of_a_modality():
    scores = []
    register_metric("scoring", lambda seen, memory: scores.append(seen["score"]) or seen["score"], ["score"])
    simulation = make_simulation(method=plain_method("dmml-tb", metric="scoring"))
    batches = []
    draw = simulation.sampler.draw
    simulation.sampler.draw = lambda *arguments: batches.append(draw(*arguments)) or batches[-1]
    simulation.run_round()
    population, name, device = simulation.population, "wave", 3
    block = population.blocks[name]
    row = list(block.devices).index(device)
    weights = population.network.layouts[name].views(block.local[row : row + 1])
    head = population.network.layouts["shared"].views(population.blocks["shared"].local[device : device + 1])["head"]
    inputs = batches[0].features(0, name, torch.tensor([device]))
    parts = population.network.forward(name, weights, head, inputs)
    probability = (parts.common_logits + parts.specific_logits)[0].softmax(-1)
    labels = batches[0].labels(0, torch.tensor([device]))[0]
    expected = probability[torch.arange(len(labels)), labels].mean().item()
    assert scores[0][device, 1] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", METRICS.names())
def test_every_metric_plans_within_the_energy(name):
    simulation = make_simulation(method=plain_method("dmml-kd-tb", metric=name))
    for _ in range(3):
        record = simulation.run_round()
    known = [value for values in record["balance_metric"].values() for value in values if value is not None]
    alone = 2 if name == "drift" else 0  # whose neighbours lack the modality: nothing is mixed
    assert len(known) == simulation.holds.sum() - alone
    assert all(value >= 0 for value in known)


def random_plans(seed: int, metric: list[list[float]], energy: list[list[float]], available: float) -> np.ndarray:
    values, holds = np.array(metric), ~np.isnan(np.array(metric))
    many = len(values)
    generator = np.random.default_rng(seed)
    config = BalanceConfig("random")
    costs = np.array(energy)
    budgets = np.full(many, available)
    return plan_iterations(config, values, costs, budgets, budgets, 9, holds, generator).iterations


def test_random_makes_the_balanced_cuts_in_every_order_alike():
    metric = [[0.5, 1.0, NAN, 1.5]] * 600
    plans = random_plans(0, metric, [[1.0, 1.0, 0.0, 1.0]] * 600, 12.0)
    budgets, holds = np.full(600, 12.0), ~np.isnan(np.array(metric))
    costs = np.where(holds, 1.0, 0.0)
    balanced = plan_iterations(BalanceConfig("balanced"), metric, costs, budgets, budgets, 9, holds).iterations
    np.testing.assert_array_equal(np.sort(plans, axis=1), np.sort(balanced, axis=1))
    assert not plans[:, 2].any()
    orders, counts = np.unique(plans, axis=0, return_counts=True)
    assert len(orders) == 6
    assert counts.min() > 60
    np.testing.assert_array_equal(plans, random_plans(0, metric, costs.tolist(), 12.0))
    assert (plans != random_plans(1, metric, costs.tolist(), 12.0)).any()


def test_random_keeps_to_the_energy_where_modalities_cost_unlike():
    plans = random_plans(2, [[0.5, 1.5]] * 50, [[1.0, 5.0]] * 50, 20.0)
    assert len(np.unique(plans, axis=0)) == 2
    assert ((plans * [1.0, 5.0]).sum(axis=1) <= 20.0).all()


def test_random_differs_from_round_to_round_and_not_from_method_to_method():
    def iterations(metric: str) -> list[dict]:
        method = plain_method("dmml-tb", policy="random", metric=metric)
        method = dataclasses.replace(method, balance=dataclasses.replace(method.balance, exponent=0.0))
        simulation = make_simulation(method=method)
        return [simulation.run_round()["local_iterations"] for _ in range(2)]

    assert iterations("variation") == iterations("early")  # with p = 0 nothing is cut


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: BalanceConfig(metric="earlly"), "metric must be one of variation.*'earlly'; did you mean 'early'"),
        (lambda: register_metric("early", print), "must not be one of the package's, got 'early'"),
        (lambda: register_metric("mine", print, ["colour"]), "needs of a metric must be some of .*; got colour"),
        (lambda: register_metric("mine", 3), "metric 'mine' must be callable, got int"),
    ],
)
def test_what_is_no_metric_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()


@pytest.mark.parametrize(
    ("speeds", "words"),
    [([[1.0]], r"must have the shape \[1, 2\], got \[1, 1\]"), ([[-1.0, 1.0]], "must be finite and at least 0")],
)
def test_what_a_metric_of_ones_own_may_not_return(speeds, words):
    register_metric("wrong", lambda seen, memory: np.array(speeds))
    with pytest.raises(ValueError, match=f"speeds of the metric 'wrong' {words}"):
        speeds_of("wrong", [moved(1.0, 1.0)])


def test_a_metric_asks_for_nothing_that_is_there_anyway():
    register_metric("plain", lambda seen, memory: seen["distance"], ["distance", "start"])
    assert needs_of("plain") == needs_of("variation") == frozenset()


def test_agreement_is_of_pairs_of_held_modalities():
    holds = np.array([[True, True, True], [True, False, True], [False, True, False], [True, True, True]])
    speeds = [[3.0, 2.0, 1.0], [1.0, NAN, 2.0], [NAN, 1.0, NAN], [1.0, 1.0, 1.0]]
    losses = [[0.2, 0.1, 0.3], [0.1, NAN, 0.2], [NAN, 0.5, NAN], [0.1, 0.2, 0.3]]
    np.testing.assert_allclose(ranking_agreement(speeds, losses, holds), [2 / 3, 0.0, NAN, 0.5])


def test_a_run_records_the_agreement_if_it_is_asked_to():
    training = dataclasses.replace(SMALL_TRAINING, ranking=True)
    register_metric("knowing", lambda seen, memory: 1.0 / seen["loss"], ["loss"])
    simulation = make_simulation(method=plain_method("dmml-tb", metric="knowing"), training=training)
    plain = make_simulation(method=plain_method("dmml-tb", metric="knowing"))
    for _ in range(2):
        record, same = simulation.run_round(), plain.run_round()
        assert same["ranking_agreement"] is None
        assert {**record, "ranking_agreement": None} == same  # nothing else depends on it
    held = simulation.holds.sum(axis=1)
    assert record["ranking_agreement"] == [1.0 if count > 1 else None for count in held]
