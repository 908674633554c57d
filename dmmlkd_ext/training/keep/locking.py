"""One process per run."""

from __future__ import annotations

import logging
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import TextIO

from dmmlkd_ext.locks import lock_file
from dmmlkd_ext.training.keep.files import RunChangedError

_log = logging.getLogger(__name__)


class RunLockedError(RuntimeError):
    """Another process is running the same configuration."""


@contextmanager
def run_lock(path: Path, run: str, *, wait: bool = False) -> Iterator[Callable[[], None]]:
    """Hold a lock during a run; the system releases it when the process ends.

    Args:
        path: the file of the lock. It is not removed, which would race with other processes that open it.
        run: the run's name, for the message.
        wait: wait for another process that holds the lock instead of raising.

    Yields:
        A function to call before each write: it raises `RunChangedError` if the file of the lock was removed, so that
        another process may have started the same run.

    Raises:
        RunLockedError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = _acquire(path, run, wait)
    with file:
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield partial(_require_held, file, path, run)


def _acquire(path: Path, run: str, wait: bool) -> TextIO:
    """Return the locked file at `path`; one that was removed while waiting is opened again."""
    while True:
        file = path.open("a+", encoding="utf-8")
        try:
            _lock(file, run, wait)
            if _lies_at(file, path):
                return file
        except BaseException:
            file.close()
            raise
        file.close()


def _lock(file: TextIO, run: str, wait: bool) -> None:
    try:
        lock_file(file, wait=False)
    except BlockingIOError:
        file.seek(0)
        holder = file.read().strip() or "unknown"
        message = f"run {run} is being run by another process (id {holder})"
        if not wait:
            raise RunLockedError(f"{message}; wait for it, or end it") from None
        _log.warning("%s; waiting for it", message)
        lock_file(file)


def _lies_at(file: TextIO, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(file.fileno()), path.stat())
    except FileNotFoundError:
        return False


def _require_held(file: TextIO, path: Path, run: str) -> None:
    if not _lies_at(file, path):
        raise RunChangedError(
            f"the lock {path} was removed while run {run} was on, so that another process may have begun it, too; "
            "the same command goes on from the last checkpoint"
        )
