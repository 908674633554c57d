"""Pictures of runs: a function per kind, from the runs and what is compared to a figure and what is seen in it."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmmlkd_ext.experiments import statistics
from dmmlkd_ext.experiments.compare import (
    DATASET,
    METHOD,
    ComparisonError,
    Design,
    Runs,
    in_sequence,
    pair,
    sort,
)
from dmmlkd_ext.experiments.results import pick, read_records
from dmmlkd_ext.experiments.show import style
from dmmlkd_ext.experiments.show.labels import label
from dmmlkd_ext.experiments.show.tables import short_names
from dmmlkd_ext.experiments.show.words import prefix_of
from dmmlkd_ext.experiments.statistics import LEAST_SEEDS
from dmmlkd_ext.training.methods import UNIMODAL

Drawn = tuple[Figure, str]
"""A figure, and a sentence that says what is seen."""


class Axis(NamedTuple):
    """A horizontal axis: its label, its unit, and what it is called in a text."""

    label: str
    unit: str
    text: str


AXES = {
    "round": Axis("Round", "", "rounds"),
    "time_s": Axis("Simulated time", "s", "simulated time"),
    "energy_joule": Axis("Energy per device", "J", "the energy that a device has spent"),
}
MOST_PANELS = 12
_COLUMNS = 3
_BANDS = f"bands are 95% Student intervals over seeds; with fewer than {LEAST_SEEDS} seeds, dots are the seeds"


def draw_accuracy(runs: Runs, design: Design, x: str = "round") -> Drawn:
    """Draw the mean test accuracy over devices and seeds over rounds, or over what it had cost by then.

    Raises:
        ComparisonError: no run recorded it.
    """
    rows = _of_lines(runs, design, runs.rounds())
    if rows.empty or rows[x].isna().all():
        raise ComparisonError(f"runs must have recorded test accuracy and {AXES[x].text}; none has")
    line, largest = _line_of(design), rows[x].max()
    figure, found = _panels(rows, design)
    names = in_sequence(rows[line])
    for axis, panel in found:
        factor = label_axis(axis, x, largest)
        panel = panel.assign(x=panel[x] / factor)
        for name, look in style.looks(names).items():
            chosen = panel[panel[line] == name]
            curve = statistics.summarize(chosen, ["round"]).merge(chosen.groupby("round")["x"].mean(), on="round")
            _draw_curve(axis, curve, look)
        style.keep_percent(axis)
    _finish(figure, found, "Test accuracy (%)", names)
    return figure, f"test accuracy over {AXES[x].text}, mean over devices and seeds; {_BANDS}"


def draw_difference(runs: Runs, design: Design) -> Drawn:
    """Draw the differences of test accuracy to the baseline over rounds, paired by seed.

    Raises:
        ComparisonError: nothing differs, or no seed has both.
    """
    line = design.by
    if line is None:
        raise ComparisonError("runs must differ in an option for a difference; these differ in none")
    rows = _of_lines(runs, design, runs.rounds())
    keys = [*design.keys, "round", "seed"]
    base = rows[rows[line] == design.baseline]
    both = rows[rows[line] != design.baseline].merge(base[[*keys, "mean"]], on=keys, suffixes=("", "_base"))
    if both.empty:
        raise ComparisonError(f"runs must have seeds in common with {line} {design.baseline}; none has")
    both = both.assign(mean=both["mean"] - both["mean_base"], x=both["round"])
    figure, found = _panels(both, design)
    names = in_sequence(both[line])
    for axis, panel in found:
        axis.axhline(0, color="black", linewidth=0.8, zorder=1)
        for name, look in style.looks(names).items():
            chosen = panel[panel[line] == name]
            curve = statistics.summarize(chosen, ["round"])
            _draw_curve(axis, curve.assign(x=curve["round"]), look)
        style.tick_rounds(axis)
    _finish(figure, found, f"Difference to\n{label(design.baseline or '')} (points)", names)
    return figure, f"difference of test accuracy to {design.baseline} over rounds, paired by seed; {_BANDS}"


def draw_classes(runs: Runs, design: Design) -> Drawn:
    """Draw the accuracy of each class in the last round, mean over devices and seeds.

    Raises:
        ComparisonError: no run recorded it.
    """
    rows = _of_lines(runs, design, pick(runs.numbers, "class_accuracy", of_devices=False))
    if rows.empty:
        raise ComparisonError("runs must have recorded accuracy by class, by --training.per-class last; none has")
    line, figure, found = _line_of(design), *_panels(rows, design)
    names = in_sequence(rows[line])
    for axis, panel in found:
        classes, width = in_sequence(panel["part"]), 0.8 / len(names)
        for place, (name, look) in enumerate(style.looks(names).items()):
            curve = statistics.summarize(panel[panel[line] == name], ["part"], "value")
            curve = curve.set_index("part").reindex(classes)
            places = np.arange(len(classes)) + (place - (len(names) - 1) / 2) * width
            mean, low, high = (100 * curve[end].to_numpy(dtype=float) for end in ("mean", "low", "high"))
            axis.bar(places, mean, width=0.9 * width, color=look.colour, alpha=0.85)
            enough = curve["seeds"].to_numpy() >= LEAST_SEEDS
            style.draw_bars(axis, places, mean, np.where(enough, low, np.nan), high, "black")
        axis.set_xticks(range(len(classes)), classes, rotation=45 if len(classes) > 5 else 0)
        axis.set_xlabel("Class")
    _finish(figure, found, "Test accuracy (%)", names)
    bars = f"bars are 95% Student intervals, from {LEAST_SEEDS} seeds on"
    return figure, f"test accuracy by class in the last round, mean over devices and seeds; {bars}"


def draw_iterations(runs: Runs, design: Design) -> Drawn:
    """Draw the local iterations of each modality over rounds, mean over devices and seeds: a panel per row.

    Raises:
        ComparisonError: no run recorded them.
    """
    rows = _of_lines(runs, design, pick(runs.numbers, "local_iterations", of_devices=False))
    if rows.empty:
        raise ComparisonError("runs must have recorded local iterations; none has")
    figure, found = _panels(rows, design, [*design.keys, _line_of(design)])
    for axis, panel in found:
        for method, look in style.looks([UNIMODAL + name for name in sorted(panel["part"].unique())]).items():
            name = method.removeprefix(UNIMODAL)
            curve = panel[panel["part"] == name].groupby("round")["value"].mean()
            axis.plot(curve.index, curve, color=look.colour, linewidth=1.2, label=name)
        axis.set_ylim(bottom=0)
        axis.legend(fontsize=6, ncols=2)
        style.tick_rounds(axis)
    _finish(figure, found, "Local iterations")
    return figure, "local iterations of each modality over rounds, mean over the devices that hold it and over seeds"


def draw_holders(runs: Runs, design: Design) -> Drawn:
    """Draw which device holds which modality, in the runs of the first seed.

    Raises:
        ComparisonError: no run recorded it.
    """
    held = {run: _holders(Path(run)) for run in runs.options.index}
    told = runs.options.assign(count=[0 if frame is None else int(frame.to_numpy().sum()) for frame in held.values()])
    told = told[told["count"] > 0]
    if told.empty:
        raise ComparisonError("runs must have recorded local iterations, which tell who holds what; none has")
    seed = in_sequence(told["seed"])[0]
    # A method of one modality alone takes the others away: the run with the most shows who holds what.
    rows = told[told["seed"] == seed].reset_index(names="run").sort_values("count", kind="stable")
    rows = rows.groupby(list(design.keys), sort=False).tail(1)
    figure, found = _panels(rows, design)
    for axis, panel in found:
        frame = held[panel["run"].iloc[0]]
        sns.heatmap(frame, ax=axis, cmap=["#EEEEEE", "#0072B2"], vmin=0, vmax=1, cbar=False, linewidths=0.5)
        axis.tick_params(axis="y", rotation=0)
        axis.set_xlabel("Device")
    _finish(figure, found, "")
    return figure, f"which device holds which modality (filled), seed {seed}"


PLOTS: dict[str, Callable[[Runs, Design], Drawn]] = {
    "accuracy": draw_accuracy,
    "time": lambda runs, design: draw_accuracy(runs, design, "time_s"),
    "energy": lambda runs, design: draw_accuracy(runs, design, "energy_joule"),
    "difference": draw_difference,
    "classes": draw_classes,
    "iterations": draw_iterations,
    "holders": draw_holders,
}


def label_axis(axis: Axes, x: str, largest: float) -> float:
    """Label a horizontal axis of `AXES` and return the factor by which what it shows is divided, for its unit."""
    if not AXES[x].unit:
        style.tick_rounds(axis)
        return 1.0
    factor, prefix = prefix_of(largest)
    axis.set_xlabel(f"{AXES[x].label} ({prefix}{AXES[x].unit})")
    axis.xaxis.set_major_locator(MaxNLocator(nbins=5))
    return factor


def _line_of(design: Design) -> str:
    """Return the option that has a line for each of its values."""
    return design.by or METHOD


def _of_lines(runs: Runs, design: Design, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of runs with the options of the design, and the one that lines are told apart by."""
    found = pair(runs, design, rows)
    return found.assign(**{_line_of(design): runs.options.loc[found["run"], _line_of(design)].to_numpy()})


