"""Local iterations and remaining energy of some devices over rounds, and accuracy over the energy budget."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dmmlkd_ext.experiments.results import pick
from dmmlkd_ext.experiments.show import style, words
from dmmlkd_ext.experiments.show.labels import label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions, levels
from paper_figures.judge import measures, transforms
from paper_figures.judge.comparisons import P_VALUES, compare

EXPERIMENTS = ("balance",)
NEEDS = "test accuracy of the experiment balance at a limited energy"
TITLE = "Local iterations under limited energy"
METHOD, UNIFORM = "dmml-kd-tb", "dmml-kd"
METRICS = {"local_iterations": "Local iterations", "energy_left_joule": "Energy left ({}J)"}
NUM_DEVICES = 3
"""Devices that are drawn: those with the most modalities."""
DEVICE_LINES: tuple[Any, ...] = ("-", (0, (4, 1.5)), (0, (1, 1)))


def transform(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the devices' traces, and accuracies over budgets."""
    return trace_devices(results.table).assign(panel="devices"), over_budgets(results.table).assign(panel="budgets")


def over_budgets(table: pd.DataFrame) -> pd.DataFrame:
    """Return each method's final accuracy at each budget, and its paired difference to the uniform cut.

    Returns:
        Columns dataset, level, method, those of `paper_figures.judge.comparisons.compare`, and uniform_difference,
        uniform_low, uniform_high, uniform_p: to DMML for methods without distillation, to DMML-KD for those with it.
    """
    final = transforms.final_accuracy(table).dropna(subset=["level"])
    keys = ["dataset", "level"]
    both = compare(final, keys)
    if both.empty:
        return both
    with_distillation = final[final["method"].str.startswith(UNIFORM)]
    distilled = compare(with_distillation, keys, UNIFORM)
    plain = both[~both["method"].str.startswith(UNIFORM)]
    names = {"difference": "uniform_difference", "difference_low": "uniform_low", "difference_high": "uniform_high"}
    names |= {"p": "uniform_p", "difference_dots": "uniform_dots"}
    uniform = pd.concat([part for part in (plain, distilled) if len(part)]).rename(columns=names)
    columns = [*keys, "method", *(name for name in names.values() if name in uniform)]
    return transforms.in_figure_order(both.merge(uniform[columns], on=[*keys, "method"], how="left"))


def trace_devices(table: pd.DataFrame, count: int = NUM_DEVICES) -> pd.DataFrame:
    """Return local iterations and remaining energy over rounds of some devices of one run, by dataset.

    The run is of DMML-KD with balance, the lowest seed and the lowest budget that were recorded by device. The
    devices are those that hold the most modalities, the first ones among equals.

    Returns:
        Columns dataset, level, seed, metric (`local_iterations`, `energy_left_joule`), modality, device, round, value.
    """
    columns = ["dataset", "level", "seed", "metric", "modality", "device", "round", "value"]
    parts = [pick(table, metric, methods=[METHOD], of_devices=True) for metric in METRICS]
    rows = pd.concat(parts).rename(columns={"part": "modality"})
    found = []
    for _, group in rows.groupby("dataset"):
        iterations = group[group["metric"] == "local_iterations"]
        if iterations.empty:
            continue
        first = iterations.sort_values(["seed", "level"]).iloc[0]
        of_run = group[(group["run"] == first["run"]) & (group["level"] == first["level"])]
        held = of_run[of_run["metric"] == "local_iterations"].groupby("device")["modality"].nunique()
        ranked = sorted(held.index, key=lambda device: (-held[device], device))[:count]
        found.append(of_run[of_run["device"].isin(ranked)])
    traces = pd.concat(found) if found else rows.iloc[:0]
    return traces[columns].sort_values(columns[:-1], kind="stable").reset_index(drop=True)


def draw(traces: pd.DataFrame, budgets: pd.DataFrame) -> Figure:
    """Draw a column per dataset: iterations, remaining energy, accuracy and differences over the budget."""
    datasets = list(dict.fromkeys(budgets["dataset"]))
    metrics = [name for name in METRICS if (traces["metric"] == name).any()]
    compared = bool(budgets["uniform_difference"].notna().any())
    below = len(metrics)  # the rows of budgets
    figure, axes = style.panels(below + 1 + compared, len(datasets), 1.65)
    energy = traces.loc[traces["metric"] == "energy_left_joule", "value"].max()
    scale, prefix = words.prefix_of(energy)
    for column, dataset in enumerate(datasets):
        for row, metric in enumerate(metrics):
            factor = scale if metric == "energy_left_joule" else 1.0
            chosen = traces[(traces["dataset"] == dataset) & (traces["metric"] == metric)]
            _draw_traces(axes[row, column], chosen.assign(value=chosen["value"] / factor))
        panel = budgets[budgets["dataset"] == dataset]
        levels.draw_accuracy(axes[below, column], panel)
        if compared:
            _draw_gains(axes[-1, column], panel)
        for axis in axes[below:, column]:
            levels.set_level_axis(axis, panel["level"], "Energy budget (fraction)")
            axis.set_xlim(axes[below, column].get_xlim())
        style.label_panel(axes[0, column], dataset)
    for row, metric in enumerate(metrics):
        axes[row, 0].set_ylabel(METRICS[metric].format(prefix))
    axes[below, 0].set_ylabel("Final test\naccuracy (%)")
    if compared:
        axes[-1, 0].set_ylabel("Difference to\nuniform (points)")
    style.add_method_legend(figure, budgets["method"], 4)
    return figure


