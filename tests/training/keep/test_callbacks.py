from __future__ import annotations

import builtins
import io
import sys
from pathlib import Path
from typing import Any

import pytest

from dmmlkd_ext.training.keep.callbacks import (
    Callback,
    Checkpoint,
    ProgressBar,
    TensorBoard,
)
from dmmlkd_ext.training.keep.files import load_state
from tests.training.keep.counter import Counter


def test_the_base_class_does_nothing() -> None:
    Counter(3).run(Callback())


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


def test_a_round_in_which_no_device_trained_has_no_loss() -> None:
    record = {"round": 1, "loss": {"total": None, "task": None}, "accuracy": None}
    simulation, bar = Counter(2), ProgressBar(enabled=True)
    bar.on_start(simulation)
    bar.on_round_end(simulation, record)
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
