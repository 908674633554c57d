"""Slices are even, complete, reproducible, and cut few links."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.network.slices import links_cut, slice_devices
from dmmlkd_ext.network.topology import build_topology
from dmmlkd_ext.seeding import numpy_generator


def edges_of(name: str, count: int) -> np.ndarray:
    return build_topology(name, count, numpy_generator(0, "topology")).edges


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.integers(1, 7), st.floats(0, 0.5), st.integers(0, 99))
def test_every_rank_has_its_share_and_no_device_two(count, ranks, density, seed):
    ranks = min(ranks, count)
    random = np.random.default_rng(seed)
    pairs = np.argwhere(np.triu(random.random((count, count)) < density, 1))
    work = random.random(count) + 0.1
    owner = slice_devices(pairs, count, ranks, work)
    assert owner.shape == (count,)
    assert set(owner.tolist()) == set(range(ranks))
    assert np.array_equal(owner, slice_devices(pairs, count, ranks, work))


@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_work_is_even(ranks):
    work = np.random.default_rng(1).random(200) + 0.5
    shares = np.bincount(slice_devices(edges_of("torus", 200), 200, ranks, work), work)
    assert shares.max() < 1.15 * work.sum() / ranks
    assert shares.min() > 0.85 * work.sum() / ranks


@pytest.mark.parametrize(
    ("name", "count", "ranks", "most"),
    [("ring", 60, 2, 2), ("ring", 60, 4, 4), ("torus", 256, 2, 32), ("torus", 256, 4, 64), ("torus", 2500, 2, 110)],
)
def test_few_links_are_cut(name, count, ranks, most):
    edges = edges_of(name, count)
    shuffled = np.random.default_rng(0).permutation(count)  # so that the devices' numbers say nothing
    assert 0 < links_cut(edges, slice_devices(edges, count, ranks)) <= most
    renamed = shuffled[edges]
    assert (
        links_cut(renamed, slice_devices(renamed, count, ranks)) <= 2 * most
    )  # without numbers that are near each other


def test_parts_that_no_link_joins_are_kept_whole():
    pairs = np.array([[0, 2], [2, 4], [4, 0], [1, 3], [3, 5], [5, 1]])
    owner = slice_devices(pairs, 6, 2)
    assert links_cut(pairs, owner) == 0
    assert np.bincount(owner).tolist() == [3, 3]


def test_links_cut_are_those_between_ranks():
    assert links_cut(np.array([[0, 1], [1, 2], [0, 2]]), np.array([0, 0, 1])) == 2
    assert links_cut(np.zeros((0, 2), dtype=np.int64), np.array([0, 1])) == 0


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: slice_devices(edges_of("ring", 4), 4, 5), "ranks must be between 1 and the 4 devices, got 5"),
        (lambda: slice_devices(edges_of("ring", 4), 4, 0), "ranks must be between 1 and the 4 devices, got 0"),
        (lambda: slice_devices(edges_of("ring", 4), 4, 2, np.ones(3)), r"work must have the shape \[4\], got \[3\]"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
