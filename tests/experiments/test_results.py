from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from fake_simulation import build_fake

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.results import (
    MEASUREMENT,
    PROVENANCE,
    describe_run,
    extract,
    flatten_options,
    last_round,
    read_commit,
    read_records,
)
from dmmlkd_ext.experiments.run import run_experiment
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import get_method

CONFIG = ExperimentConfig(
    method=get_method("dmml"), data=DataConfig(num_devices=3), training=TrainingConfig(rounds=7), seed=5
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return run_experiment(CONFIG, tmp_path, build=build_fake)


def test_a_run_is_described_by_the_columns_of_provenance(folder: Path) -> None:
    columns = describe_run(folder.name, CONFIG, read_commit(folder))
    assert tuple(columns) == PROVENANCE
    assert (columns["run"], columns["seed"], columns["method"]) == (folder.name, 5, "dmml")
    assert columns["commit"] == "commit-of-the-tests"


def test_a_finished_run_yields_one_row_per_number(folder: Path) -> None:
    table = pd.DataFrame(extract(read_records(folder), by_device=True), columns=list(MEASUREMENT))
    accuracy = table.query("metric == 'accuracy' and part == 'test'")
    assert accuracy["round"].tolist() == [5, 5, 5, 7, 7, 7]
    assert accuracy["device"].tolist() == [0, 1, 2, 0, 1, 2]
    losses = table.query("metric == 'loss'")
    assert losses["value"].tolist() == [1.0 / 5, 1.0 / 7]
    assert losses["device"].isna().all()
    assert set(table.query("metric == 'local_iterations' and part == 'gyr'")["device"]) == {1, 2}  # null has no row
    assert set(table.query("metric == 'consensus_distance'")["part"]) == {"shared", "acc"}


def test_every_option_of_a_configuration_has_its_path() -> None:
    options = dict(flatten_options(CONFIG.to_dict()))
    assert (options["seed"], options["method.name"], options["training.rounds"]) == (5, "dmml", 7)


def test_the_last_round_is_that_of_each_run() -> None:
    table = pd.DataFrame({"run": ["a", "a", "b"], "round": [1, 7, 3], "value": [0.9, 0.5, 0.1]})
    assert last_round(table)["value"].tolist() == [0.5, 0.1]


def test_records_of_an_unfinished_run_are_refused(folder: Path) -> None:
    (folder / "result.json").unlink()
    with pytest.raises(FileNotFoundError):
        next(read_records(folder))


def test_altered_records_are_refused(folder: Path) -> None:
    with (folder / "metrics.jsonl").open("a") as file:
        file.write('{"round": 8}\n')
    with pytest.raises(ValueError, match=rf"run {folder.name} has other records"):
        next(read_records(folder))
