"""Means over repetitions with intervals, and differences of two methods over the same repetitions."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
import pandas as pd
from scipy import stats


@dataclass(frozen=True)
class Interval:
    """A mean and the interval around it; the interval is NaN for a single value."""

    mean: float
    low: float
    high: float
    count: int


@dataclass(frozen=True)
class PairedDifference(Interval):
    """A mean difference over pairs, its interval, and the p value of the two-sided paired t test.

    The p value is NaN where the test is not defined: for one pair, or if all differences are equal.
    """

    p_value: float


NOTHING = PairedDifference(math.nan, math.nan, math.nan, 0, math.nan)
"""The difference where there is no pair."""
LEAST_SEEDS = 5
"""With fewer, a difference has a direction and no verdict: an interval of two or three seeds says nothing."""


def mean_interval(values: Sequence[float] | npt.NDArray[np.float64], level: float = 0.95) -> Interval:
    """Return the mean of repetitions and its confidence interval, by Student's t.

    Args:
        values: one value per repetition, at least one, all finite.
        level: coverage of the interval, between 0 and 1.

    Raises:
        ValueError: an argument is out of range.

    Example:
        >>> interval = mean_interval([0.70, 0.72, 0.74])
        >>> round(interval.mean, 3), round(interval.low, 3), round(interval.high, 3)
        (0.72, 0.67, 0.77)
    """
    data = _check(values, level)
    mean = float(np.mean(data))
    if len(data) == 1:
        return Interval(mean, math.nan, math.nan, 1)
    if _are_equal(data):  # scipy divides by the spread
        return Interval(mean, mean, mean, len(data))
    low, high = stats.t.interval(level, len(data) - 1, loc=mean, scale=stats.sem(data))
    return Interval(mean, float(low), float(high), len(data))


def paired_difference(values: pd.Series, reference: pd.Series, level: float = 0.95) -> PairedDifference:
    """Return the mean of `values` - `reference` over pairs that share data, split and initialization.

    Args:
        values: one value per repetition, indexed by what makes a pair, such as the seed.
        reference: the other method's values, with the same index in any order.
        level: coverage of the interval.

    Raises:
        ValueError: the indices do not match one to one, or a value is not finite.

    Example:
        >>> ours, theirs = pd.Series({0: 0.8, 1: 0.9, 2: 0.7}), pd.Series({2: 0.6, 1: 0.7, 0: 0.7})
        >>> difference = paired_difference(ours, theirs)
        >>> round(difference.mean, 3), round(difference.p_value, 3)
        (0.133, 0.057)
    """
    for name, series in (("values", values), ("reference", reference)):
        if series.index.has_duplicates:
            raise ValueError(f"{name} must have one value per pair, several have {_repeated(series)}")
    missing = reference.index.difference(values.index).tolist()
    surplus = values.index.difference(reference.index).tolist()
    if missing or surplus:
        raise ValueError(
            f"values and reference must have the same pairs; values lacks {missing}, reference lacks {surplus}"
        )
    ours = values.sort_index().to_numpy(dtype=np.float64)
    theirs = reference.sort_index().to_numpy(dtype=np.float64)
    interval = mean_interval(ours - theirs, level)
    defined = interval.count > 1 and not _are_equal(ours - theirs)
    p_value = float(stats.ttest_rel(ours, theirs).pvalue) if defined else math.nan
    return PairedDifference(interval.mean, interval.low, interval.high, interval.count, p_value)


def difference_of(values: pd.Series, base: pd.Series, margin: float = 0.0) -> PairedDifference:
    """Compare over the seeds that both have; a run that failed must not silence the others.

    Args:
        values: one per seed, indexed by the seed.
        base: likewise.
        margin: p is that of the difference being minus the margin; the difference and its interval stay.
    """
    common = values.index.intersection(base.index)
    if common.empty:
        return NOTHING
    difference = paired_difference(values.loc[common], base.loc[common])
    if margin:
        shifted = paired_difference(values.loc[common] + margin, base.loc[common])
        return replace(difference, p_value=shifted.p_value)
    return difference


def summarize(rows: pd.DataFrame, keys: Sequence[str], value: str = "mean") -> pd.DataFrame:
    """Return the mean over seeds of a column with its 95% Student interval.

    Args:
        rows: a row per repetition.
        keys: columns that are held fixed.
        value: the column that is averaged.

    Returns:
        Columns `keys`, mean, low, high, seeds; and `dots` where some of the seeds are too few for an interval to be
        drawn: the values of such seeds as text, else empty.
    """
    found = []
    for key, group in rows.groupby(list(keys), dropna=False):
        interval = mean_interval(group[value].to_numpy())
        found.append((*key, interval.mean, interval.low, interval.high, interval.count, name_dots(group[value])))
    return without_empty_dots(pd.DataFrame(found, columns=[*keys, "mean", "low", "high", "seeds", "dots"]))


def name_dots(values: Iterable[float]) -> str:
    """Return the values of fewer than `LEAST_SEEDS` seeds as text; nothing for more.

    Example:
        >>> name_dots([0.5, 0.25]), name_dots(range(5))
        ('0.5 0.25', '')
    """
    listed = list(values)
    return " ".join(f"{value:.6g}" for value in listed) if len(listed) < LEAST_SEEDS else ""


def without_empty_dots(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the rows without columns of dots that have none."""
    return rows.drop(columns=[name for name in rows if str(name).endswith("dots") and (rows[name] == "").all()])


