"""Callbacks of the training loop: their base class, progress, checkpoints.

Callbacks are called in the order of their list. Records come before checkpoints, so that a checkpoint never holds a
round that the records lack.
"""

from __future__ import annotations

import math
import shutil
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from dmmlkd_ext.training.exchange.ranks import Ranks
from dmmlkd_ext.training.keep.checkpoints import save_checkpoint

if TYPE_CHECKING:
    from dmmlkd_ext.training.keep.records import RecordWriter


_BAR_WIDTH = 80
_DESCRIPTION = 24
"""Columns of the bar, and the most that the names of dataset and method take of them."""


class RunningSimulation(Protocol):
    """What a callback may use of the simulation."""

    round: int
    """Rounds completed."""
    total_rounds: int

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        ...


class Callback:
    """Base of all callbacks; its methods do nothing."""

    def on_start(self, simulation: RunningSimulation) -> None:
        """Called once before the first of the remaining rounds."""

    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Called after every round with the round's record."""

    def on_end(self, simulation: RunningSimulation) -> None:
        """Called once after the last round."""


class ProgressBar(Callback):
    """A bar on standard error, in at most 80 columns: rounds, time left, loss, mean test accuracy over devices.

    If `enabled` is None, it is drawn only where standard error is a terminal.
    """

    def __init__(self, description: str = "", enabled: bool | None = None) -> None:
        self._description = description
        self._enabled = enabled
        self._loss = self._accuracy = ""

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Open the bar at the rounds already done."""
        from tqdm import tqdm

        tier = getattr(simulation, "local_training", "native").partition(":")[0]
        where = str(getattr(simulation, "torch_device", "cpu"))
        aside = where if where != "cpu" else tier if tier != "native" else ""  # on a GPU the reference trains
        aside, room = (f", {aside}", _DESCRIPTION - len(aside) - 2) if aside else ("", _DESCRIPTION)
        name = self._description
        self._bar = tqdm(
            total=simulation.total_rounds,
            initial=simulation.round,
            desc=(name if len(name) <= room else f"{name[: room - 2]}..") + aside,
            disable=None if self._enabled is None else not self._enabled,
            ncols=min(_BAR_WIDTH, shutil.get_terminal_size().columns),
            bar_format="{desc} {n_fmt}/{total_fmt}|{bar}|{remaining}{postfix}",
            file=sys.stderr,
        )

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Advance by one round; an accuracy stays until the next evaluation."""
        loss = record["loss"]["total"]
        self._loss = "no loss" if loss is None else f"loss {loss:.3f}"
        if record.get("accuracy"):
            self._accuracy = f", mean test accuracy {mean_of(record['accuracy']['test']):.1%}"
        self._bar.set_postfix_str(self._loss + self._accuracy, refresh=False)
        self._bar.total = simulation.total_rounds  # fewer than at the start if the run stops early
        self._bar.update()

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Close the bar."""
        self._bar.close()


class Checkpoint(Callback):
    """Saves the simulation's state every `every` rounds and at the end, replacing the last checkpoint.

    Args:
        path: the file of the checkpoint; its folder must exist.
        every: rounds between two checkpoints, at least 1.
        ranks: the processes of the simulation, each of which has this callback; None is this process alone.
        records: the writer of the records, whose hash the checkpoint keeps as `records_sha256`.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(
        self, path: Path, every: int = 10, ranks: Ranks | None = None, records: RecordWriter | None = None
    ) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = path
        self.every = every
        self.ranks = ranks
        self.records = records
        self._saved: int | None = None

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Save if the round is a multiple of `every`."""
        if simulation.round % self.every == 0:
            self._save(simulation)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Save, unless the last round was saved."""
        if self._saved != simulation.round:
            self._save(simulation)

    def _save(self, simulation: RunningSimulation) -> None:
        state = simulation.state_dict()
        if self.records is not None:
            state["records_sha256"] = self.records.sha256
        save_checkpoint(self.path, state, self.ranks)
        self._saved = simulation.round


def mean_of(values: Sequence[float | None]) -> float:
    """Return the mean of the numbers in a list of a record; NaN without any.

    Example:
        >>> mean_of([0.5, None, 1.0])
        0.75
    """
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan
