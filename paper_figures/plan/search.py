"""The search for each method's settings: the same number of trials for all, judged on validation data alone.

A search has two steps. The first tries four learning rates. The second, at the best of them, tries two more values of
the method's own parameter; a method that has none tries two more learning rates beside the best. What is tried in the
second step depends on the first, so that the search is a sequence of sweeps and not one list of configurations.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.own_parameter import set_own_parameter
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.config.tuned import (
    LIMITED_METHODS,
    TUNED_BUDGET,
    TUNED_METHODS,
    Choice,
    Choices,
    Trial,
    inherit_losses,
)
from dmmlkd_ext.experiments.config.worlds import LEVELS, world
from dmmlkd_ext.experiments.run import is_finished, run_name
from dmmlkd_ext.training.methods import get_method

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


class Search(NamedTuple):
    """What is tuned: a method on a dataset under a limit on energy."""

    dataset: str
    budget: float | None
    method: str

    def configs(self, trial: Trial, choices: Choices) -> list[ExperimentConfig]:
        """Return a trial's runs, one per seed; `choices` are those known already, for what the method takes over."""
        found = []
        for seed, level in zip(SEEDS, LEVELS, strict=True):
            config = world(self.dataset, self.method, seed, level, self.budget)
            method = inherit_losses(config.method, choices, self.dataset, self.budget)
            if trial.own_parameter is not None:
                method = set_own_parameter(method, trial.own_parameter)
            training = replace(config.training, rounds=ROUNDS, evaluate_every=ROUNDS, learning_rate=trial.learning_rate)
            found.append(replace(config, method=method, training=training))
        return found


Trials = Mapping[Search, Sequence[Trial]]


def searches(datasets: Iterable[str]) -> list[Search]:
    """Return what is tuned."""
    return [
        Search(dataset, budget, method)
        for dataset in datasets
        for budget, methods in ((None, TUNED_METHODS), (TUNED_BUDGET, LIMITED_METHODS))
        for method in methods
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


def choose(trials: Iterable[Trial]) -> Trial | None:
    """Return the trial of the highest validation accuracy; among equals the smaller learning rate, then the earlier.

    Example:
        >>> choose([Trial(0.2, None, 0.5), Trial(0.1, None, 0.5), Trial(0.3, None, None)]).learning_rate
        0.1
    """
    judged = [trial for trial in trials if trial.validation_accuracy is not None]
    return max(judged, key=lambda trial: (trial.validation_accuracy, -trial.learning_rate), default=None)


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
    asked = [search for search in searches(datasets) if wanted(search)]
    # Those with a balance come last: they take over loss weights that are chosen for the others.
    balanced = [search for search in asked if get_method(search.method).tunes == "exponent"]
    for group in ([search for search in asked if search not in balanced], balanced):
        if not group:
            continue
        for search in group:  # what is searched anew is not known
            choices.pop(search, None)
        first = judge({search: first_trials(search.dataset) for search in group}, choices, runs_folder, run)
        rates = {search: best for search, trials in first.items() if (best := choose(trials))}
        second_step = {search: second_trials(search.method, best) for search, best in rates.items()}
        second = judge(second_step, choices, runs_folder, run)
        for search in group:
            trials = (*first[search], *second.get(search, ()))
            if best := choose(trials):
                found = best.learning_rate, best.own_parameter, best.validation_accuracy
                choices[search] = Choice(*search, *found, trials)
            else:
                failed.append(search)
    return choices, failed


def judge(trials: Trials, choices: Choices, runs_folder: Path, run: Runner) -> Trials:
    """Run trials, and return them with their validation accuracies."""
    configs = {(search, trial): search.configs(trial, choices) for search, tried in trials.items() for trial in tried}
    run([config for group in configs.values() for config in group])
    judged: dict[Search, list[Trial]] = {search: [] for search in trials}
    for (search, trial), group in configs.items():
        accuracy = validation_accuracy(runs_folder / run_name(config) for config in group)
        judged[search].append(replace(trial, validation_accuracy=accuracy))
    return judged


def _rounded(rate: float) -> float:
    """Keep two digits: more would feign a precision that the search does not have."""
    return float(f"{rate:.2g}")
