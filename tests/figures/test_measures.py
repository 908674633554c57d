from __future__ import annotations

import math

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from rows import table_of

from paper_figures.collect.inputs import Results
from paper_figures.figures import convergence, imbalance, iterations_energy, modality_heterogeneity, topology
from paper_figures.judge import measures
from paper_figures.tables import energy


def probe(method: str, device: int, value: float, seed: int = 0, modality: str = "audio") -> dict:
    return {
        "experiment": "imbalance",
        "metric": "probe_accuracy",
        "part": modality,
        "method": method,
        "seed": seed,
        "device": device,
        "value": value,
    }


def test_the_gap_is_the_probe_alone_minus_the_joint_one_on_the_same_devices() -> None:
    rows = [probe("unimodal:audio", 0, 0.8), probe("unimodal:audio", 1, 0.6), probe("dmml", 0, 0.5)]
    # Neither the encoder of another modality nor a device without a partner counts.
    rows += [probe("unimodal:image", 0, 0.1), probe("dmml", 2, 0.0), probe("dmml", 0, 0.4, seed=1)]
    (gap,) = measures.undertraining_gap(table_of(rows)).to_dict("records")
    assert (gap["dataset"], gap["method"], gap["modality"], gap["seed"]) == ("watch", "dmml", "audio", 0)
    assert gap["gap"] == pytest.approx(0.3)
    assert gap["devices"] == 1


def test_the_slowest_modality_has_the_least_balance_metric() -> None:
    rows = [
        {"metric": "balance_metric", "part": part, "round": index, "value": value}
        for index in (1, 2)
        for part, value in (("image", 1.2), ("audio", 0.8))
    ]
    assert measures.slowest_modality(table_of(rows)) == {"watch": "audio"}
    assert measures.slowest_modality(table_of(rows[:1])) == {}


def held_rows() -> list[dict]:
    rows = []
    for level, (poor, rich) in {0.2: (0.1, 0.0), 0.8: (0.3, 0.2)}.items():
        for method, gain in (("dmml", 0.0), ("dmml-kd", 1.0)):
            about = {"experiment": "missing", "method": method, "level": level}
            for device, held, more in ((0, 1, poor), (1, 2, rich)):
                rows.append({**about, "device": device, "value": 0.5 + gain * more})
                rows.append({**about, "device": device, "metric": "modalities_held", "part": "", "value": held})
    return rows


def test_gains_are_of_devices_with_as_many_modalities() -> None:
    gains = measures.gain_by_held(table_of(held_rows()))
    assert gains[["level", "held", "complete"]].to_numpy().tolist() == [
        [0.2, 1, False],
        [0.2, 2, True],
        [0.8, 1, False],
        [0.8, 2, True],
    ]
    assert gains["gain"].tolist() == pytest.approx([0.1, 0.0, 0.3, 0.2])
    drawn = modality_heterogeneity.by_held(table_of(held_rows()))
    assert drawn["held"].tolist() == [1, 2]
    assert drawn["mean"].tolist() == pytest.approx([0.2, 0.1])


def test_complete_devices_hold_all_modalities_of_the_dataset_not_the_most_of_a_level() -> None:
    rows = [row for row in held_rows() if not (row["level"] == 0.8 and row["device"] == 1)]
    gains = measures.gain_by_held(table_of(rows))
    assert gains[["level", "held", "complete"]].to_numpy().tolist() == [
        [0.2, 1, False],
        [0.2, 2, True],
        [0.8, 1, False],
    ]


def test_the_gap_is_a_mean_over_devices() -> None:
    rows = [probe("unimodal:audio", device, 0.9) for device in range(3)]
    rows += [probe("dmml", device, value) for device, value in enumerate((0.9, 0.9, 0.3))]
    (gap,) = measures.undertraining_gap(table_of(rows)).to_dict("records")
    assert (gap["gap"], gap["alone"], gap["joint"]) == pytest.approx((0.2, 0.9, 0.7))


def point(x: float, device: int, embedding: str = "pca", kind: str = "common") -> dict:
    about = {"dataset": "mfeat", "method": "dmml-kd", "seed": 0, "modality": "fac", "class": 0}
    return {**about, "device": device, "kind": kind, "embedding": embedding, "x": x, "y": 0.0}


