"""A run is named, resumed and reused by what it reads, not by how that is called."""

from __future__ import annotations

import logging
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from dmmlkd_ext.data import MultiModalDataset, Split
from dmmlkd_ext.data.registry import register_dataset
from dmmlkd_ext.data.sources.fetch import DataUnavailableError
from dmmlkd_ext.experiments import inputs
from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig, TopologyConfig
from dmmlkd_ext.experiments.inputs import hash_data, hash_files_read
from dmmlkd_ext.experiments.run import RunChangedError, run_experiment, run_name
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.keep.callbacks import Callback
from dmmlkd_ext.wireless.failures import FailureConfig

LOADED: dict = {"factor": 1.0}


def load_changing(seed: int = 0) -> MultiModalDataset:
    """Return data that change with `LOADED`, and not with the seed."""
    if LOADED["factor"] is None:
        raise DataUnavailableError("not here")
    generator = torch.Generator().manual_seed(1)

    def part(count: int) -> Split:
        features = {name: LOADED["factor"] * torch.randn(count, 5, generator=generator) for name in ("a", "b")}
        everything = torch.ones(count, 2, dtype=torch.bool)
        return Split(features, torch.arange(count) % 3, everything, torch.full((count,), -1))

    return MultiModalDataset("changing", ("a", "b"), 3, ("x", "y", "z"), part(40), part(12), part(12))


register_dataset("changing", load_changing, replace=True)


@pytest.fixture(autouse=True)
def _as_another_process(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    LOADED["factor"] = 1.0
    monkeypatch.setattr(inputs, "_known_data", {})
    yield
    LOADED["factor"] = 1.0


def make_config(seed: int = 0, **changes) -> ExperimentConfig:
    data = DataConfig("changing", partition="iid", num_devices=4, missing_rate=0.0)
    training = TrainingConfig(rounds=4, local_iterations=1, batch_size=4)
    return replace(ExperimentConfig(data=data, training=training, seed=seed), **changes)


def change_data() -> None:
    LOADED["factor"] = 2.0
    inputs._known_data.clear()


@pytest.mark.parametrize("kind", ["edges", "schedule"])
def test_another_content_of_a_file_is_another_run(tmp_path: Path, kind: str) -> None:
    path = tmp_path / "file"
    if kind == "edges":
        contents = "0 1\n1 2\n2 3\n", "0 1\n0 2\n0 3\n"
        config = make_config(topology=TopologyConfig("edge_list", path=str(path)))
    else:
        contents = "round,kind,ids\n1-2,device,0\n", "round,kind,ids\n1-2,device,1\n"
        config = make_config(failures=FailureConfig(schedule_path=str(path)))
    folders = []
    for content in (*contents, contents[0]):
        path.write_text(content)
        folders.append(run_experiment(config, tmp_path / "runs"))
    assert folders[0] != folders[1]
    assert folders[2] == folders[0]
    records = [(folder / "metrics.jsonl").read_bytes() for folder in folders]
    assert records[0] != records[1]


def test_every_source_that_is_imported_is_part_of_the_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    files = {
        "robots_of_test.py": "import helper_of_test\nimport torch\n",
        "helper_of_test.py": "def late():\n    from package_of_test import inner\n",
        "package_of_test/__init__.py": "",
        "package_of_test/inner.py": "from . import sibling\n",
        "package_of_test/sibling.py": "",
        "unused_of_test.py": "",
    }
    (tmp_path / "package_of_test").mkdir()
    for name, content in files.items():
        (tmp_path / name).write_text(content)
    config = make_config(module=(str(tmp_path / "robots_of_test.py"),))
    plain = run_name(config)
    for name, content in files.items():
        (tmp_path / name).write_text(content + "x = 1\n")
        assert (run_name(config) == plain) == (name == "unused_of_test.py"), name
        (tmp_path / name).write_text(content)
        assert run_name(config) == plain


def test_configurations_that_name_no_file_are_named_as_ever() -> None:
    assert hash_files_read(make_config()) == {}
    assert run_name(make_config()).endswith(make_config().digest("version-of-the-tests"))


def test_a_finished_run_is_not_reused_with_other_data(tmp_path: Path) -> None:
    folder = run_experiment(make_config(), tmp_path)
    assert run_experiment(make_config(), tmp_path) == folder
    change_data()
    said = rf"run {folder.name} was made from other data: dataset changing had the SHA-256 \w{{12}} then and has"
    with pytest.raises(RunChangedError, match=said):
        run_experiment(make_config(), tmp_path)


class BreakOff(Callback):
    def on_round_end(self, simulation, record) -> None:
        if simulation.round == 2:
            raise KeyboardInterrupt


def test_a_run_does_not_go_on_with_other_data(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(make_config(), tmp_path, checkpoint_every=1, callbacks=[BreakOff()])
    before = {path.name: path.read_bytes() for path in (tmp_path / run_name(make_config())).iterdir()}
    change_data()
    with pytest.raises(RunChangedError, match="was made from other data"):
        run_experiment(make_config(), tmp_path)
    assert {path.name: path.read_bytes() for path in (tmp_path / run_name(make_config())).iterdir()} == before
    LOADED["factor"] = 1.0
    resumed = run_experiment(make_config(), tmp_path)
    whole = run_experiment(make_config(), tmp_path / "whole")
    assert (resumed / "metrics.jsonl").read_bytes() == (whole / "metrics.jsonl").read_bytes()


def test_where_the_data_are_not_a_finished_run_is_believed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    folder = run_experiment(make_config(), tmp_path)
    LOADED["factor"] = None
    assert run_experiment(make_config(), tmp_path) == folder
    assert "its data are not here to compare" in caplog.text


def test_data_that_do_not_depend_on_the_seed_are_read_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for seed in range(2):
        run_experiment(make_config(seed), tmp_path)
    loaded, real = [], inputs.load_data
    monkeypatch.setattr(inputs, "load_data", lambda config: loaded.append(config.seed) or real(config))
    for seed in range(2):
        run_experiment(make_config(seed), tmp_path)
    assert loaded == [0]


def test_the_hash_knows_every_value_and_what_it_is_of() -> None:
    data = load_changing()
    plain = hash_data(data)
    assert hash_data(load_changing()) == plain
    for field in ("labels", "present", "groups"):
        split = replace(data.test, **{field: getattr(data.test, field).clone()})
        values = getattr(split, field)
        values[3] = values[3] * 0 + (0 if field == "groups" else 1)
        if field == "present":
            values[3, 1] = False
        if field == "labels":
            values[3] = 2
        assert hash_data(replace(data, test=split)) != plain, field
    train = replace(data.train, features={**data.train.features, "b": data.train.features["b"].clone()})
    train.features["b"][7, 2] += 1e-6
    assert hash_data(replace(data, train=train)) != plain
    assert hash_data(replace(data, class_names=("x", "y", "w"))) != plain
    assert hash_data(replace(data, test=data.validation)) != plain
    assert hash_data(replace(data, name="other")) == plain


def test_divergence_is_named_with_its_round_and_devices(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    LOADED["factor"] = 1e30
    config = make_config(training=replace(make_config().training, learning_rate=1e6))
    with caplog.at_level(logging.WARNING):
        folder = run_experiment(config, tmp_path)
    assert (folder / "result.json").exists()
    # The first round has one step, whose loss is from before it.
    assert "round 2: the loss of devices 0, 1, 2, 3 is not finite: the training diverged there" in caplog.text
