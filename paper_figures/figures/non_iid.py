"""Final accuracy over the concentration of the devices' label distributions, and what distillation adds to it."""

from __future__ import annotations

import pandas as pd
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.show import style
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions, levels
from paper_figures.judge.comparisons import P_VALUES, over_levels

EXPERIMENTS = ("non_iid",)
NEEDS = "test accuracy of the experiment non_iid"
TITLE = "Final accuracy over the Dirichlet concentration"


def transform(results: Results) -> pd.DataFrame:
    """Return each method's final accuracy at each concentration, and its difference to the reference."""
    return over_levels(results.table)


def draw(rows: pd.DataFrame) -> Figure:
    """Draw a column per dataset: accuracy above, differences to the reference below."""
    datasets = list(dict.fromkeys(rows["dataset"]))
    compared = bool(rows["difference"].notna().any())
    figure, axes = style.panels(2 if compared else 1, len(datasets), 1.9, sharex="col")
    for column, dataset in enumerate(datasets):
        panel = rows[rows["dataset"] == dataset]
        levels.draw_accuracy(axes[0, column], panel)
        if compared:
            levels.draw_differences(axes[1, column], panel)
        style.label_panel(axes[0, column], dataset)
        levels.set_level_axis(axes[-1, column], panel["level"], "Dirichlet concentration alpha", logarithmic=True)
    axes[0, 0].set_ylabel("Final test accuracy (%)")
    if compared:
        axes[1, 0].set_ylabel(levels.difference_label())
    style.add_method_legend(figure, rows["method"], 5)
    return figure


def caption(_results: Results, rows: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, and the accuracies in the last round."""
    shown = (
        f"Above: test accuracy in the last round, mean over devices and up to {rows['seeds'].max()} seeds, with 95% "
        "Student intervals over seeds as bars. Below: differences to DMML, paired by seed, with their 95% intervals as "
        "bands. Devices' label distributions are drawn from a Dirichlet distribution; the smaller its concentration "
        f"alpha, the less alike they are. {P_VALUES}"
    )
    shown += captions.absent({"intervals": rows["mean_low"].notna().any(), "differences": rows["pairs"].any()})
    return shown, {"Accuracy in the last round": captions.describe_differences(rows, REFERENCE_METHOD, "alpha")}
