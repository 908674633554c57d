"""The generator as a network, trained by the heads that a device received (METHOD 3)."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.functional import cross_entropy

from dmmlkd_ext.models.generator import FeatureGenerator
from dmmlkd_ext.models.network import SHARED
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.guidance.base import GENERATOR, FeatureMoments, GeneratorConfig, Guidance

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population

ADAM_BETAS = (0.9, 0.999)
ADAM_EPSILON = 1e-8


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
        features = self.generator.forward(self.layout.views(parameters), noise, self._labels(copies))
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
        rows = learns.nonzero().flatten()
        if not len(rows):
            return
        steps = self._steps[rows]
        parameters, first, second = block.start[rows], block.momentum[rows], self._second_moment[rows]
        received = _ReceivedHeads(population, heads, rows, moments.count if self.config.weigh_heads else None)
        for step in range(1, self.config.steps + 1):
            noise = torch.randn(
                self.num_classes * self.config.samples_per_class, self.config.noise_width, generator=draw
            )
            leaf = parameters.requires_grad_()
            loss = self._loss(leaf, noise, received, moments, rows)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
            with torch.no_grad():
                first = torch.lerp(gradient, first, ADAM_BETAS[0])
                second = torch.lerp(gradient.square(), second, ADAM_BETAS[1])
                scale = (second / (1 - ADAM_BETAS[1] ** (steps + step))).sqrt_().add_(ADAM_EPSILON)
                mean = first / (1 - ADAM_BETAS[0] ** (steps + step))
                parameters = torch.addcdiv(parameters, mean, scale, value=-self.config.learning_rate).detach()
        block.start[rows], block.momentum[rows], self._second_moment[rows] = parameters.detach(), first, second
        self._steps[rows] = steps + self.config.steps

    def _loss(
        self,
        parameters: torch.Tensor,
        noise: torch.Tensor,
        received: _ReceivedHeads,
        moments: FeatureMoments,
        rows: torch.Tensor,
    ) -> torch.Tensor:
        """Return each device's loss: what the heads say, the moments' distance, and the mode-seeking term."""
        copies = self.config.samples_per_class
        labels = self._labels(copies)
        features = self.generator.forward(self.layout.views(parameters), noise, labels)
        loss = received.cross_entropy(features, labels)
        by_class = features.unflatten(1, (self.num_classes, copies))
        if self.config.moment_weight:
            loss = loss + self.config.moment_weight * _moment_distance(by_class, moments, rows)
        if self.config.mode_seeking:
            by_class_noise = noise.unflatten(0, (self.num_classes, copies))
            loss = loss + self.config.mode_seeking * _mode_seeking(by_class, by_class_noise)
        return loss

    def state_dict(self) -> dict[str, Any]:
        """Return the rest of Adam's state."""
        return {"second_moment": self._second_moment, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Go on from a `state_dict`."""
        second, steps = state["second_moment"], state["steps"]
        self._second_moment = None if second is None else second.clone()
        self._steps = None if steps is None else steps.clone()


class _ReceivedHeads:
    """The heads that each device received in this exchange, its own among them."""

    def __init__(
        self,
        population: Population,
        weights: GossipWeights,
        devices: torch.Tensor,
        seen: torch.Tensor | None = None,
    ) -> None:
        """Weigh the heads by `seen` [devices, classes]; alike for classes that no sender saw, and without `seen`."""
        sent = population.network.layouts[SHARED].views(population.blocks[SHARED].local)["head"]
        counts = weights.row_pointers.diff()
        receiver = torch.repeat_interleave(counts)
        position = torch.full((len(counts),), -1).index_copy(0, devices, torch.arange(len(devices)))
        wanted = position[receiver] >= 0
        self._receiver = position[receiver][wanted]
        sender = weights.columns[wanted]
        self._heads, self._devices = sent[sender], len(devices)
        weight = torch.ones(len(sender), population.network.num_classes) if seen is None else seen[sender]
        total = weight.new_zeros(len(devices), weight.shape[1]).index_add(0, self._receiver, weight)[self._receiver]
        alike = (1.0 / counts[receiver][wanted].to(weight.dtype)).unsqueeze(1)
        self._share = torch.where(total > 0, weight / total.clamp_min(1), alike)  # [heads, classes]

    def cross_entropy(self, features: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
        """Return the weighted mean over the heads, and the mean over features [devices, n, d], of the cross-entropy."""
        logits = torch.bmm(features[self._receiver], self._heads)
        entropy = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
        means = (entropy.view(logits.shape[:2]) * self._share[:, labels]).mean(1)
        return features.new_zeros(self._devices).index_add(0, self._receiver, means)


def _moment_distance(features: torch.Tensor, moments: FeatureMoments, rows: torch.Tensor) -> torch.Tensor:
    """Return how far generated means and variances by class are from a device's own, [devices].

    Squared differences, a mean over features and over the classes of which the device saw two features or more.
    """
    seen = (moments.count[rows] > 1).to(features.dtype)
    mean, variance = moments.mean()[rows], moments.variance()[rows]
    distance = (features.mean(2) - mean).square() + (features.var(2, correction=0) - variance).square()
    return (distance.mean(-1) * seen).sum(1) / seen.sum(1).clamp_min(1)


def _mode_seeking(features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the inverse of how much features of a class differ for how much their noise differs, [devices]."""
    half = features.shape[2] // 2
    moved = (features[:, :, :half] - features[:, :, half:]).abs().mean(-1)
    asked = (noise[:, :half] - noise[:, half:]).abs().mean(-1)
    return (1 / ((moved / asked.clamp_min(1e-6)).mean((1, 2)) + 1e-5)).clamp_max(1e3)
