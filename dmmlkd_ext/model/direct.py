"""Layers whose gradients are written where the caller wants them: into the rows of a block.

What automatic differentiation returns would have to be copied there, and it takes an operator a step.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple

import torch

from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.ops.native import simulates_natively

PullBack = Callable[[torch.Tensor, Mapping[str, torch.Tensor]], None]
"""Takes the gradient of what was computed, and writes those of the parameters over the tensors of their names."""


class Layers(NamedTuple):
    """Parameters of layers on top of each other; or, of the same shapes, where their gradients are written.

    Example:
        >>> Layers([torch.ones(1, 2, 3), torch.ones(1, 3, 1)], [torch.ones(1, 3)]).weights[1].shape
        torch.Size([1, 3, 1])
    """

    weights: Sequence[torch.Tensor]
    """Of each layer. Linear: [devices, in, out]; convolution: [devices, kernel ** dimensions * channels, out channels].
    Gradients: contiguous in each device."""
    biases: Sequence[torch.Tensor]
    """Of the first layers, [devices, out]; of a convolution, of all."""


def linear_layers_forward(inputs: torch.Tensor, layers: Layers, rectified: int) -> list[torch.Tensor]:
    """Apply each device's own linear maps on top of each other; outside of automatic differentiation.

    Natively each device goes through all layers before the next one begins, so that what passes between layers is
    still in the cache; bias and rectifier come in the same pass.

    Args:
        inputs: [devices, samples, in], float32 or float64.
        layers: linear; those without a bias come last.
        rectified: how many of the first layers are followed by a rectifier.

    Returns:
        The outputs of each layer, [devices, samples, out].

    Raises:
        ValueError: a shape, a dtype or the number of tensors does not fit; the message names it.

    Source:
        METHOD 2, like `dmmlkd_ext.model.layers.linear`.

    Example:
        >>> weights = [torch.tensor([[[1.0, -1.0], [1.0, -1.0]]]), torch.ones(1, 2, 1)]
        >>> linear_layers_forward(torch.ones(1, 1, 2), Layers(weights, [torch.ones(1, 2)]), rectified=1)
        [tensor([[[3., 0.]]]), tensor([[[3.]]])]
    """
    if simulates_natively(inputs):
        outputs: list[torch.Tensor] = torch.ops.dmmlkd.linear_layers(inputs, *layers, rectified)
        return outputs
    return linear_layers_forward_reference(inputs, layers, rectified)


@torch.no_grad()
def linear_layers_forward_reference(inputs: torch.Tensor, layers: Layers, rectified: int) -> list[torch.Tensor]:
    """Do what `linear_layers_forward` does, by operations of torch.

    Example:
        >>> linear_layers_forward_reference(torch.ones(1, 1, 2), Layers([-torch.ones(1, 2, 1)], []), rectified=1)
        [tensor([[[0.]]])]
    """
    outputs = [inputs]
    for layer, weight in enumerate(layers.weights):
        bias = layers.biases[layer] if layer < len(layers.biases) else None
        values = linear(outputs[-1], weight, bias)
        outputs.append(values.relu_() if layer < rectified else values)
    return outputs[1:]


def linear_layers_backward(
    upstream: torch.Tensor,
    inputs: torch.Tensor,
    layers: Layers,
    outputs: Sequence[torch.Tensor],
    into: Layers,
    rectified: int,
    with_inputs: bool = False,
) -> torch.Tensor:
    """Write the gradients of all parameters of `linear_layers_forward`, and return that of its inputs.

    Args:
        upstream: gradient of the last outputs, [devices, samples, out].
        inputs: those of the forward pass, like the layers and the number of rectified ones.
        layers: linear.
        outputs: what the forward pass returned.
        into: overwritten by the gradients.
        rectified: how many of the first layers are followed by a rectifier.
        with_inputs: whether the gradient of the inputs is wanted; without, an empty tensor is returned.

    Returns:
        [devices, samples, in].

    Raises:
        ValueError: a shape, a dtype or the number of tensors does not fit; the message names it, and nothing has been
            written then.

    Source:
        Back-propagation (Rumelhart et al. 1986) through the layers of METHOD 2.

    Example:
        >>> inputs, layers = torch.tensor([[[2.0, 3.0]]]), Layers([torch.ones(1, 2, 1)], [])
        >>> into = Layers([torch.empty(1, 2, 1)], [])
        >>> outputs = linear_layers_forward(inputs, layers, rectified=0)
        >>> linear_layers_backward(torch.ones(1, 1, 1), inputs, layers, outputs, into, 0, with_inputs=True)
        tensor([[[1., 1.]]])
        >>> into.weights[0].flatten()
        tensor([2., 3.])
    """
    if simulates_natively(inputs):
        result: torch.Tensor = torch.ops.dmmlkd.linear_layers_backward_(
            upstream, inputs, layers.weights, outputs, *into, rectified, with_inputs
        )
        return result
    return linear_layers_backward_reference(upstream, inputs, layers, outputs, into, rectified, with_inputs)


@torch.no_grad()
def linear_layers_backward_reference(
    upstream: torch.Tensor,
    inputs: torch.Tensor,
    layers: Layers,
    outputs: Sequence[torch.Tensor],
    into: Layers,
    rectified: int,
    with_inputs: bool = False,
) -> torch.Tensor:
    """Do what `linear_layers_backward` does, by operations of torch.

    Example:
        >>> inputs, layers = torch.tensor([[[2.0, 3.0]]]), Layers([torch.ones(1, 2, 1)], [])
        >>> into = Layers([torch.empty(1, 2, 1)], [])
        >>> outputs = linear_layers_forward_reference(inputs, layers, rectified=0)
        >>> linear_layers_backward_reference(torch.ones(1, 1, 1), inputs, layers, outputs, into, 0).numel()
        0
        >>> into.weights[0].flatten()
        tensor([2., 3.])
    """
    below = [inputs, *outputs[:-1]]
    for layer in reversed(range(len(layers.weights))):
        if layer < rectified:
            upstream = upstream.where(~(outputs[layer] <= 0), 0)
        into.weights[layer].copy_(torch.bmm(below[layer].transpose(1, 2), upstream))
        if layer < len(into.biases):
            into.biases[layer].copy_(upstream.sum(1))
        if layer or with_inputs:
            upstream = torch.bmm(upstream, layers.weights[layer].transpose(1, 2))
    return upstream if with_inputs else upstream.new_empty(0)
