"""Mixing matrices of graphs, and how fast they mix (METHOD 4)."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy import sparse
from scipy.sparse import linalg as sparse_linalg

from dmmlkd_ext.wireless.topology import FloatArray, check_edges, count_degrees, find_components

_DENSE_LIMIT = 400  # devices up to which all eigenvalues take less time than a few by a sparse solver


def metropolis_hastings(
    edges: npt.ArrayLike, num_devices: int, members: npt.ArrayLike | None = None
) -> sparse.csr_array:
    """Return the Metropolis-Hastings mixing matrix of a graph, or of the subgraph of some devices.

    W_ij = 1 / (1 + max(degree_i, degree_j)) for each link, and W_ii = 1 - sum_j W_ij: symmetric and doubly stochastic
    (METHOD 4 [C]; Xiao, Boyd and Kim, "Distributed average consensus with least-mean-square deviation", 2007). Degrees
    are those of the subgraph.

    Args:
        edges: int [edges, 2], each link once, in either direction.
        num_devices: devices of the whole graph.
        members: bool [devices], which devices take part; None is all. One without a neighbour among them has weight 1
            for itself.

    Returns:
        float64 CSR [members, members] by increasing device number, with sorted indices and a positive diagonal.

    Raises:
        ValueError: a link is not a pair of two different devices or occurs twice, or `members` is no mask.

    Example:
        >>> metropolis_hastings([[0, 1], [1, 2]], 3).toarray().round(2).tolist()
        [[0.67, 0.33, 0.0], [0.33, 0.33, 0.33], [0.0, 0.33, 0.67]]
        >>> metropolis_hastings([[0, 1], [1, 2]], 3, np.array([True, False, True])).toarray().tolist()
        [[1.0, 0.0], [0.0, 1.0]]
    """
    links = np.asarray(edges)
    check_edges(links, num_devices)
    links = links.astype(np.int64)
    if members is not None:
        mask = np.asarray(members)
        if mask.dtype != np.bool_ or mask.shape != (num_devices,):
            got = f"{mask.dtype} of the shape {list(mask.shape)}"
            raise ValueError(f"members must be bool of the shape [{num_devices}], got {got}")
        number = np.cumsum(mask) - 1
        links = number[links[mask[links].all(axis=1)]]
        num_devices = int(mask.sum())
    degrees = count_degrees(links, num_devices)
    i, j = links[:, 0], links[:, 1]
    weight = 1.0 / (1.0 + np.maximum(degrees[i], degrees[j]))
    received = np.bincount(np.r_[i, j], weights=np.r_[weight, weight], minlength=num_devices)
    itself = np.arange(num_devices)
    matrix = sparse.csr_array(
        (np.r_[weight, weight, 1.0 - received], (np.r_[i, j, itself], np.r_[j, i, itself])),
        shape=(num_devices, num_devices),
    )
    if matrix.nnz != 2 * len(links) + num_devices:
        raise ValueError("edges must hold each link once, got one twice")
    matrix.sort_indices()
    return matrix


def spectral_gap(mixing_matrix: sparse.csr_array | FloatArray) -> float:
    """Return 1 - the second largest absolute eigenvalue of a symmetric, doubly stochastic matrix.

    The distance to the mean shrinks by at least this fraction per mixing: 0 for a disconnected graph, 1 for a single
    device or a complete graph.

    Args:
        mixing_matrix: sparse or dense [devices, devices].

    Raises:
        ValueError: `mixing_matrix` is not square, or not symmetric with rows that sum to one.

    Example:
        >>> round(spectral_gap(np.full((4, 4), 0.25)), 12)
        1.0
        >>> round(spectral_gap(metropolis_hastings([[0, 1], [1, 2], [2, 3], [0, 3]], 4)), 12)
        0.666666666667
    """
    shape = np.shape(mixing_matrix)
    if len(shape) != 2 or shape[0] != shape[1] or shape[0] == 0:
        raise ValueError(f"mixing_matrix must be square and not empty, got the shape {list(shape)}")
    matrix = sparse.csr_array(mixing_matrix)
    count = shape[0]
    if abs(matrix - matrix.T).max() > 1e-9 or np.abs(matrix.sum(axis=1) - 1.0).max() > 1e-9:
        raise ValueError("mixing_matrix must be symmetric with rows that sum to one")
    if count == 1:
        return 1.0
    if find_components(np.stack(matrix.nonzero(), axis=1).astype(np.int64), count)[0] > 1:
        return 0.0
    if count <= _DENSE_LIMIT:
        values = np.linalg.eigvalsh(matrix.toarray())
        second = max(values[-2], -values[0])
    else:
        second = _second_eigenvalue(matrix)
    return float(np.clip(1.0 - second, 0.0, 1.0))


def _second_eigenvalue(matrix: sparse.csr_array) -> float:
    """Return the second largest absolute eigenvalue of a large connected mixing matrix.

    Lanczos steps on the matrix without its constant eigenvector are fast on graphs that mix well. They may not converge
    on graphs that mix slowly, but these are nearly planar, so shift-invert near 1 and -1 is cheap.
    """
    count = matrix.shape[0]
    start = np.cos(np.arange(count) ** 2)  # any fixed vector, so that the same matrix gives the same bits

    def deflated(vector: FloatArray) -> FloatArray:
        return np.asarray(matrix @ vector - vector.mean())

    operator = sparse_linalg.LinearOperator((count, count), matvec=deflated, dtype=np.float64)
    try:
        value = sparse_linalg.eigsh(
            operator, k=1, which="LM", v0=start, ncv=40, maxiter=25, tol=1e-10, return_eigenvectors=False
        )
        return float(abs(value[0]))
    except sparse_linalg.ArpackNoConvergence:
        columns = sparse.csc_array(matrix)
        near_one = sparse_linalg.eigsh(columns, k=2, sigma=1.0 + 1e-8, v0=start, return_eigenvectors=False)
        high = float(near_one.min())
        # Gershgorin: no eigenvalue is below this, which for Metropolis weights is far from -1.
        diagonal = matrix.diagonal()
        if (diagonal - (abs(matrix).sum(axis=1) - abs(diagonal))).min() >= -high:
            return high
        low = sparse_linalg.eigsh(columns, k=1, sigma=-1.0 - 1e-8, v0=start, return_eigenvectors=False)
        return max(high, -float(low[0]))
