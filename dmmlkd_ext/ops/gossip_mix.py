"""Mixing of parameters between neighbours, with the norms of their variation in the same pass (METHOD 4, 5)."""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import Any, NamedTuple

import torch
from torch import nn
from torch._C import _are_functorch_transforms_active as _functorch_is_active
from torch.autograd import forward_ad

from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.ops.arguments import check_floating
from dmmlkd_ext.ops.gossip_weights import GossipWeights
from dmmlkd_ext.ops.transposed import kept_transpose


class GossipMixing(NamedTuple):
    """The result of `gossip_mix` with `measure`; sqrt(variation / start) is the relative variation of METHOD 5.

    Example:
        >>> out = torch.ones(1, 4)
        >>> result = gossip_mix(torch.full((1, 4), 3.0), GossipWeights.from_dense(torch.eye(1)), out, measure=True)
        >>> (result.variation / result.start).sqrt()
        tensor([2.], dtype=torch.float64)
    """

    mixed: torch.Tensor
    """[rows, parameters]: `out`."""
    variation: torch.Tensor
    """float64 [rows]: squared norm of local - start over the mixed columns."""
    start: torch.Tensor
    """float64 [rows]: squared norm of start, the previous content of `out`."""


def gossip_mix(
    local: torch.Tensor,
    weights: GossipWeights,
    out: torch.Tensor | None = None,
    *,
    measure: bool = False,
    columns: tuple[int, int] | None = None,
) -> torch.Tensor | GossipMixing:
    r"""Return weights times the rows of `local`: one gossip exchange of all devices at once.

    .. math:: x_i \leftarrow \sum_j W_{ij} x_j

    With `measure`, `out` must hold the parameters at the round's start; the norms are computed in the same pass, which
    reads `local` and the old `out` and writes the new `out` once. The bits do not depend on the number of threads.

    Args:
        local: [rows at hand, parameters], the trained parameters, one row per device. Rows may be slices of wider ones,
            but contiguous if `out` is given. Half precisions accumulate in float32.
        weights: [rows produced, rows at hand] as compressed rows.
        out: [rows produced, parameters], written, with contiguous rows. It must not share memory with `local`, except
            that `local` itself is mixed in place (square weights, no `measure`). None makes a new tensor; only then is
            the mixing differentiable, with respect to `local`.
        measure: also return ||local - start||^2 and ||start||^2 of each row produced; row i of `local` and row i of
            `out` must be of the same device.
        columns: the range [begin, end) of columns to mix; the rest of `out` is unchanged. Needs `out`.

    Returns:
        The mixed parameters, or with `measure` a `GossipMixing`.

    Raises:
        TypeError: an argument is not a tensor, or `columns` is not a pair of integers.
        ValueError: a dtype, shape, device, range or entry of `weights` does not fit; nothing was written.

    Source:
        METHOD 4 and 5; Metropolis-Hastings weights are the usual `weights`.

    Example:
        >>> weights = GossipWeights.from_dense(torch.full((2, 2), 0.5))
        >>> gossip_mix(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), weights)
        tensor([[2., 4.],
                [2., 4.]])
        >>> out = torch.zeros(2, 2)
        >>> gossip_mix(torch.tensor([[1.0, 2.0], [3.0, 6.0]]), weights, out, measure=True).variation
        tensor([ 5., 45.], dtype=torch.float64)
    """
    _check(local, weights, out, measure, columns)
    if not _native.uses_native(local):
        return gossip_mix_reference(local, weights, out, measure=measure, columns=columns)
    if out is None:
        return _mix(local, *weights, None)
    begin, end = (0, local.shape[1]) if columns is None else columns
    if out is local:
        torch.ops.dmmlkd.gossip_mix_inplace_(local, *weights, begin, end)
        return out
    norms = torch.ops.dmmlkd.gossip_mix_(local, *weights, out, begin, end, measure)
    return GossipMixing(out, norms[0], norms[1]) if measure else out


