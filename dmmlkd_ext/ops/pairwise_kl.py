"""Similarity of the modalities' predictions: F_sim of the paper and its variants (METHOD 3)."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import nn

from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.ops.arguments import check_floating, check_mask
from dmmlkd_ext.ops.derivative import (
    differentiated_again,
    full_precision,
    loss_dtype,
    needs_formula,
    scaled,
    widened,
)

Targets = Literal["both", "detached"]

_OPERATOR = "pairwise_kl_similarity"
# The number of each reduction in native code; "mean_present" is a sum that is divided afterwards.
_REDUCTIONS = {"none": 0, "mean": 1, "sum": 2, "mean_present": 2}


def pairwise_kl_similarity(
    logits: torch.Tensor,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    *,
    temperature: float = 1.0,
    targets: Targets = "both",
    pair_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    r"""Return the mean Kullback-Leibler divergence between all ordered pairs of modalities.

    For a sample in which n modalities are present,

    .. math:: \frac{1}{n (n - 1)} \sum_{m \ne m'} \mathrm{KL}(\sigma(z_m / T) \,\|\, \sigma(z_{m'} / T))

    and 0 where n < 2. By default loss and gradient are computed in one pass over memory, in O(n C) for C classes;
    with `targets` or `pair_weights`, under torch.func and in forward mode the reference runs (with `pair_weights` in
    O(n^2 C)). A class whose logit is -inf in all present modalities is ignored; any other non-finite logit of a present
    modality makes the loss of its sample NaN.

    Equivalents, for logits z [samples, modalities, classes]:

    - F_sim of the paper, and R-Drop (Liang et al. 2021) for two passes through a network:
      `pairwise_kl_similarity(z)`
    - deep mutual learning (Zhang et al. 2018), the sum of the divergence terms of all K networks:
      `K * pairwise_kl_similarity(z, targets="detached")`
    - distillation (Hinton et al. 2015) from modality 0 to modality 1 at temperature T, with
      `W = torch.tensor([[0.0, 1.0], [0.0, 0.0]])`:
      `T**2 * pairwise_kl_similarity(z, temperature=T, targets="detached", pair_weights=W)`

    Args:
        logits: [..., modalities, classes], float16, bfloat16, float32 or float64, any strides, any leading
            dimensions; half precisions accumulate in float32.
        mask: bool, broadcastable to [..., modalities]: which modalities a sample has; None means all.
        reduction: "mean" over all samples (those with n < 2 count as 0), "mean_present" over those with n >= 2,
            "sum", or "none".
        temperature: T > 0; the loss is not multiplied by T^2.
        targets: "both": gradients flow through both sides of every divergence; "detached": not through the first.
        pair_weights: [modalities, modalities], the weight of KL(m || m') in row m and column m'. A sample's loss is
            then the weighted mean over its pairs, 0 where their weights sum to 0. A single row of ones is a teacher.

    Returns:
        A scalar, or [...] for "none", in the dtype of `logits` (half precisions: float32 under autocast).

    Raises:
        TypeError: an argument is not a tensor.
        ValueError: a dtype, shape, device or setting does not fit; the message names it.

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
    family = targets != "both" or pair_weights is not None
    if family or not isinstance(logits, torch.Tensor) or not _native.uses_native(logits) or needs_formula():
        return pairwise_kl_similarity_reference(
            logits, mask, reduction, temperature=temperature, targets=targets, pair_weights=pair_weights
        )
    check_settings(_OPERATOR, reduction, temperature, targets)
    if mask is not None and (not isinstance(mask, torch.Tensor) or mask.device != logits.device):
        check_mask(_OPERATOR, mask, logits.shape[:-1], logits.device)
    if temperature != 1:
        check_floating(_OPERATOR, "logits", logits)
    values = logits if temperature == 1 else widened(logits) / temperature
    if mask is None and reduction == "mean_present":
        reduction = "mean"
    if values.requires_grad and torch.is_grad_enabled():
        loss: torch.Tensor = _PairwiseKL.apply(values, mask, reduction)
    else:
        loss = torch.ops.dmmlkd.pairwise_kl_forward.default(widened(values), mask, _REDUCTIONS[reduction], False)[0]
    if mask is not None and reduction == "mean_present":
        loss = loss / (mask.expand(logits.shape[:-1]).sum(-1) > 1).sum().clamp_min(1)
    return loss if loss.dtype is logits.dtype else loss.to(loss_dtype(logits))


def _gradient_comes_later(logits: torch.Tensor) -> bool:
    """Return whether the backward pass computes the gradient, with the upstream gradient in it.

    On CUDA a saved gradient would have to be read and written once more even for an upstream gradient of 1, of which
    the host learns by waiting only.
    """
    return logits.device.type == "cuda"


class _PairwiseKL(torch.autograd.Function):
    """Loss (half precisions: in float32) whose gradient the forward pass computes and the backward pass scales."""

    @staticmethod
    def forward(ctx: Any, logits: torch.Tensor, mask: torch.Tensor | None, reduction: str) -> torch.Tensor:
        code = _REDUCTIONS[reduction]
        later = _gradient_comes_later(logits)
        loss, gradient = torch.ops.dmmlkd.pairwise_kl_forward.default(widened(logits), mask, code, not later)
        ctx.save_for_backward(logits, mask, None if later else gradient)
        ctx.reduction = reduction
        result: torch.Tensor = loss
        return result

    @staticmethod
    def backward(ctx: Any, upstream: torch.Tensor) -> Any:
        logits, mask, gradient = ctx.saved_tensors
        if differentiated_again():
            reduction = "sum" if ctx.reduction == "mean_present" else ctx.reduction
            loss = _formula(logits, mask, reduction)
            return *torch.autograd.grad(loss, logits, upstream, create_graph=True), None, None
        if gradient is None:
            code = _REDUCTIONS[ctx.reduction]
            return torch.ops.dmmlkd.pairwise_kl_backward.default(upstream, logits, mask, code), None, None
        return scaled(gradient, upstream, logits.dtype), None, None


def pairwise_kl_similarity_reference(
    logits: torch.Tensor,
    mask: torch.Tensor | None = None,
    reduction: str = "mean",
    *,
    temperature: float = 1.0,
    targets: Targets = "both",
    pair_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return what `pairwise_kl_similarity` returns, by the formula as METHOD 3 writes it.

    Example:
        >>> logits = torch.tensor([[[2.0, 0.0], [0.0, 2.0]]])
        >>> round(pairwise_kl_similarity_reference(logits).item(), 4)
        1.5232
    """
    _check(logits, mask, reduction, temperature, targets, pair_weights)
    loss = _formula(logits, mask, reduction, temperature, targets, pair_weights)
    return loss.to(loss_dtype(logits))


def _formula(
    logits: torch.Tensor,
    mask: torch.Tensor | None,
    reduction: str,
    temperature: float = 1.0,
    targets: Targets = "both",
    pair_weights: torch.Tensor | None = None,
) -> torch.Tensor:
    """Return the loss in float32 or float64, differentiable any number of times."""
    with full_precision(logits):
        values = widened(logits) / temperature
        held = torch.ones_like(values[..., :1], dtype=torch.bool)
        if mask is not None:
            held = mask.expand(logits.shape[:-1]).unsqueeze(-1)
            values = values.where(held, 0)  # values of an absent modality have no effect, not even NaN
        excluded = ((values == -torch.inf) | ~held).all(-2, keepdim=True)
        log_probability = values.log_softmax(-1)
        probability = log_probability.exp()
        log_probability = log_probability.where(~excluded, 0)
        if pair_weights is None:
            losses, counts = _all_pairs(probability, log_probability, held, targets)
        else:
            losses, counts = _weighted_pairs(probability, log_probability, held, targets, pair_weights)
        losses = losses + (losses - losses)  # an infinite divergence (of infinite logits) becomes NaN
        return reduced(losses.where(counts, 0), counts, reduction)


def reduced(losses: torch.Tensor, counts: torch.Tensor, reduction: str) -> torch.Tensor:
    """Reduce the samples' losses; `counts` marks the samples that have a pair. The mean of no sample is 0.

    Example:
        >>> reduced(torch.tensor([0.0, 3.0]), torch.tensor([False, True]), "mean_present")
        tensor(3.)
    """
    if reduction == "none":
        return losses
    if reduction == "mean_present":
        return losses.sum() / counts.sum().clamp_min(1)
    return losses.mean() if reduction == "mean" and losses.numel() else losses.sum()


def _all_pairs(
    probability: torch.Tensor, log_probability: torch.Tensor, held: torch.Tensor, targets: Targets
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each sample's mean over its pairs, and whether it has any."""
    present = held.to(probability.dtype)
    count = present.sum(-2, keepdim=True)

    def deviation(x: torch.Tensor) -> torch.Tensor:
        """Return the difference from the mean over the modalities present."""
        return (x - (x * present).sum(-2, keepdim=True) / count.clamp_min(1)) * present

    if targets == "detached":
        probability = probability.detach()
    covariance = deviation(probability) * deviation(log_probability)
    losses = (covariance / (count - 1).clamp_min(1)).sum((-2, -1)).clamp_min(0)
    return losses, count.squeeze(-1).squeeze(-1) > 1


def _weighted_pairs(
    probability: torch.Tensor,
    log_probability: torch.Tensor,
    held: torch.Tensor,
    targets: Targets,
    pair_weights: torch.Tensor,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return each sample's weighted mean over its pairs, and whether their weights sum to more than 0."""
    target = log_probability
    if targets == "detached":
        probability, target = probability.detach(), target.detach()
    distance = target.unsqueeze(-2) - log_probability.unsqueeze(-3)  # [..., m, m', classes]
    divergence = (probability.unsqueeze(-2) * distance).sum(-1).clamp_min(0)
    different = ~torch.eye(held.shape[-2], dtype=torch.bool, device=held.device)
    pairs = held & held.transpose(-2, -1) & different & (pair_weights != 0)
    weights = pair_weights.to(probability.dtype).where(pairs, 0)
    total = weights.sum((-2, -1))
    losses = (weights * divergence.where(pairs, 0)).sum((-2, -1)) / total.where(total != 0, 1)
    return losses, total != 0


def check_settings(operator: str, reduction: str, temperature: float = 1.0, targets: str = "both") -> None:
    """Raise ValueError for a setting that the operator does not know."""
    if not isinstance(reduction, str) or reduction not in _REDUCTIONS:
        raise ValueError(f"{operator}: reduction must be one of none, mean, sum, mean_present; got {reduction!r}")
    if not isinstance(temperature, int | float) or not 0 < temperature < float("inf"):
        raise ValueError(f"{operator}: temperature must be a positive finite number, got {temperature!r}")
    if targets not in ("both", "detached"):
        raise ValueError(f"{operator}: targets must be 'both' or 'detached', got {targets!r}")


def _check(
    logits: torch.Tensor,
    mask: torch.Tensor | None,
    reduction: str,
    temperature: float,
    targets: str,
    pair_weights: torch.Tensor | None,
) -> None:
    check_settings(_OPERATOR, reduction, temperature, targets)
    check_floating(_OPERATOR, "logits", logits)
    if logits.dim() < 2 or logits.shape[-1] < 1 or logits.shape[-2] < 1:
        raise ValueError(
            f"{_OPERATOR}: logits must have shape [..., modalities, classes] with at least one of each, got "
            f"{list(logits.shape)}"
        )
    if mask is not None:
        check_mask(_OPERATOR, mask, logits.shape[:-1], logits.device)
    if pair_weights is None:
        return
    check_floating(_OPERATOR, "pair_weights", pair_weights)
    modalities = logits.shape[-2]
    if pair_weights.shape != (modalities, modalities) or pair_weights.device != logits.device:
        raise ValueError(
            f"{_OPERATOR}: pair_weights must have shape [{modalities}, {modalities}] on {logits.device}, got "
            f"{list(pair_weights.shape)} on {pair_weights.device}"
        )


class PairwiseKLSimilarity(nn.Module):
    """`pairwise_kl_similarity` as a module with fixed settings.

    Example:
        >>> PairwiseKLSimilarity(reduction="sum")(torch.zeros(4, 3, 5))
        tensor(0.)
    """

    pair_weights: torch.Tensor | None

    def __init__(
        self,
        reduction: str = "mean",
        *,
        temperature: float = 1.0,
        targets: Targets = "both",
        pair_weights: torch.Tensor | None = None,
    ) -> None:
        super().__init__()
        check_settings(_OPERATOR, reduction, temperature, targets)
        self.reduction, self.temperature, self.targets = reduction, temperature, targets
        self.register_buffer("pair_weights", pair_weights, persistent=False)

    def forward(self, logits: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        """Return the loss of `logits` [..., modalities, classes] under `mask` [..., modalities]."""
        return pairwise_kl_similarity(
            logits,
            mask,
            self.reduction,
            temperature=self.temperature,
            targets=self.targets,
            pair_weights=self.pair_weights,
        )

    def extra_repr(self) -> str:
        """Return the settings that `repr` shows."""
        weighted = "" if self.pair_weights is None else f", pair_weights={self.pair_weights.tolist()}"
        return f"reduction={self.reduction!r}, temperature={self.temperature}, targets={self.targets!r}{weighted}"


def _register() -> None:
    """Register the native operators' shapes (fake tensors)."""

    def check_device(mask: torch.Tensor | None, logits: torch.Tensor) -> None:
        if mask is not None and mask.device != logits.device:
            raise ValueError(f"{_OPERATOR}: mask must be on {logits.device} like logits, got {mask.device}")

    def gradient_of(logits: torch.Tensor) -> torch.Tensor:
        if logits.shape[-2] == 1:  # nothing to compare
            return torch.zeros_like(logits)
        dense = logits if logits.stride(-1) == 1 or logits.shape[-1] == 1 else logits.contiguous()
        return torch.empty_like(dense)

    @torch.library.register_fake("dmmlkd::pairwise_kl_forward")
    def _(
        logits: torch.Tensor, mask: torch.Tensor | None, reduction: int, with_gradient: bool
    ) -> tuple[torch.Tensor, torch.Tensor]:
        check_device(mask, logits)
        loss = logits.new_empty(logits.shape[:-2] if reduction == 0 else ())
        return loss, gradient_of(logits) if with_gradient else logits.new_empty(0)

    @torch.library.register_fake("dmmlkd::pairwise_kl_backward")
    def _(upstream: torch.Tensor, logits: torch.Tensor, mask: torch.Tensor | None, reduction: int) -> torch.Tensor:
        check_device(mask, logits)
        return gradient_of(logits)


if _native.backend() == "native":
    _register()
