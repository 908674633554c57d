"""Each form of the balance metric: how well it ranks modalities, and what its cuts gain over the controls."""

from __future__ import annotations

import pandas as pd

from dmmlkd_ext.experiments.show import words
from dmmlkd_ext.experiments.show.labels import label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import metrics
from paper_figures.plan.experiments import METRICS

EXPERIMENTS = ("metrics",)
NEEDS = "test accuracy of the experiment metrics"
TITLE = "Forms of the balance metric"
SIDES = {"chosen by": ("validation", metrics.CHOOSING), "confirmed by": ("test", metrics.CONFIRMING)}
"""Use of a comparison -> the data and the seeds that it is made with."""


def transform(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return a row per metric and use, and the differences of every dataset and method.

    Returns:
        Summaries: setting, use, early, tenth, last (agreement, means over places) and the columns of
        `paper_figures.judge.metrics.summarize`. Differences: use, and the columns of `gains` and of `agreement`.
    """
    if results.table.empty:
        return pd.DataFrame(), pd.DataFrame()
    ranked = metrics.agreement(results.table)
    overall = ranked.groupby("setting")[["early", "tenth", "last"]].mean().reset_index()
    summaries, differences = [], []
    for use, (part, seeds) in SIDES.items():
        found = metrics.gains(results.table, part, seeds)
        if len(found):
            summaries.append(metrics.summarize(found).merge(overall, on="setting", how="left").assign(use=use))
            differences.append(found.merge(ranked, on=["setting", *metrics.PLACE], how="left").assign(use=use))
    if not summaries:
        return pd.DataFrame(), pd.DataFrame()
    summary, every = (pd.concat(parts, ignore_index=True) for parts in (summaries, differences))
    order = {setting: place for place, setting in enumerate(METRICS)}
    summary = summary.sort_values(["use", "setting"], key=lambda names: names.map(lambda name: order.get(name, name)))
    return summary.reset_index(drop=True), every


def show(summary: pd.DataFrame, _differences: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    rows = []
    for row in summary.to_dict("records"):
        agreement = " / ".join("-" if pd.isna(row[name]) else f"{row[name]:.2f}" for name in ("early", "tenth", "last"))
        shown = {"Metric": row["setting"], "Use": row["use"], "Agreement, rounds 1-3 / 10 / last": agreement}
        for control in metrics.CONTROLS:
            gap = words.signed(*words.interval_of(row, control)) if pd.notna(row.get(control)) else "-"
            worst = words.signed(row[f"{control}_worst"], float("nan"), float("nan"))
            shown[f"Minus {control} (worst)"] = gap if gap == "-" else f"{gap} ({worst})"
        rows.append(shown)
    return pd.DataFrame(rows)


def caption(_results: Results, summary: pd.DataFrame, differences: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table, the choice, and every difference."""
    chosen = metrics.choose(summary[summary["use"] == "chosen by"])
    shown = (
        f"{metrics.RULE}: {'none' if chosen is None else f'`{chosen}`'}. Accuracy in the last round with the "
        "balance by each metric minus that with each control at the same energy, in points, the mean over datasets "
        "and methods with the 95% Student interval over seeds, and in brackets the worst dataset and method. The "
        "control `random` makes the same cuts with the metric permuted among a device's modalities in each round. "
        f"Chosen by: validation data, seeds {metrics.CHOOSING[0]} to {metrics.CHOOSING[-1]}; confirmed by: test data, "
        f"seeds {metrics.CONFIRMING[0]} to {metrics.CONFIRMING[-1]}. Agreement: how often the faster of two modalities "
        "of a device is the one whose heads alone have the lower loss on the device's data, 0.5 being chance; in runs "
        "that the metric itself balances."
    )
    return shown, {"Every dataset and method": describe(differences)}


def describe(differences: pd.DataFrame) -> list[str]:
    """Return a line per metric, use, dataset and method."""
    lines = []
    places = differences[differences["dataset"] != ""]
    for key, rows in places.groupby(["use", "setting", *metrics.PLACE], sort=False):
        use, setting, dataset, base = key
        gaps = [
            f"{row['control']} {words.signed(row['difference'], row['low'], row['high'])}"
            for row in rows.to_dict("records")
        ]
        first = rows.iloc[0]
        agreement = " / ".join(
            "-" if pd.isna(first[name]) else f"{first[name]:.2f}" for name in ("early", "tenth", "last")
        )
        lines.append(
            f"- {use}: {setting}, {dataset}, {label(str(base))}: agreement {agreement}; minus {', '.join(gaps)}"
        )
    return lines
