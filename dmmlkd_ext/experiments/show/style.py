"""One look for all figures: colours, markers, lines, legends, sizes."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import matplotlib as mpl
import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import seaborn as sns
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from dmmlkd_ext.experiments.show.labels import LABELS, in_order, label
from dmmlkd_ext.training.methods import UNIMODAL

ONE_COLUMN = 3.5
"""Width of a figure in one column, in inches."""
TWO_COLUMNS = 7.16
"""Width of a figure over both columns, in inches."""
_POINT: dict[str, Any] = {"markeredgecolor": "white", "markeredgewidth": 0.4}
BAND_ALPHA = 0.1
"""Opacity of the band of an interval."""
EDGE_ALPHA = 0.5
"""Opacity of the band's edges."""
DOTS_PER_INCH = 200


@dataclass(frozen=True)
class Look:
    """How a method is drawn, in every figure alike."""

    colour: str
    marker: Any
    dashes: tuple[float, ...] = ()

    @property
    def line(self) -> Any:
        """The style of the line, for matplotlib."""
        return (0, self.dashes) if self.dashes else "-"


# Colours of Okabe and Ito and of Tol, told apart with any colour vision; markers and dashes tell them apart in grey.
_BLACK, _GREY, _BLUE, _SKY, _GREEN, _VERMILION = "#000000", "#7F7F7F", "#0072B2", "#56B4E9", "#009E73", "#D55E00"
_ORANGE, _PURPLE, _WINE, _OLIVE, _TEAL = "#E69F00", "#CC79A7", "#882255", "#999933", "#44AA99"
_LOOKS: dict[str, Look] = {
    # The paper's method, its starting point and its parts, and the rivals: a colour each
    "local": Look(_GREY, "X", (1, 1.5)),
    "dmml": Look(_BLUE, "o"),
    "dmml-tb": Look(_SKY, "v", (4, 1.5)),
    "dmml-kd": Look(_GREEN, "s", (5, 1.5, 1, 1.5)),
    "dmml-kd-tb": Look(_VERMILION, "D"),
    "fedprox": Look(_PURPLE, "<", (3, 1)),
    "ogm-ge": Look(_ORANGE, ">", (2, 1)),
    "mmpareto": Look(_WINE, "^", (4, 1, 1, 1)),
    "fedgen": Look(_OLIVE, "P", (3, 1, 1, 1)),
    "fedproto": Look(_TEAL, "p", (2, 1, 1, 1)),
    "centralized": Look(_BLACK, "*", (1, 1)),
    # Controls of the balance and ablations, which meet the rivals in no figure: colours again, other markers
    "dmml-reversed": Look(_PURPLE, "d", (1, 1)),
    "dmml-kd-reversed": Look(_WINE, "d", (1, 1)),
    "dmml-random": Look(_ORANGE, "H", (3, 1)),
    "dmml-kd-random": Look(_BLACK, "P", (2, 1, 1, 1)),
    "dmml-kd-separate": Look(_OLIVE, "h", (4, 1.5)),
    "dmml-kd-greedy": Look(_TEAL, "8", (2, 1)),
    "dmml-kd-no-classification": Look(_ORANGE, "v", (4, 1.5)),
    "dmml-kd-no-similarity": Look(_PURPLE, "^", (2, 1)),
    "dmml-kd-no-difference": Look(_SKY, "<", (3, 1)),
    "dmml-kd-no-generator": Look(_WINE, ">", (1, 1)),
    "dmml-kd-gaussian": Look(_TEAL, "H", (4, 1, 1, 1)),
}
STRONG: tuple[str, ...] = ("local", "dmml", "dmml-tb", "dmml-kd", "dmml-kd-tb")
"""The paper's methods and their starting points, drawn with strong lines where rivals are drawn thinner."""

