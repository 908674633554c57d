from __future__ import annotations

import numpy as np
import pytest
import torch

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.measure import evaluation
from dmmlkd_ext.training.measure.evaluation import evaluate
from dmmlkd_ext.training.measure.generator_quality import GeneratorQuality
from dmmlkd_ext.training.population import Population
from tests.ops.instruction_sets import instruction_sets, kernels_of
from tests.training.plain_loop import make_devices
from tests.training.synthetic import MIXED_SHAPES, UNEVEN_HOLDS, make_split


def different_devices(holds: np.ndarray = UNEVEN_HOLDS) -> Population:
    population = Population(MultiModalNetwork(MIXED_SHAPES, 4, 3, 5), holds, seed=0)
    generator = torch.Generator().manual_seed(0)
    for block in population.blocks.values():
        block.start += 0.3 * torch.randn(block.start.shape, generator=generator)
        block.local.fill_(float("nan"))  # an evaluation looks at what the last exchange left
    return population


@pytest.mark.parametrize("missing", [0.0, 0.5])
@pytest.mark.parametrize("chunk_values", [None, 2**23, 1], ids=["natively", "at once", "one by one"])
def test_accuracies_equal_a_loop_over_devices_and_samples(missing, chunk_values, monkeypatch):
    if chunk_values:
        monkeypatch.setattr(evaluation, "simulates_natively", lambda _: False)
        monkeypatch.setattr(evaluation, "CHUNK_VALUES", chunk_values)
    population = different_devices()
    split = make_split(MIXED_SHAPES, 60, 4, missing, seed=1)
    accuracy = evaluate(population, split)
    names = population.network.modalities
    for number, device in enumerate(make_devices(population)):
        right: dict[str, list[bool]] = {name: [] for name in ("joint", *names)}
        for sample in range(len(split)):
            has = {
                name: split.features[name][sample : sample + 1]
                for column, name in enumerate(names)
                if population.holds[number, column] and split.present[sample, column]
            }
            if not has:
                continue
            outputs = device(has)
            logits = (outputs.common_logits + outputs.specific_logits)[:, 0]
            right["joint"].append(int(logits.mean(0).argmax()) == int(split.labels[sample]))
            for name, own in zip(has, logits, strict=True):
                right[name].append(int(own.argmax()) == int(split.labels[sample]))
        assert accuracy.joint[number] == np.mean(right["joint"])
        for column, name in enumerate(names):
            if population.holds[number, column]:
                assert accuracy.alone[name][number] == np.mean(right[name])
            else:
                assert np.isnan(accuracy.alone[name][number])


def both_ways(
    population: Population, split: Split, monkeypatch: pytest.MonkeyPatch, samples: torch.Tensor | None = None
) -> list[np.ndarray]:
    """Return the accuracies by torch's operations and by the native operator, [2, modalities + 1, devices]."""
    found = []
    for natively in (False, True):
        with monkeypatch.context() as patch:
            if not natively:
                patch.setattr(evaluation, "simulates_natively", lambda _: False)
            accuracy = evaluate(population, split, samples=samples)
        found.append(np.stack([*accuracy.alone.values(), accuracy.joint]))
    return found


def generator_quality(population: Population, split: Split, pool: torch.Tensor) -> GeneratorQuality:
    quality = evaluate(population, split, pool=pool).generator
    assert quality is not None
    return quality


@pytest.mark.parametrize("kernels", instruction_sets())
@pytest.mark.parametrize("samples", [1, 63, 64, 200])
def test_the_native_operator_equals_the_reference(samples, kernels, monkeypatch):
    population, split = different_devices(), make_split(MIXED_SHAPES, samples, 4, 0.4, seed=1)
    with kernels_of(kernels):
        reference, native = both_ways(population, split, monkeypatch)
    np.testing.assert_array_equal(native, reference)


def test_the_native_operator_equals_the_reference_in_double_precision(float64, monkeypatch):
    population, split = different_devices(), make_split(MIXED_SHAPES, 70, 4, 0.4, seed=1)
    split.features.update({name: values.double() for name, values in split.features.items()})
    for block in population.blocks.values():
        block.start = block.start.double()
    reference, native = both_ways(population, split, monkeypatch)
    np.testing.assert_array_equal(native, reference)


@pytest.mark.parametrize("kernels", instruction_sets())
def test_samples_of_its_own_judge_a_device_as_they_do_alone(kernels, monkeypatch):
    population, split = different_devices(), make_split(MIXED_SHAPES, 150, 4, 0.4, seed=1)
    samples = torch.stack([torch.randperm(150, generator=torch.Generator().manual_seed(d))[:70] for d in range(5)])
    with kernels_of(kernels):
        reference, native = both_ways(population, split, monkeypatch, samples)
        np.testing.assert_array_equal(native, reference)
        for device, own in enumerate(samples):
            accuracy = evaluate(population, split.select(own))
            expected = [*(values[device] for values in accuracy.alone.values()), accuracy.joint[device]]
            np.testing.assert_array_equal(native[:, device], expected)
    assert not np.array_equal(native, both_ways(population, split, monkeypatch)[1], equal_nan=True)


