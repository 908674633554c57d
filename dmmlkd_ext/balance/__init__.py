"""Training balance (METHOD 5): how fast each modality trains, and how many local iterations it gets."""

from dmmlkd_ext.balance.allocation import allocate_iterations
from dmmlkd_ext.balance.metrics import Observation, needs_of, register_metric, update_metric
from dmmlkd_ext.balance.plan import BalanceConfig, Plan, RoundBudget, plan_iterations, register_policy
from dmmlkd_ext.balance.speed import (
    balance_metric,
    imbalance,
    ranking_agreement,
    training_speed,
    update_speeds,
)

__all__ = [
    "BalanceConfig",
    "Observation",
    "Plan",
    "RoundBudget",
    "allocate_iterations",
    "balance_metric",
    "imbalance",
    "needs_of",
    "plan_iterations",
    "ranking_agreement",
    "register_metric",
    "register_policy",
    "training_speed",
    "update_metric",
    "update_speeds",
]
