"""From a profile to figures: run what is missing, gather, draw everything, name what failed."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import paper_figures
from dmmlkd_ext.experiments.results import Results
from dmmlkd_ext.experiments.run import is_finished, run_name
from dmmlkd_ext.experiments.sweep import SweepReport, run_sweep
from paper_figures import gather, style
from paper_figures.availability import can_load
from paper_figures.experiments import Case, Profile, make_cases

REPORTED = "full"
"""The profile whose tables are kept beside the figures."""


@dataclass(frozen=True)
class Figure:
    """A figure or table: the experiments that it shows, and what draws it."""

    experiments: tuple[str, ...]
    make: Callable[[Results, Path], list[Path]]


def find_figures() -> dict[str, Figure]:
    """Return every figure and table: the modules of this package whose names begin so."""
    names = [module.name for module in pkgutil.iter_modules(paper_figures.__path__)]
    modules = [
        importlib.import_module(f"{paper_figures.__name__}.{name}")
        for name in names
        if name.startswith(("figure_", "table_"))
    ]
    return {module.NAME: Figure(module.EXPERIMENTS, module.make) for module in modules}


FIGURES: dict[str, Figure] = find_figures()
"""The figures and tables by name."""


def make(
    profile: Profile,
    runs_folder: Path,
    output: Path,
    names: Sequence[str] = (),
    workers: int | None = None,
    *,
    results_folder: Path | None = None,
    run: bool = True,
) -> int:
    """Run what is missing and draw.

    Args:
        profile: how much is run.
        runs_folder: the folder of the profile's runs.
        output: the folder of its figures.
        names: which figures and tables; empty is all.
        workers: processes at a time; None is one a core.
        results_folder: where the gathered tables are kept, when all figures of the reported profile are drawn.
        run: False draws from the runs that are finished.

    Returns:
        0, or 1 if a run or a figure failed or there was nothing to draw.

    Raises:
        ValueError: there is no figure of a name, or `workers` is below 1.
    """
    drawn = check_names(names)
    cases = available_cases(profile, experiments_of(drawn), runs_folder)
    configs = list(dict.fromkeys(case.config for group in cases.values() for case in group))
    if not configs and experiments_of(drawn):
        print("nothing to draw: none of the datasets can be had", file=sys.stderr)
        return 1
    report = run_sweep(configs, runs_folder, workers=workers) if run else SweepReport((), 0)
    gathered, unreadable = gather.gather(cases, runs_folder)
    if results_folder is not None and not names and profile.name == REPORTED:
        gathered.write(results_folder)
    undrawn = draw_all(drawn, gathered, output)
    finished = gathered.runs.loc[gathered.runs["finished"], "run"].nunique()
    print(f"{finished} of {len(configs)} runs finished, {report.reused} of them earlier; figures are in {output}")
    return complain(report, unreadable, undrawn)


def redraw(results_folder: Path, output: Path, names: Sequence[str] = ()) -> int:
    """Draw from tables that were kept, without any run.

    Returns:
        0, or 1 if a figure failed.

    Raises:
        ValueError: there is no figure of a name.
        FileNotFoundError: a table is not there.
    """
    drawn = check_names(names)
    undrawn = draw_all(drawn, gather.read(results_folder), output)
    print(f"{len(drawn) - len(undrawn)} figures and tables are in {output}")
    return complain(SweepReport((), 0), {}, undrawn)


def check_names(names: Sequence[str]) -> list[str]:
    """Return the figures that are asked for; none asks for all.

    Raises:
        ValueError: there is no figure of a name.
    """
    unknown = [name for name in names if name not in FIGURES]
    if unknown:
        raise ValueError(f"names must be some of {', '.join(FIGURES)}; got {', '.join(unknown)}")
    return list(names or FIGURES)


def experiments_of(names: Iterable[str]) -> list[str]:
    """Return the experiments that figures show, each once, in the order in which they are run."""
    from paper_figures.experiments import EXPERIMENTS

    wanted = {experiment for name in names for experiment in FIGURES[name].experiments}
    unknown = wanted - EXPERIMENTS.keys()
    if unknown:
        raise ValueError(f"experiments must be some of {', '.join(EXPERIMENTS)}; got {', '.join(sorted(unknown))}")
    return [experiment for experiment in EXPERIMENTS if experiment in wanted]


def available_cases(profile: Profile, experiments: Iterable[str], runs_folder: Path) -> dict[str, list[Case]]:
    """Return the cases of experiments, without runs whose data cannot be had.

    A finished run needs no data, so that figures can be drawn again where the data are not.
    """
    cases = {experiment: make_cases(experiment, profile) for experiment in experiments}
    todo = {
        case.config: case.config.data.dataset
        for group in cases.values()
        for case in group
        if not is_finished(runs_folder / run_name(case.config))
    }
    missing = {dataset for dataset in dict.fromkeys(todo.values()) if not can_load(dataset)}
    return {
        experiment: [case for case in group if todo.get(case.config) not in missing]
        for experiment, group in cases.items()
    }


def draw_all(names: Sequence[str], gathered: gather.Gathered, output: Path) -> list[str]:
    """Draw figures from gathered tables, and return the names of those that could not be drawn."""
    style.use_style()
    undrawn = []
    for name in names:
        figure = FIGURES[name]
        try:
            results = gathered.results(figure.experiments)
            if figure.experiments and results.table.empty:
                raise ValueError(f"no run of {', '.join(figure.experiments)} finished")
            figure.make(results, output)
        except Exception:  # whatever is wrong with one figure, the others are drawn
            traceback.print_exc()
            undrawn.append(name)
    return undrawn


def complain(report: SweepReport, unreadable: dict[str, str], undrawn: Sequence[str]) -> int:
    """Name what failed and return the exit code."""
    for name, log in report.failures.items():
        print(f"failed: run {name}, see {log}", file=sys.stderr)
    for name, reason in unreadable.items():
        print(f"failed: run {name} cannot be read: {reason}", file=sys.stderr)
    for name in undrawn:
        print(f"failed: {name} was not drawn", file=sys.stderr)
    return 1 if report.failures or unreadable or undrawn else 0
