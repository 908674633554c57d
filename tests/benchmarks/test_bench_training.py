"""The operators of the training loop, each against the operations of torch that stand in for it.

Sizes are those of the datasets: a chunk of devices trains, whose parameters fit the cache. Products take
2 * samples * in * out operations forward, as many for the gradient of a weight and as many for that of its inputs.
"""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.model import direct
from dmmlkd_ext.model.direct import Layers
from dmmlkd_ext.training.learn import native as native_round
from dmmlkd_ext.training.learn import stepwise
from dmmlkd_ext.training.learn.gather import SharedNoise, gather_samples, gather_samples_reference
from dmmlkd_ext.training.learn.objective import BatchFeatures, HeadGradients, objective, objective_reference
from dmmlkd_ext.training.learn.optimizer import StepRows, StepSettings, sgd_step, sgd_step_reference
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import TERMS
from dmmlkd_ext.training.measure import evaluation
from dmmlkd_ext.training.measure.consensus import (
    column_sums,
    column_sums_reference,
    squared_distances,
    squared_distances_reference,
)
from dmmlkd_ext.training.methods import LossWeights
from tests.benchmarks.paired import interleave
from tests.benchmarks.population.workloads import WORKLOADS, build, training_macs

BATCH, WIDTH, CLASSES = 32, 32, 10


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


@pytest.mark.parametrize(("devices", "inputs"), [(13, 216), (13, 6), (40, 64)])
def test_linear_layers(benchmark, results, devices, inputs):
    widths = (inputs, 64, 64, 2 * WIDTH)
    weights = [torch.randn(devices, *pair) / 8 for pair in pairwise(widths)]
    biases = [torch.randn(devices, 64) for _ in range(2)]
    values, upstream = torch.randn(devices, BATCH, inputs), torch.randn(devices, BATCH, 2 * WIDTH)
    layers = Layers(weights, biases)
    into = Layers(*([torch.empty_like(value) for value in values_of] for values_of in layers))

    def both(forward, backward):
        def run():
            outputs = forward(values, layers, 2)
            backward(upstream, values, layers, outputs, into, 2)

        return run

    functions = {
        "native": both(direct.linear_layers_forward, direct.linear_layers_backward),
        "reference": both(direct.linear_layers_forward_reference, direct.linear_layers_backward_reference),
    }
    products = sum(fan_in * out for fan_in, out in pairwise(widths))
    operations = 2 * devices * BATCH * (3 * products - inputs * 64)
    compare(benchmark, results, "linear_layers", f"{devices} devices, {inputs} inputs", functions, operations)


@pytest.mark.parametrize(
    ("name", "devices", "space", "kernel", "channels"),
    [
        ("watch", 70, (128,), 5, (3, 16, 32)),
        ("image", 20, (28, 28), 3, (1, 8, 16, 32)),
        ("audio", 20, (32, 32), 3, (1, 8, 16, 32)),
    ],
)
def test_convolve_layers(benchmark, results, name, devices, space, kernel, channels):
    window = kernel ** len(space)
    weights = [torch.randn(devices, window * fan_in, out) / 8 for fan_in, out in pairwise(channels)]
    biases = [torch.randn(devices, out) for out in channels[1:]]
    values = torch.randn(devices, 16, channels[0], *space).movedim(2, -1)
    layers = Layers(weights, biases)
    outputs = direct.convolve_layers_forward(values, layers, kernel, 2)
    into = Layers(*([torch.empty_like(value) for value in values_of] for values_of in layers))
    upstream = torch.randn(outputs[-1].shape)
    positions = [made[0, 0, ..., 0].numel() for made in outputs]
    macs = [place * weight.shape[1] * weight.shape[2] for place, weight in zip(positions, weights, strict=True)]

    def both(forward, backward):
        def run():
            made = forward(values, layers, kernel, 2)
            backward(upstream, values, layers, made, into, kernel, 2)

        return run

    functions = {
        "native": both(direct.convolve_layers_forward, direct.convolve_layers_backward),
        "reference": both(direct.convolve_layers_forward_reference, direct.convolve_layers_backward_reference),
    }
    compare(benchmark, results, "convolve_layers", name, functions, 2 * devices * 16 * (3 * sum(macs) - macs[0]))


