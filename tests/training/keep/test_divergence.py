from __future__ import annotations

import logging
import math
from typing import Any

import pytest

from dmmlkd_ext.training.keep.divergence import DivergenceWarning
from tests.training.keep.counter import Counter


def record(losses: list[float | None], iterations: list[int]) -> dict[str, Any]:
    mean = math.fsum(math.nan if loss is None else loss for loss in losses)
    return {
        "loss": {"total": mean, "task": mean, "similarity": None},
        "device_loss": {"task": losses, "similarity": [None] * len(losses)},
        "local_iterations": {"a": iterations, "b": [None] * len(losses)},
    }


def test_each_device_is_named_once_with_its_round(caplog: pytest.LogCaptureFixture) -> None:
    callback, counter = DivergenceWarning(), Counter(9)
    with caplog.at_level(logging.WARNING):
        for number, losses in enumerate(([0.5, 0.5, None], [0.5, None, None], [0.5, None, None]), start=1):
            counter.round = number
            # The last device trains from the second round on.
            callback.on_round_end(counter, record(losses, [3, 3, 0 if number == 1 else 3]))
    assert caplog.messages == ["round 2: the loss of devices 1, 2 is not finite: the training diverged there"]


def test_many_devices_are_shortened(caplog: pytest.LogCaptureFixture) -> None:
    counter = Counter(9, done=4)
    DivergenceWarning().on_round_end(counter, record([None] * 13, [1] * 13))
    assert "round 4: the loss of devices 0, 1, 2, 3, 4, 5, 6, 7, 8, 9 and 3 more is not finite" in caplog.text
