"""What a configuration gives to its devices: samples by class, modalities, neighbours; as a table and as a picture."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.experiments.build import make_topology, share_out
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.inputs import load_data
from dmmlkd_ext.wireless.topology import Topology

IntArray = npt.NDArray[np.int64]
SIDES = ("train", "validation", "test")
_MOST_NAMED = 10
"""Classes up to which a table's columns have their names, and above which their numbers."""


@dataclass(frozen=True)
class Overview:
    """The data and the graph of a run.

    Attributes:
        name: of the dataset.
        shapes: of a sample, by modality.
        class_names: of the classes.
        sizes: samples of each side.
        partition: how the samples are dealt out, in words.
        classes: training samples, int64 [devices, classes].
        holds: bool [devices, modalities].
        seen: training samples that have the modality, int64 [devices, modalities]; 0 where the device lacks it.
        topology: the graph.
    """

    name: str
    shapes: dict[str, tuple[int, ...]]
    class_names: tuple[str, ...]
    sizes: dict[str, int]
    partition: str
    classes: IntArray
    holds: npt.NDArray[np.bool_]
    seen: IntArray
    topology: Topology


def survey(config: ExperimentConfig) -> Overview:
    """Load the data of a configuration and deal them out, as a run of it does.

    Raises:
        ValueError: the configuration does not fit the dataset.
        DataUnavailableError: the dataset is neither cached nor can be fetched.

    Example:
        >>> from dmmlkd_ext.experiments.config.presets import preset
        >>> overview = survey(preset("mfeat"))
        >>> overview.classes.shape, int(overview.classes.sum()), overview.sizes["test"]
        ((20, 10), 1280, 500)
    """
    dataset = load_data(config)
    device_samples, holds = share_out(dataset, config)
    labels, present = dataset.train.labels.cpu().numpy(), dataset.train.present.cpu().numpy()
    alpha = f" with alpha {config.data.dirichlet_alpha:g}" if config.data.partition == "dirichlet" else ""
    return Overview(
        dataset.name,
        dataset.shapes,
        dataset.class_names,
        {side: len(getattr(dataset, side)) for side in SIDES},
        config.data.partition + alpha,
        np.stack([np.bincount(labels[samples], minlength=dataset.num_classes) for samples in device_samples]),
        holds,
        np.stack([present[samples].sum(0) for samples in device_samples]) * holds,
        make_topology(config.topology, config.data.num_devices, config.seed),
    )


def describe(overview: Overview) -> str:
    """Return the overview as text: sizes, a line per device, the graph."""
    shapes = ", ".join(f"{name} {list(shape)}" for name, shape in overview.shapes.items())
    sizes = ", ".join(f"{count} {side}" for side, count in overview.sizes.items())
    named = len(overview.class_names) <= _MOST_NAMED
    columns = (
        [name[:7] for name in overview.class_names] if named else [str(n) for n in range(len(overview.classes[0]))]
    )
    header = ["device", "links", "samples", *(name[:8] for name in overview.shapes), "|", *columns]
    rows = [
        [str(device), str(overview.topology.degrees[device]), str(counts.sum())]
        + [str(seen) if held else "-" for seen, held in zip(overview.seen[device], overview.holds[device], strict=True)]
        + ["|", *(str(count) if count else "." for count in counts)]
        for device, counts in enumerate(overview.classes)
    ]
    lines = [
        f"{overview.name}: {sizes} samples; {len(overview.class_names)} classes; a sample: {shapes}",
        f"training samples of each device (partition {overview.partition}); '-': it lacks the modality:",
        *_align([header, *rows]),
        _describe_graph(overview),
    ]
    if not named:
        lines.insert(2, "classes: " + ", ".join(f"{place} {name}" for place, name in enumerate(overview.class_names)))
    return "\n".join(lines)


def _align(rows: Sequence[Sequence[str]]) -> list[str]:
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return [" ".join(cell.rjust(width) for cell, width in zip(row, widths, strict=True)) for row in rows]


def _describe_graph(overview: Overview) -> str:
    degrees, edges = overview.topology.degrees, overview.topology.edges
    return (
        f"graph {overview.topology.name}: {len(edges)} links; neighbours per device: "
        f"{degrees.min()} to {degrees.max()}, mean {degrees.mean():.1f}"
    )


def draw(overview: Overview, path: Path) -> None:
    """Draw devices by classes, devices by modalities, and the graph where it lies.

    Args:
        overview: what is drawn.
        path: the file; its ending says which format, such as `.png` or `.pdf`.

    Raises:
        ImportError: matplotlib is not installed.
        ValueError: matplotlib knows no format of that ending.
    """
    try:
        from matplotlib.figure import Figure
    except ImportError as error:
        raise ImportError("a picture needs the package matplotlib: pip install matplotlib") from error
    devices, classes = overview.classes.shape
    modalities = list(overview.shapes)
    height = 1.6 + 0.17 * max(devices, 12)
    figure = Figure(figsize=(10.0, height), layout="constrained", dpi=150)
    widths = [max(4, min(classes, 24)), 1.0 + len(modalities), max(4, min(classes, 24))]
    left, middle, right = figure.subplots(1, 3, width_ratios=widths)
    for axes, counts, names, title in (
        (left, overview.classes, list(overview.class_names), "training samples by class"),
        (middle, np.where(overview.holds, overview.seen, -1), modalities, "by modality"),
    ):
        shown = np.ma.masked_less_equal(counts, 0 if axes is left else -1)
        image = axes.imshow(shown, aspect="auto", cmap="viridis", vmin=0, interpolation="nearest")
        axes.set(title=title, ylabel="device" if axes is left else "", yticks=range(0, devices, max(1, devices // 20)))
        steps = range(0, len(names), max(1, len(names) // 24))
        axes.set_xticks(steps, [names[step] for step in steps], rotation=60, ha="right", fontsize=7)
        figure.colorbar(image, ax=axes, shrink=0.8)
    places = overview.topology.positions_m
    for one, other in overview.topology.edges:
        right.plot(*places[[one, other]].T, color="0.7", linewidth=0.8, zorder=1)
    complete = overview.holds.all(axis=1)
    for chosen, colour, label in ((complete, "#0072B2", "has all modalities"), (~complete, "#D55E00", "lacks some")):
        right.scatter(*places[chosen].T, s=40, color=colour, label=label, zorder=2)
    for device, (x, y) in enumerate(places):
        right.annotate(str(device), (x, y), xytext=(4, 4), textcoords="offset points", fontsize=7)
    right.set(title=f"links: {overview.topology.name}; in m", aspect="equal")
    right.legend(fontsize=7, loc="upper center", bbox_to_anchor=(0.5, -0.1), ncols=2, frameon=False)
    figure.suptitle(f"{overview.name}: {int(overview.classes.sum())} training samples, white: none", fontsize=11)
    figure.savefig(path, metadata={"Software": None} if path.suffix == ".png" else None)
