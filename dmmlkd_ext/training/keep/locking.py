"""One process a run."""

from __future__ import annotations

import fcntl
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_log = logging.getLogger(__name__)


class RunLockedError(RuntimeError):
    """Another process runs the same configuration at this moment."""


@contextmanager
def run_lock(path: Path, run: str, *, wait: bool = False) -> Iterator[None]:
    """Hold a lock for the time of a run; it ends with the process, however that ends.

    Args:
        path: the file of the lock. It stays behind, since removing it would race with others that open it.
        run: the run's name, for the message.
        wait: wait for another process that holds the lock instead of raising.

    Raises:
        RunLockedError: another process holds the lock.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+", encoding="utf-8") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            holder = file.read().strip() or "unknown"
            message = f"run {run} is being run by another process (id {holder})"
            if not wait:
                raise RunLockedError(f"{message}; wait for it, or end it") from None
            _log.warning("%s; waiting for it", message)
            fcntl.flock(file, fcntl.LOCK_EX)
        file.truncate(0)
        file.write(f"{os.getpid()}\n")
        file.flush()
        yield
