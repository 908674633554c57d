"""Training balance (METHOD 5): how fast each modality trains, and how many local iterations it gets."""

from dmmlkd_ext.balance.allocation import allocate_iterations
from dmmlkd_ext.balance.plan import BalanceConfig, Plan, RoundBudget, plan_iterations, register_policy
from dmmlkd_ext.balance.speed import balance_metric, imbalance, training_speed, update_speeds

__all__ = [
    "BalanceConfig",
    "Plan",
    "RoundBudget",
    "allocate_iterations",
    "balance_metric",
    "imbalance",
    "plan_iterations",
    "register_policy",
    "training_speed",
    "update_speeds",
]
