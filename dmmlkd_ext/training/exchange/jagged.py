"""Mixing on a torch device that has no kernel for it: a few operators of torch, without a word to the host."""

from __future__ import annotations

import torch

from dmmlkd_ext.ops import GossipMixing, GossipWeights


class JaggedWeights:
    """Mixing weights as jagged diagonals: the first entries of all rows, then the second ones, and so on.

    Rows are sorted by their number of entries, so those that have a k-th entry are the first ones, and adding all k-th
    entries at once is one product. The entries of a row are added in the order of `GossipWeights`.

    Args:
        weights: on the CPU.
        torch_device: where rows are mixed.

    Source:
        Saad, "Krylov subspace methods on supercomputers", 1989.

    Example:
        >>> weights = JaggedWeights(GossipWeights.metropolis([[0, 1]], 3), torch.device("cpu"))
        >>> start = torch.tensor([[1.0], [0.0], [2.0]])
        >>> moved = weights.mix(torch.tensor([[1.0], [3.0], [4.0]]), start)
        >>> start.flatten().tolist(), moved.variation.tolist()
        ([2.0, 2.0, 4.0], [0.0, 9.0, 4.0])
    """

    def __init__(self, weights: GossipWeights, torch_device: torch.device) -> None:
        counts = weights.row_pointers.diff()
        order = counts.argsort(descending=True, stable=True)
        begins, counts = weights.row_pointers[:-1][order], counts[order]
        self._lengths = [int((counts > number).sum()) for number in range(int(counts[0]) if len(counts) else 0)]
        entries = torch.cat([begins[:0], *(begins[:rows] + number for number, rows in enumerate(self._lengths))])
        self._columns = weights.columns[entries].to(torch_device).split(self._lengths)
        self._values = weights.values[entries].unsqueeze(1).to(torch_device).split(self._lengths)
        self._back = order.argsort().to(torch_device)

    def mix(self, local: torch.Tensor, start: torch.Tensor) -> GossipMixing:
        """Write the mixed rows of `local` [rows at hand, parameters] over `start` [rows, parameters].

        Both are of the dtype of the weights. The norms are those of `gossip_mix` with `measure`.
        """
        moved = torch.linalg.vector_norm(local[: len(start)] - start, dim=1, dtype=torch.float64)
        length = torch.linalg.vector_norm(start, dim=1, dtype=torch.float64)
        mixed = torch.zeros_like(start)
        for rows, columns, values in zip(self._lengths, self._columns, self._values, strict=True):
            mixed[:rows].addcmul_(local[columns], values)
        start.copy_(mixed[self._back])
        return GossipMixing(start, moved.square(), length.square())
