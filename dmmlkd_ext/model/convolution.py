"""Convolutions of all devices at once, channels last: native on a CPU, else one grouped convolution of torch."""

from __future__ import annotations

import torch
from torch.nn.functional import conv1d, conv2d

import dmmlkd_ext.ops._convolution  # noqa: F401
from dmmlkd_ext.ops.native import simulates_natively


def convolve(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, kernel: int, stride: int, rectify: bool = False
) -> torch.Tensor:
    """Apply each device's own convolution with "same" zero padding, over one or two dimensions of space.

    Strides of the inputs do not matter: neither inputs with channels first nor ones expanded over the devices are
    copied as a whole. float32 and float64 on a CPU run natively; those are differentiable once.

    Args:
        inputs: [devices, samples, *space, channels], any floating dtype.
        weight: [devices, kernel ** dimensions * channels, out channels].
        bias: [devices, out channels].
        kernel: odd width of the window in every dimension.
        stride: step in every dimension.
        rectify: apply a rectifier to the outputs.

    Returns:
        [devices, samples, *ceil(space / stride), out channels].

    Raises:
        ValueError: the shapes or dtypes do not match, for native inputs; for others torch raises its own error.

    Source:
        The encoders of METHOD 2 and 8 [C]; strided convolutions as in LeCun et al. 1998, without pooling.

    Example:
        >>> convolve(torch.ones(2, 4, 9, 3), torch.ones(2, 15, 6), torch.zeros(2, 6), 5, 2).shape
        torch.Size([2, 4, 5, 6])
    """
    apply = torch.ops.dmmlkd.convolve if simulates_natively(inputs) else convolve_reference
    outputs: torch.Tensor = apply(inputs, weight, bias, kernel, stride, rectify)
    return outputs


def convolve_reference(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, kernel: int, stride: int, rectify: bool = False
) -> torch.Tensor:
    """Do what `convolve` does, by operations of torch.

    All devices are groups of one convolution. Channels come last for the caller; in memory they stay where the
    convolution left them, so that the next one copies nothing.

    Example:
        >>> convolve_reference(torch.ones(1, 1, 3, 1), torch.ones(1, 3, 1), torch.zeros(1, 1), 3, 1).flatten()
        tensor([2., 3., 2.])
    """
    space, devices = inputs.dim() - 3, len(inputs)
    if not devices:  # no groups, which torch refuses
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
