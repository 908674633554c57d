"""Distance of the devices' parameters from their mean: sums and distances over the rows of all blocks."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from dmmlkd_ext.ops.native import simulates_natively

CHUNK_VALUES = 2**18
"""Values of a block that the reference converts to float64 at a time (2 MiB)."""


def column_sums(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Return the sums over the rows of some blocks, one block after the other.

    Args:
        blocks: at least one, each [rows, columns], all float32 or all float64, contiguous in each row.

    Returns:
        float64 [columns of all blocks].

    Raises:
        ValueError: a shape or a dtype does not fit (native code); otherwise torch raises.

    Example:
        >>> column_sums([torch.tensor([[1.0, 2.0], [3.0, 4.0]]), torch.ones(3, 1)]).tolist()
        [4.0, 6.0, 3.0]
    """
    if simulates_natively(blocks[0]):
        sums: torch.Tensor = torch.ops.dmmlkd.column_sums(blocks)
        return sums
    return column_sums_reference(blocks)


def column_sums_reference(blocks: Sequence[torch.Tensor]) -> torch.Tensor:
    """Do what `column_sums` does, in plain torch.

    Example:
        >>> column_sums_reference([torch.ones(3, 2)]).tolist()
        [3.0, 3.0]
    """
    sums = []
    for block in blocks:
        total = block.new_zeros(block.shape[1], dtype=torch.float64)
        for chunk in _chunks(block):
            total += chunk.double().sum(0)
        sums.append(total)
    return torch.cat(sums)


def squared_distances(blocks: Sequence[torch.Tensor], center: torch.Tensor) -> torch.Tensor:
    """Return the squared Euclidean distance of each row of some blocks from their center.

    Args:
        blocks: as in `column_sums`.
        center: [columns of all blocks], one block after the other, of their dtype.

    Returns:
        float64 [rows of all blocks].

    Raises:
        ValueError: a shape or a dtype does not fit (native code); otherwise torch raises.

    Example:
        >>> squared_distances([torch.tensor([[3.0, 4.0], [0.0, 1.0]])], torch.zeros(2)).tolist()
        [25.0, 1.0]
    """
    if simulates_natively(blocks[0]):
        squares: torch.Tensor = torch.ops.dmmlkd.squared_distances(blocks, center)
        return squares
    return squared_distances_reference(blocks, center)


def squared_distances_reference(blocks: Sequence[torch.Tensor], center: torch.Tensor) -> torch.Tensor:
    """Do what `squared_distances` does, in plain torch.

    Example:
        >>> squared_distances_reference([torch.ones(1, 2)], torch.zeros(2)).tolist()
        [2.0]
    """
    squares, centers = [], center.split([block.shape[1] for block in blocks])
    for block, mean in zip(blocks, centers, strict=True):
        squares += [(chunk.double() - mean.double()).square().sum(1) for chunk in _chunks(block)]
    return torch.cat(squares)


def _chunks(block: torch.Tensor) -> Sequence[torch.Tensor]:
    chunks: Sequence[torch.Tensor] = block.split(max(1, CHUNK_VALUES // max(1, block.shape[1])))
    return chunks
