"""The generator G(e, y; theta) of modality-common features (METHOD 3), batched over devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import one_hot

from dmmlkd_ext.model.direct import Layers, PullBack, linear_layers_backward, linear_layers_forward
from dmmlkd_ext.model.encoders import rectifier_scale
from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec


@dataclass(frozen=True)
class FeatureGenerator:
    """A two-layer perceptron from noise and label to a common feature.

    That a generator learns the conditional distribution of the common features is the paper's [P], its form ours [C]
    (METHOD 3).

    Example:
        >>> generator = FeatureGenerator(num_classes=3, feature_width=4, noise_width=2, hidden_width=8)
        >>> weights = generator.layout.views(torch.zeros(5, generator.layout.size))
        >>> generator.forward(weights, torch.zeros(6, 2), torch.tensor([0, 0, 1, 1, 2, 2])).shape
        torch.Size([5, 6, 4])
    """

    num_classes: int
    feature_width: int
    noise_width: int = 16
    hidden_width: int = 64

    @cached_property
    def layout(self) -> BlockLayout:
        """Parameters theta of one device."""
        inputs, hidden, width = self.noise_width + self.num_classes, self.hidden_width, self.feature_width
        return BlockLayout(
            {
                "weight1": ParameterSpec((inputs, hidden), rectifier_scale(inputs)),
                "bias1": ParameterSpec((hidden,), 0.0),
                "weight2": ParameterSpec((hidden, width), hidden**-0.5),
                "bias2": ParameterSpec((width,), 0.0),
            }
        )

    @property
    def forward_macs(self) -> int:
        """Multiply-accumulates of one generated feature."""
        return (self.noise_width + self.num_classes + self.feature_width) * self.hidden_width

    def forward(self, weights: Mapping[str, torch.Tensor], noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return features [devices, n, d] from noise [n, noise_width] and labels [n], int64, alike for all devices."""
        hidden = linear(self._inputs(weights, noise, labels), weights["weight1"], weights["bias1"]).relu()
        return linear(hidden, weights["weight2"], weights["bias2"])

    def trace(
        self, weights: Mapping[str, torch.Tensor], noise: torch.Tensor, labels: torch.Tensor
    ) -> tuple[torch.Tensor, PullBack]:
        """Return what `forward` returns, and what writes the gradients of the parameters for a gradient of it."""
        inputs = self._inputs(weights, noise, labels)
        layers = self._layers(weights)
        outputs = linear_layers_forward(inputs, layers, rectified=1)

        def pull_back(gradient: torch.Tensor, into: Mapping[str, torch.Tensor]) -> None:
            linear_layers_backward(gradient, inputs, layers, outputs, self._layers(into), rectified=1)

        return outputs[-1], pull_back

    def _layers(self, values: Mapping[str, torch.Tensor]) -> Layers:
        return Layers([values["weight1"], values["weight2"]], [values["bias1"], values["bias2"]])

    def _inputs(self, weights: Mapping[str, torch.Tensor], noise: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        inputs = torch.cat([noise, one_hot(labels, self.num_classes).to(noise.dtype)], 1)
        return inputs.expand(len(weights["bias1"]), *inputs.shape)
