"""What a round's local iterations are made of."""

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
    """A round of local training, before it begins; see `dmmlkd_ext.training.learn.local.train`."""

    population: Population
    batches: RoundBatches
    plan: Plan
    method: MethodConfig
    config: TrainingConfig
    learning_rate: float
    guidance: GuidanceRound | None
