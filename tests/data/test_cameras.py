from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch

from dmmlkd_ext.data import MultiModalDataset
from dmmlkd_ext.data.sets.cameras import OVERLAP, cut, split_images
from dmmlkd_ext.data.sources.mnist import read_mnist

Real = Callable[..., MultiModalDataset]


def test_the_cameras_see_all_columns_and_share_two() -> None:
    images = np.arange(2 * 3 * 28, dtype=np.uint8).reshape(2, 3, 28)
    left, right = cut(images)
    assert left.shape == right.shape == (2, 3, 15)
    assert np.array_equal(left[:, :, -OVERLAP:], right[:, :, :OVERLAP])
    assert np.array_equal(np.concatenate([left, right[:, :, OVERLAP:]], axis=2), images)
    with pytest.raises(ValueError, match="images must have an even number of columns, got 27"):
        cut(images[:, :, 1:])


def test_no_image_stands_on_two_sides_and_classes_have_their_shares() -> None:
    digits = np.random.default_rng(0).integers(0, 10, 500)
    rows = split_images(digits)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(500))
    for side in ("validation", "test"):
        assert np.array_equal(np.bincount(digits[rows[side]]), np.bincount(digits) // 10)
        assert (np.diff(rows[side]) > 0).all()


def test_real_sizes_and_standardization(real: Real) -> None:
    data = real("cameras")
    assert data.shapes == {"left": (1, 28, 15), "right": (1, 28, 15)}
    assert [len(split) for split in (data.train, data.validation, data.test)] == [8008, 996, 996]
    for values in data.train.features.values():
        assert abs(float(values.mean())) < 1e-4
        assert float(values.std()) == pytest.approx(1.0, abs=1e-4)
    images, digits = read_mnist()
    first = split_images(digits)["test"][0]
    pixels, seen = images[first, :, :15].astype(float), data.test.features["left"][0, 0].double().numpy()
    assert np.corrcoef(pixels.ravel(), seen.ravel())[0, 1] == pytest.approx(1.0, abs=1e-5)
    assert torch.equal(data.test.features["left"], real("cameras", seed=4).test.features["left"])
