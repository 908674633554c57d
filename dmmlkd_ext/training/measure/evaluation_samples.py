"""Which samples a device is judged by before the last round, where judging all devices by all would cost too much."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch


def draw_evaluation_samples(
    labels: npt.NDArray[np.int64],
    count: int,
    devices: npt.NDArray[np.int64],
    num_devices: int,
    generator: np.random.Generator,
) -> torch.Tensor | None:
    """Choose other samples for each device, such that all devices together see all samples equally often.

    Every device gets one sample of each of `count` equal parts of the data in the order of their classes, from a place
    in the part that moves on from device to device. So each class has its share, up to one sample; and the mean over
    the devices, which a run's curves show, is much nearer to that by all samples than if the same few judged all of
    them (a systematic sample, Cochran 1977, chapter 8, and a choice of ours [C]).

    Args:
        labels: of all samples, [samples].
        count: samples a device; more, if all devices together would not see all samples otherwise; 0 is all of them.
        devices: the numbers of the devices, in [0, num_devices).
        num_devices: how many there are, on all ranks.
        generator: draws the order within a class and the place of the first device.

    Returns:
        Rows of the data, int64 [devices, count or more]; None where a device is judged by all samples.

    Example:
        >>> labels = np.array([0, 1, 0, 1, 0, 1, 0, 1])
        >>> rows = draw_evaluation_samples(labels, 2, np.arange(4), 4, np.random.default_rng(0))
        >>> labels[rows].tolist(), sorted(rows.flatten().tolist())
        ([[0, 1], [0, 1], [0, 1], [0, 1]], [0, 1, 2, 3, 4, 5, 6, 7])
    """
    samples = len(labels)
    if count:
        count = max(count, -(-samples // num_devices))
    if not 0 < count < samples:
        return None
    by_class = np.lexsort((generator.random(samples), labels))
    first = (devices / num_devices + generator.random()) % 1.0
    places = (np.arange(count) + first[:, None]) * samples / count
    # A place is below `samples`, but may be rounded up to it.
    return torch.from_numpy(by_class[np.minimum(places.astype(np.int64), samples - 1)])
