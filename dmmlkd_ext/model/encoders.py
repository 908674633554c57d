"""Encoders phi_m of METHOD 2 [C]: chosen by the shape of a modality's features, batched over devices."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import NamedTuple, Protocol

import torch

from dmmlkd_ext.model.layers import convolve, linear
from dmmlkd_ext.model.layout import ParameterSpec


class EncoderLayers(NamedTuple):
    """The rectified layers of an encoder, in order; their parameters are `weight1`, `bias1`, ..."""

    kernel: int
    """Width of the window of convolutions; 0 for linear layers."""
    stride: int
    """Stride of convolutions."""
    widths: tuple[int, ...]
    """Outputs, or output channels, of each layer."""


class Encoder(Protocol):
    """The interface of a modality's encoder."""

    @property
    def layers(self) -> EncoderLayers | None:
        """The layers, for native code; None if it cannot run them."""

    @property
    def output_features(self) -> int:
        """Width of the encoding z."""

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of a forward pass of one sample."""

    def parameters(self) -> dict[str, ParameterSpec]:
        """Return the parameters of one device."""

    def forward(self, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return z [devices, samples, output_features] of inputs [devices, samples, *shape]."""


def rectifier_scale(fan_in: int) -> float:
    """Return the standard deviation that keeps the variance through a rectifier (He et al. 2015).

    Example:
        >>> rectifier_scale(8)
        0.5
    """
    return math.sqrt(2 / fan_in)


@dataclass(frozen=True)
class PerceptronEncoder:
    """Two rectified linear layers, for vectors (METHOD 2 [C]).

    Example:
        >>> PerceptronEncoder(input_features=10, hidden_width=64).forward_macs
        4736
    """

    input_features: int
    hidden_width: int

    @property
    def layers(self) -> EncoderLayers:
        """What native code has to know of it."""
        return EncoderLayers(0, 1, (self.hidden_width, self.hidden_width))

    @property
    def output_features(self) -> int:
        """Width of the encoding z."""
        return self.hidden_width

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of a forward pass of one sample."""
        return (self.input_features + self.hidden_width) * self.hidden_width

    def parameters(self) -> dict[str, ParameterSpec]:
        """Return the parameters of one device."""
        width = self.hidden_width
        return {
            "weight1": ParameterSpec((self.input_features, width), rectifier_scale(self.input_features)),
            "bias1": ParameterSpec((width,), 0.0),
            "weight2": ParameterSpec((width, width), rectifier_scale(width)),
            "bias2": ParameterSpec((width,), 0.0),
        }

    def forward(self, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return z [devices, samples, hidden_width] of inputs [devices, samples, input_features]."""
        hidden = linear(inputs, weights["weight1"], weights["bias1"]).relu()
        return linear(hidden, weights["weight2"], weights["bias2"]).relu()


@dataclass(frozen=True)
class ConvolutionalEncoder:
    """Strided convolutions (METHOD 2 and 8 [C]): over time, then averaged over it; over images, then flattened.

    Inputs are [channels, time] or [channels, height, width].

    Example:
        >>> ConvolutionalEncoder((3, 128), channels=(16, 32)).output_features
        32
        >>> ConvolutionalEncoder((1, 28, 28), channels=(8, 16, 32), kernel=3).output_features
        512
    """

    input_shape: tuple[int, ...]
    channels: tuple[int, ...]
    kernel: int = 5
    stride: int = 2

    @property
    def layers(self) -> EncoderLayers:
        """What native code has to know of it."""
        return EncoderLayers(self.kernel, self.stride, self.channels)

    @property
    def dimensions(self) -> int:
        """Spatial dimensions: 1 for time, 2 for images."""
        return len(self.input_shape) - 1

    @property
    def spaces(self) -> list[tuple[int, ...]]:
        """Spatial sizes after each layer."""
        space, spaces = self.input_shape[1:], []
        for _ in self.channels:
            space = tuple(math.ceil(size / self.stride) for size in space)
            spaces.append(space)
        return spaces

    @property
    def output_features(self) -> int:
        """Width of the encoding z."""
        return self.channels[-1] * (1 if self.dimensions == 1 else math.prod(self.spaces[-1]))

    @property
    def fan_ins(self) -> list[int]:
        """Values in a window of each layer."""
        inputs = (self.input_shape[0], *self.channels[:-1])
        return [self.kernel**self.dimensions * channels for channels in inputs]

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of a forward pass of one sample."""
        layers = zip(self.spaces, self.fan_ins, self.channels, strict=True)
        return sum(math.prod(space) * fan_in * channels for space, fan_in, channels in layers)

    def parameters(self) -> dict[str, ParameterSpec]:
        """Return the parameters of one device."""
        specs = {}
        for layer, (fan_in, channels) in enumerate(zip(self.fan_ins, self.channels, strict=True), start=1):
            specs[f"weight{layer}"] = ParameterSpec((fan_in, channels), rectifier_scale(fan_in))
            specs[f"bias{layer}"] = ParameterSpec((channels,), 0.0)
        return specs

    def forward(self, weights: Mapping[str, torch.Tensor], inputs: torch.Tensor) -> torch.Tensor:
        """Return z [devices, samples, output_features] of inputs [devices, samples, channels, *space]."""
        hidden = inputs.movedim(2, -1)
        for layer in range(1, len(self.channels) + 1):
            weight, bias = weights[f"weight{layer}"], weights[f"bias{layer}"]
            hidden = convolve(hidden, weight, bias, self.kernel, self.stride, rectify=True)
        return hidden.mean(2) if self.dimensions == 1 else hidden.flatten(2)


def make_encoder(shape: tuple[int, ...], hidden_width: int) -> Encoder:
    """Return the encoder for a modality's feature shape (METHOD 8 [C]).

    Vectors get a perceptron, [channels, time] two convolutions of 16 and 32 channels, [channels, height, width]
    three of 8, 16 and 32 with a smaller window.

    Raises:
        ValueError: `shape` has not one, two or three dimensions.

    Example:
        >>> make_encoder((76,), 64)
        PerceptronEncoder(input_features=76, hidden_width=64)
    """
    if len(shape) == 1:
        return PerceptronEncoder(shape[0], hidden_width)
    if len(shape) == 2:
        return ConvolutionalEncoder(shape, channels=(16, 32))
    if len(shape) == 3:
        return ConvolutionalEncoder(shape, channels=(8, 16, 32), kernel=3)
    raise ValueError("shape must be [features], [channels, time] or [channels, height, width], got " + str(list(shape)))
