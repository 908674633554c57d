"""Many runs on the cores or GPUs of a machine, one process per run, so that a crash ends one run alone."""

from __future__ import annotations

import multiprocessing
import os
import signal
import sys
import traceback
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from multiprocessing.context import BaseContext
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import torch
from typing_extensions import override

from dmmlkd_ext.experiments.config import ExperimentConfig, processor
from dmmlkd_ext.experiments.finished import is_finished, require_unchanged
from dmmlkd_ext.experiments.provenance import Identity, adopt_identity, identity
from dmmlkd_ext.experiments.run import Builder, run_experiment, run_name
from dmmlkd_ext.training.keep.callbacks import Callback, RunningSimulation
from dmmlkd_ext.training.keep.files import RunChangedError

_IMPORTED_AGAIN = 79
"""Exit code of a process that called `run_sweep` while importing the main script; not 1 or 2, which Python uses."""
_NO_GUARD = (
    "run_sweep must be called below `if __name__ == '__main__':` in {}: the processes that it starts import that file"
)


@dataclass(frozen=True)
class SweepReport:
    """The folders of all finished runs, how many of them were reused, and which runs failed."""

    folders: tuple[Path, ...]
    reused: int
    failures: dict[str, Path] = field(default_factory=dict)
    """Name of a failed run -> the log with its traceback."""


def parse_shard(text: str) -> tuple[int, int]:
    """Read a shard such as ``2/3``, the second of three.

    Raises:
        ValueError: `text` is not of that form, or the first number is not within 1 and the second.

    Example:
        >>> parse_shard("2/3")
        (2, 3)
    """
    index, slash, count = text.partition("/")
    if not (slash and index.isdecimal() and count.isdecimal() and 1 <= int(index) <= int(count)):
        raise ValueError(f"shard must be i/n with 1 <= i <= n, such as 1/2; got {text!r}")
    return int(index), int(count)


def select_shard(configs: Sequence[ExperimentConfig], index: int, count: int) -> list[ExperimentConfig]:
    """Return every `count`-th configuration from the `index`-th on, counted from 1: machines can share a list.

    Example:
        >>> configs = [ExperimentConfig(seed=seed) for seed in range(5)]
        >>> [config.seed for config in select_shard(configs, 2, 3)]
        [1, 4]
    """
    return list(configs[index - 1 :: count])


