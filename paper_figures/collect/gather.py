"""From the folders of runs to the few tables that all figures are drawn from, and these tables as files.

`runs.csv` has a row an experiment and run, `metrics.parquet` a row a number of a run, `settings.parquet` a row an
option of a run, `features.csv` a row a feature in two dimensions. What was gathered from runs goes through the files'
bytes before it is drawn, so that drawing from the files later gives the same.
"""

from __future__ import annotations

import csv
import io
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.results import (
    MEASUREMENT,
    NUMBERS,
    PROVENANCE,
    Results,
    describe_run,
    read_commit,
    read_records,
)
from dmmlkd_ext.experiments.run import is_finished, run_name
from dmmlkd_ext.training.keep.files import write_atomically
from paper_figures.embedding import FEATURE_COLUMNS, embed_run
from paper_figures.experiments import BUDGETS, Case
from paper_figures.extract import extract

PLACE = ("experiment", "setting", "level")
"""Columns that say which case of an experiment a row belongs to."""
RUN_COLUMNS = (*PLACE, *PROVENANCE, "seconds", "finished")
"""Columns of `runs.csv`; `seconds` of wall time, as far as they are known."""
TABLE_COLUMNS = (*PLACE, *PROVENANCE, *MEASUREMENT)
"""Columns of the table that figures are drawn from."""

_FILES = {"runs": "runs.csv", "metrics": "metrics.parquet", "settings": "settings.parquet", "features": "features.csv"}
_COUNTS = ("seed", "num_devices", "rounds", "local_iterations")
_TEXTS = ("experiment", "setting", "run", "dataset", "method", "partition", "topology", "commit")

Cases = Mapping[str, Sequence[Case]]
"""Name of an experiment -> its cases."""


@dataclass(frozen=True)
class Gathered:
    """The tables of some experiments; columns are told above."""

    runs: pd.DataFrame
    metrics: pd.DataFrame
    settings: pd.DataFrame
    features: pd.DataFrame

    def results(self, experiments: Collection[str]) -> Results:
        """Return what a figure of some experiments is drawn from; a run of two experiments stands in both."""
        runs = self.runs[self.runs["experiment"].isin(experiments)]
        finished = runs[runs["finished"]]
        table = finished[[*PLACE, *PROVENANCE]].merge(self.metrics, on="run", sort=False)[list(TABLE_COLUMNS)]
        for name in (*_TEXTS, "metric", "part"):
            table[name] = table[name].astype("category")
        options = runs[[*PLACE, "run", "dataset", "method", "seed"]].merge(self.settings, on="run", sort=False)
        unfinished = tuple(dict.fromkeys(runs.loc[~runs["finished"], "run"]))
        features = self.features[self.features["run"].isin(set(finished["run"]))].reset_index(drop=True)
        return Results(table, unfinished, features, options)

    def write(self, folder: Path) -> None:
        """Write the tables into a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in _encode(self).items():
            _write(folder / _FILES[name], content)


def read(folder: Path) -> Gathered:
    """Read the tables that were written into a folder.

    Raises:
        FileNotFoundError: a table is not there.
    """
    missing = [name for name in _FILES.values() if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(f"results must hold {', '.join(_FILES.values())}; {', '.join(missing)} is not there")
    return _decode({name: (folder / file).read_bytes() for name, file in _FILES.items()})


def gather(cases: Cases, runs_folder: Path) -> tuple[Gathered, dict[str, str]]:
    """Gather the finished runs of some experiments.

    Args:
        cases: what was to be run.
        runs_folder: the folder of all runs.

    Returns:
        The tables, and the name of each run that cannot be read -> why; it counts as not finished.
    """
    seconds = read_seconds(runs_folder / "timings.csv")
    configs = {run_name(case.config): case.config for group in cases.values() for case in group}
    detailed = _detailed(cases)
    numbers: list[tuple[Any, ...]] = []
    finished, unreadable = {}, {}
    for run, config in configs.items():
        if not is_finished(runs_folder / run):
            continue
        try:
            commit = read_commit(runs_folder / run)
            limited = config.energy.budget_fraction is not None
            own = [(run, *number) for number in extract(read_records(runs_folder / run), limited, run in detailed)]
        except (OSError, ValueError, KeyError) as error:
            unreadable[run] = f"{type(error).__name__}: {error}"
            continue
        numbers += own
        finished[run] = commit
    rows = [
        {
            **dict(zip(PLACE, (experiment, case.setting, case.level), strict=True)),
            **describe_run(run_name(case.config), case.config, finished.get(run_name(case.config))),
            "seconds": seconds.get(run_name(case.config)),
            "finished": run_name(case.config) in finished,
        }
        for experiment, group in cases.items()
        for case in group
    ]
    options = [(run, *option) for run, config in configs.items() for option in flatten(config.to_dict())]
    shown = [case.config for case in cases.get("features", ()) if run_name(case.config) in finished]
    features, lost = _embed(shown, runs_folder)
    tables = Gathered(
        pd.DataFrame(rows, columns=list(RUN_COLUMNS)),
        pd.DataFrame(numbers, columns=["run", *MEASUREMENT]),
        pd.DataFrame(options, columns=["run", "option", "value"]),
        features,
    )
    return _decode(_encode(tables)), {**unreadable, **lost}


def read_seconds(path: Path) -> dict[str, float]:
    """Return the seconds that each run took, over all times that it was resumed; none where they were not kept."""
    total: dict[str, float] = {}
    if path.exists():
        with path.open(encoding="utf-8", newline="") as file:
            for row in csv.DictReader(file):
                total[row["run"]] = total.get(row["run"], 0.0) + float(row["seconds"])
    return total


def flatten(options: Mapping[str, Any], before: str = "") -> Iterator[tuple[str, str]]:
    """Yield every option of a configuration with its value as text.

    Example:
        >>> list(flatten({"seed": 0, "data": {"dataset": "watch", "pair": (2, 4)}}))
        [('seed', '0'), ('data.dataset', 'watch'), ('data.pair', '(2, 4)')]
    """
    for name, value in options.items():
        if isinstance(value, Mapping):
            yield from flatten(value, f"{before}{name}.")
        else:
            yield f"{before}{name}", str(value)


def _detailed(cases: Cases) -> set[str]:
    """Return the runs of which devices are shown round by round: one seed of the balance at the tuned budget."""
    balanced = [case for case in cases.get("balance", ()) if case.level == BUDGETS[0]]
    first = min((case.config.seed for case in balanced), default=None)
    return {run_name(case.config) for case in balanced if case.config.seed == first}


def _embed(configs: Sequence[ExperimentConfig], runs_folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Embed the features of some runs; a run whose features cannot be had is named, and the others go on."""
    frames, lost = [pd.DataFrame(columns=list(FEATURE_COLUMNS))], {}
    drawn = min((config.seed for config in configs), default=None)
    for config in configs:
        run = run_name(config)
        try:
            frames.append(embed_run(config, runs_folder / run, points=config.seed == drawn))
        except Exception as error:  # whatever is wrong with one run, the others are shown
            lost[run] = f"features: {type(error).__name__}: {error}"
            print(f"features of run {run} are left out: {error}", file=sys.stderr)
    full = [frame for frame in frames if not frame.empty]
    return pd.concat(full, ignore_index=True) if full else frames[0], lost


