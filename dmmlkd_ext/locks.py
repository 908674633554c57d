"""Locks of files between processes: the one place that needs the system's `flock`, which Linux and macOS have."""

from __future__ import annotations

from typing import IO

try:
    import fcntl
except ImportError:  # pragma: no cover - not on the systems that are supported
    fcntl = None  # type: ignore[assignment]


def lock_file(file: IO[str] | IO[bytes] | int, *, wait: bool = True) -> None:
    """Lock an open file, or a descriptor, for this process alone; the system unlocks it when it is closed.

    Args:
        file: what is locked.
        wait: wait for another process that holds the lock instead of raising.

    Raises:
        BlockingIOError: another process holds the lock, and `wait` is False.
        OSError: this system has no such locks. The operators work there; runs and downloads need them.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryFile() as file:
        ...     lock_file(file, wait=False)
    """
    if fcntl is None:
        raise OSError("runs and downloads lock files by flock, which this system lacks; Linux and macOS have it")
    fcntl.flock(file, fcntl.LOCK_EX if wait else fcntl.LOCK_EX | fcntl.LOCK_NB)
