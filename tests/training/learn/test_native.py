"""A round in one native call computes what the reference computes, and takes its arguments with care."""

from __future__ import annotations

import dataclasses
import re

import numpy as np
import pytest
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.ops import backend
from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.training.guide import GENERATOR
from dmmlkd_ext.training.learn import native as native_round
from dmmlkd_ext.training.learn import reference
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.tiers import why_reference
from dmmlkd_ext.training.methods import MethodConfig, get_method
from tests.ops.instruction_sets import instruction_sets, kernels_of
from tests.training.synthetic import (
    MIXED_SHAPES,
    SMALL_TRAINING,
    UNEVEN_HOLDS,
    make_dataset,
    make_simulation,
    plain_method,
    widen,
)

pytestmark = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")

PLANS = {
    "alike": Plan(3 * UNEVEN_HOLDS.astype(np.int64), np.zeros(UNEVEN_HOLDS.shape, np.int64)),
    "paused": Plan(
        UNEVEN_HOLDS * np.array([[4, 2, 1], [3, 0, 3], [0, 0, 0], [1, 4, 0], [0, 0, 2]]),
        np.zeros(UNEVEN_HOLDS.shape, np.int64),
    ),
    # One after the other, with iterations between in which nothing trains.
    "separate": Plan(np.array([[1, 1, 1], [1, 0, 2], [0, 2, 0], [1, 1, 0], [0, 0, 1]]), np.array([[0, 1, 3]] * 5)),
}


def guided(kind: str) -> MethodConfig:
    """Return a method whose guidance is on in the first round."""
    method = get_method("dmml-kd")
    generator = dataclasses.replace(
        method.generator, kind=kind, warmup_rounds=0, ramp_rounds=2, hidden_width=8, steps=1
    )
    losses = dataclasses.replace(method.losses, generator=0.7, rehearsal=0.4)
    return dataclasses.replace(method, losses=losses, generator=generator)


METHODS = {
    "dmml": plain_method("dmml"),
    "dmml-kd": plain_method("dmml-kd"),
    "warming up": get_method("dmml-kd"),
    "network": guided("network"),
    "gaussian": guided("gaussian"),
    "prototypes": guided("prototypes"),
    "fedprox": dataclasses.replace(plain_method("dmml"), proximal=0.3),
    "ogm-ge": get_method("ogm-ge"),
    "mmpareto": get_method("mmpareto"),
    # With all losses, so that the joint gradient is not that of the modalities' own losses.
    "ogm-ge, all losses": dataclasses.replace(plain_method("dmml-kd"), modulation="ogm-ge"),
    "mmpareto, guided": dataclasses.replace(guided("network"), modulation="mmpareto", modulation_strength=1.5),
}
MODULATED = [name for name, method in METHODS.items() if method.modulation != "none"]


def make_task(
    method: MethodConfig, plan: Plan, missing: float = 0.0, dtype: torch.dtype = torch.float32, **training: object
) -> LocalTask:
    """Return a task whose parameters and momenta are drawn, so that no two devices are alike."""
    dataset = make_dataset(missing=missing)
    if dtype == torch.float64:
        widen(dataset)
    config = dataclasses.replace(SMALL_TRAINING, **training)
    simulation = make_simulation(dataset, method=method, training=config)
    generator = torch.Generator().manual_seed(3)
    for name, block in simulation.population.blocks.items():
        block.start, block.momentum = block.start.to(dtype), block.momentum.to(dtype)
        block.local = block.at_hand = block.local.to(dtype)
        for values, scale in ((block.start, 0.1), (block.momentum, 0.01)):
            values.add_(torch.randn(values.shape, generator=generator, dtype=dtype) * scale)
        if name == GENERATOR and method.generator.kind != "network":
            simulation.guidance.layout.views(block.start)["weight"][:, :3] = 1.0  # the fourth class is not known
        block.local.fill_(float("nan"))  # is written, never read
    batches, guidance = simulation.sampler.draw(0, plan.num_iterations), simulation._guide(plan)
    return LocalTask(simulation.population, batches, plan, method, config, 0.1, guidance)


