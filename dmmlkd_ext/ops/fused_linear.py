"""Similarity of the predictions of one large head, without all logits in memory at once (METHOD 3)."""

from __future__ import annotations

from typing import Any

import torch

from dmmlkd_ext.ops.arguments import check_floating, check_mask
from dmmlkd_ext.ops.derivative import loss_dtype, widened
from dmmlkd_ext.ops.pairwise_kl import check_settings, pairwise_kl_similarity, reduced

_OPERATOR = "fused_linear_pairwise_kl"
_CHUNK = 1 << 22
"""Logits at a time: 16 MiB in float32, which fit a processor's last-level cache."""


def fused_linear_pairwise_kl(
    features: torch.Tensor,
    head_weight: torch.Tensor,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    *,
    bias: torch.Tensor | None = None,
    chunk: int = _CHUNK,
) -> torch.Tensor:
    """Return `pairwise_kl_similarity(features @ head_weight.T + bias, mask, reduction)` in chunks of samples.

    For large vocabularies: logits and their gradient exist for one chunk at a time; the backward pass computes the
    logits again (4 matrix products instead of 3).

    Args:
        features: [..., modalities, width], any floating dtype.
        head_weight: [classes, width], the weight of a `torch.nn.Linear` that the modalities share.
        mask: bool, broadcastable to [..., modalities]: which modalities a sample has; None means all.
        reduction: "mean", "mean_present", "sum" or "none", as in `pairwise_kl_similarity`.
        bias: [classes] of the head, or None.
        chunk: number of logits in memory at a time; a chunk has at least one sample.

    Returns:
        A scalar, or [...] for "none", in the dtype of `pairwise_kl_similarity`.

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a dtype, shape, device or setting does not fit; the message names it.

    Source:
        F_sim of METHOD 3; chunked losses as in Liger Kernel (Hsu et al. 2024).

    Example:
        >>> features, head = torch.randn(8, 2, 16, requires_grad=True), torch.randn(1000, 16)
        >>> loss = fused_linear_pairwise_kl(features, head, chunk=4000)  # 2 samples at a time
        >>> torch.allclose(loss, pairwise_kl_similarity(features @ head.T), rtol=1e-4)
        True
    """
    check_settings(_OPERATOR, reduction)
    _check(features, head_weight, bias, mask, chunk)
    leading, (modalities, width) = features.shape[:-2], features.shape[-2:]
    samples = features.reshape(-1, modalities, width)
    held = torch.ones((), dtype=torch.bool, device=features.device) if mask is None else mask
    held = held.expand(features.shape[:-1]).reshape(-1, modalities)
    at_once = max(1, chunk // (modalities * head_weight.shape[0]))

    each = _Chunks.apply(samples, head_weight, bias, None if mask is None else held, at_once).reshape(leading)
    counts = (held.sum(-1) > 1).reshape(leading)
    return reduced(each, counts, reduction).to(loss_dtype(features))


def _losses(
    part: torch.Tensor, head_weight: torch.Tensor, bias: torch.Tensor | None, present: torch.Tensor | None
) -> torch.Tensor:
    logits = torch.nn.functional.linear(part, head_weight, bias)
    return pairwise_kl_similarity(widened(logits), present, "none")


class _Chunks(torch.autograd.Function):
    """The loss of each sample, chunk by chunk, of whose logits nothing is kept for the backward pass."""

    @staticmethod
    def forward(
        ctx: Any,
        samples: torch.Tensor,
        head_weight: torch.Tensor,
        bias: torch.Tensor | None,
        held: torch.Tensor | None,
        at_once: int,
    ) -> torch.Tensor:
        ctx.save_for_backward(samples, head_weight, bias, held)
        ctx.at_once = at_once
        losses = widened(samples.new_empty(0)).new_empty(len(samples))
        for start in range(0, len(samples), at_once):
            chosen = slice(start, start + at_once)
            losses[chosen] = _losses(samples[chosen], head_weight, bias, None if held is None else held[chosen])
        return losses

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        samples, head_weight, bias, held = ctx.saved_tensors
        leaves = [head_weight.detach().requires_grad_()] + ([] if bias is None else [bias.detach().requires_grad_()])
        totals = [torch.zeros_like(widened(leaf.detach())) for leaf in leaves]
        gradients = torch.empty_like(samples)
        for start in range(0, len(samples), ctx.at_once):
            chosen = slice(start, start + ctx.at_once)
            part = samples[chosen].detach().requires_grad_()
            with torch.enable_grad():
                losses = _losses(
                    part, leaves[0], leaves[1] if bias is not None else None, None if held is None else held[chosen]
                )
            to_part, *to_leaves = torch.autograd.grad(losses, (part, *leaves), upstream[chosen])
            gradients[chosen] = to_part
            for total, gradient in zip(totals, to_leaves, strict=True):
                total.add_(gradient)
        to_head, to_bias = totals[0].to(head_weight.dtype), None if bias is None else totals[1].to(bias.dtype)
        return gradients, to_head, to_bias, None, None


def _check(
    features: torch.Tensor,
    head_weight: torch.Tensor,
    bias: torch.Tensor | None,
    mask: torch.Tensor | None,
    chunk: int,
) -> None:
    for name, tensor in (("features", features), ("head_weight", head_weight)):
        check_floating(_OPERATOR, name, tensor)
    if features.dim() < 2 or features.shape[-2] < 1:
        raise ValueError(
            f"{_OPERATOR}: features must have shape [..., modalities, width] with at least one modality, got "
            f"{list(features.shape)}"
        )
    if head_weight.dim() != 2 or head_weight.shape[0] < 1 or head_weight.shape[1] != features.shape[-1]:
        raise ValueError(
            f"{_OPERATOR}: head_weight must have shape [classes, {features.shape[-1]}] with at least one class, got "
            f"{list(head_weight.shape)}"
        )
    if bias is not None:
        check_floating(_OPERATOR, "bias", bias)
        if bias.shape != head_weight.shape[:1]:
            raise ValueError(f"{_OPERATOR}: bias must have shape [{head_weight.shape[0]}], got {list(bias.shape)}")
    if mask is not None:
        check_mask(_OPERATOR, mask, features.shape[:-1], features.device)
    if not isinstance(chunk, int) or chunk < 1:
        raise ValueError(f"{_OPERATOR}: chunk must be a positive int, got {chunk!r}")
