"""The claims of the paper's abstract, each with its verdict, its number and the figure that shows it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures import captions, claims, tables
from paper_figures.inputs import NumbersAndFeatures, require

NAME = "table_claims"
EXPERIMENTS = ("comparison", "ablation", "balance", "imbalance", "features", "non_iid", "missing", "topology")


def make(results: NumbersAndFeatures, folder: Path) -> list[Path]:
    """Judge the claims by results and write the table as CSV, Markdown and LaTeX, with its caption."""
    require(results.table, NAME, "finished run of any experiment")
    judged, differences = claims.judge(results.table, results.features)
    caption = (
        f"{claims.RULE} The mean is that over all differences of a claim, with the 95% Student interval over the seeds "
        "that have all of them; the verdict is not decided by it. Differences are paired by seed."
    )
    data = pd.concat([judged.assign(kind="claim"), differences.assign(kind="difference")], ignore_index=True)
    sections = {"Every difference": captions.describe_claims(judged, differences)}
    return tables.save_table(data, format_rows(judged), "Claims", caption, folder, NAME, results, sections)


def format_rows(judged: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    rows = [
        {
            "Claim": row["claim"],
            "Shown in": row["figures"],
            "Verdict": row["verdict"],
            "For, undecided, against": f"{row['supporting']}, {row['undecided']}, {row['contradicting']}",
            "Mean difference": captions.contrast_number(row),
            "Seeds": row["seeds"],
        }
        for row in judged.to_dict("records")
    ]
    return pd.DataFrame(rows)
