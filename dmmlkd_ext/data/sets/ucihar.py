"""`ucihar`: six activities of daily living, recorded by a smartphone's accelerometer and gyroscope.

30 subjects, 10,299 windows of 128 samples at 50 Hz, half overlapping (Anguita et al. 2013, ESANN; CC BY 4.0).
The files are read as published: ``ucihar/UCI HAR Dataset.zip`` in a data folder, or that zip unpacked there
as ``ucihar/UCI HAR Dataset``; otherwise the archive of the UCI repository is downloaded. Natural owners are
the subjects.
"""

from __future__ import annotations

import hashlib
import io
import zipfile
import zlib
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.sources.derived import derived, fingerprint
from dmmlkd_ext.data.sources.fetch import ChecksumError, download, find, obtain, verify
from dmmlkd_ext.data.standardize import standardize

RECIPE_VERSION = 1
"""Part of the name of the cached arrays: increase it with every change of what is read."""

WINDOW = 128
"""Samples per window: 2.56 s at 50 Hz."""
GAP = 3
"""Windows left out between splits: windows i and i + 4 start 256 samples apart, so one window fits between."""

MODALITIES = ("accelerometer", "gyroscope")
SIDES = ("train", "validation", "test")
VALIDATION_SUBJECTS = 3

_CLASS_NAMES = ("walking", "walking upstairs", "walking downstairs", "sitting", "standing", "laying")
_SIGNALS = ("total_acc", "body_acc", "body_gyro")
_FOLDER = "UCI HAR Dataset"
_ZIP = f"{_FOLDER}.zip"
_ZIP_SHA256 = "2045e435c955214b38145fb5fa00776c72814f01b203fec405152dac7d5bfeb0"
_MOST_BYTES = 2**27
"""Most bytes that the inner archive may unpack to; it has 61 MB."""
# The repository's archive contains the original archive.
_WRAPPERS = ("https://archive.ics.uci.edu/static/public/240/human+activity+recognition+using+smartphones.zip",)

Arrays = dict[str, npt.NDArray[Any]]


def load_ucihar(seed: int = 0, split: str = "subject", acceleration: str = "total") -> MultiModalDataset:
    """Load `ucihar`: float32 ``[windows, 3, 128]`` for ``accelerometer`` and ``gyroscope``.

    Channels are standardized with training statistics.

    Args:
        seed: not used; every loader takes it.
        split: ``"subject"``: the official split, nine subjects for testing; of the remaining 21 the three with the
            highest numbers are for validation. ``"time"``: every subject is in every split (`sides_by_time`).
        acceleration: ``"total"``, with gravity, or ``"body"``, without.

    Returns:
        The dataset; ``groups`` is the subject's number, 1..30.

    Raises:
        ValueError: an option is not valid, or a file is not of the published form.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: files are neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: the archive is not the expected one.
    """
    del seed
    if split not in ("subject", "time"):
        raise ValueError(f"split must be 'subject' or 'time', got {split!r}")
    if acceleration not in ("total", "body"):
        raise ValueError(f"acceleration must be 'total' or 'body', got {acceleration!r}")
    arrays = _read_kept()
    labels, subjects = arrays["labels"], arrays["subjects"]
    if split == "subject":
        rows = sides_by_subject(subjects, arrays["official_test"])
    else:
        rows = sides_by_time(labels, subjects)
    signals = {"accelerometer": arrays[f"{acceleration}_acc"], "gyroscope": arrays["body_gyro"]}
    features = {
        name: standardize({side: values[index].astype(np.float64) for side, index in rows.items()}, axes=(0, 2))
        for name, values in signals.items()
    }
    splits = {
        side: Split(
            features={name: features[name][side] for name in MODALITIES},
            labels=torch.from_numpy(labels[index]),
            present=torch.ones(len(index), len(MODALITIES), dtype=torch.bool, device="cpu"),
            groups=torch.from_numpy(subjects[index]),
        )
        for side, index in rows.items()
    }
    return MultiModalDataset("ucihar", MODALITIES, len(_CLASS_NAMES), _CLASS_NAMES, **splits)


def sides_by_subject(
    subjects: npt.NDArray[np.int64], official_test: npt.NDArray[np.bool_]
) -> dict[str, npt.NDArray[np.int64]]:
    """Return the windows of each split by the official one.

    Args:
        subjects: int64 ``[windows]``.
        official_test: bool ``[windows]``, true in the published test files.

    Raises:
        ValueError: a subject is in both published splits, or too few are left for training.

    Example:
        >>> sides = sides_by_subject(np.arange(1, 7), np.array([False, True, False, False, False, False]))
        >>> {side: rows.tolist() for side, rows in sides.items()}
        {'train': [0, 2], 'validation': [3, 4, 5], 'test': [1]}
    """
    trained = np.unique(subjects[~official_test])
    if np.isin(trained, subjects[official_test]).any():
        raise ValueError("subjects must each be in the training or in the test files, got one in both")
    if len(trained) <= VALIDATION_SUBJECTS:
        raise ValueError(f"subjects must leave more than {VALIDATION_SUBJECTS} for training, got {len(trained)}")
    validation = np.isin(subjects, trained[-VALIDATION_SUBJECTS:]) & ~official_test
    return {
        "train": np.flatnonzero(~official_test & ~validation),
        "validation": np.flatnonzero(validation),
        "test": np.flatnonzero(official_test),
    }


