from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.data import MultiModalDataset
from dmmlkd_ext.data.sets.mfeat import load_mfeat, read_mfeat, split_rows

Real = Callable[..., MultiModalDataset]


def test_sizes_are_stratified(real: Real) -> None:
    data = real("mfeat")
    widths = {"fac": (216,), "fou": (76,), "kar": (64,), "mor": (6,), "pix": (240,), "zer": (47,)}
    assert data.shapes == widths
    assert data.modalities == tuple(widths)
    for split, per_class in ((data.train, 128), (data.validation, 22), (data.test, 50)):
        assert split.labels.bincount().tolist() == [per_class] * 10
        assert set(split.groups.tolist()) == {-1}


def test_views_are_standardized_by_training_statistics(real: Real) -> None:
    data = real("mfeat")
    for values in data.train.features.values():
        assert torch.allclose(values.mean(dim=0), torch.zeros(values.shape[1]), atol=1e-5)
        assert torch.allclose(values.std(dim=0, correction=0), torch.ones(values.shape[1]), atol=1e-4)
    assert float(data.test.features["pix"].mean(dim=0).abs().max()) > 1e-3


def test_no_numeral_stands_on_two_sides(real: Real) -> None:
    """Six numerals are in the files twice; both copies must be on one side."""
    data = real("mfeat")
    views, labels = read_mfeat()
    everything = np.concatenate(list(views.values()), axis=1)
    assert len(np.unique(everything, axis=0)) == 1994
    rows = split_rows(everything, labels)
    kept = {side: {everything[row].tobytes() for row in index} for side, index in rows.items()}
    assert not kept["train"] & kept["test"]
    assert not kept["train"] & kept["validation"]
    assert not kept["validation"] & kept["test"]
    assert len(data.train) == len(rows["train"])


def test_every_seed_gives_the_same(real: Real) -> None:
    first, second = real("mfeat"), real("mfeat", seed=9)
    assert torch.equal(first.train.features["zer"], second.train.features["zer"])
    assert torch.equal(first.validation.features["zer"], second.validation.features["zer"])


@settings(deadline=None)  # a loaded machine is slow, which is no failure
@given(st.lists(st.integers(0, 30), min_size=30, max_size=60))
def test_split_rows_is_disjoint_complete_and_keeps_copies_together(values: list[int]) -> None:
    features = np.asarray(values, dtype=np.float64)[:, None]
    labels = np.arange(len(values)) % 2
    rows = split_rows(features, labels, test_per_class=4, validation_per_class=3)
    assert sorted(np.concatenate(list(rows.values())).tolist()) == list(range(len(values)))
    side_of: dict[tuple[int, int], str] = {}
    for side, index in rows.items():
        for row in index:
            assert side_of.setdefault((values[row], int(labels[row])), side) == side


def test_too_small_a_class_is_named() -> None:
    with pytest.raises(ValueError, match=r"leave training rows of class 1, which has 2 rows, got 1 \+ 1"):
        split_rows(np.arange(6.0)[:, None], np.asarray([0, 0, 0, 0, 1, 1]), 1, 1)


def test_a_part_of_the_views_is_the_same_numerals(real: Real) -> None:
    whole, pair = real("mfeat"), real("mfeat-pair")
    assert (pair.name, pair.modalities) == ("mfeat-pair", ("fou", "pix"))
    for side in ("train", "validation", "test"):
        assert torch.equal(getattr(pair, side).labels, getattr(whole, side).labels)
        assert torch.equal(getattr(pair, side).features["pix"], getattr(whole, side).features["pix"])
        assert getattr(pair, side).present.shape[1] == 2
    assert real("mfeat", views="mor").modalities == ("mor",)


@pytest.mark.parametrize("views", ["", "pix+colour", "pix+pix"])
def test_views_that_are_not_there_are_named(views: str) -> None:
    with pytest.raises(ValueError, match=r"views must be some of fac\+fou\+kar\+mor\+pix\+zer, each once, got "):
        load_mfeat(views=views)
