"""One run, one folder: started, killed and started again, it ends with the same bytes.

A run's folder `<dataset>-<method>-<digest>` holds `config.json` (the resolved configuration),
`environment.json` (software, commit, processor), `metrics.jsonl` (a record a round), `checkpoint.pt` and,
written last, `result.json`: where it is, the run is finished. What differs from one time to the next, such
as wall time, goes to `timings.csv` beside the folders.

Several ranks may run it together (`dmmlkd_ext.training.exchange.ranks`), in a folder that all of them see. The first
one writes all of these files; each leaves the rows of its devices beside `checkpoint.pt`. How many there are is no part
of the result: another number of them goes on from what these left.
"""

from __future__ import annotations

import fcntl
import hashlib
import json
import logging
import re
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.determinism import deterministic
from dmmlkd_ext.experiments.loading import load_config
from dmmlkd_ext.experiments.provenance import code_version, describe_environment
from dmmlkd_ext.plugins import module_version
from dmmlkd_ext.training.exchange.ranks import Ranks
from dmmlkd_ext.training.keep.callbacks import (
    Callback,
    Checkpoint,
    ProgressBar,
    RecordWriter,
    RunningSimulation,
    TensorBoard,
)
from dmmlkd_ext.training.keep.checkpoints import load_checkpoint, remove_shards
from dmmlkd_ext.training.keep.files import remove_temporary_files, write_text
from dmmlkd_ext.training.keep.locking import RunLockedError, run_lock

__all__ = ["RunLockedError", "code_version", "is_finished", "load_config", "run_experiment", "run_name"]

_log = logging.getLogger(__name__)

# A run may go on at another commit whose code is the same; anything else that differs starts it anew.
_NO_MATTER = ("commit", "dirty")


class ResumableSimulation(RunningSimulation, Protocol):
    """A simulation that can be run and resumed."""

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Run the remaining rounds."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Go to the round that the state was taken at."""


Builder = Callable[[ExperimentConfig], ResumableSimulation]


def run_name(config: ExperimentConfig) -> str:
    """Return the name of a run's folder under the current code.

    Example:
        >>> run_name(ExperimentConfig()).startswith("watch-dmml-kd-")
        True
    """
    readable = f"{config.data.dataset}-{config.method.name}"
    version = code_version() + "".join(map(module_version, config.module))
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)}-{config.digest(version)}"


def is_finished(folder: Path) -> bool:
    """Return whether a run's folder holds a finished run."""
    return (folder / "result.json").exists()


def run_experiment(
    config: ExperimentConfig,
    runs_folder: Path,
    *,
    threads: int = 1,
    checkpoint_every: int = 10,
    progress: bool | None = False,
    tensorboard: bool = False,
    callbacks: Sequence[Callback] = (),
    build: Builder | None = None,
    wait: bool = False,
    ranks: Ranks | None = None,
) -> Path:
    """Run one configuration to its end, or what is left of it, and return its folder; every rank calls it.

    A finished run is reused. The folder's name holds a hash of configuration and code, so that a change of
    either starts a new run. A run that was killed goes on from its checkpoint.

    Args:
        config: what to run.
        runs_folder: the folder of all runs; made if it is not there.
        threads: CPU threads of torch; part of what the last bits depend on.
        checkpoint_every: rounds between checkpoints.
        progress: draw a bar; None draws it only on a terminal.
        tensorboard: also write events to the folder `tensorboard` in `runs_folder`.
        callbacks: further callbacks, on every rank. They may watch but not steer: the folder's name does not know them.
        build: makes the simulation; the default is the real one, on `ranks`.
        wait: where another process runs the same configuration, wait for it and take its result.
        ranks: the processes that run it together; None is this one alone.

    Raises:
        ValueError: an argument is out of range, or the configuration does not fit its dataset or the ranks.
        RunLockedError: another process runs the same configuration, and `wait` is False.
        FailedElsewhereError: one of these happened on another rank.
    """
    ranks = ranks or Ranks()
    name = run_name(config)
    folder = Path(runs_folder) / name
    environment = describe_environment(threads)
    if ranks.first(lambda: is_finished(folder)):
        return folder
    following: list[Callback] = [Checkpoint(folder / "checkpoint.pt", checkpoint_every, ranks)]
    if tensorboard and ranks.rank == 0:
        following.append(TensorBoard(Path(runs_folder) / "tensorboard" / name))
    following += callbacks
    writing: list[Callback] = []
    if ranks.rank == 0:
        writing.append(RecordWriter(folder / "metrics.jsonl", checkpoint_every))
        following.append(ProgressBar(f"{config.data.dataset} {config.method.name}", progress))
    lock = ExitStack()
    with deterministic(threads), lock:
        first_environment = ranks.everyone(environment)[0]
        ranks.together(lambda: _check_alike(environment, first_environment))
        # Before anything is written: a configuration that does not fit its data is refused here.
        simulation = ranks.together(lambda: (build or partial(_build_simulation, ranks=ranks))(config))
        ranks.first(lambda: lock.enter_context(run_lock(Path(runs_folder) / ".locks" / name, name, wait=wait)))
        if ranks.first(lambda: is_finished(folder)):  # by a process that held the lock until now
            return folder
        ranks.first(lambda: _prepare(folder, config, environment))
        _resume(folder, simulation, ranks)
        _run_timed(simulation, [*writing, *following], folder, ranks)
        ranks.first(lambda: _write_json(folder / "result.json", _summarize(folder, config)))
    return folder


