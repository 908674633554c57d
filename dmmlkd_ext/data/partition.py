"""Which samples and which modalities each device holds (METHOD 1 and 8).

Samples are divided by their natural owner, by a Dirichlet draw (label skew) or evenly; modalities are removed from a
fixed number of devices.
"""

from __future__ import annotations

import heapq

import numpy as np
import numpy.typing as npt

IndexArray = npt.NDArray[np.int64]

_LEAST_ALPHA, _MOST_ALPHA = 1e-300, 1e100


def partition_natural(groups: npt.ArrayLike) -> list[IndexArray]:
    """Give each natural owner its samples: one device per owner, owners in ascending order.

    Args:
        groups: integers ``[samples]``, the owner of each sample (``Split.groups``), none negative.

    Returns:
        One ascending int64 array of sample indices per device; disjoint, complete, none empty.

    Raises:
        ValueError: ``groups`` is empty, not one-dimensional, not integer, or has samples without owner (-1).

    Example:
        >>> [part.tolist() for part in partition_natural([7, 3, 7])]
        [[1], [0, 2]]
    """
    owners = _integer_vector("groups", groups)
    if owners.min() < 0:
        raise ValueError(
            f"groups must name an owner for every sample, {int((owners < 0).sum())} samples have none (-1)"
        )
    return [np.flatnonzero(owners == owner).astype(np.int64) for owner in np.unique(owners)]


def partition_iid(num_samples: int, num_devices: int, generator: np.random.Generator) -> list[IndexArray]:
    """Divide the samples evenly and at random; device sizes differ by at most one.

    Args:
        num_samples: samples to divide, at least ``num_devices``.
        num_devices: devices, at least 1.
        generator: the source of randomness.

    Returns:
        One ascending int64 array of sample indices per device; disjoint, complete.

    Raises:
        ValueError: a count is not a positive integer or there are fewer samples than devices.

    Example:
        >>> parts = partition_iid(7, 3, np.random.default_rng(0))
        >>> [len(part) for part in parts], sorted(np.concatenate(parts).tolist()) == list(range(7))
        ([3, 2, 2], True)
    """
    _require_count("num_samples", num_samples)
    _require_count("num_devices", num_devices)
    _require_generator(generator)
    if num_samples < num_devices:
        raise ValueError(f"num_samples must be at least num_devices = {num_devices}, got {num_samples}")
    return [np.sort(part) for part in np.array_split(generator.permutation(num_samples), num_devices)]


def partition_dirichlet(
    labels: npt.ArrayLike,
    num_devices: int,
    alpha: float,
    generator: np.random.Generator,
    min_samples: int = 10,
) -> list[IndexArray]:
    """Divide the samples with label skew: each class is spread over devices in Dirichlet(alpha) proportions.

    The smaller ``alpha``, the fewer classes a device holds and the more their sizes differ. Devices below
    ``min_samples`` are filled up, one sample at a time, from the device with the most samples.
    Source: Yurochkin et al. 2019, arXiv 1905.12022; METHOD 8.

    Args:
        labels: integers ``[samples]``, classes, none negative.
        num_devices: devices, at least 1.
        alpha: concentration, above 0.
        generator: the source of randomness.
        min_samples: least samples per device; ``min_samples * num_devices`` must not exceed the samples.

    Returns:
        One ascending int64 array of sample indices per device; disjoint, complete.

    Raises:
        ValueError: an argument is out of range, or there are too few samples.

    Example:
        >>> labels = np.repeat(np.arange(4), 50)
        >>> parts = partition_dirichlet(labels, 5, 0.5, np.random.default_rng(0), min_samples=8)
        >>> sum(len(part) for part in parts), min(len(part) for part in parts) >= 8
        (200, True)
    """
    classes = _integer_vector("labels", labels)
    if classes.min() < 0:
        raise ValueError(f"labels must not be negative, got {int(classes.min())}")
    _require_count("num_devices", num_devices)
    if not (np.isfinite(alpha) and alpha > 0):
        raise ValueError(f"alpha must be a finite number above 0, got {alpha}")
    _require_generator(generator)
    _require_count("min_samples", min_samples, least=0)
    if max(min_samples, 1) * num_devices > len(classes):
        raise ValueError(
            f"min_samples * num_devices must not exceed the {len(classes)} samples, "
            f"got min_samples = {min_samples}, num_devices = {num_devices}"
        )
    samples, owners = [], []
    for label in np.unique(classes):
        members = generator.permutation(np.flatnonzero(classes == label))
        shares = _draw_shares(num_devices, alpha, generator)
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        samples.append(members)
        owners.append(np.repeat(np.arange(num_devices), np.diff(cuts, prepend=0, append=len(members))))
    owner = np.concatenate(owners)
    # Stable: filling up draws from a device's samples in the order in which they were assigned.
    dealt = np.concatenate(samples)[np.argsort(owner, kind="stable")]
    parts = np.split(dealt, np.cumsum(np.bincount(owner, minlength=num_devices))[:-1])
    _fill_up(parts, min_samples, generator)
    return [np.sort(part) for part in parts]


