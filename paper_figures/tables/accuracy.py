"""Final accuracy of all methods, mean over devices and worst device, and the difference to plain DMML."""

from __future__ import annotations

import pandas as pd

from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import transforms
from paper_figures.judge.comparisons import P_VALUES, compare
from paper_figures.plan.labels import REFERENCE_METHOD, label

EXPERIMENTS = ("comparison",)
NEEDS = "test accuracy of the experiment comparison"
TITLE = "Accuracy in the last round"


def transform(results: Results) -> pd.DataFrame:
    """Return the final accuracies by dataset, setting and method: see `paper_figures.judge.comparisons.compare`."""
    return compare(transforms.final_accuracy(results.table), ["dataset", "setting"])


def show(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    return show_comparison(comparison, REFERENCE_METHOD)


def show_comparison(comparison: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return a comparison as text, accuracies in percent."""
    rows = [
        {
            "Dataset": row["dataset"],
            "Setting": row["setting"],
            "Method": label(row["method"]),
            "Mean": captions.with_interval(row["mean"], row["mean_low"], row["mean_high"]),
            "Worst device": captions.with_interval(row["worst"], row["worst_low"], row["worst_high"]),
            f"Difference to {label(reference)}": captions.signed(
                row["difference"], row["difference_low"], row["difference_high"]
            ),
            "p": captions.p_value(row["p"]),
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
