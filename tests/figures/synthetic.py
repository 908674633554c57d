"""Results of every experiment, drawn at random with spreads like those of real runs: to draw figures from in tests."""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace

import numpy as np
import pandas as pd

from dmmlkd_ext.training.methods import METHODS
from paper_figures.collect.inputs import Results
from paper_figures.plan.experiments import REGIMES

MODALITIES = {
    "avdigits": ("image", "audio"),
    "mfeat": ("fac", "fou", "kar", "mor", "pix", "zer"),
    "watch": ("accelerometer", "gyroscope"),
}
BASE = {"avdigits": 0.62, "mfeat": 0.70, "watch": 0.80}
GAIN = {"local": -0.15, "dmml": 0.0, "dmml-tb": 0.01, "dmml-kd": 0.05, "dmml-kd-tb": 0.06, "centralized": 0.12}
NAN = float("nan")
ABLATED = [name for name in METHODS if name.startswith("dmml-kd-no") or name == "dmml-kd-gaussian"]
ABLATION = ["dmml", "dmml-kd", *ABLATED, "dmml-kd-tb"]
BALANCE = [
    *("dmml", "dmml-tb", "dmml-random", "dmml-reversed"),
    *("dmml-kd", "dmml-kd-tb", "dmml-kd-random", "dmml-kd-reversed"),
    *("dmml-kd-separate", "dmml-kd-greedy"),
]
CUTS = [f"{base}{end}" for base in ("dmml", "dmml-kd") for end in ("", "-tb", "-random", "-reversed")]
COMPARED = [
    name for name in METHODS if name not in (*ABLATED, *BALANCE) or name in ("dmml", "dmml-tb", "dmml-kd", "dmml-kd-tb")
]


def of(results: Results, experiments: Iterable[str]) -> Results:
    """Restrict results to experiments."""
    return replace(results, table=results.table[results.table["experiment"].isin(list(experiments))])


@dataclass(frozen=True)
class Size:
    """How much is made up."""

    seeds: tuple[int, ...] = (0, 1, 2, 3, 4)
    datasets: tuple[str, ...] = ("avdigits", "mfeat", "watch")
    rounds: int = 40
    evaluate_every: int = 5
    devices: int = 8
    methods: tuple[str, ...] | None = None
    settings: tuple[str, ...] = ("moderate", "severe")
    levels: int = 10
    """The most levels of an experiment."""


FULL = Size()
SMOKE = Size(
    seeds=(0, 1), datasets=("mfeat",), rounds=4, evaluate_every=2, devices=4, methods=("dmml", "dmml-kd-tb"), levels=1
)
TINY = Size(seeds=(0, 1, 2), datasets=("mfeat", "watch"), rounds=6, evaluate_every=3, devices=4, levels=2)


def make_results(size: Size = FULL) -> Results:
    """Return made-up results of all experiments."""
    return Results(make_table(size), (), make_features(size), make_settings(size))


def make_table(size: Size = FULL) -> pd.DataFrame:
    """Return the rows of all experiments."""
    builder = _Builder(size)
    for setting in size.settings:
        shift = -0.08 if setting == "severe" else 0.0
        builder.add("comparison", COMPARED, setting, NAN, shift)
        builder.add("ablation", ABLATION, setting, NAN, shift)
    builder.add("features", ["dmml-kd", "dmml-kd-no-generator"], "severe", NAN, 0.0)
    for level in (0.15, 0.3, 0.6)[: size.levels]:
        builder.add("balance", BALANCE, "default", level, 0.12 * np.log(level), budget=level)
    for alpha in (0.05, 0.1, 0.5, 1.0, 10.0)[: size.levels]:
        builder.add("non_iid", ["local", "dmml", "dmml-kd"], "default", alpha, 0.06 * np.log10(alpha), alpha=alpha)
    for rate in (0.0, 0.2, 0.4, 0.6, 0.8)[: size.levels]:
        builder.add("missing", ["dmml", "dmml-kd"], "default", rate, -0.15 * rate, missing=rate)
    for dataset in ("avdigits", "watch"):
        alone = [f"unimodal:{modality}" for modality in MODALITIES[dataset]]
        methods = ["dmml", "dmml-tb", "dmml-reversed", "dmml-kd", "dmml-kd-tb", *alone]
        builder.add("imbalance", methods, "default", NAN, 0.0, datasets=(dataset,), budget=0.3, probes=True)
    names = ("random_geometric", "ring", "torus", "star", "complete", "exponential", "erdos_renyi", "watts_strogatz")
    for topology in names[: size.levels]:
        builder.add("topology", ["dmml", "dmml-kd"], "topology", NAN, 0.0, datasets=("mfeat",), topology=topology)
    for devices in (10, 20, 50)[: size.levels]:
        builder.add("topology", ["dmml", "dmml-kd"], "devices", float(devices), 0.0, datasets=("mfeat",))
    for loss in (0.0, 0.1, 0.3, 0.5)[: size.levels]:
        builder.add("topology", ["dmml", "dmml-kd"], "link loss", loss, -0.05 * loss, datasets=("mfeat",))
    for setting in ("default", "similarity x10", "generator from round 1", "no momentum", "feature width 8"):
        shift = 0.0 if setting == "default" else -0.02
        builder.add("sensitivity", ["dmml-kd"], setting, NAN, shift, datasets=("mfeat", "watch"))
    for setting in ("early", "rank", "score"):
        builder.add("metrics", CUTS, setting, NAN, 0.0, datasets=("mfeat", "watch"), budget=0.3)
    for setting in list(REGIMES)[:3]:
        builder.add("regimes", CUTS, setting, NAN, 0.0, datasets=("watch", "mfeat"), budget=0.3)
    for setting in size.settings:
        builder.add("unseen", ["local", "dmml", "dmml-tb", "dmml-kd", "dmml-kd-tb"], setting, NAN, 0.0)
    return builder.table()


