"""Which samples judge a device before the last round, where judging every device by all would cost too much."""

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
    """Choose different samples for each device, such that all devices together see all samples equally often.

    The data, sorted by class, are cut into `count` equal parts, and every device gets one sample of each, whose place
    in the part shifts from device to device. So each class has its share, up to one sample, and the mean over devices
    is much nearer to that with all samples than if the same few judged every device (systematic sampling, Cochran 1977,
    chapter 8; a choice of this project [C]).

    Args:
        labels: of all samples, [samples].
        count: samples per device; more if all devices together would otherwise not see all samples; 0 is all of them.
        devices: the numbers of the devices, in [0, num_devices).
        num_devices: number of devices on all ranks.
        generator: draws the order within a class and the place of the first device.

    Returns:
        Indices of samples, int64 [devices, count or more]; None if a device is judged by all samples.

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
    # A place is below `samples`, but rounding may give `samples` itself.
    return torch.from_numpy(by_class[np.minimum(places.astype(np.int64), samples - 1)])
