"""Where data files are, and how verified files get there.

Files are looked for in the folder named by the environment variable ``DMMLKD_DATA``, if it is set, and then in the
user's cache (``$XDG_CACHE_HOME/dmmlkd_ext``, by default ``~/.cache/dmmlkd_ext``). ``DMMLKD_DATA`` is only read, so it
may be a shared, read-only folder; downloads and derived files go to the cache. A file is moved to its final name in one
atomic step, when it is complete and its SHA-256 matches, so several processes may download it at the same time.
"""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from http.client import HTTPException
from pathlib import Path

from dmmlkd_ext.locks import lock_file

_TIMEOUT_SECONDS = 60.0


class DataUnavailableError(RuntimeError):
    """The files of a dataset are neither on this machine nor can they be downloaded."""


class ChecksumError(RuntimeError):
    """A file is not the expected one."""


def cache_folder() -> Path:
    """Return the folder of downloads and derived files, which may not exist yet.

    Raises:
        DataUnavailableError: neither ``XDG_CACHE_HOME`` nor the user's home is known.

    Example:
        >>> cache_folder().name
        'dmmlkd_ext'
    """
    base = os.environ.get("XDG_CACHE_HOME", "")
    if Path(base).is_absolute():  # the XDG specification says to ignore a relative path
        return Path(base) / "dmmlkd_ext"
    try:
        return Path.home() / ".cache" / "dmmlkd_ext"
    except RuntimeError as error:
        raise DataUnavailableError(
            f"the folder of the cache is not known ({error}); set XDG_CACHE_HOME to a folder that can be written"
        ) from error


def data_folders() -> tuple[Path, ...]:
    """Return the folders in which files are looked for, in order: ``DMMLKD_DATA`` if set, then the cache.

    Raises:
        ValueError: ``DMMLKD_DATA`` is not a folder.
        DataUnavailableError: the folder of the cache is not known.
    """
    named = os.environ.get("DMMLKD_DATA", "")
    if not named:
        return (cache_folder(),)
    try:
        folder = Path(named).expanduser()
    except RuntimeError:  # the user's home is not known
        folder = Path(named)
    if not folder.is_dir():
        raise ValueError(f"DMMLKD_DATA must name a folder that exists, got {named!r}")
    return folder, cache_folder()


def find(relative: str) -> Path | None:
    """Return the first file or folder ``relative`` in the data folders, or None."""
    candidates = (folder / relative for folder in data_folders())
    return next((path for path in candidates if path.exists()), None)


def sha256(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def verify(path: Path, expected: str) -> Path:
    """Return ``path`` if the file's SHA-256 is ``expected``.

    Raises:
        ChecksumError: it is not; nothing of the file has been interpreted.
    """
    actual = sha256(path)
    if actual != expected:
        raise ChecksumError(
            f"{path} has SHA-256 {actual}, expected {expected}: it is damaged or another version; where "
            "it was put there earlier, delete it, so that it is downloaded again"
        )
    return path


@contextmanager
def placing(relative: str) -> Iterator[Path]:
    """Give a temporary path in the cache to write to; on leaving without error it is renamed to ``relative``.

    The temporary name is unique, so several processes may write the same file; the last one wins. Temporary files that
    killed processes left are removed first.
    """
    target = cache_folder() / relative
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        for left in target.parent.glob(f".{glob.escape(target.name)}.*"):
            _remove_unheld(left)
        scratch, lock = _make_held(target)
    except OSError as error:
        raise DataUnavailableError(
            f"{target.parent} cannot be written ({error}); set XDG_CACHE_HOME to a folder that can"
        ) from error
    try:
        yield scratch / target.name
        (scratch / target.name).replace(target)
    finally:
        shutil.rmtree(scratch, ignore_errors=True)
        os.close(lock)


def _make_held(target: Path) -> tuple[Path, int]:
    """Make a temporary folder beside ``target``; return it and a descriptor whose lock marks it as in use."""
    while True:
        scratch = Path(tempfile.mkdtemp(prefix=f".{target.name}.", dir=target.parent))
        lock = os.open(scratch, os.O_RDONLY)
        lock_file(lock)
        if scratch.exists():  # else another process removed it before it was locked
            return scratch, lock
        os.close(lock)


def _remove_unheld(folder: Path) -> None:
    """Remove a temporary folder unless a living process holds it."""
    try:
        lock = os.open(folder, os.O_RDONLY | os.O_DIRECTORY)
    except OSError:  # its process has just removed it
        return
    try:
        lock_file(lock, wait=False)
        shutil.rmtree(folder, ignore_errors=True)
    except BlockingIOError:
        return
    finally:
        os.close(lock)


def obtain(relative: str, check: Callable[[Path], object], produce: Callable[[Path], None]) -> Path:
    """Return the verified file ``relative``: found in a data folder, or else produced into the cache.

    Args:
        relative: path within a data folder.
        check: raises `ChecksumError` if the file at the given path is not the expected one; usually `verify`.
        produce: writes the file at the given path, or raises `DataUnavailableError`.

    Raises:
        ChecksumError: the file is not the expected one.
        DataUnavailableError: it was not found and could not be produced; the message says where to put it.
    """
    found = find(relative)
    if found is not None:
        check(found)
        return found
    try:
        with placing(relative) as path:
            produce(path)
            check(path)
    except DataUnavailableError as error:
        folders = " or ".join(str(folder) for folder in data_folders())
        raise DataUnavailableError(
            f"{relative} is not here and could not be got:\n{error}\n"
            f"Without a network, put it as {relative} under {folders} (see dmmlkd_ext.data.sources.fetch)."
        ) from error
    return cache_folder() / relative


def download(addresses: Sequence[str], path: Path, check: Callable[[Path], object]) -> None:
    """Download a file to ``path`` from the first address whose answer passes ``check``.

    Args:
        addresses: where the file is published, the preferred place first.
        path: the file to write.
        check: raises `ChecksumError` if the file at the given path is not the expected one.

    Raises:
        DataUnavailableError: no address gives the file; the message lists the answers.
    """
    failures = []
    for address in addresses:
        try:
            with (
                urllib.request.urlopen(address, timeout=_TIMEOUT_SECONDS) as answer,
                path.open("wb") as stream,
            ):
                shutil.copyfileobj(answer, stream)
            check(path)
            return
        except (ChecksumError, HTTPException, OSError) as error:
            failures.append(f"  {address}: {error}")
    path.unlink(missing_ok=True)
    raise DataUnavailableError("\n".join(failures))
