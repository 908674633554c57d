"""Orthogonality of the modality-common and modality-specific features: F_dif of the paper (METHOD 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.ops.arguments import check_floating, check_mask, reduce, reduction_code

Norm = Literal["fro", "spectral"]


def orthogonality_difference(
    common: torch.Tensor,
    specific: torch.Tensor,
    mask: torch.Tensor | None = None,
    normalize: bool = False,
    norm: Norm = "fro",
    reduction: str = "sum",
) -> torch.Tensor:
    r"""Return the squared norm of the product of two feature matrices, summed over all of them.

    .. math:: \sum \| H^\top S \|^2

    for H = `common` and S = `specific`, rows being samples; the leading dimensions run over modalities (and
    devices). The cheaper of the forms d x d and B x B is computed, and only it is kept for the backward pass.

    Args:
        common: [..., samples, features], any floating dtype; half precisions accumulate in float32.
        specific: [..., samples, other features], of the same leading shape, dtype and device.
        mask: bool, broadcastable to [..., samples]: which samples count; None means all.
        normalize: scale rows to unit length first and divide by the squared number of samples that count, so that
            the value depends neither on the batch size nor on the features' scale [C]. A zero row stays zero.
        norm: "fro", the Frobenius norm [C: the reading of the paper's formula], or "spectral", the largest
            singular value, which runs by the reference on every device.
        reduction: "sum" over the leading dimensions (the paper's sum over modalities), "mean", or "none".

    Returns:
        A scalar, or [...] for "none", in the dtype of `common` (float32 under autocast).

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a dtype, shape, device, `norm` or `reduction` does not fit; the message names it.

    Source:
        F_dif of arXiv 2311.06500 [P]; the squared Frobenius norm as in domain separation networks (Bousmalis et
        al. 2016) and the normalized form are choices of METHOD 3 [C].

    Example:
        >>> common = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
        >>> orthogonality_difference(common, torch.tensor([[0.0, 3.0], [0.0, 0.0]])).item()
        9.0
    """
    tensors = isinstance(common, torch.Tensor) and isinstance(specific, torch.Tensor)
    if not tensors or norm != "fro" or not _native.uses_native(common):
        return orthogonality_difference_reference(common, specific, mask, normalize, norm, reduction)
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"orthogonality_difference: mask must be a torch.Tensor or None, got {type(mask).__name__}")
    if not isinstance(normalize, bool):
        raise TypeError(f"orthogonality_difference: normalize must be a bool, got {type(normalize).__name__}")
    code = reduction_code("orthogonality_difference", reduction)
    result: torch.Tensor = torch.ops.dmmlkd.orthogonality_difference(common, specific, mask, normalize, code)
    return result


def orthogonality_difference_reference(
    common: torch.Tensor,
    specific: torch.Tensor,
    mask: torch.Tensor | None = None,
    normalize: bool = False,
    norm: Norm = "fro",
    reduction: str = "sum",
) -> torch.Tensor:
    """Return what `orthogonality_difference` returns, by the formula as METHOD 3 writes it.

    Example:
        >>> orthogonality_difference_reference(torch.eye(2), torch.eye(2), norm="spectral").item()
        1.0
    """
    _check(common, specific, mask, normalize, norm, reduction)
    wide = torch.float64 if common.dtype == torch.float64 else torch.float32
    h, s = common.to(wide), specific.to(wide)
    samples = h.new_full(h.shape[:-2], h.shape[-2])
    if mask is not None:
        held = mask.expand(common.shape[:-1])
        h, s = h.where(held.unsqueeze(-1), 0), s.where(held.unsqueeze(-1), 0)
        samples = held.sum(-1).to(wide)
    if normalize:
        h, s = _unit_rows(h), _unit_rows(s)
    product = h.transpose(-2, -1) @ s
    if norm == "fro":
        values = product.square().sum((-2, -1))
    else:
        values = torch.linalg.matrix_norm(product, ord=2).square()
    if normalize:
        values = values / samples.clamp_min(1).square()
    return reduce(values, reduction).to(common.dtype)


def _unit_rows(features: torch.Tensor) -> torch.Tensor:
    """Scale rows to unit length; a zero row stays zero and passes no gradient, one with NaN stays NaN."""
    # The peak is taken out first, so that the squares of tiny or huge rows neither under- nor overflow.
    peak = features.detach().abs().amax(-1, keepdim=True)
    empty = peak == 0
    scaled = features / peak.where(~empty, 1)
    return (scaled * scaled.square().sum(-1, keepdim=True).where(~empty, 1).rsqrt()).where(~empty, 0)


def _check(
    common: torch.Tensor,
    specific: torch.Tensor,
    mask: torch.Tensor | None,
    normalize: bool,
    norm: str,
    reduction: str,
) -> None:
    operator = "orthogonality_difference"
    reduction_code(operator, reduction)
    if not isinstance(normalize, bool):
        raise TypeError(f"{operator}: normalize must be a bool, got {type(normalize).__name__}")
    if norm not in ("fro", "spectral"):
        raise ValueError(f"{operator}: norm must be 'fro' or 'spectral', got {norm!r}")
    check_floating(operator, "common", common)
    check_floating(operator, "specific", specific)
    if common.dim() < 2:
        raise ValueError(f"{operator}: common must have shape [..., samples, features], got {list(common.shape)}")
    if common.shape[:-1] != specific.shape[:-1]:
        raise ValueError(
            f"{operator}: specific must have the leading shape of common, {list(common.shape)}, "
            f"got {list(specific.shape)}"
        )
    if common.dtype != specific.dtype or common.device != specific.device:
        raise ValueError(
            f"{operator}: specific must have the dtype and device of common, {common.dtype} on {common.device}, "
            f"got {specific.dtype} on {specific.device}"
        )
    if common.shape[-1] < 1 or specific.shape[-1] < 1:
        raise ValueError(
            f"{operator}: common and specific must hold at least one feature, got shapes {list(common.shape)} "
            f"and {list(specific.shape)}"
        )
    if mask is not None:
        check_mask(operator, mask, common.shape[:-1], common.device)


class OrthogonalityDifference(nn.Module):
    """`orthogonality_difference` as a module.

    Example:
        >>> OrthogonalityDifference(normalize=True)(torch.eye(2), torch.eye(2)).item()
        0.5
    """

    def __init__(self, normalize: bool = False, norm: Norm = "fro", reduction: str = "sum") -> None:
        super().__init__()
        reduction_code("OrthogonalityDifference", reduction)
        if norm not in ("fro", "spectral"):
            raise ValueError(f"OrthogonalityDifference: norm must be 'fro' or 'spectral', got {norm!r}")
        self.normalize, self.norm, self.reduction = normalize, norm, reduction

    def forward(self, common: torch.Tensor, specific: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of `common` and `specific` [..., samples, features] under `mask` [..., samples]."""
        return orthogonality_difference(common, specific, mask, self.normalize, self.norm, self.reduction)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"normalize={self.normalize}, norm={self.norm!r}, reduction={self.reduction!r}"


def _register() -> None:
    @torch.library.register_vmap("dmmlkd::orthogonality_difference")
    def _(
        info: Any,
        in_dims: Any,
        common: torch.Tensor,
        specific: torch.Tensor,
        mask: torch.Tensor | None,
        normalize: bool,
        reduction: int = 0,
    ) -> Any:
        def leading(x: torch.Tensor, dim: int | None) -> torch.Tensor:
            return x.movedim(dim, 0) if dim is not None else x.expand(info.batch_size, *x.shape)

        common, specific = leading(common, in_dims[0]), leading(specific, in_dims[1])
        if mask is not None:
            mask = leading(mask, in_dims[2])
            mask = mask.reshape(mask.shape[0], *(1,) * (common.dim() - 1 - mask.dim()), *mask.shape[1:])
        wide = torch.float64 if common.dtype == torch.float64 else torch.float32
        if not reduction:
            return torch.ops.dmmlkd.orthogonality_difference(common, specific, mask, normalize), 0
        # Half precisions round the sum, not its terms.
        losses = torch.ops.dmmlkd.orthogonality_difference(common.to(wide), specific.to(wide), mask, normalize)
        losses = losses.reshape(info.batch_size, -1)
        losses = losses.sum(1) / (max(1, losses.shape[1]) if reduction == 1 else 1)
        return losses.to(common.dtype), 0


if _native.backend() == "native":
    _register()
