"""Graphs of device-to-device links (METHOD 1, 6)."""

from __future__ import annotations

import math
import os
from collections.abc import Callable
from dataclasses import dataclass, field

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy import sparse, spatial
from scipy.sparse import csgraph

from dmmlkd_ext.registry import Registry
from dmmlkd_ext.wireless.lines import place, read_lines

FloatArray = npt.NDArray[np.float64]
IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

_TRIES = 100  # draws of a random graph until one is connected


@dataclass(frozen=True, eq=False)
class Topology:
    """An undirected graph of devices, and their positions.

    Attributes:
        name: the name given to `build_topology`.
        num_devices: number of devices; they are counted from 0.
        edges: int64 [edges, 2], each link once as (i, j) with i < j, sorted.
        positions_m: float64 [devices, 2], in meters, for the wireless channel; only the links of `random_geometric`
            depend on them.

    Raises:
        ValueError: `edges` are not sorted, unique pairs i < j of devices, or a position is missing.
    """

    name: str
    num_devices: int
    edges: IntArray
    positions_m: FloatArray

    def __post_init__(self) -> None:
        check_edges(self.edges, self.num_devices)
        if not np.array_equal(self.edges, _canonical(self.edges)):
            raise ValueError("edges must be unique and sorted with i < j in each row")
        if self.positions_m.shape != (self.num_devices, 2):
            expected, got = [self.num_devices, 2], list(self.positions_m.shape)
            raise ValueError(f"positions_m must have the shape {expected}, got {got}")

    @property
    def lengths_m(self) -> FloatArray:
        """Length of each link, float64 [edges], in meters."""
        ends = self.positions_m[self.edges]
        return np.asarray(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1))

    @property
    def degrees(self) -> IntArray:
        """Number of neighbours of each device, int64 [devices]."""
        return count_degrees(self.edges, self.num_devices)


@dataclass(frozen=True, eq=False)
class TopologyRequest:
    """The arguments of `build_topology`, and the positions that it drew, [devices, 2]."""

    num_devices: int
    generator: np.random.Generator
    degree: int
    probability: float
    radius_m: float
    path: str | os.PathLike[str] | None
    positions_m: FloatArray = field(repr=False)

    def seed(self) -> int:
        """Draw a seed for a networkx generator."""
        return int(self.generator.integers(2**31))


def build_topology(
    name: str,
    num_devices: int,
    generator: np.random.Generator,
    *,
    degree: int = 4,
    probability: float = 0.3,
    radius_m: float = 200.0,
    side_m: float = 500.0,
    path: str | os.PathLike[str] | None = None,
) -> Topology:
    """Build a connected graph of devices (METHOD 6 [C]).

    `ring`; `torus`, the grid rows x columns closest to a square, wrapped around; `star` around device 0; `complete`;
    `exponential`, i linked to i + 1, 2, 4, ... (mod devices) as in Ying et al., "Exponential Graph is Provably
    Efficient for Decentralized Deep Training", 2021, undirected; `erdos_renyi`; `watts_strogatz`; `random_geometric`,
    links within a radius and the shortest links that connect the components; `edge_list`, read from a file with one
    `i j` per line and `#` comments. A single device has no links.

    Args:
        name: one of the above, or a registered one.
        num_devices: at least 1.
        generator: source of randomness. Positions are drawn first: all topologies of a seed share them.
        degree: neighbours in the ring lattice of `watts_strogatz`, even and at least 2.
        probability: of a link (`erdos_renyi`) or of rewiring one (`watts_strogatz`), in [0, 1].
        radius_m: reach of a link of `random_geometric`, in meters.
        side_m: side of the square in which positions are drawn uniformly, in meters.
        path: file of the links of `edge_list`.

    Raises:
        ValueError: the name is not known, an argument is out of its range, the graph does not exist for
            `num_devices`, no connected one was found, or the file is malformed (the message gives its line).

    Example:
        >>> build_topology("exponential", 5, np.random.default_rng(0)).edges.tolist()
        [[0, 1], [0, 2], [0, 3], [0, 4], [1, 2], [1, 3], [1, 4], [2, 3], [2, 4], [3, 4]]
        >>> build_topology("ring", 4, np.random.default_rng(0)).edges.tolist()
        [[0, 1], [0, 3], [1, 2], [2, 3]]
    """
    build = _BUILDERS[name]
    if int(num_devices) != num_devices or num_devices < 1:
        raise ValueError(f"num_devices must be an integer of at least 1, got {num_devices}")
    if not 0.0 <= probability <= 1.0:
        raise ValueError(f"probability must be between 0 and 1, got {probability}")
    for argument, value in (("radius_m", radius_m), ("side_m", side_m)):
        if not 0.0 < value < math.inf:
            raise ValueError(f"{argument} must be positive and finite, got {value}")
    positions = generator.uniform(0.0, side_m, size=(num_devices, 2))
    request = TopologyRequest(int(num_devices), generator, degree, probability, radius_m, path, positions)
    alone = num_devices == 1 and name != "edge_list"
    edges = np.zeros((0, 2), dtype=np.int64) if alone else _canonical(build(request))
    if not _BUILDERS.is_builtin(name):
        check_edges(edges, num_devices)
        parts, _ = find_components(edges, num_devices)
        if parts > 1:
            raise ValueError(f"topology {name!r} must connect all {num_devices} devices, got {parts} parts")
    return Topology(name, int(num_devices), edges, positions)


