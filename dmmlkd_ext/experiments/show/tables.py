"""A comparison of runs as a table of text, and the sentences that say what is in it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import pandas as pd

from dmmlkd_ext.experiments.compare import DATASET, METHOD, Design
from dmmlkd_ext.experiments.show.words import interval_of, p_value, percent, quantity, signed, with_interval
from dmmlkd_ext.experiments.statistics import LEAST_SEEDS

_COSTS = {"energy_joule": ("energy", "J"), "time_s": ("time", "s"), "bits": ("sent", "bit")}
_SHORT = {METHOD: "method", DATASET: "dataset"}


def short_names(options: Sequence[str]) -> dict[str, str]:
    """Return how options are called in a heading: by the last part of their path, where that is enough.

    Example:
        >>> short_names(["method.name", "training.feature_width", "topology.name"])
        {'method.name': 'method', 'training.feature_width': 'feature_width', 'topology.name': 'topology.name'}
    """
    last = [option.rpartition(".")[2] for option in options]
    names = {option: part if last.count(part) == 1 else option for option, part in zip(options, last, strict=True)}
    return names | {option: _SHORT[option] for option in options if option in _SHORT}


def show(rows: pd.DataFrame, design: Design) -> pd.DataFrame:
    """Return a comparison as text, accuracies in percent; costs that no run recorded are left out.

    Args:
        rows: of `dmmlkd_ext.experiments.compare.compare`.
        design: of the same comparison.
    """
    options = [name for name in design.columns if rows[name].nunique() > 1] or [DATASET]
    costs = {name: shown for name, shown in _COSTS.items() if rows[name].notna().any()}
    return pd.DataFrame([_show_row(row, short_names(options), design, costs) for row in rows.to_dict("records")])


def _show_row(
    row: Mapping[Any, Any], options: Mapping[str, str], design: Design, costs: Mapping[str, tuple[str, str]]
) -> dict[str, Any]:
    shown = {name: row[option] for option, name in options.items()}
    for value, heading in (("mean", "mean"), ("worst", "worst device")):
        enough = row["seeds"] >= LEAST_SEEDS
        shown[heading] = with_interval(*interval_of(row, value)) if enough else percent(row[value])
    if design.by:
        enough, (difference, low, high) = row["pairs"] >= LEAST_SEEDS, interval_of(row, "difference")
        ends = (low, high) if enough else (float("nan"), float("nan"))
        shown[f"minus {design.baseline}"] = signed(difference, *ends)
        shown["p"] = p_value(row["p"] if enough else float("nan"))
        shown["verdict"] = row["verdict"] or "-"
    shown["seeds"] = row["seeds"]
    return shown | {heading: quantity(row[name], unit) for name, (heading, unit) in costs.items()}


def describe(rows: pd.DataFrame, design: Design, fixed: Mapping[str, str]) -> list[str]:
    """Return the sentences below a table: what the numbers are, and what else differs between the runs.

    Args:
        rows: of the comparison.
        design: of the comparison.
        fixed: what all runs have in common and a reader asks for, such as the dataset.
    """
    where = "".join(f", {name} {value}" for name, value in fixed.items())
    lines = [
        f"Test accuracy in percent in the last round, mean and worst over devices{where}: mean over seeds ± half of "
        "the 95% Student interval over seeds; energy and bits per device and simulated time up to then."
    ]
    if design.by:
        lines.append(
            f"Differences to {_name(design.by)} {design.baseline} are in points, paired over the seeds that both have, "
            "with their 95% Student interval; p of the paired t test, not adjusted for how many are compared."
        )
    if (rows["seeds"] < LEAST_SEEDS).any():
        lines.append(f"With fewer than {LEAST_SEEDS} seeds there is no interval, no p and no verdict: too few seeds.")
    if design.decided:
        names = ", ".join(design.decided[:6]) + (", ..." if len(design.decided) > 6 else "")
        lines.append(f"The method and the dataset decide {len(design.decided)} more options that differ: {names}.")
    return lines


def _name(option: str) -> str:
    return short_names([option])[option]
