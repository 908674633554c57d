"""Checks of the arrays that planning receives."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]


def matrix(name: str, value: npt.ArrayLike, shape: tuple[int, ...] | None = None) -> FloatArray:
    """Return an argument as float64; raise ValueError for another shape. None accepts any [devices, modalities]."""
    array = np.asarray(value, dtype=np.float64)
    if shape is None and array.ndim != 2:
        raise ValueError(f"{name} must have the shape [devices, modalities], got {list(array.shape)}")
    if shape is not None and array.shape != shape:
        raise ValueError(f"{name} must have the shape {list(shape)}, got {list(array.shape)}")
    return array


def mask(name: str, value: npt.ArrayLike, shape: tuple[int, ...]) -> BoolArray:
    """Return an argument; raise ValueError unless it is bool of that shape."""
    array = np.asarray(value)
    if array.dtype != np.bool_ or array.shape != shape:
        got = f"{array.dtype} of the shape {list(array.shape)}"
        raise ValueError(f"{name} must be bool of the shape {list(shape)}, got {got}")
    return array


def check_nonnegative(name: str, values: FloatArray) -> None:
    """Raise ValueError where a value is negative or not finite."""
    bad = ~(np.isfinite(values) & (values >= 0.0))
    if bad.any():
        raise ValueError(f"{name} must be finite and at least 0 where a modality is held, got {values[bad][0]}")
