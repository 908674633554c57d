"""Final accuracy of all methods, mean over devices and worst device, and the difference to plain DMML."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd

from dmmlkd_ext.experiments.show import words
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD, label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import transforms
from paper_figures.judge.comparisons import P_VALUES, compare

EXPERIMENTS = ("comparison",)
NEEDS = "test accuracy of the experiment comparison"
TITLE = "Accuracy in the last round"
HEADINGS = {"mean": "Mean", "worst": "Worst device"}


def transform(results: Results) -> pd.DataFrame:
    """Return the final accuracies by dataset, setting and method: see `paper_figures.judge.comparisons.compare`."""
    return compare(transforms.final_accuracy(results.table), ["dataset", "setting"])


def show(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    return show_comparison(comparison, REFERENCE_METHOD)


def show_comparison(
    comparison: pd.DataFrame,
    reference: str,
    places: Sequence[str] = ("dataset", "setting", "method"),
    values: Sequence[str] = ("mean", "worst"),
) -> pd.DataFrame:
    """Return accuracies and differences to a reference as text, by columns that say where a row belongs."""
    rows = [
        {
            **{place.capitalize(): label(row[place]) for place in places},
            **{HEADINGS[name]: words.with_interval(*words.interval_of(row, name)) for name in values},
            f"Difference to {label(reference)}": words.signed(*words.interval_of(row, "difference")),
            "p": words.p_value(row["p"]),
            "Seeds": row["seeds"],
        }
        for row in comparison.to_dict("records")
    ]
    return pd.DataFrame(rows)


def caption(_results: Results, _comparison: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table."""
    shown = (
        "Test accuracy in percent in the last round, mean ± half of the 95% Student interval over seeds; the mean over "
        "devices, and the worst device. Differences of the mean are paired by seed, in percentage points, with their "
        f"95% interval; {P_VALUES} Centralized has all data in one place: an upper reference, not a rival."
    )
    return shown, {}
