"""The local iterations of all devices: in one native call where the method allows it, else operator by operator."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.guide import GuidanceRound
from dmmlkd_ext.training.learn import native as native_round
from dmmlkd_ext.training.learn import stepwise
from dmmlkd_ext.training.learn.batches import RoundBatches
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import TERMS
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population


@torch.no_grad()
def train(
    population: Population,
    batches: RoundBatches,
    plan: Plan,
    method: MethodConfig,
    config: TrainingConfig,
    learning_rate: float,
    guidance: GuidanceRound | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Run a round's local iterations on every device (METHOD 3 and 5).

    In local iteration i the modalities with i in their span of the plan train. The others leave the forward pass or,
    with `pause="keep"`, only feed the prediction; their blocks, momentum included, keep their bits. No device depends
    on another.

    Returns:
        Each loss term as a mean over the iterations that a device trained, float64 [devices]; NaN where it trained
        none, and where the method lacks the term.
    """
    task = LocalTask(population, batches, plan, method, config, learning_rate, guidance)
    run = native_round.run if native_round.applies(task) else stepwise.run
    sums, counts = run(task)
    means = (sums / counts).numpy()  # 0 / 0: a device that trained nothing
    has = [term == "task" or getattr(method.losses, term) > 0 for term in TERMS]
    return {term: means[row] if has[row] else np.full(population.num_devices, np.nan) for row, term in enumerate(TERMS)}
