from __future__ import annotations

import io
import re
import sys
from pathlib import Path

import pytest

from dmmlkd_ext.training.keep.callbacks import (
    Callback,
    Checkpoint,
    ProgressBar,
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
    assert "loss 0.500, mean test accuracy 60.0%" in stream.getvalue()


@pytest.mark.parametrize(
    ("description", "columns"), [("watch dmml", 80), ("avdigits dmml-kd-no-classification", 80), ("x", 60)]
)
def test_the_bar_fits_its_columns(description: str, columns: int, monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    monkeypatch.setenv("COLUMNS", str(columns if columns < 80 else 200))
    Counter(4).run(ProgressBar(description, True))
    lines = re.split(r"[\r\n]", stream.getvalue())
    assert max(map(len, lines)) <= columns
    assert description[:20] in lines[-2]


def test_the_bar_of_a_run_that_stops_early_ends_full(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = io.StringIO()
    monkeypatch.setattr(sys, "stderr", stream)
    simulation, bar = Counter(9), ProgressBar(enabled=True)
    bar.on_start(simulation)
    simulation.round, simulation.total_rounds = 1, 1
    bar.on_round_end(simulation, {"loss": {"total": 0.5}, "accuracy": None})
    bar.on_end(simulation)
    assert "1/1|" in stream.getvalue()


def test_a_round_in_which_no_device_trained_has_no_loss() -> None:
    record = {"round": 1, "loss": {"total": None, "task": None}, "accuracy": None}
    simulation, bar = Counter(2), ProgressBar(enabled=True)
    bar.on_start(simulation)
    bar.on_round_end(simulation, record)
    bar.on_end(simulation)
