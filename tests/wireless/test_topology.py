"""Graphs are what they are called, and their mixing matrices keep the mean."""

from __future__ import annotations

import codecs
import math

import networkx as nx
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse, spatial

import dmmlkd_ext.wireless.topology as topology_module
from dmmlkd_ext.wireless.mixing import metropolis_hastings, spectral_gap
from dmmlkd_ext.wireless.topology import Topology, build_topology

RANDOM_SIZES = [
    "ring",
    "star",
    "complete",
    "exponential",
    "erdos_renyi",
    "watts_strogatz",
    "random_geometric",
]


def build(name, num_devices, seed=0, **options):
    if name == "erdos_renyi":
        options.setdefault("probability", 0.6)
    return build_topology(name, num_devices, np.random.default_rng(seed), **options)


def graph_of(topology):
    graph = nx.Graph()
    graph.add_nodes_from(range(topology.num_devices))
    graph.add_edges_from(topology.edges.tolist())
    return graph


def assert_mixes(matrix, count):
    dense = matrix.toarray()
    assert dense.shape == (count, count)
    np.testing.assert_array_equal(dense, dense.T)
    np.testing.assert_allclose(dense.sum(axis=0), 1.0, rtol=0, atol=1e-15 * max(count, 8))
    assert (matrix.data > 0).all()
    assert matrix.has_sorted_indices
    assert matrix.dtype == np.float64


@settings(max_examples=150, deadline=None)
@given(st.sampled_from(RANDOM_SIZES), st.integers(5, 40), st.integers(0, 1000))
def test_graphs_are_connected_and_their_matrices_mix(name, count, seed):
    topology = build(name, count, seed, radius_m=60.0)
    assert nx.is_connected(graph_of(topology))
    assert topology.edges.dtype == np.int64
    assert (topology.edges[:, 0] < topology.edges[:, 1]).all()
    np.testing.assert_array_equal(topology.edges, np.unique(topology.edges, axis=0))
    np.testing.assert_array_equal(topology.degrees, [degree for _, degree in graph_of(topology).degree()])
    assert_mixes(metropolis_hastings(topology.edges, count), count)


@settings(max_examples=100, deadline=None)
@given(st.sampled_from(RANDOM_SIZES), st.integers(5, 30), st.integers(0, 1000))
def test_members_mix_on_the_subgraph_that_they_induce(name, count, seed):
    topology = build(name, count, seed)
    members = np.random.default_rng(seed).random(count) < 0.6
    matrix = metropolis_hastings(topology.edges, count, members)
    assert_mixes(matrix, int(members.sum()))
    chosen = np.flatnonzero(members)
    graph = graph_of(topology).subgraph(chosen.tolist())
    dense = matrix.toarray()
    for a, i in enumerate(chosen.tolist()):
        for b, j in enumerate(chosen.tolist()):
            if i != j:
                expected = 1 / (1 + max(graph.degree[i], graph.degree[j])) if graph.has_edge(i, j) else 0.0
                assert dense[a, b] == expected


@pytest.mark.parametrize("name", [*RANDOM_SIZES, "torus"])
def test_one_device_has_no_links(name):
    topology = build(name, 1)
    assert topology.edges.shape == (0, 2)
    assert metropolis_hastings(topology.edges, 1).toarray().tolist() == [[1.0]]


@pytest.mark.parametrize("name", ["ring", "star", "complete", "exponential", "random_geometric"])
def test_two_devices_have_one_link(name):
    assert build(name, 2).edges.tolist() == [[0, 1]]


def test_nobody_mixes_with_nobody():
    assert metropolis_hastings([[0, 1]], 2, np.array([False, False])).shape == (0, 0)


@pytest.mark.parametrize("name", [*RANDOM_SIZES, "torus"])
def test_the_same_generator_gives_the_same_graph_and_all_names_share_the_places(name):
    first, second = build(name, 16, 5), build(name, 16, 5)
    np.testing.assert_array_equal(first.edges, second.edges)
    np.testing.assert_array_equal(first.positions_m, build("ring", 16, 5).positions_m)
    assert first.positions_m.min() >= 0
    assert first.positions_m.max() <= 500


@pytest.mark.parametrize(("count", "degree"), [(9, 4), (12, 4), (35, 4), (6, 3), (4, 2)])
def test_a_torus_need_not_be_square(count, degree):
    topology = build("torus", count)
    assert (topology.degrees == degree).all()
    assert nx.is_connected(graph_of(topology))


def test_a_torus_is_the_grid_closest_to_a_square():
    wanted = nx.grid_2d_graph(4, 6, periodic=True)
    assert nx.is_isomorphic(graph_of(build("torus", 24)), wanted)


