from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from dmmlkd_ext.experiments.config.worlds import world
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.training.keep.files import save_state
from dmmlkd_ext.training.population import Population
from paper_figures.collect import embedding
from paper_figures.collect.embedding import Features, class_distance, class_ratio, compute_features, embed, pick_samples
from tests.training.synthetic import MIXED_SHAPES, UNEVEN_HOLDS, make_split


def features(values: np.ndarray, labels: list[int]) -> Features:
    samples = np.arange(len(labels))
    return Features("image", "common", np.arange(len(values)), values, samples, np.array(labels))


def test_the_distance_is_that_of_class_means_over_the_spread_within_a_class() -> None:
    # Two devices, one class, width 2: means (0, 0) and (3, 4), five apart; every sample is 1 from its mean.
    values = np.array([[[1.0, 0.0], [-1.0, 0.0]], [[3.0, 5.0], [3.0, 3.0]]])
    assert class_distance(features(values, [0, 0])) == pytest.approx(5.0)
    assert class_distance(features(10 * values, [0, 0])) == pytest.approx(5.0)


def test_the_distance_equals_a_loop_over_pairs() -> None:
    generator = np.random.default_rng(0)
    values, labels = generator.normal(size=(4, 30, 5)), generator.integers(3, size=30)
    pairs, spreads = [], []
    for label in range(3):
        own = values[:, labels == label]
        means = own.mean(1)
        pairs += [((means[a] - means[b]) ** 2).sum() for a in range(4) for b in range(a)]
        spreads += [((sample - means[device]) ** 2).sum() for device in range(4) for sample in own[device]]
    expected = np.sqrt(np.mean(pairs) / np.mean(spreads))
    assert class_distance(features(values, labels.tolist())) == pytest.approx(expected)


def test_the_ratio_is_that_of_one_class_to_different_ones_on_different_devices() -> None:
    values = np.random.default_rng(3).normal(size=(3, 6, 2))
    labels = [0, 0, 1, 1, 2, 2]
    means = values.reshape(3, 3, 2, 2).mean(2)  # [devices, classes, d]
    places = [(device, label) for device in range(3) for label in range(3)]
    pairs = [(one, other) for one in places for other in places if one[0] != other[0]]
    squares = {True: [], False: []}
    for one, other in pairs:
        squares[one[1] == other[1]].append(((means[one] - means[other]) ** 2).sum())
    expected = np.sqrt(np.mean(squares[True]) / np.mean(squares[False]))
    assert class_ratio(features(values, labels)) == pytest.approx(expected)
    assert class_ratio(features(7 * values + 1, labels)) == pytest.approx(expected)
    spread = np.repeat(values.reshape(3, 3, 2, 2).mean(2), 2, axis=1) + np.tile([[-5.0], [5.0]], (3, 1))
    assert class_ratio(features(spread, labels)) == pytest.approx(expected)  # however wide a class is
    assert np.isnan(class_ratio(features(values[:1], labels)))
    assert np.isnan(class_ratio(features(values, [0] * 6)))
    assert class_ratio(features(np.repeat(values[:1], 3, axis=0), labels)) == 0


def test_a_single_device_has_no_distance_and_equal_devices_none_between_them() -> None:
    values = np.random.default_rng(0).normal(size=(1, 10, 3))
    labels = [0, 1] * 5
    assert np.isnan(class_distance(features(values, labels)))
    assert class_distance(features(np.repeat(values, 3, axis=0), labels)) == 0


def test_features_are_those_of_the_network() -> None:
    population = Population(MultiModalNetwork(MIXED_SHAPES, 4, 3, 5), UNEVEN_HOLDS, seed=0)
    generator = torch.Generator().manual_seed(0)
    for block in population.blocks.values():
        block.start += 0.3 * torch.randn(block.start.shape, generator=generator)
    split = make_split(MIXED_SHAPES, 20, 4, 0.5, seed=1)
    found = {(part.modality, part.kind): part for part in compute_features(population, split)}
    assert set(found) == {(name, kind) for name in MIXED_SHAPES for kind in ("common", "specific")}
    part = found["image", "specific"]
    assert part.devices.tolist() == [0, 1, 4]
    here = split.present[:, 2]
    assert part.labels.tolist() == split.labels[here].tolist()
    network, block = population.network, population.blocks["image"]
    weights = {key: value[1:2] for key, value in network.layouts["image"].views(block.start).items()}
    head = network.layouts[SHARED].views(population.blocks[SHARED].start)["head"][1:2]
    expected = network.forward("image", weights, head, split.features["image"][here].unsqueeze(0)).specific[0]
    np.testing.assert_allclose(part.values[1], expected.numpy(), rtol=1e-6)


def test_samples_have_the_classes_in_turn() -> None:
    picked = pick_samples(np.array([5, 5, 5, 5, 7, 9, 9]), count=5)
    assert picked.tolist() == [0, 1, 4, 5, 6]
    assert pick_samples(np.array([1, 1]), count=10).tolist() == [0, 1]


def test_the_map_has_the_devices_with_most_modalities_and_is_the_same_each_time(monkeypatch) -> None:
    monkeypatch.setattr(embedding, "DEVICES", 2)
    population = Population(MultiModalNetwork(MIXED_SHAPES, 4, 3, 5), UNEVEN_HOLDS, seed=0)
    parts = list(compute_features(population, make_split(MIXED_SHAPES, 20, 4, 0.0, seed=1)))
    points = embed(parts, UNEVEN_HOLDS)
    assert set(points["device"]) == {0, 1}
    assert set(points["embedding"]) == {"pca", "tsne"}
    assert len(points) == 2 * 2 * (3 + 2) * 20
    again = embed(parts, UNEVEN_HOLDS)
    np.testing.assert_array_equal(points[["x", "y"]], again[["x", "y"]])
    pca = points[points["embedding"] == "pca"]
    assert pca["x"].var() >= pca["y"].var() > 0


def test_what_is_shown_of_a_run_are_features_of_its_test_data(monkeypatch, tmp_path: Path) -> None:
    population = Population(MultiModalNetwork(MIXED_SHAPES, 4, 3, 5), UNEVEN_HOLDS, seed=0)
    train, validation, test = (make_split(MIXED_SHAPES, 20, 4, 0.0, seed=seed) for seed in range(3))
    dataset = SimpleNamespace(train=train, validation=validation, test=test)
    loaded: list[dict] = []
    simulation = SimpleNamespace(population=population, dataset=dataset, load_state_dict=loaded.append)
    monkeypatch.setattr(embedding, "build_simulation", lambda config: simulation)
    seals = {
        f"checkpoint-2-{rank}-of-2.pt": save_state(tmp_path / f"checkpoint-2-{rank}-of-2.pt", {"rows": [rank]})
        for rank in (1, 2)
    }
    save_state(tmp_path / "checkpoint.pt", {"round": 2, "rows": [], "shards": seals})
    shown = embedding.embed_run(world("watch", "dmml", 0), tmp_path)
    assert loaded == [{"round": 2, "rows": [1, 2]}]  # of both ranks that ran it
    expected = embed(list(compute_features(population, test)), UNEVEN_HOLDS)
    points = shown[~shown["embedding"].isin(["distance", "ratio"])]
    names = ["class", "x", "y"]
    np.testing.assert_array_equal(points[names].to_numpy(float), expected[names].to_numpy(float))
