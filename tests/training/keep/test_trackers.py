"""Trackers, each read back by the library that it writes for; those that are not installed are skipped."""

from __future__ import annotations

import csv
import importlib.util
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest

from dmmlkd_ext.training.keep import trackers
from dmmlkd_ext.training.keep.callbacks import Callback
from dmmlkd_ext.training.keep.trackers import TRACKERS, make_trackers, require_trackers
from tests.training.keep.counter import Counter

SETTINGS = {"seed": 3, "training": {"rounds": 4}}


def track(name: str, folder: Path, rounds: int = 4, done: int = 0) -> None:
    Counter(rounds, done).run(*make_trackers([name], folder, "run-1", SETTINGS))


def test_a_csv_file_gets_the_numbers_and_a_resumed_run_replaces_its_rounds(tmp_path: Path) -> None:
    track("csv", tmp_path)
    path = tmp_path / "csv" / "run-1.csv"
    whole = path.read_text()
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["round"], float(row["value"])) for row in rows if row["name"] == "accuracy/test"] == [
        ("2", pytest.approx(0.6)),
        ("4", pytest.approx(0.6)),
    ]
    track("csv", tmp_path, done=2)  # killed after round 4, resumed from the checkpoint of round 2
    assert path.read_text() == whole


def test_tensorboard_gets_the_numbers(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    track("tensorboard", tmp_path)
    events = EventAccumulator(str(tmp_path / "tensorboard" / "run-1")).Reload()
    assert {"loss/total", "accuracy/test", "accuracy/validation"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("accuracy/test")] == [2, 4]
    assert events.Scalars("accuracy/test")[0].value == pytest.approx(0.6)


def test_mlflow_gets_the_numbers_and_a_resumed_run_stays_one(tmp_path: Path) -> None:
    pytest.importorskip("mlflow")
    from mlflow import MlflowClient

    track("mlflow", tmp_path, rounds=2)
    track("mlflow", tmp_path, rounds=4, done=2)
    client = MlflowClient(tracking_uri=(tmp_path / "mlflow").as_uri())
    [run] = client.search_runs([client.get_experiment_by_name("dmmlkd").experiment_id])
    assert (run.info.run_name, run.info.status) == ("run-1", "FINISHED")
    assert run.data.params == {"seed": "3", "training.rounds": "4"}
    history = client.get_metric_history(run.info.run_id, "accuracy/test")
    assert [(metric.step, metric.value) for metric in history] == [(2, pytest.approx(0.6)), (4, pytest.approx(0.6))]


def read_offline(content: bytes) -> Iterator[bytes]:
    """Yield the records of a file of Weights & Biases: a header of 7 bytes, then LevelDB's format of logs."""
    place, begun, block = 7, b"", 2**15
    while place + 7 <= len(content):
        if block - place % block < 7:  # no header fits in the rest of the block
            place += block - place % block
            continue
        length, kind = struct.unpack_from("<HB", content, place + 4)  # after a checksum
        begun += content[place + 7 : place + 7 + length]
        place += 7 + length
        if kind in (1, 4):  # whole, or the last of several pieces
            yield begun
            begun = b""


def test_wandb_gets_the_numbers_offline(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb")
    from wandb.proto.wandb_internal_pb2 import Record

    monkeypatch.chdir(tmp_path)
    track("wandb", tmp_path)
    [path] = tmp_path.glob("wandb/offline-run-*-run-1/run-run-1.wandb")
    steps = []
    for data in read_offline(path.read_bytes()):
        record = Record()
        record.ParseFromString(data)
        items = {"/".join(item.nested_key) or item.key: item.value_json for item in record.history.item}
        if "accuracy/test" in items:
            steps.append((record.history.step.num, float(items["accuracy/test"])))
    assert steps == [(2, pytest.approx(0.6)), (4, pytest.approx(0.6))]


@pytest.mark.parametrize("name", ["tensorboard", "mlflow", "wandb"])
def test_a_package_that_is_not_installed_is_named(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real = importlib.util.find_spec
    hidden = TRACKERS[name].needs
    assert hidden is not None
    monkeypatch.setattr(importlib.util, "find_spec", lambda wanted: None if wanted == hidden[0] else real(wanted))
    with pytest.raises(ImportError, match=f"the tracker {name} needs a package that is not installed: pip install"):
        make_trackers([name], tmp_path, "run-1", SETTINGS)
    require_trackers(["csv"])
    assert list(tmp_path.iterdir()) == []


def test_every_tracker_is_a_callback() -> None:
    assert all(issubclass(TRACKERS[name], Callback) for name in TRACKERS.names())
    assert trackers.read_trackers(" csv, csv,tensorboard") == ("csv", "tensorboard")