def test_the_distance_is_the_measured_one_of_common_features_and_not_of_the_plane() -> None:
    points = [point(0.0, 0), point(2.0, 1), point(9.0, 0, "distance", kind="specific")]
    assert measures.feature_distance(pd.DataFrame(points)).empty
    numbers = [point(0.4, 0, "distance"), point(0.6, 0, "distance"), point(math.nan, 0, "distance")]
    measured = measures.feature_distance(pd.DataFrame(points + numbers)).iloc[0]
    assert (measured["distance"], measured["space"]) == (pytest.approx(0.5), "features")


def test_costs_are_those_of_the_round_that_reached_the_target() -> None:
    rows = []
    for method, values in (("dmml", (0.2, 0.6, 1.0)), ("dmml-kd", (0.9, 0.9, 0.95)), ("local", (0.1, 0.1, 0.1))):
        for index, value in enumerate(values, start=1):
            about = {"method": method, "round": index, "rounds": 3}
            rows.append({**about, "device": 0, "value": value})
            rows.append({**about, "metric": "cumulative_energy_joule", "part": "", "value": 10.0 * index})
    found = energy.transform(Results(table_of(rows))).set_index("method")
    assert found["target"].tolist() == pytest.approx([0.9] * 3)
    assert found.loc["dmml", "energy_joule"] == 30.0
    assert found.loc["dmml-kd", ["round", "energy_joule"]].tolist() == [1, 10.0]
    assert found.loc["local", "reached"] == 0
    assert math.isnan(found.loc["local", "energy_joule"])
    assert found["time_s"].isna().all()  # not recorded
    shown = energy.show(found.reset_index()).set_index("Method")
    assert shown.loc["Local", "Reached"] == "0 of 1"
    assert shown.loc["DMML-KD", "Energy"] == "10 J"
    without = energy.transform(Results(table_of([row for row in rows if row["method"] != "dmml"])))
    assert without["reached"].tolist() == [0, 0]


def test_differences_over_the_budget_are_to_the_uniform_cut_of_the_same_losses() -> None:
    values = {"dmml": 0.5, "dmml-tb": 0.6, "dmml-kd": 0.7, "dmml-kd-greedy": 0.65}
    rows = [{"method": name, "level": 0.3, "device": 0, "value": value} for name, value in values.items()]
    found = iterations_energy.over_budgets(table_of(rows)).set_index("method")["uniform_difference"]
    assert found["dmml-tb"] == pytest.approx(0.1)
    assert found["dmml-kd-greedy"] == pytest.approx(-0.05)
    assert found[["dmml", "dmml-kd"]].isna().all()


def test_the_devices_that_are_traced_hold_the_most_modalities() -> None:
    rows = [
        {"method": "dmml-kd-tb", "level": 0.3, "metric": "local_iterations", "part": part, "device": device, "value": 3}
        for device, parts in ((0, ("image",)), (1, ("image", "audio")), (2, ("image",)))
        for part in parts
    ]
    traces = iterations_energy.trace_devices(table_of(rows), count=2)
    assert sorted(traces["device"].unique()) == [0, 1]
    assert len(traces) == 3


def test_curves_have_the_cost_of_their_round() -> None:
    rows = [{"device": 0, "value": 0.5}, {"metric": "cumulative_time_s", "part": "", "value": 7.0}]
    rows += [{"method": "unimodal:audio", "device": 0, "value": 0.9}]
    (curve,) = convergence.transform(Results(table_of(rows))).to_dict("records")
    assert (curve["mean"], curve["time_s"]) == (0.5, 7.0)
    assert math.isnan(curve["energy_joule"])


def test_topologies_are_told_apart_in_their_own_setting_alone() -> None:
    rows = [
        {
            "run": f"{setting}{topology}",
            "setting": setting,
            "topology": topology,
            "level": level,
            "device": 0,
            "value": 0.5,
        }
        for setting, topology, level in (
            ("topology", "ring", math.nan),
            ("topology", "star", math.nan),
            ("devices", "ring", 10.0),
        )
    ]
    drawn = topology.transform(Results(table_of(rows)))
    assert drawn[["setting", "topology"]].to_numpy().tolist() == [
        ["topology", "ring"],
        ["topology", "star"],
        ["devices", ""],
    ]


