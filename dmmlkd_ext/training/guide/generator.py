"""The generator as a network, trained by the heads that a device received (METHOD 3)."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch

from dmmlkd_ext.model.generator import FeatureGenerator
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.ops.native import simulates_natively
from dmmlkd_ext.seeding import torch_generator
from dmmlkd_ext.training.guide.base import GENERATOR, FeatureMoments, GeneratorConfig, Guidance
from dmmlkd_ext.training.guide.heads import ReceivedHeads

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population

ADAM_DECAYS, ADAM_EPSILON = (0.9, 0.999), 1e-8
"""The defaults of Kingma and Ba (2015, algorithm 1)."""

DEVICES_AT_ONCE = 1024
"""Devices whose features and logits the reference holds in memory at a time."""


@dataclass(frozen=True)
class Lesson:
    """The data that a round's generators learn from; tensors of the parameters' dtype and torch device.

    Who learns from whom stays on the CPU.

    Attributes:
        learners: int64 [learners], increasing, on the CPU: the devices that learn.
        steps_taken: float64 [devices], on the CPU: steps of Adam before this round.
        noise: [steps, classes, n, noise_width], the same for all devices.
        heads: [devices at hand, d, classes]: this rank's devices, then their neighbours on other ranks.
        weights: of the exchange, [devices, devices at hand], on the CPU: who received whose head.
        seen: [devices at hand, classes], the weights of the heads by class, or None: equal.
        count: [devices, classes] features that each device saw of each class in the round.
        sum: [devices, classes, d], their sums.
        product: [devices, classes, d], the sums of their squares.
    """

    learners: torch.Tensor
    steps_taken: torch.Tensor
    noise: torch.Tensor
    heads: torch.Tensor
    weights: GossipWeights
    seen: torch.Tensor | None
    count: torch.Tensor
    sum: torch.Tensor
    product: torch.Tensor


@dataclass(frozen=True)
class MomentTargets:
    """Means and variances of each device's features by class, [devices, classes, d]: targets of generated features.

    Attributes:
        mean: 0 where nothing was seen.
        variance: at least 0.
        weight: [devices, classes], with sum 1 per device: equal for the classes of which it saw at least two features.

    Example:
        >>> targets = MomentTargets.of(torch.tensor([[2.0, 1.0]]), torch.ones(1, 2, 3), torch.ones(1, 2, 3))
        >>> targets.weight, targets.distance(torch.zeros(1, 2, 4, 3))
        (tensor([[1., 0.]]), tensor([0.3125]))
    """

    mean: torch.Tensor
    variance: torch.Tensor
    weight: torch.Tensor

    @classmethod
    def of(cls, count: torch.Tensor, sums: torch.Tensor, squares: torch.Tensor) -> MomentTargets:
        """Return the targets from the features' count, sum and sum of squares."""
        seen, divisor = (count > 1).to(sums.dtype), count.clamp_min(1).unsqueeze(-1)
        mean = sums / divisor
        variance = (squares / divisor - mean.square()).clamp_min(0)
        return cls(mean, variance, seen / seen.sum(1, keepdim=True).clamp_min(1))

    def distance(self, features: torch.Tensor) -> torch.Tensor:
        """Return the weighted squared distance of the moments of features [devices, classes, n, d], [devices]."""
        mean = features.mean(2)
        variance = (features - mean.unsqueeze(2)).square().mean(2)
        apart = (mean - self.mean).square() + (variance - self.variance).square()
        return (self.weight * apart.mean(-1)).sum(1)


def mode_seeking(features: torch.Tensor, noise: torch.Tensor) -> torch.Tensor:
    """Return the mode-seeking term [devices] of features [devices, classes, n, d] from noise [classes, n, noise_width].

    It is the distance of noise over that of features (Mao et al. 2019), for pairs of a class's first and second half;
    at most 1000.

    Example:
        >>> mode_seeking(torch.tensor([[[[1.0], [3.0]]]]), torch.tensor([[[0.0], [1.0]]]))
        tensor([0.5000])
    """
    half = noise.shape[1] // 2
    moved = (features[:, :, :half] - features[:, :, half:]).abs().mean(-1)
    asked = (noise[:, :half] - noise[:, half:]).abs().mean(-1).clamp_min(1e-6)
    return (1 / ((moved / asked).mean((1, 2)) + 1e-5)).clamp_max(1e3)


