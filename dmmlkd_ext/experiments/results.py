"""What a finished run yields for tables: one row per number, with the run that it came from."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pandas as pd

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.own_parameter import get_own_parameter
from dmmlkd_ext.experiments.finished import read_certified, read_json

PROVENANCE = (
    "run",
    "dataset",
    "method",
    "seed",
    "budget_fraction",
    "partition",
    "dirichlet_alpha",
    "missing_rate",
    "num_devices",
    "topology",
    "link_failure",
    "device_failure",
    "learning_rate",
    "own_parameter",
    "rounds",
    "local_iterations",
    "commit",
)
"""Columns that describe the run; the same in all its rows."""

MEASUREMENT = ("round", "metric", "part", "device", "value")
"""Columns of a number. `metric` is the record's key, such as `accuracy`; `part` is the key below it, such as `test`, a
modality or a block, and empty where there is none; `device` is missing for a number of the whole population."""

NUMBERS = (
    "budget_fraction",
    "dirichlet_alpha",
    "missing_rate",
    "link_failure",
    "device_failure",
    "learning_rate",
    "own_parameter",
)
"""Columns of `PROVENANCE` that are floating-point numbers; NaN where one does not apply."""


def last_round(table: pd.DataFrame) -> pd.DataFrame:
    """Return the rows of each run's last round: its final results, not its best ones."""
    last = table.groupby("run", observed=True)["round"].transform("max")
    return table[table["round"] == last]


def flatten_record(record: dict[str, Any]) -> Iterator[tuple[str, str, int | None, float]]:
    """Yield metric, part, device and value of every number of a record; null yields nothing.

    Example:
        >>> list(flatten_record({"round": 1, "accuracy": {"test": [0.5, None]}, "loss": {"task": 2.0}}))
        [('accuracy', 'test', 0, 0.5), ('loss', 'task', None, 2.0)]
    """
    for metric, content in record.items():
        if metric == "round":
            continue
        parts = content.items() if isinstance(content, dict) else [("", content)]
        for part, value in parts:
            if isinstance(value, list):
                yield from (
                    (metric, part, device, float(item)) for device, item in enumerate(value) if _is_number(item)
                )
            elif _is_number(value):
                yield metric, part, None, float(value)


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def read_records(folder: Path) -> Iterator[dict[str, Any]]:
    """Yield the records of a finished run, one per recorded round.

    Raises:
        FileNotFoundError: the run is not finished.
        ValueError: the records are not those that the run finished with.
    """
    yield from map(json.loads, read_certified(folder).splitlines())


def read_commit(folder: Path) -> str | None:
    """Return the commit that a run started at, or None if unknown."""
    commit: str | None = read_json(folder / "environment.json").get("commit")
    return commit


def describe_run(run: str, config: ExperimentConfig, commit: str | None) -> dict[str, Any]:
    """Return the columns `PROVENANCE` of a run."""
    data = config.data
    values = (
        run,
        data.dataset,
        config.method.name,
        config.seed,
        config.energy.budget_fraction,
        data.partition,
        data.dirichlet_alpha,
        data.missing_rate,
        data.num_devices,
        config.topology.name,
        config.failures.link_probability,
        config.failures.device_probability,
        config.training.learning_rate,
        get_own_parameter(config.method),
        config.training.rounds,
        config.training.local_iterations,
        commit,
    )
    return dict(zip(PROVENANCE, values, strict=True))
