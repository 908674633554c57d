"""The configuration of one run: frozen dataclasses, hashed to name the run."""

from __future__ import annotations

import dataclasses
import hashlib
import json
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal

from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import MethodConfig, get_method
from dmmlkd_ext.wireless.channel import ChannelConfig
from dmmlkd_ext.wireless.energy import EnergyConfig
from dmmlkd_ext.wireless.failures import FailureConfig

_NoOption: Any = None
with suppress(ImportError):  # the command line alone needs tyro
    from tyro.conf import Suppress as _NoOption

PROCESSORS = ("cpu", "cuda")
"""Kinds of torch devices that simulate."""


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
    """Everything that decides the result of one run.

    Equal configurations give the same bits on a CPU, and on GPUs of one model. A CPU and a GPU agree up to rounding.
    """

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

    torch_device: Annotated[str, _NoOption] = "cpu"
    """Kind of processor, of `PROCESSORS`; which GPU it is does not belong to a run. On the command line: `--device`."""

    def __post_init__(self) -> None:
        if self.seed < 0:
            raise ValueError(f"seed must be at least 0, got {self.seed}")
        if self.torch_device not in PROCESSORS:
            raise ValueError(f"torch_device must be one of {', '.join(PROCESSORS)}; got {self.torch_device!r}")

    def to_dict(self) -> dict[str, Any]:
        """Return the configuration as nested dictionaries of plain values."""
        return dataclasses.asdict(self)

    def digest(self, code_version: str = "") -> str:
        """Return 12 hexadecimal digits that name this configuration under a version of the code.

        A GPU gives other last bits than a CPU, so its run has another name; the CPU's does not depend on the setting.

        Example:
            >>> ExperimentConfig(seed=0).digest() == ExperimentConfig(seed=1).digest()
            False
        """
        settings = self.to_dict()
        if self.torch_device == "cpu":
            del settings["torch_device"]
        text = json.dumps([code_version, settings], sort_keys=True)
        return hashlib.sha256(text.encode()).hexdigest()[:12]
