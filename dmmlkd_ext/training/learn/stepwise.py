"""The local iterations of many devices at once, operator by operator: any method, and what the native round is held to.

Devices take all their iterations in chunks, whose parameters and activations stay in the cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.model.direct import PullBack
from dmmlkd_ext.model.network import SHARED
from dmmlkd_ext.training.guide import GuidanceRound
from dmmlkd_ext.training.learn.modulation import (
    competing,
    ogm_coefficients,
    ogm_gradient,
    pareto_gradient,
    unimodal_loss,
)
from dmmlkd_ext.training.learn.objective import BatchFeatures, HeadGradients, differentiate, objective
from dmmlkd_ext.training.learn.optimizer import StepRows, StepSettings, sgd_step
from dmmlkd_ext.training.learn.rows import TrainedRows, WorkingRows
from dmmlkd_ext.training.learn.task import LocalTask
from dmmlkd_ext.training.learn.terms import TERMS
from dmmlkd_ext.training.population import Population

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

CHUNK_VALUES = 2**20  # parameters that train together, a thread: with momentum and gradient they fit the cache


@torch.no_grad()
def run(task: LocalTask) -> tuple[torch.Tensor, torch.Tensor]:
    """Do what `native_round.run` does, for any method, operator by operator.

    Returns:
        The sums of each device's loss terms over its iterations, float64 [terms, devices], in the order of `TERMS`, and
        in how many iterations it trained, int64 [devices].

    Source:
        METHOD 3 and 5; the rivals of METHOD 7 that change gradients.
    """
    sums = torch.zeros(len(TERMS), task.population.num_devices, dtype=torch.float64)
    counts = torch.zeros(task.population.num_devices, dtype=torch.int64)
    for chunk in _chunks(task.population):
        _train_chunk(task, chunk, sums, counts)
    return sums, counts


def _chunks(population: Population) -> Iterator[IntArray]:
    """Give the devices in runs."""
    devices = population.num_devices
    names = (SHARED, *population.network.modalities)
    parameters = sum(population.blocks[name].local.numel() for name in names) / max(1, devices)
    size = max(1, int(CHUNK_VALUES * torch.get_num_threads() / max(1.0, parameters)))
    for begin in range(0, devices, size):
        yield np.arange(begin, min(begin + size, devices))


def _train_chunk(task: LocalTask, chunk: IntArray, sums: torch.Tensor, counts: torch.Tensor) -> None:
    """Run all iterations of some devices, and add up their losses [terms, devices] and iterations [devices]."""
    population, plan = task.population, task.plan
    here = np.zeros((population.num_devices, 1), dtype=np.bool_)
    here[chunk] = True
    last = np.where(population.holds & here, plan.start + plan.iterations, 0) * (plan.iterations > 0)
    if not last.any():
        return
    working = {SHARED: _working(population, SHARED, chunk, last.max(axis=1))}
    for column, name in enumerate(population.network.modalities):
        working[name] = _working(population, name, chunk[population.holds[chunk, column]], last[:, column])
    members = None
    for iteration in range(int(last.max())):
        active = plan.active(iteration) & population.holds & here
        if active.any():
            if members is None or not members.are(active):
                members = Members.of(population, working, active)
            losses = _iterate(task, working, iteration, members)
            sums.index_add_(1, members.shared.index, losses.double())
            counts[members.shared.index] += 1
    for rows in working.values():
        rows.store()


def _working(population: Population, name: str, devices: IntArray, last: IntArray) -> WorkingRows:
    return WorkingRows(population.blocks[name], population.network.layouts[name], devices, last[devices])


@dataclass(frozen=True)
class Members:
    """Who trains in an iteration.

    Attributes:
        active: bool [devices, modalities].
        shared: the rows of the shared block, of all devices that train.
        modalities: the rows of each modality that trains.
        positions: for each of them, which rows of `shared` its devices are.
        counted: bool [devices that train, 1, modalities].
        steps: what the optimizer updates, of all blocks.
    """

    active: BoolArray
    shared: TrainedRows
    modalities: dict[str, TrainedRows]
    positions: list[torch.Tensor]
    counted: torch.Tensor
    steps: list[StepRows]

    @classmethod
    def of(cls, population: Population, working: dict[str, WorkingRows], active: BoolArray) -> Members:
        """Look up the rows of the modalities in `active`."""
        shared = working[SHARED].of(np.flatnonzero(active.any(axis=1)))
        # All of them: kernels may sum in another order for another number of modalities, and on another rank, or in
        # another chunk, other devices train beside this one.
        modalities = {
            name: working[name].of(np.flatnonzero(active[:, column]))
            for column, name in enumerate(population.network.modalities)
        }
        place = _places(shared.devices, len(active))
        positions = [torch.from_numpy(place[rows.devices]) for rows in modalities.values()]
        counted = torch.from_numpy(active[shared.devices]).unsqueeze(1)
        steps = [
            StepRows(rows.parameters, rows.momentum, rows.gradient, position)
            for rows, position in zip(
                (shared, *modalities.values()), (torch.arange(len(shared.devices)), *positions), strict=True
            )
        ]
        return cls(active, shared, modalities, positions, counted, steps)

    def are(self, active: BoolArray) -> bool:
        """Whether these are still the ones, and their rows still valid."""
        views = all(rows.is_view for rows in (self.shared, *self.modalities.values()))
        return views and np.array_equal(self.active, active)

    @property
    def blocks(self) -> list[TrainedRows]:
        """The rows of all blocks."""
        return [self.shared, *self.modalities.values()]

    @property
    def head_gradients(self) -> HeadGradients:
        """Where the gradients of the heads are written."""
        return HeadGradients(
            [rows.gradients["head"] for rows in self.modalities.values()], self.shared.gradients["head"]
        )


def _iterate(task: LocalTask, working: dict[str, WorkingRows], iteration: int, members: Members) -> torch.Tensor:
    """Run one local iteration of the devices that train, and return their losses [terms, devices]."""
    method = task.method
    batch, pull_backs = _forward(task, working, iteration, members)
    guided = None
    if task.guidance is not None:
        guided = task.guidance.batch(iteration, members.shared.index, batch.labels)
        _observe(task.guidance, batch, members.shared.index)
    losses, gradients = objective(batch, method.losses, guided, members.head_gradients)
    _pull_back(members, pull_backs, gradients)
    _modulate(task, iteration, batch, members, pull_backs)
    if method.proximal:
        for rows in members.blocks:
            rows.gradient.add_(rows.parameters - rows.start(), alpha=method.proximal)
    _step(task, members)
    return losses


def _forward(
    task: LocalTask, working: dict[str, WorkingRows], iteration: int, members: Members
) -> tuple[BatchFeatures, list[PullBack]]:
    """Return what the modalities give for the batch, and what takes their gradients back to the parameters."""
    network, batches, shared = task.population.network, task.batches, members.shared
    traces = [
        network.trace(name, rows.weights, batches.features(iteration, name, rows.index))
        for name, rows in members.modalities.items()
    ]
    waiting_logits, waiting_count = None, None
    if task.method.balance.pause == "keep":
        waiting = task.population.holds & ~members.active & members.active.any(axis=1, keepdims=True)
        if waiting.any():
            waiting_logits, waiting_count = _forward_waiting(task, working, iteration, shared, waiting)
    batch = BatchFeatures(
        labels=batches.labels(iteration, shared.index),
        present=batches.present(iteration, shared.index) & members.counted,
        features=[features for features, _ in traces],
        heads=[rows.weights["head"] for rows in members.modalities.values()],
        positions=members.positions,
        shared_head=shared.weights["head"],
        waiting_logits=waiting_logits,
        waiting_count=waiting_count,
    )
    return batch, [pull_back for _, pull_back in traces]


def _places(devices: IntArray, number: int) -> IntArray:
    """Return where each of `number` devices lies in `devices`; -1 where it does not."""
    place = np.full(number, -1)
    place[devices] = np.arange(len(devices))
    return place


def _forward_waiting(
    task: LocalTask, working: dict[str, WorkingRows], iteration: int, shared: TrainedRows, waiting: BoolArray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits' sum over the modalities that only run forward, and their number, for each sample."""
    network, batches = task.population.network, task.batches
    place = _places(shared.devices, len(waiting))
    labels, present = batches.labels(iteration, shared.index), batches.present(iteration, shared.index)
    logits = shared.parameters.new_zeros(*labels.shape, network.num_classes)
    count = torch.zeros_like(labels)
    for column, name in enumerate(network.modalities):
        members = np.flatnonzero(waiting[:, column])
        if not len(members):
            continue
        rows = working[name].of(members)
        position = torch.from_numpy(place[rows.devices])
        inputs = batches.features(iteration, name, rows.index)
        part = network.forward(name, rows.weights, shared.weights["head"][position], inputs)
        here = present[position, :, column]
        logits[position] += (part.common_logits + part.specific_logits) * here.unsqueeze(-1)
        count[position] += here
    return logits, count


