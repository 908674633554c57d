"""The local iterations of all devices at once."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.models.layout import BlockLayout
from dmmlkd_ext.models.network import SHARED, ModalityFeatures
from dmmlkd_ext.training.batches import RoundBatches
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.guidance import GuidanceRound
from dmmlkd_ext.training.losses import TERMS, BatchOutputs, device_losses
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.modulation import competing, ogm_coefficients, ogm_gradient, pareto_gradient, unimodal_loss
from dmmlkd_ext.training.optimizer import sgd_step
from dmmlkd_ext.training.population import Block, Population

BoolArray = npt.NDArray[np.bool_]


@dataclass
class TrainedBlock:
    """The rows of a block that train in an iteration, with their parameters as leaves of the graph."""

    block: Block
    rows: torch.Tensor | None  # None: all of them, without a copy
    matrix: torch.Tensor
    weights: dict[str, torch.Tensor]

    def step(self, gradient: torch.Tensor, scale: torch.Tensor, rate: float, config: TrainingConfig) -> None:
        """Apply SGD with momentum and weight decay to the rows, [rows, parameters]."""
        momentum = self.block.momentum if self.rows is None else self.block.momentum[self.rows]
        sgd_step(self.matrix, momentum, gradient, scale, rate, config.momentum, config.weight_decay)
        if self.rows is not None:
            self.block.momentum[self.rows] = momentum
            self.block.local[self.rows] = self.matrix


def train(
    population: Population,
    batches: RoundBatches,
    plan: Plan,
    method: MethodConfig,
    config: TrainingConfig,
    learning_rate: float,
    guidance: GuidanceRound | None = None,
) -> dict[str, npt.NDArray[np.float64]]:
    """Run a round's local iterations on every device (METHOD 3 and 5).

    In local iteration i the modalities with i in their span of the plan train. The others leave the forward pass or,
    with `pause="keep"`, only feed the prediction; their blocks, momentum included, keep their bits.

    Returns:
        Each loss term as a mean over the iterations that a device trained, float64 [devices]; NaN where it trained
        none, and where the method lacks the term.
    """
    sums = torch.zeros(len(TERMS), population.num_devices, dtype=torch.float64)
    counts = torch.zeros(population.num_devices, dtype=torch.float64)
    has = [term == "task" or getattr(method.losses, term) > 0 for term in TERMS]
    for iteration in range(plan.num_iterations):
        active = plan.active(iteration) & population.holds
        if not active.any():
            continue
        devices = np.flatnonzero(active.any(axis=1))
        losses = _iterate(population, batches, iteration, active, method, config, learning_rate, guidance)
        index = torch.from_numpy(devices)
        counts[index] += 1
        for row, term in enumerate(TERMS):
            if term in losses:
                sums[row, index] += losses[term].detach().double()
    means = (sums / counts).numpy()  # 0 / 0: a device that trained nothing
    return {term: means[row] if has[row] else np.full(population.num_devices, np.nan) for row, term in enumerate(TERMS)}


def _iterate(
    population: Population,
    batches: RoundBatches,
    iteration: int,
    active: BoolArray,
    method: MethodConfig,
    config: TrainingConfig,
    learning_rate: float,
    guidance: GuidanceRound | None,
) -> dict[str, torch.Tensor]:
    """Run one local iteration of the devices that train and return their losses, each [devices that train]."""
    devices = np.flatnonzero(active.any(axis=1))
    trained = {SHARED: _trained(population, SHARED, devices)}
    for column, name in enumerate(population.network.modalities):
        if active[:, column].any():
            trained[name] = _trained(population, name, np.flatnonzero(active[:, column]))
    waiting = None
    if method.balance.pause == "keep":
        waiting = population.holds & ~active & active.any(axis=1, keepdims=True)
    outputs = _forward(population, batches, iteration, active, devices, trained, waiting)
    batch = None
    if guidance is not None:
        batch = guidance.batch(iteration, torch.from_numpy(devices), outputs.labels)
        _observe(guidance, outputs, torch.from_numpy(devices))
    losses = device_losses(outputs, method.losses, batch, trained[SHARED].weights["head"])
    gradients = _gradients(trained, outputs, losses, method, population.network.layouts)
    if method.modulation == "ogm-ge":
        coefficients, competes = ogm_coefficients(outputs, method.modulation_strength), competing(outputs)
        for column, name in enumerate(name for name in trained if name != SHARED):
            layout, position = population.network.layouts[name], outputs.positions[column]
            own = coefficients[position, column]
            gradients[name] = ogm_gradient(layout, gradients[name], own, competes[position], batches.draw)
    if method.proximal:
        for name, part in trained.items():
            start = part.block.start if part.rows is None else part.block.start[part.rows]
            gradients[name] = gradients[name] + method.proximal * (part.matrix - start)
    _step(trained, gradients, devices, learning_rate, config)
    return losses


def _observe(guidance: GuidanceRound, outputs: BatchOutputs, devices: torch.Tensor) -> None:
    """Put down the common features of the batch for what learns from them."""
    for column, (common, position) in enumerate(zip(outputs.common, outputs.positions, strict=True)):
        present = outputs.present[position, :, column]
        guidance.moments.add(devices[position], common, outputs.labels[position], present)


def _gradients(
    trained: dict[str, TrainedBlock],
    outputs: BatchOutputs,
    losses: dict[str, torch.Tensor],
    method: MethodConfig,
    layouts: Mapping[str, BlockLayout],
) -> dict[str, torch.Tensor]:
    """Return the gradient of each block's rows, [rows, parameters]."""
    weighted = [value if name == "task" else getattr(method.losses, name) * value for name, value in losses.items()]
    joint = torch.stack(weighted).sum()
    if method.modulation != "mmpareto":
        return _flat_gradients(trained, joint)
    # One sum serves for all the unimodal losses: no modality's block sees another's.
    unimodal = _flat_gradients(trained, unimodal_loss(outputs), keep=True)
    gradients, competes = _flat_gradients(trained, joint), competing(outputs)
    gradients[SHARED] = gradients[SHARED] + unimodal[SHARED]
    for name, position in zip((name for name in trained if name != SHARED), outputs.positions, strict=True):
        gradients[name] = pareto_gradient(
            layouts[name], gradients[name], unimodal[name], competes[position], method.modulation_strength
        )
    return gradients