def _canonical(edges: npt.ArrayLike) -> IntArray:
    """Sort each pair and all pairs, and remove duplicates."""
    pairs = np.asarray(edges, dtype=np.int64).reshape(-1, 2)
    base = int(pairs.max(initial=0)) + 1
    # One number per pair sorts far faster than rows.
    low, high = np.divmod(np.unique(pairs.min(axis=1) * base + pairs.max(axis=1)), base)
    return np.stack([low, high], axis=1)


def count_degrees(edges: IntArray, num_devices: int) -> IntArray:
    """Return the number of neighbours of each device, int64 [devices]."""
    return np.bincount(edges.ravel(), minlength=num_devices).astype(np.int64)


def _adjacency(edges: IntArray, values: FloatArray, num_devices: int) -> sparse.csr_array:
    """Return a matrix for scipy's graph routines, which take only 32-bit indices before scipy 1.13."""
    i, j = edges.astype(np.int32).T
    return sparse.csr_array((values, (i, j)), shape=(num_devices, num_devices))


def find_components(edges: IntArray, num_devices: int) -> tuple[int, npt.NDArray[np.int32]]:
    """Return in how many parts a graph falls, and the part of each device, int32 [devices]."""
    adjacency = _adjacency(edges, np.ones(len(edges)), num_devices)
    count, label = csgraph.connected_components(adjacency, directed=False)
    return int(count), label


def _edges_of(graph: nx.Graph) -> IntArray:
    return np.array(graph.edges, dtype=np.int64).reshape(-1, 2)


def _ring(request: TopologyRequest) -> IntArray:
    if request.num_devices == 2:
        return np.array([[0, 1]])
    return _edges_of(nx.cycle_graph(request.num_devices))


