"""What is trained in the measurements: the sizes and settings of the datasets, on data of noise."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.partition import assign_modalities
from dmmlkd_ext.experiments.build import slice_population
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.model.network import MultiModalNetwork
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.exchange.ranks import Ranks, Slice
from dmmlkd_ext.training.round import Simulation
from dmmlkd_ext.wireless.energy import EnergyConfig
from dmmlkd_ext.wireless.topology import build_topology
from tests.training.synthetic import make_dataset, make_simulation, plain_method, widen

POOL = 4000  # samples that all devices draw theirs from
SAMPLES = 64  # of each device
TOPOLOGY = "watts_strogatz"

METHODS = {
    "task": plain_method("dmml"),
    "all losses": plain_method("dmml-kd"),
    "all losses, balanced": plain_method("dmml-kd-tb"),
    "ogm-ge": plain_method("ogm-ge"),
    "mmpareto": plain_method("mmpareto"),
}


@dataclass(frozen=True)
class Workload:
    """Shapes of the modalities, how many devices lack some, and how devices train."""

    shapes: Mapping[str, tuple[int, ...]]
    num_classes: int
    training: TrainingConfig
    missing_rate: float = 0.0
    modalities_per_device: tuple[int, int] | None = None


def _of_dataset(name: str, shapes: Mapping[str, tuple[int, ...]], num_classes: int) -> Workload:
    config = preset(name)
    data = config.data
    return Workload(shapes, num_classes, config.training, data.missing_rate, data.modalities_per_device)


WORKLOADS = {
    "perceptron": Workload({"first": (64,), "second": (64,)}, 10, TrainingConfig()),
    "watch": _of_dataset("watch", {"accelerometer": (3, 128), "gyroscope": (3, 128)}, 7),
    "mfeat": _of_dataset(
        "mfeat", {"fac": (216,), "fou": (76,), "kar": (64,), "mor": (6,), "pix": (240,), "zer": (47,)}, 10
    ),
    "avdigits": _of_dataset("avdigits", {"image": (1, 28, 28), "audio": (1, 32, 32)}, 10),
}


def build(
    workload: Workload, method: str, num_devices: int, ranks: Ranks | None = None, **training: object
) -> tuple[Simulation, list[npt.NDArray[np.int64]]]:
    """Return a simulation that never evaluates, or this rank's part of it, and the samples of all devices."""
    generator = np.random.default_rng(0)
    device_samples = [generator.choice(POOL, SAMPLES, replace=False) for _ in range(num_devices)]
    settings = {"rounds": 10**6, "evaluate_every": 10**6, **training}
    energy = EnergyConfig(budget_fraction=0.5) if "balanced" in method else None
    dataset = make_dataset(workload.shapes, workload.num_classes, POOL)
    if torch.get_default_dtype() == torch.float64:
        widen(dataset)
    holds = assign_modalities(
        num_devices, len(workload.shapes), workload.missing_rate, generator, workload.modalities_per_device
    )
    simulation = make_simulation(
        dataset,
        holds,
        METHODS[method],
        dataclasses.replace(workload.training, **settings),
        energy,
        topology=TOPOLOGY,
        device_samples=device_samples,
        part=_part(workload, holds, ranks) if ranks else None,
    )
    return simulation, device_samples


def training_macs(network: MultiModalNetwork) -> dict[str, int]:
    """Return the multiply-accumulates of an iteration for one sample: forward, for weights, and for inputs.

    The gradient of the first layer's inputs is not needed.
    """
    return {name: 3 * macs - _first_macs(network, name) for name, macs in network.forward_macs.items()}


def _first_macs(network: MultiModalNetwork, name: str) -> int:
    inputs, *space = network.shapes[name]
    layers = network.encoders[name].layers
    positions = math.prod(math.ceil(size / layers.stride) for size in space)
    return positions * layers.kernel ** len(space) * inputs * layers.widths[0]


def _part(workload: Workload, holds: npt.NDArray[np.bool_], ranks: Ranks) -> Slice:
    """Return this rank's devices, as a run would divide them."""
    topology = build_topology(TOPOLOGY, len(holds), numpy_generator(0, "topology"))
    widths = workload.training.feature_width, workload.training.hidden_width
    return slice_population(topology, holds, MultiModalNetwork(workload.shapes, workload.num_classes, *widths), ranks)
