"""Each operator's time by size, against others, and the fraction of the machine's limit."""

from __future__ import annotations

import pandas as pd

from paper_figures.collect import benchmarks
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions

EXPERIMENTS: tuple[str, ...] = ()
NEEDS = benchmarks.KERNELS
TITLE = "Kernels"
KEYS = ["operator", "case", "work", "threads"]
COLUMNS = {"reference": "reference", "torch.compile": "compile"}
"""Comparison that has columns -> how their names begin."""


def transform(results: Results) -> pd.DataFrame:
    """Return a row per operator, case, work and number of threads.

    Returns:
        Columns operator, case, work, threads, native_us (of the first comparison), reference_us, reference_ratio,
        compile_us, compile_ratio, others (a text of names and ratios), limit_fraction, targets_met, targets.
    """
    rows = benchmarks.load_kernels(results.benchmarks).rows
    if rows.empty:
        return rows
    found = []
    for key, group in rows.groupby(KEYS, sort=False):
        row = dict(zip(KEYS, key, strict=True)) | {"native_us": group["native_us"].iloc[0]}
        for against, name in COLUMNS.items():
            other = group[group["against"] == against]
            row |= {f"{name}_us": _first(other["other_us"]), f"{name}_ratio": _first(other["ratio"])}
        others = group[~group["is_limit"] & ~group["against"].isin(list(COLUMNS))]
        row["others"] = ", ".join(f"{other} {ratio:.2f}" for other, ratio in others[["against", "ratio"]].to_numpy())
        row["limit_fraction"] = _first(group.loc[group["is_limit"], "ratio"])
        row["targets_met"], row["targets"] = benchmarks.count_met(group)
        found.append(row)
    return pd.DataFrame(found).sort_values(["operator"], kind="stable", ignore_index=True)


def show(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    shown = [
        {
            "Operator": row["operator"],
            "Case": row["case"],
            "Work": row["work"],
            "Threads": row["threads"],
            "Native": _number(row["native_us"]),
            "Reference": _with_ratio(row["reference_us"], row["reference_ratio"]),
            "torch.compile": _with_ratio(row["compile_us"], row["compile_ratio"]),
            "Ratio to others": row["others"] or "-",
            "Fraction of limit": _number(row["limit_fraction"]),
            "Targets met": f"{row['targets_met']} of {row['targets']}" if row["targets"] else "-",
        }
        for row in rows.to_dict("records")
    ]
    return pd.DataFrame(shown)


def caption(results: Results, _rows: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table, what was met and what was not, the machine."""
    benchmark = benchmarks.load_kernels(results.benchmarks)
    shown = (
        "Median times in microseconds of one session, and in brackets the other's time over the native one's, measured "
        "in turn in the same rounds: above 1 the native operator is faster. Fraction of the limit: the time of a bare "
        "operation that bounds the operator, over the operator's. Targets are least ratios that were aimed at."
    )
    met, aimed = benchmarks.count_met(benchmark.rows)
    rivals = benchmark.rows[~benchmark.rows["is_limit"]]
    found = [
        f"- Targets: {met} of {aimed} met",
        f"- Comparisons in which the native operator is slower: {int((rivals['ratio'] < 1).sum())} of {len(rivals)}",
    ]
    return shown, {"What was found": found, "Provenance": benchmarks.describe_machine(benchmark.machine)}


def _first(values: pd.Series) -> float:
    return float(values.iloc[0]) if len(values) else float("nan")


def _number(value: float) -> str:
    return "-" if pd.isna(value) else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"


def _with_ratio(time_us: float, ratio: float) -> str:
    return "-" if pd.isna(time_us) else f"{_number(time_us)} ({ratio:.2f})"