def _encode(tables: Gathered) -> dict[str, bytes]:
    order = ["metric", "part", "run", "round", "device"]  # like beside like: half the size
    metrics = tables.metrics.sort_values(order, kind="stable", na_position="first")
    columns = {
        **{name: _dictionary(metrics[name]) for name in ("metric", "part", "run")},
        "round": pa.array(metrics["round"], pa.int16()),
        "device": pa.array(metrics["device"].astype("Int16"), pa.int16()),
        # Seven digits are more than any figure shows.
        "value": pa.array(metrics["value"].astype("float32"), pa.float32()),
    }
    options = {name: _dictionary(tables.settings[name]) for name in ("run", "option", "value")}
    return {
        "runs": tables.runs.to_csv(index=False, lineterminator="\n").encode(),
        "metrics": _parquet(columns),
        "settings": _parquet(options),
        "features": tables.features.to_csv(index=False, float_format="%.5g", lineterminator="\n").encode(),
    }


def _decode(files: Mapping[str, bytes]) -> Gathered:
    runs = _read_csv(files["runs"], ["level", "seconds", *NUMBERS], _COUNTS)
    runs["finished"] = runs["finished"] == "True"
    metrics, settings = (parquet.read_table(pa.BufferReader(files[name])) for name in ("metrics", "settings"))
    numbers = pd.DataFrame(
        {
            "run": metrics["run"].to_pandas().astype("str"),
            "round": metrics["round"].to_numpy().astype("int64"),
            "metric": metrics["metric"].to_pandas().astype("category"),
            "part": metrics["part"].to_pandas().astype("category"),
            "device": metrics["device"].to_pandas().astype("Int32"),
            "value": metrics["value"].to_numpy().astype("float64"),
        }
    )
    options = pd.DataFrame({name: settings[name].to_pandas().astype("str") for name in ("run", "option", "value")})
    features = _read_csv(files["features"], ["x", "y"], ["seed"])
    for name in ("device", "class"):
        features[name] = features[name].map(float).astype("Int32")
    return Gathered(runs, numbers, options, features)


def _read_csv(content: bytes, numbers: Sequence[str], counts: Sequence[str]) -> pd.DataFrame:
    """Read text, numbers and counts; the reader's own conversion may miss the last bit of a number."""
    frame = pd.read_csv(io.BytesIO(content), dtype="str")
    for name in numbers:
        frame[name] = frame[name].map(float).astype("float64")
    return frame.astype(dict.fromkeys(counts, "int64"))


def _dictionary(column: pd.Series) -> pa.DictionaryArray:
    return pa.array(column.astype("str").to_numpy(dtype=object), pa.string()).dictionary_encode()


def _parquet(columns: Mapping[str, pa.Array]) -> bytes:
    sink = io.BytesIO()
    parquet.write_table(pa.table(dict(columns)), sink, compression="zstd", compression_level=15, store_schema=False)
    return sink.getvalue()


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
