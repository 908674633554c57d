"""The configuration of one run: frozen dataclasses, hashed to name the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from dataclasses import dataclass, field
from typing import Any, Literal

from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import MethodConfig, get_method
from dmmlkd_ext.wireless.channel import ChannelConfig
from dmmlkd_ext.wireless.energy import EnergyConfig
from dmmlkd_ext.wireless.failures import FailureConfig


@dataclass(frozen=True)
class DataConfig:
    """Which data, and who holds them."""

    dataset: str = "watch"
    partition: Literal["natural", "dirichlet", "iid"] = "dirichlet"
    num_devices: int = 20
    dirichlet_alpha: float = 0.5
    """Concentration of a device's label distribution; the smaller, the more the devices differ. Used by `dirichlet`
    alone."""
    missing_rate: float = 0.6
    """Share of the devices that lack at least one modality."""
    modalities_per_device: tuple[int, int] | None = None
    """Least and most modalities of an incomplete device; None draws any proper subset."""
    lacking: str | None = None
    """The modality that incomplete devices lack, and no other: a rare sensor that is never alone; None draws what each
    of them lacks."""
    options: dict[str, str | bool | int | float | None] = field(default_factory=dict, hash=False)
    """Options of the dataset's loader, such as `split: subject` of `watch`."""


@dataclass(frozen=True)
class TopologyConfig:
    """The graph of links between devices."""

    name: str = "random_geometric"
    radius_m: float = 200.0
    side_m: float = 500.0
    degree: int = 4
    """Neighbours of a device; used by `watts_strogatz` alone."""
    probability: float = 0.3
    """Probability of a link (`erdos_renyi`) or of rewiring one (`watts_strogatz`)."""
    path: str | None = None
    """File of the edges; used by `edge_list` alone."""


@dataclass(frozen=True)
class ExperimentConfig:
    """Everything that decides the result of one run; two equal configurations give the same bits."""

    method: MethodConfig = field(default_factory=lambda: get_method("dmml-kd"))
    data: DataConfig = field(default_factory=DataConfig)
    topology: TopologyConfig = field(default_factory=TopologyConfig)
    energy: EnergyConfig = field(default_factory=EnergyConfig)
    channel: ChannelConfig = field(default_factory=ChannelConfig)
    failures: FailureConfig = field(default_factory=FailureConfig)
    training: TrainingConfig = field(default_factory=TrainingConfig)
    seed: int = 0
    module: tuple[str, ...] = ()
    """Python files or modules of your own to import first, which register a dataset for instance; may be repeated."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    def digest(self, code_version: str = "") -> str:
        """Return 12 hexadecimal digits that name this configuration under a version of the code.

        Example:
            >>> ExperimentConfig(seed=0).digest() == ExperimentConfig(seed=1).digest()
            False
        """
        text = json.dumps([code_version, self.to_dict()], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
