"""From the folders of runs to the few tables that all figures are drawn from.

What was gathered from runs goes through the bytes of the tables' files before it is drawn, so that drawing from the
files later gives the same.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from dmmlkd_ext.experiments.commands.summary import read_seconds
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.results import (
    MEASUREMENT,
    describe_run,
    extract,
    flatten_options,
    read_commit,
    read_records,
)
from dmmlkd_ext.experiments.run import is_finished, run_name
from paper_figures.collect.embedding import FEATURE_COLUMNS, embed_run
from paper_figures.collect.kept import RUN_COLUMNS, Gathered, decode, encode
from paper_figures.plan.experiments import BUDGETS, Case

UNTRACED = ("metrics", "regimes", "unseen")
"""Experiments that are shown by their last rounds alone."""

Cases = Mapping[str, Sequence[Case]]
"""Name of an experiment -> its cases."""


def gather(cases: Cases, runs_folder: Path) -> tuple[Gathered, dict[str, str]]:
    """Gather the finished runs of some experiments from the folder of all runs.

    Returns:
        The tables, and the name of each run that cannot be read -> why; it counts as not finished.
    """
    seconds = read_seconds(runs_folder / "timings.csv")
    configs = {run_name(case.config): case.config for group in cases.values() for case in group}
    detailed, traced = _detailed(cases), _traced(cases)
    numbers: list[tuple[Any, ...]] = []
    finished, unreadable = {}, {}
    for run, config in configs.items():
        if not is_finished(runs_folder / run):
            continue
        try:
            commit = read_commit(runs_folder / run)
            limited = config.energy.budget_fraction is not None and run in traced
            kept = [(run, *number) for number in extract(read_records(runs_folder / run), limited, run in detailed)]
        except (OSError, ValueError, KeyError) as error:
            unreadable[run] = f"{type(error).__name__}: {error}"
            continue
        numbers += kept
        finished[run] = commit
    rows = []
    for experiment, group in cases.items():
        for case in group:
            run = run_name(case.config)
            place = {"experiment": experiment, "setting": case.setting, "level": case.level}
            about = describe_run(run, case.config, finished.get(run))
            rows.append({**place, **about, "seconds": seconds.get(run), "finished": run in finished})
    options = [
        (run, option, str(value))
        for run, config in configs.items()
        for option, value in flatten_options(config.to_dict())
    ]
    shown = [case.config for case in cases.get("features", ()) if run_name(case.config) in finished]
    features, lost = _embed(shown, runs_folder)
    tables = Gathered(
        pd.DataFrame(rows, columns=list(RUN_COLUMNS)),
        pd.DataFrame(numbers, columns=["run", *MEASUREMENT]),
        pd.DataFrame(options, columns=["run", "option", "value"]),
        features,
    )
    return decode(encode(tables)), {**unreadable, **lost}


def _detailed(cases: Cases) -> set[str]:
    """Return the runs of which devices are shown round by round: one seed of the balance at the tuned budget."""
    balanced = [case for case in cases.get("balance", ()) if case.level == BUDGETS[0]]
    first = min((case.config.seed for case in balanced), default=None)
    return {run_name(case.config) for case in balanced if case.config.seed == first}


def _traced(cases: Cases) -> set[str]:
    """Return the runs of which the means of every round are shown: those of experiments that have a figure of them."""
    return {run_name(case.config) for name, group in cases.items() if name not in UNTRACED for case in group}


def _embed(configs: Sequence[ExperimentConfig], runs_folder: Path) -> tuple[pd.DataFrame, dict[str, str]]:
    """Embed the features of some runs; a run whose features cannot be had is named, and the others go on."""
    frames, lost = [pd.DataFrame(columns=list(FEATURE_COLUMNS))], {}
    drawn = min((config.seed for config in configs), default=None)
    for config in configs:
        run = run_name(config)
        try:
            frames.append(embed_run(config, runs_folder / run, points=config.seed == drawn))
        except Exception as error:  # whatever is wrong with one run, the others are shown
            lost[run] = f"features: {type(error).__name__}: {error}"
            print(f"features of run {run} are left out: {error}", file=sys.stderr)
    full = [frame for frame in frames if not frame.empty]
    return pd.concat(full, ignore_index=True) if full else frames[0], lost
