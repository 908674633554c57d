"""The search for each method's settings: the same number of trials for all, judged on validation data alone.

A search has two steps. The first tries four learning rates. The second, at the best of them, tries two more values of
the method's own parameter; a method that has none tries two more learning rates beside the best. What is tried in the
second step depends on the first, so that the search is a sequence of sweeps and not one list of configurations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.own_parameter import set_own_parameter
from dmmlkd_ext.experiments.presets import preset
from dmmlkd_ext.experiments.run import is_finished, run_name
from dmmlkd_ext.training.methods import get_method
from paper_figures.plan.tuned import (
    LIMITED_METHODS,
    TUNED_BUDGET,
    TUNED_METHODS,
    Choice,
    Choices,
    Trial,
    by_key,
    inherit_losses,
)
from paper_figures.plan.worlds import LEVELS, Level, world

ROUNDS = 20
SEEDS = (100, 101)
"""Seeds of the search, one for each level of non-IID data; no reported run has them."""
RATE_FACTORS = (0.4, 1.0, 2.5, 6.25)
"""Learning rates of the first step, in units of the dataset's recommended one."""
RATE_NEIGHBOURS = (0.63, 1.6)
"""Learning rates of the second step, in units of the best one of the first."""
OWN_VALUES: dict[str, tuple[float, float]] = {
    "dmml-kd": (0.5, 2.0),
    "dmml-tb": (1.0, 6.0),
    "dmml-kd-tb": (1.0, 6.0),
    "fedprox": (0.001, 0.1),
    "ogm-ge": (0.2, 0.8),
    "mmpareto": (1.0, 2.0),
    "fedgen": (0.3, 3.0),
    "fedproto": (0.3, 3.0),
}
"""Values of a method's own parameter that are tried beside the one in the table of methods."""

Runner = Callable[[Sequence[ExperimentConfig]], object]
"""Runs configurations and leaves their folders where the search looks for them."""


@dataclass(frozen=True)
class Search:
    """What is tuned: a method on a dataset under a limit on energy."""

    dataset: str
    budget: float | None
    method: str

    def configs(self, trial: Trial, choices: Choices) -> list[ExperimentConfig]:
        """Return a trial's runs, one a seed; `choices` are those known already, for what the method takes over."""
        return [self._configure(trial, seed, level, choices) for seed, level in zip(SEEDS, LEVELS, strict=True)]

    def _configure(self, trial: Trial, seed: int, level: Level, choices: Choices) -> ExperimentConfig:
        config = world(self.dataset, self.method, seed, level, self.budget)
        method = inherit_losses(config.method, choices, self.dataset, self.budget)
        if trial.own_parameter is not None:
            method = set_own_parameter(method, trial.own_parameter)
        training = replace(config.training, rounds=ROUNDS, evaluate_every=ROUNDS, learning_rate=trial.learning_rate)
        return replace(config, method=method, training=training)


def searches(datasets: Iterable[str], balanced: bool) -> list[Search]:
    """Return what is tuned: the methods that take over the loss weights of another one (`balanced`), or the others."""
    return [
        Search(dataset, budget, method)
        for dataset in datasets
        for budget, methods in ((None, TUNED_METHODS), (TUNED_BUDGET, LIMITED_METHODS))
        for method in methods
        if (get_method(method).tunes == "exponent") == balanced
    ]


def first_trials(dataset: str) -> list[Trial]:
    """Return the trials of the first step, from the smallest learning rate on.

    Example:
        >>> [trial.learning_rate for trial in first_trials("mfeat")]
        [0.04, 0.1, 0.25, 0.62]
    """
    recommended = preset(dataset).training.learning_rate
    return [Trial(_rounded(recommended * factor)) for factor in RATE_FACTORS]


def second_trials(method: str, best: Trial) -> list[Trial]:
    """Return the trials of the second step, beside the best one of the first.

    Example:
        >>> second_trials("fedprox", Trial(0.1))[0].own_parameter
        0.001
        >>> [trial.learning_rate for trial in second_trials("dmml", Trial(0.1))]
        [0.063, 0.16]
    """
    if method in OWN_VALUES:
        return [Trial(best.learning_rate, value) for value in OWN_VALUES[method]]
    return [Trial(_rounded(best.learning_rate * factor)) for factor in RATE_NEIGHBOURS]


