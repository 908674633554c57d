"""Final accuracy over the missing rate, and the gain of devices by how many modalities they hold."""

from __future__ import annotations

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.show import style, words
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD, label
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions, levels
from paper_figures.judge import measures, transforms
from paper_figures.judge.comparisons import P_VALUES, over_levels

EXPERIMENTS = ("missing",)
NEEDS = "test accuracy of the experiment missing"
TITLE = "Final accuracy over modality heterogeneity"
METHOD = "dmml-kd"


def transform(results: Results) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Return accuracies over the missing rate, and gains by the number of modalities that a device holds."""
    accuracy, gains = over_levels(results.table), by_held(results.table)
    return accuracy.assign(panel="accuracy"), gains.assign(panel="gain by modalities held")


def by_held(table: pd.DataFrame) -> pd.DataFrame:
    """Return the mean gain of DMML-KD over DMML of the devices that hold so many modalities.

    Within a seed, devices are averaged at each missing rate and the rates where there are such devices alike.

    Returns:
        Columns dataset, held, mean, low, high, seeds, complete.
    """
    gains = measures.gain_by_held(table)
    keys = ["dataset", "held", "complete"]
    means = gains.groupby([*keys, "seed", "level"], dropna=False)["gain"].mean()
    seeds = means.groupby([*keys, "seed"]).mean().reset_index(name="mean")
    return transforms.summarize(seeds, keys)


def draw(accuracy: pd.DataFrame, gains: pd.DataFrame) -> Figure:
    """Draw a column per dataset: accuracy over the missing rate above, gains by modalities held below."""
    datasets = list(dict.fromkeys(accuracy["dataset"]))
    rows = 2 if len(gains) else 1
    figure, axes = style.panels(rows, len(datasets), 1.9)
    for column, dataset in enumerate(datasets):
        panel = accuracy[accuracy["dataset"] == dataset]
        levels.draw_accuracy(axes[0, column], panel)
        style.label_panel(axes[0, column], dataset)
        levels.set_level_axis(axes[0, column], panel["level"], "Missing rate")
        if rows == 2:
            _draw_gains(axes[1, column], gains[gains["dataset"] == dataset])
    axes[0, 0].set_ylabel("Final test accuracy (%)")
    if rows == 2:
        axes[1, 0].set_ylabel(f"{label(METHOD)} minus\nDMML (points)")
    style.add_method_legend(figure, accuracy["method"], 5)
    return figure


def _draw_gains(axis: Axes, gains: pd.DataFrame) -> None:
    shown = style.look(METHOD)
    places = gains["held"].to_numpy(dtype=float)
    mean, low, high = (100 * gains[name].to_numpy(dtype=float) for name in ("mean", "low", "high"))
    colours = [shown.colour if complete else "white" for complete in gains["complete"]]
    axis.bar(places, mean, width=0.6, color=colours, edgecolor=shown.colour, linewidth=1.0, alpha=0.8)
    if style.has_dots(gains):
        style.draw_dots(axis, places, gains["dots"], 100.0, "black")
    else:
        style.draw_bars(axis, places, mean, low, high, "black")
    axis.axhline(0, color="black", linewidth=0.8)
    if len(places):
        levels.set_level_axis(axis, list(places), "Modalities that a device holds")
        axis.set_xlim(places.min() - 0.8, places.max() + 0.8)


def caption(_results: Results, accuracy: pd.DataFrame, gains: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, the accuracies in the last round, and the gains."""
    shown = (
        f"Above: test accuracy in the last round, mean over devices and up to {accuracy['seeds'].max()} seeds, over "
        "the missing rate, the share of devices that lack at least one modality; bars are 95% Student intervals over "
        f"seeds. Of the differences below, {P_VALUES} Below: gain of DMML-KD over DMML of the devices that hold so "
        "many modalities, paired by device and seed, averaged over missing rates; the filled bar is of the devices "
        "that hold all. Different bars are averages over different missing rates; the claim about who gains most is "
        f"judged within missing rates.{captions.absent({'the gain by modalities held': len(gains) > 0})}"
    )
    lines = [
        f"- {row['dataset']}, devices with {row['held']} modalit{'ies' if row['held'] > 1 else 'y'}: "
        f"{words.signed(row['mean'], row['low'], row['high'])} points over {row['seeds']} seeds"
        for row in gains.to_dict("records")
    ]
    differences = captions.describe_differences(accuracy, REFERENCE_METHOD, "missing rate")
    return shown, {"Accuracy in the last round": differences, "Gain of DMML-KD over DMML": lines}
