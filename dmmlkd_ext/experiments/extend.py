"""A finished run, continued to more rounds with the bits of an uninterrupted one."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, Protocol

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.finished import is_finished, read_certified, require_unchanged
from dmmlkd_ext.training.exchange.ranks import Ranks
from dmmlkd_ext.training.keep.checkpoints import load_checkpoint, save_checkpoint
from dmmlkd_ext.training.keep.files import write_atomically
from dmmlkd_ext.training.keep.records import encode_record


class ExtensionError(ValueError):
    """A run cannot be extended; the message says why."""


class ExtensibleSimulation(Protocol):
    """What is used of a simulation of more rounds."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""

    def state_dict(self) -> dict[str, Any]:
        """Return everything that a resumed run needs."""
        ...

    def measure_again(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record of the last round as it is where more rounds follow."""
        ...


def require_extensible(config: ExperimentConfig) -> None:
    """Refuse a configuration whose first rounds depend on how many rounds follow.

    Raises:
        ExtensionError: the message names the setting.

    Example:
        >>> require_extensible(ExperimentConfig())
        Traceback (most recent call last):
        ...
        dmmlkd_ext.experiments.extend.ExtensionError: training.final_learning_rate_fraction must be 1 ...
    """
    training, energy = config.training, config.energy
    if training.final_learning_rate_fraction != 1:
        raise ExtensionError(
            "training.final_learning_rate_fraction must be 1 for a run that is extended, as a learning rate that falls "
            f"depends on the number of rounds; got {training.final_learning_rate_fraction:g}"
        )
    for name in ("budget_fraction", "budget_joule"):
        if getattr(energy, name) is not None:
            raise ExtensionError(
                f"energy.{name} must be None for a run that is extended, as energy is shared out over all rounds; got "
                f"{getattr(energy, name):g}"
            )
    if training.patience:
        raise ExtensionError(f"training.patience must be 0 for a run that is extended, got {training.patience}")


def find_shorter(config: ExperimentConfig, runs_folder: Path, name_of: Callable[[ExperimentConfig], str]) -> Path:
    """Return the folder of the longest finished run that differs from a configuration by fewer rounds alone.

    Args:
        config: of the longer run.
        runs_folder: the folder of all runs.
        name_of: returns the name of a configuration's folder, under this version of the code.

    Raises:
        ExtensionError: there is none, or it cannot be extended.
        RunChangedError: its files or data were changed.
    """
    require_extensible(config)
    best: ExperimentConfig | None = None
    for path in sorted(Path(runs_folder).glob("*/config.json")):
        try:
            rounds = json.loads(path.read_text(encoding="utf-8"))["training"]["rounds"]
            shorter = replace(config, training=replace(config.training, rounds=int(rounds)))
            if path.parent.name != name_of(shorter) or load_config(path) != shorter:
                continue
        except (OSError, ValueError, KeyError, TypeError):  # another run, or none
            continue
        fewer = shorter.training.rounds < config.training.rounds
        if fewer and is_finished(path.parent) and (best is None or shorter.training.rounds > best.training.rounds):
            best = shorter
    if best is None:
        raise ExtensionError(
            f"extend needs a finished run of this configuration and this version of the code with fewer than "
            f"{config.training.rounds} rounds in {runs_folder}; there is none"
        )
    folder = Path(runs_folder) / name_of(best)
    require_unchanged(folder, best)
    return folder


def adopt_rounds(earlier: Path, folder: Path, simulation: ExtensibleSimulation, ranks: Ranks) -> None:
    """Write checkpoint and records of a shorter run into the folder of a longer one; every rank calls it.

    The last record is measured again, as the last round of a run is judged by more samples than the others.

    Raises:
        OSError: a file cannot be read or written.
        ValueError: the checkpoint or the records of the shorter run are damaged.
    """
    state = ranks.together(lambda: load_checkpoint(earlier / "checkpoint.pt", ranks))
    ranks.together(lambda: simulation.load_state_dict(state))
    lines = read_certified(earlier).splitlines(keepends=True)
    content = b"".join(lines[:-1]) + encode_record(simulation.measure_again(json.loads(lines[-1])))
    ranks.first(lambda: write_atomically(folder / "metrics.jsonl", lambda file: file.write(content)))
    told = {**simulation.state_dict(), "records_sha256": hashlib.sha256(content).hexdigest()}
    save_checkpoint(folder / "checkpoint.pt", told, ranks)