def _panels(
    rows: pd.DataFrame, design: Design, keys: Sequence[str] | None = None
) -> tuple[Figure, list[tuple[Axes, pd.DataFrame]]]:
    """Return a figure with a panel for each combination of keys, and each panel's axes and rows."""
    keys = list(keys or design.keys)
    places = sort(rows[keys].drop_duplicates(), keys)
    if len(places) > MOST_PANELS:
        raise ComparisonError(f"runs must make at most {MOST_PANELS} panels, got {len(places)} of {', '.join(keys)}")
    columns = min(_COLUMNS, len(places))
    figure, axes = style.panels(math.ceil(len(places) / columns), columns, 2.0)
    named, found = [key for key in keys if places[key].nunique() > 1] or [DATASET], []
    for axis, place in zip(axes.flat, places.to_dict("records"), strict=False):
        names = short_names(named)
        told = [label(place[key]) if key in (DATASET, METHOD) else f"{names[key]} {place[key]}" for key in named]
        style.label_panel(axis, ", ".join(told))
        found.append((axis, rows.merge(pd.DataFrame([place]), on=keys)))
    for axis in axes.flat[len(places) :]:
        axis.remove()
    return figure, found


def _draw_curve(axis: Axes, curve: pd.DataFrame, look: style.Look) -> None:
    """Draw a line with its band, or with the dots of its seeds where these are too few for a band."""
    if curve.empty:
        return
    style.draw_line(axis, curve, look, "x")


def _finish(figure: Figure, found: Sequence[tuple[Axes, Any]], text: str, names: Sequence[str] = ()) -> None:
    """Label the vertical axes, set ticks of rounds, and put the legend above all panels."""
    for place, (axis, _) in enumerate(found):
        if place % _COLUMNS == 0:
            axis.set_ylabel(text)
    handles = [style.legend_handle(name, shown=look) for name, look in style.looks(names).items()]
    if handles:
        style.add_legend(figure, handles, 4)


def _holders(folder: Path) -> pd.DataFrame | None:
    """Return whether devices (columns) hold modalities (rows), or None where it was not recorded."""
    record = next(iter(read_records(folder)), {})
    parts = record.get("local_iterations") or {}
    frame = pd.DataFrame({name: [value is not None for value in values] for name, values in parts.items()}).T
    return None if frame.empty else frame.astype(int)
