"""Speed-ups of the native operators, and the fraction of the machine's limit that they reach."""

from __future__ import annotations

from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import FixedLocator, FuncFormatter, NullLocator

from dmmlkd_ext.experiments.show import style
from paper_figures.collect import benchmarks
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions

EXPERIMENTS: tuple[str, ...] = ()
NEEDS = benchmarks.KERNELS
TITLE = "Speed of the native operators"
_MARKS = {
    "reference": ("#0072B2", "o"),
    "torch.compile": ("#CC79A7", "D"),
    "naive pairs": ("#E69F00", "s"),
    "torch.mm": ("#009E73", "^"),
    "loop over state_dicts": ("#D55E00", "v"),
    "loop over devices": ("#882255", "<"),
    "loop of the reference over devices": ("#56B4E9", ">"),
    "loop over pairs": ("#999933", "X"),
}
_OTHER = ("#7F7F7F", "P")


def transform(results: Results) -> pd.DataFrame:
    """Return the comparisons on one thread, with a label of the case, by operator."""
    rows = benchmarks.load_kernels(results.benchmarks).rows
    single = rows[rows["threads"] == rows["threads"].min()]
    name = single["case"].astype(str) + ", " + single["work"].astype(str)
    labelled: pd.DataFrame = single.assign(label=name)
    return labelled.sort_values("operator", kind="stable").reset_index(drop=True)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw a row per operator: speed-ups on the left, fractions of the limit on the right."""
    operators = list(dict.fromkeys(rows["operator"]))
    counts = [rows.loc[rows["operator"] == operator, "label"].nunique() for operator in operators]
    figure, axes = plt.subplots(
        len(operators),
        2,
        figsize=(style.TWO_COLUMNS, 0.9 + 0.125 * sum(counts) + 0.3 * len(operators)),
        squeeze=False,
        layout="constrained",
        sharey="row",
        sharex="col",
        gridspec_kw={"height_ratios": [count + 1 for count in counts], "width_ratios": [2.2, 1]},
    )
    for row, operator in enumerate(operators):
        group = rows[rows["operator"] == operator]
        labels = list(dict.fromkeys(group["label"]))
        for column, is_limit in enumerate((False, True)):
            _draw_points(axes[row, column], group[group["is_limit"] == is_limit], labels)
        axes[row, 0].set_yticks(range(len(labels)), labels, fontsize=6)
        axes[row, 0].set_ylim(len(labels) - 0.4, -0.6)
        style.label_panel(axes[row, 0], operator)
    axes[-1, 0].set_xscale("log")
    axes[-1, 0].set_xlabel("Speed-up: time of the other over the native one's")
    axes[-1, 0].xaxis.set_major_locator(FixedLocator([0.5, 1, 2, 5, 10, 20, 50, 100]))
    axes[-1, 0].xaxis.set_minor_locator(NullLocator())
    axes[-1, 0].xaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes[-1, 1].set_xlabel("Fraction of limit")
    axes[-1, 1].set_xlim(left=0)
    _add_legend(figure, rows)
    return figure


def _draw_points(axis: Axes, rows: pd.DataFrame, labels: list[str]) -> None:
    axis.axvline(1, color="black", linewidth=0.8, zorder=1)
    for against, group in rows.groupby("against"):
        colour, marker = ("black", "o") if group["is_limit"].all() else _MARKS.get(str(against), _OTHER)
        places = [labels.index(label) for label in group["label"]]
        axis.plot(group["ratio"], places, linestyle="none", color=colour, marker=marker, markeredgecolor="white")
        targets = group["target"].to_numpy(dtype=float)
        known = np.isfinite(targets)
        axis.plot(targets[known], np.array(places)[known], linestyle="none", color=colour, marker="|", markersize=6)
    axis.tick_params(axis="y", length=0)


def _add_legend(figure: Figure, rows: pd.DataFrame) -> None:
    rivals = [name for name in _MARKS if name in set(rows["against"])]
    others = sorted(set(rows.loc[~rows["is_limit"], "against"]) - set(_MARKS))
    point: dict[str, Any] = {"linestyle": "none", "markeredgecolor": "white"}
    handles = [
        Line2D([], [], color=_MARKS[name][0], marker=_MARKS[name][1], label=f"over {name}", **point) for name in rivals
    ]
    if others:
        label = f"over {others[0]}" if len(others) == 1 else "over others, named in the CSV"
        handles.append(Line2D([], [], color=_OTHER[0], marker=_OTHER[1], label=label, **point))
    if rows["target"].notna().any():
        handles.append(Line2D([], [], color="#444444", marker="|", linestyle="none", label="target"))
    style.add_legend(figure, handles, 4)


def caption(results: Results, rows: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, what was met and what was not, the machine."""
    threads = int(rows["threads"].min())
    shown = (
        f"Each native operator against others on {threads} thread{'s' if threads > 1 else ''}, ratios of times that "
        "were measured in turn in one process; right of one the native operator is faster. On the right, the time of "
        "a bare operation that bounds the operator (a copy, the products alone, exponentials alone) over the "
        "operator's. A stroke is a target. There is no interval: each ratio is one number of one session."
    )
    lines = []
    for operator, group in rows.groupby("operator"):
        rivals, limits = group[~group["is_limit"]], group[group["is_limit"]]
        for against, ratios in rivals.groupby("against")["ratio"]:
            lines.append(
                f"- {operator} over {against}: {ratios.min():.2f} to {ratios.max():.2f} times, median "
                f"{ratios.median():.2f}, {int((ratios < 1).sum())} of {len(ratios)} slower"
            )
        if len(limits):
            low, high = limits["ratio"].min(), limits["ratio"].max()
            lines.append(f"- {operator}, fraction of the limit: {low:.2f} to {high:.2f} in {len(limits)} cases")
        else:
            lines.append(f"- {operator}, fraction of the limit: not measured")
        met, aimed = benchmarks.count_met(group)
        if aimed:
            lines.append(f"- {operator}, targets: {met} of {aimed} met")
    machine = benchmarks.load_kernels(results.benchmarks).machine
    return shown, {"What was found": lines, "Provenance": benchmarks.describe_machine(machine)}
