"""What all experiments share: each dataset's devices at two levels of non-IID data, and one wireless world."""

from __future__ import annotations

from dataclasses import replace
from typing import Literal, get_args

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.wireless.energy import EnergyConfig

DATASETS = ("watch", "mfeat", "avdigits")
"""The datasets of all experiments."""

Level = Literal["moderate", "severe"]
LEVELS: tuple[Level, ...] = get_args(Level)
"""How unlike the devices' data are, from the milder one on."""

_ALPHAS: dict[Level, float] = {"moderate": 0.5, "severe": 0.1}
# Its images and recordings make a round three times as dear as the others' windows and views.
_NUM_DEVICES = {"avdigits": 10}


def world(
    dataset: str, method: str, seed: int, level: Level = "moderate", budget: float | None = None
) -> ExperimentConfig:
    """Return the recommended configuration of a method, in the wireless world and at a level of non-IID data.

    Args:
        dataset: name of a dataset.
        method: name of a method.
        seed: of every random draw of the run.
        level: `moderate` is the natural split for `watch`, and a Dirichlet one of concentration 0.5 for the others;
            `severe` is a Dirichlet one of concentration 0.1 for all.
        budget: initial energy as a fraction of what all iterations and exchanges cost; None is no limit.

    Example:
        >>> world("watch", "dmml", seed=0, level="severe").data.dirichlet_alpha
        0.1
    """
    config = preset(dataset, method, seed)
    data = replace(config.data, num_devices=_NUM_DEVICES.get(dataset, config.data.num_devices))
    if not (level == "moderate" and data.partition == "natural"):
        data = dirichlet(data, _ALPHAS[level])
    return replace(config, data=data, energy=EnergyConfig("wireless", budget_fraction=budget))


def dirichlet(data: DataConfig, alpha: float) -> DataConfig:
    """Return the same data, split by Dirichlet distributions of labels."""
    return replace(data, partition="dirichlet", dirichlet_alpha=alpha)
