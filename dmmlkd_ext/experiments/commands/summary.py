"""What a finished run found, in a few lines for a terminal."""

from __future__ import annotations

import csv
import json
import shlex
import statistics
import textwrap
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from dmmlkd_ext.experiments.finished import read_json
from dmmlkd_ext.experiments.show.words import quantity
from dmmlkd_ext.training.keep.callbacks import mean_of
from dmmlkd_ext.training.keep.divergence import shorten

_MOST_CLASSES = 12
"""Classes up to which each one's accuracy is shown."""


def summarize_run(folder: Path) -> str:
    """Return accuracy, spread over devices, classes, energy, bits and times of a finished run, and the next command.

    Raises:
        OSError: a file is not there or cannot be read.
        ValueError, TypeError, KeyError: a file is damaged.
    """
    result = read_json(folder / "result.json")
    mean, worst = (_share(result[f"test_accuracy_{name}"]) for name in ("mean", "worst"))
    lines = [f"{folder}: test accuracy {mean}, worst device {worst}, {result['rounds']} rounds"]
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    planned = read_json(folder / "config.json")["training"]["rounds"]
    if result["rounds"] < planned:
        lines.append(_line("stopped early", f"after {result['rounds']} of {planned} rounds, by training.patience"))
    lines += [_line(name, text) for name, text in _describe(records)]
    seconds = read_seconds(folder.parent / "timings.csv").get(folder.name)
    if seconds is not None:
        lines.append(_line("wall time", f"{seconds:.1f} s"))
    lines.append(f"  {'next':15}dmmlkd compare {shlex.quote(str(folder.parent))}")  # in one line, to be copied
    return "\n".join(lines)


def _describe(records: Sequence[dict[str, Any]]) -> Iterator[tuple[str, str]]:
    """Yield what is shown of a run's records, by name; what they lack is left out."""
    last = records[-1]
    accuracies = _numbers((last.get("accuracy") or {}).get("test"))
    if accuracies:
        spread = f"{min(accuracies):.4f} to {max(accuracies):.4f}"
        yield "over devices", f"{spread}, standard deviation {statistics.pstdev(accuracies):.4f}, n = {len(accuracies)}"
    if "macro_f1" in last:
        yield "macro-F1", f"{_share(mean_of(last['macro_f1']))}, mean over devices"
        classes = last["class_accuracy"]
        if len(classes) <= _MOST_CLASSES:
            yield "accuracy of", ", ".join(f"{name} {mean_of(values):.3f}" for name, values in classes.items())
    spent, left = (_numbers(last.get(f"energy_{name}_joule")) for name in ("spent", "left"))
    if spent:
        budget = f", {quantity(sum(left) / len(left), 'J')} left" if left else ", no limit"
        yield "energy", f"{quantity(sum(spent) / len(spent), 'J')} per device{budget}"
    if "sent_bits" in last:
        bits = [sum(_numbers(record["sent_bits"])) for record in records]
        yield "sent", f"{quantity(sum(bits) / len(last['sent_bits']), 'bit')} per device"
    if "simulated_time_s" in last:
        yield "simulated time", f"{sum(record['simulated_time_s'] for record in records):.1f} s"
    first = _first_divergence(records)
    if first:
        devices = shorten(sorted(first))
        yield "diverged", f"device{'s' if len(first) > 1 else ''} {devices}, from round {min(first.values())} on"


def _first_divergence(records: Sequence[dict[str, Any]]) -> dict[int, int]:
    """Return the devices whose loss was not finite, which files hold as null, each with the first round of it."""
    first: dict[int, int] = {}
    blind: set[int] = set()  # no sample has a modality of theirs: they have no loss in any round
    for record in records:
        trained = zip(*record.get("local_iterations", {}).values(), strict=True)
        losses = record.get("device_loss", {}).get("task", [])
        silent = [
            device
            for device, (iterations, loss) in enumerate(zip(trained, losses, strict=False))
            if any(iterations) and loss is None
        ]
        if record["loss"]["total"] is not None:
            blind.update(silent)
        else:
            first |= {device: record["round"] for device in silent if device not in blind and device not in first}
    return first


def read_seconds(path: Path) -> dict[str, float]:
    """Return the seconds that each run took, over all times that it was resumed; none where they were not kept.

    Raises:
        ValueError: the file is damaged.
    """
    total: dict[str, float] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="", errors="replace") as file:
            for row in csv.DictReader(file):
                try:
                    total[row["run"]] = total.get(row["run"], 0.0) + float(row["seconds"])
                except (KeyError, TypeError, ValueError) as error:
                    raise ValueError(f"{path} is damaged: a line has no run and seconds, got {row}") from error
    return total


def _numbers(values: Sequence[float | None] | None) -> list[float]:
    return [value for value in values or () if value is not None]


def _share(value: float | None) -> str:
    """Format an accuracy; a dataset without test samples has none."""
    return "none" if value is None else f"{value:.4f}"


def _line(name: str, text: str) -> str:
    """Return a name and what is said of it, in lines of at most 80 columns."""
    return textwrap.fill(text, 80, initial_indent=f"  {name:15}", subsequent_indent=" " * 17, break_on_hyphens=False)
