"""Under-training of each modality, its accuracy and its speed over rounds, with and without balance."""

from __future__ import annotations

from itertools import product

import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.results import pick
from dmmlkd_ext.experiments.show import style, words
from dmmlkd_ext.experiments.show.labels import label
from dmmlkd_ext.training.methods import UNIMODAL
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import measures, transforms

EXPERIMENTS = ("imbalance",)
NEEDS = "probe_accuracy, modality_accuracy or balance_metric of the experiment imbalance"
TITLE = "How modalities compete, and what balance changes"
CURVES = {"modality_accuracy": "Accuracy of the\nmodality alone (%)", "balance_metric": "Balance metric"}


def transform(results: Results) -> pd.DataFrame:
    """Return the gap of each modality and method, and two metrics over rounds, means over seeds with intervals.

    Returns:
        Columns measure, dataset, modality, method, round, mean, low, high, seeds. The measure is `gap`, in the last
        round, with round missing; `modality_accuracy`; or `balance_metric`.
    """
    keys = ["dataset", "modality", "method"]
    gaps = transforms.summarize(measures.undertraining_gap(results.table), keys, "gap")
    parts = [gaps.assign(measure="gap")]
    for metric in CURVES:
        rows = pick(results.table, metric, of_devices=False).rename(columns={"part": "modality"})
        shown = ~rows["method"].str.startswith(UNIMODAL)
        if metric != "balance_metric":  # a modality alone has no other that it could be faster than
            shown |= rows["method"] == UNIMODAL + rows["modality"]
        parts.append(transforms.summarize(rows[shown], [*keys, "round"], "value").assign(measure=metric))
    drawn = pd.concat([part for part in parts if len(part)]) if any(map(len, parts)) else parts[0]
    columns = ["measure", *keys, "round", "mean", "low", "high", "seeds", *(["dots"] if "dots" in drawn else [])]
    return drawn.reindex(columns=columns).astype({"round": "Int32"}).reset_index(drop=True)


def draw(drawn: pd.DataFrame) -> Figure:
    """Draw a column per dataset and modality: the gaps, and the metrics over rounds below."""
    columns = sorted(dict.fromkeys(zip(drawn["dataset"], drawn["modality"], strict=True)), key=lambda pair: pair[0])
    names = [name for name in ("gap", *CURVES) if (drawn["measure"] == name).any()]
    figure, axes = style.panels(len(names), len(columns), 1.6, sharey="row")
    for (row, measure), (column, (dataset, modality)) in product(enumerate(names), enumerate(columns)):
        axis = axes[row, column]
        chosen = (drawn["dataset"] == dataset) & (drawn["modality"] == modality) & (drawn["measure"] == measure)
        if measure == "gap":
            _draw_gaps(axis, drawn[chosen])
        else:
            _draw_curves(axis, drawn[chosen], measure)
        if row == 0:
            style.label_panel(axis, f"{dataset}: {modality}")
        if column == 0:
            axis.set_ylabel(CURVES.get(measure, "Under-training\ngap (points)"))
    for row, measure in enumerate(names):
        low, _ = axes[row, 0].get_ylim()
        if measure == "modality_accuracy":
            style.keep_percent(axes[row, 0])
        elif measure == "balance_metric" and low < 0:
            axes[row, 0].set_ylim(bottom=0)  # no speed is negative, though an interval of few seeds may reach there
    style.add_method_legend(figure, drawn["method"], 4)
    return figure


def _draw_gaps(axis: Axes, gaps: pd.DataFrame) -> None:
    for place, (method, rows) in enumerate(transforms.by_method(gaps)):
        shown = style.look(method)
        mean, low, high = (100 * rows[name].to_numpy() for name in ("mean", "low", "high"))
        if style.has_dots(rows):
            style.draw_dots(axis, [place], rows["dots"], 100.0, shown.colour)
        else:
            style.draw_bars(axis, [place], mean, low, high, shown.colour)
        axis.plot([place], mean, color=shown.colour, marker=shown.marker, markersize=5, markeredgecolor="white")
    axis.axhline(0, color="black", linewidth=0.8)
    axis.set_xticks([])
    axis.margins(x=0.15)


def _draw_curves(axis: Axes, curves: pd.DataFrame, measure: str) -> None:
    scale = 100.0 if measure == "modality_accuracy" else 1.0
    for method, rows in transforms.by_method(curves):
        strong = method in style.STRONG
        style.draw_line(axis, rows, method, "round", scale, strong=strong, band=strong)
    if measure == "balance_metric":
        axis.axhline(1, color="black", linewidth=0.8)
    style.tick_rounds(axis, most=4)


def caption(results: Results, drawn: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is drawn, and the gaps."""
    slow = measures.slowest_modality(results.table)
    shown = (
        f"Columns are modalities. Means over devices and up to {drawn['seeds'].max()} seeds with 95% Student intervals "
        "over seeds. Under-training gap: accuracy of a linear probe on the encoder trained alone (`unimodal`) minus "
        "that of a probe on the encoder after joint training, paired by device and seed, in the last round, on devices "
        "that hold the modality. Accuracy of the modality alone: the prediction from this modality only. "
        f"{captions.SAMPLED} Balance "
        "metric: training speed over the mean speed of the device's modalities; above 1 a modality is fast. "
        "The slow modality is the one with the lower balance metric under DMML, not the one with the larger gap: "
        f"{', '.join(f'{modality} ({dataset})' for dataset, modality in slow.items()) or 'not known'}."
    )
    gaps = drawn[drawn["measure"] == "gap"]
    shown += captions.absent({"the under-training gap": len(gaps) > 0})
    lines = [
        f"- {row['dataset']}, {row['modality']}, {label(row['method'])}: "
        f"{words.signed(row['mean'], row['low'], row['high'])} points over {row['seeds']} seeds"
        for row in gaps.to_dict("records")
    ]
    return shown, {"Under-training gap": lines}
