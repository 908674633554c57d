from __future__ import annotations

import builtins
import io
import json
import math
import os
import sys
from pathlib import Path
from typing import Any

import pytest

from dmmlkd_ext.training.keep.callbacks import (
    Callback,
    Checkpoint,
    EarlyEnd,
    EndTraining,
    ProgressBar,
    RecordWriter,
    TensorBoard,
)
from dmmlkd_ext.training.keep.files import load_state


class Counter:
    """A simulation that only counts its rounds."""

    def __init__(self, total_rounds: int, done: int = 0) -> None:
        self.round = done
        self.total_rounds = total_rounds

    def state_dict(self) -> dict[str, Any]:
        return {"round": self.round}

    def run(self, *callbacks: Callback) -> None:
        for callback in callbacks:
            callback.on_start(self)
        while self.round < self.total_rounds:
            self.round += 1
            for callback in callbacks:
                callback.on_round_end(self, make_record(self.round))
        for callback in callbacks:
            callback.on_end(self)


def make_record(index: int, loss: float = 0.5, validation: float = 0.8) -> dict[str, Any]:
    evaluated = {"test": [0.5, 0.7, None], "validation": [validation, validation]}
    return {
        "round": index,
        "loss": {"total": loss, "task": loss},
        "accuracy": evaluated if index % 2 == 0 else None,
        "energy_left_joule": [None, None],
    }


def test_the_base_class_does_nothing() -> None:
    Counter(3).run(Callback())


def test_records_are_one_line_a_round_and_not_a_number_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = RecordWriter(path)
    Counter(3).run(writer)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
    writer.on_round_end(Counter(4, done=4), make_record(4, loss=math.nan))
    assert json.loads(path.read_text().splitlines()[-1])["loss"]["total"] is None


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_resumed_records_equal_uninterrupted_ones_also_after_a_torn_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    Counter(6).run(RecordWriter(path))
    whole = path.read_bytes()
    fifth_line_ends = sum(len(line) for line in whole.splitlines(keepends=True)[:5])
    path.write_bytes(whole[: fifth_line_ends + cut])
    Counter(6, done=4).run(RecordWriter(path))
    assert path.read_bytes() == whole


def test_records_are_on_the_disk_as_often_as_asked_for_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, real = tmp_path / "metrics.jsonl", [], os.fsync

    def note(descriptor: int) -> None:
        real(descriptor)
        synced.append(path.read_bytes().count(b"\n"))

    writer, counter = RecordWriter(path, every=3), Counter(7)
    writer.on_start(counter)
    monkeypatch.setattr(os, "fsync", note)
    for index in range(1, 8):
        counter.round = index
        writer.on_round_end(counter, make_record(index))
        assert path.read_bytes().count(b"\n") == index  # a process that dies here loses nothing
    writer.on_end(counter)
    assert synced == [3, 6, 7]


def test_records_must_reach_the_disk_some_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        RecordWriter(tmp_path / "metrics.jsonl", every=0)


def test_records_that_lack_completed_rounds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\n{"round": 2')
    with pytest.raises(ValueError, match=r"metrics.jsonl must hold the 2 completed rounds, it holds 1"):
        RecordWriter(path).on_start(Counter(3, done=2))


def test_checkpoints_come_every_n_rounds_and_at_the_end(tmp_path: Path) -> None:
    seen: list[int] = []

    class Watch(Callback):
        def on_round_end(self, simulation, record) -> None:
            if path.exists():
                seen.append(load_state(path)["round"])

    path = tmp_path / "checkpoint.pt"
    Counter(5).run(Checkpoint(path, every=2), Watch())
    assert seen == [2, 2, 4, 4]
    assert load_state(path) == {"round": 5}
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_checkpoint_refuses_a_period_below_one(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        Checkpoint(tmp_path / "checkpoint.pt", every=0)


def test_the_bar_is_silent_without_a_terminal_and_speaks_when_asked(monkeypatch: pytest.MonkeyPatch) -> None:
    for enabled, speaks in ((None, False), (False, False), (True, True)):
        stream = io.StringIO()
        monkeypatch.setattr(sys, "stderr", stream)
        Counter(4).run(ProgressBar("watch", enabled))
        assert bool(stream.getvalue()) == speaks
    assert "accuracy=60.0%" in stream.getvalue()
    assert "loss=0.500" in stream.getvalue()


def test_early_end_on_validation_accuracy_or_a_loss_that_is_not_finite() -> None:
    simulation = Counter(9, done=2)
    EarlyEnd(validation_accuracy=0.9).on_round_end(simulation, make_record(2))
    with pytest.raises(EndTraining, match=r"validation accuracy 0.8000 in round 2"):
        EarlyEnd(validation_accuracy=0.8).on_round_end(simulation, make_record(2))
    EarlyEnd(validation_accuracy=0.1).on_round_end(simulation, make_record(3))  # not evaluated
    with pytest.raises(EndTraining, match="the loss of round 2 is nan"):
        EarlyEnd().on_round_end(simulation, make_record(2, loss=math.nan))
    EarlyEnd(non_finite_loss=False).on_round_end(simulation, make_record(2, loss=math.inf))
    with pytest.raises(ValueError, match=r"validation_accuracy must be between 0 and 1, got 2.0"):
        EarlyEnd(validation_accuracy=2.0)


def test_a_round_in_which_no_device_trained_has_no_loss() -> None:
    record = {"round": 1, "loss": {"total": None, "task": None}, "accuracy": None}
    simulation, bar = Counter(2), ProgressBar(enabled=True)
    bar.on_start(simulation)
    for callback in (bar, EarlyEnd()):
        callback.on_round_end(simulation, record)
    bar.on_end(simulation)


def test_tensorboard_gets_the_scalars(tmp_path: Path) -> None:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    Counter(4).run(TensorBoard(tmp_path))
    events = EventAccumulator(str(tmp_path)).Reload()
    assert {"loss/total", "accuracy/test", "accuracy/validation"} <= set(events.Tags()["scalars"])
    assert [event.step for event in events.Scalars("accuracy/test")] == [2, 4]
    assert events.Scalars("accuracy/test")[0].value == pytest.approx(0.6)


def test_tensorboard_that_is_not_installed_is_a_clear_error(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    real_import = builtins.__import__

    def without_tensorboard(name: str, *args: Any, **kwargs: Any) -> Any:
        if "tensorboard" in name:
            raise ModuleNotFoundError(f"No module named {name!r}")
        return real_import(name, *args, **kwargs)

    monkeypatch.setattr(builtins, "__import__", without_tensorboard)
    with pytest.raises(ImportError, match=r"extra `track`"):
        TensorBoard(tmp_path)