def results(task: LocalTask, run) -> dict[str, torch.Tensor]:
    """Return all that the training writes or gives."""
    sums, counts = run(task)
    found = {"sums": sums, "counts": counts}
    for name, block in task.population.blocks.items():
        found |= {f"{name} local": block.local, f"{name} momentum": block.momentum}
    if task.guidance:
        moments = task.guidance.moments
        found |= {"count": moments.count, "sum": moments.sum, "product": moments.product}
    return found


def assert_same_bits(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> None:
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert value.dtype == second[name].dtype
        assert torch.equal(value, second[name]), name


def assert_close(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor], tolerance: float) -> None:
    """Compare to a multiple of what a sum of a few hundred numbers may lose to rounding."""
    assert first.keys() == second.keys()
    for name, value in first.items():
        scale = float(second[name].abs().amax()) if second[name].numel() else 0.0
        torch.testing.assert_close(value, second[name], rtol=tolerance, atol=tolerance * scale, msg=name)


@pytest.mark.parametrize("plan", PLANS)
@pytest.mark.parametrize("name", METHODS)
def test_double_precision_agrees_to_its_rounding(name, plan, float64):
    one, two = (make_task(METHODS[name], PLANS[plan], 0.3, torch.float64) for _ in range(2))
    before = {block: rows.start.clone() for block, rows in one.population.blocks.items()}
    assert why_reference(one.population, one.method) is None
    assert_close(results(one, native_round.run), results(two, reference.run), 1e-10)
    for block, rows in one.population.blocks.items():
        assert torch.equal(before[block], rows.start)
        assert block == GENERATOR or not torch.equal(before[block], rows.local)


@pytest.mark.parametrize("name", METHODS)
def test_single_precision_agrees_to_its_rounding(name):
    one, two = (make_task(METHODS[name], PLANS["paused"], missing=0.3) for _ in range(2))
    assert_close(results(one, native_round.run), results(two, reference.run), 2e-4)


@pytest.mark.parametrize("name", ["network", *MODULATED])
@pytest.mark.parametrize("kernels", instruction_sets())
def test_with_every_instruction_set(kernels, name, float64):
    one, two = (make_task(METHODS[name], PLANS["paused"], 0.3, torch.float64) for _ in range(2))
    with kernels_of(kernels):
        assert_close(results(one, native_round.run), results(two, reference.run), 1e-10)


@pytest.mark.parametrize(
    "training",
    [{"input_noise": 0.0}, {"batch_size": 1}, {"batch_size": 37}, {"feature_width": 16, "hidden_width": 16}],
    ids=str,
)
@pytest.mark.parametrize("name", ["network", "ogm-ge", "mmpareto"])
def test_with_other_sizes(name, training, float64):
    one, two = (make_task(METHODS[name], PLANS["paused"], 0.0, torch.float64, **training) for _ in range(2))
    assert_close(results(one, native_round.run), results(two, reference.run), 1e-10)


@pytest.mark.parametrize("name", ["ogm-ge", "mmpareto"])
def test_a_device_that_trains_one_modality_keeps_its_plain_gradient(name):
    tasks = [make_task(METHODS[method], PLANS["separate"]) for method in (name, "dmml")]
    modulated, plain = (results(task, native_round.run) for task in tasks)
    assert_same_bits(modulated, plain)
    tasks = [make_task(METHODS[method], PLANS["alike"]) for method in (name, "dmml")]
    modulated, plain = (results(task, native_round.run) for task in tasks)
    single = {"wave": 2, "image": 4}  # device 2 and 4 have one modality each
    for modality, device in single.items():
        row = np.flatnonzero(tasks[0].population.blocks[modality].devices == device)
        assert torch.equal(modulated[f"{modality} local"][row], plain[f"{modality} local"][row])
        assert not torch.equal(modulated[f"{modality} local"], plain[f"{modality} local"])


