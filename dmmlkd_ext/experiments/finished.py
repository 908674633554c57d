"""A finished run: the hashes that certify it, and the check that its files still match them."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.inputs import require_same_data
from dmmlkd_ext.training.keep.files import RunChangedError


def is_finished(folder: Path) -> bool:
    """Return whether a run's folder holds a finished run."""
    return (folder / "result.json").exists()


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of a run that holds an object.

    Raises:
        OSError: the file cannot be read.
        ValueError: it holds something else; the message names the file.
    """
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # of the text's encoding, too
        raise ValueError(f"path must be a JSON file, {path} is not: {error}") from error
    if not isinstance(content, dict):
        raise ValueError(f"path must be a JSON file of a table, {path} holds {type(content).__name__}")
    return content


def read_certified(folder: Path) -> bytes:
    """Return the records of a finished run, as they are in the file.

    Raises:
        OSError: a file is not there or cannot be read.
        ValueError: the records are not those that the run finished with.
    """
    content, path = (folder / "metrics.jsonl").read_bytes(), folder / "result.json"
    certified = read_json(path).get("metrics_sha256")
    if certified is None:
        raise ValueError(f"{path} lacks the hash of the records")
    if hashlib.sha256(content).hexdigest() != certified:
        raise ValueError(f"run {folder.name} has other records in metrics.jsonl than it finished with")
    return content


def require_unchanged(folder: Path, config: ExperimentConfig) -> None:
    """Refuse to reuse a finished run whose files or data were changed.

    Raises:
        RunChangedError: the message says what changed.
        ValueError: the run's dataset cannot be loaded as the configuration says.
    """
    try:
        read_certified(folder)
        if load_config(folder).to_dict() != config.to_dict():
            raise ValueError(f"{folder / 'config.json'} holds another configuration")
        recorded = read_json(folder / "environment.json").get("inputs", {}).get("data")
    except (OSError, ValueError) as error:
        raise RunChangedError(
            f"run {folder.name} is finished, but was changed since: {error}; remove its folder to run it again"
        ) from error
    if recorded is not None:
        require_same_data(config, folder.name, recorded)


def summarize(folder: Path, config: ExperimentConfig, rounds: int, records_sha256: str) -> dict[str, Any]:
    """Return the content of `result.json`, which certifies a run that has just finished.

    Raises:
        RunChangedError: the folder does not hold what was written.
    """
    content = (folder / "metrics.jsonl").read_bytes()
    records = [json.loads(line) for line in content.splitlines()]
    if hashlib.sha256(content).hexdigest() != records_sha256 or [record["round"] for record in records] != list(
        range(1, rounds + 1)
    ):
        raise RunChangedError(f"{folder / 'metrics.jsonl'} must hold the records of rounds 1 to {rounds}")
    last = records[-1]
    test = [value for value in (last.get("accuracy") or {}).get("test", []) if value is not None]
    return {
        "run": folder.name,
        "dataset": config.data.dataset,
        "method": config.method.name,
        "seed": config.seed,
        "rounds": last["round"],
        "test_accuracy_mean": sum(test) / len(test) if test else None,
        "test_accuracy_worst": min(test) if test else None,
        "metrics_sha256": hashlib.sha256(content).hexdigest(),
    }
