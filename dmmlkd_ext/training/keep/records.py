"""The records of a run: one line of JSON per round."""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, BinaryIO

from typing_extensions import override

from dmmlkd_ext.training.keep.callbacks import Callback, RunningSimulation
from dmmlkd_ext.training.keep.files import RunChangedError, naming, wait_for_disk, write_atomically


class RecordWriter(Callback):
    """Writes one line of JSON per round; a number that is not finite becomes null.

    A resumed run truncates the file to the rounds of its state, so that no round is recorded twice. A change of the
    file by another program is detected.

    Args:
        path: the file of the records; its folder must exist.
        every: rounds between two waits for the disk; the rounds between checkpoints must be a multiple of it, so that
            a crash of the machine never leaves a checkpoint without its records.

    Attributes:
        may_write: called before each line is written; raises if it must not be.

    Raises:
        ValueError: `every` is below 1.
    """

    def __init__(self, path: Path, every: int = 1) -> None:
        if every < 1:
            raise ValueError(f"every must be at least 1, got {every}")
        self.path = path
        self.every = every
        self.may_write: Callable[[], None] | None = None
        self._written = hashlib.sha256()
        self._size = 0

    @property
    def sha256(self) -> str:
        """SHA-256 of all records up to the last one."""
        return self._written.hexdigest()

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        """Truncate the file to the completed rounds.

        Raises:
            ValueError: the file holds fewer rounds than the simulation has completed.
        """
        content = self.path.read_bytes() if self.path.exists() else b""
        kept = first_lines(content, simulation.round)
        if kept.count(b"\n") < simulation.round:
            raise ValueError(
                f"{self.path.name} must hold the {simulation.round} completed rounds, it holds {kept.count(10)}"
            )
        if kept != content or not self.path.exists():
            write_atomically(self.path, lambda file: file.write(kept))
        self._written, self._size = hashlib.sha256(kept), len(kept)

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        """Append the record, and every `every` rounds wait until all are on the disk.

        Raises:
            RunChangedError: the file was removed, or its size changed.
            OSError: the file cannot be written.
        """
        if self.may_write is not None:
            self.may_write()
        line = encode_record(record)
        with self._opened() as file, naming(self.path):
            file.write(line)
            if simulation.round % self.every == 0:
                wait_for_disk(file)
        self._written.update(line)
        self._size += len(line)

    @override
    def on_end(self, simulation: RunningSimulation) -> None:
        """Wait until all records are on the disk.

        Raises:
            RunChangedError: they are not the records that were written.
        """
        with self._opened() as file, naming(self.path):
            wait_for_disk(file)
            file.seek(0)
            if hashlib.sha256(file.read()).hexdigest() != self.sha256:
                raise self._changed("it holds other records than were written")

    @contextmanager
    def _opened(self) -> Iterator[BinaryIO]:
        """Open the file at its end, if that is where the last record ended."""
        try:
            file = self.path.open("r+b")  # "ab" would create a missing file
        except FileNotFoundError:
            raise self._changed("it is not there any more") from None
        with file:
            size = file.seek(0, os.SEEK_END)
            if size != self._size:
                raise self._changed(f"it holds {size} bytes where {self._size} were written")
            yield file

    def _changed(self, what: str) -> RunChangedError:
        return RunChangedError(f"{self.path} was changed while its run was on: {what}")


def encode_record(record: dict[str, Any]) -> bytes:
    """Return a record as a line of JSON, null for a number that is not finite."""
    return (json.dumps(_without_nonfinite(record), allow_nan=False) + "\n").encode()


def first_lines(content: bytes, count: int) -> bytes:
    r"""Return the first lines of a file, without an incomplete last line.

    Example:
        >>> first_lines(b"1\n2\n3", 5)
        b'1\n2\n'
    """
    return b"".join(line + b"\n" for line in content.split(b"\n")[:-1][:count])


def _without_nonfinite(value: Any) -> Any:
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, dict):
        return {key: _without_nonfinite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_without_nonfinite(item) for item in value]
    return value
