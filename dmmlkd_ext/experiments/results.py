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


COSTS = {"time_s": "cumulative_time_s", "energy_joule": "cumulative_energy_joule", "bits": "cumulative_bits"}
"""Column of a cost -> its metric: simulated seconds, and joules and bits per device, up to a round."""


def accuracy_by_round(table: pd.DataFrame, keys: Sequence[str], methods: Sequence[str] = ()) -> pd.DataFrame:
    """Return the mean and the worst device's test accuracy of each evaluated round: columns `keys`, round, mean, worst.

    Args:
        table: a row per number.
        keys: columns that tell one run from another.
        methods: the methods to keep; empty keeps all.
    """
    rows = pick(table, "accuracy", ["test"], methods, of_devices=True)
    grouped = rows.groupby([*keys, "round"], dropna=False, sort=True)["value"]
    return grouped.agg(mean="mean", worst="min").reset_index()


def add_costs(
    rows: pd.DataFrame, table: pd.DataFrame, keys: Sequence[str], costs: Sequence[str] = tuple(COSTS)
) -> pd.DataFrame:
    """Return rows with columns of costs, means over all runs with the same `keys`; NaN where they were not recorded."""
    for name in costs:
        cost = pick(table, COSTS[name], of_devices=False).groupby(list(keys), dropna=False)["value"].mean()
        rows = rows.merge(cost.rename(name).reset_index(), on=list(keys), how="left")
    return rows


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


RANKED = (1, 2, 3, 10)
"""Rounds in which the agreement of the metric's ranking is kept, besides the last one."""


class Number(NamedTuple):
    """One number of a run."""

    round: int
    metric: str
    part: str
    device: int | None
    """None where the number is of the whole population."""
    value: float


def extract(records: Iterable[Mapping[str, Any]], limited: bool = False, by_device: bool = False) -> Iterator[Number]:
    """Yield what is kept of a run's records (see `dmmlkd_ext.training.measure.record`), as far as it was recorded.

    In evaluated rounds: `accuracy` by device; means over devices of `modality_accuracy`, `imbalance`,
    `cumulative_energy_joule` and `cumulative_bits`; `cumulative_time_s`, `consensus_distance` by block, and the total
    `loss`. In the last round: `modality_accuracy` and `probe_accuracy` by device, `modalities_held`, the
    mean of `spectral_gap` over rounds, and means of `generator_quality` and of `class_accuracy` by class; the mean of
    `budget_joule` if there is a limit. In the rounds `RANKED` and the last one the mean of `ranking_agreement`. Devices
    with one modality, whose metric is 1 and whose imbalance is 0 by definition, stay out of the means of both.

    Args:
        records: of the rounds, in order.
        limited: keep the means of `local_iterations` and `balance_metric` by modality of every round.
        by_device: keep `local_iterations` and `energy_left_joule` of every device and round.
    """
    time_s, bits, gaps, last = None, None, [], None
    for last in records:
        index = last["round"]
        time_s = _add(time_s, last.get("simulated_time_s"))
        bits = _add(bits, _mean(last.get("sent_bits") or []))
        gaps.append(last.get("spectral_gap"))
        if last["accuracy"] is not None:
            yield from _evaluated(last, {"cumulative_bits": bits, "cumulative_time_s": time_s})
        if limited:
            yield from _means(index, "local_iterations", last.get("local_iterations"))
            yield from _means(index, "balance_metric", _of_several(last, last.get("balance_metric")))
        if index in RANKED:
            yield from _means(index, "ranking_agreement", {"": last.get("ranking_agreement") or []})
        if by_device:
            yield from _devices(index, "local_iterations", last.get("local_iterations"))
            yield from _devices(index, "energy_left_joule", {"": last.get("energy_left_joule") or []})
    if last is not None:
        yield from _final(last)
        yield from _means(last["round"], "spectral_gap", {"": gaps})


def _evaluated(record: Mapping[str, Any], costs: Mapping[str, float | None]) -> Iterator[Number]:
    index = record["round"]
    yield from _devices(index, "accuracy", record["accuracy"])
    yield from _means(index, "modality_accuracy", record.get("modality_accuracy"))
    yield from _means(index, "imbalance", _of_several(record, {"": record.get("imbalance") or []}))
    yield from _means(index, "cumulative_energy_joule", {"": record.get("energy_spent_joule") or []})
    blocks, total = record.get("consensus_distance") or {}, (record.get("loss") or {}).get("total")
    whole = [(name, "", cost) for name, cost in costs.items()]
    whole += [("consensus_distance", block, distance) for block, distance in blocks.items()]
    for metric, part, value in [*whole, ("loss", "total", total)]:
        if value is not None:
            yield Number(index, metric, part, None, value)


def _final(record: Mapping[str, Any]) -> Iterator[Number]:
    index = record["round"]
    yield from _devices(index, "modality_accuracy", record.get("modality_accuracy"))
    yield from _devices(index, "probe_accuracy", record.get("probe_accuracy"))
    yield from _means(index, "generator_quality", record.get("generator_quality"))
    yield from _means(index, "class_accuracy", record.get("class_accuracy"))
    if index not in RANKED:
        yield from _means(index, "ranking_agreement", {"": record.get("ranking_agreement") or []})
    spent, left = record.get("energy_spent_joule") or [], record.get("energy_left_joule") or []
    budget = [None if rest is None else used + rest for used, rest in zip(spent, left, strict=False)]
    yield from _means(index, "budget_joule", {"": budget})
    for device, held in enumerate(_held(record)):
        yield Number(index, "modalities_held", "", device, float(held))


def _held(record: Mapping[str, Any]) -> list[int]:
    """Return how many modalities each device holds; empty where it was not recorded."""
    columns = zip(*(record.get("local_iterations") or {}).values(), strict=True)
    return [sum(value is not None for value in column) for column in columns]


def _of_several(
    record: Mapping[str, Any], parts: Mapping[str, Sequence[float | None]] | None
) -> dict[str, list[float | None]]:
    """Return lists by device in which devices with one modality have no value."""
    held = _held(record)
    return {
        name: [value if count > 1 else None for value, count in zip(values, held or [2] * len(values), strict=False)]
        for name, values in (parts or {}).items()
    }


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


def _add(total: float | None, further: float | None) -> float | None:
    """Return a sum of what is known; None where nothing is."""
    return total if further is None else (total or 0.0) + further


def _mean(values: Sequence[float | None]) -> float | None:
    present = [value for value in values if value is not None]
    return math.fsum(present) / len(present) if present else None
