"""What every kind of guidance has in common."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, get_args

import torch

from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.seeding import torch_generator

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population

GENERATOR = "generator"
"""Name of the block that the guidance exchanges."""

Kind = Literal["none", "network", "gaussian", "prototypes"]


@dataclass(frozen=True)
class GeneratorConfig:
    """The generator and how it learns; all numbers are choices of this project [C] (METHOD 3).

    Raises:
        ValueError: a field is out of its range.

    Example:
        >>> GeneratorConfig(kind="network").strength(round_index=5)
        0.2
    """

    kind: Kind = "none"
    """`network` is the generator of METHOD 3; `gaussian` a normal distribution per class; `prototypes` one mean per
    class, to which features are pulled by their distance (FedProto, Tan et al. 2022)."""
    noise_width: int = 16
    hidden_width: int = 64
    steps: int = 10
    """Steps of Adam per round."""
    learning_rate: float = 3e-3
    samples_per_class: int = 8
    """Features generated per class and step."""
    pool_per_class: int = 32
    """Features generated per class and round, from which the local iterations draw."""
    moment_weight: float = 1.0
    """Weight of the distance between the moments by class of generated features and of the device's features."""
    mode_seeking: float = 0.02
    """Weight of the mode-seeking term against collapse (Mao et al. 2019)."""
    weigh_heads: bool = False
    """Whether the heads that teach the generator are weighted, by class, by the number of the class's features that
    their device saw in the round (FedGen, Zhu et al. 2021), instead of equally."""
    warmup_rounds: int = 5
    ramp_rounds: int = 5
    update_rate: float = 0.5
    """Weight of the round's statistics of a device in its new ones; used by `gaussian` and `prototypes`."""

    def __post_init__(self) -> None:
        if self.kind not in get_args(Kind):
            raise ValueError(f"kind must be one of {', '.join(get_args(Kind))}; got {self.kind!r}")
        for name in ("noise_width", "hidden_width", "pool_per_class", "ramp_rounds"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        for name in ("steps", "warmup_rounds", "moment_weight", "mode_seeking", "learning_rate"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        if self.samples_per_class < 2 or self.samples_per_class % 2:
            raise ValueError(f"samples_per_class must be even and at least 2, got {self.samples_per_class}")
        if not 0 < self.update_rate <= 1:
            raise ValueError(f"update_rate must be above 0 and at most 1, got {self.update_rate}")

    def strength(self, round_index: int) -> float:
        """Return the factor on the guidance's losses in a round, counted from 0: a warm-up, then a ramp to 1."""
        return min(1.0, max(0.0, (round_index - self.warmup_rounds + 1) / self.ramp_rounds))


class FeatureMoments:
    """Counts, sums and sums of products of the common features that a round's training saw, by device and class.

    With `full`, whole products [d, d] instead of squares. The dtype and torch device are those of `like`.

    Example:
        >>> moments = FeatureMoments(devices=1, num_classes=2, width=1)
        >>> features, labels = torch.tensor([[[1.0], [3.0], [5.0]]]), torch.tensor([[0, 0, 1]])
        >>> moments.add(torch.tensor([0]), features, labels, torch.ones(1, 3, dtype=torch.bool))
        >>> moments.mean().flatten().tolist(), moments.variance().flatten().tolist()
        ([2.0, 5.0], [1.0, 0.0])
    """

    def __init__(
        self, devices: int, num_classes: int, width: int, full: bool = False, like: torch.Tensor | None = None
    ) -> None:
        like = torch.zeros((), dtype=torch.float32) if like is None else like
        self.count = self.count_at_hand = like.new_zeros(devices, num_classes)
        """Counts of this rank's devices; `count_at_hand` adds those of neighbours on other ranks."""
        self.sum = like.new_zeros(devices, num_classes, width)
        self.product = like.new_zeros(devices, num_classes, width, *([width] if full else []))
        self._classes = torch.arange(num_classes, device=like.device)

    def add(self, devices: torch.Tensor, features: torch.Tensor, labels: torch.Tensor, present: torch.Tensor) -> None:
        """Add features [n, batch, d] of `devices` [n], all different, with their labels and presence [n, batch]."""
        member = ((labels.unsqueeze(-1) == self._classes) & present.unsqueeze(-1)).to(features.dtype)
        by_class = member.transpose(1, 2)
        self.count.index_add_(0, devices, member.sum(1))
        self.sum.index_add_(0, devices, torch.bmm(by_class, features))
        if self.product.dim() == 3:
            self.product.index_add_(0, devices, torch.bmm(by_class, features.square()))
            return
        weighted = (member.unsqueeze(-1) * features.unsqueeze(2)).flatten(2)  # [n, batch, classes * d]
        products = torch.bmm(weighted.transpose(1, 2), features).unflatten(1, self.sum.shape[1:])
        self.product.index_add_(0, devices, products)

    def mean(self) -> torch.Tensor:
        """Return the mean of each class, [devices, classes, d]; 0 where nothing was seen."""
        return self.sum / self.count.clamp_min(1).unsqueeze(-1)

    def variance(self) -> torch.Tensor:
        """Return the variance (or covariance, if full) of each class, at least 0 on the diagonal."""
        mean = self.mean()
        count = self.count.clamp_min(1).unsqueeze(-1)
        if self.product.dim() == 3:
            return (self.product / count - mean.square()).clamp_min(0)
        return self.product / count.unsqueeze(-1) - mean.unsqueeze(-1) * mean.unsqueeze(-2)


@dataclass(frozen=True)
class GuidanceBatch:
    """The guidance of one batch of some devices.

    Attributes:
        target: [devices, batch, d], a feature of each sample's class.
        known: bool [devices, batch]: whether there is a target.
        rehearsal: [devices, n, d], features of classes drawn uniformly, or None.
        rehearsal_labels: int64 [n].
        rehearsal_known: bool [devices, n]: whether there is a feature of that class, or None without rehearsal.
        by_distance: pull features to the target, instead of their prediction to the target's.
        strength: factor on the guidance's losses.
    """

    target: torch.Tensor
    known: torch.Tensor
    rehearsal: torch.Tensor | None
    rehearsal_labels: torch.Tensor
    rehearsal_known: torch.Tensor | None
    by_distance: bool
    strength: float


class GuidanceRound:
    """Draws from the features that each device's generator gave at the start of the round.

    Args:
        pool: [devices, classes, n, d].
        known: bool [devices, classes]: for which classes there are features.
        moments: collects the features that the training saw.
        strength: factor on the guidance's losses; 0 leaves them out.
        by_distance: see `GuidanceBatch`.
        draws: int64 [3, iterations, batch]: which feature guides a sample, which class is rehearsed, by which feature.
    """

    def __init__(
        self,
        pool: torch.Tensor,
        known: torch.Tensor,
        moments: FeatureMoments,
        strength: float,
        by_distance: bool,
        draws: torch.Tensor,
    ) -> None:
        self.pool, self.known, self.moments = pool, known, moments
        self.strength, self.by_distance, self.draws = strength, by_distance, draws
        self._copies, self._rehearsed, self._rehearsed_copies = draws

    def batch(self, iteration: int, devices: torch.Tensor, labels: torch.Tensor) -> GuidanceBatch | None:
        """Return the guidance of a batch with `labels` [devices, batch]; None while it is off."""
        if not self.strength:
            return None
        rows, rehearsed = devices.unsqueeze(1), self._rehearsed[iteration]
        rehearsal, rehearsal_known = None, None
        if not self.by_distance:
            rehearsal = self.pool[rows, rehearsed, self._rehearsed_copies[iteration]]
            rehearsal_known = self.known[rows, rehearsed]
        return GuidanceBatch(
            target=self.pool[rows, labels, self._copies[iteration]],
            known=self.known[rows, labels],
            rehearsal=rehearsal,
            rehearsal_labels=rehearsed,
            rehearsal_known=rehearsal_known,
            by_distance=self.by_distance,
            strength=self.strength,
        )


class Guidance:
    """One kind of guidance: its block of parameters, the features that it gives a round, and how it learns."""

    layout: BlockLayout
    by_distance = False
    full_moments = False

    def __init__(self, config: GeneratorConfig, num_classes: int, feature_width: int, seed: int) -> None:
        self.config, self.num_classes, self.feature_width, self.seed = config, num_classes, feature_width, seed

    @property
    def round_macs(self) -> float:
        """Multiply-accumulates of a round's forward passes for learning, per device."""
        return 0.0

    def generate(self, parameters: torch.Tensor, round_index: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return features [devices, classes, n, d] and for which classes they are valid, bool [devices, classes]."""
        raise NotImplementedError(f"{type(self).__name__} must generate features")

    def begin(self, population: Population, round_index: int, num_iterations: int, batch_size: int) -> GuidanceRound:
        """Return the guidance of a round's local iterations."""
        block, strength = population.blocks[GENERATOR], self.config.strength(round_index)
        block.begin()
        pool = block.start.new_zeros(0, self.num_classes, 1, self.feature_width)
        known = torch.zeros(0, self.num_classes, dtype=torch.bool, device=block.start.device)
        if strength:
            pool, known = self.generate(block.start, round_index)
        moments = FeatureMoments(
            population.num_devices, self.num_classes, self.feature_width, self.full_moments, block.start
        )
        draw, shape = torch_generator(self.seed, "guidance", round_index), (num_iterations, batch_size)
        limits = (pool.shape[2], self.num_classes, pool.shape[2])
        draws = torch.stack([torch.randint(limit, shape, generator=draw) for limit in limits]).to(block.start.device)
        return GuidanceRound(pool, known, moments, strength, self.by_distance, draws)

    def before_exchange(self, population: Population, moments: FeatureMoments) -> None:
        """Put each device's statistics into its block, before the blocks are mixed."""

    def after_exchange(
        self,
        population: Population,
        moments: FeatureMoments,
        heads: GossipWeights,
        learns: torch.Tensor,
        round_index: int,
    ) -> None:
        """Learn from the received heads, on the devices `learns` (bool [devices]); both are on the CPU."""

    def state_dict(self) -> dict[str, Any]:
        """Return the state that a resumed run needs beyond the block's parameters."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore a `state_dict`."""
