"""A batch of every device, read from the data in one pass."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dmmlkd_ext.ops.native import simulates_natively


class SharedNoise(NamedTuple):
    """Noise that all devices read from one table, each at a place of its own."""

    table: torch.Tensor
    """[values], at least as long as a batch; of the dtype of the data."""
    offsets: torch.Tensor
    """int64 [all devices], at least 0: where a device's batch begins in the table, modulo the number of places where a
    whole batch can begin."""


def gather_samples(
    values: torch.Tensor, indices: torch.Tensor, devices: torch.Tensor, noise: SharedNoise | None = None
) -> torch.Tensor:
    """Return the batches of some devices, with noise if asked for.

    Args:
        values: the data, [samples, *shape], float32 or float64.
        indices: int64 [all devices, batch]: which samples a device's batch is.
        devices: int64 [n]: whose batches are wanted.
        noise: what is added; None is nothing.

    Returns:
        [n, batch, *shape].

    Raises:
        ValueError: on a CPU, natively: a shape, dtype or index does not fit; the message names it.

    Source:
        METHOD 8 [C]: batches with noise on their inputs; one table of noise for all as in Salimans et al. 2017.

    Example:
        >>> values, indices = torch.tensor([[1.0], [2.0], [3.0]]), torch.tensor([[2, 0], [1, 1]])
        >>> gather_samples(values, indices, torch.tensor([1, 0]))[..., 0]
        tensor([[2., 2.],
                [3., 1.]])
        >>> noise = SharedNoise(torch.tensor([0.5, 0.25, 0.0]), torch.tensor([1, 2]))
        >>> gather_samples(values, indices, torch.tensor([0, 1]), noise)[..., 0]
        tensor([[3.2500, 1.0000],
                [2.5000, 2.2500]])
    """
    if not simulates_natively(values):
        return gather_samples_reference(values, indices, devices, noise)
    samples: torch.Tensor = torch.ops.dmmlkd.gather_samples(values, indices, devices, *(noise or (None, None)))
    return samples


def gather_samples_reference(
    values: torch.Tensor, indices: torch.Tensor, devices: torch.Tensor, noise: SharedNoise | None = None
) -> torch.Tensor:
    """Do what `gather_samples` does, by operations of torch.

    Example:
        >>> gather_samples_reference(torch.eye(2), torch.tensor([[1, 0]]), torch.tensor([0]))
        tensor([[[0., 1.],
                 [1., 0.]]])
    """
    own = indices[devices]
    rows = values.index_select(0, own.flatten())  # copies whole rows
    samples: torch.Tensor = rows.unflatten(0, own.shape)
    if noise is None:
        return samples
    windows = noise.table.unfold(0, samples.shape[1:].numel(), 1)
    return samples + windows[noise.offsets[devices] % len(windows)].view_as(samples)
