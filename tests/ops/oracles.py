"""The operators as their definitions say, in float64 and by loops: slow, obvious, shared by tests and benchmarks."""

from __future__ import annotations

import itertools

import torch


def pairwise_kl_oracle(
    logits: torch.Tensor, mask: torch.Tensor | None = None, pair_weights: torch.Tensor | None = None
) -> torch.Tensor:
    """F_sim of each sample [...] of logits [..., modalities, classes], pair by pair, weighted if asked for."""
    leading, (modalities, classes) = logits.shape[:-2], logits.shape[-2:]
    samples = logits.double().reshape(-1, modalities, classes)
    held = torch.ones(samples.shape[:2], dtype=torch.bool)
    if mask is not None:
        held = mask.expand(logits.shape[:-1]).reshape(-1, modalities)
    weights = torch.ones(modalities, modalities) if pair_weights is None else pair_weights
    losses = []
    for sample, present in zip(samples, held, strict=True):
        indices = present.nonzero().flatten().tolist()
        allowed = ~(sample[indices] == -torch.inf).all(0)
        total, count = samples.new_zeros(()), 0.0
        for m, n in itertools.permutations(indices, 2):
            weight = float(weights[m, n])
            log_p, log_q = sample[m, allowed].log_softmax(-1), sample[n, allowed].log_softmax(-1)
            total = total + weight * torch.sum(log_p.exp() * (log_p - log_q))
            count += weight
        losses.append(total / count if count else total)
    return torch.stack(losses).reshape(leading) if losses else samples.new_zeros(leading)


def orthogonality_oracle(
    common: torch.Tensor, specific: torch.Tensor, mask: torch.Tensor | None = None, normalize: bool = False
) -> torch.Tensor:
    """F_dif of each matrix pair [...]: squared Frobenius norm of H^T S, by sums over samples."""
    leading = common.shape[:-2]
    h = common.double().reshape(-1, *common.shape[-2:])
    s = specific.double().reshape(-1, *specific.shape[-2:])
    held = torch.ones(h.shape[:2], dtype=torch.bool)
    if mask is not None:
        held = mask.expand(common.shape[:-1]).reshape(-1, common.shape[-2])
    values = []
    for a, b, present in zip(h, s, held, strict=True):
        product = a.new_zeros(a.shape[-1], b.shape[-1])
        for row in present.nonzero().flatten().tolist():
            x, y = a[row], b[row]
            if normalize:
                x = x / x.norm() if x.norm() > 0 else x * 0
                y = y / y.norm() if y.norm() > 0 else y * 0
            product = product + torch.outer(x, y)
        count = max(1, int(present.sum()))
        values.append(product.square().sum() / (count**2 if normalize else 1))
    return torch.stack(values).reshape(leading) if values else h.new_zeros(leading)


def gossip_oracle(
    local: torch.Tensor, row_pointers: torch.Tensor, columns: torch.Tensor, values: torch.Tensor
) -> torch.Tensor:
    """Mixed rows in float64, weight by weight."""
    pointers, rows = row_pointers.tolist(), local.double()
    mixed = rows.new_zeros(len(pointers) - 1, local.shape[1])
    for row in range(len(pointers) - 1):
        for entry in range(pointers[row], pointers[row + 1]):
            mixed[row] = mixed[row] + values[entry].double() * rows[columns[entry]]
    return mixed
