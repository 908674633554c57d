"""The generator as a network, trained by the heads that a device received (METHOD 3)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any, NamedTuple

import torch

from dmmlkd_ext.model.generator import FeatureGenerator
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.guide.base import GENERATOR, FeatureMoments, GeneratorConfig, Guidance
from dmmlkd_ext.training.guide.heads import ReceivedHeads

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8
CHUNK = 64  # devices that learn together, a thread: what they hold stays in the cache


class NetworkGuidance(Guidance):
    """G(e, y; theta): learns after each exchange, is mixed in the next one, and is frozen while it guides."""

    def __init__(self, config: GeneratorConfig, num_classes: int, feature_width: int, seed: int) -> None:
        super().__init__(config, num_classes, feature_width, seed)
        self.generator = FeatureGenerator(num_classes, feature_width, config.noise_width, config.hidden_width)
        self.layout = self.generator.layout
        self._second_moment: torch.Tensor | None = None  # of Adam; the first one is the block's momentum
        self._steps: torch.Tensor | None = None  # that each device has taken: some sit rounds out

    @property
    def round_macs(self) -> float:
        """Multiply-accumulates of the forward passes of a round's learning on one device."""
        return self.config.steps * self.config.samples_per_class * self.num_classes * self.generator.forward_macs

    def _labels(self, copies: int) -> torch.Tensor:
        return torch.arange(self.num_classes).repeat_interleave(copies)

    @torch.no_grad()
    def generate(self, parameters: torch.Tensor, round_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [devices, classes, n, d], all of which mean something."""
        copies, draw = self.config.pool_per_class, torch_generator(self.seed, "generator pool", round_index)
        noise = torch.randn(self.num_classes * copies, self.config.noise_width, generator=draw)
        features, _ = self.generator.trace(self.layout.views(parameters), noise, self._labels(copies))
        pool = features.unflatten(1, (self.num_classes, copies))
        return pool, torch.ones(pool.shape[:2], dtype=torch.bool)

    def after_exchange(
        self,
        population: Population,
        moments: FeatureMoments,
        heads: GossipWeights,
        learns: torch.Tensor,
        round_index: int,
    ) -> None:
        """Take the steps of Adam on the mixed parameters of the devices that may learn."""
        block, draw = population.blocks[GENERATOR], torch_generator(self.seed, "generator training", round_index)
        if self._second_moment is None or self._steps is None:
            self._second_moment, self._steps = torch.zeros_like(block.start), torch.zeros(len(block.start), 1)
        shape = (self.num_classes * self.config.samples_per_class, self.config.noise_width)
        noise = [torch.randn(shape, generator=draw) for _ in range(self.config.steps)]
        for rows in learns.nonzero().flatten().split(CHUNK * torch.get_num_threads()):
            targets = _MomentTargets.of(moments, rows)
            parameters, first, second = block.start[rows], block.momentum[rows], self._second_moment[rows]
            seen = moments.count_at_hand if self.config.weigh_heads else None
            received = ReceivedHeads.of(population, heads, rows, seen)
            self._learn(parameters, first, second, self._steps[rows], received, targets, noise)
            block.start[rows], block.momentum[rows], self._second_moment[rows] = parameters, first, second
        self._steps[learns] += self.config.steps

    @torch.no_grad()
    def _learn(
        self,
        parameters: torch.Tensor,
        first: torch.Tensor,
        second: torch.Tensor,
        steps: torch.Tensor,
        received: ReceivedHeads,
        targets: _MomentTargets,
        noises: Sequence[torch.Tensor],
    ) -> None:
        """Take steps of Adam, one a noise, on rows of parameters and moments, in place."""
        labels, gradient = self._labels(self.config.samples_per_class), torch.empty_like(parameters)
        for step, noise in enumerate(noises, start=1):
            features, pull_back = self.generator.trace(self.layout.views(parameters), noise, labels)
            pull_back(self._feature_gradient(features, noise, labels, received, targets), self.layout.views(gradient))
            first.mul_(ADAM_BETAS[0]).add_(gradient, alpha=1 - ADAM_BETAS[0])
            second.mul_(ADAM_BETAS[1]).addcmul_(gradient, gradient, value=1 - ADAM_BETAS[1])
            scale = (second / (1 - ADAM_BETAS[1] ** (steps + step))).sqrt_().add_(ADAM_EPSILON)
            scale.mul_(1 - ADAM_BETAS[0] ** (steps + step))
            parameters.addcdiv_(first, scale, value=-self.config.learning_rate)

    def _feature_gradient(
        self,
        features: torch.Tensor,
        noise: torch.Tensor,
        labels: torch.Tensor,
        received: ReceivedHeads,
        targets: _MomentTargets,
    ) -> torch.Tensor:
        """Return the gradient of each device's loss: what the heads say, the moments' distance, the mode seeking."""
        shape = (self.num_classes, self.config.samples_per_class)
        _, gradient = received.entropy(features, labels)
        by_class = features.unflatten(1, shape)
        if self.config.moment_weight:
            gradient.add_(targets.distance_gradient(by_class).flatten(1, 2), alpha=self.config.moment_weight)
        if self.config.mode_seeking:
            seeking = _mode_seeking_gradient(by_class, noise.unflatten(0, shape))
            gradient.add_(seeking.flatten(1, 2), alpha=self.config.mode_seeking)
        return gradient

    def state_dict(self) -> dict[str, Any]:
        """Return the rest of Adam's state."""
        return {"second_moment": self._second_moment, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        second, steps = state["second_moment"], state["steps"]
        self._second_moment = None if second is None else second.clone()
        self._steps = None if steps is None else steps.clone()


class _MomentTargets(NamedTuple):
    """Means and variances by class of a device's own features, [devices, classes, d], and what each class weighs.

    Classes of which a device saw fewer than two features do not count.
    """

    mean: torch.Tensor
    variance: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, moments: FeatureMoments, rows: torch.Tensor) -> _MomentTargets:
        seen = (moments.count[rows] > 1).to(moments.sum.dtype)
        weight = seen / seen.sum(1, keepdim=True).clamp_min(1) / moments.sum.shape[-1]
        return cls(moments.mean()[rows], moments.variance()[rows], weight[..., None, None])

    def distance_gradient(self, features: torch.Tensor) -> torch.Tensor:
        """Return the gradient of the squared distance of means and variances of [devices, classes, n, d]."""
        mean = features.mean(2, keepdim=True)
        centered = features - mean
        variance = centered.square().mean(2, keepdim=True)
        # d variance / d feature = 2 centered / n
        apart = (mean - self.mean.unsqueeze(2)) + 2 * (variance - self.variance.unsqueeze(2)) * centered
        return apart.mul_(self.weight * (2 / features.shape[2]))


def _mode_seeking_gradient(features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the gradient of the mode-seeking term for features [devices, classes, n, d].

    The term is the inverse of how much features of a class differ for how much their noise differs, at most 1000.
    """
    half = features.shape[2] // 2
    apart = features[:, :, :half] - features[:, :, half:]
    asked = (noise[:, :half] - noise[:, half:]).abs().mean(-1).clamp_min(1e-6)
    term = 1 / ((apart.abs().mean(-1) / asked).mean((1, 2)) + 1e-5)
    slope = -term.square() * (term <= 1e3) / (asked.numel() * features.shape[3])
    pull = apart.sign_().mul_(slope[:, None, None, None] / asked.unsqueeze(-1))
    return torch.cat([pull, -pull], 2)
