"""Accuracy, consensus distance and spectral gap over topologies, numbers of devices and link loss."""

from __future__ import annotations

from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.results import last_round
from paper_figures import captions, claims, levels, style, transforms
from paper_figures.inputs import Numbers, pick, require

NAME = "figure_topology"
EXPERIMENTS = ("topology",)
BLOCK = "shared"
"""The block whose consensus distance is shown: all devices have it."""
SETTINGS = {"topology": "", "devices": "Devices", "link loss": "Probability of link loss"}
MEASURES = {
    "accuracy": "Final test\naccuracy (%)",
    "consensus": "Consensus distance\nof the shared block",
    "gap": "Spectral gap",
}


def make(results: Numbers, folder: Path) -> list[Path]:
    """Draw the figure from results and write its files."""
    drawn = require(transform(results.table), NAME, "test accuracy of the experiment topology")
    figure = draw(drawn)
    paths = style.save_figure(figure, drawn, write_caption(drawn, results), folder, NAME)
    plt.close(figure)
    return paths


def transform(table: pd.DataFrame) -> pd.DataFrame:
    """Return final accuracy, consensus distance and spectral gap of each method at each topology and level.

    Returns:
        Columns measure (`accuracy`, `consensus`, `gap`), dataset, setting, topology (empty but for the setting
        topology), level, method, mean, low, high, seeds.
    """
    last = last_round(table)
    accuracy = transforms.final_accuracy(table)
    distance = pick(last, "consensus_distance", [BLOCK], of_devices=False).rename(columns={"value": "mean"})
    names = pick(last, "accuracy", ["test"])[[*transforms.RUN, "topology"]].drop_duplicates(transforms.RUN)
    keys = ["dataset", "setting", "topology", "level", "method"]
    found = []
    gap = pick(last, "spectral_gap", of_devices=False).rename(columns={"value": "mean"})
    for measure, rows in (("accuracy", accuracy), ("consensus", distance), ("gap", gap)):
        own = rows.drop(columns="topology", errors="ignore").merge(names, on=transforms.RUN)
        own["topology"] = own["topology"].where(own["setting"] == "topology", "")
        if len(own):
            found.append(transforms.summarize(own, keys).assign(measure=measure))
    columns = ["measure", *keys, "mean", "low", "high", "seeds"]
    return pd.concat(found, ignore_index=True)[columns] if found else pd.DataFrame(columns=columns)


def draw(drawn: pd.DataFrame) -> Figure:
    """Draw a column a setting: accuracy above, consensus distance and spectral gap below."""
    settings = [name for name in SETTINGS if (drawn["setting"] == name).any()]
    measures = [name for name in MEASURES if (drawn["measure"] == name).any()]
    figure, axes = style.panels(len(measures), len(settings), 1.8, sharey="row", sharex="col")
    for row, measure in enumerate(measures):
        for column, setting in enumerate(settings):
            axis = axes[row, column]
            panel = drawn[(drawn["measure"] == measure) & (drawn["setting"] == setting)]
            _draw_panel(axis, panel, setting, 100.0 if measure == "accuracy" else 1.0)
        if measure == "accuracy":
            style.keep_percent(axes[row, 0])
        else:
            axes[row, 0].set_ylim(bottom=-0.05 * axes[row, 0].get_ylim()[1])  # a distance of 0 is not cut in half
        axes[row, 0].set_ylabel(MEASURES[measure])
    methods = style.in_order(drawn["method"])
    style.add_legend(figure, [style.legend_handle(method) for method in methods], 4)
    return figure


def _draw_panel(axis: Axes, panel: pd.DataFrame, setting: str, scale: float) -> None:
    methods = style.in_order(panel["method"])
    if setting != "topology":
        for method in methods:
            own = panel[panel["method"] == method]
            style.draw_line(axis, own, method, "level", scale, band=False, bars=True)
        if len(panel):
            levels.set_level_axis(axis, panel["level"], SETTINGS[setting])
        return
    topologies = list(dict.fromkeys(panel["topology"]))
    for order, method in enumerate(methods):
        own = panel[panel["method"] == method]
        places = np.array([topologies.index(name) for name in own["topology"]]) + 0.2 * (order - (len(methods) - 1) / 2)
        mean, low, high = (scale * own[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
        shown = style.look(method)
        style.draw_bars(axis, places, mean, low, high, shown.colour)
        axis.plot(places, mean, linestyle="none", marker=shown.marker, color=shown.colour, markeredgecolor="white")
    axis.set_xticks(range(len(topologies)))
    labels = [name.replace("_", " ") for name in topologies]
    axis.set_xticklabels(labels, rotation=40, ha="right", rotation_mode="anchor")
    axis.margins(x=0.1)


def write_caption(drawn: pd.DataFrame, results: Numbers) -> str:
    """Return the caption: what is drawn, what was found, the numbers, provenance."""
    missing = [name for name in SETTINGS if not (drawn["setting"] == name).any()]
    shown = (
        f"Dataset {', '.join(sorted(set(drawn['dataset'])))}. Test accuracy and consensus distance in the last round, "
        f"means over devices and up to {drawn['seeds'].max()} seeds with 95% Student intervals over seeds. Consensus "
        "distance: root mean square distance of the devices' shared parameters from their mean. Spectral gap: of the "
        "mixing on the links that work, a mean over rounds; 0 where the devices fall apart."
    )
    if missing:
        shown += f" Not drawn, for want of runs: {', '.join(missing)}."
    lines = []
    for row in drawn.to_dict("records"):
        place = captions.where({"setting": row["topology"].replace("_", " ") or row["setting"], "level": row["level"]})
        place += f", {style.look(row['method']).label}"
        if row["measure"] == "accuracy":
            lines.append(f"- {place}: {captions.with_interval(row['mean'], row['low'], row['high'])} %")
        else:
            interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if np.isfinite(row["low"]) else ""
            name = {"consensus": "consensus distance", "gap": "spectral gap"}[row["measure"]]
            lines.append(f"- {place}: {name} {row['mean']:.3g}{interval}")
    sections = {
        "What was found": captions.describe_claims(*claims.judge(results.table, names=["gentle"])),
        "Numbers": lines,
        "Rule": [claims.RULE],
    }
    return captions.compose("Topologies, devices and link loss", shown, sections, results)
