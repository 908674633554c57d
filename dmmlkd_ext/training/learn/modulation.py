"""Rivals that change the gradients of the modalities' encoders, projections included (METHOD 7).

Heads keep their plain gradients, and so do devices with a single modality in the batch.
"""

from __future__ import annotations

import torch

from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.training.learn.terms import Batch, sum_in_order

HEAD = "head"


def competing(batch: Batch) -> torch.Tensor:
    """Return which devices have more than one modality in the batch, bool [devices]."""
    return batch.present.any(1).sum(1) > 1


def ogm_coefficients(batch: Batch, strength: float) -> torch.Tensor:
    """Return the factor on the gradient of each modality, [devices, modalities] (OGM-GE, Peng et al. 2022).

    A modality whose logits give the true class more probability than the other modalities' on average has its gradient
    scaled by 1 - tanh(strength * ratio); other gradients are unchanged. Unlike the paper, which sums over samples that
    have all modalities, each probability is a mean over the samples that have the modality, and the second of the
    paper's two modalities becomes the mean of the other modalities.

    Example:
        >>> logits = torch.tensor([[[[4.0, 0.0], [0.0, 0.0]]]])  # one device, one sample: the first is ahead
        >>> none, present = torch.zeros_like(logits), torch.ones(1, 1, 2, dtype=torch.bool)
        >>> batch = Batch(torch.tensor([[0]]), present, none, none, logits, none, none)
        >>> (ogm_coefficients(batch, 0.5) < 1).tolist()
        [[True, False]]
    """
    logits = (batch.common_logits + batch.specific_logits).detach()
    labels = batch.labels[..., None, None].expand(*logits.shape[:-1], 1)
    probability = logits.softmax(-1).gather(-1, labels).squeeze(-1) * batch.present
    samples = batch.present.sum(1)
    score = probability.sum(1) / samples.clamp_min(1)  # [devices, modalities]
    held = (samples > 0).sum(1, keepdim=True)
    mean_of_rest = (sum_in_order(score, 1).unsqueeze(1) - score) / (held - 1).clamp_min(1)
    ratio = score / mean_of_rest.clamp_min(1e-8)
    return torch.where((ratio > 1) & (held > 1), 1 - torch.tanh(strength * ratio), 1.0)


def ogm_gradient(
    layout: BlockLayout,
    gradient: torch.Tensor,
    coefficient: torch.Tensor,
    competes: torch.Tensor,
    noise: torch.Tensor,
) -> torch.Tensor:
    """Scale each device's gradient and add noise ("GE"), on every parameter of its encoder (Peng et al. 2022).

    The noise on a parameter tensor has the standard deviation of its unscaled gradient. The published code acts on the
    weights of convolutions alone; this on all tensors of the encoder and its projections, as the paper says.

    Args:
        layout: of the block.
        gradient: [rows, parameters].
        coefficient: of each row, [rows].
        competes: bool [rows]; other rows keep their gradients.
        noise: standard normal numbers, [rows, parameters].

    Returns:
        A new gradient, [rows, parameters].

    Example:
        >>> from dmmlkd_ext.model.layout import ParameterSpec
        >>> layout = BlockLayout({"weight": ParameterSpec((3,), 0.0), "head": ParameterSpec((1,), 0.0)})
        >>> gradient, one = torch.tensor([[2.0, 2.0, 2.0, 4.0]]), torch.ones(1, dtype=torch.bool)
        >>> ogm_gradient(layout, gradient, torch.tensor([0.5]), one, torch.ones(1, 4))  # no deviation, no noise
        tensor([[1., 1., 1., 4.]])
    """
    modulated = gradient.clone()
    parts = zip(_encoder(layout, modulated), _encoder(layout, noise), strict=True)
    for values, random in parts:
        # The standard deviation of fewer than two values is 0.
        deviation = values.std(1, keepdim=True) if values.numel() > len(values) else torch.zeros_like(values)
        changed = values * coefficient.unsqueeze(1) + random * deviation
        values.copy_(torch.where(competes.unsqueeze(1), changed, values))
    return modulated


def unimodal_loss(batch: Batch) -> torch.Tensor:
    """Return the sum of the unimodal losses over the devices where several modalities compete, a number.

    A unimodal loss is the cross-entropy of the sum of a modality's two heads, a mean over the samples that have it.
    """
    entropy = batch.entropy(batch.common_logits + batch.specific_logits) * batch.present
    by_modality = entropy.sum(1) / batch.present.sum(1).clamp_min(1)
    return (by_modality.sum(1) * competing(batch)).sum()


def pareto_gradient(
    layout: BlockLayout, joint: torch.Tensor, alone: torch.Tensor, competes: torch.Tensor, magnitude: float
) -> torch.Tensor:
    """Merge the gradients of the joint and of the unimodal loss (MMPareto, Wei and Hu 2024, arXiv 2405.17730).

    Over the encoder: two gradients that do not conflict are added; of two that do, twice the shortest vector of their
    convex hull is taken, which lowers both losses. In both cases each parameter tensor's gradient is scaled up to the
    length of the sum if shorter, and multiplied by `magnitude`. The head's gradients are added.

    Unlike the published code, which trains separate classifiers, the unimodal loss is that of the heads which the
    prediction uses; and METHOD 3 clips the gradient, as for every method.

    Args:
        layout: of the block.
        joint: gradient of the joint loss, [rows, parameters].
        alone: gradient of the unimodal loss, likewise.
        competes: bool [rows]; other rows keep the joint gradient.
        magnitude: the gamma of the paper.

    Returns:
        A new gradient, [rows, parameters].

    Example:
        >>> from dmmlkd_ext.model.layout import ParameterSpec
        >>> layout = BlockLayout({"weight": ParameterSpec((2,), 0.0), "head": ParameterSpec((1,), 0.0)})
        >>> joint, alone = torch.tensor([[1.0, 0.0, 1.0]]), torch.tensor([[-1.0, 1.0, 1.0]])
        >>> pareto_gradient(layout, joint, alone, torch.tensor([True]), magnitude=1.0)
        tensor([[0.4472, 0.8944, 2.0000]])
    """
    merged = joint + alone
    firsts, seconds = _encoder(layout, joint), _encoder(layout, alone)
    pairs = list(zip(firsts, seconds, strict=True))
    dot = _sum([first * second for first, second in pairs])
    first_square, second_square = (_sum([part.square() for part in parts]) for parts in (firsts, seconds))
    share = (second_square - dot) / (first_square + second_square - 2 * dot).clamp_min(1e-20)
    share = torch.where(dot < 0, share, 0.5)
    for values, (first, second) in zip(_encoder(layout, merged), pairs, strict=True):
        direction = 2 * (share * first + (1 - share) * second)
        length, norm = (torch.linalg.vector_norm(part, dim=1, keepdim=True) for part in (values, direction))
        values.copy_(direction * (length / norm.clamp_min(1e-12)).clamp_min(1) * magnitude)
    return torch.where(competes.unsqueeze(1), merged, joint)


def _encoder(layout: BlockLayout, matrix: torch.Tensor) -> list[torch.Tensor]:
    """Return views of the encoder's parameter tensors, each [rows, size]."""
    return [view.flatten(1) for name, view in layout.views(matrix).items() if name != HEAD]


def _sum(parts: list[torch.Tensor]) -> torch.Tensor:
    """Return the sum of each row over all tensors, [rows, 1]."""
    return torch.stack([part.sum(1) for part in parts]).sum(0).unsqueeze(1)
