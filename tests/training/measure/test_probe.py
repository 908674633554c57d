from __future__ import annotations

import dataclasses
import itertools

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge, RidgeClassifier

from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.training.measure.probe import RIDGE, probe_accuracy, ridge_scores
from dmmlkd_ext.training.population import Population
from tests.training.synthetic import MIXED_SHAPES, SMALL_TRAINING, UNEVEN_HOLDS, make_dataset, make_simulation


def different_devices() -> Population:
    population = Population(MultiModalNetwork(MIXED_SHAPES, 4, 3, 5), UNEVEN_HOLDS, seed=0)
    generator = torch.Generator().manual_seed(0)
    for block in population.blocks.values():
        block.start += 0.3 * torch.randn(block.start.shape, generator=generator)
        block.local.fill_(float("nan"))  # a probe looks at what the last exchange left
    return population


@pytest.mark.parametrize("missing", [0.0, 0.5])
def test_probes_equal_scikit_learn_s_on_every_encoder(missing: float) -> None:
    population, dataset = different_devices(), make_dataset(missing=missing)
    probed = probe_accuracy(population, dataset.train, dataset.test)
    network = population.network
    for column, name in enumerate(network.modalities):
        block = population.blocks[name]
        assert np.isnan(probed[name][~population.holds[:, column]]).all()
        for row, device in enumerate(block.devices):
            own = {key: value[row : row + 1] for key, value in network.layouts[name].views(block.start).items()}
            encoded, labels = [], []
            for split in (dataset.train, dataset.test):
                here = split.present[:, column]
                inputs = split.features[name][here].unsqueeze(0)
                encoded.append(network.encoders[name].forward(own, inputs)[0].double().numpy())
                labels.append(split.labels[here].numpy())
            scale = ((encoded[0] - encoded[0].mean(0)) ** 2).sum(0).mean()
            oracle = RidgeClassifier(alpha=RIDGE * scale, solver="svd").fit(encoded[0], labels[0])
            assert probed[name][device] == pytest.approx(oracle.score(encoded[1], labels[1]))


@pytest.mark.parametrize("scale", [1e-4, 1.0, 1e4])
def test_scores_equal_scikit_learn_s_whatever_the_scale(scale: float) -> None:
    generator = torch.Generator().manual_seed(1)
    inputs, unseen = (scale * (3 + torch.randn(size, 6, generator=generator).double()) for size in (40, 7))
    targets = torch.rand(40, 3, generator=generator).double()
    penalty = RIDGE * float((inputs - inputs.mean(0)).square().sum(0).mean())
    expected = Ridge(alpha=penalty, solver="svd").fit(inputs.numpy(), targets.numpy()).predict(unseen.numpy())
    torch.testing.assert_close(ridge_scores(inputs, targets, unseen), torch.from_numpy(expected))


def test_an_encoder_that_says_nothing_gives_the_most_frequent_class() -> None:
    population, dataset = different_devices(), make_dataset()
    for block in population.blocks.values():
        block.start.zero_()
    share = float((dataset.test.labels == dataset.train.labels.bincount().argmax()).double().mean())
    probed = probe_accuracy(population, dataset.train, dataset.test)
    assert probed["wave"][2:4] == pytest.approx([share, share])


def test_the_probe_is_taken_in_the_last_round_where_it_is_asked_for() -> None:
    plain = make_simulation()
    probing = make_simulation(training=dataclasses.replace(SMALL_TRAINING, probe=True))
    rounds = [(plain.run_round(), probing.run_round()) for _ in range(plain.total_rounds)]
    for record, probed in rounds:
        assert record["probe_accuracy"] is None
        assert {**probed, "probe_accuracy": None} == record  # it changes nothing else
    assert [probed["probe_accuracy"] is None for _, probed in rounds] == [True, True, True, False]
    last = rounds[-1][1]["probe_accuracy"]
    assert last.keys() == MIXED_SHAPES.keys()
    assert [value is not None for value in last["wave"]] == UNEVEN_HOLDS[:, 1].tolist()


def test_a_rounds_probe_is_fitted_on_training_data_and_judged_on_test_data() -> None:
    training = dataclasses.replace(SMALL_TRAINING, rounds=1, probe=True)
    simulation = make_simulation(training=training)
    recorded = simulation.run_round()["probe_accuracy"]
    sides = {side: getattr(simulation.dataset, side) for side in ("train", "validation", "test")}
    for fitted, judged in itertools.product(sides, sides):
        probed = probe_accuracy(simulation.population, sides[fitted], sides[judged])
        same = [recorded[name] == _values(probed[name]) for name in recorded]
        assert all(same) == ((fitted, judged) == ("train", "test")), (fitted, judged)


def _values(accuracy: np.ndarray) -> list[float | None]:
    return [None if np.isnan(value) else value for value in accuracy.tolist()]
