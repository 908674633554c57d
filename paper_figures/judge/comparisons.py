"""Differences over the same seeds, their intervals and p values: what all figures, tables and claims read.

A comparison has one p value wherever it is shown: that of the paired t test, which agrees with the 95% interval beside
it. It is not adjusted for how many comparisons stand in a table: only claims are decided, in `judge.claims`.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace

import pandas as pd

from dmmlkd_ext.experiments.statistics import Interval, PairedDifference, mean_interval, paired_difference
from paper_figures.judge.transforms import final_accuracy, in_figure_order
from paper_figures.plan.labels import REFERENCE_METHOD

NOTHING = PairedDifference(math.nan, math.nan, math.nan, 0, math.nan)
P_VALUES = "p of the paired t test, not adjusted: which claims hold is decided in table_claims alone."
"""For the captions that show p values."""


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


def compare(
    rows: pd.DataFrame,
    keys: Sequence[str],
    reference: str = REFERENCE_METHOD,
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
        `difference` with `_low`, `_high` and `p`; `seeds` and `pairs`, how many were used.
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
            found.append(row | {"p": difference.p_value, "pairs": difference.count})
    return in_figure_order(pd.DataFrame(found))


def over_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Return each method's final accuracy at each level and its paired difference to the reference.

    Returns:
        Columns dataset, setting, level, method and those of `compare`; rows without a level are left out.
    """
    final = final_accuracy(table)
    return compare(final.dropna(subset=["level"]), ["dataset", "setting", "level"])


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
