"""The training of `dmmlkd_ext.training` as a plain loop over devices, each a module of torch's own layers.

The stacked population is tested and measured against this. It takes the care that a good script takes, so that a
comparison of speed is fair: the modalities' heads and losses are computed side by side where they have one shape,
terms of weight zero and masks that mask nothing are left out, and the optimizer is torch's fused one. The losses are
written as METHOD 3 states them.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import nn
from torch.nn import functional as F
from torch.nn.utils import clip_grad_norm_, parameters_to_vector, vector_to_parameters

from dmmlkd_ext.balance import Plan
from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.model.encoders import ConvolutionalEncoder, Encoder, PerceptronEncoder
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.learn.batches import RoundBatches
from dmmlkd_ext.training.methods import LossWeights, MethodConfig
from dmmlkd_ext.training.population import Population

FloatArray = npt.NDArray[np.float64]


def make_layers(encoder: Encoder) -> nn.Sequential:
    """Return torch's own layers for an encoder."""
    if isinstance(encoder, PerceptronEncoder):
        inputs, width = encoder.input_features, encoder.hidden_width
        return nn.Sequential(nn.Linear(inputs, width), nn.ReLU(), nn.Linear(width, width), nn.ReLU())
    assert isinstance(encoder, ConvolutionalEncoder)
    convolution = nn.Conv1d if encoder.dimensions == 1 else nn.Conv2d
    layers: list[nn.Module] = []
    for inputs, outputs in pairwise((encoder.input_shape[0], *encoder.channels)):
        layers += [convolution(inputs, outputs, encoder.kernel, encoder.stride, encoder.kernel // 2), nn.ReLU()]
    if encoder.dimensions == 1:
        layers.append(nn.AdaptiveAvgPool1d(1))
    return nn.Sequential(*layers, nn.Flatten())


def module_columns(network: MultiModalNetwork, block: str) -> torch.Tensor:
    """Return the column of the population's row where each value of a block's module stands.

    Modules hold their weights transposed, a convolution's with its window last, and an image's encoding channels first.
    """
    layout = network.layouts[block]
    encoder = network.encoders.get(block)
    columns = []
    for name, view in layout.views(torch.arange(layout.size).unsqueeze(0)).items():
        weight = view[0]
        if weight.dim() == 1:
            columns.append(weight)
        elif isinstance(encoder, ConvolutionalEncoder) and name.startswith("weight"):
            window = (encoder.kernel,) * encoder.dimensions
            weight = weight.unflatten(0, (*window, -1))
            columns.append(weight.permute(-1, -2, *range(encoder.dimensions)).flatten())
        elif isinstance(encoder, ConvolutionalEncoder) and encoder.dimensions == 2 and name == "projection":
            weight = weight.unflatten(0, (*encoder.spaces[-1], -1)).permute(3, 2, 0, 1)
            columns.append(weight.flatten())
        else:
            columns.append(weight.T.flatten())
    return torch.cat(columns)


class PlainModality(nn.Module):
    """The block of one modality on one device."""

    def __init__(self, encoder: Encoder, feature_width: int, num_classes: int) -> None:
        super().__init__()
        self.encoder = make_layers(encoder)
        self.projection = nn.Linear(encoder.output_features, 2 * feature_width, bias=False)
        self.head = nn.Linear(feature_width, num_classes, bias=False)

    def forward(self, inputs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return the common and the specific feature and the specific logits, each [batch, ...]."""
        common, specific = self.projection(self.encoder(inputs)).chunk(2, -1)
        return common, specific, self.head(specific)


class Outputs(NamedTuple):
    """Features and logits of some modalities, each [modalities, batch, ...]."""

    common: torch.Tensor
    specific: torch.Tensor
    common_logits: torch.Tensor
    specific_logits: torch.Tensor


class PlainDevice(nn.Module):
    """One device: the shared head and the modalities that it has."""

    def __init__(self, network: MultiModalNetwork, held: Sequence[str]) -> None:
        super().__init__()
        width, classes = network.feature_width, network.num_classes
        self.shared = nn.Linear(width, classes, bias=False)
        self.modalities = nn.ModuleDict({name: PlainModality(network.encoders[name], width, classes) for name in held})

    def block(self, name: str) -> nn.Module:
        """Return the module that holds a block."""
        return self.shared if name == SHARED else self.modalities[name]

    def forward(self, inputs: dict[str, torch.Tensor]) -> Outputs:
        """Return what the named modalities give."""
        parts = [self.modalities[name](values) for name, values in inputs.items()]
        common, specific, specific_logits = (torch.stack(values) for values in zip(*parts, strict=True))
        return Outputs(common, specific, self.shared(common), specific_logits)


def loss_terms(
    outputs: Outputs,
    labels: torch.Tensor,
    present: torch.Tensor | None,
    weights: LossWeights,
) -> dict[str, torch.Tensor]:
    """Return the terms of a device's loss that have a weight (METHOD 3).

    Args:
        outputs: of the modalities that train.
        labels: int64 [batch].
        present: bool [modalities, batch], or None where every sample has all.
        weights: of the terms.
    """
    logits = outputs.common_logits + outputs.specific_logits
    counted = None if present is None else present.any(0)
    if present is None:
        terms = {"task": F.cross_entropy(logits.mean(0), labels)}
    else:
        total, count = (logits * present[..., None]).sum(0), present.sum(0)
        predicted = count > 0
        entropy = F.cross_entropy(total[predicted] / count[predicted, None], labels[predicted], reduction="sum")
        terms = {"task": entropy / predicted.sum().clamp_min(1)}
    if weights.classification:
        terms["classification"] = _mean_over_samples(_classification(outputs, labels, present), counted)
    if weights.similarity:
        terms["similarity"] = _mean_over_samples(_similarity(outputs, present), counted)
    if weights.difference:
        terms["difference"] = _difference(outputs, present)
    return terms


def _objective(terms: dict[str, torch.Tensor], weights: LossWeights) -> torch.Tensor:
    return terms["task"] + sum(getattr(weights, term) * value for term, value in terms.items() if term != "task")


def _mean_over_samples(values: torch.Tensor, counted: torch.Tensor | None) -> torch.Tensor:
    """Return the mean over the samples that have a modality that trains; `values` [batch] is 0 for the others."""
    return values.mean() if counted is None else values.sum() / counted.sum().clamp_min(1)


def _classification(outputs: Outputs, labels: torch.Tensor, present: torch.Tensor | None) -> torch.Tensor:
    """Return F_cls of each sample: the mean over its modalities."""
    logits = outputs.common_logits
    entropy = F.cross_entropy(logits.flatten(0, 1), labels.repeat(len(logits)), reduction="none")
    entropy = entropy.view(logits.shape[:2])
    if present is None:
        return entropy.mean(0)
    return (entropy * present).sum(0) / present.sum(0).clamp_min(1)


def _similarity(outputs: Outputs, present: torch.Tensor | None) -> torch.Tensor:
    """Return F_sim of each sample: the mean over its ordered pairs of different modalities."""
    log_p = outputs.common_logits.log_softmax(-1)
    pairs = (log_p.exp()[:, None] * (log_p[:, None] - log_p[None])).sum(-1)  # [m, m', batch]; 0 where m = m'
    if present is None:
        return pairs.sum((0, 1)) / max(1, len(log_p) * (len(log_p) - 1))
    both, count = present[:, None] & present[None], present.sum(0)
    return (pairs * both).sum((0, 1)) / (count * (count - 1)).clamp_min(1)


def _difference(outputs: Outputs, present: torch.Tensor | None) -> torch.Tensor:
    """Return F_dif, normalized: rows of unit length, divided by the squared number of samples."""
    common, specific = F.normalize(outputs.common, dim=-1), F.normalize(outputs.specific, dim=-1)
    samples: torch.Tensor | int = common.shape[1]
    if present is not None:
        common, samples = common * present[..., None], present.sum(1).clamp_min(1)
    squares = (common.transpose(1, 2) @ specific).square().sum((1, 2))
    return torch.as_tensor(squares / samples**2).sum()


def make_devices(population: Population) -> list[PlainDevice]:
    """Return each device of a population as a module of its own, with a copy of its weights."""
    network = population.network
    devices = [
        PlainDevice(network, [name for name, has in zip(network.modalities, held, strict=True) if has])
        for held in population.holds
    ]
    for name in network.layouts:
        block, columns = population.blocks[name], module_columns(network, name)
        for number, row in zip(block.devices, block.start, strict=True):
            vector_to_parameters(row[columns], devices[number].block(name).parameters())
    return devices


class PlainLoop:
    """All devices, one after the other.

    Args:
        population: where the weights are copied from.
        split: the training data.
        device_samples: the indices of each device's samples.
        method: losses.
        config: how devices train.
    """

    def __init__(
        self,
        population: Population,
        split: Split,
        device_samples: Sequence[npt.NDArray[np.int64]],
        method: MethodConfig,
        config: TrainingConfig,
    ) -> None:
        self.network, self.holds, self.method, self.config = population.network, population.holds, method, config
        self.columns = {name: module_columns(self.network, name) for name in self.network.layouts}
        self.complete = [
            bool(split.present[torch.from_numpy(samples)][:, torch.from_numpy(held)].all())
            for samples, held in zip(device_samples, self.holds, strict=True)
        ]
        self.devices = make_devices(population)
        self.optimizers = []
        for device in self.devices:
            parameters = list(device.parameters())
            optimizer = torch.optim.SGD(parameters, 1.0, config.momentum, weight_decay=config.weight_decay, fused=True)
            for parameter in parameters:  # the fused step takes no mixture of old and new blocks
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
            self.optimizers.append(optimizer)

    def members(self, block: str) -> npt.NDArray[np.int64]:
        """Return the devices that have a block."""
        if block == SHARED:
            return np.arange(len(self.devices))
        return np.flatnonzero(self.holds[:, self.network.modalities.index(block)])

    def run_round(
        self, batches: RoundBatches, plan: Plan, learning_rate: float, edges: npt.NDArray[np.int64]
    ) -> tuple[dict[str, FloatArray], dict[str, FloatArray]]:
        """Train every device, then mix over the links.

        Returns:
            The mean of each loss term [devices], and ||local - start|| of each block [devices]; NaN where a device
            trained nothing, or lacks the block.
        """
        start = {name: self.vectors(name) for name in self.columns}
        losses = [self._train_device(number, batches, plan, learning_rate) for number in range(len(self.devices))]
        terms = {
            term: np.array([loss.get(term, np.nan) for loss in losses]) for term in ("task", *vars(self.method.losses))
        }
        distances = {}
        for name in self.columns:
            local = self.vectors(name)
            distances[name] = np.full(len(self.devices), np.nan)
            distances[name][self.members(name)] = (local - start[name]).norm(dim=1).double().numpy()
            if len(edges):
                self._receive(name, self._mixing_matrix(name, edges).to(local) @ local)
        return terms, distances

    def _train_device(self, number: int, batches: RoundBatches, plan: Plan, learning_rate: float) -> dict[str, float]:
        """Run one device's local iterations and return the mean of each term of its loss."""
        device, optimizer, index = self.devices[number], self.optimizers[number], torch.tensor([number])
        optimizer.param_groups[0]["lr"] = learning_rate
        parameters = list(device.parameters())
        sums: dict[str, torch.Tensor] = {}
        trained = 0
        for iteration in range(plan.num_iterations):
            active = plan.active(iteration)[number] & self.holds[number]
            if not active.any():
                continue
            labels = batches.labels(iteration, index)[0]
            present = None if self.complete[number] else batches.present(iteration, index)[0].T
            outputs = device(self._inputs(number, batches, iteration, active))
            here = None if present is None else present[torch.from_numpy(active)]
            terms = loss_terms(outputs, labels, here, self.method.losses)
            optimizer.zero_grad(set_to_none=True)  # no gradient: the optimizer leaves the block as it is
            _objective(terms, self.method.losses).backward()
            clip_grad_norm_(parameters, self.config.clip_norm, foreach=True)
            optimizer.step()
            for term, value in terms.items():
                sums[term] = sums.get(term, 0.0) + value.detach()
            trained += 1
        return {term: float(value) / trained for term, value in sums.items()}

    def _inputs(
        self, number: int, batches: RoundBatches, iteration: int, chosen: npt.NDArray[np.bool_]
    ) -> dict[str, torch.Tensor]:
        index = torch.tensor([number])
        names = (name for name, take in zip(self.network.modalities, chosen, strict=True) if take)
        return {name: batches.features(iteration, name, index)[0] for name in names}

    @torch.no_grad()
    def vectors(self, block: str) -> torch.Tensor:
        """Return a copy of a block's parameters, one row a device that has it, in the modules' order."""
        return torch.stack(
            [parameters_to_vector(self.devices[k].block(block).parameters()) for k in self.members(block)]
        )

    def momenta(self, block: str) -> torch.Tensor:
        """Return a copy of the optimizers' buffers of a block, as `vectors` gives the parameters."""
        return torch.stack(
            [
                parameters_to_vector(
                    [self.optimizers[k].state[p]["momentum_buffer"] for p in self.devices[k].block(block).parameters()]
                )
                for k in self.members(block)
            ]
        )

    @torch.no_grad()
    def _receive(self, block: str, mixed: torch.Tensor) -> None:
        for row, number in zip(mixed, self.members(block), strict=True):
            vector_to_parameters(row, self.devices[number].block(block).parameters())

    def _mixing_matrix(self, block: str, edges: npt.NDArray[np.int64]) -> torch.Tensor:
        """Return the Metropolis-Hastings weights of the links between the devices that have a block."""
        members = self.members(block)
        adjacent = np.zeros((len(self.devices), len(self.devices)), dtype=np.bool_)
        adjacent[edges[:, 0], edges[:, 1]] = adjacent[edges[:, 1], edges[:, 0]] = True
        adjacent = adjacent[np.ix_(members, members)]
        degree = adjacent.sum(axis=1)
        weights = adjacent / (1.0 + np.maximum(degree[:, None], degree[None]))
        return torch.from_numpy(weights + np.diag(1.0 - weights.sum(axis=1)))
