"""A round's local iterations in one native call, device by device.

A device goes through all its iterations before the next one begins, so that its parameters, its momentum and its
gradient stay in the cache, and Python is asked once a round. What it computes is what `stepwise` computes.
"""

from __future__ import annotations

import torch

from dmmlkd_ext.models.network import SHARED
from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.losses import TERMS
from dmmlkd_ext.training.task import LocalTask


def applies(task: LocalTask) -> bool:
    """Return whether the native call knows all that the method does."""
    shared, method = task.population.blocks[SHARED].local, task.method
    native = backend() == "native" and shared.device.type == "cpu" and shared.dtype in (torch.float32, torch.float64)
    plain = method.modulation == "none" and not method.proximal and method.balance.pause == "drop"
    return native and plain


@torch.no_grad()
def run(task: LocalTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the sums of each device's loss terms, float64 [terms, devices], and how often it trained, [devices]."""
    network, batches, config, guidance = task.population.network, task.batches, task.config, task.guidance
    blocks = [task.population.blocks[name] for name in (SHARED, *network.modalities)]
    layers = [network.encoders[name].layers for name in network.modalities]
    moments = guidance.moments if guidance else None
    guides = guidance if guidance and guidance.strength else None
    sums, counts = torch.ops.dmmlkd.local_round_(
        [block.local for block in blocks],
        [block.momentum for block in blocks],
        [torch.from_numpy(block.devices) for block in blocks],
        [batches.split.features[name] for name in network.modalities],
        batches.split.labels,
        batches.split.present,
        batches.indices,
        batches.noise,
        batches.offsets if batches.noise is not None else None,
        torch.from_numpy(task.plan.start),
        torch.from_numpy(task.plan.iterations),
        [own.kernel for own in layers],
        [own.stride for own in layers],
        [len(own.widths) for own in layers],
        [width for own in layers for width in own.widths],
        network.num_classes,
        guides.pool if guides else None,
        guides.known if guides else None,
        guides.draws if guides else None,
        moments.count if moments else None,
        moments.sum if moments else None,
        moments.product if moments else None,
        [getattr(task.method.losses, term) for term in TERMS[1:]],
        guides.strength if guides else 0.0,
        guides.by_distance if guides else False,
        config.clip_norm,
        task.learning_rate,
        config.momentum,
        config.weight_decay,
    )
    return sums, counts
