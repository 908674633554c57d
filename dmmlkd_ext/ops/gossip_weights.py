"""Mixing weights as compressed rows (METHOD 4)."""

from __future__ import annotations

from typing import Any, NamedTuple

import torch


class GossipWeights(NamedTuple):
    """A sparse matrix of mixing weights, [rows produced, rows at hand], as compressed rows.

    Make it by `metropolis`, `from_dense` or `from_scipy`.
    """

    row_pointers: torch.Tensor
    """int64 [rows + 1]: where each row's entries begin; the last is the number of entries."""
    columns: torch.Tensor
    """int64 [entries]: the row of `local` that an entry weighs."""
    values: torch.Tensor
    """[entries]: float64 for float64 parameters, float32 for all other dtypes."""

    @classmethod
    def from_dense(cls, matrix: torch.Tensor) -> GossipWeights:
        """Return the weights of a dense matrix [rows, columns]; zeros are left out.

        Raises:
            TypeError: `matrix` is not a tensor.
            ValueError: `matrix` is sparse, has not two dimensions or is not float32 or float64.

        Example:
            >>> GossipWeights.from_dense(torch.eye(3)).columns
            tensor([0, 1, 2])
        """
        if not isinstance(matrix, torch.Tensor):
            raise TypeError(f"GossipWeights: matrix must be a torch.Tensor, got {type(matrix).__name__}")
        if matrix.layout is not torch.strided:
            raise ValueError(f"GossipWeights: matrix must be a dense tensor (torch.strided), got {matrix.layout}")
        if matrix.dim() != 2 or matrix.dtype not in (torch.float32, torch.float64):
            raise ValueError(
                "GossipWeights: matrix must be float32 or float64 of shape [rows, columns], got "
                f"{matrix.dtype} of shape {list(matrix.shape)}"
            )
        rows, columns = matrix.nonzero(as_tuple=True)
        return cls(_row_pointers(rows, matrix.shape[0]), columns, matrix[rows, columns])

    @classmethod
    def from_scipy(
        cls, matrix: Any, dtype: torch.dtype = torch.float32, device: torch.device | str = "cpu"
    ) -> GossipWeights:
        """Return the weights of a scipy.sparse matrix or array; its memory is copied.

        Raises:
            TypeError: `matrix` is not a sparse matrix of scipy.

        Example:
            >>> import scipy.sparse
            >>> GossipWeights.from_scipy(scipy.sparse.eye_array(2)).row_pointers
            tensor([0, 1, 2])
        """
        if not hasattr(matrix, "tocsr"):
            raise TypeError(f"GossipWeights: matrix must be of scipy.sparse, got {type(matrix).__name__}")
        rows = matrix.tocsr()
        return cls(
            torch.tensor(rows.indptr, dtype=torch.int64, device=device),
            torch.tensor(rows.indices, dtype=torch.int64, device=device),
            torch.tensor(rows.data, dtype=dtype, device=device),
        )

    @classmethod
    def metropolis(
        cls,
        edges: Any,
        rows: int,
        dtype: torch.dtype = torch.float32,
        device: torch.device | str = "cpu",
    ) -> GossipWeights:
        r"""Return the Metropolis-Hastings weights of a graph: symmetric, and each row sums to one.

        .. math:: W_{ij} = \frac{1}{1 + \max(\deg_i, \deg_j)}, \quad W_{ii} = 1 - \sum_{j \ne i} W_{ij}

        Args:
            edges: integers [edges, 2], a tensor or what `torch.as_tensor` takes: each link once, in either direction.
            rows: number of nodes of the graph; one without a link has weight 1 for itself.
            dtype: of the values, which are computed in float64.
            device: torch device of the weights.

        Raises:
            ValueError: a link is not a pair of two different nodes in [0, rows), or occurs twice.

        Source:
            METHOD 4 [C]; Xiao, Boyd and Kim, "Distributed average consensus with least-mean-square deviation", 2007.

        Example:
            >>> GossipWeights.metropolis([[0, 1], [1, 2]], 3).values
            tensor([0.6667, 0.3333, 0.3333, 0.3333, 0.3333, 0.3333, 0.6667])
        """
        links = _links(edges, rows)
        i, j = links[:, 0], links[:, 1]
        degrees = torch.bincount(links.flatten(), minlength=rows)
        weight = 1.0 / (1.0 + torch.maximum(degrees[i], degrees[j]).double())
        received = torch.zeros(rows, dtype=torch.float64)
        received.index_add_(0, torch.cat([i, j]), torch.cat([weight, weight]))
        nodes = torch.arange(rows)
        row, column = torch.cat([i, j, nodes]), torch.cat([j, i, nodes])
        values = torch.cat([weight, weight, 1.0 - received])
        order = torch.argsort(row * rows + column)
        pointers = _row_pointers(row, rows)
        return cls(pointers.to(device), column[order].to(device), values[order].to(device, dtype))


def _row_pointers(rows: torch.Tensor, count: int) -> torch.Tensor:
    counts = torch.bincount(rows, minlength=count)
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)])


def _links(edges: Any, rows: int) -> torch.Tensor:
    """Return the edges as int64 [edges, 2] on the CPU; raise ValueError unless the graph is simple."""
    if isinstance(rows, bool) or not isinstance(rows, int) or rows < 0:
        raise ValueError(f"GossipWeights.metropolis: rows must be an integer of at least 0, got {rows!r}")
    links = torch.as_tensor(edges, device="cpu")
    if links.numel() == 0:
        return links.new_zeros(0, 2, dtype=torch.int64)
    if links.dim() != 2 or links.shape[1] != 2 or links.is_floating_point() or links.is_complex():
        raise ValueError(
            "GossipWeights.metropolis: edges must be integers of shape [edges, 2], got "
            f"{links.dtype} of shape {list(links.shape)}"
        )
    links = links.long()
    wrong = (links < 0).any(1) | (links >= rows).any(1) | (links[:, 0] == links[:, 1])
    if wrong.any():
        raise ValueError(
            f"GossipWeights.metropolis: edges must join two different nodes in [0, {rows}), got "
            f"{links[wrong][0].tolist()}"
        )
    smaller, larger = links.min(1).values, links.max(1).values
    keys, counts = torch.unique(smaller * rows + larger, return_counts=True)
    if (counts > 1).any():
        twice = int(keys[counts > 1][0])
        raise ValueError(
            f"GossipWeights.metropolis: edges must hold each link once, got {[twice // rows, twice % rows]} twice"
        )
    return links
