"""Features of some devices in two dimensions, with and without the generator, and how far apart devices are."""

from __future__ import annotations

from itertools import product
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D

from dmmlkd_ext.experiments.show import style
from dmmlkd_ext.experiments.show.labels import in_order, label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import measures

EXPERIMENTS = ("features",)
NEEDS = "features of any method in two dimensions"
TITLE = "Common and specific features of devices"
WITHOUT, WITH = "dmml-kd-no-generator", "dmml-kd"
EMBEDDINGS = {"pca": "PCA", "tsne": "t-SNE"}
DEVICE_MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
NUM_DEVICES = len(DEVICE_MARKERS)


def transform(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return the points that are drawn, and the distances of all runs; neither without points."""
    if results.features.empty:
        return pd.DataFrame(), pd.DataFrame()
    points, distances = choose(results.features), measures.feature_distance(results.features)
    return points.assign(part="points"), distances.assign(part="distances").iloc[: None if len(points) else 0]


def choose(features: pd.DataFrame) -> pd.DataFrame:
    """Return the points that are drawn: of one dataset and its lowest seed, of a few devices.

    The dataset is the first one, by name, with both methods, or else the first one.
    """
    points: pd.DataFrame = features[features["embedding"].isin(list(EMBEDDINGS))]
    if points.empty:
        return points
    dataset = points.groupby("dataset", observed=True)["method"].nunique().idxmax()
    shown: pd.DataFrame = points[points["dataset"] == dataset]
    shown = shown[shown["seed"] == shown["seed"].min()]
    devices = sorted(shown["device"].dropna().unique())[:NUM_DEVICES]
    names = ["dataset", "method", "kind", "embedding", "modality"]
    shown = shown[shown["device"].isin(devices)]
    return shown.assign(**{name: shown[name].astype(str) for name in names}).reset_index(drop=True)


def draw(points: pd.DataFrame, distances: pd.DataFrame) -> Figure:
    """Draw a row per embedding and a column per method and kind; colours are classes, markers devices."""
    embeddings = [name for name in EMBEDDINGS if (points["embedding"] == name).any()]
    methods = in_order(points["method"])
    methods = [method for method in (WITHOUT, WITH) if method in methods] or methods
    columns = [(kind, method) for kind in ("common", "specific") for method in methods]
    columns = [(kind, method) for kind, method in columns if (points["kind"] == kind).any()]
    figure, axes = style.panels(len(embeddings), len(columns), 1.9)
    means = distances[distances["dataset"] == points["dataset"].iloc[0]].groupby("method")["distance"].mean()
    for (row, embedding), (column, (kind, method)) in product(enumerate(embeddings), enumerate(columns)):
        axis = axes[row, column]
        chosen = (points["embedding"] == embedding) & (points["kind"] == kind) & (points["method"] == method)
        _draw_points(axis, points[chosen], points)
        if row == 0:
            style.label_panel(axis, f"{kind}, {'without' if method == WITHOUT else 'with'}\ngenerator")
        if kind == "common" and embedding == embeddings[0] and method in means.index:
            note = f"distance {means[method]:.2f}"
            box = {"facecolor": "white", "edgecolor": "none", "alpha": 0.8, "pad": 1.0}
            axis.text(0.03, 0.03, note, transform=axis.transAxes, fontsize=7, bbox=box)
        if column == 0:
            axis.set_ylabel(EMBEDDINGS[embedding])
    style.add_legend(figure, _handles(points), 8, length=0.8)
    return figure


def _draw_points(axis: Axes, points: pd.DataFrame, everything: pd.DataFrame) -> None:
    classes = sorted(everything["class"].dropna().unique())
    devices = sorted(everything["device"].unique())
    modalities = sorted(everything["modality"].unique())
    colours = class_colours(len(classes))
    for (name, device, modality), group in points.groupby(["class", "device", "modality"]):
        colour = colours[classes.index(name)]
        filled = modality == modalities[0]
        axis.scatter(
            group["x"],
            group["y"],
            s=9 if len(points) < 400 else 4,
            marker=DEVICE_MARKERS[devices.index(device)],
            facecolors=colour if filled else "none",
            edgecolors="white" if filled else colour,
            linewidths=0.25 if filled else 0.6,
        )
    axis.set_xticks([])
    axis.set_yticks([])
    axis.margins(0.06)


def class_colours(count: int) -> list[tuple[float, float, float, float]]:
    """Return colours of classes that rise in lightness, so that neighbours differ with any colour vision."""
    return [tuple(colour) for colour in plt.get_cmap("viridis")(np.linspace(0, 0.9, max(count, 1)))]


def _handles(points: pd.DataFrame) -> list[Line2D]:
    devices = sorted(points["device"].unique())
    classes = sorted(points["class"].dropna().unique())
    modalities = sorted(points["modality"].unique())
    plain: dict[str, Any] = {"color": "none", "markeredgecolor": "white", "markersize": 5.5}
    grey: dict[str, Any] = {"color": "none", "markeredgecolor": "#444444", "markersize": 4.5}
    handles = [
        Line2D([], [], marker=marker, markerfacecolor="#444444", label=f"device {device}", **grey)
        for device, marker in zip(devices, DEVICE_MARKERS, strict=False)
    ]
    names = [modalities[0], modalities[1] if len(modalities) == 2 else "others" if modalities[1:] else ""]
    for name, face in zip(names, ("#444444", "none"), strict=True):
        if name:
            handles.append(Line2D([], [], marker="o", markerfacecolor=face, label=name, **grey))
    for name, colour in zip(classes, class_colours(len(classes)), strict=True):
        handles.append(Line2D([], [], marker="o", markerfacecolor=colour, label=f"class {name}", **plain))
    return handles


def caption(_results: Results, points: pd.DataFrame, distances: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, and the distances."""
    first = points.iloc[0]
    shown = (
        f"Features of {points['device'].nunique()} devices, {first['dataset']}, seed {first['seed']}: colours are "
        "classes, markers devices; filled points are of the first modality in the legend. Axes have no unit: they are "
        "the first two principal components, and t-SNE's plane, in which distances between groups mean little. The "
        "distance, a mean over seeds, is that of devices' class means of the common features, measured in the space "
        "of the features."
    )
    drawn = {f"features of {label(method)}": (points["method"] == method).any() for method in (WITHOUT, WITH)}
    shown += captions.absent({**drawn, "the distance": len(distances) > 0})
    lines = [
        f"- {dataset}, {label(str(method))}: distance {group.mean():.3f} over {len(group)} seeds"
        for (dataset, method), group in distances.groupby(["dataset", "method"])["distance"]
    ]
    return shown, {"Distances": lines}
