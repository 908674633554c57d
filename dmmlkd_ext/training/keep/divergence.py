"""Warns of devices whose training diverged; the records show their losses as null."""

from __future__ import annotations

import logging
import math
from collections.abc import Sequence
from typing import Any

from typing_extensions import override

from dmmlkd_ext.training.keep.callbacks import Callback, RunningSimulation

_log = logging.getLogger(__name__)


class DivergenceWarning(Callback):
    """Warns once of each device that diverged, with the round; the training goes on, and the device may recover."""

    def __init__(self) -> None:
        self._known: set[int] = set()

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Warn of the devices that diverged in this round for the first time."""
        new = sorted(set(diverged_devices(record)) - self._known)
        if new:
            self._known.update(new)
            _log.warning(
                "round %d: the loss of device%s %s is not finite: the training diverged there",
                simulation.round,
                "s" if len(new) > 1 else "",
                shorten(new),
            )


def diverged_devices(record: dict[str, Any]) -> list[int]:
    """Return the devices that trained in a round with a loss that is not finite.

    Example:
        >>> record = {"loss": {"task": math.nan, "similarity": None}, "local_iterations": {"a": [3, 3, 0]},
        ...           "device_loss": {"task": [0.5, None, None], "similarity": [None, None, None]}}
        >>> diverged_devices(record)
        [1]
    """
    terms = [values for term, values in record.get("device_loss", {}).items() if record["loss"].get(term) is not None]
    trained = zip(*record.get("local_iterations", {}).values(), strict=True)
    return [
        device
        for device, iterations in enumerate(trained)
        if any(iterations) and any(values[device] is None or not math.isfinite(values[device]) for values in terms)
    ]


def shorten(numbers: Sequence[int], shown: int = 10) -> str:
    """Return the first numbers as text, and how many more there are.

    Example:
        >>> shorten([1, 4, 7], shown=2)
        '1, 4 and 1 more'
    """
    rest = f" and {len(numbers) - shown} more" if len(numbers) > shown else ""
    return ", ".join(map(str, numbers[:shown])) + rest
