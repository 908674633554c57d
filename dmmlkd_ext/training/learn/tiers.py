"""The local iterations of all devices, by native code if it supports all that is asked for, else by the reference."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.ops.native import backend_reason, simulates_natively
from dmmlkd_ext.training.learn import native, reference
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import term_names
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.population import Population

SLOWER = "4 to 11 times"
"""Time of the reference on a CPU over that of native code: `local_round` in tests/benchmarks/test_bench_training.py."""


def why_reference(population: Population, method: MethodConfig) -> str | None:
    """Return why native code cannot train this method on these devices, or None if it can.

    This is the one place that decides between the two tiers, which compute the same.
    """
    parameters = population.blocks[SHARED].start
    if parameters.device.type != "cpu":
        return f"native code trains on a CPU, not on {parameters.device.type}"
    foreign = population.network.foreign_encoders
    if foreign:
        return f"the encoder of {', '.join(foreign)} is a module of your own"
    terms = [name for name, weight in method.losses.further.items() if weight]
    if terms:
        return f"the loss term {', '.join(terms)} is one of your own"
    if not simulates_natively(parameters):
        return backend_reason() or f"native code trains in float32 or float64, not {parameters.dtype}"
    return None


@torch.no_grad()
def train(task: LocalTask) -> dict[str, npt.NDArray[np.float64]]:
    """Run a round's local iterations on every device (METHOD 3 and 5).

    In local iteration i the modalities train whose span of the plan contains i; other modalities are left out of the
    forward pass, and their parameters and momentum do not change.

    Returns:
        Each loss term as a mean over the iterations that a device trained, float64 [devices]; NaN if it trained in
        none, or the method lacks the term.
    """
    tier = native if why_reference(task.population, task.method) is None else reference
    sums, counts = tier.run(task)
    means = (sums.cpu() / counts).numpy()  # 0 / 0: a device that did not train
    weights = {"task": 1.0, **task.method.losses.named()}
    absent = np.full(task.population.num_devices, np.nan)
    return {name: means[row] if weights[name] else absent for row, name in enumerate(term_names(task.method.losses))}