def _draw_shares(num_devices: int, alpha: float, generator: np.random.Generator) -> npt.NDArray[np.float64]:
    """Draw each device's share of a class, float64 ``[devices]``, which sums to one."""
    # Beyond these limits the draw overflows; at them, one device gets all or all get equal shares, to the last bit.
    return generator.dirichlet(np.full(num_devices, np.clip(alpha, _LEAST_ALPHA, _MOST_ALPHA)))


def _fill_up(parts: list[IndexArray], min_samples: int, generator: np.random.Generator) -> None:
    """Move random samples from the fullest device, the first of several, to those below ``min_samples``, in place."""
    donors = [(-len(part), device) for device, part in enumerate(parts) if len(part) > min_samples]
    heapq.heapify(donors)
    left: dict[int, list[int]] = {}
    for needy in [device for device, part in enumerate(parts) if len(part) < min_samples]:
        taken = []
        for _ in range(min_samples - len(parts[needy])):
            size, donor = donors[0]
            heapq.heapreplace(donors, (size + 1, donor))
            if donor not in left:
                left[donor] = parts[donor].tolist()
            taken.append(left[donor].pop(int(generator.integers(-size))))
        parts[needy] = np.concatenate([parts[needy], np.asarray(taken, dtype=np.int64)])
    for donor, kept in left.items():
        parts[donor] = np.asarray(kept, dtype=np.int64)