def _build_simulation(config: ExperimentConfig, ranks: Ranks) -> ResumableSimulation:
    from dmmlkd_ext.experiments.build import build_simulation

    simulation: ResumableSimulation = build_simulation(config, ranks)
    return simulation


def _check_alike(environment: dict[str, Any], first: dict[str, Any]) -> None:
    """Refuse a rank whose software or processor differs from the first one's, which would change the bits."""
    differing = [
        key for key in sorted({*environment, *first} - {*_NO_MATTER}) if environment.get(key) != first.get(key)
    ]
    if differing:
        shown = ", ".join(f"{key} {environment.get(key)!r} for {first.get(key)!r}" for key in differing)
        raise ValueError(f"all ranks must have the same environment, got another {shown}")


def _prepare(folder: Path, config: ExperimentConfig, environment: dict[str, Any]) -> None:
    """Write what is known before the first round, and drop rounds that another environment computed."""
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    if not (folder / "config.json").exists():
        _write_json(folder / "config.json", config.to_dict())
    path = folder / "environment.json"
    if path.exists():
        earlier = json.loads(path.read_text(encoding="utf-8"))
        differing = [
            key for key in sorted({*earlier, *environment} - {*_NO_MATTER}) if earlier.get(key) != environment.get(key)
        ]
        if not differing:
            return
        _start_over(folder, f"it was begun with another {', '.join(differing)}")
    _write_json(path, environment)


def _resume(folder: Path, simulation: ResumableSimulation, ranks: Ranks) -> None:
    """Go to the round of the checkpoint, if there is one that every rank can trust."""
    path = folder / "checkpoint.pt"
    if not ranks.first(path.exists):
        return
    reason: str | None = None
    state: dict[str, Any] = {}
    try:
        state = load_checkpoint(path)
    except (FileNotFoundError, ValueError) as error:
        reason = str(error)
    else:
        metrics = folder / "metrics.jsonl"
        written = metrics.read_bytes().count(b"\n") if metrics.exists() else 0
        if written < int(state["round"]):
            reason = f"metrics.jsonl holds {written} of the checkpoint's {state['round']} rounds"
    reasons = [reason for reason in ranks.everyone(reason) if reason is not None]
    if reasons:
        ranks.first(lambda: _start_over(folder, reasons[0]))
    else:
        ranks.together(lambda: simulation.load_state_dict(state))


def _start_over(folder: Path, reason: str) -> None:
    _log.warning("run %s starts over: %s", folder.name, reason)
    for name in ("checkpoint.pt", "metrics.jsonl"):
        (folder / name).unlink(missing_ok=True)
    remove_shards(folder / "checkpoint.pt")


def _run_timed(simulation: ResumableSimulation, callbacks: Sequence[Callback], folder: Path, ranks: Ranks) -> None:
    first, started = simulation.round, time.perf_counter()
    try:
        simulation.run(callbacks)
    finally:
        seconds = time.perf_counter() - started
        if ranks.rank == 0:
            append_timing(folder.parent / "timings.csv", folder.name, first, simulation.round, seconds)


def append_timing(path: Path, run: str, first_round: int, last_round: int, seconds: float) -> None:
    """Append how long some rounds of a run took, in seconds of wall time, to a table that processes share."""
    with path.open("a", encoding="utf-8") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        if file.seek(0, 2) == 0:
            file.write("run,first_round,last_round,seconds\n")
        file.write(f"{run},{first_round},{last_round},{seconds:.3f}\n")


def _summarize(folder: Path, config: ExperimentConfig) -> dict[str, Any]:
    content = (folder / "metrics.jsonl").read_bytes()
    last = json.loads(content.splitlines()[-1])
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


def _write_json(path: Path, data: dict[str, Any]) -> None:
    write_text(path, json.dumps(data, indent=2) + "\n")
