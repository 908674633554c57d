"""The local iterations of all devices at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.models.direct import PullBack
from dmmlkd_ext.models.network import SHARED
from dmmlkd_ext.training.batches import RoundBatches
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.guidance import GuidanceRound
from dmmlkd_ext.training.losses import TERMS, modality_entropy
from dmmlkd_ext.training.methods import MethodConfig
from dmmlkd_ext.training.modulation import ogm_coefficients, ogm_gradient, pareto_gradient
from dmmlkd_ext.training.objective import BatchFeatures, HeadGradients, differentiate, objective
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.training.rows import TrainedRows, WorkingRows

BoolArray = npt.NDArray[np.bool_]
IntArray = npt.NDArray[np.int64]

CHUNK_VALUES = 2**21  # parameters that train together, a thread: with momentum and gradient they fit the cache


@dataclass(frozen=True)
class Training:
    """What a round's local iterations are made of; see `train`."""

    population: Population
    batches: RoundBatches
    plan: Plan
    method: MethodConfig
    config: TrainingConfig
    learning_rate: float
    guidance: GuidanceRound | None


@torch.no_grad()
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
    with `pause="keep"`, only feed the prediction; their blocks, momentum included, keep their bits. Devices take all
    their iterations in chunks, whose parameters and activations stay in the cache; no device depends on another.

    Returns:
        Each loss term as a mean over the iterations that a device trained, float64 [devices]; NaN where it trained
        none, and where the method lacks the term.
    """
    training = Training(population, batches, plan, method, config, learning_rate, guidance)
    sums = torch.zeros(len(TERMS), population.num_devices, dtype=torch.float64)
    counts = torch.zeros(population.num_devices, dtype=torch.float64)
    for chunk in _chunks(population, method):
        _train_chunk(training, chunk, sums, counts)
    means = (sums / counts).numpy()  # 0 / 0: a device that trained nothing
    has = [term == "task" or getattr(method.losses, term) > 0 for term in TERMS]
    return {term: means[row] if has[row] else np.full(population.num_devices, np.nan) for row, term in enumerate(TERMS)}


def _chunks(population: Population, method: MethodConfig) -> Iterator[IntArray]:
    """Give the devices in runs; all at once where their draws come from one stream."""
    devices = population.num_devices
    names = (SHARED, *population.network.modalities)
    parameters = sum(population.blocks[name].local.numel() for name in names) / max(1, devices)
    size = devices
    if method.modulation != "ogm-ge":
        size = max(1, int(CHUNK_VALUES * torch.get_num_threads() / max(1.0, parameters)))
    for begin in range(0, devices, max(1, size)):
        yield np.arange(begin, min(begin + size, devices))


def _train_chunk(training: Training, chunk: IntArray, sums: torch.Tensor, counts: torch.Tensor) -> None:
    """Run all iterations of some devices, and add up their losses [terms, devices] and iterations [devices]."""
    population, plan = training.population, training.plan
    here = np.zeros((population.num_devices, 1), dtype=np.bool_)
    here[chunk] = True
    last = np.where(population.holds & here, plan.start + plan.iterations, 0) * (plan.iterations > 0)
    if not last.any():
        return
    working = {SHARED: _working(population, SHARED, chunk, last.max(axis=1))}
    for column, name in enumerate(population.network.modalities):
        working[name] = _working(population, name, chunk[population.holds[chunk, column]], last[:, column])
    for iteration in range(int(last.max())):
        active = plan.active(iteration) & population.holds & here
        if active.any():
            devices, losses = _iterate(training, working, iteration, active)
            sums.index_add_(1, devices, losses.double())
            counts[devices] += 1
    for rows in working.values():
        rows.store()


def _working(population: Population, name: str, devices: IntArray, last: IntArray) -> WorkingRows:
    return WorkingRows(population.blocks[name], population.network.layouts[name], devices, last[devices])


def _iterate(
    training: Training, working: dict[str, WorkingRows], iteration: int, active: BoolArray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Run one local iteration of the devices that train; return them, and their losses [terms, devices]."""
    method = training.method
    trained = {SHARED: working[SHARED].first(np.flatnonzero(active.any(axis=1)))}
    for column, name in enumerate(training.population.network.modalities):
        if active[:, column].any():
            trained[name] = working[name].first(np.flatnonzero(active[:, column]))
    devices = torch.from_numpy(trained[SHARED].devices)
    batch, pull_backs = _forward(training, working, iteration, active, trained)
    guided = None
    if training.guidance is not None:
        guided = training.guidance.batch(iteration, devices, batch.labels)
        _observe(training.guidance, batch, devices)
    losses, gradients = objective(batch, method.losses, guided, _head_gradients(trained))
    _pull_back(trained, pull_backs, gradients)
    _modulate(training, batch, trained, pull_backs)
    if method.proximal:
        for rows in trained.values():
            rows.gradient.add_(rows.parameters - rows.start(), alpha=method.proximal)
    _step(training, trained, batch)
    return devices, losses


