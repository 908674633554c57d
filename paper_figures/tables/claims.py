"""The claims of the paper's abstract, each with its verdict, its number and the figure that shows it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd

from dmmlkd_ext.experiments.show import words
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import claims
from paper_figures.plan.experiments import DEFAULT_SETTING

EXPERIMENTS = ("comparison", "ablation", "balance", "imbalance", "features", "non_iid", "missing", "topology")
NEEDS = "finished run of any experiment"
TITLE = "Claims"


def transform(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the claims with their verdicts, and the differences that decided them."""
    if results.table.empty:
        return pd.DataFrame(), pd.DataFrame()
    judged, differences = claims.judge(results)
    return judged.assign(kind="claim"), differences.assign(kind="difference")


def show(judged: pd.DataFrame, _differences: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    rows = [
        {
            "Claim": row["claim"],
            "Shown in": row["figures"],
            "Verdict": row["verdict"],
            "For, undecided, against": f"{row['supporting']}, {row['undecided']}, {row['contradicting']}",
            "Mean difference": in_its_unit(row["mean"], row),
            "Seeds": row["seeds"],
        }
        for row in judged.to_dict("records")
    ]
    return pd.DataFrame(rows)


def caption(_results: Results, judged: pd.DataFrame, differences: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return the rule, and the verdict on each claim with each difference that decided it."""
    shown = (
        f"{claims.RULE} The mean is that over all differences of a claim, with the 95% Student interval over the seeds "
        "that have all of them; the verdict is not decided by it. Differences are paired by seed; p is that of the "
        "paired t test, not adjusted, and the same in all figures and tables."
    )
    lines = []
    for claim in judged.to_dict("records"):
        rows = differences[differences["name"] == claim["name"]]
        count = f"; {claim['supporting']} of {len(rows)} differences support it" if len(rows) else ""
        lines.append(f"- {claim['claim']}: **{claim['verdict']}**{count}.")
        lines += [f"  - {describe_difference(row)}" for row in rows.to_dict("records")]
    return shown, {"Every difference": lines}


def describe_difference(row: Mapping[Any, Any]) -> str:
    """Return a difference with its interval, its p and what it says of the claim, as one line."""
    place = ", ".join(str(row[name]) for name in ("dataset", "setting") if row[name] not in ("", DEFAULT_SETTING))
    pairs = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
    clearly = " clearly" if claims.is_clear(row["verdict"], row["p_holm"]) else ""
    shown = f"{in_its_unit(row['difference'], row)} ({pairs}, p {words.p_value(row['p'])})"
    return f"{place}: {row['what']} {shown}: {row['verdict']}{clearly}"


def in_its_unit(value: float, row: Mapping[Any, Any]) -> str:
    """Return a number of a claim or a difference with its interval, in the claim's unit."""
    if row["unit"] == "points":
        shown = words.signed(value, row["low"], row["high"])
        return shown if shown == "-" else f"{shown} points"
    return words.signed(value, row["low"], row["high"], scale=1.0, digits=3)
