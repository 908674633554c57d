"""`dmmlkd sweep`: many runs on the cores or GPUs of this machine."""

from __future__ import annotations

import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated

import tyro

from dmmlkd_ext.experiments.commands.command import (
    UnavailableError,
    UserError,
    require_named,
    require_positive,
    several_ranks,
)
from dmmlkd_ext.experiments.config import ExperimentConfig, processor
from dmmlkd_ext.experiments.config.settings import override_settings, read_grid, told_budget
from dmmlkd_ext.experiments.config.sources import begin
from dmmlkd_ext.experiments.config.worlds import Level
from dmmlkd_ext.experiments.sweep import SweepReport, parse_shard, run_sweep, select_shard
from dmmlkd_ext.plugins import import_modules
from dmmlkd_ext.training.keep.trackers import read_trackers, require_trackers
from dmmlkd_ext.values import read_counts


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
        require_positive(self, "workers", "threads", "checkpoint_every")
        for name in ("methods", "datasets", "seeds"):
            if not getattr(self, name):
                raise ValueError(f"{name} must be at least one, got none")
        read_counts(self.seeds, "seeds")
        parse_shard(self.shard)
        processor.choose(self.device)
        read_trackers(self.track)

    def execute(self) -> int:
        """Run all, name those that failed, and return 1 if any did."""
        if several_ranks():
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
        require_named(changed, method, dataset)
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
