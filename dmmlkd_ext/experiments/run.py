"""One run in one folder; a run that was killed and resumed ends with the same bytes.

A run's folder `<dataset>-<method>-<digest>` holds `config.json` (the resolved configuration),
`environment.json` (software, commit, processor, hashes of what was read), `metrics.jsonl` (a record per round),
`checkpoint.pt` and, written last, `result.json`, whose presence marks a finished run. Wall times go to `timings.csv`
beside the folders. Files that fail a check when a run is resumed are moved to the folder `.rejected` beside them.

Several ranks may run it together (`dmmlkd_ext.training.exchange.ranks`), in a folder that all of them see. The first
rank writes these files; each writes the rows of its devices beside `checkpoint.pt`. The result does not depend on the
number of ranks, which may change when a run is resumed.

A run on a GPU is another run than that on the CPU, with another name, as their last bits differ. It is resumed on any
GPU of the same model; on another model it starts over, as on another CPU.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any, Protocol

from dmmlkd_ext.experiments.config import ExperimentConfig, processor
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.determinism import deterministic
from dmmlkd_ext.experiments.extend import adopt_rounds, find_shorter
from dmmlkd_ext.experiments.finished import is_finished, read_json, require_unchanged, summarize
from dmmlkd_ext.experiments.inputs import hash_files_read, other_data
from dmmlkd_ext.experiments.provenance import code_version, describe_environment
from dmmlkd_ext.locks import lock_file
from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.exchange.ranks import Ranks, UnlikeRanksError
from dmmlkd_ext.training.keep.callbacks import (
    Callback,
    Checkpoint,
    ProgressBar,
    RunningSimulation,
)
from dmmlkd_ext.training.keep.checkpoints import load_checkpoint, shard_paths
from dmmlkd_ext.training.keep.divergence import DivergenceWarning
from dmmlkd_ext.training.keep.files import RunChangedError, naming, remove_temporary_files, write_text
from dmmlkd_ext.training.keep.locking import RunLockedError, run_lock
from dmmlkd_ext.training.keep.records import RecordWriter, first_lines
from dmmlkd_ext.training.keep.trackers import make_trackers
from dmmlkd_ext.training.learn import SLOWER

__all__ = [
    "RunChangedError",
    "RunLockedError",
    "code_version",
    "is_finished",
    "load_config",
    "run_experiment",
    "run_name",
]

_log = logging.getLogger(__name__)

# A run may be resumed at another commit with the same code; any other difference starts it anew.
_NO_MATTER = ("commit", "dirty")
_SEEN_WITHIN_S = 5.0
"""How late a file may appear on another host of a shared file system."""


class ResumableSimulation(RunningSimulation, Protocol):
    """A simulation that can be run, resumed and extended."""

    def run(self, callbacks: Sequence[Callback] = ()) -> None:
        """Run the remaining rounds."""

    def load_state_dict(self, state: dict[str, Any]) -> None:
        """Restore a `state_dict`."""

    def measure_again(self, record: dict[str, Any]) -> dict[str, Any]:
        """Return the record of the last round as it is where more rounds follow."""
        ...


Builder = Callable[[ExperimentConfig], ResumableSimulation]


def run_name(config: ExperimentConfig) -> str:
    """Return the name of a run's folder, which holds a hash of the configuration, its files and the code.

    Example:
        >>> run_name(ExperimentConfig()).startswith("watch-dmml-kd-")
        True
    """
    readable = f"{config.data.dataset}-{config.method.name}"
    files = hash_files_read(config)
    version = code_version() + (json.dumps(files, sort_keys=True) if files else "")
    return f"{re.sub(r'[^A-Za-z0-9._-]+', '_', readable)}-{config.digest(version)}"


def run_experiment(
    config: ExperimentConfig,
    runs_folder: Path,
    *,
    threads: int = 1,
    checkpoint_every: int = 10,
    progress: bool | None = False,
    track: Sequence[str] = (),
    extend: bool = False,
    callbacks: Sequence[Callback] = (),
    build: Builder | None = None,
    wait: bool = False,
    ranks: Ranks | None = None,
    gpu: int | None = None,
) -> Path:
    """Run one configuration to its end and return its folder; every rank calls it.

    A finished run is reused, and an interrupted run goes on from its checkpoint; both are refused if the data or the
    run's files changed. A change of the configuration, its files or the code starts a new run (`run_name`).

    Args:
        config: what to run.
        runs_folder: the folder of all runs; made if it is not there.
        threads: CPU threads of torch; the last bits may depend on it.
        checkpoint_every: rounds between checkpoints.
        progress: draw a bar; None draws it only on a terminal.
        track: trackers by name (`dmmlkd_ext.training.keep.trackers`), which write into folders in `runs_folder`.
        extend: begin where the longest finished run of fewer rounds, otherwise the same, ended.
        callbacks: further callbacks, on every rank; they must not change the training, as they are not in the hash.
        build: makes the simulation; the default is `build_simulation`, on `ranks`.
        wait: if another process runs the same configuration, wait for it and take its result.
        ranks: the processes that run it together; None is this process alone.
        gpu: the number of the GPU, where the configuration asks for one; None is the current one of torch.

    Raises:
        GpuMissingError: the GPU is not there; nothing was written.
        ValueError: an argument is out of range, the configuration does not fit its dataset or the ranks, or there is
            nothing to extend.
        ImportError: a tracker's package is not installed.
        RunLockedError: another process runs the same configuration, and `wait` is False.
        RunChangedError: the data or the run's files changed since the run started.
        OSError: a file cannot be read or written.
        UnlikeRanksError: this rank has another configuration, environment, dataset or folder than the first rank.
        FailedElsewhereError: another rank raised.
    """
    processor.require(config.torch_device, gpu)
    ranks = ranks or Ranks()
    name = run_name(config)
    folder = Path(runs_folder) / name
    lock = ExitStack()
    with deterministic(threads), processor.on_gpu(config.torch_device, gpu), lock:
        environment = {**describe_environment(threads, config.torch_device), "inputs": hash_files_read(config)}
        _require_alike(
            ranks, {"config": config.to_dict(), "checkpoint_every": checkpoint_every, "environment": environment}
        )
        if ranks.first(lambda: _is_reusable(folder, config)):
            return folder
        records = RecordWriter(folder / "metrics.jsonl", checkpoint_every)
        shown = _observers(config, Path(runs_folder), name, ranks, progress, track)
        begun = (folder / "checkpoint.pt").exists
        earlier = ranks.first(lambda: _find_shorter(config, Path(runs_folder)) if extend and not begun() else None)
        keeping = Checkpoint(folder / "checkpoint.pt", checkpoint_every, ranks, records)
        # Before anything is written: a configuration that does not fit its data is refused here.
        simulation = ranks.together(lambda: (build or partial(_build_simulation, ranks=ranks))(config))
        _note_simulation(environment, simulation, ranks)
        _require_alike(ranks, {"data": environment["inputs"].get("data")})

        def take_lock() -> None:
            path = Path(runs_folder) / ".locks" / name
            records.may_write = lock.enter_context(run_lock(path, name, wait=wait))

        ranks.first(take_lock)
        _require_shared(Path(runs_folder) / ".locks" / name, ranks)
        if ranks.first(lambda: _is_reusable(folder, config)):  # by a process that held the lock until now
            return folder
        ranks.first(lambda: _prepare(folder, config, environment))
        if earlier is not None and not ranks.first(begun):
            adopt_rounds(earlier, folder, simulation, ranks)
        _resume(folder, simulation, ranks)
        following = [keeping, *shown, *callbacks]
        _run_timed(simulation, [records, *following] if ranks.rank == 0 else following, folder, ranks)
        ranks.first(lambda: _finish(folder, config, environment, simulation.total_rounds, records.sha256))
    return folder


def _observers(
    config: ExperimentConfig, runs_folder: Path, name: str, ranks: Ranks, progress: bool | None, track: Sequence[str]
) -> list[Callback]:
    """Return the callbacks that show the progress, on the first rank."""
    if ranks.rank != 0:
        return []
    trackers = make_trackers(track, runs_folder, name, config.to_dict())
    return [*trackers, DivergenceWarning(), ProgressBar(f"{config.data.dataset} {config.method.name}", progress)]


def _find_shorter(config: ExperimentConfig, runs_folder: Path) -> Path:
    return find_shorter(config, runs_folder, run_name)


def _is_reusable(folder: Path, config: ExperimentConfig) -> bool:
    if not is_finished(folder):
        return False
    require_unchanged(folder, config)
    return True


def _build_simulation(config: ExperimentConfig, ranks: Ranks) -> ResumableSimulation:
    from dmmlkd_ext.experiments.build import build_simulation

    simulation: ResumableSimulation = build_simulation(config, ranks)
    return simulation


def _note_simulation(environment: dict[str, Any], simulation: ResumableSimulation, ranks: Ranks) -> None:
    """Add the hash of the data and the tier that trains, where the simulation has these attributes."""
    data, tier = (getattr(simulation, name, None) for name in ("data_sha256", "local_training"))
    if data is not None:
        environment["inputs"] = {**environment["inputs"], "data": data}
    if tier is None:
        return
    environment["local_training"] = tier
    if tier != "native" and backend() == "native" and "gpu" not in environment and ranks.rank == 0:
        reason = tier.removeprefix("reference: ")
        _log.warning("devices train by the reference, since %s; that takes %s as long", reason, SLOWER)


def _require_alike(ranks: Ranks, settings: dict[str, Any]) -> None:
    """Refuse ranks whose settings differ from the first rank's.

    Raises:
        UnlikeRanksError: this rank's differ; the message names what differs.
        FailedElsewhereError: another rank's differ.
    """
    first = ranks.everyone(settings)[0]

    def check() -> None:
        differing = list(_differences(first, settings))
        if differing:
            raise UnlikeRanksError(f"rank {ranks.rank} must be started like rank 0, got another {', '.join(differing)}")

    ranks.together(check)


def _require_shared(lock: Path, ranks: Ranks) -> None:
    """Refuse ranks that do not see the file of the run's lock, in which the first rank wrote its process id.

    Raises:
        UnlikeRanksError: this rank does not see it.
        FailedElsewhereError: another rank does not.
    """
    holder = ranks.first(os.getpid)

    def check() -> None:
        deadline = time.monotonic() + _SEEN_WITHIN_S
        while not (lock.exists() and lock.read_text(encoding="utf-8").strip() == str(holder)):
            if time.monotonic() > deadline:
                runs = lock.parent.parent.absolute()
                raise UnlikeRanksError(
                    f"--runs must name a folder that all ranks see, got {runs}, which rank 0 does not share"
                )
            time.sleep(0.1)

    ranks.together(check)


def _differences(first: Mapping[str, Any], other: Mapping[str, Any], before: str = "") -> list[str]:
    """Return what differs in nested tables, such as `seed (1 for 0)`."""
    found = []
    for key in [*first, *(key for key in other if key not in first)]:
        one, two = first.get(key), other.get(key)
        if key in _NO_MATTER or one == two:
            continue
        if isinstance(one, Mapping) and isinstance(two, Mapping):
            found += _differences(one, two, f"{before}{key}.")
        else:
            found.append(f"{before}{key} ({two!r} for {one!r})")
    return found


def _prepare(folder: Path, config: ExperimentConfig, environment: dict[str, Any]) -> None:
    """Write the configuration and the environment, and set aside rounds that another environment computed.

    Raises:
        RunChangedError: the existing rounds were computed from other data.
    """
    folder.mkdir(parents=True, exist_ok=True)
    remove_temporary_files(folder)
    write_text(folder / "config.json", _json(config.to_dict()))
    path = folder / "environment.json"
    if path.exists():
        try:
            earlier = read_json(path)
        except ValueError as error:
            _start_over(folder, str(error))
        else:
            before, now = earlier.get("inputs", {}).get("data"), environment["inputs"].get("data")
            if before is not None and now is not None and before != now:
                raise other_data(folder.name, config.data.dataset, before, now)
            differing = _differences(earlier, environment)
            if not differing:
                return
            _start_over(folder, f"it was begun with another {', '.join(differing)}")
    write_text(path, _json(environment))


def _resume(folder: Path, simulation: ResumableSimulation, ranks: Ranks) -> None:
    """Load the checkpoint, if there is one and every rank's part of it is valid.

    Raises:
        OSError: a file cannot be read; it may be valid, so it is kept.
    """
    path = folder / "checkpoint.pt"
    if not ranks.first(path.exists):
        return

    def load() -> tuple[dict[str, Any], str | None]:
        try:
            state = load_checkpoint(path, ranks)
        except (FileNotFoundError, ValueError) as error:
            return {}, str(error)
        return state, _records_reason(folder / "metrics.jsonl", state)

    state, reason = ranks.together(load)
    reasons = [reason for reason in ranks.everyone(reason) if reason is not None]
    if reasons:
        ranks.first(lambda: _start_over(folder, reasons[0]))
    else:
        ranks.together(lambda: simulation.load_state_dict(state))


def _records_reason(path: Path, state: dict[str, Any]) -> str | None:
    """Return why the records do not belong to a checkpoint, or None if they do."""
    known = first_lines(path.read_bytes() if path.exists() else b"", state["round"])
    if known.count(b"\n") < state["round"]:
        return f"{path.name} holds {known.count(10)} of the checkpoint's {state['round']} rounds"
    if hashlib.sha256(known).hexdigest() != state.get("records_sha256"):
        return f"{path.name} holds other records than the checkpoint was made with"
    return None


def _start_over(folder: Path, reason: str) -> None:
    """Set aside the checkpoint and the records of a run."""
    path = folder / "checkpoint.pt"
    rejected = [file for file in (path, folder / "metrics.jsonl", *shard_paths(path)) if file.exists()]
    if not rejected:
        return
    attempts = folder.parent / ".rejected"
    number = 1 + sum(1 for _ in attempts.glob(f"{folder.name}-*"))
    aside = attempts / f"{folder.name}-{number}"
    aside.mkdir(parents=True)
    for file in rejected:
        file.rename(aside / file.name)
    _log.warning("run %s starts over: %s; what it had is in %s", folder.name, reason, aside)


def _finish(
    folder: Path, config: ExperimentConfig, environment: dict[str, Any], rounds: int, records_sha256: str
) -> None:
    """Write `result.json`, unless a file of the run was changed or removed meanwhile (`RunChangedError`)."""
    for name, written in (("config.json", config.to_dict()), ("environment.json", environment)):
        try:
            same = not _differences(read_json(folder / name), json.loads(_json(written)))
        except (OSError, ValueError):
            same = False
        if not same:
            raise RunChangedError(f"{folder / name} was changed or removed while its run was on; start it again")
    write_text(folder / "result.json", _json(summarize(folder, config, rounds, records_sha256)))


def _run_timed(simulation: ResumableSimulation, callbacks: Sequence[Callback], folder: Path, ranks: Ranks) -> None:
    first, started = simulation.round, time.perf_counter()
    try:
        simulation.run(callbacks)
    finally:
        seconds = time.perf_counter() - started
        if ranks.rank == 0:
            append_timing(folder.parent / "timings.csv", folder.name, first, simulation.round, seconds)


def append_timing(path: Path, run: str, first_round: int, last_round: int, seconds: float) -> None:
    """Append the wall time of a range of rounds, in seconds, to a table that processes share."""
    with naming(path), path.open("a", encoding="utf-8") as file:
        lock_file(file)
        if file.seek(0, 2) == 0:
            file.write("run,first_round,last_round,seconds\n")
        file.write(f"{run},{first_round},{last_round},{seconds:.3f}\n")


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, indent=2) + "\n"