def gossip_mix_reference(
    local: torch.Tensor,
    weights: GossipWeights,
    out: torch.Tensor | None = None,
    *,
    measure: bool = False,
    columns: tuple[int, int] | None = None,
) -> torch.Tensor | GossipMixing:
    """Return what `gossip_mix` returns, row by row, by the formula as METHOD 4 writes it.

    Example:
        >>> weights = GossipWeights.from_dense(torch.full((2, 2), 0.5))
        >>> gossip_mix_reference(torch.tensor([[1.0], [3.0]]), weights)
        tensor([[2.],
                [2.]])
    """
    _check(local, weights, out, measure, columns)
    _check_entries(weights, local.shape[0])
    begin, end = (0, local.shape[1]) if columns is None else columns
    wide = weights.values.dtype
    trained = local[:, begin:end].to(wide)
    pointers = weights.row_pointers.tolist()
    # Not a dense product: its zeros would spread a row that is not finite to all rows.
    rows = [weights.values[first:last] @ trained[weights.columns[first:last]] for first, last in pairwise(pointers)]
    mixed = (torch.stack(rows) if rows else trained[:0]).to(local.dtype)
    if out is None:
        return mixed
    with torch.no_grad():
        if not measure:
            out[:, begin:end] = mixed
            return out
        start = out[:, begin:end].to(wide)
        variation = (trained[: out.shape[0]] - start).double().square().sum(1)
        size = start.double().square().sum(1)
        out[:, begin:end] = mixed
        return GossipMixing(out, variation, size)


def _check(
    local: torch.Tensor,
    weights: GossipWeights,
    out: torch.Tensor | None,
    measure: bool,
    columns: tuple[int, int] | None,
) -> None:
    """Check the arguments for both implementations, before anything is written."""
    check_floating("gossip_mix", "local", local)
    if not isinstance(weights, GossipWeights):
        raise TypeError(f"gossip_mix: weights must be GossipWeights, got {type(weights).__name__}")
    if columns is not None:
        _check_columns(columns)
    if out is None and (measure or columns is not None):
        raise ValueError("gossip_mix: measure and columns need out, the parameters at the round's start; got None")
    if out is local and measure:
        raise ValueError("gossip_mix: measure needs an out that holds the round's start; got out = local")
    wide = torch.float64 if local.dtype == torch.float64 else torch.float32
    pointers, indices, values = weights
    for field, tensor in zip(weights._fields, weights, strict=True):
        if not isinstance(tensor, torch.Tensor):
            raise TypeError(f"gossip_mix: {field} must be a torch.Tensor, got {type(tensor).__name__}")
    if local.dim() != 2:
        raise ValueError(f"gossip_mix: local must have shape [rows, parameters], got {list(local.shape)}")
    if pointers.dtype != torch.int64 or pointers.dim() != 1 or pointers.numel() < 1:
        raise ValueError(
            f"gossip_mix: row_pointers must be int64 of shape [rows + 1], got {pointers.dtype} of shape "
            f"{list(pointers.shape)}"
        )
    if indices.dtype != torch.int64 or indices.dim() != 1:
        raise ValueError(
            f"gossip_mix: columns must be int64 of shape [entries], got {indices.dtype} of shape {list(indices.shape)}"
        )
    if values.dtype != wide or values.shape != indices.shape:
        raise ValueError(
            f"gossip_mix: values must be {wide} for parameters of {local.dtype}, of the shape of columns "
            f"{list(indices.shape)}, got {values.dtype} of shape {list(values.shape)}"
        )
    if values.requires_grad:
        raise ValueError("gossip_mix: values must not require a gradient; mixing is differentiable in local alone")
    if out is not None:
        _check_out(local, pointers.shape[0] - 1, out, measure, columns)


def _check_columns(columns: tuple[int, int]) -> None:
    is_pair = isinstance(columns, (tuple, list)) and len(columns) == 2
    if not is_pair or any(isinstance(end, bool) or not isinstance(end, (int, torch.SymInt)) for end in columns):
        raise TypeError(f"gossip_mix: columns must be a pair of integers (begin, end) or None, got {columns!r}")


