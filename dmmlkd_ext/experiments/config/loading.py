"""Reads a configuration from its file, strictly: what does not fit the dataclasses is an error."""

from __future__ import annotations

import dataclasses
import json
import types
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from dmmlkd_ext.experiments.config import ExperimentConfig

T = TypeVar("T")


def load_config(path: Path) -> ExperimentConfig:
    """Load the configuration from a run's folder or its `config.json`.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is not JSON, has unknown or missing keys, or a value of the wrong type or range.

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
    except json.JSONDecodeError as error:
        raise ValueError(f"path must be a JSON file, {path} is not: {error}") from error
    return from_dict(ExperimentConfig, _modernize(data))


def _modernize(data: Any) -> Any:
    """Convert a configuration of an earlier version, which had one module, under `data`."""
    if not isinstance(data, dict) or not isinstance(data.get("data"), dict) or "module" not in data["data"]:
        return data
    inner = dict(data["data"])
    module = inner.pop("module")
    return {"module": [] if module is None else [module], **data, "data": inner}


def from_dict(cls: type[T], data: Any, where: str = "config") -> T:
    """Build a dataclass from nested plain values, as `dataclasses.asdict` and JSON leave them.

    Args:
        cls: the dataclass to build.
        data: a dictionary with exactly the dataclass's fields; lists become tuples where the field is a tuple.
        where: the name that messages give to `data`.

    Raises:
        ValueError: keys are unknown or missing, or a value has the wrong type or range.

    Example:
        >>> from dmmlkd_ext.training.config import TrainingConfig
        >>> from_dict(TrainingConfig, {**dataclasses.asdict(TrainingConfig()), "rounds": 7}).rounds
        7
    """
    if not isinstance(data, dict):
        raise ValueError(f"{where} must be a table of {cls.__name__}, got {data!r}")
    hints = get_type_hints(cls)
    names = [field.name for field in dataclasses.fields(cls) if field.init]  # type: ignore[arg-type]
    _check_keys(where, names, data)
    values = {name: _parse(hints[name], data[name], f"{where}.{name}") for name in names}
    try:
        return cls(**values)
    except ValueError as error:
        raise ValueError(f"{where}: {error}") from error


def _check_keys(where: str, names: list[str], data: dict[str, Any]) -> None:
    unknown = sorted(set(data) - set(names))
    missing = sorted(set(names) - set(data))
    if unknown:
        raise ValueError(f"{where} has unknown keys {unknown}; it needs {sorted(names)}")
    if missing:
        raise ValueError(f"{where} lacks the keys {missing}")


def _parse(hint: Any, value: Any, where: str) -> Any:
    if dataclasses.is_dataclass(hint):
        return from_dict(hint, value, where)  # type: ignore[arg-type]
    origin = get_origin(hint)
    if origin in (Union, types.UnionType):
        return _parse_union(hint, value, where)
    if origin is tuple:
        return _parse_tuple(hint, value, where)
    if origin is dict:
        if not isinstance(value, dict):
            raise ValueError(f"{where} must be a table, got {value!r}")
        return {key: _parse(get_args(hint)[1], item, f"{where}[{key!r}]") for key, item in value.items()}
    if not _fits(hint, value):
        expected = f"one of {list(get_args(hint))}" if origin is Literal else getattr(hint, "__name__", hint)
        raise ValueError(f"{where} must be {expected}, got {value!r}")
    return value


def _parse_union(hint: Any, value: Any, where: str) -> Any:
    reasons = []
    for option in get_args(hint):
        try:
            return _parse(option, value, where)
        except ValueError as error:
            reasons.append(str(error))
    raise ValueError("; or ".join(reasons))


def _parse_tuple(hint: Any, value: Any, where: str) -> tuple[Any, ...]:
    if not isinstance(value, (list, tuple)):
        raise ValueError(f"{where} must be a list, got {value!r}")
    kinds = get_args(hint)
    if len(kinds) == 2 and kinds[1] is Ellipsis:
        kinds = (kinds[0],) * len(value)
    if len(kinds) != len(value):
        raise ValueError(f"{where} must be a list of {len(kinds)} values, got {value!r}")
    return tuple(
        _parse(kind, item, f"{where}[{index}]") for index, (kind, item) in enumerate(zip(kinds, value, strict=True))
    )


def _fits(hint: Any, value: Any) -> bool:
    if hint is Any:
        return True
    if get_origin(hint) is Literal:
        return value in get_args(hint)
    if isinstance(value, bool):
        return hint is bool
    if hint is float:
        return isinstance(value, (int, float))
    if hint is None:
        return value is None
    return isinstance(hint, type) and isinstance(value, hint)