def test_a_block_that_does_not_train_is_copied():
    plan = Plan(PLANS["alike"].iterations * np.array([[1, 0, 0]] * 5), PLANS["alike"].start)
    task = make_task(METHODS["dmml"], plan)
    momenta = {name: block.momentum.clone() for name, block in task.population.blocks.items()}
    native_round.run(task)
    for name in ("wave", "image"):
        block = task.population.blocks[name]
        assert torch.equal(block.local, block.start)
        assert torch.equal(block.momentum, momenta[name])
    idle = np.flatnonzero(plan.iterations.sum(1) == 0)
    assert len(idle)
    shared = task.population.blocks["shared"]
    assert torch.equal(shared.local[idle], shared.start[idle])


@pytest.mark.parametrize("name", ["dmml-kd", "network", "ogm-ge", "mmpareto"])
def test_the_same_bits_on_any_number_of_threads(name):
    found = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append(results(make_task(METHODS[name], PLANS["paused"]), native_round.run))
    for other in found[1:]:
        assert_same_bits(found[0], other)


def test_one_device_alone_is_left_alone_by_the_others():
    only = np.zeros_like(UNEVEN_HOLDS)
    only[3] = UNEVEN_HOLDS[3]
    everyone, alone = PLANS["alike"], Plan(PLANS["alike"].iterations * only, PLANS["alike"].start)
    one, two = make_task(METHODS["network"], everyone), make_task(METHODS["network"], alone)
    native_round.run(one), native_round.run(two)
    for name, block in one.population.blocks.items():
        row = np.flatnonzero(block.devices == 3)
        assert torch.equal(block.local[row], two.population.blocks[name].local[row])


def test_it_takes_neither_half_precision_nor_the_reference(monkeypatch):
    task = make_task(METHODS["dmml"], PLANS["alike"])
    monkeypatch.setattr(_native, "backend", lambda: "reference")
    assert why_reference(task.population, task.method)
    monkeypatch.undo()
    assert why_reference(task.population, task.method) is None
    for block in task.population.blocks.values():
        block.start = block.start.half()
    assert "float32 or float64" in why_reference(task.population, task.method)


def arguments() -> dict[str, object]:
    """Two devices, of which the first has the vector alone; a batch of 2 of 3 samples; guided, with moments."""
    widths = {"vector": (4, 4), "wave": (3,)}
    sizes = [2 * 3, (5 + 1) * 4 + (4 + 1) * 4 + 4 * 4 + 2 * 3, (3 * 2 + 1) * 3 + 3 * 4 + 2 * 3]
    rows = [2, 2, 1]
    return {
        "parameters": [torch.full((n, size), 0.1) for n, size in zip(rows, sizes, strict=True)],
        "momenta": [torch.zeros(n, size) for n, size in zip(rows, sizes, strict=True)],
        "starts": [torch.full((n, size), 0.1) for n, size in zip(rows, sizes, strict=True)],
        "devices": [torch.arange(2), torch.arange(2), torch.tensor([1])],
        "values": [torch.randn(3, 5), torch.randn(3, 2, 7)],
        "labels": torch.tensor([0, 1, 2]),
        "present": torch.ones(3, 2, dtype=torch.bool),
        "indices": torch.tensor([[[0, 1], [2, 2]]]),
        "noise": torch.zeros(64),
        "offsets": torch.zeros(1, 2, 2, dtype=torch.int64),
        "first_iterations": torch.zeros(2, 2, dtype=torch.int64),
        "iterations": torch.ones(2, 2, dtype=torch.int64),
        "kernels": [0, 3],
        "strides": [1, 2],
        "layers": [2, 1],
        "widths": [*widths["vector"], *widths["wave"]],
        "classes": 3,
        "pool": torch.zeros(2, 3, 5, 2),
        "known": torch.ones(2, 3, dtype=torch.bool),
        "draws": torch.zeros(3, 1, 2, dtype=torch.int64),
        "count": torch.zeros(2, 3),
        "sum": torch.zeros(2, 3, 2),
        "product": torch.zeros(2, 3, 2),
        "weights": [0.5, 0.1, 0.1, 0.3, 0.1],
        "strength": 1.0,
        "by_distance": False,
        "modulation": "ogm-ge",
        "modulation_strength": 0.5,
        "gradient_noise": [torch.zeros(70), torch.zeros(70)],
        "gradient_offsets": torch.zeros(1, 2, 2, dtype=torch.int64),
        "clip_norm": 1.0,
        "learning_rate": 0.1,
        "momentum_factor": 0.9,
        "weight_decay": 0.0,
        "proximal": 0.1,
    }


