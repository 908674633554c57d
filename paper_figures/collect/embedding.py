"""Features of a run's devices in two dimensions, and how far apart they are in all of theirs."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import pandas as pd
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.experiments.build import build_simulation
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.keep.checkpoints import load_checkpoint
from dmmlkd_ext.training.population import Population

FEATURE_COLUMNS = (
    *("run", "dataset", "method", "seed", "device", "modality"),
    *("kind", "class", "embedding", "x", "y"),
)
"""`kind` is common or specific; `embedding` is pca, tsne, or `distance` or `ratio`: then x is the number of
`class_distance` or `class_ratio`, measured over all devices in the features' full width, and there is no y, device or
class."""

DEVICES = 4
"""Devices whose features are shown: those that hold the most modalities."""
SAMPLES = 30
"""Test samples that are shown of each device, the same for all."""
TSNE_WIDTH = 30
"""Principal components that the t-SNE starts from, at most."""
TSNE_STEPS = 500
"""Twice the steps of its early phase."""

FloatArray = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Features:
    """Features of one modality and kind.

    Attributes:
        modality: its name.
        kind: `common` or `specific`.
        devices: int64, the devices that hold the modality.
        values: float64 [devices, samples, d].
        samples: int64 [samples], places in the split.
        labels: int64 [samples].
    """

    modality: str
    kind: str
    devices: npt.NDArray[np.int64]
    values: FloatArray
    samples: npt.NDArray[np.int64]
    labels: npt.NDArray[np.int64]


def embed_run(config: ExperimentConfig, folder: Path, points: bool = True) -> pd.DataFrame:
    """Return the features of a finished run in two dimensions, and their distances.

    Args:
        config: the run's configuration.
        folder: the run's folder, with its checkpoint.
        points: also embed; without, the distances alone are measured.

    Returns:
        Columns `FEATURE_COLUMNS`.
    """
    simulation = build_simulation(config)
    simulation.load_state_dict(load_checkpoint(folder / "checkpoint.pt"))
    features = list(compute_features(simulation.population, simulation.dataset.test))
    rows = measure(features)
    if points:
        rows = pd.concat([rows, embed(features, simulation.population.holds)], ignore_index=True)
    method, dataset = config.method.name, config.data.dataset
    rows = rows.assign(run=folder.name, dataset=dataset, method=method, seed=config.seed)
    return rows.reindex(columns=list(FEATURE_COLUMNS)).astype({"device": "Int32", "class": "Int32"})


@torch.no_grad()
def compute_features(population: Population, split: Split) -> Iterator[Features]:
    """Yield the features of all samples of a split on all devices, by modality and kind."""
    network = population.network
    head = network.layouts[SHARED].views(population.blocks[SHARED].start)["head"]
    for column, name in enumerate(network.modalities):
        block, here = population.blocks[name], split.present[:, column]
        if not len(block.devices) or not here.any():
            continue
        weights = network.layouts[name].views(block.start)
        inputs = split.features[name][here].unsqueeze(0)
        rows = []
        for row, device in enumerate(block.devices):
            of_device = {key: value[row : row + 1] for key, value in weights.items()}
            rows.append(network.forward(name, of_device, head[device : device + 1], inputs))
        samples, labels = torch.nonzero(here).squeeze(1).numpy(), split.labels[here].numpy()
        for kind in ("common", "specific"):
            values = torch.cat([getattr(row, kind) for row in rows]).double().numpy()
            yield Features(name, kind, block.devices, values, samples, labels)


def measure(features: list[Features]) -> pd.DataFrame:
    """Return two rows per modality and kind, with its distance and its ratio."""
    functions = {"distance": class_distance, "ratio": class_ratio}
    rows = [
        (part.modality, part.kind, name, function(part)) for name, function in functions.items() for part in features
    ]
    return pd.DataFrame(rows, columns=["modality", "kind", "embedding", "x"])


def class_distance(features: Features) -> float:
    """Return the distance between devices' means of a class over the spread within a class.

    Both are root mean squares: the distance over classes and pairs of devices, the spread over samples and devices.
    NaN where a single device holds the modality.
    """
    devices = len(features.devices)
    if devices < 2:
        return float("nan")
    squared, within, counted = [], 0.0, 0
    for label in np.unique(features.labels):
        of_class = features.values[:, features.labels == label]
        means = of_class.mean(1)
        # The mean over pairs of ||a - b||^2 is twice the variance with n - 1.
        squared.append(2 * ((means - means.mean(0)) ** 2).sum() / (devices - 1))
        within += ((of_class - means[:, None]) ** 2).sum()
        counted += of_class.shape[0] * of_class.shape[1]
    spread = within / counted
    return float(np.sqrt(np.mean(squared) / spread)) if spread > 0 else float("nan")


def class_ratio(features: Features) -> float:
    """Return the distance between devices' means of a class over that between their means of different classes.

    Both are root mean squares over pairs of different devices; 0 if all devices have the same means. NaN where a single
    device holds the modality, or there is one class.
    """
    devices, labels = len(features.devices), np.unique(features.labels)
    if devices < 2 or len(labels) < 2:
        return float("nan")
    means = np.stack(
        [features.values[:, features.labels == label].mean(1) for label in labels]
    )  # [classes, devices, d]
    apart = ((means[:, None, :, None] - means[None, :, None, :]) ** 2).sum(-1)  # [class, class, device, device]
    pairs, same = ~np.eye(devices, dtype=bool), np.eye(len(labels), dtype=bool)
    alike, unlike = apart[same][:, pairs].mean(), apart[~same][:, pairs].mean()
    return float(np.sqrt(alike / unlike)) if unlike > 0 else float("nan")


def embed(features: list[Features], holds: npt.NDArray[np.bool_]) -> pd.DataFrame:
    """Return the features of some samples on some devices in the plane of a PCA, and in that of a t-SNE."""
    devices = np.argsort(-holds.sum(1), kind="stable")[:DEVICES]
    chosen, matrices = [], []
    for part in features:
        picked = pick_samples(part.labels)
        for row, device in enumerate(part.devices):
            if device in devices:
                matrices.append(part.values[row, picked])
                rows = pd.DataFrame({"class": part.labels[picked]})
                chosen.append(rows.assign(modality=part.modality, kind=part.kind, device=int(device)))
    points = pd.concat(chosen, ignore_index=True)
    placed = project(np.concatenate(matrices))
    return pd.concat([points.assign(embedding=name, x=xy[:, 0], y=xy[:, 1]) for name, xy in placed], ignore_index=True)


def pick_samples(labels: npt.NDArray[np.int64], count: int = SAMPLES) -> npt.NDArray[np.int64]:
    """Return the places of samples that have the classes in turn, the first of each class first.

    Example:
        >>> pick_samples(np.array([0, 0, 0, 1, 2]), count=4).tolist()
        [0, 1, 3, 4]
    """
    turn = pd.Series(labels).groupby(labels).cumcount().to_numpy()
    return np.sort(np.argsort(turn, kind="stable")[:count])


def project(matrix: FloatArray) -> list[tuple[str, FloatArray]]:
    """Return the places of points [n, d] in two dimensions, [n, 2]: by PCA, and by t-SNE on principal components."""
    from sklearn.decomposition import PCA
    from sklearn.manifold import TSNE

    width = min(TSNE_WIDTH, *matrix.shape)
    components = PCA(width, svd_solver="full").fit_transform(matrix)
    perplexity = min(30.0, (len(matrix) - 1) / 3)
    placed = TSNE(perplexity=perplexity, init="pca", random_state=0, max_iter=TSNE_STEPS).fit_transform(components)
    return [("pca", components[:, :2]), ("tsne", np.asarray(placed, dtype=np.float64))]
