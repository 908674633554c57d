"""`cameras`: two cameras that see the left and the right part of the same handwritten digit (MNIST).

The parts overlap by two columns. Each view is partial and clean, so that both are needed for some digits and one is
enough for others. The images are the 10,000 test images of MNIST. A dataset of this project [C] (METHOD 8), on which
nothing was tuned: its runs have the settings that any dataset without recommended ones gets.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.sources.mnist import read_mnist
from dmmlkd_ext.data.standardize import standardize
from dmmlkd_ext.seeding import numpy_generator

MODALITIES = ("left", "right")
NUM_CLASSES = 10
OVERLAP = 2
"""Columns that both cameras see."""

# Not the run's seed: test accuracies of different runs must be on the same images.
_SPLIT_SEED = 0


def load_cameras(seed: int = 0) -> MultiModalDataset:
    """Load `cameras`: float32 ``left`` and ``right``, ``[samples, 1, 28, 15]`` each.

    A random tenth of the images of each digit, rounded down, is for testing and a tenth for validation, whatever the
    run's seed: 8,008 / 996 / 996 images. Each view is standardized as a whole with training statistics.

    Args:
        seed: not used; every loader takes it.

    Raises:
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: a file is neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one.
    """
    del seed
    images, digits = read_mnist()
    rows = split_images(digits)
    features = {
        name: standardize({side: view[index, None] for side, index in rows.items()}, axes=(0, 1, 2, 3))
        for name, view in zip(MODALITIES, cut(images), strict=True)
    }
    splits = {
        side: Split(
            features={name: features[name][side] for name in MODALITIES},
            labels=torch.from_numpy(digits[index]),
            present=torch.ones(len(index), len(MODALITIES), dtype=torch.bool, device="cpu"),
            groups=torch.full((len(index),), -1, dtype=torch.int64, device="cpu"),
        )
        for side, index in rows.items()
    }
    names = tuple(str(digit) for digit in range(NUM_CLASSES))
    return MultiModalDataset("cameras", MODALITIES, NUM_CLASSES, names, **splits)


def cut(images: npt.NDArray[np.uint8]) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return the left and the right part of images ``[images, height, width]``, as wide as each other.

    Raises:
        ValueError: the width and the overlap are not both even or both odd, so that the parts cannot be as wide.

    Example:
        >>> left, right = cut(np.arange(6, dtype=np.uint8).reshape(1, 1, 6))
        >>> left.tolist(), right.tolist()
        ([[[0.0, 1.0, 2.0, 3.0]]], [[[2.0, 3.0, 4.0, 5.0]]])
    """
    width = images.shape[2]
    if (width + OVERLAP) % 2:
        raise ValueError(f"images must have an even number of columns, got {width}")
    half = (width + OVERLAP) // 2
    values = images.astype(np.float64)
    return values[:, :, :half], values[:, :, width - half :]


def split_images(digits: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Return ascending rows by split, disjoint and complete: a tenth of each digit for testing, one for validation.

    Example:
        >>> {side: len(rows) for side, rows in split_images(np.repeat([0, 1], 20)).items()}
        {'train': 32, 'validation': 4, 'test': 4}
    """
    generator = numpy_generator(_SPLIT_SEED, "cameras split")
    sides: dict[str, list[npt.NDArray[np.int64]]] = {"train": [], "validation": [], "test": []}
    for digit in np.unique(digits):
        pool = generator.permutation(np.flatnonzero(digits == digit)).astype(np.int64)
        tenth = len(pool) // 10
        sides["test"].append(pool[:tenth])
        sides["validation"].append(pool[tenth : 2 * tenth])
        sides["train"].append(pool[2 * tenth :])
    return {side: np.sort(np.concatenate(parts)) for side, parts in sides.items()}