def _forward(
    training: Training,
    working: dict[str, WorkingRows],
    iteration: int,
    active: BoolArray,
    trained: dict[str, TrainedRows],
) -> tuple[BatchFeatures, list[PullBack]]:
    """Return what the modalities give for the batch, and what takes their gradients back to the parameters."""
    network, batches, shared = training.population.network, training.batches, trained[SHARED]
    index, place = torch.from_numpy(shared.devices), _places(shared.devices, len(active))
    names = [name for name in network.modalities if name in trained]
    columns = [network.modalities.index(name) for name in names]
    traces = [
        network.trace(
            name, trained[name].weights, batches.features(iteration, name, torch.from_numpy(trained[name].devices))
        )
        for name in names
    ]
    present = batches.present(iteration, index)
    waiting_logits, waiting_count = None, None
    if training.method.balance.pause == "keep":
        waiting = training.population.holds & ~active & active.any(axis=1, keepdims=True)
        if waiting.any():
            waiting_logits, waiting_count = _forward_waiting(training, working, iteration, shared, waiting)
    batch = BatchFeatures(
        labels=batches.labels(iteration, index),
        present=present[:, :, columns] & torch.from_numpy(active[shared.devices][:, columns]).unsqueeze(1),
        features=[features for features, _ in traces],
        heads=[trained[name].weights["head"] for name in names],
        positions=[torch.from_numpy(place[trained[name].devices]) for name in names],
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
    training: Training, working: dict[str, WorkingRows], iteration: int, shared: TrainedRows, waiting: BoolArray
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the logits' sum over the modalities that only run forward, and their number, for each sample."""
    network, batches = training.population.network, training.batches
    index, place = torch.from_numpy(shared.devices), _places(shared.devices, len(waiting))
    labels, present = batches.labels(iteration, index), batches.present(iteration, index)
    logits = shared.parameters.new_zeros(*labels.shape, network.num_classes)
    count = torch.zeros_like(labels)
    for column, name in enumerate(network.modalities):
        members = np.flatnonzero(waiting[:, column])
        if not len(members):
            continue
        rows = working[name].first(members)
        position = torch.from_numpy(place[rows.devices])
        inputs = batches.features(iteration, name, torch.from_numpy(rows.devices))
        part = network.forward(name, rows.weights, shared.weights["head"][position], inputs)
        here = present[position, :, column]
        logits[position] += (part.common_logits + part.specific_logits) * here.unsqueeze(-1)
        count[position] += here
    return logits, count


def _observe(guidance: GuidanceRound, batch: BatchFeatures, devices: torch.Tensor) -> None:
    """Put down the common features of the batch for what learns from them."""
    width, rows = batch.shared_head.shape[1], torch.cat(list(batch.positions))
    common = torch.cat([features[..., :width] for features in batch.features])
    present = [batch.present[position, :, column] for column, position in enumerate(batch.positions)]
    guidance.moments.add(devices[rows], common, batch.labels[rows], torch.cat(present))


def _head_gradients(trained: dict[str, TrainedRows]) -> HeadGradients:
    own = [rows.gradients["head"] for name, rows in trained.items() if name != SHARED]
    return HeadGradients(own, trained[SHARED].gradients["head"])


def _pull_back(trained: dict[str, TrainedRows], pull_backs: list[PullBack], gradients: list[torch.Tensor]) -> None:
    modalities = [rows for name, rows in trained.items() if name != SHARED]
    for rows, pull_back, gradient in zip(modalities, pull_backs, gradients, strict=True):
        pull_back(gradient, rows.gradients)


def _modulate(
    training: Training, batch: BatchFeatures, trained: dict[str, TrainedRows], pull_backs: list[PullBack]
) -> None:
    """Let a rival change the gradients of the modalities' blocks."""
    method = training.method
    modalities = [rows for name, rows in trained.items() if name != SHARED]
    if method.modulation == "ogm-ge":
        coefficients = ogm_coefficients(batch.outputs(), method.modulation_strength)
        for column, (rows, position) in enumerate(zip(modalities, batch.positions, strict=True)):
            own = coefficients[position, column]
            rows.gradient.copy_(ogm_gradient(rows.gradient, own, training.batches.draw))
    if method.modulation == "mmpareto":
        joint = {name: rows.gradient.clone() for name, rows in trained.items()}
        # One sum serves for all the unimodal losses: no modality's block sees another's.
        unimodal = differentiate(
            batch,
            lambda outputs, _: modality_entropy(outputs, specific=True).sum() / outputs.labels.shape[1],
            _head_gradients(trained),
        )
        _pull_back(trained, pull_backs, unimodal)
        for name, rows in trained.items():
            if name == SHARED:
                rows.gradient.add_(joint[name])
            else:
                rows.gradient.copy_(pareto_gradient(joint[name], rows.gradient, method.modulation_strength))


def _step(training: Training, trained: dict[str, TrainedRows], batch: BatchFeatures) -> None:
    """Clip each device's gradient by its norm over all of its blocks, then update."""
    config = training.config
    squares = torch.linalg.vector_norm(trained[SHARED].gradient, dim=1).square()
    modalities = [rows for name, rows in trained.items() if name != SHARED]
    for rows, position in zip(modalities, batch.positions, strict=True):
        squares.index_add_(0, position, torch.linalg.vector_norm(rows.gradient, dim=1).square())
    scale = (config.clip_norm / (squares.sqrt() + 1e-6)).clamp_max(1)
    trained[SHARED].step(scale, training.learning_rate, config)
    for rows, position in zip(modalities, batch.positions, strict=True):
        rows.step(scale[position], training.learning_rate, config)
