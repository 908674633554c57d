"""Local iterations of each modality within the energy: a max-min problem, solved exactly (METHOD 5)."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.balance.arrays import BoolArray, FloatArray, IntArray, check_nonnegative, mask, matrix


def computing_energy(iterations: IntArray, energy: FloatArray) -> FloatArray:
    """Sum the energy over the last axis; adding an iteration never lowers the rounded sum."""
    return np.asarray((energy * iterations).sum(axis=-1))


def allocate_iterations(
    metric: npt.ArrayLike,
    iteration_energy_joule: npt.ArrayLike,
    available_energy_joule: npt.ArrayLike,
    max_iterations: int,
    holds: npt.ArrayLike,
    exponent: float = 3.0,
) -> IntArray:
    """Give each modality its local iterations: the max-min problem of METHOD 5, solved exactly.

    For each device: maximize min_m b_m^p tau_m over the integers 1 <= tau_m <= T whose energy fits, and among the
    maximizers take the one of least energy. The best level is one of the products b_m^p t, t = 1..T, and the cost
    grows with the level, so a binary search over t for each m finds it: O(M^2 log T) per device. More energy never
    lowers the level, but may move iterations from one modality to another.

    Args:
        metric: b of `balance_metric`, [devices, modalities]; NaN (no observation yet) counts as 1, and 0 as the limit
            of positive values.
        iteration_energy_joule: energy of one iteration of each modality, [devices, modalities], at least 0.
        available_energy_joule: energy that each device may spend on computing in this round, [devices]; may be
            infinite, or negative (then nothing fits).
        max_iterations: T, at least 1.
        holds: which modalities a device has, bool [devices, modalities].
        exponent: p; negative values favour the fast modalities (the control `reversed`).

    Returns:
        int64 [devices, modalities]; 0 where not held, and in all modalities of a device that cannot pay one iteration
        of each.

    Raises:
        ValueError: an argument is out of its range or the shapes do not match.

    Example:
        >>> allocate_iterations([[0.5, 1.5]], [[1.0, 1.0]], [8.0], 10, np.array([[True, True]]), 1.0).tolist()
        [[6, 2]]
    """
    values = matrix("metric", metric)
    held = mask("holds", holds, values.shape)
    energy = np.where(held, matrix("iteration_energy_joule", iteration_energy_joule, values.shape), 0.0)
    available = matrix("available_energy_joule", available_energy_joule, values.shape[:1])
    _check_allocation(np.where(held, values, 1.0), energy, available, max_iterations, exponent)
    if values.size == 0:
        return np.zeros(values.shape, dtype=np.int64)
    weights = _level_weights(values, held, exponent, max_iterations)
    slowest = np.where(held, weights, np.inf).min(axis=1)
    cap = np.where(np.isfinite(slowest), slowest, 1.0) * max_iterations

    def fits(level: FloatArray) -> BoolArray:
        tau = _least_iterations(level, weights, max_iterations)
        cost = computing_energy(tau, energy[:, None, :])
        return np.asarray((level <= cap[:, None]) & (cost <= available[:, None]))

    low = np.zeros(values.shape, dtype=np.int64)  # the most iterations of m whose level is known to fit
    high = np.full(values.shape, max_iterations, dtype=np.int64)
    while (low < high).any():
        middle = (low + high + 1) // 2
        ok = fits(weights * middle)
        low = np.where(ok, middle, low)
        high = np.where(ok, high, middle - 1)
    level = np.where(held, weights * low, 0.0).max(axis=1)
    tau = _least_iterations(level[:, None], weights, max_iterations)[:, 0, :]
    return np.asarray(np.where(held & (level > 0.0)[:, None], tau, 0), dtype=np.int64)


def _level_weights(metric: FloatArray, held: BoolArray, exponent: float, max_iterations: int) -> FloatArray:
    """Return b^p, finite and positive, without changing any allocation.

    No allocation reaches a level above T times the least weight, so larger weights are cut to that.
    """
    base = np.where(held & ~np.isnan(metric), metric, 1.0)
    with np.errstate(divide="ignore", over="ignore", under="ignore"):
        weights: FloatArray = np.where(held, base**exponent, np.inf)
    least = weights.min(axis=1, keepdims=True)
    # The limit of a vanishing weight: relative to it, the device's other weights are infinite.
    limit = np.where(weights == 0.0, 1.0, np.inf)
    weights = np.where(least == 0.0, limit, np.where(np.isinf(least), 1.0, weights))
    return np.asarray(np.minimum(weights, max_iterations * weights.min(axis=1, keepdims=True)))


def _least_iterations(level: FloatArray, weights: FloatArray, max_iterations: int) -> IntArray:
    """Return the fewest iterations, at least 1, that reach each level: [devices, levels, modalities].

    The rounded quotient may be off by one, so it is corrected by the products that define the levels. Unreachable
    levels give T + 1.
    """
    target, weight = level[:, :, None], weights[:, None, :]
    count = np.ceil(np.minimum(target / weight, max_iterations + 1.0))
    count -= weight * (count - 1.0) >= target
    count += weight * count < target
    return np.clip(count, 1.0, max_iterations + 1.0).astype(np.int64)


def _check_allocation(
    metric: FloatArray, energy: FloatArray, available: FloatArray, limit: int, exponent: float
) -> None:
    check_nonnegative("metric", np.where(np.isnan(metric), 1.0, metric))
    check_nonnegative("iteration_energy_joule", energy)
    if np.isnan(available).any():
        raise ValueError("available_energy_joule must be numbers, got nan")
    if int(limit) != limit or limit < 1:
        raise ValueError(f"max_iterations must be an integer of at least 1, got {limit}")
    if not math.isfinite(exponent):
        raise ValueError(f"exponent must be finite, got {exponent}")
