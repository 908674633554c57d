"""From a profile to figures: run what is missing, gather, draw everything, name what failed."""

from __future__ import annotations

import importlib
import pkgutil
import sys
import traceback
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import matplotlib.pyplot as plt
import pandas as pd

from dmmlkd_ext.experiments.config.processor import choose
from dmmlkd_ext.experiments.run import is_finished, run_name
from dmmlkd_ext.experiments.show import files
from dmmlkd_ext.experiments.show.style import style
from dmmlkd_ext.experiments.statistics import LEAST_SEEDS
from dmmlkd_ext.experiments.sweep import SweepReport, run_sweep
from paper_figures import figures, tables
from paper_figures.collect import gather, kept
from paper_figures.collect.availability import can_load
from paper_figures.collect.inputs import MissingResultsError, Results
from paper_figures.draw import captions
from paper_figures.draw.index import describe_claims, write_index
from paper_figures.judge.claims import shown_in
from paper_figures.plan.experiments import EXPERIMENTS, Case, Profile, make_cases

REPORTED = "full"
"""The profile whose tables are kept beside the figures."""


def find_modules() -> dict[str, ModuleType]:
    """Return the modules of all figures and tables by name: `figure_topology` is that of `figures/topology.py`."""
    return {
        f"{kind}_{module.name}": importlib.import_module(f"{package.__name__}.{module.name}")
        for kind, package in (("figure", figures), ("table", tables))
        for module in pkgutil.iter_modules(package.__path__)
    }


MODULES: dict[str, ModuleType] = find_modules()
"""The figures and tables; `paper_figures.figures` says what is in their modules."""


def make(
    profile: Profile,
    runs_folder: Path,
    output: Path,
    names: Sequence[str] = (),
    workers: int | None = None,
    *,
    results_folder: Path | None = None,
    run: bool = True,
    device: str = "cpu",
    add: bool = False,
) -> int:
    """Run what is missing and draw.

    Args:
        profile: how much is run.
        runs_folder: the folder of the profile's runs.
        output: the folder of its figures.
        names: which figures and tables; empty is all.
        workers: processes at a time; None is one per core.
        results_folder: where the gathered tables are kept, when all figures of the reported profile are drawn from runs
            on a CPU.
        add: keep them also when some figures are drawn, with other experiments as they are in that folder.
        run: False draws from the runs that are finished.
        device: the processor that simulates, as of `dmmlkd run`: cpu, cuda, cuda:N or auto.

    Returns:
        0, or 1 if a run or a figure failed or there was nothing to draw.

    Raises:
        ValueError: there is no figure of a name, `workers` is below 1, or `device` is none of those.
        GpuMissingError: a run needs a GPU that is not there.
    """
    drawn, (kind, gpu) = check_names(names), choose(device)
    cases = available_cases(profile, experiments_of(drawn), runs_folder, kind or "cpu")
    configs = list(dict.fromkeys(case.config for group in cases.values() for case in group))
    if not configs and experiments_of(drawn):
        print("nothing to draw: none of the datasets can be had", file=sys.stderr)
        return 1
    report = run_sweep(configs, runs_folder, workers=workers, gpu=gpu) if run else SweepReport((), 0)
    gathered, unreadable = gather.gather(cases, runs_folder)
    if results_folder is not None and not names and profile.name == REPORTED and kind == "cpu":
        gathered.write(results_folder)
    elif results_folder is not None and add and kind == "cpu":
        kept.read(results_folder).with_experiments_of(gathered).write(results_folder)
    undrawn = draw_all(drawn, gathered, output)
    finished = gathered.runs.loc[gathered.runs["finished"], "run"].nunique()
    print(f"{finished} of {len(configs)} runs finished, {report.reused} of them earlier")
    show(output)
    return complain(report, unreadable, undrawn)


def redraw(results_folder: Path, output: Path, names: Sequence[str] = ()) -> int:
    """Draw from tables that were kept, without any run.

    Returns:
        0, or 1 if a figure failed.

    Raises:
        ValueError: there is no figure of a name, or a table is damaged.
        FileNotFoundError: a table is not there.
    """
    drawn = check_names(names)
    undrawn = draw_all(drawn, kept.read(results_folder), output)
    print(f"{len(drawn) - len(undrawn)} figures and tables were drawn")
    show(output)
    return complain(SweepReport((), 0), {}, undrawn)