@pytest.mark.parametrize(("devices", "modalities"), [(20, 6), (70, 2)])
def test_objective(benchmark, results, devices, modalities):
    rows = [torch.arange(devices)] * modalities
    batch = BatchFeatures(
        labels=torch.randint(CLASSES, (devices, BATCH)),
        present=torch.rand(devices, BATCH, modalities) < 0.8,
        features=[torch.randn(devices, BATCH, 2 * WIDTH) for _ in rows],
        heads=[torch.randn(devices, WIDTH, CLASSES) for _ in rows],
        positions=rows,
        shared_head=torch.randn(devices, WIDTH, CLASSES),
    )
    into = HeadGradients([torch.empty_like(head) for head in batch.heads], torch.empty_like(batch.shared_head))
    weights = LossWeights(**dict.fromkeys(TERMS[1:], 0.5))
    functions = {
        "native": lambda: objective(batch, weights, None, into),
        "reference": lambda: objective_reference(batch, weights, None, into),
    }
    compare(benchmark, results, "objective", f"{devices} devices, {modalities} modalities", functions)


@pytest.mark.parametrize(("devices", "columns"), [(20, (320, 22_464, 13_504, 9_024)), (70, (320, 5_120, 5_120))])
def test_sgd_step(benchmark, results, devices, columns):
    blocks = [StepRows(*torch.randn(3, devices, width) / 100, torch.arange(devices)) for width in columns]
    settings = StepSettings(clip_norm=1.0, learning_rate=1e-3, momentum=0.9, weight_decay=1e-4)
    functions = {
        "native": lambda: sgd_step(blocks, devices, settings),
        "reference": lambda: sgd_step_reference(blocks, devices, settings),
    }
    compare(benchmark, results, "sgd_step", f"{devices} devices, {sum(columns)} parameters", functions)


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


@pytest.mark.parametrize(("devices", "shape"), [(13, (216,)), (70, (3, 128)), (20, (1, 28, 28))])
@pytest.mark.parametrize("noisy", [True, False])
def test_gather_samples(benchmark, results, devices, shape, noisy):
    values, indices = torch.randn(4000, *shape), torch.randint(4000, (100, 16))
    noise = SharedNoise(torch.randn(10**6), torch.randint(10**5, (100,))) if noisy else None
    arguments = values, indices, torch.randperm(100)[:devices], noise
    functions = {
        "native": lambda: gather_samples(*arguments),
        "reference": lambda: gather_samples_reference(*arguments),
    }
    case = f"{devices} devices, {list(shape)}{', noise' if noisy else ''}"
    compare(benchmark, results, "gather_samples", case, functions)


@pytest.mark.parametrize("workload", WORKLOADS)
def test_local_round(benchmark, results, workload):
    """All iterations of all devices in one call, against the native operators one after the other."""
    simulation, _ = build(WORKLOADS[workload], "all losses", 20)
    population, config = simulation.population, simulation.config
    iterations = np.where(population.holds, config.local_iterations, 0)
    plan = Plan(iterations, np.zeros_like(iterations))
    batches = simulation.sampler.draw(0, config.local_iterations)
    task = LocalTask(population, batches, plan, simulation.method, config, 1e-3, None)
    functions = {"native": lambda: native_round.run(task), "reference": lambda: stepwise.run(task)}
    samples, macs = (iterations * config.batch_size).sum(axis=0), training_macs(population.network)
    operations = 2 * float(samples @ np.array([macs[name] for name in population.network.modalities]))
    compare(benchmark, results, "local_round", f"{workload}, 20 devices", functions, operations)


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
