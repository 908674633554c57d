"""A round's local iterations in one native call; computes what `reference` computes.

Each device runs all its iterations before the next device starts, so its parameters, momentum and gradient stay in the
cache.
"""

from __future__ import annotations

from typing import Any

import torch

from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import TERMS


@torch.no_grad()
def run(task: LocalTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Train all devices, and collect the guidance's moments.

    Reads each block's `start`; writes its `local` and `momentum`, and the guidance's moments. A block of a device that
    does not train is copied. `why_reference` must return None for the task.

    Returns:
        The sums of each device's loss terms over its iterations, float64 [terms, devices], in the order of
        `term_names`, and in how many iterations it trained, int64 [devices].

    Raises:
        ValueError: a shape, a dtype or an index does not fit; the message names it, and nothing was written.

    Source:
        METHOD 3 (losses, local training), 5 (which modalities train in an iteration) and 7 (rivals that change
        gradients).
    """
    blocks = [task.population.blocks[name] for name in (SHARED, *task.population.network.modalities)]
    sums, counts = torch.ops.dmmlkd.local_round_(
        starts=[block.start for block in blocks],
        parameters=[block.local for block in blocks],
        momenta=[block.momentum for block in blocks],
        devices=[torch.from_numpy(block.devices) for block in blocks],
        classes=task.population.network.num_classes,
        **task.population.network.encoder_numbers._asdict(),
        **_batches(task),
        **_guidance(task),
        **_modulation(task),
        **_optimizer(task),
    )
    further = sums.new_zeros(len(task.method.losses.further), sums.shape[1])  # of weight zero
    return torch.cat([sums, further]), counts


def _batches(task: LocalTask) -> dict[str, Any]:
    batches, split = task.batches, task.batches.split
    return {
        "values": [split.features[name] for name in task.population.network.modalities],
        "labels": split.labels,
        "present": split.present,
        "indices": batches.indices,
        "noise": batches.noise,
        "offsets": None if batches.noise is None else batches.offsets,
        "first_iterations": torch.from_numpy(task.plan.start),
        "iterations": torch.from_numpy(task.plan.iterations),
    }


def _guidance(task: LocalTask) -> dict[str, Any]:
    guidance, weights = task.guidance, task.method.losses.named()
    moments = guidance.moments if guidance else None
    guides = guidance if guidance and guidance.strength else None
    return {
        "pool": guides.pool if guides else None,
        "known": guides.known if guides else None,
        "draws": guides.draws if guides else None,
        "count": moments.count if moments else None,
        "sum": moments.sum if moments else None,
        "product": moments.product if moments else None,
        "weights": [weights[term] for term in list(TERMS)[1:]],
        "strength": guides.strength if guides else 0.0,
        "by_distance": guides.by_distance if guides else False,
    }


def _modulation(task: LocalTask) -> dict[str, Any]:
    tables, offsets = [], None
    if task.method.modulation == "ogm-ge":
        draws, network = task.batches.gradient_noise, task.population.network
        dtype = task.population.blocks[SHARED].start.dtype
        tables = [draws.table(network.layouts[name].size, dtype) for name in network.modalities]
        offsets = draws.offsets
    return {
        "modulation": task.method.modulation,
        "modulation_strength": task.method.modulation_strength,
        "gradient_noise": tables,
        "gradient_offsets": offsets,
    }


def _optimizer(task: LocalTask) -> dict[str, Any]:
    return {
        "clip_norm": task.config.clip_norm,
        "learning_rate": task.learning_rate,
        "momentum_factor": task.config.momentum,
        "weight_decay": task.config.weight_decay,
        "proximal": task.method.proximal,
    }