def test_a_guess_is_judged_by_the_devices_own_samples():
    population = different_devices(np.array([[False] * 3, [True] * 3, [False] * 3]))
    split = make_split(MIXED_SHAPES, 40, 4, 0.0, 0)
    samples = torch.stack([torch.arange(8), torch.arange(8), torch.arange(32, 40)])
    accuracy = evaluate(population, split, np.array([1, 0, 3]), samples)
    assert accuracy.joint[0] == (split.labels[:8] == 1).double().mean().item()
    assert accuracy.joint[2] == (split.labels[32:] == 3).double().mean().item()


def test_a_generator_is_judged_by_all_samples_only():
    with pytest.raises(ValueError, match="samples must be None where a pool is judged"):
        evaluate(
            different_devices(),
            make_split(MIXED_SHAPES, 9, 4, 0.0, 0),
            samples=torch.zeros(5, 2, dtype=torch.int64),
            pool=torch.zeros(5, 4, 6, 3),
        )


def test_what_is_no_number_is_judged_as_the_reference_judges_it(monkeypatch):
    population, split = different_devices(), make_split(MIXED_SHAPES, 70, 4, 0.4, seed=1)
    heads = population.blocks[SHARED].start.view(5, 3, 4)
    heads[0, :, 2], heads[1], heads[2, 0, 1] = torch.nan, torch.nan, torch.inf
    reference, native = both_ways(population, split, monkeypatch)
    np.testing.assert_array_equal(native, reference)


def test_the_same_counts_on_any_number_of_threads():
    population, split, found = different_devices(), make_split(MIXED_SHAPES, 200, 4, 0.4, seed=1), []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        accuracy = evaluate(population, split)
        found.append(np.stack([*accuracy.alone.values(), accuracy.joint]))
    np.testing.assert_array_equal(found[0], found[1])
    np.testing.assert_array_equal(found[0], found[2])


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"num_devices": -1}, "num_devices must be at least 0, got -1"),
        ({"num_devices": 1}, r"devices must be different and in \[0, 1\), got 1"),
        ({"devices": [torch.tensor([1]), torch.arange(2)]}, r"devices must be Long of shape \[2\]"),
        ({"values": [torch.zeros(3, 4)]}, "parameters of block 1 must have 31 columns, got 34"),
        ({"values": [torch.zeros(4, 5)]}, r"values must be Float of shape \[3, 5\]"),
        ({"values": [torch.zeros(3, 5).double()]}, r"values must be Float of shape \[3, 5\], got Double"),
        ({"labels": torch.zeros(3)}, "labels must be Long"),
        ({"present": torch.ones(3, 2, dtype=torch.bool)}, r"present must be Bool of shape \[3, 1\]"),
        ({"classes": 3}, "classes must divide the columns of the shared block, 4, got 3"),
        ({"kernels": [3]}, "kernels must be 0 for values"),
        ({"samples": torch.zeros(3, 2, dtype=torch.int64)}, r"samples must be Long of shape \[2, 2\], got Long"),
        ({"samples": torch.zeros(2, 2)}, r"samples must be Long of shape \[devices, n\], got Float"),
        ({"samples": torch.tensor([[0, 2], [3, 0]])}, r"samples must be in \[0, 3\), got 3 at position 2"),
        ({"samples": torch.tensor([[0, -1], [1, 0]])}, r"samples must be in \[0, 3\), got -1 at position 1"),
        ({"common": [torch.zeros(2, 3, 2)] * 2}, "common must hold one per modality = 1, got 2"),
        ({"common": [torch.zeros(2, 4, 2)]}, r"common must be Float of shape \[2, 3, 2\]"),
        ({"common": [torch.zeros(2, 2, 3).mT]}, "common must be contiguous in each device"),
    ],
)
def test_bad_input_of_the_native_operator_is_named(change, words):
    good = {
        "parameters": [torch.zeros(2, 4), torch.zeros(2, 34)],
        "devices": [torch.arange(2), torch.arange(2)],
        "num_devices": 2,
        "values": [torch.zeros(3, 5)],
        "labels": torch.zeros(3, dtype=torch.int64),
        "present": torch.ones(3, 1, dtype=torch.bool),
        "kernels": [0],
        "strides": [1],
        "layers": [1],
        "widths": [3],
        "classes": 2,
        "samples": None,
        "common": [],
    }
    right, counted = torch.ops.dmmlkd.count_right(**good)
    assert right.tolist() == counted.tolist() == [[3, 3], [3, 3]]  # the first class is the largest of equal ones
    with pytest.raises(ValueError, match=words):
        torch.ops.dmmlkd.count_right(**(good | change))