class _Builder:
    def __init__(self, size: Size) -> None:
        self.size = size
        self.random = np.random.default_rng(0)
        self.frames: list[pd.DataFrame] = []

    def add(
        self,
        experiment: str,
        methods: Sequence[str],
        setting: str,
        level: float,
        shift: float,
        datasets: Sequence[str] = (),
        probes: bool = False,
        budget: float = NAN,
        alpha: float = 0.5,
        missing: float = 0.6,
        topology: str = "random_geometric",
    ) -> None:
        size = self.size
        for dataset in datasets or size.datasets:
            for seed, method in itertools.product(size.seeds, methods):
                if dataset not in size.datasets or (size.methods and method not in size.methods):
                    continue
                about = {
                    "experiment": experiment,
                    "setting": setting,
                    "level": level,
                    "run": "-".join(
                        map(
                            str,
                            (dataset, method, seed, experiment, setting, round(100 * np.nan_to_num(level)), topology),
                        )
                    ),
                    "dataset": dataset,
                    "method": method,
                    "seed": seed,
                    "budget_fraction": budget,
                    "partition": "dirichlet",
                    "dirichlet_alpha": alpha,
                    "missing_rate": missing,
                    "num_devices": size.devices,
                    "topology": topology,
                    "link_failure": 0.0,
                    "device_failure": 0.0,
                    "learning_rate": 0.05,
                    "own_parameter": NAN,
                    "rounds": size.rounds,
                    "local_iterations": 10,
                    "commit": "c0ffee1",
                }
                self.frames.append(self._run(about, shift, probes).assign(**about))

    def _run(self, about: dict, shift: float, probes: bool) -> pd.DataFrame:
        """Return the measurements of one run."""
        size, random = self.size, self.random
        dataset, method, seed = about["dataset"], about["method"], about["seed"]
        rounds = sorted({*range(size.evaluate_every, size.rounds + 1, size.evaluate_every), size.rounds})
        names = MODALITIES[dataset]
        luck = np.random.default_rng(seed).normal(0, 0.03) + random.normal(0, 0.01)
        gain = GAIN.get(method, 0.02 if method.startswith("dmml-kd") else 0.01)
        final = BASE[dataset] + shift + gain + luck
        devices = range(size.devices)
        held = [1 + (device % len(names)) if device < 0.6 * size.devices else len(names) for device in devices]
        rows: list[tuple] = [(size.rounds, "modalities_held", "", device, count) for device, count in enumerate(held)]
        for order, name in enumerate(names):
            alone = [device for device, count in enumerate(held) if order < count]
            rows += [(size.rounds, "modality_accuracy", name, device, final - 0.1) for device in alone]
        if about["experiment"] == "metrics":
            rows += [(index, "ranking_agreement", "", None, 0.6) for index in (1, 2, 3, 10) if index < size.rounds]
            rows.append((size.rounds, "ranking_agreement", "", None, 0.5))
        spread = np.random.default_rng(seed + 100).normal(0, 0.05, size.devices)
        for index in rounds:
            level = final * (1 - 0.7 * np.exp(-4 * index / size.rounds))
            for part in ("test", "validation"):
                values = np.clip(level + spread + random.normal(0, 0.01, size.devices), 0, 1)
                rows += [(index, "accuracy", part, device, value) for device, value in enumerate(values)]
            for order, name in enumerate(names):
                rows.append((index, "modality_accuracy", name, None, level - 0.05 - 0.1 * (order % 2)))
            share = 0.8 if method.endswith("-tb") else 1.0
            rows.append((index, "cumulative_time_s", "", None, 12.5 * index * share))
            rows.append((index, "cumulative_energy_joule", "", None, 9.0 * index * share))
            rows.append((index, "cumulative_bits", "", None, 3.1e6 * index))
            for block, factor in (("shared", 1.0), *((name, 4.0) for name in names)):
                distance = 0.0 if about["topology"] == "complete" else factor * np.exp(random.normal(0, 0.1))
                rows.append((index, "consensus_distance", block, None, distance))
        gap = {"complete": 1.0, "ring": 0.02}.get(about["topology"], 0.1)
        rows.append((size.rounds, "spectral_gap", "", None, gap * (1.0 - np.nan_to_num(about["level"] % 1.0))))
        rows += self._balance(about, names, held)
        if probes:
            rows += self._probes(method, names, held, final)
        return pd.DataFrame(rows, columns=["round", "metric", "part", "device", "value"])

    def _balance(self, about: dict, names: Sequence[str], held: list[int]) -> list[tuple]:
        size, random, rows = self.size, self.random, []
        method, level = about["method"], about["budget_fraction"]
        detailed = about["experiment"] == "balance" and about["seed"] == size.seeds[0] and level == 0.3
        for index in range(1, size.rounds + 1):
            for order, name in enumerate(names):
                metric = 1.0 + 0.4 * (0.5 - order / max(1, len(names) - 1)) * (0.6 if "tb" in method else 1.0)
                iterations = 10 * (1.0 if np.isnan(level) else level) / (metric if "tb" in method else 1.0) ** 2
                for metric_name, value in (("balance_metric", metric), ("local_iterations", iterations)):
                    rows.append((index, metric_name, name, None, value + random.normal(0, 0.03)))
                    if detailed:
                        rows += [
                            (index, metric_name, name, device, value * (1 + 0.1 * device / size.devices))
                            for device, count in enumerate(held)
                            if order < count
                        ]
            if detailed:
                rows += [
                    (index, "energy_left_joule", "", device, 900 * (1 - index / size.rounds) * (1 + 0.2 * device))
                    for device in range(size.devices)
                ]
            rows.append((index, "imbalance", "", None, 0.3))
            rows.append((index, "loss", "total", None, 2.0 * np.exp(-3 * index / size.rounds)))
        return rows

    def _probes(self, method: str, names: Sequence[str], held: list[int], final: float) -> list[tuple]:
        rows = []
        for order, name in enumerate(names):
            lack = (0.02 if order == 0 else 0.12) * (0.5 if "tb" in method else 1.0)
            if method.startswith("unimodal:"):
                if method != f"unimodal:{name}":
                    continue
                lack = 0.0
            for device, count in enumerate(held):
                if order < count:
                    value = 0.6 - lack + self.random.normal(0, 0.01)
                    rows.append((self.size.rounds, "probe_accuracy", name, device, value))
        return rows

    def table(self) -> pd.DataFrame:
        """Return all rows with the types of the real table."""
        table = pd.concat(self.frames, ignore_index=True)
        table["device"] = table["device"].astype("Int32")
        for name in ("run", "dataset", "method", "partition", "topology", "commit", "metric", "part"):
            table[name] = table[name].astype("category")
        return table