def test_the_spectral_gap_is_a_mean_over_seeds_beside_the_accuracy() -> None:
    rows = [{"run": f"r{seed}", "seed": seed, "setting": "topology", "device": 0, "value": 0.5} for seed in (0, 1)]
    gaps = [
        {
            "run": row["run"],
            "seed": row["seed"],
            "setting": "topology",
            "metric": "spectral_gap",
            "part": "",
            "value": gap,
        }
        for row, gap in zip(rows, (0.25, 0.75), strict=True)
    ]
    drawn = topology.transform(Results(table_of([*rows, *gaps]))).set_index("measure")
    assert drawn.loc["gap", "mean"] == 0.5
    assert drawn.loc["accuracy", "mean"] == 0.5
    assert drawn.loc["gap", "topology"] == "ring"


def test_a_modality_alone_has_no_balance_metric() -> None:
    rows = [
        {"metric": metric, "part": "audio", "method": method, "value": 1.0}
        for metric in ("balance_metric", "modality_accuracy")
        for method in ("dmml", "unimodal:audio", "unimodal:image")
    ]
    drawn = imbalance.transform(Results(table_of(rows)))
    assert drawn[["measure", "method"]].to_numpy().tolist() == [
        ["modality_accuracy", "dmml"],
        ["modality_accuracy", "unimodal:audio"],
        ["balance_metric", "dmml"],
    ]


def test_one_missing_is_of_devices_that_hold_two() -> None:
    rows = []
    for device, (held, alone) in enumerate(((2, {"image": 0.4, "audio": 0.6}), (1, {"audio": 0.9}))):
        rows.append({"device": device, "metric": "modalities_held", "part": "", "value": held})
        rows += [
            {"device": device, "metric": "modality_accuracy", "part": part, "value": v} for part, v in alone.items()
        ]
    (row,) = measures.accuracy_with_one_missing(table_of(rows)).to_dict("records")
    assert row["mean"] == pytest.approx(0.5)


def test_joules_are_those_of_the_last_round() -> None:
    rows = [
        {"metric": "cumulative_energy_joule", "part": "", "round": index, "value": value, "level": 0.3}
        for index, value in ((1, 2.0), (2, 5.0))
    ]
    rows.append({"metric": "budget_joule", "part": "", "round": 2, "value": 6.0, "level": 0.3})
    (row,) = measures.joules(table_of(rows)).to_dict("records")
    assert (row["spent_joule"], row["budget_joule"]) == (5.0, 6.0)
    (row,) = measures.joules(table_of(rows[:2])).to_dict("records")
    assert math.isnan(row["budget_joule"])
    assert iterations_energy.describe_joules(table_of(rows)) == [
        "- watch, energy budget 0.3: 6 J for every method; spent 5 J to 5 J, by method"
    ]
    assert "not recorded" in iterations_energy.describe_joules(table_of(rows[:2]))[0]
    unlike = table_of([*rows, {**rows[2], "method": "dmml-kd", "value": 7.0}, {**rows[1], "method": "dmml-kd"}])
    assert "not the same for every method" in iterations_energy.describe_joules(unlike)[0]


def test_a_curve_that_still_rises_is_marked() -> None:
    rows = [
        {"method": method, "round": index, "rounds": 40, "device": 0, "value": value}
        for method, values in (("dmml", (0.5, 0.6, 0.6045)), ("dmml-kd", (0.5, 0.6, 0.61)))
        for index, value in zip((20, 35, 40), values, strict=True)
    ]
    curves = convergence.transform(Results(table_of(rows)))
    rise = curves.groupby("method")["rise"].first()
    assert rise["dmml"] == pytest.approx(0.0045 * 4 / 5)
    assert rise["dmml-kd"] == pytest.approx(0.01 * 4 / 5)
    assert convergence.rising(curves) == ["- watch, DMML-KD: by 0.8 points"]
    drawn = convergence.draw(curves)
    assert sum(text.get_text() == "↑" for text in drawn.axes[0].texts) == 1
    short = convergence.transform(Results(table_of([{**row, "round": 40} for row in rows[::3]])))
    assert short["rise"].isna().all()
    plt.close("all")