def _check_out(
    local: torch.Tensor, rows: int, out: torch.Tensor, measure: bool, columns: tuple[int, int] | None
) -> None:
    check_floating("gossip_mix", "out", out)
    if out.dtype != local.dtype or out.device != local.device or out.shape != (rows, local.shape[1]):
        raise ValueError(
            f"gossip_mix: out must be {local.dtype} on {local.device} of shape [{rows}, {local.shape[1]}], got "
            f"{out.dtype} on {out.device} of shape {list(out.shape)}"
        )
    if torch.is_grad_enabled() and (local.requires_grad or out.requires_grad):
        raise ValueError("gossip_mix: writing into out is not differentiable; leave out None or use torch.no_grad()")
    if measure and local.shape[0] < rows:
        raise ValueError(f"gossip_mix: to measure, local must hold at least {rows} rows, got {local.shape[0]}")
    if any(tensor.shape[1] > 1 and tensor.stride(1) != 1 for tensor in (local, out)):
        raise ValueError(
            "gossip_mix: local and out must be contiguous in their rows when out is given, got strides "
            f"{list(local.stride())} and {list(out.stride())}"
        )
    if rows > 1 and out.stride(0) < out.shape[1]:
        raise ValueError(f"gossip_mix: the rows of out must not overlap, got strides {list(out.stride())}")
    begin, end = (0, local.shape[1]) if columns is None else columns
    if not 0 <= begin <= end <= local.shape[1]:
        raise ValueError(f"gossip_mix: columns must lie in [0, {local.shape[1]}], got [{begin}, {end})")


def _check_entries(weights: GossipWeights, rows_at_hand: int) -> None:
    """Refuse weights with indices outside of the rows; the native operators check this themselves."""
    pointers, columns, _ = weights
    if pointers[0] != 0 or pointers[-1] != columns.numel() or bool((pointers.diff() < 0).any()):
        raise ValueError(
            "gossip_mix: row_pointers must begin with 0, not decrease, and end with the number of entries, "
            f"{columns.numel()}; got {pointers.tolist()[:8]}..."
        )
    if columns.numel() and (int(columns.min()) < 0 or int(columns.max()) >= rows_at_hand):
        raise ValueError(f"gossip_mix: columns must be in [0, {rows_at_hand}), got {columns.tolist()[:8]}...")


def _mix(local: torch.Tensor, *rest: Any) -> torch.Tensor:
    """Mix into new rows; `rest` is the weights' tensors, then None or, to mix by the transpose, its number of rows."""
    mixed: torch.Tensor
    if not torch.compiler.is_compiling() and (_functorch_is_active() or forward_ad._current_level >= 0):
        mixed = _TransformedMix.apply(local, *rest)
    elif torch.is_grad_enabled() and local.requires_grad:
        mixed = _Mix.apply(local, *rest)
    else:
        mixed = torch.ops.dmmlkd.gossip_mix(local, *rest)
    return mixed


class _Mix(torch.autograd.Function):
    """Mixing is linear: its derivative mixes by the transposed weights, at any order."""

    @staticmethod
    def forward(ctx: Any, local: torch.Tensor, *rest: Any) -> torch.Tensor:
        *weights, ctx.transposed = rest
        ctx.save_for_backward(*weights)
        ctx.rows = local.shape[0]
        mixed: torch.Tensor = torch.ops.dmmlkd.gossip_mix(local, *rest)
        return mixed

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor | None) -> tuple[torch.Tensor | None, ...]:
        back = ctx.rows if ctx.transposed is None else None
        gradient = None if upstream is None else _mix(upstream, *ctx.saved_tensors, back)
        return gradient, None, None, None, None


class _TransformedMix(torch.autograd.Function):
    """The same for torch.func and forward mode.

    They need other methods: torch.compile does not trace `jvp`, and `setup_context` costs 50 us per call.
    """

    @staticmethod
    def forward(local: torch.Tensor, *rest: Any) -> torch.Tensor:
        mixed: torch.Tensor = torch.ops.dmmlkd.gossip_mix(local, *rest)
        return mixed

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: torch.Tensor) -> None:  # noqa: ARG004
        local, *weights, ctx.transposed = inputs
        ctx.save_for_backward(*weights)
        ctx.save_for_forward(*weights)
        ctx.rows = local.shape[0]
        ctx.set_materialize_grads(False)  # a missing tangent is None

    backward = _Mix.backward

    @staticmethod
    def jvp(ctx: Any, tangent: torch.Tensor | None, *rest: torch.Tensor | None) -> torch.Tensor:
        if tangent is None or any(other is not None for other in rest):
            raise ValueError("gossip_mix: values must not have a tangent; mixing is differentiable in local alone")
        return _mix(tangent, *ctx.saved_tensors, ctx.transposed)

    @staticmethod
    def vmap(info: Any, in_dims: Any, local: torch.Tensor, *rest: Any) -> tuple[torch.Tensor, int]:  # noqa: ARG004
        if any(dim is not None for dim in in_dims[1:]):
            raise ValueError("gossip_mix: torch.func.vmap over weights is not supported, only over local")
        batched = local.movedim(in_dims[0], 1)  # [rows, batch, parameters]: the batch is mixed as one wider row
        return _mix(batched.flatten(1), *rest).unflatten(1, batched.shape[1:]), 1


