"""A normal distribution per class instead of a generator: means and covariances, mixed like parameters."""

from __future__ import annotations

from typing import TYPE_CHECKING

import torch

from dmmlkd_ext.model.layout import BlockLayout, ParameterSpec
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.guide.base import GENERATOR, FeatureMoments, GeneratorConfig, Guidance

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population

RIDGE = 1e-4  # on the diagonal: a class seen a few times has a singular covariance


class GaussianGuidance(Guidance):
    """Means and covariances of the common features by class, with a weight for the features seen [C].

    Each device blends the statistics of the classes that it saw with the round's; mixing spreads them. Weighted
    values and weights are mixed and then divided, so that devices without features of a class do not change it.
    """

    full_moments = True

    def __init__(self, config: GeneratorConfig, num_classes: int, feature_width: int, seed: int) -> None:
        super().__init__(config, num_classes, feature_width, seed)
        self.layout = BlockLayout(
            {
                "weight": ParameterSpec((num_classes, 1), 0.0),
                "mean": ParameterSpec((num_classes, feature_width), 0.0),
                "covariance": ParameterSpec((num_classes, feature_width, feature_width), 0.0),
            }
        )

    def generate(self, parameters: torch.Tensor, round_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features drawn from each class's distribution, and which classes have one."""
        views = self.layout.views(parameters)
        known = views["weight"].squeeze(-1) > 1e-3
        weight = views["weight"].where(known.unsqueeze(-1), 1)
        covariance = views["covariance"] / weight.unsqueeze(-1)
        identity = torch.eye(self.feature_width, dtype=parameters.dtype, device=parameters.device)
        factor, failed = torch.linalg.cholesky_ex(covariance + RIDGE * identity)
        # Rounding may make a covariance not positive definite; its diagonal alone always is.
        diagonal = covariance.diagonal(dim1=-2, dim2=-1).clamp_min(0).sqrt().diag_embed()
        factor = torch.where((failed != 0)[..., None, None], diagonal, factor)
        draw = torch_generator(self.seed, "generator pool", round_index)
        shape = (self.num_classes, self.config.pool_per_class, self.feature_width)
        noise = torch.randn(shape, generator=draw, dtype=parameters.dtype).to(parameters.device)
        return (views["mean"] / weight).unsqueeze(2) + noise @ factor.transpose(-2, -1), known

    def before_exchange(self, population: Population, moments: FeatureMoments) -> None:
        """Blend the statistics of the classes that each device saw with the round's."""
        views = self.layout.views(population.blocks[GENERATOR].local)
        rate = self.config.update_rate * (moments.count > 1).to(moments.sum.dtype).unsqueeze(-1)
        views["weight"].lerp_(torch.ones_like(views["weight"]), rate)
        views["mean"].lerp_(moments.mean(), rate)
        views["covariance"].lerp_(moments.variance(), rate.unsqueeze(-1))
