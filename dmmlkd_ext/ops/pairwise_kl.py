"""Similarity of the modalities' predictions: F_sim of the paper (METHOD 3)."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.ops.arguments import check_floating, check_mask, reduce, reduction_code


def pairwise_kl_similarity(
    logits: torch.Tensor, mask: torch.Tensor | None = None, reduction: str = "mean"
) -> torch.Tensor:
    r"""Return the mean Kullback-Leibler divergence between all ordered pairs of modalities.

    For a sample in which n modalities are present,

    .. math:: \frac{1}{n (n - 1)} \sum_{m \ne m'} \mathrm{KL}(\sigma(z_m) \,\|\, \sigma(z_{m'}))

    and 0 where n < 2. Both sides of every divergence carry gradient. Loss and gradient are computed in one pass
    over memory, in O(n C) for C classes. A sample that holds NaN or an infinity in a present modality gives NaN.

    Args:
        logits: [..., modalities, classes], any floating dtype, any strides, any leading dimensions; half
            precisions accumulate in float32.
        mask: bool, broadcastable to [..., modalities]: which modalities a sample has; None means all.
        reduction: "mean" over all samples (those with n < 2 count as 0), "sum", or "none".

    Returns:
        A scalar, or [...] for "none", in the dtype of `logits` (float32 under autocast).

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a dtype, shape, device or `reduction` does not fit; the message names it.

    Source:
        F_sim of arXiv 2311.06500 [P]; the closed form of METHOD 3.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]], requires_grad=True)  # one sample, two modalities
        >>> loss = pairwise_kl_similarity(logits)
        >>> round(loss.item(), 4)
        1.5232
        >>> loss.backward()
        >>> logits.grad.shape
        torch.Size([1, 2, 2])
    """
    if not isinstance(logits, torch.Tensor) or not _native.uses_native(logits):
        return pairwise_kl_similarity_reference(logits, mask, reduction)
    if mask is not None and not isinstance(mask, torch.Tensor):
        raise TypeError(f"pairwise_kl_similarity: mask must be a torch.Tensor or None, got {type(mask).__name__}")
    code = reduction_code("pairwise_kl_similarity", reduction)
    result: torch.Tensor = torch.ops.dmmlkd.pairwise_kl_similarity(logits, mask, code)
    return result


def pairwise_kl_similarity_reference(
    logits: torch.Tensor, mask: torch.Tensor | None = None, reduction: str = "mean"
) -> torch.Tensor:
    """Return what `pairwise_kl_similarity` returns, by the formula as METHOD 3 writes it.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
        >>> round(pairwise_kl_similarity_reference(logits).item(), 4)
        1.5232
    """
    reduction_code("pairwise_kl_similarity", reduction)
    check_floating("pairwise_kl_similarity", "logits", logits)
    if logits.dim() < 2 or logits.shape[-1] < 1 or logits.shape[-2] < 1:
        raise ValueError(
            "pairwise_kl_similarity: logits must have shape [..., modalities, classes] with at least one of "
            f"each, got {list(logits.shape)}"
        )
    if mask is not None:
        check_mask("pairwise_kl_similarity", mask, logits.shape[:-1], logits.device)

    values = logits if logits.dtype == torch.float64 else logits.float()
    held = torch.ones_like(values[..., :1], dtype=torch.bool)
    if mask is not None:
        held = mask.expand(logits.shape[:-1]).unsqueeze(-1)
        values = values.where(held, 0)  # what an absent modality holds must not matter, not even NaN
    present = held.to(values.dtype)
    count = present.sum(-2, keepdim=True)

    def deviation(x: torch.Tensor) -> torch.Tensor:
        """Return the difference from the mean over the modalities present."""
        return (x - (x * present).sum(-2, keepdim=True) / count.clamp_min(1)) * present

    log_probability = values.log_softmax(-1)
    covariance = deviation(log_probability.exp()) * deviation(log_probability)
    loss = (covariance / (count - 1).clamp_min(1)).sum((-2, -1)).clamp_min(0)
    loss = loss + (loss - loss)  # an infinite divergence comes from infinite logits: NaN, like the rest
    loss = loss.where(count.squeeze(-1).squeeze(-1) > 1, 0)
    return reduce(loss, reduction).to(logits.dtype)


class PairwiseKLSimilarity(nn.Module):
    """`pairwise_kl_similarity` as a module.

    Example:
        >>> PairwiseKLSimilarity(reduction="sum")(torch.zeros(4, 3, 5))
        tensor(0.)
    """

    def __init__(self, reduction: str = "mean") -> None:
        super().__init__()
        reduction_code("PairwiseKLSimilarity", reduction)
        self.reduction = reduction

    def forward(self, logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of `logits` [..., modalities, classes] under `mask` [..., modalities]."""
        return pairwise_kl_similarity(logits, mask, self.reduction)

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        return f"reduction={self.reduction!r}"


def _register() -> None:
    """Tell torch the operators' shapes (fake tensors) and how they act on batches (torch.func.vmap)."""

    @torch.library.register_fake("dmmlkd::pairwise_kl_forward")
    def _(
        logits: torch.Tensor, mask: torch.Tensor | None, reduction: int, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        loss = logits.new_empty(logits.shape[:-2] if reduction == 0 else ())
        if not with_gradient:
            return loss, logits.new_empty(0)
        dense = logits if logits.stride(-1) == 1 else logits.contiguous()
        return loss, torch.empty_like(dense)

    @torch.library.register_vmap("dmmlkd::pairwise_kl_similarity")
    def _(info: Any, in_dims: Any, logits: torch.Tensor, mask: torch.Tensor | None, reduction: int) -> Any:
        logits = logits.movedim(in_dims[0], 0) if in_dims[0] is not None else logits.unsqueeze(0)
        logits = logits.expand(info.batch_size, *logits.shape[1:])
        if mask is not None:
            mask = mask.movedim(in_dims[1], 0) if in_dims[1] is not None else mask.unsqueeze(0)
            missing = logits.dim() - 1 - mask.dim()
            mask = mask.reshape(mask.shape[0], *(1,) * missing, *mask.shape[1:])
        losses = torch.ops.dmmlkd.pairwise_kl_similarity(logits, mask, 0)
        if reduction:
            losses = losses.reshape(info.batch_size, -1)
            samples = max(1, losses.shape[1])
            losses = losses.sum(1) / samples if reduction == 1 else losses.sum(1)
        return losses, 0


if _native.backend() == "native":
    _register()