@pytest.mark.parametrize("count", [5, 8, 21])
def test_the_exponential_graph_links_powers_of_two(count):
    wanted = nx.Graph()
    hop = 1
    while hop < count:
        wanted.add_edges_from((i, (i + hop) % count) for i in range(count))
        hop *= 2
    assert {tuple(edge) for edge in build("exponential", count).edges.tolist()} == {
        tuple(sorted(edge)) for edge in wanted.edges
    }


def kruskal(positions, radius):
    """Return what random_geometric must be: links in the radius, then the shortest that join two parts."""
    distances = spatial.distance.squareform(spatial.distance.pdist(positions))
    graph = nx.Graph()
    graph.add_nodes_from(range(len(positions)))
    pairs = sorted((distances[i, j], i, j) for i in range(len(positions)) for j in range(i))
    for length, i, j in pairs:
        if length <= radius or not nx.has_path(graph, i, j):
            graph.add_edge(i, j)
    return sorted(tuple(sorted(edge)) for edge in graph.edges)


@settings(max_examples=40, deadline=None)
@given(st.integers(2, 40), st.floats(1.0, 300.0), st.integers(0, 1000))
def test_random_geometric_adds_the_shortest_missing_links(count, radius_m, seed):
    topology = build("random_geometric", count, seed, radius_m=radius_m)
    assert [tuple(edge) for edge in topology.edges.tolist()] == kruskal(topology.positions_m, radius_m)


def test_lengths_are_distances():
    places = np.array([[0.0, 0.0], [3.0, 4.0], [3.0, 0.0]])
    topology = Topology("path", 3, np.array([[0, 1], [1, 2]]), places)
    assert topology.lengths_m.tolist() == [5.0, 4.0]


def test_an_edge_list_is_read(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_text("# a square\n0 1\n\n2 1  # in either direction\n2 3\n3 0\n0 3\n")
    assert build("edge_list", 4, path=path).edges.tolist() == [[0, 1], [0, 3], [1, 2], [2, 3]]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("0 1\n1 x\n", "path: line 2 of .* must hold two device numbers, got '1 x'"),
        ("0 1 2\n", "path: line 1 of .* must hold two device numbers"),
        ("# no\n0 1\n0 3\n", "path: line 3 of .* must hold device numbers from 0 to 2, got 0 3"),
        ("1 1\n", "path: line 1 of .* must link two different devices, got 1 1"),
        ("0 1\n", "path: the links of .* must connect all num_devices=3; there are 2 parts.* device 0 to device 2"),
        ("", "path: the links of .* must connect all num_devices=3"),
    ],
)
def test_a_malformed_edge_list_is_refused_with_its_line(tmp_path, text, message):
    path = tmp_path / "edges.txt"
    path.write_text(text)
    with pytest.raises(ValueError, match=message):
        build("edge_list", 3, path=path)


@pytest.mark.parametrize("side", [3, 250])
def test_a_negative_eigenvalue_counts_in_the_gap(side):
    """The two sides of a complete bipartite graph take turns: 1 / (side + 1) - side / (side + 1) is its least."""
    edges = [[i, side + j] for i in range(side) for j in range(side)]
    gap = spectral_gap(metropolis_hastings(edges, 2 * side))
    assert gap == pytest.approx(2 / (side + 1), rel=1e-6)  # 0.5 for K33; 0.75 without its negative eigenvalues


def test_an_edge_list_may_begin_with_a_byte_order_mark(tmp_path):
    path = tmp_path / "edges.txt"
    path.write_bytes(codecs.BOM_UTF8 + "# où\r\n0 1\r\n1 2\r\n".encode())
    assert build("edge_list", 3, path=path).edges.tolist() == [[0, 1], [1, 2]]


@pytest.mark.parametrize(("encoding", "line"), [("latin-1", 2), ("utf-16", 1)])
def test_an_edge_list_in_another_encoding_is_refused_with_its_line(tmp_path, encoding, line):
    path = tmp_path / "edges.txt"
    path.write_bytes("0 1\n1 2  # où\n".encode(encoding))
    with pytest.raises(ValueError, match=rf"path: line {line} of .*edges\.txt must be UTF-8 text, got the byte 0xf"):
        build("edge_list", 3, path=path)


@settings(max_examples=60, deadline=None)
@given(st.sampled_from(RANDOM_SIZES), st.integers(5, 40), st.integers(0, 1000))
def test_the_sparse_solver_agrees_with_all_eigenvalues(name, count, seed):
    matrix = metropolis_hastings(build(name, count, seed).edges, count)
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix.toarray())))
    np.testing.assert_allclose(spectral_gap(matrix), 1 - values[-2], atol=1e-12)


@pytest.mark.parametrize("name", ["ring", "torus", "star", "exponential", "watts_strogatz", "random_geometric"])
def test_large_spectral_gaps_agree_with_all_eigenvalues(name):
    count = 410
    matrix = metropolis_hastings(build(name, count, radius_m=40.0).edges, count)
    values = np.sort(np.abs(np.linalg.eigvalsh(matrix.toarray())))
    np.testing.assert_allclose(spectral_gap(matrix), 1 - values[-2], rtol=1e-6, atol=1e-12)