def test_the_arguments_of_the_tests_below_are_good():
    good = arguments()
    sums, trained = torch.ops.dmmlkd.local_round_(**good)
    assert trained.tolist() == [1, 1]
    assert sums.isfinite().all()
    assert (good["count"].sum(1) == torch.tensor([2.0, 4.0])).all()


def long(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int64)


@pytest.mark.parametrize(
    ("name", "value", "words"),
    [
        ("momenta", [torch.zeros(2, 6)], "momenta must hold one per block = 3, got 1"),
        ("parameters", [torch.full((2, 6), 0.1)], "parameters and devices must hold the shared block and one per"),
        ("starts", [], "starts must hold one per block = 3, got 0"),
        ("starts", [torch.zeros(2, 6)] * 3, r"starts must be Float of shape \[2, 66\]"),
        ("classes", 4, "classes must divide the columns of the shared block, 6, got 4"),
        ("devices", [torch.arange(2), torch.arange(2), torch.arange(2)], r"devices must be Long of shape \[1\]"),
        ("devices", [torch.arange(2), torch.ones(2).long(), torch.tensor([1])], "devices must be different"),
        (
            "devices",
            [torch.arange(2), torch.arange(2), torch.tensor([2])],
            r"devices must be .* \[0, 2\), got 2 at position 0",
        ),
        ("values", [torch.randn(3, 5), torch.randn(4, 2, 7)], r"values must be Float of shape \[3, 2, 7\]"),
        ("values", [torch.randn(3, 6), torch.randn(3, 2, 7)], "parameters of block 1 must have 70 columns, got 66"),
        ("labels", torch.tensor([0, 1, 3]), r"labels must be in \[0, 3\), got 3 at position 2"),
        ("labels", torch.zeros(3), r"labels must be Long of shape \[samples\], got Float"),
        ("present", torch.ones(3, 3, dtype=torch.bool), r"present must be Bool of shape \[3, 2\]"),
        ("indices", long(1, 2), r"indices must be Long of shape \[iterations, devices, batch\]"),
        ("indices", torch.tensor([[[0, 1], [2, 3]]]), r"indices must be in \[0, 3\), got 3 at position 3"),
        ("noise", torch.zeros(27), r"noise must be Float of shape \[at least 28\]"),
        ("indices", long(1, 2, 0), "indices must hold at least one sample per batch"),
        ("noise", None, "these must be given together: noise, offsets"),
        ("offsets", long(1, 2, 3), r"offsets must be Long of shape \[1, 2, 2\]"),
        ("offsets", long(1, 2, 2) - 1, "offsets must be in .*, got -1 at position 0"),
        ("first_iterations", long(2, 3), r"first_iterations must be Long of shape \[2, 2\]"),
        ("iterations", long(2, 2) + 2, r"first_iterations and their sum .* must be in \[0, 1\], .* got 0 \+ 2"),
        ("kernels", [0, 2], "kernels must be 0 for values .* got 2"),
        ("kernels", [3, 3], "kernels must be 0 for values .* got 3"),
        ("strides", [1, 0], r"strides must be in \[1, 1024\], got 0"),
        ("layers", [2, 2], "widths must hold one per layer = 4, got 3"),
        ("layers", [3, 0], "layers must be at least 1, got 0"),
        ("widths", [4, 0, 3], "widths must be at least 1, got 0"),
        ("widths", [4, 4, 4], "parameters of block 2 must have 50 columns, got 39"),
        ("pool", None, "these must be given together: pool, known, draws"),
        ("pool", torch.zeros(2, 3, 5, 3), r"pool must be Float of shape \[2, 3, 5, 2\]"),
        ("known", torch.ones(2, 4, dtype=torch.bool), r"known must be Bool of shape \[2, 3\]"),
        ("draws", long(3, 1, 3), r"draws must be Long of shape \[3, 1, 2\]"),
        ("draws", torch.tensor([[[0, 0]], [[0, 3]], [[0, 0]]]), r"draws\[1\] must be in \[0, 3\), got 3"),
        ("draws", torch.tensor([[[0, 5]], [[0, 0]], [[0, 0]]]), r"draws\[0\] must be in \[0, 5\), got 5"),
        ("draws", torch.tensor([[[0, 0]], [[0, 0]], [[-1, 0]]]), r"draws\[2\] must be in \[0, 5\), got -1"),
        ("count", None, "these must be given together: count, sum, product"),
        ("sum", torch.zeros(2, 3, 3), r"sum must be Float of shape \[2, 3, 2\]"),
        ("weights", [1.0], "weights must be 5 numbers, got 1"),
        ("modulation", "other", "modulation must be none, ogm-ge or mmpareto, got other"),
        ("modulation", "none", "gradient_noise must hold one per modality for ogm-ge, else none, = 0, got 2"),
        ("gradient_noise", [torch.zeros(70)], "gradient_noise must hold one per modality .* = 2, got 1"),
        ("gradient_noise", [torch.zeros(65)] * 2, r"gradient_noise must be Float of shape \[at least 66\]"),
        ("gradient_offsets", None, "gradient_offsets must be given for ogm-ge, and for it alone"),
        ("gradient_offsets", long(1, 2, 3), r"gradient_offsets must be Long of shape \[1, 2, 2\]"),
        ("gradient_offsets", long(1, 2, 2) - 1, "gradient_offsets must be in .*, got -1 at position 0"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(name, value, words):
    bad = arguments() | {name: value}
    with pytest.raises((ValueError, RuntimeError), match=words):
        torch.ops.dmmlkd.local_round_(**bad)
    assert all((block == 0.1).all() for block in bad["parameters"])
    assert all((block == 0).all() for block in bad["momenta"])


@pytest.mark.parametrize("name", ["momenta", "starts"])
def test_memory_that_is_shared_is_refused(name):
    bad = arguments()
    bad[name][1] = bad["parameters"][1]
    with pytest.raises(ValueError, match=f"{name} must not share memory with parameters, those of block 1 do"):
        torch.ops.dmmlkd.local_round_(**bad)


@pytest.mark.parametrize("name", ["parameters", "momenta"])
def test_rows_that_overlap_are_refused(name):
    bad = arguments()
    bad[name][1] = bad[name][1][:1].expand(2, -1)
    with pytest.raises(ValueError, match=f"rows of {name} must not overlap, those of block 1 do"):
        torch.ops.dmmlkd.local_round_(**bad)
    assert (bad[name][1] == bad[name][1][0, 0]).all()


def test_a_device_that_trains_needs_the_shared_block():
    bad = arguments()
    for column in ("parameters", "momenta", "starts"):
        bad[column][0] = torch.zeros(1, 6)
    bad["devices"][0] = torch.tensor([1])
    words = re.escape("parameters[0], the shared block, must have a row for device 0, which has a modality")
    with pytest.raises(ValueError, match=words):
        torch.ops.dmmlkd.local_round_(**bad)


def test_an_encoder_lies_in_a_block_as_the_operator_reads_it():
    # The operator counts columns itself: another order of parameters would train something else.
    network = make_simulation().population.network
    for name, layers in ((name, network.encoders[name].layers) for name in MIXED_SHAPES):
        numbers = range(1, len(layers.widths) + 1)
        expected = [f"{kind}{number}" for number in numbers for kind in ("weight", "bias")]
        assert list(network.layouts[name].parameters) == [*expected, "projection", "head"]
