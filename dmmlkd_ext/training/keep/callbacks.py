"""What hangs on the training loop: progress, records, checkpoints, TensorBoard, an early end.

Callbacks are called in the order of their list. Records go before checkpoints, so that a checkpoint never
knows of a round that the records lack.
"""

from __future__ import annotations

import json
import math
import sys
from pathlib import Path
from typing import Any, Protocol

from typing_extensions import override

from dmmlkd_ext.training.exchange.ranks import Ranks
from dmmlkd_ext.training.keep.checkpoints import save_checkpoint
from dmmlkd_ext.training.keep.files import wait_for_disk, write_atomically


class RunningSimulation(Protocol):
    """What a callback may ask of the simulation."""

    round: int
    """Rounds completed."""
    total_rounds: int

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        ...


class EndTraining(Exception):  # noqa: N818 - the training ends well
    """Raised by a callback's `on_round_end` to make this round the last one; the message says why."""


class Callback:
    """Base of all callbacks: does nothing at every occasion."""

    def on_start(self, simulation: RunningSimulation) -> None:
        """Called once before the first of the remaining rounds."""

    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Called after every round with the round's record."""

    def on_end(self, simulation: RunningSimulation) -> None:
        """Called once after the last round."""


class ProgressBar(Callback):
    """A bar on standard error with the loss, the mean test accuracy and the time left.

    Args:
        description: stands before the bar.
        enabled: whether to draw; None draws only where standard error is a terminal.
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
        self._bar = tqdm(
            total=simulation.total_rounds,
            initial=simulation.round,
            desc=self._description,
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


class RecordWriter(Callback):
    """Writes one line of JSON a round; a number that is not finite becomes null.

    A run that is resumed cuts the file back to the rounds that its state knows of, so that no round stands
    twice, also when the last line was cut short.

    Args:
        path: the file of the records; its folder must exist.
        every: rounds between two waits for the disk; those between two checkpoints have to be a multiple of them, lest
            a checkpoint outlives its records. What comes after the last one is computed again, so that the same number
            is enough: a process that dies loses nothing in between, a machine that does may.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = path
        self.every = every

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Cut the file back to the completed rounds.

        Raises:
            ValueError: the file holds fewer rounds than the simulation has completed.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        lines = content.split(b"\n")[:-1][: simulation.round]
        if len(lines) < simulation.round:
            raise ValueError(
                f"{self.path.name} must hold the {simulation.round} completed rounds, it holds {len(lines)}"
            )
        kept = b"".join(line + b"\n" for line in lines)
        if kept != content or not self.path.exists():
            write_atomically(self.path, lambda file: file.write(kept))

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Append the record, and if it is the round for it wait until all of them are on the disk."""
        line = json.dumps(_without_nonfinite(record), allow_nan=False) + "\n"
        with self.path.open("ab") as file:
            file.write(line.encode())
            if simulation.round % self.every == 0:
                wait_for_disk(file)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Wait until all records are on the disk."""
        with self.path.open("ab") as file:
            wait_for_disk(file)


class Checkpoint(Callback):
    """Saves the simulation's state every `every` rounds and at the end, each time over the last one.

    Args:
        path: the file of the checkpoint; its folder must exist.
        every: rounds between two checkpoints, at least 1.
        ranks: the processes of the simulation, each of which has this callback; None is this one alone.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, path: Path, every: int = 10, ranks: Ranks | None = None) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = path
        self.every = every
        self.ranks = ranks
        self._saved: int | None = None

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Save if it is the round for it."""
        if simulation.round % self.every == 0:
            self._save(simulation)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Save the end, unless the last round did."""
        if self._saved != simulation.round:
            self._save(simulation)

    def _save(self, simulation: RunningSimulation) -> None:
        save_checkpoint(self.path, simulation.state_dict(), self.ranks)
        self._saved = simulation.round


class TensorBoard(Callback):
    """Writes the scalars of every record for TensorBoard; lists over devices are written as their mean.

    Args:
        folder: where the event files go. They hold the time, so keep them out of a run's folder.

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
        """Open the writer; what a killed run wrote beyond its checkpoint is hidden."""
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


class EarlyEnd(Callback):
    """Ends the training when it got where it should, or when nothing can come of it any more.

    It keeps no memory of earlier rounds, so a resumed run ends in the same round. Put it last in the list,
    so that the other callbacks see the last round. Test accuracy decides nothing. What decides, and the last record
    of a run that ends so, are accuracies by `TrainingConfig.evaluation_samples`, not by all samples.

    Args:
        validation_accuracy: end once the mean over devices reaches this, in 0..1; None never ends for it.
        non_finite_loss: end once the total loss is infinite or not a number; None is neither.

    Raises:
        ValueError: `validation_accuracy` is outside of 0..1.
    """

    def __init__(self, validation_accuracy: float | None = None, non_finite_loss: bool = True) -> None:
        if validation_accuracy is not None and not 0 <= validation_accuracy <= 1:
            raise ValueError(f"validation_accuracy must be between 0 and 1, got {validation_accuracy}")
        self.validation_accuracy = validation_accuracy
        self.non_finite_loss = non_finite_loss

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """End the training if a condition holds.

        Raises:
            EndTraining: this round was the last.
        """
        loss = record["loss"]["total"]
        if self.non_finite_loss and loss is not None and not math.isfinite(loss):
            raise EndTraining(f"the loss of round {simulation.round} is {loss}")
        if self.validation_accuracy is None or not record.get("accuracy"):
            return
        reached = _mean(record["accuracy"]["validation"])
        if reached >= self.validation_accuracy:
            raise EndTraining(f"validation accuracy {reached:.4f} in round {simulation.round}")


def _mean(values: list[float | None]) -> float:
    present = [value for value in values if value is not None]
    return sum(present) / len(present) if present else math.nan


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    return value


def _scalars(value: Any, name: str) -> list[tuple[str, float]]:
    """Return the named numbers in a record, lists by their mean."""
    if isinstance(value, dict):
        prefix = f"{name}/" if name else ""
        return [pair for key, item in value.items() for pair in _scalars(item, f"{prefix}{key}")]
    if isinstance(value, (list, tuple)):
        value = _mean(list(value))
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return []
    return [(name, float(value))]
