"""The local iterations of all devices in plain torch: the definition of the method, with which native code must agree.

Read `_iterate`: one iteration of all devices that train, from the batch to the step. Every tensor has a leading
dimension of devices, gradients come from autograd, and any torch device will do. Devices are processed in chunks, whose
parameters and activations stay in a processor's cache or a GPU's memory; the iterations of a chunk in spans in which
the same modalities train.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.learn.batches import GroupBatches
from dmmlkd_ext.training.learn.modulation import (
    competing,
    ogm_coefficients,
    ogm_gradient,
    pareto_gradient,
    unimodal_loss,
)
from dmmlkd_ext.training.learn.noise import TableRows
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
        `term_names`, on the torch device of the population; and in how many iterations it trained, int64 [devices].

    Source:
        METHOD 3 and 5; the rivals of METHOD 7 that change gradients.
    """
    population, names = task.population, term_names(task.method.losses)
    for name in (SHARED, *population.network.modalities):
        population.blocks[name].begin()
    sums = torch.zeros(len(names), population.num_devices, dtype=torch.float64, device=population.torch_device)
    counts = torch.zeros(population.num_devices, dtype=torch.int64)
    for devices in _chunks(population):
        for span, active in _spans(task.plan, population.holds, devices):
            group = Group.of(task, span, active)
            total = sums[:, group.devices]
            absent = total.new_zeros(len(group.devices), dtype=group.rows[SHARED].parameters.dtype)
            for step in range(len(span)):
                terms = _iterate(task, group, step)
                total += torch.stack([terms.get(name, absent) for name in names])
            sums[:, group.devices] = total
            counts += len(span) * torch.from_numpy(active.any(axis=1))
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
        devices: int64 [rows], the device of each row.
        place: int64 [rows], the index of that device in the group.
        parameters: [rows, parameters].
        momentum: likewise.

    Args:
        block: whose rows they are.
        layout: of the block.
        rows: int64, increasing.
        here: `devices`, `place` and again `rows`, on the torch device of the block.
    """

    def __init__(self, block: Block, layout: BlockLayout, rows: IntArray, here: Sequence[torch.Tensor]) -> None:
        self.layout, self._block = layout, block
        self.devices, self.place, moved = here
        run = len(rows) > 0 and rows[-1] - rows[0] + 1 == len(rows)
        self._rows = slice(int(rows[0]), int(rows[-1]) + 1) if run else moved
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


class RowNorms(NamedTuple):
    """Which rows of all blocks, one block after the other, are of one device: to clip by the norm over all of them.

    Attributes:
        rows: int64 [blocks, devices], the row of a device in each block; the number of all rows where it has none.
        places: int64 [all rows], the device of each row.
    """

    rows: torch.Tensor
    places: torch.Tensor

    def clip(self, gradients: Sequence[torch.Tensor], most: float) -> Sequence[torch.Tensor]:
        """Return the factors, each [rows, 1], that scale gradients, each [rows, parameters], down to the norm `most`.

        Example:
            >>> norms = RowNorms(torch.tensor([[0, 1], [3, 2]]), torch.tensor([0, 1, 1]))
            >>> norms.clip([torch.tensor([[0.5], [3.0]]), torch.tensor([[4.0]])], 1.0)[0].flatten()
            tensor([1.0000, 0.2000])
        """
        lengths = [torch.linalg.vector_norm(gradient, dim=1) for gradient in gradients]
        squares = torch.cat([*lengths, lengths[0].new_zeros(1)])[self.rows].square().sum(0)
        factors = (most / (squares.sqrt() + 1e-6)).clamp_max(1)
        rows: Sequence[torch.Tensor] = factors[self.places].unsqueeze(1).split(list(map(len, gradients)))
        return rows


@dataclass(frozen=True)
class Group:
    """The devices that train in a span of iterations.

    All that the iterations need is looked up, and moved to a GPU, before the first of them.

    Attributes:
        span: the iterations.
        devices: int64 [devices].
        rows: of the shared block, then of each modality, also one that no device trains: a missing one could change
            the order of sums.
        batches: of the devices.
        present: bool [iterations, devices, batch, modalities]: trained and present in the sample.
        norms: where the norms of a device's gradients are among those of all rows.
        noise: on the gradients of each modality, for OGM-GE.
    """

    span: range
    devices: torch.Tensor
    rows: dict[str, Rows]
    batches: GroupBatches
    present: torch.Tensor
    norms: RowNorms
    noise: dict[str, TableRows]

    @classmethod
    def of(cls, task: LocalTask, span: range, active: BoolArray) -> Group:
        """Look up the rows of the modalities in `active`, bool [all devices, modalities]."""
        population, where = task.population, task.population.torch_device
        blocks = {name: population.blocks[name] for name in (SHARED, *population.network.modalities)}
        group = np.flatnonzero(active.any(axis=1))
        members = [group, *map(np.flatnonzero, active.T)]
        places = [np.searchsorted(group, devices) for devices in members]
        held = [block.rows_of(devices).numpy() for block, devices in zip(blocks.values(), members, strict=True)]
        *here, norms = _move([*members, *places, *held, _number_rows(places).ravel()], where)
        triples = zip(*(here[kind : kind + len(blocks)] for kind in range(0, len(here), len(blocks))), strict=True)
        rows = {
            name: Rows(block, population.network.layouts[name], own, triple)
            for (name, block), own, triple in zip(blocks.items(), held, triples, strict=True)
        }
        readers = {name: rows[name].devices for name in population.network.modalities}
        batches = GroupBatches(task.batches, span, rows[SHARED].devices, readers)
        trained = torch.from_numpy(active[group, None]).to(where)
        row_norms = RowNorms(norms.view(len(blocks), -1), torch.cat([of_block.place for of_block in rows.values()]))
        noise = {}
        if task.method.modulation == "ogm-ge":
            draws = task.batches.gradient_noise
            for column, (name, who) in enumerate(readers.items()):
                noise[name] = draws.rows(span, column, who, rows[name].parameters)
        return cls(span, rows[SHARED].devices, rows, batches, batches.present & trained, row_norms, noise)

    def store(self) -> None:
        """Write all rows back into their blocks."""
        for rows in self.rows.values():
            rows.store()


def _number_rows(places: Sequence[IntArray]) -> IntArray:
    """Return `RowNorms.rows` from the places of each block's devices in the group, all of which have the first block.

    Example:
        >>> _number_rows([np.array([0, 1]), np.array([1])]).tolist()
        [[0, 1], [3, 2]]
    """
    count = sum(map(len, places))
    rows, begin = np.full((len(places), len(places[0])), count), 0
    for line, place in zip(rows, places, strict=True):
        line[place] = begin + np.arange(len(place))
        begin += len(place)
    return rows


def _move(arrays: Sequence[IntArray], torch_device: torch.device) -> list[torch.Tensor]:
    """Move arrays to a torch device by a single copy."""
    moved = torch.from_numpy(np.concatenate(arrays)).to(torch_device)
    return list(moved.split([len(array) for array in arrays]))


def _iterate(task: LocalTask, group: Group, step: int) -> dict[str, torch.Tensor]:
    """Run the local iteration at place `step` of the group's; return the loss terms of its devices, each [devices].

    On a GPU the host neither waits here nor sends data.
    """
    losses = task.method.losses
    leaves = {name: rows.leaves() for name, rows in group.rows.items()}
    with torch.enable_grad():
        batch = _forward(task, group, step, leaves)
        terms = loss_terms(batch, losses)
        objective = total(terms, losses)
    gradients = _differentiate(objective, leaves, keep=task.method.modulation == "mmpareto")
    if task.guidance is not None:
        _observe(task, group, batch)
    gradients = _modulate(task, group, step, batch, leaves, gradients)
    if task.method.proximal:
        for name, rows in group.rows.items():
            gradients[name].add_(rows.parameters - rows.start(), alpha=task.method.proximal)
    sgd_step(group.rows, group.norms, gradients, task.config, task.learning_rate)
    return {name: value.detach() for name, value in terms.items()}


def _forward(task: LocalTask, group: Group, step: int, leaves: Mapping[str, Mapping[str, torch.Tensor]]) -> Batch:
    """Return the outputs of the network of METHOD 2 for the batch."""
    network, labels = task.population.network, group.batches.labels[step]
    features, specific_logits = [], []
    for name in network.modalities:
        weights, place = leaves[name], group.rows[name].place
        inputs = group.batches.features(step, name)
        projected = linear(network.encoders[name].forward(weights, inputs), weights["projection"])
        logits = linear(projected[..., network.feature_width :], weights["head"])
        features.append(_spread(projected, place, len(labels)))
        specific_logits.append(_spread(logits, place, len(labels)))
    common, specific = torch.stack(features, 2).split(network.feature_width, -1)
    shared_head = leaves[SHARED]["head"]
    common_logits = linear(common.flatten(1, 2), shared_head).view(*common.shape[:3], -1)
    return Batch(
        labels=labels,
        present=group.present[step],
        common=common,
        specific=specific,
        common_logits=common_logits,
        specific_logits=torch.stack(specific_logits, 2),
        shared_head=shared_head,
        guidance=task.guidance.batch(group.span[step], group.devices, labels) if task.guidance else None,
    )


def _spread(values: torch.Tensor, place: torch.Tensor, devices: int) -> torch.Tensor:
    """Scatter values of some devices to all devices; zero for devices without one."""
    if len(values) == devices:
        return values
    return values.new_zeros(devices, *values.shape[1:]).index_copy_(0, place, values)


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
    step: int,
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
    else:
        factors = ogm_coefficients(batch, method.modulation_strength)
    for column, name in enumerate(names):
        rows, gradient = group.rows[name], gradients[name]
        compete = competes[rows.place]
        if method.modulation == "ogm-ge":
            factor, noise = factors[rows.place, column], group.noise[name].at(step)
            changed[name] = ogm_gradient(rows.layout, gradient, factor, compete, noise)
        else:
            changed[name] = pareto_gradient(rows.layout, gradient, alone[name], compete, method.modulation_strength)
    return changed


def sgd_step(
    blocks: Mapping[str, Rows],
    norms: RowNorms,
    gradients: Mapping[str, torch.Tensor],
    config: TrainingConfig,
    learning_rate: float,
) -> None:
    """Clip each device's gradient by its norm over all blocks, then update as torch.optim.SGD does.

    Source:
        METHOD 3 [C]: the optimizer of every method; momentum (Polyak 1964) in the form of torch.optim.SGD without
        dampening, clipping (Pascanu et al. 2013) in that of torch.nn.utils.clip_grad_norm_.
    """
    names = list(blocks)
    scales = dict(zip(names, norms.clip([gradients[name] for name in names], config.clip_norm), strict=True))
    # A GPU updates all blocks by one launch; in a CPU's cache only one of them stays.
    for part in [[name] for name in names] if gradients[SHARED].device.type == "cpu" else [names]:
        momenta, parameters = [blocks[name].momentum for name in part], [blocks[name].parameters for name in part]
        torch._foreach_mul_(momenta, config.momentum)
        torch._foreach_add_(momenta, parameters, alpha=config.weight_decay)
        for name in part:
            blocks[name].momentum.addcmul_(gradients[name], scales[name])
        torch._foreach_add_(parameters, momenta, alpha=-learning_rate)
