"""One prototype per class instead of a generator, as in FedProto (Tan et al. 2022)."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.training.guide.base import GENERATOR, FeatureMoments, GeneratorConfig, Guidance

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population


class PrototypeGuidance(Guidance):
    """The mean common feature of each class, mixed like parameters, weighted by the features seen."""

    by_distance = True

    def __init__(self, config: GeneratorConfig, num_classes: int, feature_width: int, seed: int) -> None:
        super().__init__(config, num_classes, feature_width, seed)
        self.layout = BlockLayout(
            {"weight": ParameterSpec((num_classes, 1), 0.0), "mean": ParameterSpec((num_classes, feature_width), 0.0)}
        )

    def generate(self, parameters: torch.Tensor, round_index: int) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: ARG002
        """Return the prototypes, [devices, classes, 1, d], and which classes have one."""
        views = self.layout.views(parameters)
        known = views["weight"].squeeze(-1) > 1e-3
        return (views["mean"] / views["weight"].where(known.unsqueeze(-1), 1)).unsqueeze(2), known

    def before_exchange(self, population: Population, moments: FeatureMoments) -> None:
        """Blend the prototypes of the classes that each device saw with the round's means."""
        views = self.layout.views(population.blocks[GENERATOR].local)
        rate = self.config.update_rate * (moments.count > 0).to(moments.sum.dtype).unsqueeze(-1)
        views["weight"].lerp_(torch.ones_like(views["weight"]), rate)
        views["mean"].lerp_(moments.mean(), rate)