# Modalities are told apart where methods are not, and the methods `unimodal:<modality>` are drawn like them: Tol's
# muted colours, and stars as markers, which no other method has: number of points and rotation in degrees.
_INDIGO, _ROSE, _FOREST, _SAND, _CYAN, _MAGENTA = "#332288", "#CC6677", "#117733", "#DDAA33", "#88CCEE", "#AA4499"
_LOOKS |= {
    UNIMODAL + modality: Look(colour, marker, (1, 1))
    for modality, colour, marker in (
        ("image", _INDIGO, (3, 1, 0)),
        ("audio", _ROSE, (4, 1, 0)),
        ("video", _FOREST, (5, 1, 0)),
        ("accelerometer", _CYAN, (6, 1, 0)),
        ("gyroscope", _MAGENTA, (7, 1, 0)),
        ("fac", _INDIGO, (3, 1, 60)),
        ("fou", _ROSE, (4, 1, 45)),
        ("kar", _FOREST, (5, 1, 36)),
        ("mor", _SAND, (6, 1, 30)),
        ("pix", _CYAN, (7, 1, 26)),
        ("zer", _MAGENTA, (8, 1, 22)),
    )
}


def look(method: str) -> Look:
    """Return how a method is drawn; one without a look is black."""
    return _LOOKS.get(method, Look(_BLACK, ".", (1, 1)))


def looks(names: Sequence[str]) -> dict[str, Look]:
    """Return how lines are drawn: methods as everywhere, other names by their places, each unlike the others."""
    shown = [_LOOKS[method] for method in LABELS if method in _LOOKS]
    return {name: _LOOKS.get(name, shown[(place + 1) % len(shown)]) for place, name in enumerate(names)}


def modality_colour(modality: str) -> str:
    """Return the colour of a modality; an unknown one is black."""
    return look(UNIMODAL + modality).colour


def legend_handle(method: str, width: float | None = None, shown: Look | None = None) -> Line2D:
    """Return the entry of a method in a legend, also where some panel lacks the method; None is the method's look."""
    shown = shown or look(method)
    lines: dict[str, Any] = {"color": shown.colour, "linestyle": shown.line, "linewidth": width}
    return Line2D([], [], marker=shown.marker, label=label(method), **_POINT, markersize=5, **lines)


def add_method_legend(figure: Figure, methods: Iterable[str], columns: int, strong: bool = False) -> None:
    """Put the legend of methods above all panels; with `strong`, the rivals' lines are as thin as in the panels."""
    widths = {method: (1.6 if method in STRONG else 0.8) if strong else None for method in in_order(methods)}
    add_legend(figure, [legend_handle(method, width) for method, width in widths.items()], columns)


def panels(rows: int, columns: int, height: float, **options: Any) -> tuple[Figure, Any]:
    """Return a figure of panels, `height` inches per row, and its axes as an array [rows, columns].

    One column of panels is as wide as a column of text, more are as wide as two.
    """
    width = ONE_COLUMN if columns == 1 else TWO_COLUMNS
    figure, axes = plt.subplots(
        rows, columns, figsize=(width, 0.6 + height * rows), squeeze=False, layout="constrained", **options
    )
    return figure, axes


def label_panel(axis: Axes, label: str) -> None:
    """Write what a panel shows above it: a label of the panel, not a title of the image."""
    axis.set_title(label, loc="left", fontsize=8, fontweight="bold", pad=3)


