"""What a configuration begins with: the recommended settings, a file, or a run of the reported tables.

A file in TOML or YAML states some options over the recommended ones of its method and dataset:

    method = "dmml-kd"            # or a table [method] with name, losses, ...
    data = "mfeat"                # or a table [data] with dataset, num_devices, ...
    [training]
    rounds = 20

The folder of a run, or its `config.json`, states all options of that run.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.loading import from_dict, load_config
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.config.settings import read_loader_options
from dmmlkd_ext.experiments.config.worlds import as_reported
from dmmlkd_ext.plugins import import_modules

_FILES = "config must be a .toml, .yaml or .json file, or the folder of a run"


def begin(
    method: str | None = None,
    dataset: str | None = None,
    *,
    seed: int = 0,
    file: Path | None = None,
    level: str | None = None,
    budget: float | None = None,
) -> ExperimentConfig:
    """Return the configuration that the options of a command are put on.

    Args:
        method: name of a method; None takes the file's.
        dataset: name of a dataset; None takes the file's.
        seed: of the run; the file's, if it states one.
        file: a file of options, a run's folder or its `config.json`; None takes none.
        level: `moderate` or `severe` takes the settings that the reported tables show at that level.
        budget: with `level`, the energy budget as a fraction, which decides on the tuned settings; None is no limit.

    Raises:
        ValueError: there is no such file, method, dataset or option, a value does not fit, or nothing names the method
            or the dataset.

    Example:
        >>> begin("dmml-kd", "mfeat", level="severe").training.learning_rate
        0.25
    """
    if file is not None and level is not None:
        raise ValueError("config and as_reported must not both be given: each states the settings")
    if level is not None:
        if method is None or dataset is None:
            raise ValueError(f"as_reported must be followed by a level, a dataset and a method; got {level} alone")
        return as_reported(level, dataset, method, seed, budget)
    if file is None:
        return preset(dataset or "watch", method or "dmml-kd", seed)
    if not file.exists():
        raise ValueError(f"{_FILES}; {file} is not there")
    if file.is_dir() or file.suffix == ".json":
        config = load_config(file)
        import_modules(*config.module)
        return config
    try:
        return overlay(read_table(file), method, dataset, seed)
    except ValueError as error:
        raise ValueError(f"{file}: {error}") from error


def overlay(table: dict[str, Any], method: str | None, dataset: str | None, seed: int) -> ExperimentConfig:
    """Return the recommended configuration of a table's method and dataset with the table's options over it.

    Example:
        >>> overlay({"method": "dmml", "data": {"dataset": "mfeat", "num_devices": 8}}, None, None, 0).data.num_devices
        8
    """
    modules = table.get("module", [])
    import_modules(*([modules] if isinstance(modules, str) else modules))
    told, names = dict(table), {}
    for key, option, default in (("method", "name", method), ("data", "dataset", dataset)):
        if isinstance(told.get(key), str):
            told[key] = {option: told[key]}
        section = told.get(key, {})
        names[option] = section.get(option, default) if isinstance(section, dict) else default
        if names[option] is None:
            raise ValueError(f"it must state {key}.{option}, or METHOD and DATASET must come right after run")
    data = preset(str(names["dataset"]), str(names["name"]), seed).to_dict()
    _merge(data, told)
    return read_loader_options(from_dict(ExperimentConfig, data))


def read_table(path: Path) -> dict[str, Any]:
    """Return the content of a TOML or YAML file.

    Raises:
        ValueError: it is neither, or holds something else than a table, or YAML cannot be read here.
    """
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".toml":
        return tomllib.loads(text)
    if path.suffix not in (".yaml", ".yml"):
        raise ValueError(_FILES)
    try:
        import yaml
    except ModuleNotFoundError as error:
        raise ValueError("a file in YAML needs the package pyyaml; TOML needs none") from error
    try:
        table = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ValueError(f"it is not YAML: {error}") from error
    if not isinstance(table, dict):
        raise ValueError(f"it must hold a table of options, got {table!r}")
    return table


def _merge(data: dict[str, Any], changes: dict[str, Any]) -> None:
    for key, value in changes.items():
        if isinstance(value, dict) and isinstance(data.get(key), dict):
            _merge(data[key], value)
        else:
            data[key] = value
