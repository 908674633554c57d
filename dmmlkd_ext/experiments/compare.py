"""From folders of runs to a comparison: what differs between them, means over seeds, differences to a baseline."""

from __future__ import annotations

import difflib
import hashlib
import importlib
import json
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from dmmlkd_ext.experiments import statistics
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.finished import is_finished, read_certified, read_json
from dmmlkd_ext.experiments.results import (
    COSTS,
    MEASUREMENT,
    accuracy_by_round,
    add_costs,
    extract,
    flatten_options,
    last_round,
)
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD, in_order
from dmmlkd_ext.training.keep.files import write_atomically


class ComparisonError(ValueError):
    """The runs, or what is asked of them, cannot be compared; the message says why in one line."""


METHOD, DATASET, VERSION = "method.name", "data.dataset", "code_version"
ABSENT = "-"
"""The value of an option that a run does not have."""
_FREE = ("training.", "method.", "torch_device", VERSION, "inputs.module")
"""What may differ between a pair's runs, where what is compared decides it; all else makes other data or links."""
_ASIDE = ("seed", "method.base", "method.tunes")
"""Options that make no other experiment."""
_DIGITS = 8
"""Hexadecimal digits that are shown of a hash."""


@dataclass(frozen=True)
class Runs:
    """Finished runs: their options as text, and their numbers.

    Attributes:
        options: a row per run, indexed by its folder: every option by its path, `seed`, `code_version`, and the hashes
            of the files that it read (`inputs.module`).
        numbers: columns run (the folder) and `MEASUREMENT` of `dmmlkd_ext.experiments.results`.
        unfinished: folders of runs without a result.
    """

    options: pd.DataFrame
    numbers: pd.DataFrame
    unfinished: tuple[str, ...] = ()

    def rounds(self) -> pd.DataFrame:
        """Return a row per run and evaluated round: run, round, mean, worst, time_s, energy_joule, bits."""
        return add_costs(accuracy_by_round(self.numbers, ["run"]), self.numbers, ["run", "round"])


def find_runs(paths: Iterable[Path]) -> list[Path]:
    """Return the folders of runs among some folders and what they contain, each once.

    Raises:
        ComparisonError: a path is no folder, or holds no run.
    """
    found: dict[Path, Path] = {}
    for path in paths:
        if not path.is_dir():
            what = "is not a folder" if path.exists() else "is not there"
            raise ComparisonError(f"runs must be folders of runs; {path} {what}")
        files = [path / "config.json"] if (path / "config.json").exists() else sorted(path.rglob("config.json"))
        folders = [file.parent for file in files if not _is_hidden(file.relative_to(path))]
        if not folders:
            raise ComparisonError(f"runs must be folders of runs; {path} holds none")
        for folder in folders:
            found.setdefault(folder.resolve(), folder)
    return list(found.values())


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def read_runs(paths: Iterable[Path], code_version: str | None = None) -> Runs:
    """Read the finished runs in some folders; a run that stands in two places is read once.

    Args:
        paths: folders of runs, or folders that contain them.
        code_version: the first digits of the version of the code whose runs are kept; None keeps all.

    Raises:
        ComparisonError: there are no such runs, or one is damaged; the message names its folder.
    """
    folders = find_runs(paths)
    described: dict[Path, dict[str, str]] = {}
    for folder in filter(is_finished, folders):
        with _naming(folder):
            described[folder] = describe(folder)
    unfinished = tuple(str(folder) for folder in folders if folder not in described)
    versions = sorted({options[VERSION] for options in described.values()})
    chosen = {version for version in versions if version.startswith((code_version or "")[:_DIGITS])}
    if not versions:
        raise ComparisonError(f"runs must be finished, to be compared; none of {len(unfinished)} is")
    if not chosen:
        raise ComparisonError(f"code_version must be one of {', '.join(versions)}; got {code_version}")
    numbers: dict[str, list[tuple[Any, ...]]] = {}
    known: set[str] = set()
    for folder, options in described.items():
        with _naming(folder):
            content = read_certified(folder)
            result = json.dumps(options) + hashlib.sha256(content).hexdigest()
            if options[VERSION] in chosen and result not in known:
                known.add(result)
                numbers[str(folder)] = list(extract(map(json.loads, content.splitlines()), limited=True))
    table = pd.DataFrame.from_dict({str(folder): options for folder, options in described.items()}, orient="index")
    rows = [(run, *number) for run, of_run in numbers.items() for number in of_run]
    read = pd.DataFrame(rows, columns=["run", *MEASUREMENT])
    return Runs(table.loc[list(numbers)].fillna(ABSENT), read, unfinished)


