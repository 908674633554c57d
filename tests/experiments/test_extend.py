"""A finished run that is extended has the bits of an uninterrupted one."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from dmmlkd_ext.data import DataUnavailableError, load_dataset
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.extend import ExtensionError
from dmmlkd_ext.experiments.run import RunChangedError, run_experiment
from dmmlkd_ext.wireless.energy import EnergyConfig


def make_config(rounds: int, **training: object) -> ExperimentConfig:
    config = preset("mfeat", "dmml-kd-tb", seed=1)
    constant = {"final_learning_rate_fraction": 1.0, "local_iterations": 3, "evaluate_every": 3, "input_noise": 0.1}
    return replace(
        config,
        data=replace(config.data, num_devices=6),
        training=replace(config.training, rounds=rounds, **{**constant, **training}),
    )


@pytest.fixture(scope="module", autouse=True)
def _data_at_hand() -> None:
    try:
        load_dataset("mfeat")
    except DataUnavailableError as error:
        pytest.skip(f"mfeat is neither here nor can be downloaded: {error}")


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.mark.parametrize(
    "options",
    [{}, {"per_class": "evaluated", "probe": True}, {"per_class": "last"}],
    ids=["plain", "evaluated", "last"],
)
@pytest.mark.parametrize(
    "first", [6, 8]
)  # a round that is evaluated in any case, and one that is evaluated as the last
def test_an_extended_run_has_the_bits_of_a_whole_one(first: int, options: dict, tmp_path: Path) -> None:
    whole = run_experiment(make_config(11, **options), tmp_path / "whole")
    short = run_experiment(make_config(first, **options), tmp_path / "parts")
    before = read_all(short)
    extended = run_experiment(make_config(11, **options), tmp_path / "parts", extend=True)
    assert extended.name == whole.name
    assert read_all(extended) == read_all(whole)
    assert read_all(short) == before
    seconds = (tmp_path / "parts" / "timings.csv").read_text().splitlines()
    assert seconds[-1].startswith(f"{whole.name},{first},11,")  # the first rounds were not computed again


def test_the_longest_run_is_extended_and_others_are_not_taken(tmp_path: Path) -> None:
    for config in (make_config(2), make_config(4), replace(make_config(5), seed=2), make_config(5, batch_size=8)):
        run_experiment(config, tmp_path)
    run_experiment(make_config(6), tmp_path, extend=True)
    assert "-tb-" in (last := (tmp_path / "timings.csv").read_text().splitlines()[-1])
    assert ",4,6," in last
    with pytest.raises(
        ExtensionError, match=r"extend needs a finished run of this configuration .* fewer than 2 rounds"
    ):
        run_experiment(make_config(2, batch_size=16), tmp_path, extend=True)


def test_a_run_that_was_changed_is_not_extended(tmp_path: Path) -> None:
    folder = run_experiment(make_config(2), tmp_path)
    (folder / "metrics.jsonl").write_text("{}\n")
    with pytest.raises(RunChangedError):
        run_experiment(make_config(4), tmp_path, extend=True)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            {"training": {"final_learning_rate_fraction": 0.1}},
            "training.final_learning_rate_fraction must be 1 .* got 0.1",
        ),
        ({"training": {"patience": 2}}, "training.patience must be 0 .* got 2"),
        ({"energy": EnergyConfig(budget_fraction=0.5)}, "energy.budget_fraction must be None .* got 0.5"),
        ({"energy": EnergyConfig(budget_joule=9.0)}, "energy.budget_joule must be None .* got 9"),
    ],
)
def test_what_depends_on_the_number_of_rounds_is_refused(change: dict, message: str, tmp_path: Path) -> None:
    config = replace(make_config(4, **change.get("training", {})), **{k: v for k, v in change.items() if k == "energy"})
    with pytest.raises(ExtensionError, match=message):
        run_experiment(config, tmp_path, extend=True)
    assert not list(tmp_path.glob("mfeat*"))
