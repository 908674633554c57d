"""Layers of all devices at once: weights and inputs carry a leading dimension of devices."""

from __future__ import annotations

import torch
from torch.nn.functional import conv1d, conv2d


def linear(inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
    """Apply each device's linear map.

    Args:
        inputs: [devices, rows, in], any floating dtype.
        weight: [devices, in, out].
        bias: [devices, out] or None.

    Returns:
        [devices, rows, out].

    Raises:
        RuntimeError: the shapes or dtypes do not match (raised by torch).

    Source:
        METHOD 2: the projections A_m and C_m, the classifier heads, and the layers of perceptrons [C].

    Example:
        >>> linear(torch.ones(2, 4, 3), torch.ones(2, 3, 5)).shape
        torch.Size([2, 4, 5])
    """
    if bias is None:
        return torch.bmm(inputs, weight)
    return torch.baddbmm(bias.unsqueeze(1), inputs, weight)


def convolve(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, kernel: int, stride: int, rectify: bool = False
) -> torch.Tensor:
    """Apply each device's convolution with "same" zero padding, over one or two spatial dimensions.

    All devices are groups of one convolution of torch. Channels are the last dimension of the result, but not in
    memory, so that the next convolution needs no copy.

    Args:
        inputs: [devices, samples, *space, channels], any floating dtype and strides.
        weight: [devices, kernel ** dimensions * channels, out channels].
        bias: [devices, out channels].
        kernel: odd width of the window in every dimension.
        stride: stride in every dimension.
        rectify: apply a rectifier to the outputs.

    Returns:
        [devices, samples, *ceil(space / stride), out channels].

    Raises:
        RuntimeError: the shapes or dtypes do not match (raised by torch).

    Source:
        The encoders of METHOD 2 and 8 [C]; strided convolutions as in LeCun et al. 1998, without pooling.

    Example:
        >>> convolve(torch.ones(2, 4, 9, 3), torch.ones(2, 15, 6), torch.zeros(2, 6), 5, 2).shape
        torch.Size([2, 4, 5, 6])
    """
    space, devices = inputs.dim() - 3, len(inputs)
    if not devices:  # torch refuses a convolution without groups
        sizes = [-(-size // stride) for size in inputs.shape[2:-1]]
        return inputs.new_zeros(0, inputs.shape[1], *sizes, weight.shape[2]) + (
            inputs.sum() + weight.sum() + bias.sum()
        )
    channels = weight.shape[1] // kernel**space
    grouped = inputs.movedim(-1, 2).transpose(0, 1).flatten(1, 2)  # [samples, devices * channels, *space]
    windows = weight.unflatten(1, (kernel,) * space + (channels,))
    filters = windows.movedim(-2, 1).movedim(-1, 1).flatten(0, 1)  # [devices * out, channels, *window]
    apply = conv1d if space == 1 else conv2d
    outputs = apply(grouped, filters, bias.flatten(), stride=stride, padding=kernel // 2, groups=devices)
    by_device: torch.Tensor = outputs.unflatten(1, (devices, -1)).transpose(0, 1).movedim(2, -1)
    return by_device.relu() if rectify else by_device
