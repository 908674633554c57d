"""The local iterations of all devices in plain torch: the definition of the method, with which native code must agree.

Read `_iterate`: one iteration of all devices that train, from the batch to the step. Every tensor has a leading
dimension of devices, gradients come from autograd, and any torch device will do. Devices are processed in chunks, whose
parameters and activations stay in a processor's cache or a GPU's memory; the iterations of a chunk in spans in which
the same modalities train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.learn.modulation import (
    competing,
    ogm_coefficients,
    ogm_gradient,
    pareto_gradient,
    unimodal_loss,
)
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import Batch, loss_terms, term_names, total
from dmmlkd_ext.training.population import Block, Population

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

CHUNK_VALUES = 2**20
"""Parameters that train together, per thread of a CPU: with momentum and gradient they fit its caches."""
GPU_CHUNK_VALUES = 2**28
"""Likewise on a GPU: 1 GiB of float32 parameters, about ten times that with an iteration's intermediate values."""


@torch.no_grad()
def run(task: LocalTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Train all devices; parameters, momenta and the guidance's moments are written in place.

    Returns:
        The sums of each device's loss terms over its iterations, float64 [terms, devices], in the order of
        `term_names`, and in how many iterations it trained, int64 [devices].

    Source:
        METHOD 3 and 5; the rivals of METHOD 7 that change gradients.
    """
    population, names = task.population, term_names(task.method.losses)
    for name in (SHARED, *population.network.modalities):
        population.blocks[name].begin()
    sums = torch.zeros(len(names), population.num_devices, dtype=torch.float64, device=population.torch_device)
    counts = torch.zeros(population.num_devices, dtype=torch.int64, device=population.torch_device)
    for devices in _chunks(population):
        for span, active in _spans(task.plan, population.holds, devices):
            group = Group.of(population, active)
            for iteration in span:
                for name, values in _iterate(task, group, iteration).items():
                    sums[names.index(name)].index_add_(0, group.devices, values.double())
            counts[group.devices] += len(span)
            group.store()
    return sums, counts


def _chunks(population: Population) -> Iterator[slice]:
    """Yield contiguous ranges of devices."""
    blocks = [population.blocks[name] for name in (SHARED, *population.network.modalities)]
    parameters = max(1, sum(block.local.numel() for block in blocks) // max(1, population.num_devices))
    on_cpu = population.torch_device.type == "cpu"
    values = CHUNK_VALUES * torch.get_num_threads() if on_cpu else GPU_CHUNK_VALUES
    size = max(1, values // parameters)
    for begin in range(0, population.num_devices, size):
        yield slice(begin, begin + size)


def _spans(plan: Plan, holds: BoolArray, devices: slice) -> Iterator[tuple[range, BoolArray]]:
    """Yield ranges of iterations in which the same modalities train, and which, bool [devices, modalities]."""
    here = np.zeros_like(holds)
    here[devices] = holds[devices] & (plan.iterations[devices] > 0)
    cuts = np.unique(np.concatenate([plan.start[here], (plan.start + plan.iterations)[here]]))
    for begin, end in zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True):
        active = here & plan.active(begin)
        if active.any():
            yield range(begin, end), active


class Rows:
    """The rows of one block whose devices train: views if all of a contiguous range do, else copies.

    Attributes:
        layout: of the block.
        place: int64 [rows], the index of each row's device in the group.
        parameters: [rows, parameters].
        momentum: likewise.
    """

    def __init__(self, block: Block, layout: BlockLayout, devices: IntArray, group: IntArray) -> None:
        self.layout, self._block = layout, block
        rows = block.rows_of(devices)
        place = torch.from_numpy(np.searchsorted(group, devices))
        self.place = place.to(block.local.device)
        run = len(rows) > 0 and int(rows[-1]) - int(rows[0]) + 1 == len(rows)
        self._rows = slice(int(rows[0]), int(rows[-1]) + 1) if run else rows.to(block.local.device)
        self.parameters, self.momentum = block.local[self._rows], block.momentum[self._rows]

    def store(self) -> None:
        """Write copies back into the block."""
        if not isinstance(self._rows, slice):
            self._block.local[self._rows] = self.parameters
            self._block.momentum[self._rows] = self.momentum

    def start(self) -> torch.Tensor:
        """Return the parameters at the round's start."""
        return self._block.start[self._rows]

    def leaves(self) -> dict[str, torch.Tensor]:
        """Return the weights, views [rows, *shape] that require gradients."""
        return {name: view.detach().requires_grad_() for name, view in self.layout.views(self.parameters).items()}


@dataclass(frozen=True)
class Group:
    """The devices that train in a span of iterations.

    Attributes:
        devices: int64 [devices].
        active: bool [devices, 1, modalities].
        rows: of the shared block, then of each modality, also one that no device trains: a missing one could change
            the order of sums.
    """

    devices: torch.Tensor
    active: torch.Tensor
    rows: dict[str, Rows]

    @classmethod
    def of(cls, population: Population, active: BoolArray) -> Group:
        """Look up the rows of the modalities in `active`, bool [all devices, modalities]."""
        devices = np.flatnonzero(active.any(axis=1))
        members = {SHARED: devices}
        members |= {name: np.flatnonzero(active[:, m]) for m, name in enumerate(population.network.modalities)}
        rows = {
            name: Rows(population.blocks[name], population.network.layouts[name], holders, devices)
            for name, holders in members.items()
        }
        where = population.torch_device
        return cls(torch.from_numpy(devices).to(where), torch.from_numpy(active[devices, None]).to(where), rows)

    def store(self) -> None:
        """Write all rows back into their blocks."""
        for rows in self.rows.values():
            rows.store()


def _iterate(task: LocalTask, group: Group, iteration: int) -> dict[str, torch.Tensor]:
    """Run one local iteration of the devices that train; return their loss terms, each [devices]."""
    losses = task.method.losses
    leaves = {name: rows.leaves() for name, rows in group.rows.items()}
    with torch.enable_grad():
        batch = _forward(task, group, iteration, leaves)
        terms = loss_terms(batch, losses)
        objective = total(terms, losses)
    gradients = _differentiate(objective, leaves, keep=task.method.modulation == "mmpareto")
    if task.guidance is not None:
        _observe(task, group, batch)
    gradients = _modulate(task, group, iteration, batch, leaves, gradients)
    if task.method.proximal:
        for name, rows in group.rows.items():
            gradients[name].add_(rows.parameters - rows.start(), alpha=task.method.proximal)
    sgd_step(group.rows, gradients, task.config, task.learning_rate)
    return {name: value.detach() for name, value in terms.items()}


def _forward(task: LocalTask, group: Group, iteration: int, leaves: Mapping[str, Mapping[str, torch.Tensor]]) -> Batch:
    """Return the outputs of the network of METHOD 2 for the batch."""
    network, batches = task.population.network, task.batches
    labels = batches.labels(iteration, group.devices)
    features, specific_logits = [], []
    for name in network.modalities:
        weights, place = leaves[name], group.rows[name].place
        inputs = batches.features(iteration, name, group.devices[place])
        projected = linear(network.encoders[name].forward(weights, inputs), weights["projection"])
        logits = linear(projected[..., network.feature_width :], weights["head"])
        features.append(_spread(projected, place, len(labels)))
        specific_logits.append(_spread(logits, place, len(labels)))
    common, specific = torch.stack(features, 2).split(network.feature_width, -1)
    shared_head = leaves[SHARED]["head"]
    common_logits = linear(common.flatten(1, 2), shared_head).view(*common.shape[:3], -1)
    return Batch(
        labels=labels,
        present=batches.present(iteration, group.devices) & group.active,
        common=common,
        specific=specific,
        common_logits=common_logits,
        specific_logits=torch.stack(specific_logits, 2),
        shared_head=shared_head,
        guidance=task.guidance.batch(iteration, group.devices, labels) if task.guidance else None,
    )


def _spread(values: torch.Tensor, place: torch.Tensor, devices: int) -> torch.Tensor:
    """Scatter values of some devices to all devices; zero for devices without one."""
    if len(values) == devices:
        return values
    return values.new_zeros(devices, *values.shape[1:]).index_copy(0, place, values)


def _differentiate(
    value: torch.Tensor, leaves: Mapping[str, Mapping[str, torch.Tensor]], keep: bool = False
) -> dict[str, torch.Tensor]:
    """Return the gradient of a scalar in each block's rows, [rows, parameters]."""
    flat = [leaf for views in leaves.values() for leaf in views.values()]
    gradients = iter(torch.autograd.grad(value, flat, retain_graph=keep, materialize_grads=True))
    return {name: torch.cat([next(gradients).flatten(1) for _ in views], 1) for name, views in leaves.items()}


def _observe(task: LocalTask, group: Group, batch: Batch) -> None:
    """Add the common features of the batch to the guidance's moments."""
    assert task.guidance is not None
    modalities = batch.present.shape[2]
    labels = batch.labels.unsqueeze(2).expand(-1, -1, modalities)
    task.guidance.moments.add(
        group.devices, batch.common.detach().flatten(1, 2), labels.flatten(1), batch.present.flatten(1)
    )


def _modulate(
    task: LocalTask,
    group: Group,
    iteration: int,
    batch: Batch,
    leaves: Mapping[str, Mapping[str, torch.Tensor]],
    gradients: dict[str, torch.Tensor],
) -> dict[str, torch.Tensor]:
    """Change the gradients of the modalities' blocks as the rival does (METHOD 7)."""
    method, names = task.method, task.population.network.modalities
    if method.modulation == "none":
        return gradients
    competes, changed = competing(batch), dict(gradients)
    if method.modulation == "mmpareto":
        with torch.enable_grad():
            value = unimodal_loss(batch)
        # One sum serves for all unimodal losses: each modality's block depends on its loss alone.
        alone = _differentiate(value, leaves)
        changed[SHARED] = gradients[SHARED] + alone[SHARED]
    for column, name in enumerate(names):
        rows, gradient = group.rows[name], gradients[name]
        compete = competes[rows.place]
        if method.modulation == "ogm-ge":
            noise = task.batches.gradient_noise.rows(iteration, column, group.devices[rows.place], gradient.shape[1])
            factor = ogm_coefficients(batch, method.modulation_strength)[rows.place, column]
            changed[name] = ogm_gradient(rows.layout, gradient, factor, compete, noise.to(gradient))
        else:
            changed[name] = pareto_gradient(rows.layout, gradient, alone[name], compete, method.modulation_strength)
    return changed


def sgd_step(
    blocks: Mapping[str, Rows], gradients: Mapping[str, torch.Tensor], config: TrainingConfig, learning_rate: float
) -> None:
    """Clip each device's gradient by its norm over all blocks, then update as torch.optim.SGD does.

    Source:
        METHOD 3 [C]: the optimizer of every method; momentum (Polyak 1964) in the form of torch.optim.SGD without
        dampening, clipping (Pascanu et al. 2013) in that of torch.nn.utils.clip_grad_norm_.
    """
    shared = gradients[SHARED]
    squares = shared.new_zeros(len(shared))
    for name, rows in blocks.items():
        squares.index_add_(0, rows.place, torch.linalg.vector_norm(gradients[name], dim=1).square())
    scale = (config.clip_norm / (squares.sqrt() + 1e-6)).clamp_max(1)
    for name, rows in blocks.items():
        rows.momentum.mul_(config.momentum).add_(rows.parameters, alpha=config.weight_decay)
        rows.momentum.addcmul_(gradients[name], scale[rows.place].unsqueeze(1))
        rows.parameters.add_(rows.momentum, alpha=-learning_rate)
