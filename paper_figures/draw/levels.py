"""Final accuracy over the levels of an experiment, with the paired difference to the reference below it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, NullLocator

from paper_figures import captions, claims, style, transforms
from paper_figures.experiments import REFERENCE_METHOD
from paper_figures.inputs import Numbers, require


@dataclass(frozen=True)
class LevelFigure:
    """A figure of accuracy over levels."""

    name: str
    experiment: str
    title: str
    symbol: str
    """What a level is called."""
    axis: str
    """Label of the horizontal axis."""
    meaning: str
    """What a level is, for the caption."""
    logarithmic: bool
    claims: tuple[str, ...]
    """The claims that the caption judges."""


def make(shown: LevelFigure, results: Numbers, folder: Path) -> list[Path]:
    """Draw a figure from results and write its files."""
    rows = require(over_levels(results.table), shown.name, f"test accuracy of the experiment {shown.experiment}")
    figure = draw(rows, shown)
    paths = style.save_figure(figure, rows, write_caption(rows, shown, results), folder, shown.name)
    plt.close(figure)
    return paths


def over_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Return each method's final accuracy at each level and its paired difference to the reference.

    Returns:
        Columns dataset, setting, level, method and those of `paper_figures.transforms.compare`; rows without a
        level are left out.
    """
    final = transforms.final_accuracy(table)
    return transforms.compare(final.dropna(subset=["level"]), ["dataset", "setting", "level"])


def draw(rows: pd.DataFrame, shown: LevelFigure) -> Figure:
    """Draw a column a dataset: accuracy above, differences to the reference below."""
    datasets = list(dict.fromkeys(rows["dataset"]))
    compared = bool(rows["difference"].notna().any())
    figure, axes = style.panels(2 if compared else 1, len(datasets), 1.9, sharex="col")
    for column, dataset in enumerate(datasets):
        panel = rows[rows["dataset"] == dataset]
        draw_accuracy(axes[0, column], panel)
        if compared:
            draw_differences(axes[1, column], panel)
        style.label_panel(axes[0, column], dataset)
        set_level_axis(axes[-1, column], panel["level"], shown.axis, shown.logarithmic)
    axes[0, 0].set_ylabel("Final test accuracy (%)")
    if compared:
        axes[1, 0].set_ylabel(difference_label())
    methods = style.in_order(rows["method"])
    style.add_legend(figure, [style.legend_handle(method) for method in methods], 5)
    return figure


def draw_accuracy(axis: Axes, panel: pd.DataFrame, x: str = "level") -> None:
    """Draw each method's accuracy, with bars of their intervals for the paper's and those of one level."""
    apart = set_apart(panel, x)
    for method in style.in_order(apart["method"]):
        own = apart[apart["method"] == method].rename(columns={"mean_low": "low", "mean_high": "high"})
        strong = method in style.STRONG
        style.draw_line(axis, own, method, x, strong=strong, band=False, bars=strong or len(own) == 1)
    style.keep_percent(axis)


def set_apart(panel: pd.DataFrame, x: str = "level") -> pd.DataFrame:
    """Move methods that have one level, where others have more, a little to its right, one beside the other.

    Example:
        >>> panel = pd.DataFrame({"method": ["dmml", "dmml", "greedy"], "level": [0.0, 1.0, 0.5]})
        >>> set_apart(panel)["level"].tolist()
        [0.0, 1.0, 0.54]
    """
    counts = panel.groupby("method", observed=True)[x].nunique()
    width = panel[x].max() - panel[x].min()
    single = [method for method in style.in_order(panel["method"]) if counts[method] == 1] if counts.max() > 1 else []
    step = panel["method"].map({method: 0.04 * width * (place + 1) for place, method in enumerate(single)})
    return panel.assign(**{x: panel[x] + step.astype(float).fillna(0.0)})


def draw_differences(axis: Axes, panel: pd.DataFrame, x: str = "level") -> None:
    """Draw each method's difference to the reference with bands of its paired intervals."""
    axis.axhline(0, color=style.look(REFERENCE_METHOD).colour, linewidth=1.0, zorder=1)
    known = panel.dropna(subset=["difference"])
    for method in style.in_order(known["method"]):
        own = known[known["method"] == method][[x, "difference", "difference_low", "difference_high"]]
        own.columns = pd.Index([x, "mean", "low", "high"])
        style.draw_line(axis, own, method, x, band=True, bars=len(own) == 1)


def set_level_axis(axis: Axes, levels: Sequence[float] | pd.Series, label: str, logarithmic: bool = False) -> None:
    """Label the horizontal axis, with a tick at each level."""
    places = sorted(set(levels))
    if logarithmic and min(places) > 0:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{place:g}" for place in places], rotation=45 if len(places) > 7 else 0)
    axis.set_xlabel(label)


def difference_label() -> str:
    """Return the label of an axis of differences to the reference."""
    return f"Difference to {style.look(REFERENCE_METHOD).label}\n(points)"


def write_caption(rows: pd.DataFrame, shown: LevelFigure, results: Numbers) -> str:
    """Return the caption: what is drawn, what was found, the numbers, provenance."""
    text = (
        f"Above: test accuracy in the last round, mean over devices and up to {rows['seeds'].max()} seeds, with 95% "
        "Student intervals over seeds as bars. Below: differences to DMML, paired by seed, with their 95% intervals as "
        f"bands. {shown.meaning} p of the paired t test, adjusted by Holm over all differences."
    )
    if not np.isfinite(rows["mean_low"]).any():
        text += " There is one seed alone, so that there is no interval."
    if not rows["difference"].notna().any():
        text += " Differences are not drawn: no seed has DMML and another method."
    sections = {
        "What was found": captions.describe_claims(*claims.judge(results.table, names=shown.claims)),
        "Accuracy in the last round": captions.describe_differences(rows, REFERENCE_METHOD, shown.symbol),
        "Rule": [claims.RULE],
    }
    return captions.compose(shown.title, text, sections, results)
