"""From the records of a run to the numbers that figures need, few enough for all runs to fit a table of a few MB."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple


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