def _draw_traces(axis: Axes, traces: pd.DataFrame) -> None:
    if traces.empty:
        return
    devices = sorted(traces["device"].unique())
    for (modality, device), line in traces.groupby(["modality", "device"]):
        shape = DEVICE_LINES[devices.index(device) % len(DEVICE_LINES)]
        colour = style.modality_colour(str(modality)) if modality else "#444444"
        axis.plot(line["round"], line["value"], color=colour, linestyle=shape, linewidth=1.0)
    modalities = [name for name in dict.fromkeys(traces["modality"]) if name]
    if modalities:
        handles = [Line2D([], [], color=style.modality_colour(name), label=name) for name in modalities]
    else:
        handles = [
            Line2D([], [], color="#444444", linestyle=line, linewidth=1.0, label=f"device {device}")
            for device, line in zip(devices, DEVICE_LINES, strict=False)
        ]
    axis.set_ylim(0, 1.4 * traces["value"].max())  # room for the legend
    axis.legend(handles=handles, fontsize=6, ncols=3, handlelength=1.4, loc="upper center", columnspacing=0.8)
    style.tick_rounds(axis)


def _draw_gains(axis: Axes, panel: pd.DataFrame) -> None:
    """Draw each method's difference to the uniform cut of the same losses."""
    axis.axhline(0, color="black", linewidth=0.8, zorder=1)
    names = {"uniform_difference": "mean", "uniform_low": "low", "uniform_high": "high", "uniform_dots": "dots"}
    names = {name: short for name, short in names.items() if name in panel}
    for method, rows in transforms.by_method(levels.set_apart(panel).dropna(subset=["uniform_difference"])):
        line, strong = rows[["level", *names]].rename(columns=names), method in style.STRONG
        style.draw_line(axis, line, method, "level", strong=strong, band=strong, bars=len(line) == 1)


def _against_uniform(row: Mapping[Any, Any]) -> str:
    if pd.isna(row["uniform_difference"]):
        return ""
    gap = words.signed(row["uniform_difference"], row["uniform_low"], row["uniform_high"])
    return f"; against uniform {gap} points, p {words.p_value(row['uniform_p'])}"


def caption(results: Results, traces: pd.DataFrame, budgets: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, and the accuracies in the last round."""
    runs = traces[["dataset", "level", "seed"]].drop_duplicates().to_dict("records")
    named = "; ".join(f"{run['dataset']} at budget {run['level']:g}, seed {run['seed']}" for run in runs)
    shown = (
        f"Local iterations of each modality (colour) and remaining energy over rounds, of up to {NUM_DEVICES} devices "
        f"(solid, dashed, dotted) with the most modalities, under DMML-KD with balance: {named or 'no run'}. Below: "
        f"accuracy in the last round, mean over devices and up to {budgets['seeds'].max()} seeds with 95% "
        "Student intervals, over the budget, a fraction of what all iterations of all modalities in all rounds would "
        "cost; then differences to `uniform`, which cuts all modalities alike under the same energy (DMML for the "
        "methods without distillation, DMML-KD for those with it), paired by seed, with their 95% intervals. Methods "
        f"that were run at one budget alone stand a little to its right. {P_VALUES}"
        f"{captions.absent({'iterations and energy by device': len(traces) > 0})}"
    )
    lines = [
        f"- {captions.where(row, 'energy budget')}, {label(row['method'])}: "
        f"{words.with_interval(*words.interval_of(row, 'mean'))} %{_against_uniform(row)}"
        for row in budgets.to_dict("records")
    ]
    return shown, {"Accuracy in the last round": lines, "Joules per device": describe_joules(results.table)}


def describe_joules(table: pd.DataFrame) -> list[str]:
    """Return a line per dataset and budget: what the devices had, if all methods had the same, and what they spent."""
    lines = []
    for (dataset, level), rows in measures.joules(table).dropna(subset=["level"]).groupby(["dataset", "level"]):
        budget, spent = rows["budget_joule"], rows["spent_joule"]
        alike = budget.notna().all() and budget.max() <= (1 + 1e-6) * budget.min()
        had = f"{words.quantity(budget.mean(), 'J')} for every method" if alike else "not the same for every method"
        had = "not recorded" if budget.isna().any() else had
        used = f"{words.quantity(spent.min(), 'J')} to {words.quantity(spent.max(), 'J')}"
        lines.append(f"- {dataset}, energy budget {level:g}: {had}; spent {used}, by method")
    return lines
