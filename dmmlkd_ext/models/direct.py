"""Linear layers whose gradients are written where the caller wants them: into the rows of a block.

What automatic differentiation returns would have to be copied there, and it takes an operator a step. Bias and
rectifier come in the same pass.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch

from dmmlkd_ext.models.layers import linear
from dmmlkd_ext.ops import backend

PullBack = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], None]
"""Takes the gradient of what was computed, and writes those of the parameters over the tensors of their names."""


def _native(tensor: torch.Tensor) -> bool:
    return backend() == "native" and tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


@torch.no_grad()
def linear_forward(
    inputs: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None, rectify: bool = False
) -> torch.Tensor:
    """Apply each device's own linear map, then a rectifier if asked for; outside of automatic differentiation.

    Args:
        inputs: [devices, samples, in], float32 or float64.
        weight: [devices, in, out].
        bias: [devices, out] or None.
        rectify: whether negative outputs become 0.

    Returns:
        [devices, samples, out].

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.

    Source:
        METHOD 2, like `dmmlkd_ext.models.layers.linear`.

    Example:
        >>> linear_forward(torch.ones(1, 1, 2), torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]), rectify=True)
        tensor([[[2., 0.]]])
    """
    if _native(inputs):
        outputs: torch.Tensor = torch.ops.dmmlkd.linear_forward(inputs, weight, bias, rectify)
        return outputs
    outputs = linear(inputs, weight, bias)
    return outputs.relu_() if rectify else outputs


@torch.no_grad()
def linear_backward(
    inputs: torch.Tensor,
    weight: torch.Tensor,
    outputs: torch.Tensor | None,
    gradient: torch.Tensor,
    weight_gradient: torch.Tensor,
    bias_gradient: torch.Tensor | None = None,
    with_input_gradient: bool = True,
) -> torch.Tensor:
    """Write the gradients of a layer's parameters, and return that of its inputs.

    Args:
        inputs: [devices, samples, in].
        weight: [devices, in, out].
        outputs: [devices, samples, out] of a rectified layer; None for another.
        gradient: of the outputs, [devices, samples, out].
        weight_gradient: overwritten, [devices, in, out], contiguous in each device.
        bias_gradient: overwritten, [devices, out], or None.
        with_input_gradient: whether that of the inputs is wanted; without, an empty tensor is returned.

    Returns:
        [devices, samples, in].

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.

    Source:
        Back-propagation (Rumelhart et al. 1986) through the layers of METHOD 2.

    Example:
        >>> into = torch.empty(1, 2, 1)
        >>> linear_backward(torch.tensor([[[2.0, 3.0]]]), torch.ones(1, 2, 1), None, torch.ones(1, 1, 1), into)
        tensor([[[1., 1.]]])
        >>> into.flatten()
        tensor([2., 3.])
    """
    if _native(inputs):
        result: torch.Tensor = torch.ops.dmmlkd.linear_backward_(
            inputs, weight, outputs, gradient, weight_gradient, bias_gradient, with_input_gradient
        )
        return result
    if outputs is not None:
        gradient = gradient.where(~(outputs <= 0), 0)
    weight_gradient.copy_(torch.bmm(inputs.transpose(1, 2), gradient))
    if bias_gradient is not None:
        bias_gradient.copy_(gradient.sum(1))
    return torch.bmm(gradient, weight.transpose(1, 2)) if with_input_gradient else gradient.new_empty(0)
