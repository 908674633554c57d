"""Panels of figures over the levels of an experiment: accuracy, and the paired difference to the reference."""

from __future__ import annotations

from collections.abc import Sequence

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.ticker import FixedLocator, NullLocator

from dmmlkd_ext.experiments.show import style
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD, in_order, label
from paper_figures.judge.transforms import by_method


def draw_accuracy(axis: Axes, panel: pd.DataFrame, x: str = "level") -> None:
    """Draw each method's accuracy, with bars of their intervals, or dots, for the paper's and those of one level."""
    for method, rows in by_method(set_apart(panel, x)):
        line = rows.rename(columns={"mean_low": "low", "mean_high": "high", "mean_dots": "dots"})
        strong = method in style.STRONG
        style.draw_line(axis, line, method, x, strong=strong, band=False, bars=strong or len(line) == 1)
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
    single = [method for method in in_order(panel["method"]) if counts[method] == 1] if counts.max() > 1 else []
    step = panel["method"].map({method: 0.04 * width * (place + 1) for place, method in enumerate(single)})
    return panel.assign(**{x: panel[x] + step.astype(float).fillna(0.0)})


def draw_differences(axis: Axes, panel: pd.DataFrame, x: str = "level") -> None:
    """Draw each method's difference to the reference with bands of its paired intervals."""
    axis.axhline(0, color=style.look(REFERENCE_METHOD).colour, linewidth=1.0, zorder=1)
    names = {"difference": "mean", "difference_low": "low", "difference_high": "high", "difference_dots": "dots"}
    names = {name: short for name, short in names.items() if name in panel}
    for method, rows in by_method(panel.dropna(subset=["difference"])):
        line = rows[[x, *names]].rename(columns=names)
        style.draw_line(axis, line, method, x, band=True, bars=len(line) == 1)


def set_level_axis(axis: Axes, levels: Sequence[float] | pd.Series, name: str, logarithmic: bool = False) -> None:
    """Label the horizontal axis, with a tick at each level."""
    places = sorted(set(levels))
    if logarithmic and min(places) > 0:
        axis.set_xscale("log")
    axis.xaxis.set_major_locator(FixedLocator(places))
    axis.xaxis.set_minor_locator(NullLocator())
    axis.set_xticklabels([f"{place:g}" for place in places], rotation=45 if len(places) > 7 else 0)
    axis.set_xlabel(name)


def difference_label() -> str:
    """Return the label of an axis of differences to the reference."""
    return f"Difference to {label(REFERENCE_METHOD)}\n(points)"