def show(output: Path) -> None:
    """Write the page of all figures in a folder; print the verdicts on the claims, and where the page is."""
    if not output.is_dir():
        return
    page = write_index(output, MODULES)
    verdicts = describe_claims(output)
    if verdicts:
        print("claims, by the rule in table_claims.md:", *verdicts, sep="\n")
    print(f"all figures with their captions: {page}")


def check_names(names: Sequence[str]) -> list[str]:
    """Return the figures that are asked for; none asks for all.

    Raises:
        ValueError: there is no figure of a name.
    """
    unknown = [name for name in names if name not in MODULES]
    if unknown:
        raise ValueError(f"names must be some of {', '.join(MODULES)}; got {', '.join(unknown)}")
    return list(names or MODULES)


def experiments_of(names: Iterable[str]) -> list[str]:
    """Return the experiments that figures show, each once, in the order in which they are run."""
    wanted = {experiment for name in names for experiment in MODULES[name].EXPERIMENTS}
    return [experiment for experiment in EXPERIMENTS if experiment in wanted]


def available_cases(
    profile: Profile, experiments: Iterable[str], runs_folder: Path, torch_device: str = "cpu"
) -> dict[str, list[Case]]:
    """Return the cases of experiments on a kind of processor, without runs whose data cannot be had.

    A finished run needs no data, so that figures can be drawn again where the data are not.
    """
    cases = {
        experiment: [
            replace(case, config=replace(case.config, torch_device=torch_device))
            for case in make_cases(experiment, profile)
        ]
        for experiment in experiments
    }
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


def draw_all(names: Sequence[str], gathered: kept.Gathered, output: Path) -> list[str]:
    """Draw figures from gathered tables, and return the names of those that could not be drawn."""
    undrawn = []
    for name in names:
        experiments = MODULES[name].EXPERIMENTS
        try:
            results = gathered.results(experiments)
            if experiments and results.table.empty:
                raise MissingResultsError(f"{name} cannot be drawn: no run of {', '.join(experiments)} finished")
            draw(name, results, output)
        except MissingResultsError as error:
            print(error, file=sys.stderr)
            undrawn.append(name)
        except Exception:  # whatever is wrong with one figure, the others are drawn
            traceback.print_exc()
            undrawn.append(name)
    return undrawn


def draw(name: str, results: Results, folder: Path) -> list[Path]:
    """Draw a figure or table and write its files.

    Args:
        name: of the figure, e.g. `figure_topology`.
        results: of its experiments.
        folder: made if it is not there.

    Returns:
        The paths written: PDF and PNG of a figure, LaTeX of a table, CSV of the rows shown, and the caption.

    Raises:
        MissingResultsError: there is nothing to draw.
    """
    module = MODULES[name]
    found = module.transform(results)
    frames: tuple[pd.DataFrame, ...] = found if isinstance(found, tuple) else (found,)
    if all(frame.empty for frame in frames):
        raise MissingResultsError(f"{name} cannot be drawn: there is no {module.NEEDS}")
    shown, sections = module.caption(results, *frames)
    if any(str(column).endswith("dots") for frame in frames for column in frame):
        shown += f" With fewer than {LEAST_SEEDS} seeds, no interval is drawn: dots are the seeds."
    folder.mkdir(parents=True, exist_ok=True)
    if hasattr(module, "show"):
        table = module.show(*frames)
        shown = f"{files.to_markdown(table)}\n\n{shown}"
        paths = [files.save_text(files.to_latex(table), folder / f"{name}.tex")]
    else:
        with style():
            figure = module.draw(*frames)
            paths = files.save_figure(figure, folder, name)
            plt.close(figure)
    drawn = pd.concat([frame for frame in frames if len(frame)], ignore_index=True)
    paths.append(files.save_csv(drawn, folder / f"{name}.csv"))
    claims = [f"- {claim.text}" for claim in shown_in(name)]
    sections |= {"Claims that it shows, judged in table_claims": claims}
    text = captions.compose(module.TITLE, shown, sections, results if module.EXPERIMENTS else None)
    return [*paths, files.save_text(text, folder / f"{name}.md")]


def complain(report: SweepReport, unreadable: dict[str, str], undrawn: Sequence[str]) -> int:
    """Name what failed and return the exit code."""
    for name, log in report.failures.items():
        print(f"failed: run {name}, see {log}", file=sys.stderr)
    for name, reason in unreadable.items():
        print(f"failed: run {name} cannot be read: {reason}", file=sys.stderr)
    for name in undrawn:
        print(f"failed: {name} was not drawn", file=sys.stderr)
    return 1 if report.failures or unreadable or undrawn else 0
