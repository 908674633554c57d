"""Quantities that figures and claims share, computed from the tidy table: pure functions."""

from __future__ import annotations

import pandas as pd

from dmmlkd_ext.experiments.results import last_round
from dmmlkd_ext.training.methods import UNIMODAL
from paper_figures.collect.inputs import pick
from paper_figures.judge.transforms import RUN, device_accuracy

DISTANCE = "distance"
"""The `embedding` of the rows of features that hold a measured distance in x instead of a place."""
RATIO = "ratio"
"""Likewise of those that hold the ratio of two distances."""


def undertraining_gap(table: pd.DataFrame) -> pd.DataFrame:
    """Return how much better a linear probe reads a modality's encoder that was trained alone than one trained jointly.

    Both probes are of the same device and seed, in the last round; only devices that hold the modality count. The
    table must have runs of `unimodal:<modality>`.

    Returns:
        Columns dataset, method, modality, seed, gap, alone, joint, devices; accuracies are means over devices.
    """
    rows = pick(last_round(table), "probe_accuracy", of_devices=True).rename(columns={"part": "modality"})
    keys = ["dataset", "seed", "modality", "device"]
    is_alone = rows["method"].str.startswith(UNIMODAL)
    of_its_modality = rows["method"] == UNIMODAL + rows["modality"]
    alone = rows[of_its_modality].drop_duplicates(keys)[[*keys, "value"]].rename(columns={"value": "alone"})
    joint = rows[~is_alone][[*keys, "method", "value"]].rename(columns={"value": "joint"})
    both = joint.merge(alone, on=keys).assign(gap=lambda frame: frame["alone"] - frame["joint"])
    grouped = both.groupby(["dataset", "method", "modality", "seed"], sort=True)
    return grouped.agg(
        gap=("gap", "mean"), alone=("alone", "mean"), joint=("joint", "mean"), devices=("device", "size")
    ).reset_index()


def slowest_modality(table: pd.DataFrame, method: str = "dmml") -> dict[str, str]:
    """Return the modality of each dataset with the least balance metric, its mean over rounds and seeds of a method.

    The metric is speed over the device's mean speed, so that the slowest is known without looking at any accuracy.
    """
    rows = pick(table, "balance_metric", methods=[method], of_devices=False)
    means = rows.groupby(["dataset", "part"])["value"].mean().reset_index().sort_values("value", kind="stable")
    return {str(dataset): str(group["part"].iloc[0]) for dataset, group in means.groupby("dataset") if len(group) > 1}


def gain_by_held(table: pd.DataFrame, method: str = "dmml-kd", reference: str = "dmml") -> pd.DataFrame:
    """Return each device's gain of a method over a reference, with the number of modalities that the device holds.

    Returns:
        Columns dataset, setting, level, seed, device, held, complete, gain: the difference of test accuracy in the
        last round; `complete` devices hold as many modalities as any device of the dataset.
    """
    held = pick(table, "modalities_held", of_devices=True)
    counts = held.drop_duplicates([*RUN, "device"])[[*RUN, "device", "value"]].rename(columns={"value": "held"})
    accuracy = device_accuracy(table, [method, reference]).merge(counts, on=[*RUN, "device"])
    keys = ["dataset", "setting", "level", "seed", "device", "held"]
    ours, theirs = (accuracy[accuracy["method"] == name][[*keys, "value"]] for name in (method, reference))
    both = ours.merge(theirs, on=keys, suffixes=("", "_reference")).astype({"held": int})
    complete = both["held"] == both.groupby("dataset")["held"].transform("max")
    both = both.assign(complete=complete, gain=both["value"] - both["value_reference"])
    return both[[*keys, "complete", "gain"]].sort_values(keys, kind="stable", ignore_index=True)


def lone_accuracy(table: pd.DataFrame) -> pd.DataFrame:
    """Return the final test accuracy of the devices that hold one modality, by that modality.

    Of a run of `unimodal:<modality>` only devices with that modality count: what they would have reached had everybody
    trained for it alone.

    Returns:
        Columns dataset, modality, method, seed, accuracy (the mean over these devices), devices.
    """
    last, keys = last_round(table), ["dataset", "seed", "device"]
    held = pick(last, "modalities_held", of_devices=True)
    alone = held[(held["value"] == 1) & ~held["method"].str.startswith(UNIMODAL)].drop_duplicates(keys)[keys]
    seen = pick(last, "modality_accuracy", of_devices=True).rename(columns={"part": "modality"})
    lone = alone.merge(seen[[*keys, "method", "modality"]], on=keys)
    lone = lone[~lone["method"].str.startswith(UNIMODAL)].drop_duplicates(keys)[[*keys, "modality"]]
    rows = device_accuracy(table).merge(lone, on=keys)
    rows = rows[~rows["method"].str.startswith(UNIMODAL) | (rows["method"] == UNIMODAL + rows["modality"])]
    grouped = rows.groupby(["dataset", "modality", "method", "seed"], sort=True)["value"]
    return grouped.agg(accuracy="mean", devices="size").reset_index()


def runs_with(settings: pd.DataFrame, option: str, value: str) -> set[str]:
    """Return the runs in which an option has a value; none where it was not recorded."""
    if "run" not in settings:
        return set()
    return set(settings.loc[(settings["option"] == option) & (settings["value"] == value), "run"])


def feature_distance(features: pd.DataFrame) -> pd.DataFrame:
    """Return how far apart the devices' means of common features of a class are, by dataset, method and seed.

    It is measured in the space of the features (rows whose embedding is `distance`), and averaged over modalities.

    Returns:
        Columns dataset, method, seed, distance, space (always `features`).
    """
    measured = features[(features["kind"] == "common") & (features["embedding"] == DISTANCE)]
    means = measured.groupby(["dataset", "method", "seed"])["x"].mean().dropna().reset_index(name="distance")
    return means.assign(space="features")


def feature_ratio(features: pd.DataFrame) -> pd.DataFrame:
    """Return how far apart devices' means of a class are, over how far apart those of different classes are.

    Neither the scale of the features nor the spread within a class has an effect on it. Averaged over modalities.

    Returns:
        Columns dataset, method, seed, ratio; no row where it was not measured.
    """
    if features.empty:
        return pd.DataFrame(columns=["dataset", "method", "seed", "ratio"])
    measured = features[(features["kind"] == "common") & (features["embedding"] == RATIO)]
    return measured.groupby(["dataset", "method", "seed"])["x"].mean().dropna().reset_index(name="ratio")
