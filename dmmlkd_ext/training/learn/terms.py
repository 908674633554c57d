"""The losses of all devices (METHOD 3), each a mean over what is present in the batch."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch.nn.functional import cross_entropy

from dmmlkd_ext.ops import orthogonality_difference, pairwise_kl_similarity
from dmmlkd_ext.training.guide.base import GuidanceBatch
from dmmlkd_ext.training.methods import LossWeights

TERMS = ("task", "classification", "similarity", "difference", "generator", "rehearsal")


@dataclass(frozen=True)
class BatchOutputs:
    """What the modalities give for one batch of some devices.

    Attributes:
        labels: int64 [devices, batch].
        common_logits: [devices, batch, modalities, classes]; anything where absent.
        specific_logits: likewise.
        present: bool [devices, batch, modalities]: trained in this iteration and present in the sample.
        common, specific: features of each modality, [devices that have it, batch, d].
        positions: int64, the rows of `labels` that those devices are, one tensor a modality.
        waiting_logits: [devices, batch, classes], the sum over the modalities that only run forward, or None.
        waiting_count: [devices, batch], their number, or None.
    """

    labels: torch.Tensor
    common_logits: torch.Tensor
    specific_logits: torch.Tensor
    present: torch.Tensor
    common: Sequence[torch.Tensor]
    specific: Sequence[torch.Tensor]
    positions: Sequence[torch.Tensor]
    waiting_logits: torch.Tensor | None = None
    waiting_count: torch.Tensor | None = None


def sum_in_order(values: torch.Tensor, dim: int) -> torch.Tensor:
    """Return the sum over modalities, one after the other: one that is absent changes no bit, nor does its column.

    Example:
        >>> sum_in_order(torch.tensor([[1.0, 2.0, 0.0]]), 1)
        tensor([3.])
    """
    return functools.reduce(torch.add, values.unbind(dim))


def predict(outputs: BatchOutputs) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the prediction's logits [devices, batch, classes] and how many modalities they are a mean of (METHOD 2).

    Example:
        >>> common, specific = torch.tensor([[[[1.0, 0.0], [3.0, 0.0]]]]), torch.tensor([[[[0.0, 2.0], [0.0, 4.0]]]])
        >>> label, both = torch.tensor([[1]]), torch.ones(1, 1, 2, dtype=torch.bool)
        >>> predict(BatchOutputs(label, common, specific, both, (), (), ()))
        (tensor([[[2., 3.]]]), tensor([[2]]))
    """
    weight = outputs.present.unsqueeze(-1)
    total = sum_in_order((outputs.common_logits + outputs.specific_logits) * weight, 2)
    count = outputs.present.sum(2)
    if outputs.waiting_logits is not None and outputs.waiting_count is not None:
        total, count = total + outputs.waiting_logits, count + outputs.waiting_count
    return total / count.clamp_min(1).unsqueeze(-1), count


def device_losses(
    outputs: BatchOutputs,
    weights: LossWeights,
    guidance: GuidanceBatch | None = None,
    shared_head: torch.Tensor | None = None,
) -> dict[str, torch.Tensor]:
    """Return each term of each device's loss, [devices]; terms of weight zero are left out.

    task: cross-entropy of the prediction, a mean over the samples with any modality, trained or waiting.
    classification: F_cls, and similarity: F_sim, means over the samples with a trained one. difference: F_dif,
    normalized. generator: F_gen, a mean over those of them whose class has a target, and rehearsal, over the classes
    that have features; both with `guidance` and the devices' shared heads [devices, d, classes] alone. See METHOD 3.

    Example:
        >>> logits, label = torch.zeros(1, 1, 2, 4), torch.tensor([[1]])
        >>> outputs = BatchOutputs(label, logits, logits, torch.ones(1, 1, 2, dtype=torch.bool), (), (), ())
        >>> device_losses(outputs, LossWeights(similarity=0.1))  # ln 4 of four classes that are alike
        {'task': tensor([1.3863]), 'similarity': tensor([0.])}
    """
    logits, count = predict(outputs)
    counted = (count > 0).to(logits.dtype)
    entropy = cross_entropy(logits.flatten(0, 1), outputs.labels.flatten(), reduction="none")
    losses = {"task": (entropy.view_as(counted) * counted).sum(1) / counted.sum(1).clamp_min(1)}
    # A sample with waiting modalities alone has a prediction, but nothing that the other terms could act on.
    trained = outputs.present.any(2)
    samples = trained.sum(1).clamp_min(1)
    if weights.classification:
        losses["classification"] = _mean_over_present(modality_entropy(outputs), outputs.present).sum(1) / samples
    if weights.similarity:
        similarity = pairwise_kl_similarity(outputs.common_logits, outputs.present, "none")
        losses["similarity"] = similarity.sum(1) / samples
    if weights.difference:
        losses["difference"] = _difference(outputs)
    if guidance is not None and shared_head is not None:
        losses |= _guided_losses(outputs, weights, guidance, shared_head, trained)
    return losses


