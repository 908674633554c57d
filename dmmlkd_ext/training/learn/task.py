"""The inputs of a round's local training."""

from __future__ import annotations

from dataclasses import dataclass

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.guide import GuidanceRound
from dmmlkd_ext.training.learn.batches import RoundBatches
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population


@dataclass(frozen=True)
class LocalTask:
    """The inputs of a round's local training.

    Attributes:
        population: its blocks' `start` holds the parameters to begin with, `local` receives the trained ones.
        batches: of the round.
        plan: which modalities train in which iterations.
        method: losses, proximal term and modulation.
        config: batch size, optimizer.
        learning_rate: of the round.
        guidance: of the common features, or None.
    """

    population: Population
    batches: RoundBatches
    plan: Plan
    method: MethodConfig
    config: TrainingConfig
    learning_rate: float
    guidance: GuidanceRound | None = None
