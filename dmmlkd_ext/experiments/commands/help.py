"""The help of `dmmlkd run` on one screen: the common options, with choices and the defaults of the dataset."""

from __future__ import annotations

import functools
import textwrap
from operator import attrgetter
from typing import Any, Literal, get_args, get_origin, get_type_hints

from dmmlkd_ext.data import available_datasets
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.presets import PRESETS, preset
from dmmlkd_ext.training.methods import METHODS, method_names

WIDTH = 80
_INDENT = 29

OPTIONS: tuple[tuple[str, str, str], ...] = (
    ("seed", "N", "of every random draw"),
    ("training.rounds", "N", "rounds"),
    ("training.local_iterations", "N", "the most local iterations of a round"),
    ("training.learning_rate", "X", "in the first round"),
    ("training.patience", "N", "stop after N evaluations without progress"),
    ("training.per_class", "", ""),
    ("data.num_devices", "N", "devices"),
    ("data.partition", "", ""),
    ("data.dirichlet_alpha", "X", "the smaller, the more devices differ"),
    ("data.missing_rate", "X", "share of devices that lack a modality"),
    ("data.options", "NAME VALUE", "options of the dataset, such as file data.npz"),
    ("topology.name", "NAME", "ring, torus, star, ..."),
    ("energy.budget_fraction", "X", "energy, as a share of what all costs"),
)
"""Setting, what its value is called, and what it is; choices are shown where neither is given."""

_FURTHER = (
    ("--config FILE", "from a TOML or YAML file, or a run's folder"),
    ("--as-reported LEVEL", "settings of the tables: moderate | severe"),
    ("--device NAME", "cpu | cuda | cuda:N | auto"),
    ("--runs FOLDER", "folder of all runs [runs]"),
    ("--extend", "begin where a finished run of fewer rounds ended"),
    ("--track NAME,NAME", "csv, tensorboard, mlflow, wandb"),
    ("--module FILE", "Python file with parts of your own"),
    ("--help-all", "all options, each with its meaning"),
)
"""Options that are not settings of the run."""


def run_help(method: str = "", dataset: str = "") -> str:
    """Return the help, at most 30 lines of 80 columns, with the defaults of a dataset that has recommended ones.

    Example:
        >>> lines = run_help("dmml", "watch").splitlines()
        >>> len(lines) <= 30, max(map(len, lines)) <= 80
        (True, True)
    """
    known = method if method in method_names() else "dmml-kd"
    config = preset(dataset if dataset in PRESETS else "watch", known)
    shown = [
        _line(f"--{path.replace('_', '-')} {value}".strip(), _about(path, text, config))
        for path, value, text in OPTIONS
    ]
    return "\n".join(
        [
            "usage: dmmlkd run METHOD DATASET [options]",
            "Run one method on one dataset, or what is left of the run.",
            "example: dmmlkd run dmml-kd watch --seed 1 --training.rounds 20",
            "",
            *_names("METHOD", _leading_methods(), "; others: dmmlkd info"),
            *_names("DATASET", available_datasets(), ""),
            f"common options [defaults of {config.data.dataset}]:",
            *shown,
            *(_line(*option) for option in _FURTHER),
        ]
    )


def _leading_methods() -> list[str]:
    """Return the methods but for ablations and controls."""
    tuned = ("dmml-tb", "dmml-kd-tb")
    return [name for name in METHODS if METHODS[name].base is None or name in tuned]


def _about(path: str, text: str, config: ExperimentConfig) -> str:
    default = attrgetter(path)(config)
    about = text or " | ".join(_choices(path))
    return about if isinstance(default, dict) else f"{about} [{default}]"


def _choices(path: str) -> tuple[str, ...]:
    """Return the values that a setting may have.

    Example:
        >>> _choices("data.partition")
        ('natural', 'dirichlet', 'iid')
    """
    hint: Any = functools.reduce(lambda kind, name: get_type_hints(kind)[name], path.split("."), ExperimentConfig)
    return get_args(hint) if get_origin(hint) is Literal else ()


def _line(option: str, about: str) -> str:
    return f"  {option:{_INDENT}} {about}"


def _names(title: str, names: Any, more: str) -> list[str]:
    lines = textwrap.wrap(", ".join(names) + more, WIDTH - 11, break_on_hyphens=False)
    return [f"  {title if not place else '':9}{line}" for place, line in enumerate(lines)]
