"""Callbacks of the training loop: their base class, progress, checkpoints, TensorBoard.

Callbacks are called in the order of their list. Records come before checkpoints, so that a checkpoint never holds a
round that the records lack.
"""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from typing_extensions import override

from dmmlkd_ext.training.exchange.ranks import Ranks
from dmmlkd_ext.training.keep.checkpoints import save_checkpoint

if TYPE_CHECKING:
    from dmmlkd_ext.training.keep.records import RecordWriter


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
    """A bar on standard error with the loss, the mean test accuracy and the time left.

    If `enabled` is None, it is drawn only where standard error is a terminal.
    """

    def __init__(self, description: str = "", enabled: bool | None = None) -> None:
        self._description = description
        self._enabled = enabled
        self._shown: dict[str, str] = {}

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Open the bar at the rounds already done."""
        from tqdm import tqdm

        disable = None if self._enabled is None else not self._enabled
        tier = getattr(simulation, "local_training", "native").partition(":")[0]
        where = str(getattr(simulation, "torch_device", "cpu"))
        parts = [self._description, *([tier] if tier != "native" else []), *([where] if where != "cpu" else [])]
        self._bar = tqdm(
            total=simulation.total_rounds,
            initial=simulation.round,
            desc=", ".join(parts),
            unit="round",
            disable=disable,
            file=sys.stderr,
        )

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Advance by one round; an accuracy stays until the next evaluation."""
        loss = record["loss"]["total"]
        self._shown["loss"] = "none" if loss is None else f"{loss:.3f}"
        if record.get("accuracy"):
            self._shown["accuracy"] = f"{_mean(record['accuracy']['test']):.1%}"
        self._bar.set_postfix(self._shown, refresh=False)
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


class TensorBoard(Callback):
    """Writes the scalars of every record for TensorBoard; lists over devices are written as their mean.

    Args:
        folder: for the event files; outside of a run's folder, as they hold the time.

    Raises:
        ImportError: the package tensorboard is not installed.
    """

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise ImportError(
                "TensorBoard needs the package tensorboard, which the extra `track` brings: "
                "pip install 'dmmlkd-ext[track]'"
            ) from error
        self._writer_type = SummaryWriter
        self.folder = folder

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Open the writer; events that a killed run wrote after its checkpoint are hidden."""
        self._writer = self._writer_type(str(self.folder), purge_step=simulation.round + 1)

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Write the round's scalars."""
        for name, value in _scalars(record, ""):
            if name != "round":
                self._writer.add_scalar(name, value, simulation.round)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Close the writer."""
        self._writer.close()


def _mean(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan


def _scalars(value: Any, name: str) -> list[tuple[str, float]]:
    """Return the named numbers in a record, and the means of lists."""
    if isinstance(value, dict):
        prefix = f"{name}/" if name else ""
        return [pair for key, item in value.items() for pair in _scalars(item, f"{prefix}{key}")]
    if isinstance(value, (list, tuple)):
        value = _mean(list(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    return [(name, float(value))]