def _flat_gradients(
    trained: dict[str, TrainedBlock], objective: torch.Tensor, keep: bool = False
) -> dict[str, torch.Tensor]:
    leaves = [weight for part in trained.values() for weight in part.weights.values()]
    gradients = torch.autograd.grad(objective, leaves, retain_graph=keep)
    flat, begin = {}, 0
    for name, part in trained.items():
        own = gradients[begin : begin + len(part.weights)]
        flat[name] = torch.cat([gradient.flatten(1) for gradient in own], 1)
        begin += len(part.weights)
    return flat


def _trained(population: Population, name: str, devices: npt.NDArray[np.int64]) -> TrainedBlock:
    block = population.blocks[name]
    whole = len(devices) == len(block.devices)
    rows = None if whole else block.rows_of(devices)
    matrix = block.local if rows is None else block.local[rows]
    views = population.network.layouts[name].views(matrix)
    return TrainedBlock(block, rows, matrix, {key: view.detach().requires_grad_() for key, view in views.items()})


def _forward(
    population: Population,
    batches: RoundBatches,
    iteration: int,
    active: BoolArray,
    devices: npt.NDArray[np.int64],
    trained: dict[str, TrainedBlock],
    waiting: BoolArray | None,
) -> BatchOutputs:
    network, index = population.network, torch.from_numpy(devices)
    head = trained[SHARED].weights["head"]
    names = [name for name in network.modalities if name in trained]
    columns = [network.modalities.index(name) for name in names]
    parts: list[ModalityFeatures] = []
    positions = []
    for name, column in zip(names, columns, strict=True):
        members = np.flatnonzero(active[:, column])
        position = torch.from_numpy(np.searchsorted(devices, members))
        inputs = batches.features(iteration, name, torch.from_numpy(members))
        own_head = head if len(members) == len(devices) else head[position]
        parts.append(network.forward(name, trained[name].weights, own_head, inputs))
        positions.append(position)
    present = batches.present(iteration, index)[:, :, columns]
    present = present & torch.from_numpy(active[devices][:, columns]).unsqueeze(1)
    waiting_logits, waiting_count = None, None
    if waiting is not None and waiting.any():
        waiting_logits, waiting_count = _forward_waiting(population, batches, iteration, devices, waiting)
    return BatchOutputs(
        labels=batches.labels(iteration, index),
        common_logits=_stack([part.common_logits for part in parts], positions, len(devices)),
        specific_logits=_stack([part.specific_logits for part in parts], positions, len(devices)),
        present=present,
        common=[part.common for part in parts],
        specific=[part.specific for part in parts],
        positions=positions,
        waiting_logits=waiting_logits,
        waiting_count=waiting_count,
    )


@torch.no_grad()
def _forward_waiting(
    population: Population,
    batches: RoundBatches,
    iteration: int,
    devices: npt.NDArray[np.int64],
    waiting: BoolArray,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits' sum over the modalities that only run forward, and their number, for each sample."""
    network, index = population.network, torch.from_numpy(devices)
    labels = batches.labels(iteration, index)
    present = batches.present(iteration, index)
    logits = torch.zeros(*labels.shape, network.num_classes)
    count = torch.zeros_like(labels)
    for column, name in enumerate(network.modalities):
        members = np.flatnonzero(waiting[:, column])
        if not len(members):
            continue
        block, shared = population.blocks[name], population.blocks[SHARED]
        weights = network.layouts[name].views(block.local[block.rows_of(members)])
        head = network.layouts[SHARED].views(shared.local[shared.rows_of(members)])["head"]
        inputs = batches.features(iteration, name, torch.from_numpy(members))
        part = network.forward(name, weights, head, inputs)
        position = torch.from_numpy(np.searchsorted(devices, members))
        here = present[position, :, column]
        logits[position] += (part.common_logits + part.specific_logits) * here.unsqueeze(-1)
        count[position] += here
    return logits, count


def _stack(values: list[torch.Tensor], positions: list[torch.Tensor], devices: int) -> torch.Tensor:
    """Lay the modalities side by side, [devices, batch, modalities, classes], with zeros where one is absent."""
    full = [
        value if len(value) == devices else value.new_zeros(devices, *value.shape[1:]).index_copy(0, rows, value)
        for value, rows in zip(values, positions, strict=True)
    ]
    return torch.stack(full, 2)


@torch.no_grad()
def _step(
    trained: dict[str, TrainedBlock],
    gradients: dict[str, torch.Tensor],
    devices: npt.NDArray[np.int64],
    learning_rate: float,
    config: TrainingConfig,
) -> None:
    """Clip each device's gradient by its norm over all of its blocks, then update."""
    places = {}
    squares = torch.zeros(len(devices))
    for name, part in trained.items():
        members = part.block.devices if part.rows is None else part.block.devices[part.rows.numpy()]
        places[name] = torch.from_numpy(np.searchsorted(devices, members))
        squares.index_add_(0, places[name], torch.linalg.vector_norm(gradients[name], dim=1).square())
    scale = (config.clip_norm / (squares.sqrt() + 1e-6)).clamp_max(1)
    for name, part in trained.items():
        part.step(gradients[name], scale[places[name]], learning_rate, config)