def available_cores() -> int:
    """Return the number of cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def run_sweep(
    configs: Iterable[ExperimentConfig],
    runs_folder: Path,
    *,
    workers: int | None = None,
    threads: int = 1,
    checkpoint_every: int = 10,
    progress: bool | None = None,
    track: Sequence[str] = (),
    build: Builder | None = None,
    gpu: int | None = None,
) -> SweepReport:
    """Run many configurations in parallel and report them; finished runs are reused.

    A run that raises, or whose process dies, is reported with a log in the folder `logs` of the runs folder, and the
    other runs go on. After an interruption, the same call goes on from the checkpoints.

    Args:
        configs: what to run; a configuration that occurs twice runs once.
        runs_folder: the folder of all runs.
        workers: processes at a time; None takes one for every `threads` cores, or one per GPU where all runs need one.
        threads: CPU threads of torch in each process.
        checkpoint_every: rounds between checkpoints.
        progress: draw a bar over the rounds of all runs with the time left; None draws it only on a terminal.
        track: trackers by name, as of `run_experiment`.
        build: makes a simulation, a function that processes can import; the default is `build_simulation`.
        gpu: the number of the GPU for the runs that need one; None places each on the GPU that has the fewest.

    Raises:
        GpuMissingError: there is no such GPU, and a run needs one; nothing was written.
        ValueError: `workers` or `threads` is below 1.
        RuntimeError: the script that calls this has no main guard.
    """
    if getattr(multiprocessing.current_process(), "_inheriting", False):
        os._exit(_IMPORTED_AGAIN)  # a process of a sweep imports the main script first, which called this again
    if threads < 1:
        raise ValueError(f"threads must be at least 1, got {threads}")
    if workers is not None and workers < 1:
        raise ValueError(f"workers must be at least 1, got {workers}")
    runs_folder = Path(runs_folder)
    by_name = {run_name(config): config for config in configs}
    pending = {name: config for name, config in by_name.items() if not is_finished(runs_folder / name)}
    on_gpus = [config for config in pending.values() if config.torch_device == "cuda"]
    if on_gpus:
        processor.require("cuda", gpu)
    gpus = [gpu] if gpu is not None else list(range(torch.cuda.device_count() if on_gpus else 0))
    failures = _check_finished({name: by_name[name] for name in by_name if name not in pending}, runs_folder)
    reused = len(by_name) - len(pending) - len(failures)
    options = {"threads": threads, "checkpoint_every": checkpoint_every, "track": track, "build": build}
    if workers is None:
        workers = len(gpus) if on_gpus and len(on_gpus) == len(pending) else max(1, available_cores() // threads)
    if pending:
        failures |= _Sweep(pending, runs_folder, options, workers, progress, gpus).run()
    folders = tuple(runs_folder / name for name in by_name if name not in failures)
    return SweepReport(folders, reused, failures)


def _check_finished(finished: dict[str, ExperimentConfig], runs_folder: Path) -> dict[str, Path]:
    """Return the finished runs that must not be reused, each with the log that gives the reason."""
    failures = {}
    for name, config in finished.items():
        try:
            require_unchanged(runs_folder / name, config)
        except (RunChangedError, ValueError) as error:
            failures[name] = _log_of(runs_folder, name)
            failures[name].parent.mkdir(parents=True, exist_ok=True)
            failures[name].write_text(f"{error}\n", encoding="utf-8")
    return failures


def _log_of(runs_folder: Path, name: str) -> Path:
    return runs_folder / "logs" / f"{name}.log"


@dataclass
class _Job:
    """A run in its process."""

    name: str
    process: BaseProcess
    rounds: Connection | None
    """Receives the number of completed rounds; None once the process closed its end."""
    gpu: int | None
    total: int
    """Rounds of the whole run."""
    done: int = 0


class _Sweep:
    """Keeps `workers` processes busy until nothing is left to start."""

    def __init__(
        self,
        pending: dict[str, ExperimentConfig],
        runs_folder: Path,
        options: dict[str, Any],
        workers: int,
        progress: bool | None,
        gpus: Sequence[int] = (),
    ) -> None:
        from tqdm import tqdm

        self.waiting = list(pending.items())
        self.runs_folder = runs_folder
        self.options = options
        self.workers, self.gpus = workers, gpus
        self.running: list[_Job] = []
        self.failures: dict[str, Path] = {}
        self.context = _context()
        self.finished = 0
        self.count = len(pending)
        self.bar = tqdm(
            total=sum(config.training.rounds for config in pending.values()),
            unit="round",
            desc=f"0/{self.count} runs",
            smoothing=0.02,
            disable=None if progress is None else not progress,
            file=sys.stderr,
        )

    def run(self) -> dict[str, Path]:
        try:
            while self.waiting or self.running:
                while self.waiting and len(self.running) < self.workers:
                    self._start(*self.waiting.pop(0))
                self._listen()
        finally:
            for job in self.running:  # only when interrupted
                job.process.terminate()
            self.bar.close()
        return self.failures

    def _start(self, name: str, config: ExperimentConfig) -> None:
        receiver, sender = self.context.Pipe(duplex=False)
        log = _log_of(self.runs_folder, name)
        log.parent.mkdir(parents=True, exist_ok=True)
        gpu = self._place() if config.torch_device == "cuda" else None
        arguments = (identity(), name, config, self.runs_folder, {**self.options, "gpu": gpu}, sender, log)
        process = self.context.Process(  # type: ignore[attr-defined]
            target=_run_in_process, args=arguments, name=name, daemon=True
        )
        process.start()
        sender.close()  # only the child's end stays open, so its death closes the pipe
        self.running.append(_Job(name, process, receiver, gpu, config.training.rounds))

    def _place(self) -> int:
        """Return the GPU on which the fewest runs are, of several the first: at the start, one after the other."""
        taken = Counter(job.gpu for job in self.running)
        return min(self.gpus, key=lambda gpu: taken[gpu])

    def _listen(self) -> None:
        """Wait until a process reports its rounds or ends."""
        sources: list[Any] = [job.process.sentinel for job in self.running]
        sources += [job.rounds for job in self.running if job.rounds is not None]
        ready = wait(sources)
        for job in list(self.running):
            if job.rounds in ready:
                self._advance(job)
            if job.process.sentinel in ready:
                self._end(job)

    def _advance(self, job: _Job) -> None:
        while job.rounds is not None and job.rounds.poll():
            try:
                done = job.rounds.recv()
            except EOFError:
                job.rounds.close()
                job.rounds = None
                return
            self.bar.update(done - job.done)
            job.done = done

    def _end(self, job: _Job) -> None:
        self._advance(job)
        self.bar.update(job.total - job.done)  # those of a run that stopped early or failed, which are not left to do
        job.process.join()
        self.running.remove(job)
        log = _log_of(self.runs_folder, job.name)
        if job.process.exitcode == _IMPORTED_AGAIN:
            raise RuntimeError(_NO_GUARD.format(getattr(sys.modules["__main__"], "__file__", "the script")))
        if job.process.exitcode != 0:
            _note_death(log, job.process.exitcode)
            self.failures[job.name] = log
            self.bar.write(f"run {job.name} failed; see {log}", file=sys.stderr)
        elif log.exists() and log.stat().st_size == 0:
            log.unlink()
        self.finished += 1
        failed = f", {len(self.failures)} failed" if self.failures else ""
        self.bar.set_description(f"{self.finished}/{self.count} runs{failed}")


def _context() -> BaseContext:
    """Return the start method: processes forked from a server that has imported torch already.

    A plain fork may copy locks that other threads hold; a spawned process takes seconds to import.
    """
    if "forkserver" not in multiprocessing.get_all_start_methods():
        return multiprocessing.get_context("spawn")
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["dmmlkd_ext.experiments.run", "dmmlkd_ext.experiments.build"])
    return context


def _run_in_process(
    code: Identity,
    name: str,
    config: ExperimentConfig,
    runs_folder: Path,
    options: dict[str, Any],
    rounds: Connection,
    log: Path,
) -> None:
    """Run one configuration in this process, with its output in a log."""
    adopt_identity(code)
    with log.open("w", encoding="utf-8") as file:
        for stream in (1, 2):  # also what native code prints
            os.dup2(file.fileno(), stream)
        try:
            if run_name(config) != name:
                raise RunChangedError(f"a file or module that run {name} reads was changed since the sweep began")
            # Another sweep may be running it, or a process of a sweep that was killed a moment ago.
            run_experiment(config, runs_folder, callbacks=[_TellRounds(rounds)], wait=True, **options)
        except BaseException:
            traceback.print_exc(file=file)
            file.flush()
            sys.exit(1)


def _note_death(log: Path, exit_code: int | None) -> None:
    if exit_code is not None and exit_code < 0:
        with log.open("a", encoding="utf-8") as file:
            file.write(f"the process was ended by signal {signal.Signals(-exit_code).name}\n")


class _TellRounds(Callback):
    """Sends the number of completed rounds to the sweep; if the sweep has ended, ends the run too."""

    def __init__(self, connection: Connection) -> None:
        self.connection = connection

    @override
    def on_start(self, simulation: RunningSimulation) -> None:
        self.connection.send(simulation.round)

    @override
    def on_round_end(self, simulation: RunningSimulation, record: dict[str, Any]) -> None:
        self.connection.send(simulation.round)
