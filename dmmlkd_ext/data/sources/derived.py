"""Arrays that take long to compute from raw files, kept in the cache."""

from __future__ import annotations

import hashlib
import warnings
import zipfile
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.data.sources.fetch import ChecksumError, DataUnavailableError, cache_folder, placing

Arrays = Mapping[str, npt.NDArray[Any]]


def derived(relative: str, compute: Callable[[], Arrays]) -> dict[str, npt.NDArray[Any]]:
    """Return the arrays kept in the cache as ``relative``, or compute and keep them.

    Whatever the arrays depend on (the recipe's version, its options, the raw files) must be part of the name.
    Where the cache cannot be written, they are computed each time, with a warning.

    Args:
        relative: path of an ``.npz`` file within the cache.
        compute: returns the arrays; none of Python objects.

    Raises:
        ChecksumError: the kept file is damaged.

    Example:
        >>> import os, tempfile
        >>> from unittest import mock
        >>> with tempfile.TemporaryDirectory() as folder, mock.patch.dict(os.environ, XDG_CACHE_HOME=folder):
        ...     derived("squares/v1.npz", lambda: {"x": np.arange(3) ** 2})["x"].tolist()
        [0, 1, 4]
    """
    path = cache_folder() / relative
    if path.exists():
        try:
            with np.load(path, allow_pickle=False) as kept:
                return dict(kept)
        except (zipfile.BadZipFile, ValueError, EOFError) as error:
            raise ChecksumError(f"{path} is damaged ({error}); delete it, so that it is computed again") from error
    arrays = dict(compute())
    try:
        with placing(relative) as scratch:
            np.savez(scratch, **arrays)  # type: ignore[arg-type]
    except (DataUnavailableError, OSError) as error:
        warnings.warn(f"{path} could not be kept and will be computed again: {error}", stacklevel=2)
    return arrays


def fingerprint(files: Iterable[Path]) -> str:
    """Return 16 hexadecimal digits that change with the names, sizes and times of the files.

    Raises:
        OSError: a file is not there.
    """
    digest = hashlib.sha256()
    for path in sorted(files):
        state = path.stat()
        digest.update(f"{path} {state.st_size} {state.st_mtime_ns}\n".encode())
    return digest.hexdigest()[:16]
