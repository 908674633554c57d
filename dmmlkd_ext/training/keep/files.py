"""Files that are either whole or not there, and states that are saved as the same bytes every time."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
import torch

TEMPORARY_SUFFIX = ".tmp"
"""A file of this suffix is the remainder of a write that was cut short; it is never read."""

_ARRAY = "numpy.ndarray"
"""Marks an array in a saved state: arrays are stored as tensors, which load without running code."""


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Write a file such that a reader, or a process that starts after a crash, sees all of it or none.

    The content goes to a temporary name in the same folder, reaches the disk, and is renamed. The temporary
    name is fixed: two processes must not write one path at once, which the lock of a run forbids.

    Args:
        path: where the file is to be; its folder must exist.
        write: receives the open binary file.

    Raises:
        OSError: the file cannot be written.
    """
    temporary = path.with_name(path.name + TEMPORARY_SUFFIX)
    with temporary.open("wb") as file:
        write(file)
        wait_for_disk(file)
    temporary.replace(path)
    _sync_folder(path.parent)


def write_text(path: Path, text: str) -> None:
    """Write a text file whole or not at all, in UTF-8; see `write_atomically`."""
    write_atomically(path, lambda file: file.write(text.encode()))


def save_state(path: Path, state: dict[str, Any]) -> None:
    """Save a state of plain values, tensors and arrays; equal states give equal bytes.

    Pickle writes a second mention of one object as a reference, so that its bytes tell whether two equal
    strings are one object, which differs between a run and its resumption. The state is therefore rebuilt
    from fresh objects first, and strings are shared always.

    Args:
        path: where the file is to be.
        state: nested dictionaries, lists and tuples of None, bool, int, float, str, tensors and NumPy arrays.

    Raises:
        TypeError: the state holds a value of another type; the message names where.
    """
    canonical = _encode(state, "state")
    # To a file object, not to a path: torch names the archive inside after the path.
    write_atomically(path, lambda file: torch.save(canonical, file))


def load_state(path: Path, mapped: bool = False) -> dict[str, Any]:
    """Load what `save_state` saved, onto the CPU.

    Args:
        path: the file.
        mapped: leave tensors in the file until they are used; the file must stay as it is for that time.

    Raises:
        FileNotFoundError: there is no file `path`.
        ValueError: the file does not hold a state.
    """
    try:
        state = _decode(torch.load(path, map_location="cpu", weights_only=True, mmap=mapped))
    except FileNotFoundError:
        raise
    except Exception as error:  # torch raises many types for a damaged file
        raise ValueError(f"path holds no saved state: {path} ({type(error).__name__}: {error})") from error
    if not isinstance(state, dict):
        raise ValueError(f"path holds no saved state: {path} (it holds a {type(state).__name__})")
    return state


def remove_temporary_files(folder: Path) -> None:
    """Remove what writes that were cut short left in a folder."""
    for path in folder.glob(f"*{TEMPORARY_SUFFIX}"):
        path.unlink()


def wait_for_disk(file: BinaryIO) -> None:
    """Return when all that was written to an open file is on the disk."""
    file.flush()
    os.fsync(file.fileno())


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
        # A copy: a view would take the whole storage that it looks into along.
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
