"""Orthogonality of the modality-common and modality-specific features: F_dif of the paper (METHOD 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.ops.arguments import REDUCTIONS, check_floating, check_mask, reduce, reduction_code
from dmmlkd_ext.ops.derivative import (
    differentiated_again,
    full_precision,
    is_one,
    loss_dtype,
    needs_formula,
    scaled,
    widened,
)

Norm = Literal["fro", "spectral"]

_OPERATOR = "orthogonality_difference"


def orthogonality_difference(
    common: torch.Tensor,
    specific: torch.Tensor,
    mask: torch.Tensor | None = None,
    normalize: bool = False,
    norm: Norm = "fro",
    reduction: str = "sum",
    *,
    center: bool = False,
) -> torch.Tensor:
    r"""Return the squared norm of the product of two feature matrices, summed over all leading dimensions.

    .. math:: \sum \| H^\top S \|^2

    for H = `common` and S = `specific`, whose rows are samples; the leading dimensions are modalities (and devices).
    The cheaper of the forms d x d and B x B is computed, with its gradient; the second only if cancellation leaves
    enough digits (on CUDA, beyond 128 features, the first).

    Equivalents, for one pair of matrices H [B, d] and S [B, e]:

    - F_dif of the paper: `orthogonality_difference(H, S)`; the form that training uses here, independent of B and
      of the features' scale: `orthogonality_difference(H, S, normalize=True)`
    - domain separation networks (Bousmalis et al. 2016), as published: `orthogonality_difference(H, S)`; as released:
      `B**2 / (d * e) * orthogonality_difference(H, S, center=True, normalize=True)`
    - MISA (Hazarika et al. 2020), as released, without gradient through the rows' lengths: for X in H and S
      `X = X - X.mean(0); X = X / (X.norm(dim=1, keepdim=True).detach() + 1e-6)`, then
      `orthogonality_difference(H, S) / (d * e)`

    Args:
        common: [..., samples, features], float16, bfloat16, float32 or float64; half precisions accumulate in
            float32.
        specific: [..., samples, other features], of the same leading shape, dtype and device.
        mask: bool, broadcastable to [..., samples]: which samples count; None means all.
        normalize: scale rows to unit length first and divide by the squared number of samples that count, so that
            the value depends neither on the batch size nor on the features' scale [C]. A zero row stays zero.
        norm: "fro", the Frobenius norm [C: our reading of the paper's formula], or "spectral", the largest
            singular value, always by the reference.
        reduction: "sum" over the leading dimensions (the paper's sum over modalities), "mean", or "none".
        center: first subtract each matrix's mean row over the samples that count.

    Returns:
        A scalar, or [...] for "none", in the dtype of `common` (half precisions: float32 under autocast).

    Raises:
        TypeError: an argument is not a tensor, or `normalize` or `center` is not a bool.
        ValueError: a dtype, shape, device, `norm` or `reduction` does not fit; the message names it.

    Source:
        F_dif of arXiv 2311.06500 [P]; the squared Frobenius norm and the normalized form are choices of METHOD 3 [C].

    Example:
        >>> common = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> orthogonality_difference(common, torch.tensor([[0.0, 3.0], [0.0, 0.0]])).item()
        9.0
    """
    tensors = isinstance(common, torch.Tensor) and isinstance(specific, torch.Tensor)
    if not tensors or norm != "fro" or needs_formula() or not _native.uses_native(common):
        return orthogonality_difference_reference(common, specific, mask, normalize, norm, reduction, center=center)
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"{_OPERATOR}: mask must be a torch.Tensor or None, got {type(mask).__name__}")
    _check_switches(normalize, center)
    code = reduction_code(_OPERATOR, reduction)
    if center or specific.device != common.device or (mask is not None and mask.device != common.device):
        _check(common, specific, mask, norm)
    h, s = common, specific
    if center:
        h, s = _centered(widened(h), mask), _centered(widened(s), mask)
    if torch.is_grad_enabled() and (h.requires_grad or s.requires_grad):
        loss: torch.Tensor = _Orthogonality.apply(h, s, mask, normalize, code)
    else:
        loss = torch.ops.dmmlkd.orthogonality_forward.default(
            widened(h), widened(s), mask, normalize, code, False, False
        )[0]
    return loss if loss.dtype is common.dtype else loss.to(loss_dtype(common))


class _Orthogonality(torch.autograd.Function):
    """Loss (half precisions: in float32) whose gradients the forward pass computes and the backward pass scales."""

    @staticmethod
    def forward(
        ctx: Any,
        common: torch.Tensor,
        specific: torch.Tensor,
        mask: torch.Tensor | None,
        normalize: bool,
        reduction: int,
    ) -> torch.Tensor:
        first, second = ctx.needs_input_grad[:2]
        loss, of_common, of_specific = torch.ops.dmmlkd.orthogonality_forward.default(
            widened(common), widened(specific), mask, normalize, reduction, first, second
        )
        ctx.save_for_backward(common, specific, mask, of_common, of_specific)
        ctx.settings = normalize, reduction
        result: torch.Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        common, specific, mask, of_common, of_specific = ctx.saved_tensors
        first, second = ctx.needs_input_grad[:2]
        if differentiated_again():
            normalize, reduction = ctx.settings
            inputs = [x for x, asked in ((common, first), (specific, second)) if asked]
            loss = _formula(common, specific, mask, normalize, "fro", list(REDUCTIONS)[reduction])
            found = iter(torch.autograd.grad(loss, inputs, upstream, create_graph=True))
            return next(found) if first else None, next(found) if second else None, None, None, None
        if common.dtype is not of_common.dtype or not is_one(upstream):
            of_common = scaled(of_common, upstream, common.dtype) if first else None
            of_specific = scaled(of_specific, upstream, common.dtype) if second else None
        return of_common if first else None, of_specific if second else None, None, None, None


def orthogonality_difference_reference(
    common: torch.Tensor,
    specific: torch.Tensor,
    mask: torch.Tensor | None = None,
    normalize: bool = False,
    norm: Norm = "fro",
    reduction: str = "sum",
    *,
    center: bool = False,
) -> torch.Tensor:
    """Return what `orthogonality_difference` returns, by the formula as METHOD 3 writes it.

    Example:
        >>> orthogonality_difference_reference(torch.eye(2), torch.eye(2), norm="spectral").item()
        1.0
    """
    reduction_code(_OPERATOR, reduction)
    _check_switches(normalize, center)
    _check(common, specific, mask, norm)
    h, s = common, specific
    if center:
        h, s = _centered(widened(h), mask), _centered(widened(s), mask)
    return _formula(h, s, mask, normalize, norm, reduction).to(loss_dtype(common))


def _formula(
    common: torch.Tensor,
    specific: torch.Tensor,
    mask: torch.Tensor | None,
    normalize: bool,
    norm: Norm,
    reduction: str,
) -> torch.Tensor:
    """Return the loss in float32 or float64, differentiable any number of times."""
    with full_precision(common):
        h, s = widened(common), widened(specific)
        samples = h.new_full(h.shape[:-2], h.shape[-2])
        if mask is not None:
            held = mask.expand(common.shape[:-1])
            h, s = h.where(held.unsqueeze(-1), 0), s.where(held.unsqueeze(-1), 0)
            samples = held.sum(-1).to(h.dtype)
        if normalize:
            h, s = _unit_rows(h), _unit_rows(s)
        product = h.transpose(-2, -1) @ s
        if norm == "fro":
            values = product.square().sum((-2, -1))
        else:
            values = torch.linalg.matrix_norm(product, ord=2).square()
        if normalize:
            values = values / samples.clamp_min(1).square()
        return reduce(values, reduction)


def _centered(features: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """Subtract the mean row over the samples that count."""
    if mask is None:
        return features - features.mean(-2, keepdim=True) if features.shape[-2] else features
    held = mask.expand(features.shape[:-1]).unsqueeze(-1)
    features = features.where(held, 0)
    return features - features.sum(-2, keepdim=True) / held.sum(-2, keepdim=True).clamp_min(1)


def _unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Scale rows to unit length; a zero row stays zero and passes no gradient, one with NaN stays NaN."""
    # Rows are first divided by their largest value, so that squares neither underflow nor overflow.
    peak = features.detach().abs().amax(-1, keepdim=True)
    empty = peak == 0
    scaled = features / peak.where(~empty, 1)
    return (scaled * scaled.square().sum(-1, keepdim=True).where(~empty, 1).rsqrt()).where(~empty, 0)


def _check_switches(normalize: bool, center: bool) -> None:
    for name, value in (("normalize", normalize), ("center", center)):
        if not isinstance(value, bool):
            raise TypeError(f"{_OPERATOR}: {name} must be a bool, got {type(value).__name__}")


def _check(common: torch.Tensor, specific: torch.Tensor, mask: torch.Tensor | None, norm: str) -> None:
    if norm not in ("fro", "spectral"):
        raise ValueError(f"{_OPERATOR}: norm must be 'fro' or 'spectral', got {norm!r}")
    check_floating(_OPERATOR, "common", common)
    check_floating(_OPERATOR, "specific", specific)
    if common.dim() < 2:
        raise ValueError(f"{_OPERATOR}: common must have shape [..., samples, features], got {list(common.shape)}")
    if common.shape[:-1] != specific.shape[:-1]:
        raise ValueError(
            f"{_OPERATOR}: specific must have the leading shape of common, {list(common.shape)}, "
            f"got {list(specific.shape)}"
        )
    if common.dtype != specific.dtype or common.device != specific.device:
        raise ValueError(
            f"{_OPERATOR}: specific must have the dtype and device of common, {common.dtype} on {common.device}, "
            f"got {specific.dtype} on {specific.device}"
        )
    if common.shape[-1] < 1 or specific.shape[-1] < 1:
        raise ValueError(
            f"{_OPERATOR}: common and specific must hold at least one feature, got shapes {list(common.shape)} "
            f"and {list(specific.shape)}"
        )
    if mask is not None:
        check_mask(_OPERATOR, mask, common.shape[:-1], common.device)


class OrthogonalityDifference(nn.Module):
    """`orthogonality_difference` as a module.

    Example:
        >>> OrthogonalityDifference(normalize=True)(torch.eye(2), torch.eye(2)).item()
        0.5
    """

    def __init__(
        self, normalize: bool = False, norm: Norm = "fro", reduction: str = "sum", *, center: bool = False
    ) -> None:
        super().__init__()
        _check_switches(normalize, center)
        reduction_code("OrthogonalityDifference", reduction)
        if norm not in ("fro", "spectral"):
            raise ValueError(f"OrthogonalityDifference: norm must be 'fro' or 'spectral', got {norm!r}")
        self.normalize, self.norm, self.reduction, self.center = normalize, norm, reduction, center

    def forward(self, common: torch.Tensor, specific: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of `common` and `specific` [..., samples, features] under `mask` [..., samples]."""
        return orthogonality_difference(
            common, specific, mask, self.normalize, self.norm, self.reduction, center=self.center
        )

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"normalize={self.normalize}, norm={self.norm!r}, reduction={self.reduction!r}, center={self.center}"


def _register() -> None:
    """Register the native operator's shapes (fake tensors)."""

    @torch.library.register_fake("dmmlkd::orthogonality_forward")
    def _(
        common: torch.Tensor,
        specific: torch.Tensor,
        mask: torch.Tensor | None,
        normalize: bool,
        reduction: int,
        common_gradient: bool,
        specific_gradient: bool,
    ) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if mask is not None and mask.device != common.device:
            raise ValueError(f"{_OPERATOR}: mask must be on {common.device} like common, got {mask.device}")

        def gradient(features: torch.Tensor, wanted: bool) -> torch.Tensor:
            return features.new_empty(features.shape if wanted else 0)

        loss = common.new_empty(() if reduction else common.shape[:-2])
        return loss, gradient(common, common_gradient), gradient(specific, specific_gradient)


if _native.backend() == "native":
    _register()
