"""How much our own choices matter: final accuracy with one of them changed at a time."""

from __future__ import annotations

import numpy as np
import pandas as pd

from dmmlkd_ext.experiments.show import words
from dmmlkd_ext.experiments.show.labels import label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import transforms
from paper_figures.judge.comparisons import P_VALUES, compare
from paper_figures.plan.experiments import DEFAULT_SETTING
from paper_figures.tables.accuracy import show_comparison

EXPERIMENTS = ("sensitivity",)
NEEDS = "test accuracy of the experiment sensitivity"
TITLE = "Sensitivity to our own choices"


def transform(results: Results) -> pd.DataFrame:
    """Return the final accuracies by dataset, method and changed choice, with their differences to the default.

    Returns:
        Columns dataset, method, choice and those of `paper_figures.judge.comparisons.compare`.
    """
    final = transforms.final_accuracy(results.table)
    if final.empty:
        return final
    levels = [f" {level:g}" if np.isfinite(level) else "" for level in final["level"]]
    final["choice"] = final["setting"] + levels
    rows = compare(final, ["dataset", "method"], DEFAULT_SETTING, column="choice")
    is_default = rows["choice"] == DEFAULT_SETTING
    return pd.concat([rows[is_default], rows[~is_default]]).pipe(transforms.in_figure_order)


def show(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text, accuracies in percent."""
    return show_comparison(comparison, DEFAULT_SETTING, ("dataset", "method", "choice"), ("mean",))


def caption(_results: Results, comparison: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table, and what each choice changed."""
    shown = (
        "Test accuracy in percent in the last round with one choice [C] changed at a time, mean ± half of the 95% "
        "Student interval over seeds. Differences are to the default settings, paired by seed, in percentage points; "
        f"{P_VALUES}"
    )
    return shown, {"What was found": describe(comparison)}


def describe(comparison: pd.DataFrame) -> list[str]:
    """Return which changes made accuracy worse or better, by their intervals."""
    lines = []
    known = comparison.dropna(subset=["difference"])
    for row in known.to_dict("records"):
        word = "undecided" if np.isfinite(row["difference_low"]) else "no interval"
        word = "worse" if row["difference_high"] < 0 else "better" if row["difference_low"] > 0 else word
        gap = words.signed(*words.interval_of(row, "difference"))
        lines.append(f"- {row['dataset']}, {label(row['method'])}, {row['choice']}: {gap} points: {word}")
    return lines or ["- No seed has both the default and a changed choice."]
