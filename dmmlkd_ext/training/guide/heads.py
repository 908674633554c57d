"""The heads that each device received in an exchange, and their loss on generated features (METHOD 3)."""

from __future__ import annotations

from typing import NamedTuple

import torch

from dmmlkd_ext.ops import GossipWeights


class ReceivedHeads(NamedTuple):
    """The heads that each of some devices received, and its head.

    Attributes:
        heads: [received, d, classes], those of the first device, then those of the second, and so on.
        receiver: int64 [received]: which of the devices received a head.
        share: [received, classes]: weight of a head for features of a class; sums to 1 per device and class.

    Example:
        >>> alone = GossipWeights.from_dense(torch.eye(1))
        >>> heads = ReceivedHeads.of(torch.eye(2).unsqueeze(0), alone, torch.tensor([0]))
        >>> heads.entropy(torch.zeros(1, 2, 3, 2))
        tensor([0.6931])
    """

    heads: torch.Tensor
    receiver: torch.Tensor
    share: torch.Tensor

    @classmethod
    def of(
        cls, heads: torch.Tensor, weights: GossipWeights, devices: torch.Tensor, seen: torch.Tensor | None = None
    ) -> ReceivedHeads:
        """Return the `heads` that `devices`, int64 and increasing, received in the exchange by `weights`.

        Devices and weights are on the CPU, where it is looked up who received whose head; heads may be on a GPU.

        Heads have equal shares, or, with `seen` [devices at hand, classes], shares proportional to the features of a
        class that their device saw (FedGen, Zhu et al. 2021); equal for a class that no device saw.
        """
        counts = weights.row_pointers.diff()
        chosen = torch.zeros_like(counts, dtype=torch.bool)
        chosen[devices] = True
        columns = weights.columns[chosen.repeat_interleave(counts)].to(heads.device)
        counts = counts[devices]
        receiver = torch.arange(len(counts)).repeat_interleave(counts)
        share = (1.0 / counts[receiver].to(heads.dtype)).unsqueeze(1).to(heads.device).expand(-1, heads.shape[2])
        receiver = receiver.to(heads.device)
        if seen is not None:
            total = seen.new_zeros(len(counts), seen.shape[1]).index_add(0, receiver, seen[columns])[receiver]
            share = torch.where(total > 0, seen[columns] / total, share)
        return cls(heads[columns], receiver, share)

    def entropy(self, features: torch.Tensor) -> torch.Tensor:
        r"""Return the mean cross-entropy of each device's features [devices, classes, n, d] under its heads, [devices].

        .. math:: \frac{1}{C} \sum_c \sum_{j \in N(k)} a_{jc} \frac{1}{n} \sum_e CE(\sigma(w_j G(e, c)), c)

        with the share a of head j for class c.
        """
        logits = torch.bmm(features.flatten(1, 2)[self.receiver], self.heads).unflatten(1, features.shape[1:3])
        surprise = -logits.log_softmax(-1).diagonal(dim1=1, dim2=3).mean(1)  # [received, classes]
        return features.new_zeros(len(features)).index_add(0, self.receiver, (self.share * surprise).mean(1))
