"""A round's local iterations in one native call, device by device.

A device goes through all its iterations before the next one begins, so that its parameters, its momentum and its
gradient stay in the cache, and Python is asked once per round. It computes what `reference` computes.
"""

from __future__ import annotations

import torch

from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import TERMS


@torch.no_grad()
def run(task: LocalTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Train all devices, and do on the way what the guidance asks for.

    Parameters and momenta of the population, and the guidance's moments, are written in place.

    Args:
        task: for which `why_reference` has no reason.

    Returns:
        The sums of each device's loss terms over its iterations, float64 [terms, devices], in the order of
        `term_names`, and in how many iterations it trained, int64 [devices].

    Raises:
        ValueError: a shape, a dtype or an index does not fit; the message names it, and nothing has been written then.

    Source:
        METHOD 3 (losses, local training) and 5 (which modalities train in an iteration).
    """
    network, batches, config, guidance = task.population.network, task.batches, task.config, task.guidance
    blocks = [task.population.blocks[name] for name in (SHARED, *network.modalities)]
    for block in blocks:
        block.begin()
    moments = guidance.moments if guidance else None
    weights = task.method.losses.named()
    guides = guidance if guidance and guidance.strength else None
    sums, counts = torch.ops.dmmlkd.local_round_(
        [block.local for block in blocks],
        [block.momentum for block in blocks],
        [block.start for block in blocks] if task.method.proximal else [],
        [torch.from_numpy(block.devices) for block in blocks],
        [batches.split.features[name] for name in network.modalities],
        batches.split.labels,
        batches.split.present,
        batches.indices,
        batches.noise,
        batches.offsets if batches.noise is not None else None,
        torch.from_numpy(task.plan.start),
        torch.from_numpy(task.plan.iterations),
        *network.encoder_numbers,
        network.num_classes,
        guides.pool if guides else None,
        guides.known if guides else None,
        guides.draws if guides else None,
        moments.count if moments else None,
        moments.sum if moments else None,
        moments.product if moments else None,
        [weights[term] for term in list(TERMS)[1:]],
        guides.strength if guides else 0.0,
        guides.by_distance if guides else False,
        config.clip_norm,
        task.learning_rate,
        config.momentum,
        config.weight_decay,
        task.method.proximal,
    )
    further = sums.new_zeros(len(task.method.losses.further), sums.shape[1])  # of weight zero
    return torch.cat([sums, further]), counts
