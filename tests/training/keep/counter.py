"""A simulation that only counts its rounds."""

from __future__ import annotations

from typing import Any

from dmmlkd_ext.training.keep.callbacks import Callback


class Counter:
    """Counts rounds, and tells of each what a record holds."""

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
