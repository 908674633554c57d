from __future__ import annotations

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from dmmlkd_ext.experiments.statistics import holm, mean_interval, paired_difference


def test_the_student_interval_is_the_textbook_one() -> None:
    # mean 2, standard error sqrt(1/3), the 97.5% quantile of t with 2 degrees of freedom is 4.30265
    interval = mean_interval([1.0, 2.0, 3.0])
    assert interval.mean == pytest.approx(2.0)
    half_width = 4.302652729911275 / math.sqrt(3)
    assert (interval.low, interval.high) == pytest.approx((2.0 - half_width, 2.0 + half_width))
    assert interval.count == 3


def test_the_student_interval_covers_as_often_as_it_says() -> None:
    draws = np.random.default_rng(0).normal(1.0, 2.0, size=(2000, 4))
    covered = [interval.low <= 1.0 <= interval.high for interval in map(mean_interval, draws)]
    assert np.mean(covered) == pytest.approx(0.95, abs=0.02)


def test_one_value_has_no_interval_and_equal_values_an_empty_one() -> None:
    assert math.isnan(mean_interval([0.5]).low)
    equal = mean_interval([0.5, 0.5, 0.5])
    assert (equal.low, equal.high) == (0.5, 0.5)


@pytest.mark.parametrize(
    ("values", "options", "message"),
    [
        ([], {}, "values must be a list of at least one number"),
        ([[1.0]], {}, "values must be a list of at least one number"),
        ([1.0, math.nan], {}, "values must be finite"),
        ([1.0], {"level": 1.0}, "level must be between 0 and 1, got 1.0"),
    ],
)
def test_bad_values_are_refused(values: list, options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        mean_interval(values, **options)


def test_pairs_are_matched_by_index_whatever_their_order() -> None:
    ours = pd.Series([0.9, 0.7, 0.8], index=[2, 0, 1])
    theirs = pd.Series([0.6, 0.75, 0.7], index=[0, 1, 2])
    difference = paired_difference(ours, theirs)
    assert difference.mean == pytest.approx((0.1 + 0.05 + 0.2) / 3)
    assert difference.p_value == pytest.approx(stats.ttest_1samp([0.1, 0.05, 0.2], 0.0).pvalue)
    low, high = stats.ttest_1samp([0.1, 0.05, 0.2], 0.0).confidence_interval(0.95)
    assert (difference.low, difference.high) == pytest.approx((low, high))


def test_pairs_that_do_not_match_are_named() -> None:
    with pytest.raises(ValueError, match=r"values lacks \[1\], reference lacks \[2\]"):
        paired_difference(pd.Series({0: 1.0, 2: 1.0}), pd.Series({0: 1.0, 1: 1.0}))
    with pytest.raises(ValueError, match=r"reference must have one value per pair, several have \[0\]"):
        paired_difference(pd.Series({0: 1.0}), pd.Series([1.0, 2.0], index=[0, 0]))


def test_differences_without_spread_have_no_p_value() -> None:
    same = pd.Series({0: 0.5, 1: 0.75})
    difference = paired_difference(same, same)
    assert (difference.low, difference.high) == (0.0, 0.0)
    assert math.isnan(difference.p_value)
    almost = paired_difference(pd.Series([0.6, 0.8]), pd.Series([0.5, 0.7]))  # 0.1 twice, but for rounding
    assert almost.low == almost.high
    assert math.isnan(almost.p_value)


def test_holm_against_a_worked_example() -> None:
    assert holm([0.01, 0.04, 0.03, 0.005]) == pytest.approx([0.03, 0.06, 0.06, 0.02])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([]) == []
    adjusted = holm([0.01, math.nan, 0.02])
    assert adjusted[0] == pytest.approx(0.02)
    assert math.isnan(adjusted[1])
    with pytest.raises(ValueError, match="p_values must be between 0 and 1"):
        holm([1.5])
