"""From the tidy table to accuracies and their means: pure functions, tested on rows made by hand."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from dmmlkd_ext.experiments import statistics
from dmmlkd_ext.experiments.results import accuracy_by_round, last_round, pick
from dmmlkd_ext.experiments.show.labels import in_order
from paper_figures.plan.experiments import SETTING_ORDER

RUN = ["experiment", "dataset", "setting", "level", "method", "seed", "run"]
"""What tells one use of a run from another: a run may serve two experiments, or two settings of one."""


RISING = 0.005
"""Rise in the last tenth of the rounds above which a curve is marked: half a point."""


def accuracy_by_run(table: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean and the worst device's test accuracy of each evaluated round of each run; no methods are all.

    Returns:
        Columns of `RUN`, round, mean, worst.
    """
    return accuracy_by_round(table, RUN, methods)


def final_accuracy(table: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean and the worst device's test accuracy in the last round of each run, as `accuracy_by_run`."""
    return accuracy_by_run(last_round(table), methods)


def device_accuracy(table: pd.DataFrame, methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return each device's test accuracy in the last round: columns of `RUN`, device, value."""
    rows = pick(last_round(table), "accuracy", ["test"], methods, of_devices=True)
    return rows[[*RUN, "device", "value"]].reset_index(drop=True)


def last_rise(curves: pd.DataFrame, keys: Sequence[str]) -> pd.DataFrame:
    """Return by how much curves rise in the last tenth of their rounds: a method that still learns is judged early.

    The rise is that since the last evaluated round at or before nine tenths, scaled to one tenth.

    Args:
        curves: with columns round and mean, a row per evaluated round of each curve.
        keys: columns that tell curves apart.

    Returns:
        Columns `keys`, rise; not a number where nothing was evaluated by nine tenths.

    Example:
        >>> curves = pd.DataFrame({"method": "a", "round": [10, 35, 40], "mean": [0.5, 0.6, 0.61]})
        >>> round(last_rise(curves, ["method"])["rise"].item(), 4)
        0.008
    """
    ordered = curves.sort_values("round", kind="stable")
    last = ordered.groupby(list(keys), dropna=False).tail(1)
    ends = last[[*keys, "round"]].rename(columns={"round": "end"})
    before = ordered.merge(ends, on=list(keys))
    before = before[before["round"] <= 0.9 * before["end"]].groupby(list(keys), dropna=False).tail(1)
    both = last.merge(before[[*keys, "round", "mean"]], on=list(keys), how="left", suffixes=("", "_before"))
    rounds = both["round"] - both["round_before"]
    return both[list(keys)].assign(rise=(both["mean"] - both["mean_before"]) * 0.1 * both["round"] / rounds)


def summarize(rows: pd.DataFrame, keys: Sequence[str], value: str = "mean") -> pd.DataFrame:
    """Return `dmmlkd_ext.experiments.statistics.summarize`, in the order of figures."""
    return in_figure_order(statistics.summarize(rows, keys, value))


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
    return rows.sort_values([name for name in _ORDER if name in rows], key=_rank, kind="stable", ignore_index=True)


def by_method(rows: pd.DataFrame) -> Iterator[tuple[str, pd.DataFrame]]:
    """Yield each method with its rows, in the order of legends."""
    for method in in_order(rows["method"]):
        yield method, rows[rows["method"] == method]


_ORDER = (
    *("dataset", "experiment", "setting", "level", "topology", "modality", "block", "held"),
    *("method", "device", "round"),
)


def _rank(column: pd.Series) -> pd.Series:
    """Return by what a column is sorted: settings and methods by their places, others by themselves."""
    if column.name not in ("setting", "method"):
        return column
    order = in_order(column) if column.name == "method" else [*SETTING_ORDER, *sorted(set(column) - set(SETTING_ORDER))]
    return column.map({name: place for place, name in enumerate(order)})
