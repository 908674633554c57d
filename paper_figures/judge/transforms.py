"""From the tidy table to the numbers that are drawn: pure functions, tested on rows made by hand."""

from __future__ import annotations

import math
from collections.abc import Sequence

import pandas as pd

from dmmlkd_ext.experiments.results import last_round
from dmmlkd_ext.experiments.statistics import Interval, PairedDifference, holm, mean_interval, paired_difference
from paper_figures.experiments import REFERENCE_METHOD
from paper_figures.inputs import pick
from paper_figures.style import in_order

RUN = ["experiment", "dataset", "setting", "level", "method", "seed", "run"]
"""What tells one use of a run from another: a run may serve two experiments, or two settings of one."""
SETTING_ORDER = ("default", "moderate", "severe", "topology", "devices", "link loss")
NOTHING = PairedDifference(math.nan, math.nan, math.nan, 0, math.nan)


def accuracy_by_run(table: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean and the worst device's test accuracy of each evaluated round of each run.

    Args:
        table: the tidy table.
        methods: those to keep; empty keeps all.

    Returns:
        Columns of `RUN`, round, mean, worst.
    """
    rows = pick(table, "accuracy", ["test"], methods, of_devices=True)
    grouped = rows.groupby([*RUN, "round"], dropna=False, sort=True)["value"]
    return grouped.agg(mean="mean", worst="min").reset_index()


def final_accuracy(table: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean and the worst device's test accuracy in the last round of each run, as `accuracy_by_run`."""
    return accuracy_by_run(last_round(table), methods)


def device_accuracy(table: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return each device's test accuracy in the last round: columns of `RUN`, device, value."""
    rows = pick(last_round(table), "accuracy", ["test"], methods, of_devices=True)
    return rows[[*RUN, "device", "value"]].reset_index(drop=True)


def summarize(rows: pd.DataFrame, keys: Sequence[str], value: str = "mean") -> pd.DataFrame:
    """Return the mean over seeds of a column with its 95% Student interval.

    Args:
        rows: a row a repetition.
        keys: columns that are held fixed.
        value: the column that is averaged.

    Returns:
        Columns `keys`, mean, low, high, seeds, in the order of figures.
    """
    found = []
    for key, group in rows.groupby(list(keys), dropna=False):
        interval = mean_interval(group[value].to_numpy())
        found.append((*key, interval.mean, interval.low, interval.high, interval.count))
    return in_figure_order(pd.DataFrame(found, columns=[*keys, "mean", "low", "high", "seeds"]))


def compare(
    rows: pd.DataFrame,
    keys: Sequence[str],
    reference: str = REFERENCE_METHOD,
    values: Sequence[str] = ("mean", "worst"),
    column: str = "method",
) -> pd.DataFrame:
    """Return each method's values and the difference of the first one to a reference over the same seeds.

    Args:
        rows: a row a run.
        keys: columns that are held fixed when methods are compared.
        reference: the method that the others are compared with; where it has no runs, differences are missing.
        values: columns that are averaged; the first one is compared.
        column: what is compared, if it is not methods.

    Returns:
        A row for each of `keys` and method: each of `values` with `_low`, `_high` of its 95% interval over seeds;
        `difference` with `_low`, `_high`; `p` of the paired t test and `p_holm`, adjusted over all rows; `seeds`
        and `pairs`, how many were used.
    """
    found = []
    for key, setting in rows.groupby(list(keys), dropna=False):
        base = setting[setting[column] == reference].set_index("seed")[values[0]]
        for name, group in setting.groupby(column):
            row = {**dict(zip(keys, key, strict=True)), column: name, "seeds": len(group)}
            for value in values:
                row |= _columns(value, mean_interval(group[value].to_numpy()))
            own = group.set_index("seed")[values[0]]
            difference = NOTHING if name == reference else difference_of(own, base)
            row |= _columns("difference", difference)
            found.append(row | {"p": difference.p_value, "pairs": difference.count})
    result = pd.DataFrame(found)
    if not result.empty:
        result["p_holm"] = holm(result["p"].tolist())
    return in_figure_order(result)


def difference_of(values: pd.Series, base: pd.Series) -> PairedDifference:
    """Compare over the pairs that both have; a run that failed must not silence the others."""
    common = values.index.intersection(base.index)
    return NOTHING if common.empty else paired_difference(values.loc[common], base.loc[common])


def by_seed(rows: pd.DataFrame, value: str = "mean", **fixed: object) -> pd.Series:
    """Return a column by seed of the rows in which other columns have fixed values.

    Example:
        >>> rows = pd.DataFrame({"method": ["a", "b"], "seed": [0, 0], "mean": [0.5, 0.6]})
        >>> by_seed(rows, method="b").to_dict()
        {0: 0.6}
    """
    chosen = rows
    for name, wanted in fixed.items():
        chosen = chosen[chosen[name] == wanted]
    return chosen.set_index("seed")[value].sort_index()


def in_figure_order(rows: pd.DataFrame) -> pd.DataFrame:
    """Sort rows: datasets by name, the mildest setting first, levels, methods in the order of legends, rounds."""
    if rows.empty:
        return rows
    ranks: dict[str, pd.Series] = {}
    for name in ("dataset", "experiment"):
        if name in rows:
            ranks[name] = rows[name]
    if "setting" in rows:
        known = {setting: index for index, setting in enumerate(SETTING_ORDER)}
        ranks["_setting"] = rows["setting"].map(lambda setting: known.get(setting, len(known)))
        ranks["setting"] = rows["setting"]
    for name in ("level", "topology", "modality", "block", "held"):
        if name in rows:
            ranks[name] = rows[name]
    if "method" in rows:
        order = {method: index for index, method in enumerate(in_order(rows["method"]))}
        ranks["_method"] = rows["method"].map(order)
    for name in ("device", "round"):
        if name in rows:
            ranks[name] = rows[name]
    keys = pd.DataFrame(ranks)
    return rows.loc[keys.sort_values(list(ranks), kind="stable").index].reset_index(drop=True)


def _columns(name: str, interval: Interval) -> dict[str, float]:
    return {name: interval.mean, f"{name}_low": interval.low, f"{name}_high": interval.high}