def choose(trials: Iterable[Trial]) -> Trial:
    """Return the trial of the highest validation accuracy; among equals the smaller learning rate, then the earlier.

    Raises:
        ValueError: no trial has an accuracy.

    Example:
        >>> choose([Trial(0.2, None, 0.5), Trial(0.1, None, 0.5), Trial(0.3, None, None)]).learning_rate
        0.1
    """
    judged = [trial for trial in trials if trial.validation_accuracy is not None]
    if not judged:
        raise ValueError("trials must have at least one that finished, got none")
    return max(judged, key=lambda trial: (trial.validation_accuracy, -trial.learning_rate))


def validation_accuracy(folders: Iterable[Path]) -> float | None:
    """Return the mean over runs of the devices' mean validation accuracy in the last round.

    None where a run did not finish, its loss is not a number, or no device could be judged: such settings are not
    chosen. Nothing else is taken from the runs' records.
    """
    means = []
    for folder in folders:
        if not is_finished(folder):
            return None
        last = json.loads((folder / "metrics.jsonl").read_bytes().splitlines()[-1])
        loss = last["loss"]["total"]
        values = [value for value in last["accuracy"]["validation"] if value is not None]
        if not values or loss is None or not math.isfinite(loss):
            return None
        means.append(math.fsum(values) / len(values))
    return math.fsum(means) / len(means) if means else None


def tune(
    datasets: Sequence[str],
    runs_folder: Path,
    run: Runner,
    known: Choices | None = None,
    wanted: Callable[[Search], bool] = lambda _: True,
) -> tuple[Choices, list[Search]]:
    """Search the settings of tuned methods, and return all choices and the searches without a finished trial.

    Args:
        datasets: names of datasets.
        runs_folder: where `run` leaves the folders of runs.
        run: runs configurations; those that are finished already it leaves alone.
        known: earlier choices, which stay where nothing is searched.
        wanted: which searches to make.
    """
    choices: Choices = dict(known or {})
    failed: list[Search] = []
    for balanced in (False, True):
        group = [search for search in searches(datasets, balanced) if wanted(search)]
        for search in group:  # what is searched anew is not known
            choices.pop((search.dataset, search.budget, search.method), None)
        found = list(_search(group, choices, runs_folder, run)) if group else []
        failed += [search for search, trials in found if not _any_judged(trials)]
        choices |= by_key(_conclude(search, trials) for search, trials in found if _any_judged(trials))
    return choices, failed


def _search(
    group: Sequence[Search], choices: Choices, runs_folder: Path, run: Runner
) -> Iterator[tuple[Search, list[Trial]]]:
    """Run both steps of some searches, all searches of a step at once."""
    first = _judge([(search, first_trials(search.dataset)) for search in group], choices, runs_folder, run)
    alive = [(search, trials) for search, trials in first if _any_judged(trials)]
    next_trials = [(search, second_trials(search.method, choose(trials))) for search, trials in alive]
    second = dict(_judge(next_trials, choices, runs_folder, run))
    for search, trials in first:
        yield search, [*trials, *second.get(search, [])]


def _judge(
    steps: Sequence[tuple[Search, list[Trial]]], choices: Choices, runs_folder: Path, run: Runner
) -> list[tuple[Search, list[Trial]]]:
    run([config for search, trials in steps for trial in trials for config in search.configs(trial, choices)])
    return [
        (
            search,
            [
                replace(
                    trial,
                    validation_accuracy=validation_accuracy(
                        runs_folder / run_name(config) for config in search.configs(trial, choices)
                    ),
                )
                for trial in trials
            ],
        )
        for search, trials in steps
    ]


def _any_judged(trials: Iterable[Trial]) -> bool:
    return any(trial.validation_accuracy is not None for trial in trials)


def _conclude(search: Search, trials: Sequence[Trial]) -> Choice:
    best = choose(trials)
    return Choice(
        search.dataset,
        search.budget,
        search.method,
        best.learning_rate,
        best.own_parameter,
        best.validation_accuracy,
        tuple(trials),
    )


def _rounded(rate: float) -> float:
    """Keep two digits: more would feign a precision that the search does not have."""
    return float(f"{rate:.2g}")