def compare(
    rows: pd.DataFrame,
    keys: Sequence[str],
    reference: str,
    values: Sequence[str] = ("mean", "worst"),
    column: str = "method",
) -> pd.DataFrame:
    """Return each method's values and the difference of the first one to a reference over the same seeds.

    Args:
        rows: a row per run.
        keys: columns that are held fixed when methods are compared.
        reference: the method that the others are compared with; where it has no runs, differences are missing.
        values: columns that are averaged; the first one is compared.
        column: what is compared, if it is not methods.

    Returns:
        A row for each of `keys` and method: each of `values` with `_low`, `_high` of its 95% interval over seeds;
        `difference` with `_low`, `_high` and `p`; `seeds` and `pairs`, how many were used; and where seeds are few,
        `_dots` of the first value and of the difference, as of `summarize`.
    """
    found = []
    for key, setting in rows.groupby(list(keys), dropna=False):
        base = setting[setting[column] == reference].set_index("seed")[values[0]]
        for name, group in setting.groupby(column):
            row = {**dict(zip(keys, key, strict=True)), column: name, "seeds": len(group)}
            for value in values:
                row |= _columns(value, mean_interval(group[value].to_numpy()))
            ours = group.set_index("seed")[values[0]]
            difference = NOTHING if name == reference else difference_of(ours, base)
            row |= _columns("difference", difference)
            row |= {"p": difference.p_value, "pairs": difference.count, f"{values[0]}_dots": name_dots(ours)}
            found.append(row | {"difference_dots": name_dots((ours - base).dropna() if difference.count else ())})
    return without_empty_dots(pd.DataFrame(found))


def holm(p_values: Sequence[float]) -> list[float]:
    """Return Holm's adjusted p values of a family of tests; a NaN is no test and stays.

    scipy has no Holm adjustment. The i-th smallest of m values is multiplied by m - i + 1, then raised to its
    predecessor if below it, and cut to 1.

    Raises:
        ValueError: a value is outside of 0..1.

    Example:
        >>> [round(value, 3) for value in holm([0.01, 0.04, 0.03])]
        [0.03, 0.06, 0.06]
    """
    values = np.asarray(p_values, dtype=np.float64)
    tests = np.flatnonzero(~np.isnan(values))
    if np.any((values[tests] < 0) | (values[tests] > 1)):
        raise ValueError(f"p_values must be between 0 and 1, got {list(p_values)}")
    order = tests[np.argsort(values[tests], kind="stable")]
    factors = np.arange(len(order), 0, -1)
    adjusted = values.copy()
    adjusted[order] = np.minimum(np.maximum.accumulate(values[order] * factors), 1.0)
    return [float(value) for value in adjusted]


def _check(values: Sequence[float] | npt.NDArray[np.float64], level: float) -> npt.NDArray[np.float64]:
    if not 0 < level < 1:
        raise ValueError(f"level must be between 0 and 1, got {level}")
    data = np.asarray(values, dtype=np.float64)
    if data.ndim != 1 or data.size == 0:
        raise ValueError(f"values must be a list of at least one number, got shape {data.shape}")
    if not np.all(np.isfinite(data)):
        raise ValueError(f"values must be finite, got {data.tolist()}")
    return data


def _are_equal(data: npt.NDArray[np.float64]) -> bool:
    """Return whether values differ by rounding at most."""
    return bool(np.ptp(data) <= 1e-12 * np.max(np.abs(data)))


def _repeated(series: pd.Series) -> list[object]:
    return list(series.index[series.index.duplicated()].unique())


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
