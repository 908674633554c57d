"""Figure 1: test accuracy over rounds, by dataset and energy budget."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from dmmlkd_ext.experiments.results import Results
from paper_figures import captions, style, transforms
from paper_figures.experiments import REFERENCE_METHOD

NAME = "figure_convergence"
EXPERIMENTS = ("comparison",)


def make(results: Results, folder: Path) -> list[Path]:
    """Draw the figure from results and write its files."""
    accuracy = transforms.over_rounds(transforms.accuracy_by_run(results.table))
    comparison = transforms.final_comparison(results.table, REFERENCE_METHOD)
    figure = draw(accuracy)
    paths = style.save_figure(figure, accuracy, write_caption(comparison, results), folder, NAME)
    plt.close(figure)
    return paths


def draw(accuracy: pd.DataFrame) -> Figure:
    """Draw one panel a dataset (columns) and energy budget (rows).

    Args:
        accuracy: of `transforms.over_rounds`, at least one row.
    """
    datasets = list(dict.fromkeys(accuracy["dataset"]))
    budgets = list(dict.fromkeys(accuracy["budget"]))
    figure, axes = plt.subplots(
        len(budgets),
        len(datasets),
        figsize=(style.TWO_COLUMNS, 0.6 + 1.9 * len(budgets)),
        sharex=True,
        sharey="col",
        squeeze=False,
        layout="constrained",
    )
    for row, budget in enumerate(budgets):
        for column, dataset in enumerate(datasets):
            panel = accuracy[(accuracy["dataset"] == dataset) & (accuracy["budget"] == budget)]
            _draw_panel(axes[row, column], panel, f"{dataset}, {budget} energy")
        axes[row, 0].set_ylabel("Test accuracy (%)")
    for axis in axes[-1]:
        axis.set_xlabel("Round")
        low, high = axis.get_ylim()  # common to the column
        axis.set_ylim(max(0.0, low), min(100.0, high))
    handles = [style.legend_handle(method) for method in style.in_order(accuracy["method"])]
    figure.legend(handles=handles, loc="outside upper center", ncols=len(handles), handlelength=2.8)
    return figure


def _draw_panel(axis: Axes, panel: pd.DataFrame, label: str) -> None:
    shown = panel.assign(**{name: 100 * panel[name] for name in ("mean", "low", "high")})
    looks = {method: style.look(method) for method in style.in_order(shown["method"])}
    appearance: dict[str, Any] = {
        "palette": {method: look.colour for method, look in looks.items()},
        "markers": {method: look.marker for method, look in looks.items()},
        "dashes": {method: look.dashes or "" for method, look in looks.items()},
    }
    sns.lineplot(
        shown,
        x="round",
        y="mean",
        hue="method",
        style="method",
        hue_order=list(looks),
        style_order=list(looks),
        errorbar=None,
        legend=False,
        ax=axis,
        **appearance,
    )
    for method, look in looks.items():
        line = shown[shown["method"] == method]
        axis.fill_between(
            line["round"], line["low"], line["high"], color=look.colour, alpha=style.BAND_ALPHA, linewidth=0
        )
        for edge in ("low", "high"):  # bands overlap: their edges tell whose they are
            axis.plot(line["round"], line[edge], color=look.colour, alpha=style.EDGE_ALPHA, linewidth=0.6)
    axis.set(xlabel="", ylabel="")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    # A label of the panel, not a title of the image.
    axis.set_title(label, loc="left", fontsize=8, fontweight="bold", pad=3)


def write_caption(comparison: pd.DataFrame, results: Results) -> str:
    """Return the caption: what is drawn, final numbers, provenance."""
    seeds = comparison["seeds"].max()
    lines = [
        "# Test accuracy over rounds",
        "",
        f"Mean over devices and up to {seeds} seeds; bands are 95% Student intervals over seeds. Columns are "
        "datasets. At 100% energy every modality trains all local iterations in all rounds; at 30% a "
        "device has three tenths of that energy for all rounds. Rows of differences are paired by seed.",
        "",
        "Accuracy in the last round:",
        "",
        *captions.describe_differences(comparison, REFERENCE_METHOD),
        "",
        "Provenance:",
        "",
        *captions.describe_provenance(results.table, results.unfinished),
    ]
    return "\n".join(lines) + "\n"
