from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from dmmlkd_ext.data import MultiModalDataset, load_dataset
from dmmlkd_ext.data.sets import avdigits as avdigits_module
from dmmlkd_ext.data.sets.avdigits import compute_avdigits, pair_up, weaken_images
from dmmlkd_ext.data.sources.fsdd import Recording, read_fsdd
from dmmlkd_ext.data.sources.mnist import read_mnist

Real = Callable[..., MultiModalDataset]
OrSkip = Callable[[Callable[[], Any]], Any]


def make_recordings(digits: int = 10, speakers: int = 2) -> list[Recording]:
    random = np.random.default_rng(0)
    return [
        Recording(digit, speaker, index, random.normal(size=500 + 40 * digit).astype(np.float32))
        for digit in range(digits)
        for speaker in range(speakers)
        for index in range(12)
    ]


@pytest.fixture
def small(cache: Path, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Stands in for the raw files; returns a list that grows with every reading."""
    images = np.random.default_rng(1).integers(0, 256, (400, 28, 28)).astype(np.uint8)
    readings: list[int] = []

    def read_images() -> tuple[np.ndarray, np.ndarray]:
        readings.append(1)
        return images, np.arange(400) % 10

    monkeypatch.setattr(avdigits_module, "read_mnist", read_images)
    monkeypatch.setattr(avdigits_module, "read_fsdd", make_recordings)
    return readings


@pytest.mark.parametrize("pairs", [1, 3])
def test_neither_image_nor_recording_stands_on_two_sides(pairs: int) -> None:
    recordings, digits = make_recordings(), np.arange(500) % 10
    tables = pair_up(recordings, digits, pairs)
    for one, other in combinations(tables, 2):
        for column in (0, 1):
            assert not set(tables[one][:, column]) & set(tables[other][:, column])
    for side, table in tables.items():
        for row, image in table:
            assert recordings[row].digit == digits[image]
            assert (side == "test") == (recordings[row].index < 5)
        counts = np.unique(table[:, 0], return_counts=True)[1]
        assert set(counts) == {pairs}
        assert len({tuple(pair) for pair in table}) == len(table)
    assert sum(len(np.unique(table[:, 0])) for table in tables.values()) == len(recordings)


def test_too_few_images_are_named() -> None:
    with pytest.raises(
        ValueError, match="pairs must not exceed the images of digit 0 on the validation side, 2, got 3"
    ):
        pair_up(make_recordings(), np.arange(200) % 10, 3)


def test_image_keeps_the_energy_asked_for() -> None:
    random = np.random.default_rng(0)
    images = (random.normal(size=(300, 1, 9)) @ random.normal(size=(9, 9)) * 20 + 128).clip(0, 255).astype(np.uint8)
    train = np.arange(200)
    clean = weaken_images(images, train, 1.0)
    assert np.allclose(clean, images / 255)
    previous = 0.0
    for energy in (0.1, 0.25, 0.6, 0.95):
        weak = weaken_images(images, train, energy)[train].reshape(200, -1)
        kept = weak.var(axis=0).sum() / clean[train].reshape(200, -1).var(axis=0).sum()
        assert kept >= max(energy - 1e-6, previous)
        previous = kept
        rank = np.linalg.matrix_rank(weak - weak.mean(axis=0), tol=1e-3)
        assert rank < 9
    other = images.copy()
    other[200:] = 0
    assert np.array_equal(weaken_images(other, train, 0.25)[train], weaken_images(images, train, 0.25)[train])


def test_what_is_learned_from_does_not_depend_on_the_images_of_other_sides(monkeypatch: pytest.MonkeyPatch) -> None:
    images, digits = np.random.default_rng(1).integers(0, 256, (400, 6, 6)).astype(np.uint8), np.arange(400) % 10
    recordings = make_recordings()
    others = np.setdiff1d(np.arange(400), pair_up(recordings, digits, 2)["train"][:, 1])
    monkeypatch.setattr(avdigits_module, "read_fsdd", lambda: recordings)
    monkeypatch.setattr(avdigits_module, "read_mnist", lambda: (images, digits))
    before = compute_avdigits(2, 0.5, 0.0)
    changed = images.copy()
    changed[others] = 255 * (changed[others] > 200)
    monkeypatch.setattr(avdigits_module, "read_mnist", lambda: (changed, digits))
    after = compute_avdigits(2, 0.5, 0.0)
    assert np.array_equal(before["train_image"], after["train_image"])
    assert not np.array_equal(before["test_image"], after["test_image"])


def test_every_side_has_noise_of_its_own() -> None:
    silence, rows = torch.zeros(1, avdigits_module._CLIP), np.zeros(2, dtype=np.int64)
    sounds = [avdigits_module._spectrograms(silence, rows, 0.0, side) for side in avdigits_module.SIDES]
    for one, other in combinations(sounds, 2):
        assert abs(np.corrcoef(one.ravel(), other.ravel())[0, 1]) < 0.2


def test_features_are_kept_and_the_same_again(small: list[int], cache: Path) -> None:
    first = load_dataset("avdigits", image_energy=1)
    second = load_dataset("avdigits", image_energy=1.0, seed=7)
    assert len(small) == 1
    assert first.shapes == {"image": (1, 28, 28), "audio": (1, 32, 32)}
    for name in first.modalities:
        assert torch.equal(first.test.features[name], second.test.features[name])
    for kept in (cache / "avdigits").iterdir():
        kept.unlink()
    assert torch.equal(load_dataset("avdigits", image_energy=1).train.features["audio"], first.train.features["audio"])
    load_dataset("avdigits", snr_db=float("inf"), image_energy=0.5)
    assert len(small) == 3


@pytest.mark.usefixtures("small")
def test_every_pair_has_noise_of_its_own_unless_clean() -> None:
    noisy = load_dataset("avdigits", pairs=2, image_energy=1).test.features["audio"]
    clean = load_dataset("avdigits", pairs=2, image_energy=1, snr_db=float("inf")).test.features["audio"]
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(clean[0], clean[1])


@pytest.mark.parametrize(
    ("option", "value"),
    [("pairs", 0), ("pairs", 2.0), ("image_energy", 0.0), ("image_energy", 1.5), ("snr_db", float("nan"))],
)
def test_bad_options_are_named(option: str, value: float) -> None:
    with pytest.raises(ValueError, match=f"{option} must"):
        load_dataset("avdigits", **{option: value})


def test_real_sizes_and_owners(real: Real) -> None:
    data = real("avdigits")
    for split, samples in ((data.train, 7200), (data.validation, 900), (data.test, 900)):
        assert split.labels.bincount().tolist() == [samples // 10] * 10
        assert split.groups.bincount().tolist() == [samples // 6] * 6
    image, audio = data.train.features["image"], data.train.features["audio"]
    assert abs(float(image.mean())) < 1e-3
    assert float(image.std()) == pytest.approx(1, abs=1e-3)
    assert audio.mean(dim=(0, 1, 3)).abs().max() < 1e-3
    assert float(torch.linalg.matrix_rank(image[:500].flatten(1) - image[:500].flatten(1).mean(dim=0), tol=0.5)) == 4


def test_real_pairs_are_disjoint(or_skip: OrSkip) -> None:
    images, digits = or_skip(read_mnist)
    assert images.shape == (10_000, 28, 28)
    assert len(np.unique(images.reshape(10_000, -1), axis=0)) == 10_000
    recordings = or_skip(read_fsdd)
    assert len({item.samples.tobytes() for item in recordings}) == 3000
    tables = pair_up(recordings, digits, 3)
    for one, other in combinations(tables, 2):
        for column in (0, 1):
            assert not set(tables[one][:, column]) & set(tables[other][:, column])


def test_kept_features_are_those_of_this_recipe(real: Real, or_skip: OrSkip) -> None:
    """Fails when the recipe was changed without a new RECIPE_VERSION (on a machine with kept features)."""
    data = real("avdigits")
    arrays = or_skip(lambda: compute_avdigits(3, 0.25, 0.0))
    assert np.allclose(arrays["test_audio"], data.test.features["audio"], atol=1e-3)
    assert np.allclose(arrays["test_image"], data.test.features["image"], atol=1e-3)


def test_the_clean_image_is_the_image_itself(real: Real, or_skip: OrSkip) -> None:
    data, weak = real("avdigits-clean"), real("avdigits")
    images, digits = or_skip(read_mnist)
    row = pair_up(or_skip(read_fsdd), digits, 3)["test"][0, 1]
    seen = data.test.features["image"][0, 0].double().numpy()
    assert np.corrcoef(images[row].astype(float).ravel(), seen.ravel())[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(data.test.features["audio"], weak.test.features["audio"])
    assert data.name == "avdigits-clean"
