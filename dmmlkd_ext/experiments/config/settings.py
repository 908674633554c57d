"""Settings and loader options given as text, such as `training.rounds=5`, put into a configuration."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable
from itertools import product
from typing import Any, get_args, get_origin, get_type_hints

from dmmlkd_ext.data.registry import read_options
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.loading import from_dict
from dmmlkd_ext.values import read_value, split_values

_OPTIONS = ["data", "options"]
_BUDGET = "energy.budget_fraction"


def override_settings(config: ExperimentConfig, settings: Iterable[str], option: str = "set") -> ExperimentConfig:
    """Return the configuration with some settings changed, such as ``training.rounds=5``.

    Args:
        config: what is changed.
        settings: the changes.
        option: what messages call them.

    Raises:
        ValueError: a setting is not of that form, unknown, or its value does not fit.

    Example:
        >>> override_settings(ExperimentConfig(), ("training.rounds=5", "data.partition=iid")).training.rounds
        5
    """
    data, settings = config.to_dict(), tuple(settings)
    for setting in settings:
        path, equals, text = setting.partition("=")
        *parents, name = path.strip().replace("-", "_").split(".")
        table: Any = data
        for parent in parents:
            table = table.get(parent) if isinstance(table, dict) else None
        free = parents == _OPTIONS  # each loader defines its options
        if not (equals and isinstance(table, dict) and name and (name in table or free)):
            raise ValueError(f"{option} must be like training.rounds=5, a setting that there is; got {setting!r}")
        table[name] = text if free else read_value(_hint_of([*parents, name]), text, f"{option}: {path.strip()}")
    return read_loader_options(from_dict(type(config), data)) if settings else config


def told_budget(settings: Iterable[str]) -> float | None:
    """Return the energy budget that some settings state, as a fraction; None where they state none.

    Example:
        >>> told_budget(["training.rounds=5", "energy.budget-fraction=0.3"])
        0.3
    """
    told = dict(setting.replace("-", "_").split("=", 1) for setting in settings if "=" in setting)
    budget: float | None = read_value(float | None, told.get(_BUDGET, "None"), _BUDGET)
    return budget


def read_grid(axes: Iterable[str]) -> list[tuple[str, ...]]:
    """Return the settings of each point of a grid; one point without any where there is no axis.

    Args:
        axes: a setting with its values each, such as ``training.feature_width=16,32``.

    Raises:
        ValueError: an axis has no values, or two are of one setting.

    Example:
        >>> read_grid(["training.feature_width=16,32", "topology.name=ring"])
        [('training.feature_width=16', 'topology.name=ring'), ('training.feature_width=32', 'topology.name=ring')]
    """
    found: dict[str, list[str]] = {}
    for axis in axes:
        path, _, text = axis.partition("=")
        name = path.strip().replace("-", "_")
        if not split_values(text) or name in found:
            wanted = "once" if name in found else "with values, such as training.feature_width=16,32"
            raise ValueError(f"grid must name each setting {wanted}; got {axis!r}")
        found[name] = [f"{name}={value}" for value in split_values(text)]
    return list(product(*found.values()))


def read_loader_options(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration with the loader's options converted to the types that the loader declares.

    Raises:
        ValueError: the dataset has no such option, or its value does not fit.

    Example:
        >>> from dmmlkd_ext.experiments.config import DataConfig
        >>> told = ExperimentConfig(data=DataConfig("avdigits", options={"pairs": "2", "snr_db": "inf"}))
        >>> read_loader_options(told).data.options
        {'pairs': 2, 'snr_db': inf}
    """
    options = read_options(config.data.dataset, config.data.options)
    return dataclasses.replace(config, data=dataclasses.replace(config.data, options=options))


def _hint_of(path: list[str]) -> Any:
    """Return the type of an existing setting."""
    hint: Any = ExperimentConfig
    for name in path:
        hint = get_args(hint)[1] if get_origin(hint) is dict else get_type_hints(hint)[name]
    return hint
