"""`dmmlkd run METHOD DATASET`: one run, alone or as one of several ranks."""

from __future__ import annotations

import sys
from contextlib import nullcontext
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Annotated

import tyro

from dmmlkd_ext.data import ChecksumError, DataUnavailableError
from dmmlkd_ext.experiments.commands.command import (
    UnavailableError,
    UserError,
    require_named,
    require_positive,
    several_ranks,
)
from dmmlkd_ext.experiments.commands.summary import summarize_run
from dmmlkd_ext.experiments.config import ExperimentConfig, processor
from dmmlkd_ext.experiments.config.settings import read_loader_options
from dmmlkd_ext.experiments.config.worlds import Level
from dmmlkd_ext.experiments.extend import ExtensionError
from dmmlkd_ext.experiments.run import ResumableSimulation, RunChangedError, RunLockedError, run_experiment
from dmmlkd_ext.training.exchange.liveness import RankLostError
from dmmlkd_ext.training.exchange.ranks import (
    FailedElsewhereError,
    Ranks,
    UnlikeRanksError,
    joined_ranks,
    local_rank,
)
from dmmlkd_ext.training.exchange.slices import links_cut
from dmmlkd_ext.training.keep.trackers import read_trackers


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
        require_positive(self, "threads", "checkpoint_every", "timeout_s")
        processor.choose(self.device)
        read_trackers(self.track)

    def checked(self) -> RunCommand:
        """Return the command with its processor, and the loader's options as the types that the loader states.

        Raises:
            UserError: the options do not fit, or make another method or dataset of it than its name says.
        """
        try:
            require_named(self.config, self.method, self.dataset)
            kind = processor.choose(self.device)[0] or self.config.torch_device
            return replace(self, config=read_loader_options(replace(self.config, torch_device=kind)))
        except ValueError as error:
            raise UserError(str(error)) from error

    def execute(self) -> int:
        """Run, and print the folder and the final accuracy."""
        several, kind, gpu = several_ranks(), self.config.torch_device, processor.choose(self.device)[1]
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