def _guided_losses(
    outputs: BatchOutputs,
    weights: LossWeights,
    guidance: GuidanceBatch,
    shared_head: torch.Tensor,
    trained: torch.Tensor,
) -> dict[str, torch.Tensor]:
    losses = {}
    if weights.generator:
        pull = _feature_distance(outputs, guidance) if guidance.by_distance else _taught(outputs, guidance, shared_head)
        losses["generator"] = guidance.strength * _mean_where(pull, guidance.known & trained)
    if weights.rehearsal and guidance.rehearsal is not None and guidance.rehearsal_known is not None:
        logits = torch.bmm(guidance.rehearsal, shared_head)
        labels = guidance.rehearsal_labels.repeat(len(logits))
        entropy = cross_entropy(logits.flatten(0, 1), labels, reduction="none").view(logits.shape[:2])
        losses["rehearsal"] = guidance.strength * _mean_where(entropy, guidance.rehearsal_known)
    return losses


def _mean_where(values: torch.Tensor, counted: torch.Tensor) -> torch.Tensor:
    """Return the mean [devices] of values [devices, n] where `counted`, 0 where nothing is."""
    return (values * counted).sum(1) / counted.sum(1).clamp_min(1)


def _taught(outputs: BatchOutputs, guidance: GuidanceBatch, shared_head: torch.Tensor) -> torch.Tensor:
    """Return KL(prediction of the generated || of the own common feature), mean over modalities, [devices, batch]."""
    teacher = torch.bmm(guidance.target, shared_head.detach()).log_softmax(-1).unsqueeze(2)
    student = outputs.common_logits.log_softmax(-1)
    divergence = (teacher.exp() * (teacher - student)).sum(-1)
    return _mean_over_present(divergence, outputs.present)


def _feature_distance(outputs: BatchOutputs, guidance: GuidanceBatch) -> torch.Tensor:
    """Return the mean squared distance of the common features from their class's prototype, [devices, batch]."""
    total = outputs.common_logits.new_zeros(outputs.labels.shape)
    for column, (common, positions) in enumerate(zip(outputs.common, outputs.positions, strict=True)):
        distance = (common - guidance.target[positions]).square().mean(-1) * outputs.present[positions, :, column]
        total = total.index_add(0, positions, distance)
    return total / outputs.present.sum(2).clamp_min(1)


def _mean_over_present(values: torch.Tensor, present: torch.Tensor) -> torch.Tensor:
    """Return the mean over the modalities present, [devices, batch], of values [devices, batch, modalities]."""
    return sum_in_order(values * present, 2) / present.sum(2).clamp_min(1)


def modality_entropy(outputs: BatchOutputs, specific: bool = False) -> torch.Tensor:
    """Return each modality's own cross-entropy, [devices, batch, modalities], 0 where absent.

    By the shared head on the common feature (F_cls of METHOD 3) or, with `specific`, by both of the modality's heads.

    Example:
        >>> logits, label = torch.zeros(1, 1, 2, 4), torch.tensor([[1]])
        >>> modality_entropy(BatchOutputs(label, logits, logits, torch.tensor([[[True, False]]]), (), (), ()))
        tensor([[[1.3863, 0.0000]]])
    """
    logits = outputs.common_logits + outputs.specific_logits if specific else outputs.common_logits
    labels = outputs.labels.unsqueeze(-1).expand(outputs.present.shape)
    entropy = cross_entropy(logits.flatten(0, 2), labels.flatten(), reduction="none").view(outputs.present.shape)
    return entropy * outputs.present


def _difference(outputs: BatchOutputs) -> torch.Tensor:
    total = outputs.common_logits.new_zeros(len(outputs.labels))
    features = zip(outputs.common, outputs.specific, outputs.positions, strict=True)
    for column, (common, specific, positions) in enumerate(features):
        mask = outputs.present[positions, :, column]
        value = orthogonality_difference(common, specific, mask, normalize=True, reduction="none")
        total = total.index_add(0, positions, value)
    return total
