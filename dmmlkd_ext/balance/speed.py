"""How fast each modality trains, from the variation of its parameters, and how unlike their speeds are (METHOD 5)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.balance.arrays import BoolArray, FloatArray, check_nonnegative, mask, matrix


def training_speed(
    variation_norm: npt.ArrayLike,
    start_norm: npt.ArrayLike,
    num_parameters: npt.ArrayLike,
    iterations: npt.ArrayLike,
    relative: bool = False,
) -> FloatArray:
    """Return each modality's training speed, the variation per iteration and parameter (METHOD 5).

    v = ||w(after) - w(before)|| / (sqrt(P) tau), or / (||w(before)|| tau) when `relative`.

    Args:
        variation_norm: ||w(after local training) - w(before)||, [devices, modalities].
        start_norm: ||w(before)||, [devices, modalities].
        num_parameters: parameters of each modality's block, [modalities].
        iterations: local iterations that each modality trained, [devices, modalities].
        relative: see `BalanceConfig`.

    Returns:
        float64 [devices, modalities]; NaN where a modality did not train or the quotient is not finite (a diverged
        block, or a relative variation from zero).

    Raises:
        ValueError: the shapes do not match, or a count is negative.

    Example:
        >>> training_speed([[8.0, 0.0]], [[1.0, 1.0]], [16, 4], [[2, 0]]).tolist()
        [[1.0, nan]]
    """
    variation = matrix("variation_norm", variation_norm)
    start = matrix("start_norm", start_norm, variation.shape)
    counts = matrix("iterations", iterations, variation.shape)
    sizes = matrix("num_parameters", num_parameters, variation.shape[1:])
    if (counts < 0).any():
        raise ValueError(f"iterations must be at least 0, got {counts.min():g}")
    if (sizes < 1).any():
        raise ValueError(f"num_parameters must be at least 1, got {sizes.min():g}")
    scale = start if relative else np.broadcast_to(np.sqrt(sizes), start.shape)
    with np.errstate(divide="ignore", invalid="ignore", over="ignore"):
        speeds = variation / (scale * counts)
    return np.where((counts > 0) & np.isfinite(speeds), speeds, np.nan)


def update_speeds(previous: npt.ArrayLike, current: npt.ArrayLike, smoothing: float = 0.5) -> FloatArray:
    """Return the exponential moving average of the speeds (METHOD 5 [C]).

    The average is smoothing * current + (1 - smoothing) * previous. NaN means "not observed": the first observation
    becomes the average, and a round without one keeps it.

    Args:
        previous: the average so far, [devices, modalities].
        current: this round's `training_speed`, [devices, modalities].
        smoothing: weight of `current`, above 0 and at most 1.

    Raises:
        ValueError: the shapes differ or `smoothing` is out of range.

    Example:
        >>> update_speeds([[1.0, float("nan"), 4.0]], [[3.0, 5.0, float("nan")]]).tolist()
        [[2.0, 5.0, 4.0]]
    """
    if not 0.0 < smoothing <= 1.0:
        raise ValueError(f"smoothing must be above 0 and at most 1, got {smoothing}")
    old = matrix("previous", previous)
    new = matrix("current", current, old.shape)
    average = smoothing * new + (1.0 - smoothing) * old
    return np.where(np.isnan(new), old, np.where(np.isnan(old), new, average))


def balance_metric(speeds: npt.ArrayLike, holds: npt.ArrayLike) -> FloatArray:
    """Return b = speed / mean speed of the device's modalities: 1 is balanced, more is fast (METHOD 5 [C]).

    Args:
        speeds: averaged speeds, [devices, modalities], at least 0; NaN where unknown.
        holds: which modalities a device has, bool [devices, modalities].

    Returns:
        float64 [devices, modalities]; NaN where a modality is not held or its speed is unknown; 1 if all speeds of a
        device are 0.

    Raises:
        ValueError: the shapes differ, or a held modality's speed is negative.

    Example:
        >>> balance_metric([[1.0, 3.0, 9.0]], np.array([[True, True, False]])).tolist()
        [[0.5, 1.5, nan]]
    """
    values, known = _known_speeds(speeds, holds)
    mean = values.sum(axis=1, keepdims=True) / np.maximum(known.sum(axis=1, keepdims=True), 1)
    metric = np.divide(values, mean, out=np.ones_like(values), where=mean > 0.0)
    return np.where(known, metric, np.nan)


def imbalance(speeds: npt.ArrayLike, holds: npt.ArrayLike) -> FloatArray:
    """Return each device's coefficient of variation of the speed over its modalities (METHOD 5 [C]).

    Args:
        speeds: averaged speeds, [devices, modalities], at least 0; NaN where unknown.
        holds: which modalities a device has, bool [devices, modalities].

    Returns:
        float64 [devices]: standard deviation (of the population) / mean; 0 for one modality, NaN where no
        speed is known.

    Raises:
        ValueError: the shapes differ, or a held modality's speed is negative.

    Example:
        >>> imbalance([[1.0, 3.0], [2.0, 7.0]], np.array([[True, True], [True, False]])).tolist()
        [0.5, 0.0]
    """
    metric = balance_metric(speeds, holds)
    count = (~np.isnan(metric)).sum(axis=1)
    # The metric has mean 1, so its standard deviation is the coefficient of variation of the speeds.
    squares = np.nan_to_num(metric - 1.0) ** 2
    deviation = np.sqrt(squares.sum(axis=1) / np.maximum(count, 1))
    return np.where(count > 0, deviation, np.nan)


def ranking_agreement(speeds: npt.ArrayLike, losses: npt.ArrayLike, holds: npt.ArrayLike) -> FloatArray:
    """Return how often the faster one of two modalities of a device is the one that dominates (METHOD 5 [C]).

    A modality dominates another if its heads alone have the lower loss on the device's data.

    Args:
        speeds: averaged speeds, [devices, modalities], at least 0; NaN where unknown.
        losses: of each modality's heads alone, [devices, modalities]; NaN where unknown.
        holds: which modalities a device has, bool [devices, modalities].

    Returns:
        float64 [devices]: a share of the pairs whose speeds and losses are known, equal speeds counting half; NaN where
        there is no such pair.

    Raises:
        ValueError: the shapes differ, or a held modality's speed is negative.

    Example:
        >>> holds = np.ones((1, 3), dtype=bool)
        >>> ranking_agreement([[3.0, 2.0, 1.0]], [[0.1, 0.5, 0.2]], holds).round(2).tolist()
        [0.67]
    """
    values, known = _known_speeds(speeds, holds)
    loss = matrix("losses", losses, values.shape)
    known &= ~np.isnan(loss)
    pairs = known[:, :, None] & known[:, None, :] & np.triu(np.ones(2 * values.shape[1:], dtype=bool), 1)
    faster = np.sign(values[:, :, None] - values[:, None, :])
    better = np.sign(loss[:, None, :] - loss[:, :, None])
    agree = np.where(pairs, (1.0 + faster * better) / 2.0, 0.0).sum(axis=(1, 2))
    count = pairs.sum(axis=(1, 2))
    return np.asarray(np.divide(agree, count, out=np.full(len(values), np.nan), where=count > 0))


def _known_speeds(speeds: npt.ArrayLike, holds: npt.ArrayLike) -> tuple[FloatArray, BoolArray]:
    """Return the speeds, 0 where unknown or not held, and the mask of the known ones."""
    array = matrix("speeds", speeds)
    known = mask("holds", holds, array.shape) & ~np.isnan(array)
    values = np.where(known, array, 0.0)
    check_nonnegative("speeds", values)
    return values, known
