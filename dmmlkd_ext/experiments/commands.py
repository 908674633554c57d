"""The commands of `dmmlkd`, as dataclasses: their fields are the options."""

from __future__ import annotations

import math
import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated, Any, Protocol

import tyro

from dmmlkd_ext.data import ChecksumError, DataUnavailableError, available_datasets
from dmmlkd_ext.data.sources.fetch import data_folders
from dmmlkd_ext.experiments.config import ExperimentConfig, processor
from dmmlkd_ext.experiments.config.settings import override_settings, read_grid, read_loader_options, told_budget
from dmmlkd_ext.experiments.config.sources import begin
from dmmlkd_ext.experiments.config.worlds import Level
from dmmlkd_ext.experiments.extend import ExtensionError
from dmmlkd_ext.experiments.provenance import describe_environment
from dmmlkd_ext.experiments.run import ResumableSimulation, RunChangedError, RunLockedError, run_experiment
from dmmlkd_ext.experiments.summary import summarize_run
from dmmlkd_ext.experiments.sweep import SweepReport, parse_shard, run_sweep, select_shard
from dmmlkd_ext.ops import backend, build_info
from dmmlkd_ext.plugins import import_modules
from dmmlkd_ext.training.exchange.liveness import RankLostError
from dmmlkd_ext.training.exchange.ranks import (
    FailedElsewhereError,
    Ranks,
    UnlikeRanksError,
    joined_ranks,
    local_rank,
    started_by_torchrun,
)
from dmmlkd_ext.training.exchange.slices import links_cut
from dmmlkd_ext.training.keep.trackers import read_trackers, require_trackers
from dmmlkd_ext.training.methods import METHODS, get_method, method_names
from dmmlkd_ext.values import read_counts


class UserError(Exception):
    """The user's request is invalid; the message says why in one line."""

    exit_code = 2


class UnavailableError(UserError):
    """The user's request is valid, but what it needs is not available now or on this machine."""

    exit_code = 1


def _require_positive(command: Any, *names: str) -> None:
    for name in names:
        value = getattr(command, name)
        if value is not None and not 1 <= value < math.inf:
            raise ValueError(f"{name} must be at least 1{'' if value < 1 else ' and finite'}, got {value}")


def _require_named(config: ExperimentConfig, method: str, dataset: str) -> None:
    """Refuse options that replace the method or dataset that the command names."""
    for setting, got, asked in (
        ("method.name", config.method.name, method),
        ("data.dataset", config.data.dataset, dataset),
    ):
        if got != asked:
            raise ValueError(f"{setting} must be the one that the command names, {asked}; got {got}")


