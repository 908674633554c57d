"""The random generators of a run: one seed, one independent stream per purpose."""

from __future__ import annotations

import zlib

import numpy as np
import torch


def _sequence(seed: int, purpose: str, indices: tuple[int, ...]) -> np.random.SeedSequence:
    if seed < 0:
        raise ValueError(f"seed must be at least 0, got {seed}")
    return np.random.SeedSequence([seed, zlib.crc32(purpose.encode()), *indices])


def numpy_generator(seed: int, purpose: str, *indices: int) -> np.random.Generator:
    """Return the NumPy generator of one purpose of a run, e.g. ``("partition",)`` or ``("fading", round)``.

    Streams of different purposes or indices are independent: drawing more from one never changes another, and all
    methods of a repetition see the same data.

    Args:
        seed: the run's seed, at least 0.
        purpose: name of what is drawn.
        indices: further identifiers of the stream, such as the round; each at least 0.

    Raises:
        ValueError: ``seed`` or an index is negative.

    Example:
        >>> int(numpy_generator(0, "partition").integers(100)) == int(
        ...     numpy_generator(0, "partition").integers(100))
        True
    """
    return np.random.Generator(np.random.Philox(_sequence(seed, purpose, indices)))


def torch_generator(seed: int, purpose: str, *indices: int) -> torch.Generator:
    """Return the torch CPU generator of one purpose of a run; see `numpy_generator`.

    Example:
        >>> a = torch.rand(2, generator=torch_generator(0, "initialization"))
        >>> b = torch.rand(2, generator=torch_generator(0, "initialization"))
        >>> torch.equal(a, b)
        True
    """
    state = _sequence(seed, purpose, indices).generate_state(1, np.uint64)[0]
    return torch.Generator().manual_seed(int(state) & (2**63 - 1))