def make_features(size: Size = FULL) -> pd.DataFrame:
    """Return features of some devices in two dimensions, nearer to each other with the generator."""
    random = np.random.default_rng(1)
    rows = []
    methods = ("dmml-kd-no-generator", "dmml-kd")
    for dataset, seed, method in itertools.product(size.datasets[:2], size.seeds[:3], methods):
        apart = 2.5 if method.endswith("generator") else 0.8
        for device, modality in itertools.product(range(size.devices // 2), MODALITIES[dataset][:2]):
            for label, embedding in itertools.product(range(5), ("pca", "tsne")):
                angle = 2 * np.pi * label / 5
                for kind in ("common", "specific"):
                    offset = apart * np.array([np.cos(device), np.sin(device)]) + (6 if kind == "specific" else 0)
                    centre = 5 * np.array([np.cos(angle), np.sin(angle)]) + offset
                    places = centre + random.normal(0, 0.7, (6, 2))
                    rows += [(dataset, method, seed, device, modality, kind, label, embedding, x, y) for x, y in places]
        for modality in MODALITIES[dataset][:2]:
            distance = apart + random.normal(0, 0.05)
            rows.append((dataset, method, seed, None, modality, "common", None, "distance", distance, NAN))
    names = ["dataset", "method", "seed", "device", "modality", "kind", "class", "embedding", "x", "y"]
    frame = pd.DataFrame(rows, columns=names)
    return frame.astype({"device": "Int32", "class": "Int32"})


def make_settings(size: Size = FULL) -> pd.DataFrame:
    """Return the settings of two experiments as the real configurations have them."""
    from dmmlkd_ext.experiments.config.presets import preset

    rows = []
    for experiment, methods, levels in (("comparison", COMPARED, (NAN,)), ("balance", BALANCE, (0.15, 0.3))):
        for dataset, method, level in itertools.product(size.datasets, methods, levels):
            settings = flatten(preset(dataset, method).to_dict())
            if not np.isnan(level):
                settings["energy.budget_fraction"] = level
            rows += [
                (experiment, "default", level, dataset, method, option, str(value))
                for option, value in settings.items()
            ]
    return pd.DataFrame(rows, columns=["experiment", "setting", "level", "dataset", "method", "option", "value"])


def flatten(values: dict, prefix: str = "") -> dict[str, object]:
    """Return nested dictionaries as one, its keys joined by dots."""
    flat: dict[str, object] = {}
    for name, value in values.items():
        flat |= flatten(value, f"{prefix}{name}.") if isinstance(value, dict) else {prefix + name: value}
    return flat