def assign_modalities(
    num_devices: int,
    num_modalities: int,
    missing_rate: float,
    generator: np.random.Generator,
    modalities_per_device: tuple[int, int] | None = None,
    lacking: int | None = None,
) -> npt.NDArray[np.bool_]:
    """Draw the modality set of every device (METHOD 8).

    Exactly ``round(missing_rate * num_devices)`` random devices are incomplete. The size of such a device's set is
    uniform between 1 and ``num_modalities - 1`` (or in ``modalities_per_device``), then the set is a uniform subset of
    that size, independent of other devices. With two modalities the incomplete devices are divided between them as
    evenly as possible.

    A modality that only one device holds cannot be mixed. So while a modality has fewer than two holders and another
    has at least two holders more, a random incomplete device that holds the most common modality and lacks the rarest
    swaps them. Set sizes do not change, and if they sum to at least ``2 * num_modalities``, every modality gets two
    holders.

    Args:
        num_devices: devices K, at least 1.
        num_modalities: modalities M, at least 1.
        missing_rate: fraction of incomplete devices, 0..1.
        generator: the source of randomness.
        modalities_per_device: least and most modalities of an incomplete device, within 1..M-1.
        lacking: the modality that each incomplete device lacks, and no other; None draws. It stays with the other
            devices, however few they are.

    Returns:
        bool ``[num_devices, num_modalities]``, true where the device holds the modality; every row has one.

    Raises:
        ValueError: an argument is out of range, devices would lack the only modality, or `lacking` and
            `modalities_per_device` are both given.

    Example:
        >>> held = assign_modalities(10, 2, 0.6, np.random.default_rng(0))
        >>> int((~held.all(axis=1)).sum()), held[~held.all(axis=1)].sum(axis=0).tolist()
        (6, [3, 3])
    """
    _require_count("num_devices", num_devices)
    _require_count("num_modalities", num_modalities)
    if not 0 <= missing_rate <= 1:
        raise ValueError(f"missing_rate must lie in 0..1, got {missing_rate}")
    _require_generator(generator)
    least, most = _set_sizes(num_modalities, modalities_per_device)
    count = round(missing_rate * num_devices)
    if count and num_modalities == 1:
        raise ValueError(f"missing_rate must leave a single modality in place (num_modalities = 1), got {missing_rate}")
    if lacking is not None:
        _require_lacking(lacking, num_modalities, modalities_per_device)
    held = np.ones((num_devices, num_modalities), dtype=np.bool_)
    incomplete = generator.permutation(num_devices)[:count]
    if lacking is not None:
        held[incomplete, lacking] = False
        return held
    if num_modalities == 2:
        first = int(generator.integers(2))
        for position, device in enumerate(incomplete):
            held[device, (first + position) % 2] = False
    else:
        for device in incomplete:
            size = int(generator.integers(least, most + 1))
            held[device] = False
            held[device, generator.choice(num_modalities, size=size, replace=False)] = True
    _spread_holders(held, generator)
    return held


def _set_sizes(num_modalities: int, modalities_per_device: tuple[int, int] | None) -> tuple[int, int]:
    if modalities_per_device is None:
        return 1, num_modalities - 1
    valid = len(modalities_per_device) == 2 and all(isinstance(size, int) for size in modalities_per_device)
    if not valid or not 1 <= modalities_per_device[0] <= modalities_per_device[1] < num_modalities:
        raise ValueError(
            "modalities_per_device must be (least, most) with 1 <= least <= most < num_modalities = "
            f"{num_modalities}, got {modalities_per_device}"
        )
    return modalities_per_device


def _require_lacking(lacking: int, num_modalities: int, modalities_per_device: tuple[int, int] | None) -> None:
    if not 0 <= lacking < num_modalities:
        raise ValueError(f"lacking must be a modality in 0..{num_modalities - 1}, got {lacking}")
    if modalities_per_device is not None:
        raise ValueError(f"modalities_per_device must be None where lacking is given, got {modalities_per_device}")


def _spread_holders(held: npt.NDArray[np.bool_], generator: np.random.Generator) -> None:
    """Swap modalities, in place, until each has two holders or counts differ by at most one.

    A swap always exists: the common modality has more holders than the rare one, so some device holds only the first.
    """
    while True:
        holders = held.sum(axis=0)
        rare, common = int(holders.argmin()), int(holders.argmax())
        if holders[rare] >= 2 or holders[common] - holders[rare] < 2:
            return
        device = generator.choice(np.flatnonzero(held[:, common] & ~held[:, rare]))
        held[device, [common, rare]] = False, True


def _integer_vector(argument: str, values: npt.ArrayLike) -> IndexArray:
    array = np.asarray(values)
    if array.ndim != 1 or array.size == 0 or not np.issubdtype(array.dtype, np.integer):
        raise ValueError(
            f"{argument} must be a non-empty vector of integers, got shape {array.shape}, dtype {array.dtype}"
        )
    return array.astype(np.int64)


def _require_count(argument: str, value: int, least: int = 1) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, np.integer)) or value < least:
        raise ValueError(f"{argument} must be an integer of at least {least}, got {value!r}")


def _require_generator(generator: np.random.Generator) -> None:
    if not isinstance(generator, np.random.Generator):
        raise ValueError(f"generator must be a numpy.random.Generator, got {type(generator).__name__}")
