"""The claims of the paper's abstract, each with its verdict, its number and the figure that shows it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import pandas as pd

from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import claims, verdicts
from paper_figures.plan.labels import DEFAULT_SETTING

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
            "Differences that hold, are absent, undecided, contradict": ", ".join(
                str(row[verdict]) for verdict in verdicts.VERDICTS
            ),
            "Mean difference": in_its_unit(row["mean"], row),
            "Detectable": "-" if math.isnan(row["detectable"]) else size_of(row["detectable"], row),
            "Seeds": row["seeds"],
        }
        for row in judged.to_dict("records")
    ]
    return pd.DataFrame(rows)


def caption(_results: Results, judged: pd.DataFrame, differences: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return the rule, and the verdict on each claim with each difference that decided it."""
    shown = (
        f"{verdicts.RULE} The mean is shown with its 95% Student interval over seeds. Differences are paired by seed; "
        "p is that of the paired t test, not adjusted, and the same in all figures and tables."
    )
    lines = []
    for claim in judged.to_dict("records"):
        rows = differences[differences["name"] == claim["name"]]
        lines.append(f"- {claim['claim']}: **{claim['verdict']}**{describe_exceptions(claim, rows)}.")
        lines += [f"  - {describe_difference(row)}" for row in rows.to_dict("records")]
    return shown, {"Every difference": lines}


def describe_exceptions(claim: Mapping[Any, Any], rows: pd.DataFrame) -> str:
    """Return what a claim's verdict leaves out: parts that were not run, and differences that contradict."""
    text = f"; not run: {claim['lacking']}" if claim["lacking"] and len(rows) else ""
    against = rows[rows["verdict"] == verdicts.CONTRADICTED].to_dict("records")
    places = [
        f"{', '.join(filter(None, (row['part'], row['dataset'], row['setting'])))} ({row['what']}"
        f"{', clearly' if claims.is_clear(row['verdict'], row['p_holm']) else ''})"
        for row in against
    ]
    return text + (f"; contradicted by {'; '.join(places)}" if places else "")


def describe_difference(row: Mapping[Any, Any]) -> str:
    """Return a difference with its interval, its p and what it says of the claim, as one line."""
    place = ", ".join(str(row[name]) for name in ("dataset", "setting") if row[name] not in ("", DEFAULT_SETTING))
    pairs = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
    clearly = " clearly" if claims.is_clear(row["verdict"], row["p_holm"]) else ""
    power = "" if math.isnan(row["detectable"]) else f", detectable {size_of(row['detectable'], row)}"
    shown = f"{in_its_unit(row['difference'], row)} ({pairs}, p {captions.p_value(row['p'])}{power})"
    return f"{place}: {row['what']} {shown}: {row['verdict']}{clearly}"


def size_of(value: float, row: Mapping[Any, Any]) -> str:
    """Return the size of an effect in the claim's unit."""
    return f"{100 * value:.1f} points" if row["unit"] == "points" else f"{value:.3f}"


def in_its_unit(value: float, row: Mapping[Any, Any]) -> str:
    """Return a number of a claim or a difference with its interval, in the claim's unit."""
    if row["unit"] == "points":
        shown = captions.signed(value, row["low"], row["high"])
        return shown if shown == "-" else f"{shown} points"
    return captions.signed(value, row["low"], row["high"], scale=1.0, digits=3)