@dataclass(frozen=True)
class RunCommand:
    """Run one method on one dataset, or what is left of the run; a finished run is reused.

    `torchrun --nproc-per-node 4 -m dmmlkd_ext run METHOD DATASET ...` runs it in four processes, each with a part of
    the devices, and with the same results. On several machines that see one folder of runs, start that on each of them
    with `--nnodes`, `--rdzv-backend c10d` and `--rdzv-endpoint`. With `--max-restarts` it goes on from the last
    checkpoint when a process is lost.
    """

    method: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="METHOD")]
    """Name of the method; `dmmlkd info` lists them."""
    dataset: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="DATASET")]
    """Name of the dataset; `dmmlkd data list` lists them."""
    config: Annotated[ExperimentConfig, tyro.conf.arg(name="")]
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """File of options in TOML or YAML, or the folder of a run, in place of METHOD and DATASET; options come on top."""
    as_reported: Level | None = None
    """Take the settings of the reported tables at this level of non-IID data: tuned, in the wireless world."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    device: str | None = None
    """The processor that simulates: `cpu`, `cuda`, `cuda:N` (the GPU of that number), or `auto` (a GPU if there is
    one); None takes that of the file of options, else the CPU. A GPU's results are a run of their own."""
    threads: int = 1
    """CPU threads of torch."""
    checkpoint_every: int = 10
    """Rounds between checkpoints."""
    track: str = ""
    """Trackers that get the numbers of every round, in folders among the runs: some of csv,tensorboard,mlflow,wandb."""
    extend: bool = False
    """Begin where a finished run ended that has fewer rounds and is otherwise the same."""
    quiet: bool = False
    """Draw no bar."""
    timeout_s: float = 300.0
    """Under torchrun: seconds that a process waits for another before it reports it as lost; more than the durations
    of their rounds differ."""

    def __post_init__(self) -> None:
        _require_positive(self, "threads", "checkpoint_every", "timeout_s")
        processor.choose(self.device)
        read_trackers(self.track)

    def checked(self) -> RunCommand:
        """Return the command with its processor, and the loader's options as the types that the loader states.

        Raises:
            UserError: the options do not fit, or make another method or dataset of it than its name says.
        """
        try:
            _require_named(self.config, self.method, self.dataset)
            kind = processor.choose(self.device)[0] or self.config.torch_device
            return replace(self, config=read_loader_options(replace(self.config, torch_device=kind)))
        except ValueError as error:
            raise UserError(str(error)) from error

    def execute(self) -> int:
        """Run, and print the folder and the final accuracy."""
        several, kind, gpu = _started_by_torchrun(), self.config.torch_device, processor.choose(self.device)[1]
        if several and gpu is not None:
            raise UserError(f"device must be cuda under torchrun: a rank's GPU is its local number; got {self.device}")
        processor.require(kind, local_rank() if several and kind == "cuda" else gpu)
        try:
            with joined_ranks(self.timeout_s, kind == "cuda") if several else nullcontext(Ranks()) as ranks:
                folder = self._run(ranks, gpu)
        except FailedElsewhereError:
            return 1  # the rank that failed says why
        except (
            DataUnavailableError,
            ChecksumError,
            RunLockedError,
            RunChangedError,
            RankLostError,
            UnlikeRanksError,
            ImportError,
        ) as error:
            raise UnavailableError(str(error)) from error
        if ranks.rank == 0:
            self._print_result(folder)
        return 0

    def _run(self, ranks: Ranks, gpu: int | None) -> Path:
        try:
            return run_experiment(
                self.config,
                self.runs,
                threads=self.threads,
                checkpoint_every=self.checkpoint_every,
                progress=False if self.quiet else None,
                track=read_trackers(self.track),
                extend=self.extend,
                build=partial(_build, ranks=ranks, quiet=self.quiet),
                ranks=ranks,
                gpu=gpu,
            )
        except (UserError, ExtensionError) as error:
            if ranks.rank == 0:
                raise UserError(str(error)) from error
            # Only this rank reports the error, so it must, whatever its number.
            raise UnavailableError(str(error)) from error

    def _print_result(self, folder: Path) -> None:
        try:
            text = summarize_run(folder)
        except (ValueError, TypeError, KeyError, IndexError) as error:
            path = folder / "result.json"
            raise UnavailableError(f"{path} is damaged ({error}); remove {folder}, so that it is run again") from error
        print(text)


