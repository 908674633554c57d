"""Files that are complete or absent, and states saved as reproducible bytes with their hash."""

from __future__ import annotations

import hashlib
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch

TEMPORARY_SUFFIX = ".tmp"
"""A file with this suffix is left by an interrupted write; it is never read."""

_ARRAY = "numpy.ndarray"
"""Marks an array in a saved state: arrays are stored as tensors, which load without pickle."""

# A state is a zip archive. Its comment, at the end of the file, is the SHA-256 of all bytes before it: state and hash
# are one file, which other programs can still read.
_SEAL = b"sha256:"
_SEAL_SIZE = len(_SEAL) + 64
_END_OF_ARCHIVE, _END_SIZE = b"PK\5\6", 22
_CHUNK = 1 << 20


class RunChangedError(RuntimeError):
    """The data or the files of a run changed."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file so that a reader, also after a crash, sees all of it or none.

    The content is written to a temporary file in the same folder, flushed to the disk, and renamed. The temporary name
    is fixed: two processes must not write one path at the same time, which the lock of a run prevents.

    Args:
        path: the file to write; its folder must exist.
        write: receives the file, open for writing and reading.

    Raises:
        OSError: the file cannot be written; the message names it and the reason.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with naming(path):
        try:
            with temporary.open("w+b") as file:
                write(file)
                wait_for_disk(file)
            temporary.replace(path)
        except OSError:
            with suppress(OSError):
                temporary.unlink()  # the disk may be full
            raise
        _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file in UTF-8 by `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


@contextmanager
def naming(path: Path) -> Iterator[None]:
    """Add the file's name to an OSError of writing it, which lacks it.

    Example:
        >>> with naming(Path("metrics.jsonl")):
        ...     raise OSError(28, "No space left on device")
        Traceback (most recent call last):
        ...
        OSError: cannot write metrics.jsonl: No space left on device
    """
    try:
        yield
    except OSError as error:
        raise type(error)(f"cannot write {path}: {error.strerror or error}") from error


def save_state(path: Path, state: dict[str, Any]) -> str:
    """Save a state of plain values, tensors and arrays, and return its SHA-256; equal states give equal bytes.

    Pickle writes a repeated object as a reference, so its bytes depend on whether two equal strings are one object,
    which differs between a run and its resumption. The state is therefore copied first, with equal strings shared.

    Args:
        path: the file to write.
        state: nested dictionaries, lists and tuples of None, bool, int, float, str, tensors and NumPy arrays.

    Raises:
        TypeError: the state holds a value of another type; the message names where.
        OSError: the file cannot be written.
    """
    canonical = _encode(state, "state")
    digest = ""

    def write(file: BinaryIO) -> None:
        nonlocal digest
        sink = _Sink(file)
        try:
            # Not to a path: torch would store its name in the archive.
            torch.save(canonical, cast(BinaryIO, sink))
        except RuntimeError:
            if sink.error is None:
                raise
            raise sink.error from None
        digest = _seal(file)

    write_atomically(path, write)
    return digest


def load_state(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Load what `save_state` saved, onto the CPU.

    Args:
        path: the file.
        mapped: map tensors into memory; the file must not change while they are used. Its hash is not checked, which
            would read all of it: see `check_state`.

    Raises:
        OSError: the file cannot be read, or is not there.
        ValueError: the file does not hold a state, or was changed.
    """
    if not mapped:
        check_state(path)
    try:
        state = _decode(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except OSError:
        raise
    except Exception as error:  # torch raises many types for a damaged file
        raise ValueError(f"path holds no saved state: {path} ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"path holds no saved state: {path} (it holds a {type(state).__name__})")
    return state


def check_state(path: Path) -> str | None:
    """Return the SHA-256 of a saved state after checking its content; None for a state of an earlier version, without.

    Raises:
        OSError: the file cannot be read, or is not there.
        ValueError: the content is not what was saved.
    """
    with path.open("rb") as file:
        seal = _read_seal(file)
        if seal is None:
            return None
        if not seal or _hash_until(file, -_SEAL_SIZE) != seal:
            raise ValueError(f"path holds no saved state: {path} (its content and its SHA-256 differ)")
    return seal


def read_seal(path: Path) -> str:
    """Return the SHA-256 that a saved state carries, unchecked; empty if there is none."""
    with path.open("rb") as file:
        return _read_seal(file) or ""


def remove_temporary_files(folder: Path) -> None:
    """Remove the files that interrupted writes left in a folder."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink()


def wait_for_disk(file: BinaryIO) -> None:
    """Wait until everything written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


class _Sink:
    """Passes on what torch writes, and keeps the OSError that torch replaces by a RuntimeError."""

    def __init__(self, file: BinaryIO) -> None:
        self.file = file
        self.error: OSError | None = None

    def write(self, content: bytes) -> int:
        try:
            return self.file.write(content)
        except OSError as error:
            self.error = error
            raise

    def flush(self) -> None:
        self.file.flush()


def _seal(file: BinaryIO) -> str:
    """Append the hash of an archive as its comment, and return it."""
    file.seek(-2, os.SEEK_END)  # the length of the comment, 0 until now
    file.write(_SEAL_SIZE.to_bytes(2, "little"))
    digest = _hash_until(file, 0)
    file.seek(0, os.SEEK_END)
    file.write(_SEAL + digest.encode())
    return digest


def _read_seal(file: BinaryIO) -> str | None:
    """Return the comment of an archive if it is a hash, else an empty text; None for an archive without a comment."""
    size = file.seek(0, os.SEEK_END)
    file.seek(max(0, size - _SEAL_SIZE))
    end = file.read()
    if end.startswith(_SEAL):
        return end[len(_SEAL) :].decode(errors="replace")
    return None if end[-_END_SIZE:].startswith(_END_OF_ARCHIVE) else ""


def _hash_until(file: BinaryIO, end: int) -> str:
    """Return the SHA-256 of an open file up to a position, counted from the file's end."""
    left = file.seek(end, os.SEEK_END)
    file.seek(0)
    digest = hashlib.sha256()
    while left > 0 and (chunk := file.read(min(_CHUNK, left))):
        digest.update(chunk)
        left -= len(chunk)
    return digest.hexdigest()


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _encode(value: Any, where: str) -> Any:
    if value is None or type(value) in (bool, int, float):
        return value
    if isinstance(value, str):
        return sys.intern(str(value))
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, torch.Tensor):
        # A copy: a view would be saved with its whole storage.
        return value.detach().to("cpu", copy=True).contiguous()
    if isinstance(value, np.ndarray):
        return {sys.intern(_ARRAY): torch.from_numpy(np.array(value, order="C"))}
    if isinstance(value, dict):
        return {_encode(key, f"{where} key"): _encode(item, f"{where}[{key!r}]") for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        items = [_encode(item, f"{where}[{index}]") for index, item in enumerate(value)]
        return items if isinstance(value, list) else tuple(items)
    raise TypeError(f"{where} must be a plain value, a tensor or an array, got {type(value).__name__}")


def _decode(value: Any) -> Any:
    if isinstance(value, dict):
        if set(value) == {_ARRAY}:
            return value[_ARRAY].numpy()
        return {key: _decode(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(_decode(item) for item in value)
    return value
