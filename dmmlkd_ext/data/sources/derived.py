"""A cache of arrays that take long to compute from raw files."""

from __future__ import annotations

import hashlib
import warnings
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.data.sources.fetch import ChecksumError, DataUnavailableError, cache_folder, placing

Arrays = Mapping[str, npt.NDArray[Any]]

_CHECKSUM = "checksum"
"""Name of the SHA-256 that is stored with the arrays."""


def derived(relative: str, compute: Callable[[], Arrays]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays cached as ``relative``, or compute and store them.

    The name must contain everything that the arrays depend on (the recipe's version, its options, the raw files). A
    damaged file is computed anew, with a warning. If the cache cannot be written, the arrays are computed each time,
    with a warning.

    Args:
        relative: path of an ``.npz`` file within the cache.
        compute: returns the arrays, without Python objects and without one named ``checksum``.

    Raises:
        ValueError: an array is named ``checksum``.

    Example:
        >>> import os, tempfile
        >>> from unittest import mock
        >>> with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        ...     derived("squares/v1.npz", lambda: {"x": np.arange(3) ** 2})["x"].tolist()
        [0, 1, 4]
    """
    path = cache_folder() / relative
    try:
        return _read(path)
    except FileNotFoundError:
        pass
    except ChecksumError as error:
        warnings.warn(f"{error}; it is computed again", stacklevel=2)
    arrays = dict(compute())
    if _CHECKSUM in arrays:
        raise ValueError(f"compute must name no array {_CHECKSUM!r}")
    try:
        with placing(relative) as scratch:
            np.savez(scratch, **arrays, **{_CHECKSUM: np.array(_hash(arrays))})  # type: ignore[arg-type]
    except (DataUnavailableError, OSError) as error:
        warnings.warn(f"{path} could not be kept and will be computed again: {error}", stacklevel=2)
    return arrays


def _read(path: Path) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays of a cached file.

    Raises:
        FileNotFoundError: there is none.
        ChecksumError: the file is damaged.
    """
    if not path.exists():
        raise FileNotFoundError(path)
    try:
        with np.load(path, allow_pickle=False) as kept:
            arrays = dict(kept)
    except Exception as error:  # a damaged zip makes its reader raise almost anything
        raise ChecksumError(f"{path} is damaged ({error})") from error
    if _CHECKSUM not in arrays:
        raise ChecksumError(f"{path} was kept without a checksum")
    if str(arrays.pop(_CHECKSUM)) != _hash(arrays):
        raise ChecksumError(f"{path} does not hold the arrays of its checksum")
    return arrays


def _hash(arrays: Arrays) -> str:
    """Return the SHA-256 of names, dtypes, shapes and values."""
    total = hashlib.sha256()
    for name in sorted(arrays):
        values = np.ascontiguousarray(arrays[name])
        total.update(f"{name}\0{values.dtype.str}\0{arrays[name].shape}\0".encode())
        total.update(values.reshape(-1).view(np.uint8).data)
    return total.hexdigest()


def fingerprint(files: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change with the names, sizes and times of the files.

    Raises:
        OSError: a file does not exist.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        state = path.stat()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
