"""The chosen settings, as data: `tuned.json`, written by `paper_figures.tune` and read by the experiments."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.own_parameter import scale_losses, set_own_parameter
from dmmlkd_ext.training.keep.files import write_text
from dmmlkd_ext.training.methods import METHODS, MethodConfig, get_method

PATH = Path(__file__).with_name("tuned.json")
"""The committed choices."""


def parent(method: str) -> str:
    """Return the method whose search a method takes its settings from: itself if it tunes what its base does not.

    An ablation, the controls that balance nothing, and one modality alone are their method with something taken away,
    and the reversed balance is the balance with its sign changed: none is tuned apart from what it is compared with.

    Example:
        >>> [parent(name) for name in ("dmml-kd-no-generator", "dmml-kd-reversed", "unimodal:audio", "fedgen")]
        ['dmml-kd', 'dmml-kd-tb', 'dmml', 'fedgen']
    """
    config = get_method(method)
    if config.base is None or config.tunes != get_method(config.base).tunes:
        return method
    return parent(config.base)


TUNED_METHODS = tuple(name for name in METHODS if parent(name) == name)
"""Methods with a search; the others take over what one of these found."""
LIMITED_METHODS = ("dmml", "dmml-tb", "dmml-kd", "dmml-kd-tb")
"""Methods that are tuned under a limit on energy too: the balanced ones and those that they balance."""
TUNED_BUDGET = 0.3
"""The limit on energy under which methods are tuned, besides none."""


@dataclass(frozen=True)
class Trial:
    """One point of a search; `own_parameter` None is the table's value."""

    learning_rate: float
    own_parameter: float | None = None
    validation_accuracy: float | None = None
    """Mean over devices and seeds in the last round; None before it was run, or where its runs failed."""


@dataclass(frozen=True)
class Choice:
    """What a search found."""

    dataset: str
    budget_fraction: float | None
    method: str
    learning_rate: float
    own_parameter: float | None
    validation_accuracy: float | None
    trials: tuple[Trial, ...]

    @property
    def settings(self) -> tuple[float, float | None]:
        """What was chosen."""
        return self.learning_rate, self.own_parameter


Choices = dict[tuple[str, float | None, str], Choice]


def read_choices(path: Path = PATH) -> Choices:
    """Return the choices in a file by dataset, budget and method; none where there is no file.

    Raises:
        ValueError: the file does not hold choices.
    """
    if not path.exists():
        return {}
    try:
        entries = json.loads(path.read_text(encoding="utf-8"))["choices"]
        found = [Choice(**{**entry, "trials": tuple(Trial(**trial) for trial in entry["trials"])}) for entry in entries]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"path must be a file that paper_figures.tune wrote, {path.name} is not: {error}") from error
    return by_key(found)


def by_key(choices: Iterable[Choice]) -> Choices:
    """Return choices by dataset, budget and method."""
    return {(choice.dataset, choice.budget_fraction, choice.method): choice for choice in choices}


def write_choices(choices: Choices, path: Path, search: dict[str, Any]) -> None:
    """Write choices with a description of the search, one trial per line, whatever order they were found in."""
    lines = []
    ranks = {method: rank for rank, method in enumerate(TUNED_METHODS)}
    for choice in sorted(
        choices.values(), key=lambda one: (one.dataset, one.budget_fraction or 0.0, ranks[one.method])
    ):
        entry = asdict(choice)
        trials = ",\n".join(f"   {json.dumps(trial)}" for trial in entry.pop("trials"))
        lines.append(f' {json.dumps(entry)[:-1]}, "trials": [\n{trials}\n ]}}')
    body = ",\n".join(lines)
    write_text(path, f'{{"search": {json.dumps(search)},\n"choices": [\n{body}\n]}}\n')


def find_choice(choices: Choices, dataset: str, method: str, budget: float | None) -> Choice | None:
    """Return the choice that a method takes over: its parent's, at the tuned budget that is nearer."""
    limited = budget is not None and abs(budget - TUNED_BUDGET) <= abs(1.0 - budget)
    source = parent(method)
    if limited and (dataset, TUNED_BUDGET, source) in choices:
        return choices[dataset, TUNED_BUDGET, source]
    return choices.get((dataset, None, source))


def apply_choices(config: ExperimentConfig, choices: Choices) -> ExperimentConfig:
    """Return a configuration with its tuned settings; as it is where there are none."""
    dataset, budget, name = config.data.dataset, config.energy.budget_fraction, config.method.name
    choice = find_choice(choices, dataset, name, budget)
    if choice is None:
        return config
    method = inherit_losses(config.method, choices, dataset, budget)
    if choice.own_parameter is not None:
        method = set_own_parameter(method, choice.own_parameter)
    return replace(config, method=method, training=replace(config.training, learning_rate=choice.learning_rate))


def inherit_losses(method: MethodConfig, choices: Choices, dataset: str, budget: float | None) -> MethodConfig:
    """Return a method with the tuned loss weights of the one that it balances, if any, so that the balance decides."""
    base = method
    while base.tunes == "exponent" and base.base is not None:
        base = get_method(base.base)
    if base is method or base.tunes != "loss_scale":
        return method
    choice = find_choice(choices, dataset, base.name, budget)
    return method if choice is None or choice.own_parameter is None else scale_losses(method, choice.own_parameter)