@pytest.mark.parametrize("count", [3, 4, 9, 50, 1001])
def test_the_gap_of_a_ring_is_its_formula(count):
    matrix = metropolis_hastings(build("ring", count).edges, count)
    # Eigenvalues (1 + 2 cos(2 pi k / n)) / 3: the second largest absolute one is at k = 1, or the lowest.
    values = np.abs((1 + 2 * np.cos(2 * math.pi * np.arange(1, count) / count)) / 3)
    np.testing.assert_allclose(spectral_gap(matrix), 1 - values.max(), rtol=1e-6)


@pytest.mark.parametrize("count", [2, 10, 600])
def test_a_complete_graph_agrees_at_once(count):
    gap = spectral_gap(metropolis_hastings(build("complete", count).edges, count))
    np.testing.assert_allclose(gap, 1.0, atol=1e-9)


def test_a_slow_matrix_with_a_low_eigenvalue_near_minus_one():
    # Weights of one half on an even ring: its lowest eigenvalue is -1, so that it never agrees.
    count = 1000
    ring = np.roll(np.eye(count), 1, axis=0) / 2
    assert spectral_gap(sparse.csr_array(ring + ring.T)) == pytest.approx(0.0, abs=1e-9)


@pytest.mark.parametrize("count", [4, 600])
def test_a_disconnected_graph_has_no_gap(count):
    edges = build("ring", count // 2).edges
    both = np.concatenate([edges, edges + count // 2])
    assert spectral_gap(metropolis_hastings(both, count)) == 0.0


def test_one_device_agrees_with_itself():
    assert spectral_gap(np.ones((1, 1))) == 1.0


def test_a_small_world_that_falls_apart_is_refused(monkeypatch):
    monkeypatch.setattr(topology_module, "_TRIES", 1)
    with pytest.raises(ValueError, match="degree must make a connected graph of num_devices=400"):
        build("watts_strogatz", 400, seed=1, degree=2, probability=1.0)


PLACES = np.zeros((3, 2))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: build("tree", 5), "topology must be one of ring, .*; got 'tree'"),
        (lambda: build("ring", 0), "num_devices must be an integer of at least 1, got 0"),
        (lambda: build("ring", 2.5), "num_devices must be an integer of at least 1, got 2.5"),
        (lambda: build("ring", 4, probability=1.5), "probability must be between 0 and 1, got 1.5"),
        (lambda: build("ring", 4, radius_m=0), "radius_m must be positive and finite, got 0"),
        (lambda: build("ring", 4, side_m=-1), "side_m must be positive and finite, got -1"),
        (lambda: build("torus", 7), "num_devices must be a product .* got 7"),
        (lambda: build("watts_strogatz", 4), "degree must be even, .* less than num_devices=4, got 4"),
        (lambda: build("watts_strogatz", 9, degree=3), "degree must be even, .* got 3"),
        (
            lambda: build("erdos_renyi", 50, probability=0.01),
            "probability must make .* num_devices=50.* 0.078",
        ),
        (lambda: build("edge_list", 3), "path must name the file .* got None"),
        (lambda: metropolis_hastings([[0, 3]], 3), r"edges must be pairs .* from 0 to 2, got \[0, 3\]"),
        (lambda: metropolis_hastings([[1, 1]], 3), r"edges must be pairs .* got \[1, 1\]"),
        (lambda: metropolis_hastings([[0, 1], [1, 0]], 3), "edges must hold each link once"),
        (lambda: metropolis_hastings([0, 1], 3), r"edges must be integers \[edges, 2\], got int64 \[2\]"),
        (lambda: metropolis_hastings([[0.0, 1.0]], 3), "edges must be integers .* got float64"),
        (lambda: metropolis_hastings([[0, 1]], 3, [1, 1, 0]), "members must be bool .* got int64"),
        (lambda: metropolis_hastings([[0, 1]], 3, np.ones(2, dtype=bool)), r"members must .* \[3\], got"),
        (lambda: Topology("x", 3, np.array([[1, 0]]), PLACES), "edges must be unique and sorted"),
        (
            lambda: Topology("x", 3, np.array([[0, 1]]), PLACES[:2]),
            r"positions_m must .* \[3, 2\], got \[2, 2\]",
        ),
        (lambda: spectral_gap(np.ones((2, 3))), r"mixing_matrix must be square .* \[2, 3\]"),
        (lambda: spectral_gap(np.zeros((0, 0))), "mixing_matrix must be square and not empty"),
        (lambda: spectral_gap(np.array([[0.5, 0.5], [0.2, 0.8]])), "mixing_matrix must be symmetric"),
        (lambda: spectral_gap(np.eye(2) * 2), "rows that sum to one"),
    ],
)
def test_bad_input_is_named(call, message):
    with pytest.raises(ValueError, match=message):
        call()
