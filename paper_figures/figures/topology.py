"""Accuracy, consensus distance and spectral gap over topologies, numbers of devices and link loss."""

from __future__ import annotations

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.results import last_round, pick
from dmmlkd_ext.experiments.show import style, words
from dmmlkd_ext.experiments.show.labels import label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions, levels
from paper_figures.judge import transforms

EXPERIMENTS = ("topology",)
NEEDS = "test accuracy of the experiment topology"
TITLE = "Topologies, devices and link loss"
BLOCK = "shared"
"""The block whose consensus distance is shown: all devices have it."""
SETTINGS = {"topology": "", "devices": "Devices", "link loss": "Probability of link loss"}
MEASURES = {
    "accuracy": "Final test\naccuracy (%)",
    "consensus": "Consensus distance\nof the shared block",
    "gap": "Spectral gap",
}


def transform(results: Results) -> pd.DataFrame:
    """Return final accuracy, consensus distance and spectral gap of each method at each topology and level.

    Returns:
        Columns measure (`accuracy`, `consensus`, `gap`), dataset, setting, topology (empty but for the setting
        topology), level, method, mean, low, high, seeds.
    """
    last = last_round(results.table)
    accuracy = transforms.final_accuracy(results.table)
    distance = pick(last, "consensus_distance", [BLOCK], of_devices=False).rename(columns={"value": "mean"})
    names = pick(last, "accuracy", ["test"])[[*transforms.RUN, "topology"]].drop_duplicates(transforms.RUN)
    keys = ["dataset", "setting", "topology", "level", "method"]
    found = []
    gap = pick(last, "spectral_gap", of_devices=False).rename(columns={"value": "mean"})
    for measure, rows in (("accuracy", accuracy), ("consensus", distance), ("gap", gap)):
        named = rows.drop(columns="topology", errors="ignore").merge(names, on=transforms.RUN)
        named["topology"] = named["topology"].where(named["setting"] == "topology", "")
        if len(named):
            found.append(transforms.summarize(named, keys).assign(measure=measure))
    columns = ["measure", *keys, "mean", "low", "high", "seeds"]
    drawn = pd.concat(found, ignore_index=True) if found else pd.DataFrame(columns=columns)
    return drawn[[*columns, *(["dots"] if "dots" in drawn else [])]]


def draw(drawn: pd.DataFrame) -> Figure:
    """Draw a column per setting: accuracy above, consensus distance and spectral gap below."""
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
    style.add_method_legend(figure, drawn["method"], 4)
    return figure


def _draw_panel(axis: Axes, panel: pd.DataFrame, setting: str, scale: float) -> None:
    methods = list(transforms.by_method(panel))
    if setting != "topology":
        for method, rows in methods:
            style.draw_line(axis, rows, method, "level", scale, band=False, bars=True)
        if len(panel):
            levels.set_level_axis(axis, panel["level"], SETTINGS[setting])
        return
    topologies = list(dict.fromkeys(panel["topology"]))
    for order, (method, rows) in enumerate(methods):
        shift = 0.2 * (order - (len(methods) - 1) / 2)
        places = np.array([topologies.index(name) for name in rows["topology"]]) + shift
        mean, low, high = (scale * rows[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
        shown = style.look(method)
        if style.has_dots(rows):
            style.draw_dots(axis, places, rows["dots"], scale, shown.colour)
        else:
            style.draw_bars(axis, places, mean, low, high, shown.colour)
        axis.plot(places, mean, linestyle="none", marker=shown.marker, color=shown.colour, markeredgecolor="white")
    axis.set_xticks(range(len(topologies)))
    labels = [name.replace("_", " ") for name in topologies]
    axis.set_xticklabels(labels, rotation=40, ha="right", rotation_mode="anchor")
    axis.margins(x=0.1)


def caption(_results: Results, drawn: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, and the numbers."""
    shown = (
        f"Dataset {', '.join(sorted(set(drawn['dataset'])))}. Test accuracy and consensus distance in the last round, "
        f"means over devices and up to {drawn['seeds'].max()} seeds with 95% Student intervals over seeds. Consensus "
        "distance: root mean square distance of the devices' shared parameters from their mean. Spectral gap: of the "
        "mixing on the links that work, a mean over rounds; 0 where the devices fall apart."
    )
    shown += captions.absent({name: (drawn["setting"] == name).any() for name in SETTINGS})
    lines = []
    for row in drawn.to_dict("records"):
        place = captions.where({"setting": row["topology"].replace("_", " ") or row["setting"], "level": row["level"]})
        place += f", {label(row['method'])}"
        if row["measure"] == "accuracy":
            lines.append(f"- {place}: {words.with_interval(row['mean'], row['low'], row['high'])} %")
        else:
            interval = f" [{row['low']:.3g}, {row['high']:.3g}]" if np.isfinite(row["low"]) else ""
            name = "consensus distance" if row["measure"] == "consensus" else "spectral gap"
            lines.append(f"- {place}: {name} {row['mean']:.3g}{interval}")
    return shown, {"Numbers": lines}
