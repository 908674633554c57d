"""What the commands of `dmmlkd` share: errors for the user, and checks of options."""

from __future__ import annotations

import math
from typing import Any, Protocol

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.training.exchange.ranks import started_by_torchrun


class UserError(Exception):
    """The user's request is invalid; the message says why in one line."""

    exit_code = 2


class UnavailableError(UserError):
    """The user's request is valid, but what it needs is not available now or on this machine."""

    exit_code = 1


class Command(Protocol):
    """What a command line asks for."""

    def execute(self) -> int:
        """Do it, and return the exit code.

        Raises:
            UserError: it cannot be done as asked for.
        """
        ...


def require_positive(command: Any, *names: str) -> None:
    """Refuse options that are below 1 or infinite; None is none."""
    for name in names:
        value = getattr(command, name)
        if value is not None and not 1 <= value < math.inf:
            raise ValueError(f"{name} must be at least 1{'' if value < 1 else ' and finite'}, got {value}")


def require_named(config: ExperimentConfig, method: str, dataset: str) -> None:
    """Refuse options that replace the method or dataset that the command names."""
    for setting, got, asked in (
        ("method.name", config.method.name, method),
        ("data.dataset", config.data.dataset, dataset),
    ):
        if got != asked:
            raise ValueError(f"{setting} must be the one that the command names, {asked}; got {got}")


def several_ranks() -> bool:
    """Return whether torchrun started this process."""
    try:
        return started_by_torchrun()
    except ValueError as error:
        raise UserError(str(error)) from error
