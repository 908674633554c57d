"""Reads a configuration from plain values: what does not fit the dataclasses is an error."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.values import fit_value

T = TypeVar("T")


def load_config(path: Path) -> ExperimentConfig:
    """Load the configuration from a run's folder or its `config.json`.

    What an earlier version did not write takes its default.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, lacks its method, dataset or seed, has unknown keys, or a value of the wrong
            type or range; the message names the file.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "config.json"
        ...     _ = file.write_text(json.dumps(ExperimentConfig(seed=3).to_dict()))
        ...     load_config(file) == ExperimentConfig(seed=3)
        True
    """
    path = Path(path)
    if path.is_dir():
        path = path / "config.json"
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, too
        raise ValueError(f"path must be a JSON file, {path} is not: {error}") from error
    try:
        _require_identity(data)
        return from_dict(ExperimentConfig, _modernize(data))
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _require_identity(data: Any) -> None:
    """Refuse a file that does not say which run it is of: all else may be missing, of an earlier version."""
    for keys in (("method", "name"), ("data", "dataset"), ("seed",)):
        table = data
        for key in keys:
            if not isinstance(table, dict):
                break  # `from_dict` names what is no table
            if key not in table:
                raise ValueError(f"config lacks {'.'.join(keys)}")
            table = table[key]


def _modernize(data: Any) -> Any:
    """Convert a configuration of an earlier version, which had one module, under `data`."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), dict) or "module" not in data["data"]:
        return data
    inner = dict(data["data"])
    module = inner.pop("module")
    return {"module": [] if module is None else [module], **data, "data": inner}


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Build a dataclass from nested plain values, as `dataclasses.asdict`, JSON, TOML and YAML leave them.

    Args:
        cls: the dataclass to build.
        data: a dictionary of the dataclass's fields; what it lacks takes the field's default.
        where: the name that messages give to `data`.

    Raises:
        ValueError: keys are unknown, a field without a default is missing, or a value has the wrong type or range.

    Example:
        >>> from dmmlkd_ext.training.config import TrainingConfig
        >>> config = from_dict(TrainingConfig, {"rounds": 7, "probe": "false"})
        >>> config.rounds, config.probe, config.batch_size
        (7, False, 32)
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a table of {cls.__name__}, got {data!r}")
    hints = get_type_hints(cls)
    fields = [field for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    unknown = sorted(map(str, set(data) - {field.name for field in fields}))
    needed = [field.name for field in fields if field.default is field.default_factory is dataclasses.MISSING]
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; it needs {sorted(field.name for field in fields)}")
    if missing := [name for name in needed if name not in data]:
        raise ValueError(f"{where} lacks the keys {missing}")
    values = {name: _parse(hints[name], value, f"{where}.{name}") for name, value in data.items()}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _parse(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    return fit_value(hint, value, where)
