"""How much our own choices matter: final accuracy with one of them changed at a time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pandas as pd

from paper_figures import captions, style, tables, transforms
from paper_figures.captions import DEFAULT_SETTING
from paper_figures.inputs import Numbers, require

NAME = "table_sensitivity"
EXPERIMENTS = ("sensitivity",)


def make(results: Numbers, folder: Path) -> list[Path]:
    """Compute the table from results and write it as CSV, Markdown and LaTeX, with its caption."""
    comparison = transform(results.table)
    require(comparison, NAME, "test accuracy of the experiment sensitivity")
    tests = int(comparison["p"].notna().sum())
    caption = (
        "Test accuracy in percent in the last round with one choice [C] changed at a time, mean ± half of the 95% "
        "Student interval over seeds. Differences are to the default settings, paired by seed, in percentage points; p "
        f"of the paired t test, adjusted by Holm over the {tests} tests of the table."
    )
    sections = {"What was found": describe(comparison)}
    shown = format_rows(comparison)
    return tables.save_table(
        comparison, shown, "Sensitivity to our own choices", caption, folder, NAME, results, sections
    )


def transform(table: pd.DataFrame) -> pd.DataFrame:
    """Return the final accuracies by dataset, method and changed choice, with their differences to the default.

    Returns:
        Columns dataset, method, choice and those of `paper_figures.transforms.compare`.
    """
    final = transforms.final_accuracy(table)
    if final.empty:
        return final
    levels = [f" {level:g}" if np.isfinite(level) else "" for level in final["level"]]
    final["choice"] = final["setting"] + levels
    rows = transforms.compare(final, ["dataset", "method"], DEFAULT_SETTING, column="choice")
    if rows.empty:
        return rows
    is_default = rows["choice"] == DEFAULT_SETTING
    return pd.concat([rows[is_default], rows[~is_default]]).pipe(transforms.in_figure_order)


def format_rows(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text, accuracies in percent."""
    rows = [
        {
            "Dataset": row["dataset"],
            "Method": style.look(row["method"]).label,
            "Choice": row["choice"],
            "Mean": captions.with_interval(row["mean"], row["mean_low"], row["mean_high"]),
            "Difference to default": captions.signed(row["difference"], row["difference_low"], row["difference_high"]),
            "p (Holm)": captions.p_value(row["p_holm"]),
            "Seeds": row["seeds"],
        }
        for row in comparison.to_dict("records")
    ]
    return pd.DataFrame(rows)


def describe(comparison: pd.DataFrame) -> list[str]:
    """Return which changes made accuracy worse or better, by their intervals."""
    lines = []
    known = comparison.dropna(subset=["difference"])
    for row in known.to_dict("records"):
        word = "undecided" if np.isfinite(row["difference_low"]) else "no interval"
        word = "worse" if row["difference_high"] < 0 else "better" if row["difference_low"] > 0 else word
        gap = captions.signed(row["difference"], row["difference_low"], row["difference_high"])
        lines.append(f"- {row['dataset']}, {style.look(row['method']).label}, {row['choice']}: {gap} points: {word}")
    return lines or ["- No seed has both the default and a changed choice."]
