"""The heads that each device received in an exchange, and what they say about features."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch.nn.functional import cross_entropy

from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.ops import GossipWeights, backend

if TYPE_CHECKING:
    from dmmlkd_ext.training.population import Population


class ReceivedHeads(NamedTuple):
    """The heads that each of some devices received, its own among them.

    Attributes:
        heads: what devices sent, [devices at hand, d, classes]: those of this rank, then neighbours on others.
        row_pointers: int64 [devices + 1]: device i received `heads[rows[row_pointers[i] : row_pointers[i + 1]]]`.
        rows: int64.
        share: [received heads, classes], what each counts for a feature of a class, 1 in all for a device; None: alike.

    Example:
        >>> heads = ReceivedHeads(torch.eye(2).unsqueeze(0), torch.tensor([0, 1]), torch.tensor([0]))
        >>> loss, gradient = heads.entropy(torch.zeros(1, 1, 2), torch.tensor([0]))
        >>> loss, gradient
        (tensor([0.6931]), tensor([[[-0.5000,  0.5000]]]))
    """

    heads: torch.Tensor
    row_pointers: torch.Tensor
    rows: torch.Tensor
    share: torch.Tensor | None = None

    @classmethod
    def of(
        cls,
        population: Population,
        weights: GossipWeights,
        devices: torch.Tensor,
        seen: torch.Tensor | None = None,
    ) -> ReceivedHeads:
        """Return what `devices`, increasing, received in the exchange by `weights`.

        With `seen` [devices at hand, classes] a head counts by what its device saw of a class; alike where nobody did.
        """
        sent = population.network.layouts[SHARED].views(population.blocks[SHARED].at_hand)["head"]
        counts = weights.row_pointers.diff()
        wanted = torch.zeros(len(counts), dtype=torch.bool)
        wanted[devices] = True
        rows = weights.columns[wanted[torch.repeat_interleave(counts)]]
        pointers = torch.nn.functional.pad(counts[devices].cumsum(0), (1, 0))
        return cls(sent, pointers, rows, None if seen is None else _shares(seen[rows], pointers.diff()))

    def entropy(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return each device's mean cross-entropy over its features and heads, and its gradient.

        Args:
            features: [devices, n, d].
            labels: int64 [n], the same for all.

        Returns:
            [devices] and [devices, n, d].

        Raises:
            ValueError: a shape or dtype does not fit; the message names it.
        """
        if self.share is not None or backend() != "native" or features.device.type != "cpu":
            return self.entropy_reference(features, labels)
        loss, gradient = torch.ops.dmmlkd.heads_entropy(features, self.heads, self.row_pointers, self.rows, labels)
        return loss, gradient

    def entropy_reference(self, features: torch.Tensor, labels: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Return what `entropy` returns, by automatic differentiation."""
        counts = self.row_pointers.diff()
        receiver = torch.repeat_interleave(counts)
        leaf = features.detach().requires_grad_()
        with torch.enable_grad():
            logits = torch.bmm(leaf[receiver], self.heads[self.rows])
            entropy = cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
            alike = (1.0 / counts[receiver].to(features.dtype)).unsqueeze(1)
            share = alike if self.share is None else self.share[:, labels]
            means = (entropy.view(logits.shape[:2]) * share).mean(1)
            loss = features.new_zeros(len(features)).index_add(0, receiver, means)
            (gradient,) = torch.autograd.grad(loss.sum(), leaf)
        return loss.detach(), gradient


def _shares(seen: torch.Tensor, counts: torch.Tensor) -> torch.Tensor:
    """Return what each received head counts, [heads, classes], of what their senders saw and heads a device."""
    receiver = torch.repeat_interleave(counts)
    total = seen.new_zeros(len(counts), seen.shape[1]).index_add(0, receiver, seen)[receiver]
    alike = (1.0 / counts[receiver].to(seen.dtype)).unsqueeze(1)
    return torch.where(total > 0, seen / total.clamp_min(1), alike)