@contextmanager
def _naming(folder: Path) -> Iterator[None]:
    """Name the folder of a run that cannot be read."""
    try:
        yield
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise ComparisonError(f"run {folder} cannot be read: {type(error).__name__}: {error}") from error


def describe(folder: Path) -> dict[str, str]:
    """Return every option of a run as text, with the version of its code and the hashes of what it read."""
    options = {name: str(value) for name, value in flatten_options(load_config(folder).to_dict())}
    path = folder / "environment.json"
    environment = read_json(path) if path.exists() else {}
    inputs = {f"inputs.{name}": value for name, value in (environment.get("inputs") or {}).items()}
    hashes = {VERSION: environment.get("code_version") or ABSENT, **inputs}
    return {**options, **{name: str(value)[:_DIGITS] for name, value in hashes.items()}}


@dataclass(frozen=True)
class Design:
    """What differs between runs, and what is compared.

    Attributes:
        by: the option whose values are compared; None where nothing differs.
        baseline: the value of `by` that the others are compared with.
        keys: options that are held fixed: the dataset, and what decides on data, links or training besides `by`.
        along: options that differ with `by`, such as a tuned learning rate.
        decided: further options that differ, all decided by the method and the dataset; they are not shown.
    """

    by: str | None
    baseline: str | None
    keys: tuple[str, ...]
    along: tuple[str, ...] = ()
    decided: tuple[str, ...] = ()

    @property
    def columns(self) -> list[str]:
        """The options that tell one row of a comparison from another."""
        return [*self.keys, *([self.by] if self.by else []), *self.along]


def plan(options: pd.DataFrame, by: str | None = None, baseline: str | None = None) -> Design:
    """Return what differs between runs, and what is compared.

    Args:
        options: of `Runs`.
        by: an option, or the last part of its path; None takes the method if it differs, else the first one that does
            and is not decided by the dataset.
        baseline: a value of it; None takes `dmml`, or else the first value.

    Raises:
        ComparisonError: `by` does not differ between the runs, or no run has that `baseline`.
    """
    differing = [str(name) for name in options if name not in (*_ASIDE, DATASET) and options[name].nunique() > 1]
    decided = [name for name in differing if name != METHOD and _is_decided(options, name)]
    by = _find_option(by, differing) if by else _choose(name for name in differing if name not in decided)
    shown = [name for name in differing if name not in (*decided, by)]
    along = [name for name in shown if by and name.startswith(_FREE) and _depends(options, name, [by, DATASET])]
    keys = (DATASET, *(name for name in shown if name not in along))
    if by is None:
        return Design(None, None, keys)
    values = in_sequence(options[by])
    if baseline is None:
        baseline = REFERENCE_METHOD if by == METHOD and REFERENCE_METHOD in values else values[0]
    matching = [value for value in values if value == baseline or _number(value) == _number(baseline) is not None]
    if not matching:
        raise ComparisonError(f"baseline must be one of {', '.join(values)}, the values of {by}; got {baseline}")
    return Design(by, matching[0], keys, tuple(along), tuple(name for name in decided if name != by))


def _choose(differing: Iterable[str]) -> str | None:
    """Return the option to compare: the method, or else the first one, versions of code last."""
    return min(
        differing, key=lambda name: (name != METHOD, name == VERSION or name.startswith("inputs.")), default=None
    )


def _find_option(name: str, differing: Sequence[str]) -> str:
    wanted = METHOD if name == "method" else name.replace("-", "_")
    matching = [option for option in differing if option == wanted]
    matching = matching or [option for option in differing if option.endswith(f".{wanted}")]
    if len(matching) == 1:
        return matching[0]
    close = difflib.get_close_matches(wanted, differing, n=1)
    hint = f"; did you mean {close[0]}?" if close else ""
    raise ComparisonError(f"by must be an option that differs: {', '.join(differing) or 'none does'}; got {name}{hint}")


def _is_decided(options: pd.DataFrame, name: str) -> bool:
    return _depends(options, name, [METHOD, DATASET] if name.startswith("method.") else [DATASET])


def _depends(options: pd.DataFrame, name: str, on: Sequence[str]) -> bool:
    """Return whether some options decide the value of another one, among these runs."""
    return bool((options.groupby(list(on))[name].nunique() == 1).all())