class NetworkGuidance(Guidance):
    """G(e, y; theta): learns after each exchange, is mixed in the next, and is constant during local training."""

    def __init__(self, config: GeneratorConfig, num_classes: int, feature_width: int, seed: int) -> None:
        super().__init__(config, num_classes, feature_width, seed)
        self.generator = FeatureGenerator(num_classes, feature_width, config.noise_width, config.hidden_width)
        self.layout = self.generator.layout
        self._second_moment: torch.Tensor | None = None  # of Adam; the block's momentum is the first
        self._steps: torch.Tensor | None = None  # taken by each device: some skip rounds; on the CPU

    @property
    def round_macs(self) -> float:
        """Multiply-accumulates of a round's forward passes for learning, per device."""
        return self.config.steps * self.config.samples_per_class * self.num_classes * self.generator.forward_macs

    def generate(self, parameters: torch.Tensor, round_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [devices, classes, n, d], valid for all classes."""
        draw = torch_generator(self.seed, "generator pool", round_index)
        pool = self.generator.generate(parameters, self._noise(self.config.pool_per_class, draw).to(parameters))
        return pool, torch.ones(pool.shape[:2], dtype=torch.bool, device=pool.device)

    def _noise(self, copies: int, draw: torch.Generator) -> torch.Tensor:
        noise = torch.randn((self.num_classes * copies, self.config.noise_width), generator=draw)
        by_class: torch.Tensor = noise.unflatten(0, (self.num_classes, copies))
        return by_class

    def after_exchange(
        self,
        population: Population,
        moments: FeatureMoments,
        heads: GossipWeights,
        learns: torch.Tensor,
        round_index: int,
    ) -> None:
        """Take the steps of Adam on the mixed parameters of the devices `learns`."""
        block, draw = population.blocks[GENERATOR], torch_generator(self.seed, "generator training", round_index)
        if self._second_moment is None or self._steps is None:
            self._second_moment = torch.zeros_like(block.start)
            self._steps = block.start.new_zeros(len(block.start), 1, device="cpu")
        self._second_moment = self._second_moment.to(block.start.device)  # a checkpoint is read on the CPU
        if not (learns.any() and self.config.steps):
            return
        noise = [self._noise(self.config.samples_per_class, draw) for _ in range(self.config.steps)]
        seen = moments.count_at_hand if self.config.weigh_heads else None
        sent = population.network.layouts[SHARED].views(population.blocks[SHARED].at_hand)["head"]
        lesson = Lesson(
            learners=learns.nonzero().flatten(),
            steps_taken=self._steps.flatten().double(),
            noise=torch.stack(noise).to(block.start),
            heads=sent if seen is None else sent[: len(seen)],  # links that fail leave room behind the halo
            weights=heads,
            seen=seen,
            count=moments.count,
            sum=moments.sum,
            product=moments.product,
        )
        self.learn(block.start, block.momentum, self._second_moment, lesson)
        self._steps[lesson.learners] += self.config.steps

    def learn(self, theta: torch.Tensor, first: torch.Tensor, second: torch.Tensor, lesson: Lesson) -> None:
        """Take a round's steps of Adam on the rows of the devices that learn, in place.

        `theta` and Adam's moments are [devices, parameters], of any floating dtype, on any torch device.

        Raises:
            ValueError: natively, a shape or dtype does not fit; the message names the argument.

        Source:
            METHOD 3; Adam: Kingma and Ba 2015, algorithm 1.
        """
        if not simulates_natively(theta):
            self.learn_reference(theta, first, second, lesson)
            return
        torch.ops.dmmlkd.generator_round_(
            parameters=theta,
            first_moment=first,
            second_moment=second,
            learners=lesson.learners,
            steps_taken=lesson.steps_taken,
            noise=lesson.noise,
            heads=lesson.heads,
            row_pointers=lesson.weights.row_pointers,
            columns=lesson.weights.columns,
            seen=lesson.seen,
            count=lesson.count,
            sum=lesson.sum,
            product=lesson.product,
            hidden=self.config.hidden_width,
            learning_rate=self.config.learning_rate,
            decays=ADAM_DECAYS,
            epsilon=ADAM_EPSILON,
            moment_weight=self.config.moment_weight,
            mode_seeking=self.config.mode_seeking,
        )

    @torch.enable_grad()
    def learn_reference(self, theta: torch.Tensor, first: torch.Tensor, second: torch.Tensor, lesson: Lesson) -> None:
        """Do what `learn` does, by automatic differentiation over all devices at once."""
        for learners in lesson.learners.split(DEVICES_AT_ONCE):
            heads = ReceivedHeads.of(lesson.heads, lesson.weights, learners, lesson.seen)
            numbers = lesson.steps_taken[learners] + torch.arange(1, len(lesson.noise) + 1).unsqueeze(1)
            corrections = torch.stack([1 - decay**numbers for decay in ADAM_DECAYS]).unsqueeze(-1).to(theta)
            rows = learners.to(theta.device)
            targets = MomentTargets.of(lesson.count[rows], lesson.sum[rows], lesson.product[rows])
            weights, mean, square = theta[rows].requires_grad_(), first[rows], second[rows]
            for step, noise in enumerate(lesson.noise):
                loss = self.losses(weights, noise, heads, targets).sum()
                (gradient,) = torch.autograd.grad(loss, weights)
                mean = ADAM_DECAYS[0] * mean + (1 - ADAM_DECAYS[0]) * gradient
                square = ADAM_DECAYS[1] * square + (1 - ADAM_DECAYS[1]) * gradient.square()
                change = (mean / corrections[0, step]) / ((square / corrections[1, step]).sqrt() + ADAM_EPSILON)
                weights = (weights.detach() - self.config.learning_rate * change).requires_grad_()
            theta[rows], first[rows], second[rows] = weights.detach(), mean, square

    def losses(
        self, theta: torch.Tensor, noise: torch.Tensor, heads: ReceivedHeads, targets: MomentTargets
    ) -> torch.Tensor:
        """Return the loss [devices] of the generators theta [devices, parameters] (METHOD 3)."""
        features = self.generator.generate_reference(theta, noise)  # [devices, classes, n, d]
        return (
            heads.entropy(features)
            + self.config.moment_weight * targets.distance(features)
            + self.config.mode_seeking * mode_seeking(features, noise)
        )

    def state_dict(self) -> dict[str, Any]:
        """Return the rest of Adam's state."""
        return {"second_moment": self._second_moment, "steps": self._steps}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
        second, steps = state["second_moment"], state["steps"]
        self._second_moment = None if second is None else second.clone()
        self._steps = None if steps is None else steps.clone()
