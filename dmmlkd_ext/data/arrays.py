"""A dataset from arrays: the split, missing modalities, standardization."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.standardize import standardize
from dmmlkd_ext.seeding import numpy_generator

Array = npt.NDArray[Any]
SIDES = ("train", "validation", "test")


def from_arrays(
    name: str,
    features: Mapping[str, Array],
    labels: Array,
    *,
    split: Array | None = None,
    groups: Array | None = None,
    present: Array | None = None,
    class_names: Sequence[str] | Array | None = None,
    validation: float = 0.15,
    test: float = 0.25,
    split_seed: int = 0,
    standardized: bool = True,
) -> MultiModalDataset:
    """Make a dataset from one array per modality.

    Args:
        name: of the dataset.
        features: real numbers ``[samples, *shape]`` by modality. Encoders know vectors, ``[channels, time]`` and
            ``[channels, height, width]``. A sample whose values of a modality are all NaN lacks it.
        labels: the class of each sample: whole numbers or text, ``[samples]``; classes are ordered by their values.
        split: `train`, `validation` or `test` of each sample; None draws them by the fractions, class by class.
        groups: the natural owner of each sample, numbers or text; -1, empty and NaN are none.
        present: bool ``[samples, modalities]``, which samples have which; those with NaN alone lack it in any case.
        class_names: by class; None names them by their values.
        validation: fraction of the samples of each class for validation.
        test: fraction for testing.
        split_seed: of the draw.
        standardized: shift and scale by the training samples that have the modality: a feature of vectors, a channel
            of others.

    Raises:
        ValueError: an argument does not fit; the message names it.

    Example:
        >>> arm = np.array([[1.0], [3.0], [np.nan], [5.0]])
        >>> eye = np.zeros((4, 2))
        >>> sides = np.array(["train", "train", "train", "test"])
        >>> data = from_arrays("robots", {"arm": arm, "eye": eye}, np.array(["cup", "box", "cup", "box"]), split=sides)
        >>> data.class_names, data.train.labels.tolist(), data.test.features["arm"].tolist()
        (('box', 'cup'), [1, 0, 1], [[3.0]])
        >>> data.train.present.tolist()
        [[True, True], [True, True], [False, True]]
    """
    classes, codes = _read_labels(labels)
    if class_names is not None and len(class_names) != len(classes):
        raise ValueError(f"class_names must be {len(classes)}, one per class in labels, got {len(class_names)}")
    names = classes if class_names is None else tuple(str(each) for each in class_names)
    values = {modality: _read_features(modality, array, len(codes)) for modality, array in features.items()}
    if not values:
        raise ValueError("features must hold at least one modality, got none")
    has = np.stack([_has(modality, array) for modality, array in values.items()], axis=1)
    if present is not None:
        has &= _read_present(present, has.shape)
    if not has.any(axis=1).all():
        raise ValueError(f"every sample must have a modality, sample {int((~has.any(axis=1)).argmax())} has none")
    sides = draw_sides(codes, validation, test, split_seed) if split is None else _read_sides(split, len(codes))
    rows = {side: np.flatnonzero(sides == side) for side in SIDES}
    scaled = {
        modality: _scale(modality, array, has[:, column], rows["train"], standardized)
        for column, (modality, array) in enumerate(values.items())
    }
    owners = _read_groups(groups, len(codes))
    splits = {
        side: Split(
            {modality: array[index] for modality, array in scaled.items()},
            torch.from_numpy(codes[index]),
            torch.from_numpy(has[index]),
            torch.from_numpy(owners[index]),
        )
        for side, index in rows.items()
    }
    return MultiModalDataset(name, tuple(values), len(names), names, **splits)


def draw_sides(
    labels: npt.NDArray[np.int64], validation: float = 0.15, test: float = 0.25, seed: int = 0
) -> npt.NDArray[np.str_]:
    """Draw the side of each sample, such that each class has its share of every side, up to rounding.

    Raises:
        ValueError: a fraction is negative, or they leave nothing for training.

    Example:
        >>> sides = draw_sides(np.array([0] * 10 + [1] * 20), validation=0.1, test=0.2)
        >>> [int((sides[10:] == side).sum()) for side in SIDES]
        [14, 2, 4]
    """
    if not (validation >= 0 and test >= 0 and validation + test < 1):
        raise ValueError(
            f"validation and test must be fractions that leave samples for training, got {validation} and {test}"
        )
    generator = numpy_generator(seed, "split of arrays")
    sides = np.full(len(labels), "train", dtype="<U10")
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        tested, validated = round(test * len(members)), round(validation * len(members))
        sides[members[:tested]] = "test"
        sides[members[tested : tested + validated]] = "validation"
    return sides


def _read_labels(labels: Array) -> tuple[tuple[str, ...], npt.NDArray[np.int64]]:
    """Return the names of the classes and the class of each sample."""
    found = np.asarray(labels)
    if found.ndim != 1 or found.dtype.kind not in "iufbUS":
        raise ValueError(f"labels must be numbers or text [samples], got {found.dtype} {list(found.shape)}")
    if found.dtype.kind == "f" and not np.array_equal(found, np.round(found)):
        raise ValueError("labels must be whole numbers or text, got fractions or NaN")
    if found.dtype.kind in "US":
        found = found.astype(str)
        if (found == "").any():
            raise ValueError(f"labels must name a class for each sample, sample {int((found == '').argmax())} has none")
        if all(text.removeprefix("-").isdecimal() for text in np.unique(found).tolist()):
            found = found.astype(np.int64)
    elif found.dtype.kind != "u":
        found = found.astype(np.int64)
    names, codes = np.unique(found, return_inverse=True)
    return tuple(str(name) for name in names.tolist()), codes.reshape(-1).astype(np.int64)


def _read_features(modality: str, array: Array, samples: int) -> npt.NDArray[np.float64]:
    found = np.asarray(array)
    if found.dtype.kind not in "biuf" or found.ndim < 2 or len(found) != samples:
        raise ValueError(
            f"features[{modality!r}] must be real numbers [{samples} samples as labels has, ...], got {found.dtype} "
            f"{list(found.shape)}"
        )
    return found.astype(np.float64)


def _has(modality: str, values: npt.NDArray[np.float64]) -> npt.NDArray[np.bool_]:
    """Return which samples have a modality, bool [samples]: not those whose values are all NaN."""
    flat = values.reshape(len(values), -1)
    absent = np.isnan(flat)
    partly = absent.any(axis=1) & ~absent.all(axis=1) | np.isinf(flat).any(axis=1)
    if partly.any():
        raise ValueError(
            f"features[{modality!r}] of sample {int(partly.argmax())} must be finite, or all NaN where the sample "
            "lacks the modality; fill its gaps first"
        )
    return np.asarray(~absent.all(axis=1))


def _read_present(present: Array, shape: tuple[int, ...]) -> npt.NDArray[np.bool_]:
    found = np.asarray(present)
    if found.shape != shape or found.dtype.kind not in "bi":
        raise ValueError(f"present must be bool [samples, modalities] = {list(shape)}, got {list(found.shape)}")
    return found.astype(np.bool_)


def _read_sides(split: Array, samples: int) -> npt.NDArray[np.str_]:
    sides = np.asarray(split)
    sides = sides.astype(str) if sides.dtype.kind in "US" else sides
    wrong = [str(side) for side in np.unique(sides) if side not in SIDES]
    if sides.shape != (samples,) or wrong:
        got = f"the values {', '.join(wrong)}" if wrong else f"shape {list(sides.shape)}"
        raise ValueError(f"split must be one of {', '.join(SIDES)} for each of {samples} samples, got {got}")
    return sides


def _read_groups(groups: Array | None, samples: int) -> npt.NDArray[np.int64]:
    """Return the owners as numbers from 0, in the order of their values; -1 is none."""
    if groups is None:
        return np.full(samples, -1, dtype=np.int64)
    found = np.asarray(groups)
    if found.shape != (samples,) or found.dtype.kind not in "iufUS":
        raise ValueError(f"groups must be numbers or text [{samples}], got {found.dtype} {list(found.shape)}")
    if found.dtype.kind in "US":
        found = found.astype(str)
        nobody = np.isin(found, ("", "-1"))
        if all(text.isdecimal() for text in np.unique(found[~nobody]).tolist()):
            found = np.where(nobody, "-1", found).astype(np.int64)
    else:
        nobody = np.isnan(found) | (found == -1)
    owners = np.full(samples, -1, dtype=np.int64)
    owners[~nobody] = np.unique(found[~nobody], return_inverse=True)[1].reshape(-1)
    return owners


def _scale(
    modality: str,
    values: npt.NDArray[np.float64],
    has: npt.NDArray[np.bool_],
    train: npt.NDArray[np.int64],
    standardized: bool,
) -> torch.Tensor:
    """Return the features, float32, zeros where a sample lacks the modality."""
    known = train[has[train]]
    if not len(known):
        raise ValueError(f"features[{modality!r}] must be there in at least one training sample, got none")
    filled = np.where(has.reshape(-1, *[1] * (values.ndim - 1)), values, 0.0)
    if not standardized:
        return torch.from_numpy(filled.astype(np.float32))
    axes = (0, *range(2, values.ndim))
    scaled = standardize({"train": values[known], "all": filled}, axes)["all"]
    scaled[torch.from_numpy(~has)] = 0.0
    return scaled
