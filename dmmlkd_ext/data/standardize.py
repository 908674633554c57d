"""Standardization with the statistics of the training split alone."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import numpy.typing as npt
import torch


def standardize(
    sides: Mapping[str, npt.NDArray[np.float64]], axes: tuple[int, ...], train: str = "train"
) -> dict[str, torch.Tensor]:
    """Shift and scale every split such that the training split has zero mean and unit variance over ``axes``.

    Args:
        sides: arrays ``[samples, ...]`` by split, of equal shapes except the number of samples.
        axes: the axes that are averaged over; e.g. ``(0, 2)`` for one mean per channel of ``[samples, channels,
            time]``.
        train: the split whose statistics are used.

    Returns:
        float32 tensors, same keys. A feature that is constant in training is only centred.

    Raises:
        ValueError: the training split is missing or has no samples.

    Example:
        >>> sides = {"train": np.array([[1.0, 5.0], [3.0, 5.0]]), "test": np.array([[5.0, 6.0]])}
        >>> standardize(sides, axes=(0,))["test"].tolist()
        [[3.0, 1.0]]
    """
    if train not in sides or sides[train].shape[0] == 0:
        raise ValueError(f"sides must hold samples of the training side {train!r}, got {sorted(sides)}")
    mean = sides[train].mean(axis=axes, keepdims=True)
    deviation = sides[train].std(axis=axes, keepdims=True)
    # Rounding gives a constant feature a tiny deviation, and division by it would amplify the rounding errors.
    constant = deviation <= 1e-9 * np.maximum(1.0, np.abs(mean))
    scale = np.where(constant, 1.0, deviation)
    return {side: torch.from_numpy(((values - mean) / scale).astype(np.float32)) for side, values in sides.items()}
