"""The transposes of weights on a GPU, kept: a backward pass mixes by them and must not wait for the host."""

from __future__ import annotations

import weakref
from collections import OrderedDict

import torch

MOST_KEPT = 8

_Weights = tuple[torch.Tensor, torch.Tensor, torch.Tensor]
_kept: OrderedDict[tuple[int, ...], tuple[list[weakref.ref[torch.Tensor]], _Weights]] = OrderedDict()


def transpose(row_pointers: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, rows: int) -> _Weights:
    """Return the compressed rows of the transposed weights without a word to the host.

    Example:
        >>> transpose(torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([0.5, 0.25]), 2)
        (tensor([0, 1, 2]), tensor([0, 0]), tensor([0.5000, 0.2500]))
    """
    order = torch.argsort(columns, stable=True)
    row = torch.repeat_interleave(row_pointers.diff(), output_size=columns.shape[0])
    pointers = row_pointers.new_zeros(rows + 1)
    pointers[1:].index_add_(0, columns, torch.ones_like(columns)).cumsum_(0)
    return pointers, row[order], values[order]


def kept_transpose(row_pointers: torch.Tensor, columns: torch.Tensor, values: torch.Tensor, rows: int) -> _Weights:
    """Return `transpose` of the weights, the same tensors as long as nobody has written into the weights.

    The CUDA kernel checks weights on the host when it sees their tensors first; those kept it has seen.
    """
    weights = row_pointers, columns, values
    if any(tensor.is_inference() for tensor in weights):  # they do not count who writes into them
        return transpose(*weights, rows)
    key = (rows, *(number for tensor in weights for number in (id(tensor), tensor._version)))
    known = _kept.get(key)
    if known is not None and all(ref() is tensor for ref, tensor in zip(known[0], weights, strict=True)):
        return known[1]
    result = transpose(*weights, rows)
    _kept[key] = [weakref.ref(tensor) for tensor in weights], result
    while len(_kept) > MOST_KEPT:
        _kept.popitem(last=False)
    return result