def test_a_sample_without_any_of_a_devices_modalities_does_not_count_for_it():
    population = different_devices(np.array([[True, False, False], [False, True, False]]))
    split = make_split(MIXED_SHAPES, 30, 4, 0.0, seed=2)
    before = evaluate(population, split)
    split.present[10:, 0] = False
    after = evaluate(population, split)
    first = evaluate(population, split.select(torch.arange(10)))
    assert after.joint[0] == first.joint[0] == after.alone["vector"][0]
    assert after.joint[1] == before.joint[1]
    split.present[:, 0] = False
    nothing = evaluate(population, split)
    assert np.isnan(nothing.joint[0])
    assert np.isnan(nothing.alone["vector"]).all()
    assert nothing.joint[1] == before.joint[1]


def test_a_device_without_modalities_has_no_accuracy():
    accuracy = evaluate(different_devices(np.array([[False] * 3, [True] * 3])), make_split(MIXED_SHAPES, 9, 4, 0.0, 0))
    assert np.isnan(accuracy.joint).tolist() == [True, False]


def test_a_device_without_modalities_may_predict_one_class():
    population = different_devices(np.array([[False] * 3, [True] * 3, [False] * 3]))
    split = make_split(MIXED_SHAPES, 40, 4, 0.0, 0)
    accuracy, without = evaluate(population, split, np.array([1, 0, 3])), evaluate(population, split)
    share = [(split.labels == label).double().mean().item() for label in range(4)]
    assert accuracy.joint.tolist() == pytest.approx([share[1], without.joint[1], share[3]])
    assert all(np.isnan(values).tolist() == [True, False, True] for values in accuracy.alone.values())


def test_without_samples_there_is_no_accuracy():
    accuracy = evaluate(different_devices(), make_split(MIXED_SHAPES, 0, 4, 0.0, 0))
    assert np.isnan(accuracy.joint).all()
    assert list(accuracy.alone) == list(MIXED_SHAPES)
    assert all(np.isnan(values).all() for values in accuracy.alone.values())


@pytest.mark.parametrize("at_once", ["natively", "natively, two by two", "by torch", "by torch, two by two"])
@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_a_generator_is_judged_by_real_features_as_a_loop_does(missing, at_once, monkeypatch):
    if "torch" in at_once:
        monkeypatch.setattr(evaluation, "simulates_natively", lambda _: False)
    if "two" in at_once:
        monkeypatch.setattr(evaluation, "FEATURE_VALUES", 2 * 60 * 3 * 3)
    population, split = different_devices(), make_split(MIXED_SHAPES, 60, 4, missing, seed=1)
    pool = torch.randn(5, 4, 6, 3, generator=torch.Generator().manual_seed(3))
    judged = evaluate(population, split, pool=pool)
    np.testing.assert_array_equal(judged.joint, evaluate(population, split).joint)
    quality = judged.generator
    assert quality is not None
    for number, device in enumerate(make_devices(population)):
        features, labels = [], []
        for column, name in enumerate(population.network.modalities):
            if population.holds[number, column]:
                here = split.present[:, column]
                features.append(device({name: split.features[name][here]}).common[0].detach())
                labels.append(split.labels[here])
        real, label = torch.cat(features), torch.cat(labels)
        distances = (real[:, None] - pool[number].mean(1)).norm(dim=-1)
        assert quality.nearest_mean[number] == pytest.approx((distances.argmin(1) == label).float().mean().item())
        spreads = [
            (pool[number, c].var(0, correction=0).mean().sqrt() / real[label == c].var(0, correction=0).mean().sqrt())
            for c in range(4)
        ]
        assert quality.spread[number] == pytest.approx(torch.stack(spreads).mean().item(), rel=1e-3)


def test_a_class_that_the_test_data_lack_says_nothing_of_the_spread():
    population = different_devices(np.array([[True, False, False]]))
    split = make_split(MIXED_SHAPES, 60, 4, 0.0, seed=1)
    pool = torch.randn(1, 4, 6, 3, generator=torch.Generator().manual_seed(3))
    pool[:, 3] *= 100  # the class that will be absent
    split = split.select((split.labels != 3).nonzero().flatten())
    three = generator_quality(population, split, pool[:, :3])
    assert generator_quality(population, split, pool).spread == pytest.approx(three.spread)
    assert np.isfinite(three.spread).all()
    single = split.select((split.labels == 0).nonzero().flatten()[:1])  # one feature has no deviation
    assert np.isnan(generator_quality(population, single, pool).spread).all()


def test_the_shared_head_of_each_device_is_its_own():
    population = different_devices()
    split = make_split(MIXED_SHAPES, 40, 4, 0.0, seed=1)
    before = evaluate(population, split).joint
    population.blocks[SHARED].start[1] *= -50
    after = evaluate(population, split).joint
    assert after[1] != before[1]
    assert np.array_equal(np.delete(after, 1), np.delete(before, 1))
