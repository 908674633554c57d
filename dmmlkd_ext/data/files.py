"""Datasets from arrays, and from files of one's own: `.npz` and `.csv`.

The datasets `npz` and `csv` are these loaders under their names, so that a file is trained without writing Python:

    dmmlkd run dmml-kd npz --data.options file robots.npz
    dmmlkd run dmml-kd csv --data.options file robots.csv modalities "arm=a* eye=e*"
"""

from __future__ import annotations

import csv
import fnmatch
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.data.arrays import Array, from_arrays
from dmmlkd_ext.data.dataset import MultiModalDataset
from dmmlkd_ext.data.sources.fetch import DataUnavailableError

PRESENT, CLASS_NAMES = "present", "class_names"


def load_npz(
    file: str,
    labels: str = "labels",
    split: str = "split",
    groups: str = "groups",
    validation: float = 0.15,
    test: float = 0.25,
    split_seed: int = 0,
    standardized: bool = True,
    seed: int = 0,
) -> MultiModalDataset:
    """Load a dataset from a file of `numpy.savez`: every array but those named here is a modality.

    The array `present`, bool ``[samples, modalities]``, and `class_names`, text ``[classes]``, are read if they are
    there. See `from_arrays` for what each array may hold.

    Args:
        file: path of the file.
        labels: name of the array of classes.
        split: name of the array of `train`, `validation` and `test`; without it, samples are drawn by the fractions.
        groups: name of the array of natural owners, which the partition `natural` makes devices; may be absent.
        validation: fraction of the samples of each class for validation.
        test: fraction for testing.
        split_seed: of the draw; not the run's seed, so that runs of different seeds are tested by the same samples.
        standardized: shift and scale every feature by training statistics.
        seed: not used; every loader takes it.

    Raises:
        DataUnavailableError: there is no such file.
        ValueError: the file or an array does not fit; the message names it.

    Example:
        >>> import tempfile
        >>> draw = np.random.default_rng(0)
        >>> arm, eye = draw.normal(size=(40, 3)), draw.normal(size=(40, 1, 8, 8))
        >>> arm[::4] = np.nan  # every fourth sample has no reading of the arm
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.savez(f"{folder}/robots.npz", arm=arm, eye=eye, labels=np.arange(40) % 2)
        ...     data = load_npz(f"{folder}/robots.npz")
        >>> data.shapes, len(data.train), len(data.validation), len(data.test)
        ({'arm': (3,), 'eye': (1, 8, 8)}, 24, 6, 10)
    """
    del seed
    arrays = _read_npz(_existing(file))
    if labels not in arrays:
        raise ValueError(f"labels must name an array of {file}, which holds {', '.join(arrays)}; got {labels!r}")
    classes = arrays.pop(labels)
    named = {name: arrays.pop(name, None) for name in (split, groups, PRESENT, CLASS_NAMES)}
    return from_arrays(
        Path(file).stem,
        arrays,
        classes,
        split=named[split],
        groups=named[groups],
        present=named[PRESENT],
        class_names=named[CLASS_NAMES],
        validation=validation,
        test=test,
        split_seed=split_seed,
        standardized=standardized,
    )


def load_csv(
    file: str,
    modalities: str = "",
    label: str = "label",
    split: str = "split",
    group: str = "group",
    delimiter: str = ",",
    validation: float = 0.15,
    test: float = 0.25,
    split_seed: int = 0,
    standardized: bool = True,
    seed: int = 0,
) -> MultiModalDataset:
    r"""Load a dataset from a table with a line of names: a row per sample, a column per feature.

    A sample whose cells of a modality are all empty lacks it. Features of other shapes than vectors need `load_npz`.

    Args:
        file: path of the file, UTF-8.
        modalities: which columns belong to which, such as ``"arm=a* eye=e1,e2"``, with ``*`` and ``?`` as in names of
            files; by default columns are named ``<modality>.<feature>``.
        label: name of the column of classes.
        split: name of the column of `train`, `validation` and `test`; without it, samples are drawn by the fractions.
        group: name of the column of natural owners; may be absent.
        delimiter: between two cells.
        validation: as in `load_npz`, and so are the others.
        test: see there.
        split_seed: see there.
        standardized: see there.
        seed: not used; every loader takes it.

    Raises:
        DataUnavailableError: there is no such file.
        ValueError: the file or a column does not fit; the message names it.

    Example:
        >>> import tempfile
        >>> lines = ["label,arm.x,arm.y,eye.x", *(f"{'ab'[n % 2]},{n},{n % 3}," + "7" * (n % 4 > 0) for n in range(40))]
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/robots.csv").write_text("\n".join(lines))
        ...     data = load_csv(f"{folder}/robots.csv")
        >>> data.shapes, data.class_names, data.test.present.sum(0).tolist()
        ({'arm': (2,), 'eye': (1,)}, ('a', 'b'), [10, 8])
    """
    del seed
    columns = _read_csv(_existing(file), delimiter)
    if label not in columns:
        raise ValueError(f"label must name a column of {file}, which has {_shorten(columns)}; got {label!r}")
    classes = np.array(columns.pop(label))
    named = {name: np.array(columns.pop(name)) if name in columns else None for name in (split, group)}
    chosen = _group_columns(list(columns), modalities, file)
    features = {
        modality: np.stack([_numbers(columns[name], name, file) for name in names], axis=1)
        for modality, names in chosen.items()
    }
    return from_arrays(
        Path(file).stem,
        features,
        classes,
        split=named[split],
        groups=named[group],
        validation=validation,
        test=test,
        split_seed=split_seed,
        standardized=standardized,
    )


