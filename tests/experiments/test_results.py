from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from fake_simulation import build_fake

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.results import MEASUREMENT, PROVENANCE, find_runs, last_round, load_results
from dmmlkd_ext.experiments.run import run_experiment
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import get_method
from dmmlkd_ext.wireless.energy import EnergyConfig

CONFIG = ExperimentConfig(
    method=get_method("dmml"), data=DataConfig(num_devices=3), training=TrainingConfig(rounds=7), seed=5
)


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    run_experiment(CONFIG, tmp_path, build=build_fake)
    run_experiment(replace(CONFIG, energy=EnergyConfig(budget_fraction=0.3)), tmp_path, build=build_fake)
    return tmp_path


def test_one_row_a_number_with_its_provenance(runs: Path) -> None:
    table = load_results(find_runs(runs)).table
    assert list(table.columns) == [*PROVENANCE, *MEASUREMENT]
    assert set(table["run"]) == {folder.name for folder in find_runs(runs)}
    assert set(table["seed"]) == {5}
    assert set(table["method"]) == {"dmml"}
    assert set(table["commit"]) == {"commit-of-the-tests"}
    accuracy = table.query("metric == 'accuracy' and part == 'test' and budget_fraction == 0.3")
    assert accuracy["round"].tolist() == [5, 5, 5, 7, 7, 7]
    assert accuracy["device"].tolist() == [0, 1, 2, 0, 1, 2]
    losses = table.query("metric == 'loss' and part == 'task' and budget_fraction == 0.3")
    assert losses["value"].tolist() == pytest.approx([0.5 / index for index in range(1, 8)])
    assert losses["device"].isna().all()


def test_null_yields_no_row_and_extra_keys_do(runs: Path) -> None:
    table = load_results(find_runs(runs)).table
    assert set(table.query("metric == 'local_iterations' and part == 'gyr'")["device"]) == {1, 2}
    assert set(table.query("metric == 'consensus_distance'")["part"]) == {"shared", "acc"}


def test_only_the_metrics_that_are_asked_for(runs: Path) -> None:
    table = load_results(find_runs(runs), metrics=["loss"]).table
    assert set(table["metric"]) == {"loss"}


def test_the_last_round_is_the_last_one(runs: Path) -> None:
    table = load_results(find_runs(runs)).table
    assert set(last_round(table)["round"]) == {7}


def test_unfinished_runs_are_left_out_and_named(runs: Path) -> None:
    first, second = find_runs(runs)
    (first / "result.json").unlink()
    results = load_results(find_runs(runs))
    assert results.unfinished == (first.name,)
    assert set(results.table["run"]) == {second.name}


def test_no_runs_give_an_empty_table(tmp_path: Path) -> None:
    assert load_results([]).table.empty
    assert find_runs(tmp_path) == []
    with pytest.raises(FileNotFoundError, match="runs_folder does not exist"):
        find_runs(tmp_path / "absent")


def test_altered_records_are_refused(runs: Path) -> None:
    folder = find_runs(runs)[0]
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 8}\n')
    with pytest.raises(ValueError, match=rf"run {folder.name} has other records"):
        load_results([folder])
