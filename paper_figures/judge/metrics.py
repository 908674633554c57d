"""How well each balance metric ranks modalities, what its cuts gain over the controls, and which metric is chosen."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import pandas as pd

from dmmlkd_ext.experiments.results import last_round, pick
from dmmlkd_ext.experiments.statistics import mean_interval
from paper_figures.plan.experiments import METRICS

CHOOSING = tuple(range(5))
"""Seeds by whose validation data a metric is chosen."""
CONFIRMING = tuple(range(10, 20))
"""Seeds by whose test data the choice is confirmed; no other run has them."""
CONTROLS = {"uniform": "", "random": "-random", "reversed": "-reversed"}
"""Control -> how the names of its methods end."""
PLACE = ["dataset", "base"]
"""What the differences of a metric are averaged over: datasets, and the methods that are balanced."""
RULE = (
    "Chosen is, of the metrics that are made of the parameter variation, the one with the highest mean over `random` "
    "of those whose mean differences to `uniform` and to `random` are above zero and no difference is clearly below, "
    f"on validation data and the seeds {CHOOSING[0]} to {CHOOSING[-1]}"
)
REFERENCES = tuple(setting for setting, (metric, _) in METRICS.items() if metric == "score")
"""Settings whose metric is not made of the parameter variation; they are not chosen."""


def agreement(table: pd.DataFrame) -> pd.DataFrame:
    """Return how often each metric ranks two modalities of a device as their losses do, in runs that it balances.

    Returns:
        Columns setting, dataset, base, early (rounds 1 to 3), tenth (round 10), last; means over seeds.
    """
    rows = pick(table, "ranking_agreement", of_devices=False)
    rows = rows[rows["method"].str.endswith("-tb")]
    rows = rows.assign(base=rows["method"].str.removesuffix("-tb"))
    keys = ["setting", *PLACE]
    ends = rows.groupby("run")["round"].transform("max")
    parts = {"early": rows["round"] <= 3, "tenth": rows["round"] == 10, "last": rows["round"] == ends}
    means = {name: rows[chosen].groupby(keys)["value"].mean() for name, chosen in parts.items()}
    return pd.DataFrame(means).reset_index()


def gains(table: pd.DataFrame, part: str, seeds: Sequence[int]) -> pd.DataFrame:
    """Return what each metric's balance gains over each control, paired by seed, in final accuracy on one side.

    Args:
        table: of the experiment `metrics`.
        part: `validation` or `test`.
        seeds: those that count.

    Returns:
        Columns setting, control, dataset, base, difference, low, high, pairs; with dataset and base empty, the mean
        over the places, of the seeds that have all of them.
    """
    rows = pick(last_round(table), "accuracy", [part], of_devices=True)
    rows = rows[rows["seed"].isin(list(seeds))]
    final = rows.groupby(["setting", "dataset", "method", "seed"])["value"].mean().reset_index()
    found = []
    for setting, of_metric in final.groupby("setting"):
        for control, suffix in CONTROLS.items():
            by_place = dict(_by_place(of_metric, suffix))
            for (dataset, base), values in by_place.items():
                found.append((setting, control, dataset, base, *_interval(values)))
            if by_place:
                found.append((setting, control, "", "", *_interval(pd.DataFrame(by_place).dropna().mean(axis=1))))
    columns = ["setting", "control", *PLACE, "difference", "low", "high", "pairs"]
    return pd.DataFrame(found, columns=columns)


def _by_place(final: pd.DataFrame, suffix: str) -> Iterator[tuple[tuple[str, str], pd.Series]]:
    """Yield the differences by seed of each dataset and method that both have."""
    for dataset, rows in final.groupby("dataset"):
        by_method = rows.pivot(index="seed", columns="method", values="value")
        for base in ("dmml", "dmml-kd"):
            if {f"{base}-tb", f"{base}{suffix}"} <= set(by_method.columns):
                values = (by_method[f"{base}-tb"] - by_method[f"{base}{suffix}"]).dropna()
                if len(values):
                    yield (str(dataset), base), values


def _interval(values: pd.Series) -> tuple[float, float, float, int]:
    if values.empty:
        return float("nan"), float("nan"), float("nan"), 0
    interval = mean_interval(values.to_numpy())
    return interval.mean, interval.low, interval.high, interval.count


def summarize(differences: pd.DataFrame) -> pd.DataFrame:
    """Return a row per metric: the mean difference to each control, its interval, its worst place and the clear losses.

    Returns:
        Columns setting and, for each control: its name, with `_low`, `_high`, `_worst` (the least of the places'
        differences) and `_below` (how many places' intervals lie below zero).
    """
    found = []
    for setting, rows in differences.groupby("setting", sort=False):
        row: dict[str, object] = {"setting": setting}
        for control in CONTROLS:
            of_control = rows[rows["control"] == control]
            for mean in of_control[of_control["dataset"] == ""].to_dict("records"):
                row |= {control: mean["difference"], f"{control}_low": mean["low"], f"{control}_high": mean["high"]}
            places = of_control[of_control["dataset"] != ""]
            row |= {f"{control}_worst": places["difference"].min(), f"{control}_below": int((places["high"] < 0).sum())}
        found.append(row)
    return pd.DataFrame(found)


def choose(summary: pd.DataFrame) -> str | None:
    """Return the metric that `RULE` chooses; None where none is above both controls without a clear loss.

    Example:
        >>> row = {"uniform": 0.02, "random": 0.01, "uniform_below": 0, "random_below": 0}
        >>> rows = [{"setting": "early", **row}, {"setting": "score", **row, "random": 0.05}]
        >>> choose(pd.DataFrame([*rows, {"setting": "rank", **row, "random_below": 1, "random": 0.03}]))
        'early'
    """
    if summary.empty or not {"uniform", "random"} <= set(summary.columns):
        return None
    able = (summary["uniform"] > 0) & (summary["random"] > 0)
    able &= (summary["uniform_below"] == 0) & (summary["random_below"] == 0)
    able &= ~summary["setting"].isin(list(REFERENCES))
    chosen = summary[able].sort_values("random", ascending=False, kind="stable")
    return str(chosen["setting"].iloc[0]) if len(chosen) else None
