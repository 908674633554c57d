"""Test accuracy over rounds, over simulated time and over energy spent, by dataset and heterogeneity."""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.results import add_costs
from dmmlkd_ext.experiments.show import plots, style
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD, label
from dmmlkd_ext.training.methods import UNIMODAL
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import transforms
from paper_figures.judge.comparisons import P_VALUES, compare

EXPERIMENTS = ("comparison",)
NEEDS = "test accuracy of the experiment comparison"
TITLE = "Test accuracy over rounds, time and energy"
COSTS = ("time_s", "energy_joule")


def transform(results: Results) -> pd.DataFrame:
    """Return the mean over seeds of each evaluated round's accuracy, and what it had cost by then.

    Methods that use one modality alone are left out; `table_accuracy` has them.

    Returns:
        Columns dataset, setting, method, round, mean, low, high, seeds, rise, time_s, energy_joule: the rise in the
        last tenth of the rounds; simulated time and a device's energy up to the round, means over seeds; not a number
        where they were not recorded.
    """
    keys = ["dataset", "setting", "method", "round"]
    accuracy = transforms.accuracy_by_run(results.table)
    accuracy = accuracy[~accuracy["method"].str.startswith(UNIMODAL)]
    if accuracy.empty:
        return accuracy
    curves = transforms.summarize(accuracy, keys)
    curves = curves.merge(transforms.last_rise(curves, keys[:-1]), on=keys[:-1], how="left")
    return add_costs(curves, results.table, keys, COSTS)


def draw(curves: pd.DataFrame) -> Figure:
    """Draw a column per dataset; a row per setting over rounds, then the last setting over time and over energy."""
    datasets = list(dict.fromkeys(curves["dataset"]))
    settings = list(dict.fromkeys(curves["setting"]))
    rows = [(setting, "round") for setting in settings]
    rows += [(settings[-1], cost) for cost in COSTS if curves[cost].notna().any()]
    figure, axes = style.panels(len(rows), len(datasets), 1.75)
    for (row, (setting, x)), (column, dataset) in product(enumerate(rows), enumerate(datasets)):
        axis = axes[row, column]
        chosen = curves[(curves["dataset"] == dataset) & (curves["setting"] == setting)].dropna(subset=[x])
        factor = plots.label_axis(axis, x, curves[x].max())
        _draw_panel(axis, chosen.assign(**{x: chosen[x] / factor}), x)
        style.label_panel(axis, captions.where({"dataset": dataset, "setting": setting}))
        if column == 0:
            axis.set_ylabel("Test accuracy (%)")
    style.add_method_legend(figure, curves["method"], 4, strong=True)
    return figure


def _draw_panel(axis: Axes, panel: pd.DataFrame, x: str) -> None:
    for method, rows in reversed(list(transforms.by_method(panel))):
        strong = method in style.STRONG
        style.draw_line(axis, rows, method, x, strong=strong, band=strong)
        if rows["rise"].iloc[0] > transforms.RISING:
            end = rows.iloc[-1]
            axis.annotate("↑", (end[x], 100 * end["mean"]), fontsize=6, ha="left", va="center")
    rivals = panel.loc[panel["method"] != "centralized", x]
    if x != "round" and len(rivals):
        # The upper reference computes all devices' work in one place: in its scale the others could not be told apart.
        axis.set_xlim(0, 1.05 * rivals.max())
    style.keep_percent(axis)


def caption(results: Results, curves: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, and the accuracies in the last round."""
    settings = list(dict.fromkeys(curves["setting"]))
    in_text = {cost: plots.AXES[cost].text for cost in COSTS}
    rises = f"by more than {100 * transforms.RISING:g} points in the last tenth of the rounds"
    shown = (
        f"Mean test accuracy over devices and up to {curves['seeds'].max()} seeds, with no limit on energy; bands are "
        "95% Student intervals over seeds, drawn for the methods with strong lines. Columns are datasets. An arrow "
        f"marks a curve that still rises {rises}. "
        f"{captions.SAMPLED} The last rows show the last setting ({settings[-1]}) over "
        f"{' and over '.join(in_text.values())}, means over devices and seeds at the evaluated rounds, as far as the "
        "devices' methods go; the numbers of every setting are in the CSV. Differences are paired by seed; "
        f"{P_VALUES}{captions.absent({text: curves[cost].notna().any() for cost, text in in_text.items()})}"
    )
    comparison = compare(transforms.final_accuracy(results.table), ["dataset", "setting"])
    return shown, {
        "Accuracy in the last round": captions.describe_differences(comparison, REFERENCE_METHOD),
        f"Still rising, {rises}": rising(curves),
    }


def rising(curves: pd.DataFrame) -> list[str]:
    """Return a line per curve that still rises."""
    ends = curves.drop_duplicates(["dataset", "setting", "method"])
    return [
        f"- {captions.where(row)}, {label(row['method'])}: by {100 * row['rise']:.1f} points"
        for row in ends[ends["rise"] > transforms.RISING].to_dict("records")
    ]
