"""How much is run: which part of each experiment's grid a profile takes; the profiles are in `profiles.toml`."""

from __future__ import annotations

import tomllib
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from pathlib import Path

PATH = Path(__file__).with_name("profiles.toml")


@dataclass(frozen=True)
class Scope:
    """The part of an experiment that a profile runs; None leaves a dimension whole."""

    seeds: tuple[int, ...]
    datasets: Collection[str] | None = None
    methods: Collection[str] | None = None
    settings: Collection[str] | None = None
    levels: Collection[float] | None = None

    def has(self, dataset: str, method: str, setting: str, level: float | None) -> bool:
        """Return whether a point of the grid is run; one without a level is in any part of the levels."""
        wanted = ((self.datasets, dataset), (self.methods, method), (self.settings, setting))
        if not all(names is None or name in names for names, name in wanted):
            return False
        return self.levels is None or level is None or level in self.levels


@dataclass(frozen=True)
class Profile:
    """How much is run.

    Attributes:
        name: what it is called.
        rounds: of every run.
        evaluate_every: rounds between evaluations.
        scopes: what is run of each experiment, in one or more parts; an experiment without any is left out.
        num_devices: None leaves the recommended number.
        local_iterations: None leaves the recommended number.
        topologies: the graphs that are compared; None takes all.
    """

    name: str
    rounds: int
    evaluate_every: int
    scopes: Mapping[str, tuple[Scope, ...]] = field(hash=False)
    num_devices: int | None = None
    local_iterations: int | None = None
    topologies: tuple[str, ...] | None = None


def read_profiles(path: Path = PATH) -> dict[str, Profile]:
    """Return the profiles of a file by name."""
    found = {}
    for name, options in tomllib.loads(path.read_text(encoding="utf-8")).items():
        scopes = {
            experiment: tuple(
                Scope(**{dimension: tuple(wanted) for dimension, wanted in scope.items()}) for scope in parts
            )
            for experiment, parts in options.pop("scopes").items()
        }
        topologies = tuple(options.pop("topologies", ())) or None
        found[name] = Profile(name, scopes=scopes, topologies=topologies, **options)
    return found


PROFILES = read_profiles()
