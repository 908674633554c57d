"""Final accuracy of all methods, mean over devices and worst device, and the difference to plain DMML."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures import captions, claims, style, tables, transforms
from paper_figures.experiments import REFERENCE_METHOD
from paper_figures.inputs import Numbers, require

NAME = "table_accuracy"
EXPERIMENTS = ("comparison",)


def make(results: Numbers, folder: Path) -> list[Path]:
    """Compute the table from results and write it as CSV, Markdown and LaTeX, with its caption."""
    comparison = transform(results.table)
    require(comparison, NAME, "test accuracy of the experiment comparison")
    tests = int(comparison["p"].notna().sum())
    caption = (
        "Test accuracy in percent in the last round, mean ± half of the 95% Student interval over seeds; the mean over "
        "devices, and the worst device. Differences of the mean are paired by seed, in percentage points, with their "
        f"95% interval; p of the paired t test, adjusted by Holm over the {tests} tests of the table. Centralized has "
        "all data in one place: an upper reference, not a rival."
    )
    judged = claims.judge(results.table, names=["improves", "no server"])
    sections = {"What was found": captions.describe_claims(*judged), "Rule": [claims.RULE]}
    shown = format_rows(comparison, REFERENCE_METHOD)
    return tables.save_table(comparison, shown, "Accuracy in the last round", caption, folder, NAME, results, sections)


def transform(table: pd.DataFrame) -> pd.DataFrame:
    """Return the final accuracies by dataset, setting and method: see `paper_figures.transforms.compare`."""
    return transforms.compare(transforms.final_accuracy(table), ["dataset", "setting"])


def format_rows(comparison: pd.DataFrame, reference: str) -> pd.DataFrame:
    """Return a comparison as text, accuracies in percent."""
    rows = [
        {
            "Dataset": row["dataset"],
            "Setting": row["setting"],
            "Method": style.look(row["method"]).label,
            "Mean": captions.with_interval(row["mean"], row["mean_low"], row["mean_high"]),
            "Worst device": captions.with_interval(row["worst"], row["worst_low"], row["worst_high"]),
            f"Difference to {style.look(reference).label}": captions.signed(
                row["difference"], row["difference_low"], row["difference_high"]
            ),
            "p (Holm)": captions.p_value(row["p_holm"]),
            "Seeds": row["seeds"],
        }
        for row in comparison.to_dict("records")
    ]
    return pd.DataFrame(rows)
