"""What is trained in the measurements: the sizes and settings of the datasets, on data of noise."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.partition import assign_modalities
from dmmlkd_ext.experiments.presets import preset
from dmmlkd_ext.network.energy import EnergyConfig
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.ranks import Slice
from dmmlkd_ext.training.simulation import Simulation
from tests.training.synthetic import make_dataset, make_simulation, plain_method, widen

POOL = 4000  # samples that all devices draw theirs from
SAMPLES = 64  # of each device

METHODS = {
    "task": plain_method("dmml"),
    "all losses": plain_method("dmml-kd"),
    "all losses, balanced": plain_method("dmml-kd-tb"),
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
    workload: Workload,
    method: str,
    num_devices: int,
    topology: str = "watts_strogatz",
    part: Slice | None = None,
    **training: object,
) -> tuple[Simulation, list[npt.NDArray[np.int64]]]:
    """Return a simulation that never evaluates, of all devices or those of `part`, and the samples of all devices."""
    generator = np.random.default_rng(0)
    device_samples = [generator.choice(POOL, SAMPLES, replace=False) for _ in range(num_devices)]
    settings = {"rounds": 10**6, "evaluate_every": 10**6, **training}
    energy = EnergyConfig(budget_fraction=0.5) if "balanced" in method else None
    dataset = make_dataset(workload.shapes, workload.num_classes, POOL)
    if torch.get_default_dtype() == torch.float64:
        widen(dataset)
    simulation = make_simulation(
        dataset,
        assign_modalities(
            num_devices, len(workload.shapes), workload.missing_rate, generator, workload.modalities_per_device
        ),
        METHODS[method],
        dataclasses.replace(workload.training, **settings),
        energy,
        topology=topology,
        device_samples=device_samples,
        part=part,
    )
    return simulation, device_samples