def draw_line(
    axis: Axes,
    rows: pd.DataFrame,
    method: str | Look,
    x: str,
    scale: float = 100.0,
    strong: bool = True,
    band: bool = True,
    bars: bool = False,
) -> None:
    """Draw a method's line with the band, or the bars, of its intervals; of few seeds, with the dots of their values.

    Args:
        axis: where it is drawn.
        rows: columns `x`, mean, low, high, and dots if there are any, a row per point.
        method: the look, or the method that has it.
        x: name of the column of the horizontal axis.
        scale: factor on the values; 100 gives percent.
        strong: False draws a thinner line with smaller markers.
        band: whether a band of the intervals is drawn.
        bars: whether each point has a bar of its interval.
    """
    shown = look(method) if isinstance(method, str) else method
    rows = rows.sort_values(x)
    mean, low, high = (scale * rows[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    places = rows[x].to_numpy(dtype=float)
    axis.plot(
        places,
        mean,
        color=shown.colour,
        marker=shown.marker,
        **_POINT,
        linestyle=shown.line,
        linewidth=1.4 if strong else 0.8,
        markersize=4.0 if strong or len(places) == 1 else 2.5,
        markevery=max(1, len(places) // 8),
        alpha=1.0 if strong else 0.8,
        zorder=3 if strong else 2,
    )
    if (band or bars) and has_dots(rows):
        draw_dots(axis, places, rows["dots"], scale, shown.colour)
    elif band:
        axis.fill_between(places, low, high, color=shown.colour, alpha=BAND_ALPHA, linewidth=0)
        for edge in (low, high):  # bands overlap: their edges tell whose they are
            axis.plot(places, edge, color=shown.colour, alpha=EDGE_ALPHA, linewidth=0.5)
    elif bars:
        draw_bars(axis, places, mean, low, high, shown.colour)


def has_dots(rows: pd.DataFrame) -> bool:
    """Return whether some rows have too few seeds for an interval to be drawn, so that their values are."""
    return "dots" in rows and bool(rows["dots"].fillna("").ne("").any())


def draw_dots(axis: Axes, places: Iterable[float], dots: Iterable[str], scale: float, colour: str) -> None:
    """Draw the values of seeds, as `statistics.summarize` names them, at their places."""
    points = [
        (place, scale * float(word))
        for place, text in zip(places, dots, strict=True)
        for word in (text.split() if isinstance(text, str) else ())
    ]
    axis.plot(*zip(*points, strict=True), ".", color=colour, markersize=2.5, alpha=0.6, zorder=2.5)


def draw_bars(axis: Axes, places: Any, mean: Any, low: Any, high: Any, colour: str) -> None:
    """Draw bars of intervals; where there is no interval, none."""
    known = np.isfinite(low) & np.isfinite(high)
    if not known.any():
        return
    places, mean, low, high = (np.asarray(values)[known] for values in (places, mean, low, high))
    lengths = np.stack([mean - low, high - mean])
    axis.errorbar(
        places, mean, yerr=lengths, fmt="none", ecolor=colour, elinewidth=0.9, capsize=2, capthick=0.9, zorder=2.5
    )


def tick_rounds(axis: Axes, most: int = 5) -> None:
    """Label a horizontal axis of rounds, with at most so many steps of whole rounds."""
    axis.set_xlabel("Round")
    axis.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10], nbins=most))


def keep_percent(axis: Axes) -> None:
    """Cut the vertical axis to what an accuracy can be."""
    low, high = axis.get_ylim()
    axis.set_ylim(max(0.0, low), min(100.5, high))


def add_legend(figure: Figure, handles: Sequence[Any], columns: int, length: float = 2.6) -> None:
    """Put one legend above all panels, in at most so many columns and no more than fit the page."""
    for count in range(min(columns, max(1, len(handles))), 0, -1):
        legend = figure.legend(
            handles=list(handles),
            loc="outside upper center",
            ncols=count,
            handlelength=length,
            columnspacing=1.4,
            fontsize=7.5,
        )
        if count == 1 or legend.get_window_extent().width <= figure.bbox.width:
            return
        legend.remove()


@contextmanager
def style() -> Iterator[None]:
    """Draw without a display, in the font that comes with matplotlib and in sizes for print.

    All else is matplotlib's default, so that no matplotlibrc of a user changes a figure.
    """
    with mpl.rc_context():
        mpl.rcdefaults()
        mpl.use("agg")
        sns.set_theme(context="paper", style="ticks", rc=_SETTINGS | {"figure.dpi": DOTS_PER_INCH})
        yield


_SETTINGS = {
    "font.family": "DejaVu Sans",
    "font.size": 8,
    "axes.labelsize": 8,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": "#E5E5E5",
    "grid.linewidth": 0.6,
    "xtick.labelsize": 7,
    "ytick.labelsize": 7,
    "legend.fontsize": 8,
    "legend.frameon": False,
    "lines.linewidth": 1.3,
    "lines.markersize": 4.0,
    "pdf.fonttype": 42,  # text that can be searched and edited
}
