"""What is lost without each loss term, without the generator and without distillation, and what balance adds."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures import captions, claims, style, tables, transforms
from paper_figures.inputs import Numbers, require
from paper_figures.table_accuracy import format_rows

NAME = "table_ablation"
EXPERIMENTS = ("ablation",)
WHOLE = "dmml-kd"
"""The method whose parts are taken away."""


def make(results: Numbers, folder: Path) -> list[Path]:
    """Compute the table from results and write it as CSV, Markdown and LaTeX, with its caption."""
    comparison = transform(results.table)
    require(comparison, NAME, "test accuracy of the experiment ablation")
    tests = int(comparison["p"].notna().sum())
    caption = (
        "Test accuracy in percent in the last round without a limit on energy, mean ± half of the 95% Student interval "
        "over seeds. Differences are to DMML-KD with all of its terms, paired by seed, in percentage points: below "
        "zero, the part that was taken away had helped. DMML is DMML-KD without all of them, DMML-KD + balance has "
        f"one part more. p of the paired t test, adjusted by Holm over the {tests} tests of the table."
    )
    judged = claims.judge(results.table, names=["generator helps"])
    sections = {
        "What was found": [*describe_parts(comparison), *captions.describe_claims(*judged)],
        "Rule": [claims.RULE],
    }
    return tables.save_table(
        comparison, format_rows(comparison, WHOLE), "Ablation", caption, folder, NAME, results, sections
    )


def transform(table: pd.DataFrame) -> pd.DataFrame:
    """Return the final accuracies with their differences to DMML-KD: see `paper_figures.transforms.compare`."""
    return transforms.compare(transforms.final_accuracy(table), ["dataset", "setting"], WHOLE)


def describe_parts(comparison: pd.DataFrame) -> list[str]:
    """Return for each change in how many settings it made accuracy worse or better, by the interval."""
    lines = []
    known = comparison.dropna(subset=["difference_low"])
    for method in style.in_order(known["method"]):
        own = known[known["method"] == method]
        worse, better = int((own["difference_high"] < 0).sum()), int((own["difference_low"] > 0).sum())
        lines.append(
            f"- {style.look(method).label}: worse than DMML-KD in {worse}, better in {better}, undecided in "
            f"{len(own) - worse - better} of {len(own)} settings; differences from "
            f"{100 * own['difference'].min():+.1f} to {100 * own['difference'].max():+.1f} points"
        )
    return lines
