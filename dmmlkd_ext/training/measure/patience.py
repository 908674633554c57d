"""Early stopping: a run ends when a number has not improved for some evaluations."""

from __future__ import annotations

import math
from typing import Any, Literal

Watched = Literal["validation_accuracy", "loss"]


class Patience:
    """Counts the evaluations since the best value.

    Args:
        evaluations: how many may pass without a better value; 0 never stops.
        watched: mean validation accuracy over devices, or the training's total loss.

    Example:
        >>> patience = Patience(2, "loss")
        >>> [patience.is_over({"accuracy": {}, "loss": {"total": loss}}) for loss in (0.5, 0.6, 0.4, 0.4, 0.7)]
        [False, False, False, False, True]
    """

    def __init__(self, evaluations: int, watched: Watched = "validation_accuracy") -> None:
        self.evaluations = evaluations
        self.watched = watched
        self._best = -math.inf
        self._waited = 0

    def is_over(self, record: dict[str, Any]) -> bool:
        """Take a round's record, and return whether the run should end; rounds without evaluation do not count."""
        if not self.evaluations or record["accuracy"] is None:
            return False
        value = self._read(record)
        if value > self._best:
            self._best, self._waited = value, 0
        else:
            self._waited += 1
        return self._waited >= self.evaluations

    def _read(self, record: dict[str, Any]) -> float:
        """Return the value, the larger the better; a missing one, such as of a diverged loss, is the worst."""
        if self.watched == "loss":
            total = record["loss"]["total"]
            return -math.inf if total is None or math.isnan(total) else -total
        values = [value for value in record["accuracy"]["validation"] if value is not None]
        return sum(values) / len(values) if values else -math.inf

    def state_dict(self) -> dict[str, float]:
        """Return the state that a resumed run needs."""
        return {"best": self._best, "waited": self._waited}

    def load_state_dict(self, state: dict[str, float]) -> None:
        """Restore a `state_dict`."""
        self._best, self._waited = state["best"], int(state["waited"])
