from __future__ import annotations

import numpy as np
import pytest
import torch

from dmmlkd_ext.models.network import SHARED, MultiModalNetwork
from dmmlkd_ext.training import evaluation
from dmmlkd_ext.training.evaluation import evaluate, judge_generator
from dmmlkd_ext.training.population import Population
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
@pytest.mark.parametrize("chunk_values", [2**23, 1], ids=["at once", "one by one"])
def test_accuracies_equal_a_loop_over_devices_and_samples(missing, chunk_values, monkeypatch):
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


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_a_generator_is_judged_by_real_features_as_a_loop_does(missing):
    population, split = different_devices(), make_split(MIXED_SHAPES, 60, 4, missing, seed=1)
    pool = torch.randn(5, 4, 6, 3, generator=torch.Generator().manual_seed(3))
    quality = judge_generator(population, split, pool)
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
    three = judge_generator(population, split, pool[:, :3])
    assert judge_generator(population, split, pool).spread == pytest.approx(three.spread)
    assert np.isfinite(three.spread).all()
    single = split.select((split.labels == 0).nonzero().flatten()[:1])  # one feature has no deviation
    assert np.isnan(judge_generator(population, single, pool).spread).all()


def test_the_shared_head_of_each_device_is_its_own():
    population = different_devices()
    split = make_split(MIXED_SHAPES, 40, 4, 0.0, seed=1)
    before = evaluate(population, split).joint
    population.blocks[SHARED].start[1] *= -50
    after = evaluate(population, split).joint
    assert after[1] != before[1]
    assert np.array_equal(np.delete(after, 1), np.delete(before, 1))
