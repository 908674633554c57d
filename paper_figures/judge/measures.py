"""Quantities that figures and claims share, computed from the tidy table: pure functions."""

from __future__ import annotations

import pandas as pd

from dmmlkd_ext.experiments.results import last_round, pick
from dmmlkd_ext.training.methods import UNIMODAL
from paper_figures.judge.transforms import RUN, device_accuracy

DISTANCE = "distance"
"""The `embedding` of the rows of features that hold a measured distance in x instead of a place."""


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


def feature_distance(features: pd.DataFrame) -> pd.DataFrame:
    """Return how far apart the devices' means of common features of a class are, by dataset, method and seed.

    It is measured in the space of the features (rows whose embedding is `distance`), and averaged over modalities.

    Returns:
        Columns dataset, method, seed, distance, space (always `features`).
    """
    measured = features[(features["kind"] == "common") & (features["embedding"] == DISTANCE)]
    means = measured.groupby(["dataset", "method", "seed"])["x"].mean().dropna().reset_index(name="distance")
    return means.assign(space="features")
