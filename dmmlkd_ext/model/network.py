"""The decomposed multi-modal network (METHOD 2), batched over devices."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import NamedTuple

import torch

from dmmlkd_ext.model.encoders import Encoder, make_encoder
from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.model.modules import ModuleEncoder, make_module_encoder

SHARED = "shared"
"""Name of the block of the classifier weight on common features, w^_n, which every device has."""


class EncoderNumbers(NamedTuple):
    """The layers of all modalities' encoders, in the flat form that native operators take."""

    kernels: list[int]
    """Width of the convolutions' window of each modality; 0 for linear layers."""
    strides: list[int]
    layers: list[int]
    """Number of layers of each modality."""
    widths: list[int]
    """Outputs of each layer, one modality after the other."""


class ModalityFeatures(NamedTuple):
    """One modality's decomposed features and logits, for the devices that have it."""

    common: torch.Tensor
    """h^_m: [devices, samples, d]."""
    specific: torch.Tensor
    """hˇ_m: [devices, samples, d]."""
    common_logits: torch.Tensor
    """w^_n h^_m: [devices, samples, classes]."""
    specific_logits: torch.Tensor
    """wˇ_{n,m} hˇ_m: [devices, samples, classes]."""


@dataclass(frozen=True)
class MultiModalNetwork:
    """Encoders, projections and heads of all modalities (METHOD 2), without their parameters.

    The block of modality m is {phi_m, A_m, C_m, wˇ_{n,m}}, the block `shared` is {w^_n}. A_m and C_m are stored as one
    projection, so that one product gives both features.

    Example:
        >>> network = MultiModalNetwork({"audio": (20,)}, num_classes=4, feature_width=8, hidden_width=16)
        >>> {name: layout.size for name, layout in network.layouts.items()}
        {'shared': 32, 'audio': 896}
    """

    shapes: Mapping[str, tuple[int, ...]]
    num_classes: int
    feature_width: int
    hidden_width: int
    chosen: Mapping[str, str] = field(default_factory=dict)
    """Registered encoders by modality (`dmmlkd_ext.model.modules`); the rest are chosen by shape."""

    def __post_init__(self) -> None:
        unknown = sorted(set(self.chosen) - set(self.shapes))
        if unknown:
            raise ValueError(f"encoders must be of {', '.join(self.shapes)}; got one of {', '.join(unknown)}")

    @cached_property
    def modalities(self) -> tuple[str, ...]:
        """Names in order."""
        return tuple(self.shapes)

    @cached_property
    def encoders(self) -> dict[str, Encoder]:
        """The encoder of each modality."""
        return {
            name: make_module_encoder(self.chosen[name], tuple(shape))
            if name in self.chosen
            else make_encoder(tuple(shape), self.hidden_width)
            for name, shape in self.shapes.items()
        }

    @property
    def foreign_encoders(self) -> tuple[str, ...]:
        """The modalities whose encoder native code cannot run."""
        return tuple(name for name, encoder in self.encoders.items() if encoder.layers is None)

    @cached_property
    def encoder_numbers(self) -> EncoderNumbers:
        """The encoders, which must all be built in, for native operators."""
        layers = [encoder.layers for encoder in self.encoders.values() if encoder.layers is not None]
        return EncoderNumbers(
            kernels=[encoder.kernel for encoder in layers],
            strides=[encoder.stride for encoder in layers],
            layers=[len(encoder.widths) for encoder in layers],
            widths=[width for encoder in layers for width in encoder.widths],
        )

    @cached_property
    def layouts(self) -> dict[str, BlockLayout]:
        """Parameters of each block, the unit of exchange: `shared`, then the modalities."""
        width, classes = self.feature_width, self.num_classes
        head = ParameterSpec((width, classes), width**-0.5)
        layouts = {SHARED: BlockLayout({"head": head})}
        for name, encoder in self.encoders.items():
            inputs = encoder.output_features
            projection = ParameterSpec((inputs, 2 * width), inputs**-0.5)
            initial = encoder.initialize if isinstance(encoder, ModuleEncoder) else None
            layouts[name] = BlockLayout({**encoder.parameters(), "projection": projection, "head": head}, initial)
        return layouts

    @cached_property
    def forward_macs(self) -> dict[str, int]:
        """Multiply-accumulates of a forward pass of one sample through each modality's block."""
        width, classes = self.feature_width, self.num_classes
        return {
            name: encoder.forward_macs + encoder.output_features * 2 * width + 2 * width * classes
            for name, encoder in self.encoders.items()
        }

    def forward(
        self,
        modality: str,
        weights: Mapping[str, torch.Tensor],
        shared_head: torch.Tensor,
        inputs: torch.Tensor,
    ) -> ModalityFeatures:
        """Return one modality's features and logits.

        Args:
            modality: its name.
            weights: parameters of its block, each [devices, *shape].
            shared_head: w^_n of the same devices, [devices, d, classes].
            inputs: [devices, samples, *shape].
        """
        encoding = self.encoders[modality].forward(weights, inputs)
        features = linear(encoding, weights["projection"])
        common, specific = features.split(self.feature_width, -1)
        return ModalityFeatures(common, specific, linear(common, shared_head), linear(specific, weights["head"]))
