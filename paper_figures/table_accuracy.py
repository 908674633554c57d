"""Table 1: final accuracy, mean over devices and worst device, and the difference to plain DMML."""

from __future__ import annotations

import math
from pathlib import Path

import pandas as pd

from dmmlkd_ext.experiments.results import Results
from dmmlkd_ext.training.storage import write_text
from paper_figures import captions, style, transforms
from paper_figures.experiments import REFERENCE_METHOD

NAME = "table_accuracy"
EXPERIMENTS = ("comparison",)


def make(results: Results, folder: Path) -> list[Path]:
    """Compute the table from results and write it as CSV, Markdown and LaTeX, with its caption."""
    comparison = transforms.final_comparison(results.table, REFERENCE_METHOD)
    shown = format_rows(comparison)
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown, latex = (folder / f"{NAME}{ending}" for ending in (".csv", ".md", ".tex"))
    style.write_csv(csv, comparison)
    write_text(markdown, write_markdown(shown, comparison, results))
    write_text(latex, write_latex(shown))
    return [csv, markdown, latex]


def format_rows(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text, accuracies in percent."""
    rows = [
        {
            "Dataset": row["dataset"],
            "Energy": row["budget"],
            "Method": style.look(row["method"]).label,
            "Mean": captions.with_interval(row["mean"], row["mean_low"], row["mean_high"]),
            "Worst device": captions.with_interval(row["worst"], row["worst_low"], row["worst_high"]),
            f"Difference to {style.look(REFERENCE_METHOD).label}": captions.signed(
                row["difference"], row["difference_low"], row["difference_high"]
            ),
            "p (Holm)": _p_value(row["p_holm"]),
            "Seeds": row["seeds"],
        }
        for row in comparison.to_dict("records")
    ]
    return pd.DataFrame(rows)


def write_markdown(shown: pd.DataFrame, comparison: pd.DataFrame, results: Results) -> str:
    """Return the table in Markdown with its caption and provenance."""
    tests = int(comparison["p"].notna().sum())
    lines = [
        "# Accuracy in the last round",
        "",
        shown.to_markdown(index=False, disable_numparse=True),
        "",
        "Test accuracy in percent, mean ± half of the 95% Student interval over seeds; the mean over devices, and "
        "the worst device. Differences of the mean are paired by seed, in percentage points, with their 95% "
        f"interval; p of the paired t test, adjusted by Holm over the {tests} tests of the table.",
        "",
        "Provenance:",
        "",
        *captions.describe_provenance(results.table, results.unfinished),
    ]
    return "\n".join(lines) + "\n"


def write_latex(shown: pd.DataFrame) -> str:
    """Return the table in LaTeX, for the package booktabs."""
    escaped = shown.map(lambda cell: str(cell).replace(" ± ", r" $\pm$ ").replace("%", r"\%"))
    latex: str = escaped.style.hide(axis="index").to_latex(hrules=True, column_format="lllrrrrr")
    return latex


def _p_value(value: float) -> str:
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"