def in_sequence(values: Iterable[str]) -> list[str]:
    """Return values once each: numbers by size, methods as in legends, other texts by their letters.

    Example:
        >>> in_sequence(["16", "8", "16"]), in_sequence(["dmml-kd", "dmml", "local"])
        (['8', '16'], ['local', 'dmml', 'dmml-kd'])
    """
    numbers = {value: _number(value) for value in values}
    if None in numbers.values():
        return in_order(numbers)
    return sorted(numbers, key=lambda value: numbers[value] or 0.0)


def _number(text: str) -> float | None:
    try:
        return float(text)
    except ValueError:
        return None


def pair(runs: Runs, design: Design, rows: pd.DataFrame) -> pd.DataFrame:
    """Return rows of runs with the options of a design and the seed.

    Raises:
        ComparisonError: two runs have the same options and seed.
    """
    told = runs.options[[*design.columns, "seed"]]
    twice = told[told.duplicated(keep=False)].sort_values(list(told.columns))
    if len(twice):
        first, second = twice.index[:2]
        raise ComparisonError(f"runs must differ in an option or the seed; {first} and {second} do not: give one")
    return rows.merge(told, left_on="run", right_index=True)


def compare(runs: Runs, design: Design) -> pd.DataFrame:
    """Return the accuracies in the last round, their paired differences to the baseline, and what they cost.

    Returns:
        A row for each combination of the design's columns, and the columns of
        `dmmlkd_ext.experiments.statistics.compare` with values mean and worst, over devices; time_s, energy_joule and
        bits, up to the last round, means over seeds, NaN where they were not recorded; verdict.

    Raises:
        ComparisonError: no run has a test accuracy, or two have the same options and seed.
    """
    final = pair(runs, design, last_round(runs.rounds()))
    if final.empty:
        raise ComparisonError("runs must have test samples: none has a test accuracy")
    by = design.by or METHOD
    final = final.assign(**{by: runs.options.loc[final["run"], by].to_numpy()})
    rows = statistics.compare(final, design.keys, design.baseline or "", column=by)
    place = [*design.keys, by]
    further = final.groupby(place)[[*design.along, *COSTS]].agg(
        {**dict.fromkeys(design.along, "first"), **dict.fromkeys(COSTS, "mean")}
    )
    rows = rows.merge(further.reset_index(), on=place)
    rows["verdict"] = [verdict(row) for row in rows.to_dict("records")]
    return sort(rows, design.columns)


def verdict(row: Mapping[Any, Any]) -> str:
    """Return what the interval of a paired difference says.

    Example:
        >>> verdict({"pairs": 5, "difference_low": 0.1, "difference_high": 0.3})
        'higher'
    """
    if not row["pairs"]:
        return ""
    if row["pairs"] < statistics.LEAST_SEEDS:
        return "too few seeds"
    return "higher" if row["difference_low"] > 0 else "lower" if row["difference_high"] < 0 else "undecided"


def sort(rows: pd.DataFrame, columns: Sequence[str]) -> pd.DataFrame:
    """Return rows in the sequence of their options' values."""
    places = {name: {value: place for place, value in enumerate(in_sequence(rows[name]))} for name in columns}
    return rows.sort_values(list(columns), key=lambda column: column.map(places[str(column.name)]), ignore_index=True)


def export(runs: Runs, design: Design, path: Path) -> None:
    """Write a row per run and evaluated round, with every option that differs, as CSV or parquet.

    Raises:
        ComparisonError: the file's name ends in neither.
        OSError: the file cannot be written.
    """
    check_export(path)
    told = runs.options[["seed", *dict.fromkeys([*design.columns, *design.decided, METHOD, DATASET, VERSION])]]
    rows = told.merge(runs.rounds(), left_index=True, right_on="run").astype({"seed": int})
    if path.suffix == ".csv":
        text = rows.to_csv(index=False, lineterminator="\n")
        write_atomically(path, lambda file: file.write(text.encode()))
    else:
        write_atomically(path, lambda file: rows.to_parquet(file, index=False))


def check_export(path: Path) -> None:
    """Refuse a file that cannot be written.

    Raises:
        ComparisonError: its name says neither CSV nor parquet.
        ModuleNotFoundError: parquet needs pyarrow, which is not here.
    """
    if path.suffix == ".parquet":
        importlib.import_module("pyarrow")
    elif path.suffix != ".csv":
        raise ComparisonError(f"export must be a file called *.csv or *.parquet, got {path}")
