"""Layers of all devices at once: weights and inputs carry a leading dimension of devices."""

from __future__ import annotations

import torch


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply each device's own linear map.

    Args:
        inputs: [devices, rows, in], any floating dtype.
        weight: [devices, in, out].
        bias: [devices, out] or None.

    Returns:
        [devices, rows, out].

    Raises:
        RuntimeError: the shapes or dtypes do not match, by torch.

    Source:
        METHOD 2: the projections A_m and C_m, the classifier heads, and the layers of perceptrons [C].

    Example:
        >>> linear(torch.ones(2, 4, 3), torch.ones(2, 3, 5)).shape
        torch.Size([2, 4, 5])
    """
    if bias is None:
        return torch.bmm(inputs, weight)
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight)
