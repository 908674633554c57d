"""The gathered tables, and these tables as files with their checksums.

`runs.csv` has a row per experiment and run, `metrics.parquet` per number of a run, `settings.parquet` per option of a
run, `features.csv` per feature in two dimensions. `SHA256SUMS` is for `sha256sum --check`, too.
"""

from __future__ import annotations

import hashlib
import io
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import pyarrow as pa
from pyarrow import parquet

from dmmlkd_ext.experiments.results import MEASUREMENT, NUMBERS, PROVENANCE
from dmmlkd_ext.training.keep.files import write_atomically
from paper_figures.collect.inputs import Results

CHECKSUMS = "SHA256SUMS"
PLACE = ("experiment", "setting", "level")
"""Columns that say which case of an experiment a row belongs to."""
RUN_COLUMNS = (*PLACE, *PROVENANCE, "seconds", "finished")
"""Columns of `runs.csv`; `seconds` of wall time, as far as they are known."""
TABLE_COLUMNS = (*PLACE, *PROVENANCE, *MEASUREMENT)
"""Columns of the table that figures are drawn from."""

_FILES = {"runs": "runs.csv", "metrics": "metrics.parquet", "settings": "settings.parquet", "features": "features.csv"}
_COUNTS = ("seed", "num_devices", "rounds", "local_iterations")
_TEXTS = ("experiment", "setting", "run", "dataset", "method", "partition", "topology", "commit")


@dataclass(frozen=True)
class Gathered:
    """The tables of some experiments."""

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

    def with_experiments_of(self, other: Gathered) -> Gathered:
        """Return these tables with the experiments of others in the place of what was kept of them."""
        renewed = set(other.runs["experiment"])
        runs = pd.concat([self.runs[~self.runs["experiment"].isin(renewed)], other.runs], ignore_index=True)
        parts = {}
        for name in ("metrics", "settings", "features"):
            kept, new = getattr(self, name), getattr(other, name)
            stays = kept["run"].isin(set(runs["run"])) & ~kept["run"].isin(set(other.runs["run"]))
            frames = [frame for frame in (kept[stays], new) if len(frame)]
            parts[name] = pd.concat(frames, ignore_index=True) if frames else new
        return decode(encode(Gathered(runs, **parts)))

    def write(self, folder: Path) -> None:
        """Write the tables and their checksums into a folder, which is made if it is not there."""
        folder.mkdir(parents=True, exist_ok=True)
        contents = {_FILES[name]: content for name, content in encode(self).items()}
        for name, content in contents.items():
            _write(folder / name, content)
        sums = "".join(f"{_digest(content)}  {name}\n" for name, content in contents.items())
        _write(folder / CHECKSUMS, sums.encode())


def read(folder: Path) -> Gathered:
    """Read the tables that were written into a folder.

    Raises:
        FileNotFoundError: a table, or the file of checksums, is not there.
        ValueError: a table has not the checksum that it was written with.
    """
    missing = [name for name in (*_FILES.values(), CHECKSUMS) if not (folder / name).is_file()]
    if missing:
        raise FileNotFoundError(
            f"results must hold {', '.join(_FILES.values())} and {CHECKSUMS}; {', '.join(missing)} is not there"
        )
    lines = (folder / CHECKSUMS).read_text(encoding="utf-8", errors="replace").splitlines()
    known = {name: digest for digest, _, name in (line.partition("  ") for line in lines)}
    contents = {name: (folder / file).read_bytes() for name, file in _FILES.items()}
    for name, file in _FILES.items():
        if _digest(contents[name]) != known.get(file):
            raise ValueError(f"{folder / file} is damaged: its SHA-256 is not that of {CHECKSUMS}")
    return decode(contents)


def encode(tables: Gathered) -> dict[str, bytes]:
    """Return the contents of the tables' files by the tables' names."""
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


def decode(files: Mapping[str, bytes]) -> Gathered:
    """Return the tables from the contents of their files."""
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


def _digest(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _write(path: Path, content: bytes) -> None:
    write_atomically(path, lambda file: file.write(content))
