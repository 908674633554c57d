"""What is lost without each loss term, without the generator and without distillation, and what balance adds."""

from __future__ import annotations

import pandas as pd

from dmmlkd_ext.experiments.show.labels import label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import transforms
from paper_figures.judge.comparisons import P_VALUES, compare
from paper_figures.tables.accuracy import show_comparison

EXPERIMENTS = ("ablation",)
NEEDS = "test accuracy of the experiment ablation"
TITLE = "Ablation"
WHOLE = "dmml-kd"
"""The method whose parts are taken away."""


def transform(results: Results) -> pd.DataFrame:
    """Return the final accuracies with their differences to DMML-KD: see `paper_figures.judge.comparisons.compare`."""
    return compare(transforms.final_accuracy(results.table), ["dataset", "setting"], WHOLE)


def show(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    return show_comparison(comparison, WHOLE)


def caption(_results: Results, comparison: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table, and what each part was worth."""
    shown = (
        "Test accuracy in percent in the last round without a limit on energy, mean ± half of the 95% Student interval "
        "over seeds. Differences are to DMML-KD with all of its terms, paired by seed, in percentage points: below "
        "zero, the part that was taken away had helped. DMML is DMML-KD without all of them, DMML-KD + balance has "
        f"one part more. {P_VALUES}"
    )
    return shown, {"What was found": describe_parts(comparison)}


def describe_parts(comparison: pd.DataFrame) -> list[str]:
    """Return for each change in how many settings it made accuracy worse or better, by the interval."""
    lines = []
    for method, rows in transforms.by_method(comparison.dropna(subset=["difference_low"])):
        worse, better = int((rows["difference_high"] < 0).sum()), int((rows["difference_low"] > 0).sum())
        lines.append(
            f"- {label(method)}: worse than DMML-KD in {worse}, better in {better}, undecided in "
            f"{len(rows) - worse - better} of {len(rows)} settings; differences from "
            f"{100 * rows['difference'].min():+.1f} to {100 * rows['difference'].max():+.1f} points"
        )
    return lines
