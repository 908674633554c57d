"""The native operations of the training loop, each against the reference in plain torch that stands in for it.

Sizes are those of the datasets. Products take 2 * samples * in * out operations forward, as many for the gradient of a
weight and as many for that of its inputs.
"""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.training.learn import LocalTask, native, reference
from dmmlkd_ext.training.measure import evaluation
from dmmlkd_ext.training.measure.consensus import (
    column_sums,
    column_sums_reference,
    squared_distances,
    squared_distances_reference,
)
from tests.benchmarks.paired import interleave
from tests.benchmarks.population.workloads import WORKLOADS, build, training_macs


@pytest.fixture(autouse=True)
def one_thread(keep_threads):
    torch.set_num_threads(1)


def compare(benchmark, results, operator: str, case: str, functions, operations: float = 0) -> None:
    """Keep the row of an operator; one that is slower than what stands in for it is a bug."""
    left, right = torch.randn(2, 512, 512).unbind(0)
    limit = "limit: operations at the rate of torch.mm"
    times = interleave(functions | ({limit: lambda: torch.mm(left, right)} if operations else {}))
    if operations:
        times[limit] = [seconds * operations / (2 * 512**3) for seconds in times[limit]]
    benchmark.extra_info.update(results.add(operator, case, "training", times, {"reference": 1.0}))
    benchmark.pedantic(functions["native"], rounds=3)


@pytest.mark.parametrize(("devices", "columns"), [(20, (320, 22_464, 13_504, 9_024)), (70, (320, 5_120, 5_120))])
def test_consensus(benchmark, results, devices, columns):
    blocks = [torch.randn(devices, width) for width in columns]

    def both(sums, distances):
        center = (sums(blocks) / devices).float()
        return distances(blocks, center)

    functions = {
        "native": lambda: both(column_sums, squared_distances),
        "reference": lambda: both(column_sums_reference, squared_distances_reference),
    }
    compare(benchmark, results, "consensus", f"{devices} devices, {sum(columns)} parameters", functions)


@pytest.mark.parametrize("method", ["all losses", "ogm-ge", "mmpareto"])
@pytest.mark.parametrize("workload", WORKLOADS)
def test_local_round(benchmark, results, workload, method):
    """All iterations of all devices: native code against the reference."""
    simulation, _ = build(WORKLOADS[workload], method, 20)
    population, config = simulation.population, simulation.config
    iterations = np.where(population.holds, config.local_iterations, 0)
    plan = Plan(iterations, np.zeros_like(iterations))
    batches = simulation.sampler.draw(0, config.local_iterations)
    task = LocalTask(population, batches, plan, simulation.method, config, 1e-3, None)
    functions = {"native": lambda: native.run(task), "reference": lambda: reference.run(task)}
    samples, macs = (iterations * config.batch_size).sum(axis=0), training_macs(population.network)
    operations = 2 * float(samples @ np.array([macs[name] for name in population.network.modalities]))
    compare(benchmark, results, "local_round", f"{workload}, {method}, 20 devices", functions, operations)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_count_right(benchmark, results, workload):
    simulation, _ = build(WORKLOADS[workload], "all losses", 20)
    population, split = simulation.population, simulation.dataset.train.select(torch.arange(500))
    values = len(split) * max(features[0].numel() for features in split.features.values())
    at_once = evaluation.CHUNK_VALUES // values  # as an evaluation does it: activations stay in the cache
    parts = [slice(begin, min(begin + at_once, 20)) for begin in range(0, 20, at_once)]
    functions = {
        "native": lambda: evaluation.judge_natively(population, split, slice(0, 20)),
        "reference": lambda: [evaluation.judge_reference(population, split, part) for part in parts],
    }
    macs = np.array([population.network.forward_macs[name] for name in population.network.modalities])
    operations = 2 * float(population.holds.sum(axis=0) @ macs) * len(split)
    compare(benchmark, results, "count_right", f"{workload}, 20 devices", functions, operations)