def sides_by_time(labels: npt.NDArray[np.int64], subjects: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Cut every bout in time: the last quarter for testing, before it a fifth of the rest for validation.

    A bout is a range of consecutive windows of one subject and one class. `GAP` windows are left out between splits, so
    that windows of different splits share no samples. A bout too short for three splits is for training.

    Args:
        labels: int64 ``[windows]``, in the order of the files.
        subjects: int64 ``[windows]``.

    Raises:
        ValueError: the two are not vectors of the same length above 0.

    Example:
        >>> sides = sides_by_time(np.zeros(20, dtype=int), np.ones(20, dtype=int))
        >>> {side: rows.tolist() for side, rows in sides.items()}
        {'train': [0, 1, 2, 3, 4, 5, 6], 'validation': [10, 11], 'test': [15, 16, 17, 18, 19]}
    """
    if labels.ndim != 1 or labels.shape != subjects.shape or labels.size == 0:
        raise ValueError(f"labels and subjects must be alike vectors, got {labels.shape} and {subjects.shape}")
    changes = np.flatnonzero((np.diff(labels) != 0) | (np.diff(subjects) != 0)) + 1
    rows: dict[str, list[int]] = {side: [] for side in SIDES}
    for bout in np.split(np.arange(len(labels)), changes):
        test = len(bout) // 4
        rest = len(bout) - test - GAP
        validation = max(1, rest // 5)
        train = rest - validation - GAP
        if test == 0 or train < 1:
            rows["train"].extend(bout)
            continue
        rows["train"].extend(bout[:train])
        rows["validation"].extend(bout[train + GAP : rest])
        rows["test"].extend(bout[len(bout) - test :])
    return {side: np.asarray(index, dtype=np.int64) for side, index in rows.items()}


def _read_kept() -> Arrays:
    """Read the files, or the cache: parsing 100 MB of text takes several seconds."""
    folder = find(f"ucihar/{_FOLDER}")
    if folder is not None:
        key = fingerprint(folder.glob("t*/**/*.txt"))
        return derived(f"ucihar/v{RECIPE_VERSION}-{key}.npz", lambda: parse(partial(_read_file, folder)))
    check = partial(verify, expected=_ZIP_SHA256)
    path = obtain(f"ucihar/{_ZIP}", check, _download)

    def compute() -> Arrays:
        with zipfile.ZipFile(path) as archive:
            return parse(lambda name: archive.read(f"{_FOLDER}/{name}"))

    return derived(f"ucihar/v{RECIPE_VERSION}-{_ZIP_SHA256[:16]}.npz", compute)


def _read_file(folder: Path, name: str) -> bytes:
    try:
        return (folder / name).read_bytes()
    except FileNotFoundError as error:
        raise ValueError(f"{folder} must hold {name}, as published") from error


def _download(path: Path) -> None:
    wrapper = path.with_name("wrapper.zip")
    download(_WRAPPERS, wrapper, _unwrap)
    path.write_bytes(_unwrap(wrapper))


def _unwrap(wrapper: Path) -> bytes:
    try:
        with zipfile.ZipFile(wrapper) as archive:
            if archive.getinfo(_ZIP).file_size > _MOST_BYTES:
                raise zipfile.BadZipFile(f"it unpacks to more than {_MOST_BYTES} bytes")
            content = archive.read(_ZIP)
    except (zipfile.BadZipFile, zlib.error, KeyError, EOFError, NotImplementedError, RuntimeError) as error:
        raise ChecksumError(f"{wrapper} is not a zip that holds {_ZIP}: {error}") from error
    actual = hashlib.sha256(content).hexdigest()
    if actual != _ZIP_SHA256:
        raise ChecksumError(f"{_ZIP} in {wrapper} has SHA-256 {actual}, expected {_ZIP_SHA256}")
    return content


def parse(read: Callable[[str], bytes]) -> Arrays:
    """Parse the published text files.

    Args:
        read: returns the bytes of a file by its path within the dataset's folder.

    Returns:
        ``total_acc`` (g), ``body_acc`` (g) and ``body_gyro`` (rad/s), float32 ``[windows, 3, 128]``;
        ``labels`` 0..5 and ``subjects``, int64; ``official_test``, bool. The training files come first.

    Raises:
        ValueError: a file is not of the published form.
    """
    parts: dict[str, list[npt.NDArray[Any]]] = {}
    for side in ("train", "test"):
        subjects = _table(read, f"{side}/subject_{side}.txt")[:, 0].astype(np.int64)
        labels = _table(read, f"{side}/y_{side}.txt", len(subjects))[:, 0].astype(np.int64) - 1
        if labels.min() < 0 or labels.max() >= len(_CLASS_NAMES):
            raise ValueError(f"{side}/y_{side}.txt must hold 1..{len(_CLASS_NAMES)}, got others")
        for signal in _SIGNALS:
            names = [f"{side}/Inertial Signals/{signal}_{axis}_{side}.txt" for axis in "xyz"]
            axes = [_table(read, name, len(subjects), WINDOW) for name in names]
            parts.setdefault(signal, []).append(np.stack(axes, axis=1).astype(np.float32))
        parts.setdefault("subjects", []).append(subjects)
        parts.setdefault("labels", []).append(labels)
        parts.setdefault("official_test", []).append(np.full(len(subjects), side == "test"))
    return {name: np.concatenate(arrays) for name, arrays in parts.items()}


def _table(
    read: Callable[[str], bytes], name: str, rows: int | None = None, columns: int = 1
) -> npt.NDArray[np.float64]:
    try:
        table = np.loadtxt(io.StringIO(read(name).decode()), ndmin=2)
    except ValueError as error:
        raise ValueError(f"{name} must hold rows of {columns} number(s): {error}") from error
    if table.shape != (max(1, len(table)) if rows is None else rows, columns):
        raise ValueError(f"{name} must hold {rows or 'some'} rows of {columns} number(s), got {table.shape}")
    return table