def _register() -> None:
    """Register the operators' shapes (fake tensors) and the form that makes new rows on a GPU."""

    @torch.library.register_fake("dmmlkd::gossip_mix")
    def _(
        local: torch.Tensor,
        row_pointers: torch.Tensor,
        columns: torch.Tensor,
        values: torch.Tensor,
        transposed: int | None = None,
    ) -> torch.Tensor:
        return local.new_empty(row_pointers.shape[0] - 1 if transposed is None else transposed, local.shape[1])

    @torch.library.impl("dmmlkd::gossip_mix", "CUDA")
    def _(
        local: torch.Tensor,
        row_pointers: torch.Tensor,
        columns: torch.Tensor,
        values: torch.Tensor,
        transposed: int | None = None,
    ) -> torch.Tensor:
        weights = row_pointers, columns, values
        if transposed is not None:
            weights = kept_transpose(*weights, transposed)
        rows = local if local.stride(1) == 1 else local.clone(memory_format=torch.contiguous_format)
        mixed = local.new_empty(weights[0].shape[0] - 1, local.shape[1])
        torch.ops.dmmlkd.gossip_mix_(rows, *weights, mixed, 0, local.shape[1], False)
        return mixed

    @torch.library.register_fake("dmmlkd::gossip_mix_")
    def _(
        local: torch.Tensor,
        row_pointers: torch.Tensor,
        columns: torch.Tensor,
        values: torch.Tensor,
        out: torch.Tensor,
        column_begin: int,
        column_end: int,
        measure: bool,
    ) -> torch.Tensor:
        return local.new_empty((2 if measure else 0, out.shape[0]), dtype=torch.float64)

    @torch.library.register_fake("dmmlkd::gossip_mix_inplace_")
    def _(
        local: torch.Tensor,
        row_pointers: torch.Tensor,
        columns: torch.Tensor,
        values: torch.Tensor,
        column_begin: int,
        column_end: int,
    ) -> None:
        return None


if _native.backend() == "native":
    _register()


class GossipMix(nn.Module):
    """Mixing by fixed weights (METHOD 4) as a module, differentiable in its input.

    The weights move with the module to another torch device and follow its dtype to float64 and back; for half
    precisions they stay float32.

    Raises:
        TypeError: `weights` is not `GossipWeights`.

    Example:
        >>> module = GossipMix(GossipWeights.from_dense(torch.full((2, 2), 0.5)))
        >>> module(torch.tensor([[1.0], [3.0]]))
        tensor([[2.],
                [2.]])
        >>> module.half()(torch.tensor([[1.0], [3.0]]).half())
        tensor([[2.],
                [2.]], dtype=torch.float16)
    """

    row_pointers: torch.Tensor
    columns: torch.Tensor
    values: torch.Tensor

    def __init__(self, weights: GossipWeights) -> None:
        super().__init__()
        if not isinstance(weights, GossipWeights):
            raise TypeError(f"GossipMix: weights must be GossipWeights, got {type(weights).__name__}")
        self.register_buffer("row_pointers", weights.row_pointers)
        self.register_buffer("columns", weights.columns)
        self.register_buffer("values", weights.values)

    def _apply(self, fn: Callable[[torch.Tensor], torch.Tensor], recurse: bool = True) -> GossipMix:
        """Apply `to`, `half`, `cuda` and so on to each tensor; the values stay at least float32."""
        values = self.values
        super()._apply(fn, recurse)
        if self.values.dtype in (torch.float16, torch.bfloat16):
            self.values = values.to(self.values.device, torch.float32)
        return self

    def forward(self, local: torch.Tensor) -> torch.Tensor:
        """Return the mixed rows of `local` [rows, parameters]."""
        weights = GossipWeights(self.row_pointers, self.columns, self.values)
        mixed = gossip_mix(local, weights)
        assert isinstance(mixed, torch.Tensor)
        return mixed