def _observe(guidance: GuidanceRound, batch: BatchFeatures, devices: torch.Tensor) -> None:
    """Put down the common features of the batch for what learns from them."""
    width = batch.shared_head.shape[1]
    for column, (features, position) in enumerate(zip(batch.features, batch.positions, strict=True)):
        present = batch.present[position, :, column]
        guidance.moments.add(devices[position], features[..., :width], batch.labels[position], present)


def _pull_back(members: Members, pull_backs: list[PullBack], gradients: list[torch.Tensor]) -> None:
    for rows, pull_back, gradient in zip(members.modalities.values(), pull_backs, gradients, strict=True):
        pull_back(gradient, rows.gradients)


def _modulate(
    task: LocalTask, iteration: int, batch: BatchFeatures, members: Members, pull_backs: list[PullBack]
) -> None:
    """Let a rival change the gradients of the modalities' blocks."""
    modulation, strength = task.method.modulation, task.method.modulation_strength
    if modulation == "none":
        return
    outputs, layouts = batch.outputs(), task.population.network.layouts
    competes = competing(outputs)
    blocks = [
        (layouts[name], rows, position)
        for (name, rows), position in zip(members.modalities.items(), members.positions, strict=True)
    ]
    if modulation == "ogm-ge":
        coefficients = ogm_coefficients(outputs, strength)
        for column, (layout, rows, position) in enumerate(blocks):
            own, width = coefficients[position, column], rows.gradient.shape[1]
            noise = task.batches.gradient_noise.rows(iteration, column, rows.index, width)
            rows.gradient.copy_(ogm_gradient(layout, rows.gradient, own, competes[position], noise))
    if modulation == "mmpareto":
        joint = [rows.gradient.clone() for rows in members.blocks]
        # One sum serves for all the unimodal losses: no modality's block sees another's.
        alone = differentiate(batch, lambda outputs, _: unimodal_loss(outputs), members.head_gradients)
        _pull_back(members, pull_backs, alone)
        members.shared.gradient.add_(joint[0])
        for (layout, rows, position), together in zip(blocks, joint[1:], strict=True):
            merged = pareto_gradient(layout, together, rows.gradient, competes[position], strength)
            rows.gradient.copy_(merged)


def _step(task: LocalTask, members: Members) -> None:
    """Take one step of the optimizer on all blocks."""
    config = task.config
    settings = StepSettings(config.clip_norm, task.learning_rate, config.momentum, config.weight_decay)
    sgd_step(members.steps, len(members.shared.devices), settings)
    for rows in members.blocks:
        rows.store()
