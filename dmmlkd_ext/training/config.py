"""Settings of the training that every method shares."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class TrainingConfig:
    """How devices train, the same for all methods of a comparison; choices of this project [C] (METHOD 3)."""

    rounds: int = 40
    local_iterations: int = 10
    """T: the most local iterations of a modality in a round."""
    batch_size: int = 32
    learning_rate: float = 0.05
    final_learning_rate_fraction: float = 0.1
    """The learning rate decays linearly; in the last round it is this fraction of the first."""
    momentum: float = 0.9
    weight_decay: float = 1e-3
    clip_norm: float = 2.0
    """A device's gradient is scaled down to this Euclidean norm over all of its blocks."""
    input_noise: float = 0.0
    """Standard deviation of the normal noise on training inputs, in units of the standardized inputs."""
    feature_width: int = 32
    """d: width of the modality-common and of the modality-specific feature."""
    hidden_width: int = 64
    """Width of the perceptron encoders."""
    encoders: dict[str, str] = field(default_factory=dict, hash=False)
    """Registered encoders by modality, such as `image: small-cnn` (`dmmlkd_ext.model.modules`); a modality without an
    entry gets the built-in encoder of its shape."""
    evaluate_every: int = 5
    """Rounds between evaluations; the last round is always evaluated."""
    evaluation_samples: int = 64
    """Validation samples, and test samples, per device in evaluations before the last round, which uses all. They
    differ from device to device; more are used where all devices together would not see all data. 0 means all."""
    probe: bool = False
    """Judge each encoder by a linear probe after the last round."""
    ranking: bool = False
    """Judge the balance metric in every round: how often it ranks a device's modalities as the losses of their heads
    do."""

    def __post_init__(self) -> None:
        for name in (
            "rounds",
            "local_iterations",
            "batch_size",
            "feature_width",
            "hidden_width",
            "evaluate_every",
        ):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")
        if self.evaluation_samples < 0:
            raise ValueError(f"evaluation_samples must be at least 0, got {self.evaluation_samples}")
        for name in ("learning_rate", "clip_norm"):
            if not 0 < getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be positive and finite, got {getattr(self, name)}")
        for name in ("weight_decay", "input_noise"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        for name in ("momentum", "final_learning_rate_fraction"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")

    def learning_rate_at(self, round_index: int) -> float:
        """Return the learning rate of a round, counted from 0.

        Example:
            >>> config = TrainingConfig(rounds=3, learning_rate=1.0)
            >>> [round(config.learning_rate_at(index), 2) for index in range(3)]
            [1.0, 0.55, 0.1]
        """
        progress = round_index / max(1, self.rounds - 1)
        return self.learning_rate * (1 + progress * (self.final_learning_rate_fraction - 1))