def _existing(file: str) -> Path:
    path = Path(file)
    if not path.is_file():
        raise DataUnavailableError(f"file must be a file that is there, got {file!r}")
    return path


def _read_npz(path: Path) -> dict[str, Array]:
    try:
        with np.load(path, allow_pickle=False) as content:
            if isinstance(content, np.ndarray):
                raise ValueError("it holds one array without a name")
            return dict(content)
    except (ValueError, OSError, EOFError, zipfile.BadZipFile) as error:
        raise ValueError(
            f"file must be one of numpy.savez, of numbers and text alone; {path} is not: {error}"
        ) from error


def _read_csv(path: Path, delimiter: str) -> dict[str, list[str]]:
    """Return the cells of each column."""
    if len(delimiter) != 1:
        raise ValueError(f"delimiter must be one character, got {delimiter!r}")
    try:
        with path.open(encoding="utf-8-sig", newline="") as stream:
            lines = [line for line in csv.reader(stream, delimiter=delimiter) if line]
    except (UnicodeError, csv.Error) as error:
        raise ValueError(f"file must be a table of text in UTF-8; {path} is not: {error}") from error
    names = [name.strip() for name in lines[0]] if lines else []
    if len(lines) < 2 or len(set(names)) < len(names):
        raise ValueError(f"file must have a line of different names and a line per sample, {path} has not")
    for number, line in enumerate(lines[1:], start=1):
        if len(line) != len(names):
            raise ValueError(f"{path}: sample {number} must have {len(names)} cells, got {len(line)}")
    return {
        name: [cell.strip() for cell in cells] for name, cells in zip(names, zip(*lines[1:], strict=True), strict=True)
    }


def _group_columns(names: list[str], modalities: str, file: str) -> dict[str, list[str]]:
    """Return the columns of each modality.

    Example:
        >>> _group_columns(["ax", "ay", "e1"], "arm=a* eye=e1", "t.csv")
        {'arm': ['ax', 'ay'], 'eye': ['e1']}
    """
    chosen: dict[str, list[str]] = {}
    if not modalities:
        for name in names:
            modality, point, feature = name.partition(".")
            if point and modality and feature:
                chosen.setdefault(modality, []).append(name)
        if not chosen:
            raise ValueError(
                f"modalities must say which columns of {file} belong to which, such as 'arm=a* eye=e1,e2', as none is "
                f"named <modality>.<feature>: {_shorten(names)}"
            )
        return chosen
    for entry in modalities.split():
        modality, equals, patterns = entry.partition("=")
        found = [name for pattern in patterns.split(",") for name in fnmatch.filter(names, pattern)]
        if not (equals and modality and found) or modality in chosen:
            raise ValueError(
                f"modalities must be like 'arm=a* eye=e1,e2' of columns {_shorten(names)} of {file}; got {entry!r}"
            )
        chosen[modality] = list(dict.fromkeys(found))
    return chosen


def _numbers(cells: list[str], name: str, file: str) -> npt.NDArray[np.float64]:
    """Return a column as numbers, NaN where a cell is empty."""
    try:
        return np.array([cell or "nan" for cell in cells]).astype(np.float64)
    except ValueError as error:
        raise ValueError(f"column {name} of {file} must hold numbers or nothing: {error}") from None


def _shorten(names: Mapping[str, Any] | list[str]) -> str:
    listed = list(names)
    return ", ".join(listed[:8]) + (f" and {len(listed) - 8} more" if len(listed) > 8 else "")