def _torus(request: TopologyRequest) -> IntArray:
    count = request.num_devices
    rows = next(r for r in range(math.isqrt(count), 0, -1) if count % r == 0)
    if rows == 1:
        raise ValueError(
            f"num_devices must be a product of two numbers of at least 2 for a torus, got {count}; "
            "use a ring, or another number of devices"
        )
    grid = nx.grid_2d_graph(rows, count // rows, periodic=True)
    return _edges_of(nx.convert_node_labels_to_integers(grid, ordering="sorted"))


def _star(request: TopologyRequest) -> IntArray:
    return _edges_of(nx.star_graph(request.num_devices - 1))


def _complete(request: TopologyRequest) -> IntArray:
    return np.stack(np.triu_indices(request.num_devices, k=1), axis=1).astype(np.int64)


def _exponential(request: TopologyRequest) -> IntArray:
    device = np.arange(request.num_devices)
    hops = 2 ** np.arange((request.num_devices - 1).bit_length())
    there = (device[:, None] + hops) % request.num_devices
    here = np.broadcast_to(device[:, None], there.shape)
    return np.stack([here.ravel(), there.ravel()], axis=1)


def _erdos_renyi(request: TopologyRequest) -> IntArray:
    for _ in range(_TRIES):
        graph = nx.fast_gnp_random_graph(request.num_devices, request.probability, seed=request.seed())
        edges = _edges_of(graph)
        if find_components(edges, request.num_devices)[0] == 1:
            return edges
    threshold = math.log(request.num_devices) / request.num_devices
    raise ValueError(
        f"probability must make a connected graph of num_devices={request.num_devices}: none of {_TRIES} "
        f"draws with {request.probability} was; take one well above ln(devices) / devices = {threshold:.2g}"
    )


def _watts_strogatz(request: TopologyRequest) -> IntArray:
    count, degree = request.num_devices, request.degree
    if degree < 2 or degree % 2 or degree >= count:
        raise ValueError(f"degree must be even, at least 2 and less than num_devices={count}, got {degree}")
    try:
        graph = nx.connected_watts_strogatz_graph(count, degree, request.probability, tries=_TRIES, seed=request.seed())
    except nx.NetworkXError as error:
        raise ValueError(
            f"degree must make a connected graph of num_devices={count} when links are rewired with "
            f"probability={request.probability}: none of {_TRIES} draws with {degree} was; take a larger one"
        ) from error
    return _edges_of(graph)


def _random_geometric(request: TopologyRequest) -> IntArray:
    """Link all pairs within the radius, and the components by the shortest possible links.

    Those are the edges of the Euclidean minimum spanning tree that are longer than the radius. If the graph of all
    pairs up to some distance is connected, it contains the tree, so few pairs have to be examined.
    """
    tree = spatial.cKDTree(request.positions_m)
    reach = request.radius_m
    near = edges = tree.query_pairs(reach, output_type="ndarray").astype(np.int64)
    while find_components(edges, request.num_devices)[0] > 1:
        reach *= 1.5
        edges = tree.query_pairs(reach, output_type="ndarray").astype(np.int64)
    if len(edges) == len(near):
        return near
    ends = request.positions_m[edges]
    # A length of zero would count as "no edge" in a sparse matrix.
    length = np.maximum(np.linalg.norm(ends[:, 0] - ends[:, 1], axis=1), np.finfo(np.float64).tiny)
    lengths = _adjacency(edges, length, request.num_devices)
    spanning = sparse.coo_array(csgraph.minimum_spanning_tree(lengths))
    far = spanning.data > request.radius_m
    bridges = np.stack([spanning.row[far], spanning.col[far]], axis=1).astype(np.int64)
    return np.concatenate([near, bridges])


def _edge_list(request: TopologyRequest) -> IntArray:
    if request.path is None:
        raise ValueError("path must name the file of the links of an edge_list, got None")
    edges = []
    for number, line in enumerate(read_lines(request.path, "path"), start=1):
        words = line.partition("#")[0].split()
        if words:
            edges.append(_parse_edge(words, request.num_devices, place("path", number, request.path)))
    array = np.array(edges, dtype=np.int64).reshape(-1, 2)
    parts, label = find_components(array, request.num_devices)
    if parts > 1:
        apart = int(np.flatnonzero(label != label[0])[0])
        raise ValueError(
            f"path: the links of {request.path} must connect all num_devices={request.num_devices}; there are {parts} "
            f"parts, and no way from device 0 to device {apart}"
        )
    return array


def _parse_edge(words: list[str], num_devices: int, where: str) -> tuple[int, int]:
    try:
        i, j = (int(word) for word in words)
    except ValueError:
        raise ValueError(f"{where} must hold two device numbers, got {' '.join(words)!r}") from None
    if not (0 <= i < num_devices and 0 <= j < num_devices):
        raise ValueError(f"{where} must hold device numbers from 0 to {num_devices - 1}, got {i} {j}")
    if i == j:
        raise ValueError(f"{where} must link two different devices, got {i} {j}")
    return i, j


TopologyBuilder = Callable[[TopologyRequest], IntArray]

_BUILDERS: Registry[TopologyBuilder] = Registry(
    "topology",
    {
        "ring": _ring,
        "torus": _torus,
        "star": _star,
        "complete": _complete,
        "exponential": _exponential,
        "erdos_renyi": _erdos_renyi,
        "watts_strogatz": _watts_strogatz,
        "random_geometric": _random_geometric,
        "edge_list": _edge_list,
    },
)


def register_topology(name: str, builder: TopologyBuilder) -> None:
    """Register a graph for `topology.name`; call this in a file that `--module` names.

    Args:
        name: the graph's name in configurations.
        builder: maps a `TopologyRequest` to the links of a connected graph, integers [links, 2], in any order, also
            repeated. It must draw random numbers from `request.generator` alone.

    Raises:
        ValueError: `name` is no identifier or belongs to the package, or `builder` is not callable.

    Example:
        >>> def path(request: TopologyRequest) -> IntArray:
        ...     return np.stack([np.arange(request.num_devices - 1), np.arange(1, request.num_devices)], axis=1)
        >>> register_topology("path", path)
        >>> build_topology("path", 3, np.random.default_rng(0)).edges.tolist()
        [[0, 1], [1, 2]]
    """
    _BUILDERS.add(name, builder)


def check_edges(edges: npt.NDArray, num_devices: int) -> None:
    """Raise ValueError unless edges are pairs of two different devices each."""
    integers = np.issubdtype(edges.dtype, np.integer) or edges.size == 0
    if edges.ndim != 2 or edges.shape[1] != 2 or not integers:
        raise ValueError(f"edges must be integers [edges, 2], got {edges.dtype} {list(edges.shape)}")
    bad = ((edges < 0) | (edges >= num_devices)).any(axis=1) | (edges[:, 0] == edges[:, 1])
    if bad.any():
        wrong = edges[bad][0].tolist()
        raise ValueError(f"edges must be pairs of different devices from 0 to {num_devices - 1}, got {wrong}")
