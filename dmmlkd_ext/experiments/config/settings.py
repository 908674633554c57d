"""Settings and loader options given as text, such as `training.rounds=5`, put into a configuration."""

from __future__ import annotations

import dataclasses
from typing import Any, get_args, get_origin, get_type_hints

from dmmlkd_ext.data.registry import read_options
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.loading import from_dict
from dmmlkd_ext.values import read_value

_OPTIONS = ["data", "options"]


def override_settings(config: ExperimentConfig, settings: tuple[str, ...]) -> ExperimentConfig:
    """Return the configuration with some settings changed, such as ``training.rounds=5``.

    Raises:
        ValueError: a setting is not of that form, unknown, or its value does not fit.

    Example:
        >>> override_settings(ExperimentConfig(), ("training.rounds=5", "data.partition=iid")).training.rounds
        5
    """
    data = config.to_dict()
    for setting in settings:
        path, equals, text = setting.partition("=")
        *parents, name = path.strip().replace("-", "_").split(".")
        table: Any = data
        for parent in parents:
            table = table.get(parent) if isinstance(table, dict) else None
        free = parents == _OPTIONS  # each loader defines its options
        if not (equals and isinstance(table, dict) and name and (name in table or free)):
            raise ValueError(f"set must be like training.rounds=5, a setting that there is; got {setting!r}")
        table[name] = text if free else read_value(_hint_of([*parents, name]), text, f"set: {path.strip()}")
    return read_loader_options(from_dict(type(config), data)) if settings else config


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