@dataclass(frozen=True)
class SweepCommand:
    """Run several methods on several datasets with several seeds, on the cores or GPUs of this machine."""

    methods: tuple[str, ...] = ("local", "dmml", "dmml-kd", "dmml-kd-tb")
    """Names of methods."""
    datasets: tuple[str, ...] = ("watch", "mfeat")
    """Names of datasets."""
    seeds: tuple[str, ...] = ("0-2",)
    """Seeds, or ranges of them such as `0-9`; all methods of a seed see the same data, split and links."""
    grid: tuple[str, ...] = ()
    """Settings with the values that they take in turn: `method.losses.similarity=0,0.3,1 training.feature_width=16,32`
    makes six runs of each method, dataset and seed."""
    config_file: Annotated[Path | None, tyro.conf.arg(name="config")] = None
    """File of options in TOML or YAML that all runs begin with."""
    as_reported: Level | None = None
    """Take the settings of the reported tables at this level of non-IID data: tuned, in the wireless world."""
    module: tuple[str, ...] = ()
    """Python files or modules of your own to import first, which register a dataset for instance; may be repeated."""
    settings: Annotated[tuple[str, ...], tyro.conf.arg(name="set")] = ()
    """Settings that differ from the recommended ones, in all runs: `training.rounds=5 data.partition=iid`."""
    runs: Path = Path("runs")
    """Folder of all runs."""
    device: str | None = None
    """The processor that simulates, as for `run`; `cuda` and `auto` use all GPUs."""
    workers: int | None = None
    """Processes at a time; None takes one for every `threads` cores, or on GPUs one for each."""
    threads: int = 1
    """CPU threads of torch in each process."""
    checkpoint_every: int = 10
    """Rounds between checkpoints."""
    shard: str = "1/1"
    """Run every n-th configuration from the i-th on: `i/n`."""
    track: str = ""
    """Trackers that get the numbers of every round, in folders among the runs: some of csv,tensorboard,mlflow,wandb."""
    quiet: bool = False
    """Draw no bar."""

    def __post_init__(self) -> None:
        _require_positive(self, "workers", "threads", "checkpoint_every")
        for name in ("methods", "datasets", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be at least one, got none")
        read_counts(self.seeds, "seeds")
        parse_shard(self.shard)
        processor.choose(self.device)
        read_trackers(self.track)

    def execute(self) -> int:
        """Run all, name those that failed, and return 1 if any did."""
        if _started_by_torchrun():
            raise UserError(
                "sweep must not be started by torchrun: it starts a process a run; share it out by --shard i/n"
            )
        try:
            import_modules(*self.module)
            configs = [
                self._configure(dataset, method, seed, point)
                for dataset in self.datasets
                for method in self.methods
                for point in read_grid(self.grid)
                for seed in read_counts(self.seeds, "seeds")
            ]
        except ValueError as error:
            raise UserError(str(error)) from error
        try:
            require_trackers(read_trackers(self.track))
        except ImportError as error:
            raise UnavailableError(str(error)) from error
        report = self._sweep(configs)
        print(f"{len(report.folders)} runs finished, {report.reused} of them earlier, in {self.runs}")
        for name, log in report.failures.items():
            print(f"failed: {name}, see {log}", file=sys.stderr)
        return 1 if report.failures else 0

    def _configure(self, dataset: str, method: str, seed: int, point: tuple[str, ...]) -> ExperimentConfig:
        """Return one configuration, of a point of the grid.

        Raises:
            ValueError: a setting does not fit, or is one that the sweep varies itself.
        """
        budget = told_budget([*self.settings, *point])
        told = begin(method, dataset, seed=seed, file=self.config_file, level=self.as_reported, budget=budget)
        modules, (kind, _) = tuple(dict.fromkeys([*told.module, *self.module])), processor.choose(self.device)
        config = replace(told, seed=seed, module=modules, torch_device=kind or told.torch_device)
        changed = override_settings(override_settings(config, self.settings), point, "grid")
        _require_named(changed, method, dataset)
        for setting, instead in (("seed", "seeds"), ("module", "module"), ("torch_device", "device")):
            if getattr(changed, setting) != getattr(config, setting):
                raise ValueError(f"set and grid must not change {setting}, which --{instead} gives")
        return changed

    def _sweep(self, configs: list[ExperimentConfig]) -> SweepReport:
        return run_sweep(
            select_shard(configs, *parse_shard(self.shard)),
            self.runs,
            workers=self.workers,
            threads=self.threads,
            checkpoint_every=self.checkpoint_every,
            progress=False if self.quiet else None,
            gpu=processor.choose(self.device)[1],
            track=read_trackers(self.track),
        )


@dataclass(frozen=True)
class InfoCommand:
    """Show versions, the native extension, methods and what trains them, datasets and where data are looked for."""

    module: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Python file or module of your own to import first; may be repeated."""

    def execute(self) -> int:
        """Print it."""
        try:
            import_modules(*self.module)
        except ValueError as error:
            raise UserError(str(error)) from error
        environment = describe_environment(threads=1)
        try:
            folders = data_folders()
        except ValueError as error:
            raise UserError(str(error)) from error
        except DataUnavailableError as error:
            raise UnavailableError(str(error)) from error
        lines = {
            **{key: value for key, value in environment.items() if key not in ("build", "threads")},
            **build_info(),
            "gpus": processor.describe_gpus(),
            "methods": ", ".join(method_names()),
            "local training": _local_training(),
            "datasets": ", ".join(available_datasets()),
            "data folders": ", ".join(map(str, folders)),
        }
        width = max(map(len, lines)) + 2
        for name, value in lines.items():
            print(f"{name:{width}}{value}")
        return 0


class Command(Protocol):
    """What a command line asks for."""

    def execute(self) -> int:
        """Do it, and return the exit code.

        Raises:
            UserError: it cannot be done as asked for.
        """
        ...


def _local_training() -> str:
    """Return which tier trains the methods, and why."""
    if backend() == "reference":
        return f"reference: {build_info()['reason']}"
    on_gpus = "; on a GPU reference: native code trains on a CPU" if processor.name_gpus() else ""
    further = [name for name in method_names() if name not in METHODS and "<" not in name]
    left = [name for name in further if any(get_method(name).losses.further.values())]
    return "native" + (f", but for {', '.join(left)}: loss terms of one's own" if left else "") + on_gpus


def _started_by_torchrun() -> bool:
    try:
        return started_by_torchrun()
    except ValueError as error:
        raise UserError(str(error)) from error


def _build(config: ExperimentConfig, ranks: Ranks, quiet: bool) -> ResumableSimulation:
    """Build the simulation; a configuration that does not fit the dataset is the user's error."""
    from dmmlkd_ext.experiments import build as world

    try:
        if ranks.size == 1:
            return world.build_simulation(config)
        simulation = world.build_simulation(config, ranks)
    except ValueError as error:
        raise UserError(str(error)) from error
    if ranks.rank == 0 and not quiet:
        edges, part = simulation.world.topology.edges, simulation.part
        devices, cut = ", ".join(map(str, part.counts)), links_cut(edges, part.owner)
        print(f"{devices} devices on {ranks.size} ranks, {cut} of {len(edges)} links between ranks", file=sys.stderr)
    return simulation
