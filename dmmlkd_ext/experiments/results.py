"""What a finished run yields for tables: one row per number, with the run that it came from."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

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


def pick(
    table: pd.DataFrame,
    metric: str,
    parts: Sequence[str] = (),
    methods: Sequence[str] = (),
    of_devices: bool | None = None,
) -> pd.DataFrame:
    """Return the rows of a metric, names as plain strings.

    Args:
        table: columns metric, part, device, value and, to choose by them, method.
        metric: its name.
        parts: the parts to keep; empty keeps all.
        methods: the methods to keep; empty keeps all.
        of_devices: True keeps numbers of single devices, False those of the whole population, None both.
    """
    chosen = table["metric"] == metric
    if parts:
        chosen &= table["part"].isin(parts)
    if methods:
        chosen &= table["method"].isin(methods)
    if of_devices is not None:
        chosen &= table["device"].notna() == of_devices
    rows = table[chosen & table["value"].notna()]
    names = [name for name in rows.columns if isinstance(rows[name].dtype, pd.CategoricalDtype)]
    return rows.assign(**{name: rows[name].astype(object).where(rows[name].notna(), "").astype(str) for name in names})


def flatten_options(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, Any]]:
    """Yield every option of a configuration, a path such as `data.dataset`, with its value.

    Example:
        >>> list(flatten_options({"seed": 0, "data": {"dataset": "watch", "pair": (2, 4)}}))
        [('seed', 0), ('data.dataset', 'watch'), ('data.pair', (2, 4))]
    """
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from flatten_options(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", value


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


class Number(NamedTuple):
    """One number of a run."""

    round: int
    metric: str
    part: str
    device: int | None
    """None where the number is of the whole population."""
    value: float


def extract(records: Iterable[Mapping[str, Any]], limited: bool = False, by_device: bool = False) -> Iterator[Number]:
    """Yield what is kept of a run's records (see `dmmlkd_ext.training.measure.record`).

    In evaluated rounds: `accuracy` by device; means over devices of `modality_accuracy`, `imbalance`,
    `cumulative_energy_joule` and `cumulative_bits`; `cumulative_time_s`, `consensus_distance` by block, and the total
    `loss`. In the last round: `modality_accuracy` and `probe_accuracy` by device, `modalities_held`, the
    mean of `spectral_gap` over rounds, and means of `generator_quality`.

    Args:
        records: of the rounds, in order.
        limited: keep the means of `local_iterations` and `balance_metric` by modality of every round.
        by_device: keep `local_iterations` and `energy_left_joule` of every device and round.
    """
    time_s, bits, gaps, last = 0.0, 0.0, [], None
    for last in records:
        index = last["round"]
        time_s += last.get("simulated_time_s") or 0.0
        bits += _mean(last.get("sent_bits") or []) or 0.0
        gaps.append(last.get("spectral_gap"))
        if last["accuracy"] is not None:
            yield from _evaluated(last, time_s, bits)
        if limited:
            for metric in ("local_iterations", "balance_metric"):
                yield from _means(index, metric, last.get(metric))
        if by_device:
            yield from _devices(index, "local_iterations", last["local_iterations"])
            yield from _devices(index, "energy_left_joule", {"": last["energy_left_joule"]})
    if last is not None:
        yield from _final(last)
        yield from _means(last["round"], "spectral_gap", {"": gaps})


def _evaluated(record: Mapping[str, Any], time_s: float, bits: float) -> Iterator[Number]:
    index = record["round"]
    yield from _devices(index, "accuracy", record["accuracy"])
    yield from _means(index, "modality_accuracy", record["modality_accuracy"])
    yield from _means(index, "imbalance", {"": record["imbalance"]})
    yield from _means(index, "cumulative_energy_joule", {"": record["energy_spent_joule"]})
    yield Number(index, "cumulative_bits", "", None, bits)
    yield Number(index, "cumulative_time_s", "", None, time_s)
    for block, distance in record["consensus_distance"].items():
        yield Number(index, "consensus_distance", block, None, distance)
    if record["loss"]["total"] is not None:
        yield Number(index, "loss", "total", None, record["loss"]["total"])


def _final(record: Mapping[str, Any]) -> Iterator[Number]:
    index = record["round"]
    yield from _devices(index, "modality_accuracy", record["modality_accuracy"])
    yield from _devices(index, "probe_accuracy", record.get("probe_accuracy"))
    yield from _means(index, "generator_quality", record.get("generator_quality"))
    for device, held in enumerate(zip(*record["local_iterations"].values(), strict=True)):
        yield Number(index, "modalities_held", "", device, float(sum(value is not None for value in held)))


def _devices(index: int, metric: str, parts: Mapping[str, Sequence[float | None]] | None) -> Iterator[Number]:
    for part, values in (parts or {}).items():
        for device, value in enumerate(values):
            if value is not None:
                yield Number(index, metric, part, device, float(value))


def _means(index: int, metric: str, parts: Mapping[str, Sequence[float | None]] | None) -> Iterator[Number]:
    for part, values in (parts or {}).items():
        mean = _mean(values)
        if mean is not None:
            yield Number(index, metric, part, None, mean)


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None
