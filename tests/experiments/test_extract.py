from __future__ import annotations

import pytest

from dmmlkd_ext.experiments.results import Number, extract

FIRST = {
    "round": 1,
    "accuracy": None,
    "modality_accuracy": None,
    "simulated_time_s": 2.0,
    "sent_bits": [10.0, 30.0],
    "spectral_gap": 0.25,
    "local_iterations": {"image": [4, 2], "audio": [None, 3]},
    "balance_metric": {"image": [None, None], "audio": [None, None]},
    "energy_left_joule": [5.0, None],
}
LAST = {
    "round": 2,
    "accuracy": {"test": [0.5, 0.75], "validation": [0.25, None]},
    "modality_accuracy": {"image": [0.25, 0.75], "audio": [None, 0.5]},
    "probe_accuracy": {"image": [0.5, 0.5], "audio": [None, 1.0]},
    "generator_quality": {"nearest_mean_accuracy": [0.5, 1.0], "spread_ratio": [None, None]},
    "simulated_time_s": 3.0,
    "sent_bits": [20.0, 20.0],
    "local_iterations": {"image": [1, 1], "audio": [None, 4]},
    "balance_metric": {"image": [1.0, 1.5], "audio": [None, 0.5]},
    "energy_left_joule": [4.0, 1.0],
    "energy_spent_joule": [1.0, 3.0],
    "imbalance": [None, 0.5],
    "consensus_distance": {"shared": 0.125},
    "loss": {"total": 2.0, "task": 1.0},
    "spectral_gap": 0.75,
}


def test_what_is_kept_of_a_run() -> None:
    assert sorted(extract([FIRST, LAST]), key=str) == sorted(
        [
            Number(2, "accuracy", "test", 0, 0.5),
            Number(2, "accuracy", "test", 1, 0.75),
            Number(2, "accuracy", "validation", 0, 0.25),
            Number(2, "modality_accuracy", "image", None, 0.5),
            Number(2, "modality_accuracy", "audio", None, 0.5),
            Number(2, "modality_accuracy", "image", 0, 0.25),
            Number(2, "modality_accuracy", "image", 1, 0.75),
            Number(2, "modality_accuracy", "audio", 1, 0.5),
            Number(2, "probe_accuracy", "image", 0, 0.5),
            Number(2, "probe_accuracy", "image", 1, 0.5),
            Number(2, "probe_accuracy", "audio", 1, 1.0),
            Number(2, "generator_quality", "nearest_mean_accuracy", None, 0.75),
            Number(2, "imbalance", "", None, 0.5),
            Number(2, "cumulative_energy_joule", "", None, 2.0),
            Number(2, "cumulative_bits", "", None, 40.0),
            Number(2, "cumulative_time_s", "", None, 5.0),
            Number(2, "consensus_distance", "shared", None, 0.125),
            Number(2, "loss", "total", None, 2.0),
            Number(2, "spectral_gap", "", None, 0.5),
            Number(2, "budget_joule", "", None, 4.5),
            Number(2, "modalities_held", "", 0, 1.0),
            Number(2, "modalities_held", "", 1, 2.0),
        ],
        key=str,
    )


def test_a_limited_run_keeps_its_allotment_of_every_round() -> None:
    rows = [number for number in extract([FIRST, LAST], limited=True) if number.metric == "local_iterations"]
    assert [(number.round, number.part, number.value) for number in rows] == [
        (1, "image", 3.0),
        (1, "audio", 3.0),
        (2, "image", 1.0),
        (2, "audio", 4.0),
    ]
    metrics = [number for number in extract([FIRST, LAST], limited=True) if number.metric == "balance_metric"]
    assert [(number.round, number.part, number.value) for number in metrics] == [(2, "image", 1.5), (2, "audio", 0.5)]


def test_a_run_that_is_shown_by_device_keeps_every_device() -> None:
    numbers = list(extract([FIRST, LAST], by_device=True))
    energy = [tuple(number) for number in numbers if number.metric == "energy_left_joule"]
    assert energy == [
        (1, "energy_left_joule", "", 0, 5.0),
        (2, "energy_left_joule", "", 0, 4.0),
        (2, "energy_left_joule", "", 1, 1.0),
    ]
    assert sum(number.metric == "local_iterations" for number in numbers) == 6


def test_numbers_of_devices_are_averaged_not_their_median() -> None:
    held = {"local_iterations": {"image": [1, 1, 1], "audio": [2, 2, 2]}}
    record = LAST | held | {"imbalance": [0.0, 0.0, 0.75], "sent_bits": [0.0, 0.0, 30.0]}
    kept = {number.metric: number.value for number in extract([record]) if number.part == ""}
    assert (kept["imbalance"], kept["cumulative_bits"]) == (0.25, 10.0)


def test_devices_with_one_modality_stay_out_of_the_mean_metric_and_imbalance() -> None:
    record = LAST | {"imbalance": [0.0, 0.5], "balance_metric": {"image": [1.0, 1.5], "audio": [None, 0.5]}}
    kept = {(number.metric, number.part): number.value for number in extract([record], limited=True)}
    assert kept["imbalance", ""] == 0.5
    assert kept["balance_metric", "image"] == 1.5
    unlimited = LAST | {"energy_left_joule": [None, None]}
    assert "budget_joule" not in {number.metric for number in extract([unlimited])}


def test_the_agreement_is_kept_of_some_rounds_and_the_last() -> None:
    records = [LAST | {"round": index, "ranking_agreement": [0.5, 1.0, None]} for index in range(1, 13)]
    kept = [(number.round, number.value) for number in extract(records) if number.metric == "ranking_agreement"]
    assert kept == [(index, 0.75) for index in (1, 2, 3, 10, 12)]


def test_a_run_without_records_keeps_nothing() -> None:
    assert list(extract([])) == []


@pytest.mark.parametrize(
    ("absent", "metric"),
    [
        *((name, name) for name in ("probe_accuracy", "generator_quality", "modality_accuracy", "loss", "imbalance")),
        ("consensus_distance", "consensus_distance"),
        ("local_iterations", "modalities_held"),
        ("simulated_time_s", "cumulative_time_s"),
        ("sent_bits", "cumulative_bits"),
        ("energy_spent_joule", "cumulative_energy_joule"),
    ],
)
def test_what_a_run_does_not_record_is_left_out(absent: str, metric: str) -> None:
    assert metric in {number.metric for number in extract([LAST])}
    record = {name: value for name, value in LAST.items() if name != absent}
    assert metric not in {number.metric for number in extract([record])}


def test_accuracy_by_class_is_a_mean_over_the_devices_that_have_samples_of_it() -> None:
    record = LAST | {"class_accuracy": {"cup": [0.25, 0.75], "ball": [None, 1.0]}}
    found = [(number.part, number.value) for number in extract([record]) if number.metric == "class_accuracy"]
    assert found == [("cup", 0.5), ("ball", 1.0)]
