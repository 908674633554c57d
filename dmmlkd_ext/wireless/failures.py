"""Links and devices that fail for a round, by chance or by a schedule [C].

A failed device keeps its parameters, and the mixing weights are recomputed on the surviving links: the matrix stays
doubly stochastic, so mixing keeps the mean over all devices.
"""

from __future__ import annotations

import csv
import json
import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.wireless.lines import place, read_lines
from dmmlkd_ext.wireless.topology import Topology

IntArray = npt.NDArray[np.int64]
BoolArray = npt.NDArray[np.bool_]

FailureKind = Literal["link", "device", "partition"]


@dataclass(frozen=True)
class FailureConfig:
    """Which links and devices fail in a round: random failures and scheduled ones.

    Raises:
        ValueError: a probability is not between 0 and 1.

    Example:
        >>> FailureConfig(link_probability=0.1).device_probability
        0.0
    """

    link_probability: float = 0.0
    """Probability that a link fails in a round, independent of other links and rounds."""
    device_probability: float = 0.0
    """Probability that a device fails in a round, with all of its links."""
    schedule_path: str | None = None
    """File of failures, see `read_schedule`."""

    def __post_init__(self) -> None:
        for name in ("link_probability", "device_probability"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ValueError(f"{name} must be between 0 and 1, got {getattr(self, name)}")


@dataclass(frozen=True)
class ScheduledFailure:
    """One line of a schedule: what fails in the rounds from `first_round` to `last_round`, both included.

    `ids` are pairs of devices for `link`, devices for `device`, and for `partition` devices that lose their links to
    all devices not listed.
    """

    first_round: int
    last_round: int
    kind: FailureKind
    ids: tuple[tuple[int, ...], ...]


@dataclass(frozen=True, eq=False)
class Survivors:
    """The links and devices that work in one round.

    Attributes:
        links: bool [edges]; a link works only when both of its devices do.
        devices: bool [devices].
    """

    links: BoolArray
    devices: BoolArray


class Failures:
    """Decides, round by round, which links and devices of a topology fail.

    A round's draw depends on the seed and the round alone.

    Example:
        >>> from dmmlkd_ext.wireless.topology import build_topology
        >>> topology = build_topology("ring", 4, numpy_generator(0, "topology"))
        >>> Failures(FailureConfig(), topology, seed=0).draw(round_index=0).links.tolist()
        [True, True, True, True]
    """

    def __init__(self, config: FailureConfig, topology: Topology, seed: int) -> None:
        """Read the schedule, if there is one.

        Args:
            config: probabilities and schedule.
            topology: the links and devices that may fail.
            seed: the run's seed.

        Raises:
            ValueError: `seed` is negative, or the schedule is malformed or names a device or a link that the
                topology lacks.
        """
        if seed < 0:
            raise ValueError(f"seed must be at least 0, got {seed}")
        self.config = config
        self.topology = topology
        self.seed = seed
        self._schedule: list[tuple[range, BoolArray, BoolArray]] = []
        if config.schedule_path is not None:
            for failure in read_schedule(config.schedule_path):
                links, devices = _effect(failure, topology)
                self._schedule.append((range(failure.first_round, failure.last_round + 1), links, devices))

    def draw(self, round_index: int) -> Survivors:
        """Return the survivors of a round, counted from 0.

        Raises:
            ValueError: `round_index` is negative.
        """
        if round_index < 0:
            raise ValueError(f"round_index must be at least 0, got {round_index}")
        # Links and devices have separate streams, so that one probability never changes the other's draw.
        link_draw = numpy_generator(self.seed, "link_failure", round_index)
        device_draw = numpy_generator(self.seed, "device_failure", round_index)
        links = link_draw.random(len(self.topology.edges)) >= self.config.link_probability
        devices = device_draw.random(self.topology.num_devices) >= self.config.device_probability
        for rounds, lost_links, lost_devices in self._schedule:
            if round_index in rounds:
                links &= ~lost_links
                devices &= ~lost_devices
        return Survivors(links & devices[self.topology.edges].all(axis=1), devices)


def _effect(failure: ScheduledFailure, topology: Topology) -> tuple[BoolArray, BoolArray]:
    """Return which links and which devices fail by a line of the schedule."""
    ids = np.array(failure.ids, dtype=np.int64)
    if ids.size and ids.max() >= topology.num_devices:
        last = topology.num_devices - 1
        raise ValueError(f"schedule_path: {failure.kind} must have devices from 0 to {last}, got {ids.max()}")
    links = np.zeros(len(topology.edges), dtype=np.bool_)
    devices = np.zeros(topology.num_devices, dtype=np.bool_)
    if failure.kind == "link":
        index = {(int(i), int(j)): number for number, (i, j) in enumerate(topology.edges)}
        for i, j in failure.ids:
            number = index.get((min(i, j), max(i, j)))
            if number is None:
                raise ValueError(f"schedule_path: link must be one of the topology's, got {i}-{j}")
            links[number] = True
    elif failure.kind == "device":
        devices[ids[:, 0]] = True
    else:
        side = np.zeros(topology.num_devices, dtype=np.bool_)
        side[ids[:, 0]] = True
        links = side[topology.edges[:, 0]] != side[topology.edges[:, 1]]
    return links, devices


def read_schedule(path: str | os.PathLike[str]) -> list[ScheduledFailure]:
    """Read a schedule of failures from CSV (header `round,kind,ids`) or, with the suffix .jsonl, JSON lines.

    `round` is a number, or a range such as `10-19` that includes both ends. `kind` is `link`, `device` or
    `partition`, see `ScheduledFailure`. `ids` are separated by blanks in CSV, with links as `i-j`; in JSON
    they are lists: `{"round": "10-19", "kind": "link", "ids": [[0, 1], [2, 3]]}`. Empty lines are skipped.

    Raises:
        ValueError: the file is malformed; the message gives the line.
    """
    lines, where = read_lines(path, "schedule_path"), partial(place, "schedule_path", path=path)
    rows = _json_rows(lines, where) if Path(path).suffix == ".jsonl" else _csv_rows(lines, where)
    return [_parse(row, where(number)) for number, row in rows]


def _csv_rows(lines: list[str], place_of: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    reader = csv.reader(lines)
    header = [word.strip() for word in next(reader, [])]
    if header != ["round", "kind", "ids"]:
        raise ValueError(f"{place_of(1)} must be round,kind,ids; got {','.join(header)!r}")
    for words in reader:
        where = place_of(reader.line_num)
        if not any(word.strip() for word in words):
            continue
        if len(words) != 3:
            raise ValueError(f"{where} must have 3 fields, got {len(words)}")
        ids = [[_number(part, where) for part in word.split("-")] for word in words[2].split()]
        yield reader.line_num, {"round": words[0].strip(), "kind": words[1].strip(), "ids": ids}


def _json_rows(lines: list[str], place_of: Callable[[int], str]) -> Iterator[tuple[int, dict[str, Any]]]:
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        where = place_of(number)
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise ValueError(f"{where} must be a JSON object: {error}") from error
        if not isinstance(row, dict) or set(row) != {"round", "kind", "ids"} or not isinstance(row["ids"], list):
            raise ValueError(f"{where} must be an object with round, kind and a list of ids, got {line!r}")
        ids = [entry if isinstance(entry, list) else [entry] for entry in row["ids"]]
        yield number, {**row, "ids": [[_number(part, where) for part in entry] for entry in ids]}


def _parse(row: dict[str, Any], where: str) -> ScheduledFailure:
    kind = row["kind"]
    if kind not in get_args(FailureKind):
        raise ValueError(f"{where}: kind must be one of {', '.join(get_args(FailureKind))}; got {kind!r}")
    parts = [_number(part, where) for part in str(row["round"]).split("-")]
    if len(parts) > 2 or parts[0] > parts[-1]:
        raise ValueError(f"{where}: round must be a number or a range first-last, got {row['round']!r}")
    width = 2 if kind == "link" else 1
    if not row["ids"] or any(len(entry) != width for entry in row["ids"]):
        needed = "pairs of devices" if kind == "link" else "devices"
        raise ValueError(f"{where}: ids must be {needed}, got {row['ids']}")
    return ScheduledFailure(parts[0], parts[-1], kind, tuple(tuple(entry) for entry in row["ids"]))


def _number(word: object, where: str) -> int:
    """Return a count; refuse text and other JSON values, such as true."""
    text = str(word).strip()
    if not (text.isascii() and text.isdigit()):
        raise ValueError(f"{where} must have numbers of at least 0, got {text!r}")
    return int(text)
