"""The arguments of `run` in their plain order: METHOD, DATASET, options; and the configuration that they begin with."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_type_hints

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.settings import told_budget
from dmmlkd_ext.experiments.config.sources import begin
from dmmlkd_ext.experiments.config.worlds import DATASETS
from dmmlkd_ext.values import is_boolean, read_value

_CONFIG, _LEVEL, _BUDGET = "--config", "--as-reported", "--energy.budget-fraction"


def arrange(arguments: list[str]) -> tuple[list[str], ExperimentConfig | None]:
    """Return the arguments after `run` with METHOD and DATASET first, and the configuration that they begin with.

    The configuration is None where nothing names a method and a dataset. A file names them itself, and after
    `--as-reported` they stand in either order. A bool may be a word: `--training.probe false`.

    Raises:
        ValueError: an option lacks its value, or the file, method, dataset or level is not valid.

    Example:
        >>> arguments, config = arrange(["--as-reported", "severe", "mfeat", "dmml", "--training.probe", "0"])
        >>> arguments, config.training.learning_rate
        (['dmml', 'mfeat', '--training.no-probe', '--as-reported', 'severe'], 0.25)
    """
    left, taken = _take(arguments, (_CONFIG, _LEVEL))
    names = _leading_names(left)
    options = left[len(names) :]
    if _LEVEL in taken and names and names[0] in DATASETS:
        names.reverse()
    if len(names) == 2 or (_CONFIG in taken and not names):
        _, others = _take(options, (_BUDGET,))
        config = begin(
            *(names or (None, None)),
            file=Path(taken[_CONFIG]) if _CONFIG in taken else None,
            level=taken.get(_LEVEL),
            budget=told_budget(f"{option.removeprefix('--')}={value}" for option, value in others.items()),
        )
        names = names or [config.method.name, config.data.dataset]
    else:
        config = None
    back = [word for option, value in taken.items() for word in (option, value)]
    return [*names, *_plain_booleans(options), *back], config


def _take(arguments: list[str], wanted: tuple[str, ...]) -> tuple[list[str], dict[str, str]]:
    """Return the arguments without some options, and these options with their last values."""
    left, taken, waiting = [], {}, list(arguments)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        name = option.replace("_", "-")
        if name not in wanted:
            left.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("-") else ""
        if not value:
            raise ValueError(f"{name} must be followed by its value")
        taken[name] = value
    return left, taken


def _leading_names(arguments: list[str]) -> list[str]:
    names: list[str] = []
    while len(names) < min(2, len(arguments)) and not arguments[len(names)].startswith("-"):
        names.append(arguments[len(names)])
    return names


def _plain_booleans(arguments: list[str]) -> list[str]:
    """Return the arguments with each bool of the configuration as a flag: `--training.no-probe`."""
    known, plain, waiting = set(_booleans(ExperimentConfig)), [], list(arguments)
    while waiting:
        word = waiting.pop(0)
        option, equals, value = word.partition("=")
        path = option.removeprefix("--").replace("-", "_")
        if not (option.startswith("--") and path in known):
            plain.append(word)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and is_boolean(waiting[0]) else "true"
        section, _, name = option.rpartition(".")
        plain.append(option if read_value(bool, value, path) else f"{section}.no-{name}")
    return plain


def _booleans(cls: Any, before: str = "") -> Iterator[str]:
    for name, hint in get_type_hints(cls).items():
        if dataclasses.is_dataclass(hint):
            yield from _booleans(hint, f"{before}{name}.")
        elif hint is bool:
            yield f"{before}{name}"
