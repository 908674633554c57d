"""Slices are complete, even, the same every time, and cut few links."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import dmmlkd_ext.training.exchange.slices as slices_module
from dmmlkd_ext.training.exchange.slices import links_cut, slice_devices
from dmmlkd_ext.wireless.topology import build_topology


def ring(order) -> np.ndarray:
    """Return the links of a ring through devices in an order."""
    return np.sort(np.c_[order, np.roll(order, -1)], axis=1)


def clique(devices) -> list[tuple[int, int]]:
    return [(i, j) for i in devices for j in devices if i < j]


@st.composite
def graphs(draw):
    devices = draw(st.integers(1, 20))
    pairs = [(i, j) for i in range(devices) for j in range(i + 1, devices)]
    edges = draw(st.lists(st.sampled_from(pairs), unique=True)) if pairs else []
    return np.array(sorted(edges), dtype=np.int64).reshape(-1, 2), devices


@given(graphs(), st.data())
@settings(deadline=None)
def test_every_rank_gets_a_device_whatever_the_graph(graph, data):
    edges, devices = graph
    ranks = data.draw(st.integers(1, devices))
    work = np.array(data.draw(st.lists(st.integers(0, 100), min_size=devices, max_size=devices)), dtype=float)
    owner = slice_devices(edges, devices, ranks, work)
    assert owner.shape == (devices,)
    assert owner.dtype == np.int64
    assert set(owner.tolist()) == set(range(ranks))
    np.testing.assert_array_equal(owner, slice_devices(edges.copy(), devices, ranks, work.copy()))


@pytest.mark.parametrize("refined", [0, 2_000])
@pytest.mark.parametrize("ranks", [2, 3, 4, 7])
def test_shares_are_even(ranks, refined, monkeypatch):
    monkeypatch.setattr(slices_module, "REFINED_DEVICES", refined)
    edges = build_topology("watts_strogatz", 83, np.random.default_rng(0)).edges
    counts = np.bincount(slice_devices(edges, 83, ranks))
    assert counts.max() - counts.min() <= 2


def test_work_is_shared_and_not_numbers():
    path = np.array([[i, i + 1] for i in range(7)])
    assert slice_devices(path, 8, 2, np.array([4.0, 1, 1, 1, 1, 1, 1, 2])).tolist() == [0] * 3 + [1] * 5
    assert slice_devices(path, 8, 2).tolist() == [0] * 4 + [1] * 4
    # A rank keeps a device even where one device has all the work.
    assert np.bincount(slice_devices(path, 8, 4, np.eye(8)[0])).min() == 1


def test_numbers_that_say_nothing_of_the_graph_cost_nothing():
    order = np.random.default_rng(0).permutation(48)
    edges = ring(order)
    for ranks in (2, 3, 4):
        assert links_cut(edges, slice_devices(edges, 48, ranks)) == ranks
    by_number = np.repeat([0, 1, 2, 3], 12)
    assert links_cut(edges, by_number) > 20


def test_links_are_saved_where_orders_mislead():
    # Two cliques of devices by turns, and one link between them: any stretch of the numbers cuts most of both.
    even, odd = range(0, 16, 2), range(1, 16, 2)
    edges = np.array(sorted([*clique(even), *clique(odd), (0, 15)]))
    owner = slice_devices(edges, 16, 2)
    assert links_cut(edges, owner) == 1
    assert len(set(owner[list(even)])) == len(set(owner[list(odd)])) == 1


def test_the_refinement_saves_links(monkeypatch):
    edges = build_topology("random_geometric", 60, np.random.default_rng(1)).edges
    refined = links_cut(edges, slice_devices(edges, 60, 4))
    monkeypatch.setattr(slices_module, "REFINED_DEVICES", 0)
    assert refined < links_cut(edges, slice_devices(edges, 60, 4))


def test_parts_without_links_between_them_are_not_cut():
    edges = np.array([[0, 3], [1, 4], [2, 5]])
    assert links_cut(edges, slice_devices(edges, 6, 3)) == 0
    assert slice_devices(np.zeros((0, 2), dtype=np.int64), 4, 4).tolist() == [0, 1, 2, 3]


def test_links_between_ranks_are_counted():
    edges = np.array([[0, 1], [1, 2], [0, 2], [2, 3]])
    assert links_cut(edges, np.array([0, 0, 1, 2])) == 3
    assert links_cut(edges, np.zeros(4, dtype=np.int64)) == 0


def test_bad_arguments_are_named():
    edges = ring(np.arange(5))
    for ranks in (0, 6):
        with pytest.raises(ValueError, match=f"ranks must be between 1 and the 5 devices, got {ranks}"):
            slice_devices(edges, 5, ranks)
    with pytest.raises(ValueError, match=r"work must have the shape \[5\], got \[4\]"):
        slice_devices(edges, 5, 2, np.ones(4))
