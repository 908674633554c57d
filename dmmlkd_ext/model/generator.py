"""The generator G(e, y; theta) of modality-common features (METHOD 3), batched over devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property

import torch
from torch.nn.functional import one_hot

from dmmlkd_ext.model.encoders import rectifier_scale
from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.ops.native import simulates_natively


@dataclass(frozen=True)
class FeatureGenerator:
    """A two-layer perceptron from noise and label to a common feature.

    Learning the conditional distribution of the common features is the paper's [P], the form is ours [C] (METHOD 3).

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
        """Return features [devices, n, d] from noise [n, noise_width] and labels int64 [n]."""
        inputs = torch.cat([noise, one_hot(labels, self.num_classes).to(noise.dtype)], 1)
        hidden = linear(inputs.expand(len(weights["bias1"]), *inputs.shape), weights["weight1"], weights["bias1"])
        return linear(hidden.relu(), weights["weight2"], weights["bias2"])

    @torch.no_grad()
    def generate(self, parameters: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Return features of all classes, without gradients; natively if possible.

        Args:
            parameters: theta, [devices, layout.size].
            noise: [classes, n, noise_width], the same for all devices.

        Returns:
            [devices, classes, n, d].

        Raises:
            ValueError: a shape or dtype does not fit; the message names the argument.

        Example:
            >>> generator = FeatureGenerator(num_classes=3, feature_width=4, noise_width=2, hidden_width=8)
            >>> generator.generate(torch.zeros(5, generator.layout.size), torch.zeros(3, 7, 2)).shape
            torch.Size([5, 3, 7, 4])
        """
        if simulates_natively(parameters):
            features: torch.Tensor = torch.ops.dmmlkd.generate_features(
                parameters, noise, hidden=self.hidden_width, width=self.feature_width
            )
            return features
        return self.generate_reference(parameters, noise)

    def generate_reference(self, parameters: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
        """Do what `generate` does, in plain torch and with gradients."""
        features = self.forward(self.layout.views(parameters), noise.flatten(0, 1), self.sorted_labels(noise))
        by_class: torch.Tensor = features.unflatten(1, noise.shape[:2])
        return by_class

    def sorted_labels(self, noise: torch.Tensor) -> torch.Tensor:
        """Return the labels of noise [classes, n, noise_width], int64 [classes * n]."""
        return torch.arange(self.num_classes, device=noise.device).repeat_interleave(noise.shape[1])
