"""The losses of all devices with their gradients for features and heads, in one native pass or by torch."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.guide.base import GuidanceBatch
from dmmlkd_ext.training.learn.terms import TERMS, BatchOutputs, device_losses
from dmmlkd_ext.training.methods import LossWeights


@dataclass(frozen=True)
class BatchFeatures:
    """What the modalities give for one batch of some devices, and the heads that predict from it.

    Attributes:
        labels: int64 [devices, batch].
        present: bool [devices, batch, modalities]: trained in this iteration and present in the sample.
        features: common and specific features of each modality, [devices that have it, batch, 2 d].
        heads: its own head, [devices that have it, d, classes].
        positions: int64, the rows of `labels` that those devices are, one tensor a modality.
        shared_head: [devices, d, classes].
        waiting_logits: [devices, batch, classes], the sum over the modalities that only run forward, or None.
        waiting_count: [devices, batch], their number, or None.
    """

    labels: torch.Tensor
    present: torch.Tensor
    features: Sequence[torch.Tensor]
    heads: Sequence[torch.Tensor]
    positions: Sequence[torch.Tensor]
    shared_head: torch.Tensor
    waiting_logits: torch.Tensor | None = None
    waiting_count: torch.Tensor | None = None

    def outputs(
        self,
        features: Sequence[torch.Tensor] | None = None,
        heads: Sequence[torch.Tensor] | None = None,
        shared_head: torch.Tensor | None = None,
    ) -> BatchOutputs:
        """Return the heads' logits beside the features; of other features or heads where given."""
        features, heads = features or self.features, heads or self.heads
        shared = self.shared_head if shared_head is None else shared_head
        width, devices = shared.shape[1], len(self.labels)
        common = [own[..., :width] for own in features]
        specific = [own[..., width:] for own in features]
        common_logits = [linear(own, shared[rows]) for own, rows in zip(common, self.positions, strict=True)]
        specific_logits = [linear(own, head) for own, head in zip(specific, heads, strict=True)]
        return BatchOutputs(
            labels=self.labels,
            common_logits=_stack(common_logits, self.positions, devices),
            specific_logits=_stack(specific_logits, self.positions, devices),
            present=self.present,
            common=common,
            specific=specific,
            positions=self.positions,
            waiting_logits=self.waiting_logits,
            waiting_count=self.waiting_count,
        )


@dataclass(frozen=True)
class HeadGradients:
    """Where the gradients of the heads are written: like `BatchFeatures.heads` and `shared_head`."""

    own: Sequence[torch.Tensor]
    shared: torch.Tensor


def objective(
    batch: BatchFeatures, weights: LossWeights, guidance: GuidanceBatch | None, into: HeadGradients
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Return each device's loss terms and the gradients of their weighted sum (METHOD 3, "total").

    Args:
        batch: of some devices.
        weights: of the terms.
        guidance: of the batch, or None.
        into: the heads' gradients, overwritten.

    Returns:
        The terms [6, devices], in the order of `TERMS`, 0 where left out; and the gradient of each modality's features.

    Raises:
        ValueError: a shape or dtype does not fit; the message names it.
    """
    if backend() != "native" or batch.shared_head.device.type != "cpu":
        return objective_reference(batch, weights, guidance, into)
    factors = [getattr(weights, term) for term in TERMS[1:]]
    losses, gradients = torch.ops.dmmlkd.objective_(
        batch.features,
        batch.heads,
        batch.positions,
        batch.shared_head,
        batch.labels,
        batch.present,
        batch.waiting_logits,
        batch.waiting_count,
        guidance.target if guidance else None,
        guidance.known if guidance else None,
        guidance.rehearsal if guidance else None,
        guidance.rehearsal_labels if guidance and guidance.rehearsal is not None else None,
        guidance.rehearsal_known if guidance else None,
        factors,
        guidance.strength if guidance else 0.0,
        guidance.by_distance if guidance else False,
        into.own,
        into.shared,
    )
    return losses, gradients


def objective_reference(
    batch: BatchFeatures, weights: LossWeights, guidance: GuidanceBatch | None, into: HeadGradients
) -> tuple[torch.Tensor, list[torch.Tensor]]:
    """Do what `objective` does, by automatic differentiation of `device_losses`."""
    terms = batch.shared_head.new_zeros(len(TERMS), len(batch.labels))

    def total(outputs: BatchOutputs, shared_head: torch.Tensor) -> torch.Tensor:
        losses = device_losses(outputs, weights, guidance, shared_head)
        for name, value in losses.items():
            terms[TERMS.index(name)] = value.detach()
        parts = [value if name == "task" else getattr(weights, name) * value for name, value in losses.items()]
        return torch.stack(parts).sum()

    return terms, differentiate(batch, total, into)


def differentiate(
    batch: BatchFeatures, total: Callable[[BatchOutputs, torch.Tensor], torch.Tensor], into: HeadGradients
) -> list[torch.Tensor]:
    """Return the gradients of `total`, a scalar of outputs and shared head, for the features; write the heads'."""
    features = [value.detach().requires_grad_() for value in batch.features]
    heads = [value.detach().requires_grad_() for value in batch.heads]
    shared = batch.shared_head.detach().requires_grad_()
    with torch.enable_grad():
        value = total(batch.outputs(features, heads, shared), shared)
    gradients = torch.autograd.grad(value, [*features, *heads, shared], materialize_grads=True)
    with torch.no_grad():
        for target, gradient in zip([*into.own, into.shared], gradients[len(features) :], strict=True):
            target.copy_(gradient)
    return list(gradients[: len(features)])


def _stack(values: list[torch.Tensor], positions: Sequence[torch.Tensor], devices: int) -> torch.Tensor:
    """Lay the modalities side by side, [devices, batch, modalities, classes], with zeros where one is absent."""
    full = [
        value.new_zeros(devices, *value.shape[1:]).index_copy(0, rows, value)
        for value, rows in zip(values, positions, strict=True)
    ]
    return torch.stack(full, 2)
