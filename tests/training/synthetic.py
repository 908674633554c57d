"""Small datasets and simulations, made in milliseconds, for the tests and benchmarks of training."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt
import torch
from scipy import sparse

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange.ranks import Slice, alone
from dmmlkd_ext.training.guide import GENERATOR, GeneratorConfig, make_guidance
from dmmlkd_ext.training.methods import MethodConfig, get_method
from dmmlkd_ext.training.population import Population
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.channel import ChannelConfig
from dmmlkd_ext.wireless.energy import EnergyConfig
from dmmlkd_ext.wireless.failures import FailureConfig
from dmmlkd_ext.wireless.topology import build_topology
from dmmlkd_ext.wireless.world import WirelessWorld

MIXED_SHAPES: dict[str, tuple[int, ...]] = {"vector": (6,), "wave": (2, 11), "image": (1, 9, 7)}
"""One modality of each kind of encoder; odd sizes, so that strides do not divide them."""

TINY_SHAPES: dict[str, tuple[int, ...]] = {"left": (5,), "right": (3,)}

UNEVEN_HOLDS = np.array(
    [[True, True, True], [True, False, True], [False, True, False], [True, True, False], [False, False, True]]
)
"""Modalities of five devices: from all three to a single one."""

SMALL_TRAINING = TrainingConfig(
    rounds=4,
    local_iterations=4,
    batch_size=6,
    learning_rate=0.1,
    weight_decay=1e-2,
    clip_norm=1.0,
    input_noise=0.1,
    feature_width=5,
    hidden_width=7,
    evaluate_every=2,
)


def make_split(
    shapes: Mapping[str, tuple[int, ...]], samples: int, num_classes: int, missing: float, seed: int
) -> Split:
    """Return samples whose class shifts every modality, of which each may be missing."""
    generator = torch.Generator().manual_seed(seed)
    means = torch.Generator().manual_seed(0)
    labels = torch.randint(num_classes, (samples,), generator=generator)
    present = torch.rand(samples, len(shapes), generator=generator) >= missing
    present[~present.any(1), 0] = True
    features = {}
    for name, shape in shapes.items():
        centers = torch.randn(num_classes, *shape, generator=means)
        features[name] = (centers[labels] + torch.randn(samples, *shape, generator=generator)).float()
    return Split(features, labels, present, torch.full((samples,), -1))


def make_dataset(
    shapes: Mapping[str, tuple[int, ...]] = MIXED_SHAPES,
    num_classes: int = 4,
    samples: int = 90,
    missing: float = 0.0,
    seed: int = 0,
) -> MultiModalDataset:
    """Return a dataset; every sample lacks a modality with the probability `missing`, but never all."""
    sides = [
        make_split(shapes, count, num_classes, missing, 3 * seed + number)
        for number, count in enumerate((samples, 20, 30))
    ]
    classes = tuple(f"class {label}" for label in range(num_classes))
    return MultiModalDataset("synthetic", tuple(shapes), num_classes, classes, *sides)


def divide(num_samples: int, num_devices: int, seed: int = 0) -> list[npt.NDArray[np.int64]]:
    """Return the samples of each device: disjoint, complete, of very different numbers."""
    shares = np.arange(1, num_devices + 1) ** 1.5
    cuts = np.maximum(1, np.rint(np.cumsum(shares) / shares.sum() * num_samples)[:-1].astype(np.int64))
    return [np.sort(part) for part in np.split(np.random.default_rng(seed).permutation(num_samples), cuts)]


def plain_method(name: str, **balance: object) -> MethodConfig:
    """Return a method without the generator, with other settings of the balance."""
    method = get_method(name)
    losses = dataclasses.replace(method.losses, generator=0.0, rehearsal=0.0)
    return dataclasses.replace(
        method,
        losses=losses,
        generator=GeneratorConfig(),
        balance=dataclasses.replace(method.balance, **balance),
    )


def make_simulation(
    dataset: MultiModalDataset | None = None,
    holds: npt.NDArray[np.bool_] = UNEVEN_HOLDS,
    method: MethodConfig | str = "dmml-kd",
    training: TrainingConfig = SMALL_TRAINING,
    energy: EnergyConfig | None = None,
    failures: FailureConfig | None = None,
    topology: str = "ring",
    device_samples: Sequence[npt.NDArray[np.int64]] | None = None,
    seed: int = 0,
    part: Slice | None = None,
    torch_device: str = "cpu",
) -> Simulation:
    """Return a simulation before its first round, of all devices or of those of `part`."""
    dataset = dataset or make_dataset()
    method = plain_method(method) if isinstance(method, str) else method
    model = MultiModalNetwork(dataset.shapes, dataset.num_classes, training.feature_width, training.hidden_width)
    guidance = make_guidance(method.generator, dataset.num_classes, training.feature_width, seed)
    part = part or alone(len(holds))
    further, dtype = {GENERATOR: guidance.layout} if guidance else {}, torch.get_default_dtype()
    population = Population(model, holds[part.devices], seed, further, dtype, torch_device)
    everyone = np.ones(len(holds), dtype=np.bool_)
    held = {name: holds[:, column] for column, name in enumerate(model.modalities)}
    network = WirelessWorld(
        build_topology(topology, len(holds), numpy_generator(seed, "topology")),
        {name: held.get(name, everyone) for name in population.blocks},
        {name: block.num_parameters for name, block in population.blocks.items()},
        energy or EnergyConfig(),
        ChannelConfig(),
        failures or FailureConfig(),
        seed,
        method.exchange,
    )
    if device_samples is None:
        device_samples = divide(len(dataset.train), len(holds))
    return Simulation(dataset, device_samples, population, network, method, training, seed, guidance, part)


def identity_weights(size: int) -> GossipWeights:
    """Return the weights of an exchange in which nobody hears anybody."""
    return GossipWeights.from_scipy(sparse.eye_array(size, format="csr"))


def widen(dataset: MultiModalDataset) -> MultiModalDataset:
    """Make a dataset's features float64, which its checks forbid, for comparisons without rounding."""
    for split in (dataset.train, dataset.validation, dataset.test):
        for name, values in split.features.items():
            split.features[name] = values.double()
    return dataset
