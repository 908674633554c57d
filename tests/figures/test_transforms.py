from __future__ import annotations

import math

import pandas as pd
import pytest
from rows import example_table, finals, make_table, table_of
from scipy import stats

from dmmlkd_ext.experiments.results import pick
from dmmlkd_ext.experiments.statistics import difference_of, paired_difference
from paper_figures.judge import comparisons, transforms

KEYS = ["dataset", "setting"]


def compare(table: pd.DataFrame) -> pd.DataFrame:
    return comparisons.compare(transforms.final_accuracy(table), KEYS)


def test_accuracy_of_a_round_is_the_mean_and_the_worst_over_devices() -> None:
    accuracy = transforms.accuracy_by_run(make_table({("dmml", 0): [[0.1, 0.3], [0.5, 0.9]]}))
    assert accuracy["round"].tolist() == [1, 2]
    assert accuracy["mean"].tolist() == pytest.approx([0.2, 0.7])
    assert accuracy["worst"].tolist() == [0.1, 0.5]


def test_accuracy_is_the_mean_over_devices_not_the_median() -> None:
    table = make_table({("dmml", 0): [[0.1, 0.2, 0.9]]})
    assert transforms.accuracy_by_run(table)["mean"].item() == pytest.approx(0.4)
    assert transforms.final_accuracy(table)["mean"].item() == pytest.approx(0.4)


def test_pairs_are_of_a_seed_in_whatever_order_they_come() -> None:
    ours, theirs = pd.Series({1: 0.7, 0: 0.5, 2: 0.9}), pd.Series({2: 0.8, 0: 0.4, 1: 0.5})
    for difference in (difference_of(ours, theirs), paired_difference(ours, theirs)):
        assert difference.mean == pytest.approx(0.4 / 3)
        assert difference.p_value == pytest.approx(stats.ttest_1samp([0.1, 0.2, 0.1], 0).pvalue)
    lacking = difference_of(ours, theirs.drop(0).rename({2: 5}))
    assert (lacking.mean, lacking.count) == (pytest.approx(0.2), 1)
    rows = pd.DataFrame(
        {
            "dataset": "watch",
            "method": ["dmml"] * 3 + ["dmml-kd"] * 3,
            "seed": [2, 0, 1, 0, 1, 2],
            "mean": [0.8, 0.4, 0.5, 0.5, 0.7, 0.9],
        }
    )
    compared = comparisons.compare(rows, ["dataset"], values=["mean"]).set_index("method").loc["dmml-kd"]
    assert (compared["difference"], compared["p"]) == (pytest.approx(0.4 / 3), pytest.approx(difference.p_value))


def test_p_is_that_of_the_margin_on_the_side_of_a_loss() -> None:
    losses = pd.Series({0: -0.03, 1: -0.05, 2: -0.02})
    found = difference_of(losses + 0.8, pd.Series(0.8, index=losses.index), margin=0.05)
    assert found.p_value == pytest.approx(stats.ttest_1samp(losses, -0.05).pvalue)
    assert found.mean == pytest.approx(losses.mean())


def test_only_test_accuracy_is_counted() -> None:
    table = example_table()
    other = table.assign(part="validation", value=0.0), table.assign(metric="loss", value=9.0)
    mixed = pd.concat([table, *other], ignore_index=True)
    pd.testing.assert_frame_equal(transforms.accuracy_by_run(mixed), transforms.accuracy_by_run(table))


def test_the_final_accuracy_is_the_last_round_not_the_best() -> None:
    final = transforms.final_accuracy(make_table({("dmml", 0): [[0.9], [0.5]]}))
    assert final[["round", "mean"]].to_numpy().tolist() == [[2, 0.5]]


def test_a_run_in_two_settings_counts_in_both() -> None:
    rows = [{"run": "same", "setting": name, "device": 0, "value": 0.5} for name in ("devices", "link loss")]
    assert len(transforms.final_accuracy(table_of(rows))) == 2


def test_seeds_are_averaged_with_the_student_interval() -> None:
    curve = transforms.summarize(transforms.accuracy_by_run(example_table()), [*KEYS, "method", "round"])
    assert len(curve) == 2 * 2 * 2
    row = curve.query("method == 'dmml' and setting == 'moderate' and round == 2").iloc[0]
    assert row["mean"] == pytest.approx(0.6)
    assert row["high"] - row["mean"] == pytest.approx(stats.t.ppf(0.975, 2) * 0.1 / math.sqrt(3))
    assert row["seeds"] == 3


def test_rows_are_in_the_order_of_figures() -> None:
    rows = transforms.summarize(transforms.accuracy_by_run(example_table()), [*KEYS, "method", "round"])
    assert list(dict.fromkeys(rows["setting"])) == ["moderate", "severe"]
    assert list(dict.fromkeys(rows["method"])) == ["dmml", "dmml-kd"]
    assert rows["round"].tolist() == [1, 2] * 4
    shuffled = rows.sample(frac=1, random_state=0)
    pd.testing.assert_frame_equal(transforms.in_figure_order(shuffled), rows)


def test_the_comparison_takes_the_last_round_and_pairs_by_seed() -> None:
    comparison = compare(example_table())
    ours = comparison.query("method == 'dmml-kd' and setting == 'moderate'").iloc[0]
    assert ours["mean"] == pytest.approx((0.7 + 0.7 + 0.8) / 3)
    assert ours["worst"] == pytest.approx((0.6 + 0.6 + 0.7) / 3)
    differences = [0.1, 0.2, 0.1]
    assert ours["difference"] == pytest.approx(sum(differences) / 3)
    assert ours["p"] == pytest.approx(stats.ttest_1samp(differences, 0).pvalue)
    assert ours["pairs"] == 3
    reference = comparison.query("method == 'dmml' and setting == 'moderate'").iloc[0]
    assert math.isnan(reference["difference"])
    assert math.isnan(reference["p"])


def test_a_seed_that_failed_is_left_out_of_the_pairs() -> None:
    table = example_table()
    comparison = compare(table[~((table["method"] == "dmml") & (table["seed"] == 1))])
    ours = comparison.query("method == 'dmml-kd' and setting == 'moderate'").iloc[0]
    assert (ours["seeds"], ours["pairs"]) == (3, 2)
    assert ours["difference"] == pytest.approx(0.1)


def test_without_the_reference_there_are_no_differences() -> None:
    table = example_table()
    comparison = compare(table[table["method"] == "dmml-kd"])
    assert comparison["difference"].isna().all()
    assert comparison["pairs"].tolist() == [0, 0]


def test_settings_are_compared_like_methods() -> None:
    values = {("dmml-kd", seed): 0.5 + 0.1 * seed for seed in range(3)}
    rows = finals(values, setting="default") + finals({key: value - 0.1 for key, value in values.items()}, setting="x")
    final = transforms.final_accuracy(table_of([{**row, "run": f"{index}"} for index, row in enumerate(rows)]))
    changed = comparisons.compare(final, ["dataset", "method"], "default", column="setting").set_index("setting")
    assert changed.loc["x", "difference"] == pytest.approx(-0.1)


def test_numbers_of_devices_and_of_the_population_are_told_apart() -> None:
    table = table_of([{"device": 0, "value": 1.0}, {"device": None, "value": 2.0}, {"value": float("nan")}])
    assert pick(table, "accuracy", of_devices=True)["value"].tolist() == [1.0]
    assert pick(table, "accuracy", of_devices=False)["value"].tolist() == [2.0]
    assert pick(table, "accuracy", ["validation"]).empty
