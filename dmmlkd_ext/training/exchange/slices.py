"""Which rank holds which devices: a partition of the graph that few links cross.

A link between ranks costs the transfer of a row of every block in each round; one within a rank costs nothing.
"""

from __future__ import annotations

import networkx as nx
import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import csgraph

IntArray = npt.NDArray[np.int64]
FloatArray = npt.NDArray[np.float64]

REFINED_DEVICES = 2_000
"""A part of more devices is not refined: that takes tens of microseconds per link."""
_PASSES = 5


def slice_devices(edges: IntArray, num_devices: int, ranks: int, work: FloatArray | None = None) -> IntArray:
    """Return the rank that holds each device, int64 [devices], such that work is even and few links cross ranks.

    The graph is bisected recursively. A half is a contiguous range of an order, by the devices' numbers or by reverse
    Cuthill-McKee, whichever cuts fewer links after refinement by Kernighan and Lin. Every rank computes the same.

    Args:
        edges: int64 [links, 2].
        num_devices: devices of the graph.
        ranks: at least 1 and at most `num_devices`; each gets at least one device.
        work: float64 [devices], the cost of a round on each; None counts all alike.

    Raises:
        ValueError: there are more ranks than devices, or `work` has another shape.

    Example:
        >>> ring = np.array([[0, 1], [1, 2], [2, 3], [3, 4], [4, 5], [0, 5]])
        >>> owner = slice_devices(ring, 6, ranks=2)
        >>> owner.tolist(), links_cut(ring, owner)
        ([0, 0, 0, 1, 1, 1], 2)
    """
    if not 1 <= ranks <= num_devices:
        raise ValueError(f"ranks must be between 1 and the {num_devices} devices, got {ranks}")
    work = np.ones(num_devices) if work is None else np.asarray(work, dtype=np.float64)
    if work.shape != (num_devices,):
        raise ValueError(f"work must have the shape {[num_devices]}, got {list(work.shape)}")
    owner = np.zeros(num_devices, dtype=np.int64)
    if ranks > 1:
        i, j = edges.astype(np.int32).T
        ones = np.ones(2 * len(edges), dtype=np.int8)
        graph = sparse.csr_matrix((ones, (np.r_[i, j], np.r_[j, i])), shape=(num_devices, num_devices))
        _halve(graph, np.arange(num_devices), work, (0, ranks), owner)
    return owner


def links_cut(edges: IntArray, owner: IntArray) -> int:
    """Return how many links join devices of two ranks."""
    return int((owner[edges[:, 0]] != owner[edges[:, 1]]).sum())


def _halve(
    graph: sparse.csr_matrix, devices: IntArray, work: FloatArray, ranks: tuple[int, int], owner: IntArray
) -> None:
    """Assign `devices` (the rows of `graph`) to the ranks from `ranks[0]` up to `ranks[1]`."""
    first, last = ranks
    if last - first == 1:
        owner[devices] = first
        return
    middle = (first + last) // 2
    share = (middle - first) / (last - first)
    orders = (np.arange(len(devices)), csgraph.reverse_cuthill_mckee(graph, symmetric_mode=True))
    halves = [_refine(graph, _stretch(order, work[devices], share, middle - first, last - middle)) for order in orders]
    lower = min(halves, key=lambda half: _cut(graph, half))
    for half, part in ((lower, (first, middle)), (~lower, (middle, last))):
        rows = np.flatnonzero(half)
        _halve(graph[rows][:, rows], devices[rows], work, part, owner)


def _stretch(
    order: npt.NDArray[np.integer], work: FloatArray, share: float, at_least: int, left_over: int
) -> npt.NDArray[np.bool_]:
    """Return which devices are in the first part of an order, which has a share of the work, bool [devices]."""
    done = np.cumsum(work[order])
    count = int(np.searchsorted(done, share * done[-1] * (1 - 1e-12))) + 1
    lower = np.zeros(len(order), dtype=np.bool_)
    lower[order[: min(max(count, at_least), len(order) - left_over)]] = True
    return lower


def _refine(graph: sparse.csr_matrix, lower: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Swap pairs of devices between the halves as long as that cuts fewer links."""
    if len(lower) > REFINED_DEVICES:
        return lower
    sides = set(np.flatnonzero(lower).tolist()), set(np.flatnonzero(~lower).tolist())
    pair = nx.community.kernighan_lin_bisection(nx.from_scipy_sparse_array(graph), sides, max_iter=_PASSES, seed=0)
    # networkx may return the two sides in either order, with unchanged sizes.
    side = max(pair, key=lambda found: (len(found) == len(sides[0]), len(found & sides[0])))
    refined = np.zeros(len(lower), dtype=np.bool_)
    refined[list(side)] = True
    return refined


def _cut(graph: sparse.csr_matrix, lower: npt.NDArray[np.bool_]) -> int:
    rows, columns = graph.nonzero()
    return int((lower[rows] != lower[columns]).sum())
