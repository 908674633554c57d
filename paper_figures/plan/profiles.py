"""How much is run: which part of each experiment's grid a profile takes."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from typing import Protocol


class Placed(Protocol):
    """A point of an experiment's grid."""

    @property
    def dataset(self) -> str: ...  # noqa: D102
    @property
    def method(self) -> str: ...  # noqa: D102
    @property
    def setting(self) -> str: ...  # noqa: D102
    @property
    def level(self) -> float | None: ...  # noqa: D102


@dataclass(frozen=True)
class Scope:
    """The part of an experiment that a profile runs; None leaves a dimension whole."""

    seeds: tuple[int, ...]
    datasets: Collection[str] | None = None
    methods: Collection[str] | None = None
    settings: Collection[str] | None = None
    levels: Collection[float] | None = None

    def has(self, point: Placed) -> bool:
        """Return whether a point of the grid is run; one without a level is in any part of the levels."""
        wanted = ((self.datasets, point.dataset), (self.methods, point.method), (self.settings, point.setting))
        if not all(names is None or name in names for names, name in wanted):
            return False
        return self.levels is None or point.level is None or point.level in self.levels


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


_FIVE, _TWO = (0, 1, 2, 3, 4), (0, 1)
_BALANCE = ("dmml", "dmml-tb", "dmml-kd", "dmml-kd-tb")
_KD = ("dmml", "dmml-kd")

# To see that all works, in seconds: its numbers mean nothing.
SMOKE = Profile(
    "smoke",
    rounds=4,
    evaluate_every=2,
    num_devices=6,
    local_iterations=4,
    topologies=("random_geometric", "ring"),
    scopes={
        "comparison": (Scope(_TWO, ("watch", "mfeat"), ("dmml", "dmml-kd", "dmml-kd-tb"), ("severe",)),),
        "ablation": (Scope(_TWO, ("mfeat",), ("dmml", "dmml-kd", "dmml-kd-no-generator"), ("severe",)),),
        "balance": (Scope(_TWO, ("watch",), _BALANCE, levels=(0.3,)), Scope(_TWO, ("watch",), _KD, levels=(0.6,))),
        "imbalance": (Scope(_TWO, ("watch",), ("dmml", "dmml-tb", "unimodal:accelerometer", "unimodal:gyroscope")),),
        "non_iid": (Scope(_TWO, ("mfeat",), _KD, levels=(0.1, 10.0)),),
        "missing": (Scope(_TWO, ("watch",), _KD, levels=(0.0, 0.8)),),
        "topology": (
            Scope(_TWO, methods=("dmml-kd",), settings=("topology",)),
            Scope(_TWO, methods=("dmml-kd",), settings=("devices",), levels=(3, 6)),
            Scope(_TWO, methods=("dmml-kd",), settings=("link loss",), levels=(0.0, 0.5)),
        ),
        "features": (Scope((0,), ("mfeat",)),),
        "sensitivity": (Scope(_TWO, ("mfeat",), settings=("default", "similarity x10")),),
    },
)

# To see the direction of what the paper claims, in minutes.
QUICK = Profile(
    "quick",
    rounds=20,
    evaluate_every=4,
    topologies=("random_geometric", "ring", "star", "complete"),
    scopes={
        "comparison": (
            Scope(
                _TWO,
                ("watch", "mfeat"),
                ("local", *_BALANCE, "fedprox", "ogm-ge", "mmpareto", "fedgen", "fedproto", "centralized"),
                ("severe",),
            ),
            Scope(_TWO, ("avdigits",), ("dmml", "dmml-kd"), ("severe",)),
        ),
        "ablation": (Scope(_TWO, ("mfeat",), settings=("severe",)),),
        "balance": (Scope(_TWO, ("watch",), levels=(0.3,)), Scope(_TWO, ("watch",), ("dmml", "dmml-tb"))),
        "imbalance": (Scope(_TWO, ("watch",)),),
        "non_iid": (Scope(_TWO, ("mfeat",), levels=(0.05, 0.1, 10.0)),),
        "missing": (Scope(_TWO, ("watch",), levels=(0.0, 0.8)),),
        "topology": (
            Scope(_TWO, methods=("dmml-kd",), settings=("topology",)),
            Scope(_TWO, methods=("dmml-kd",), settings=("devices",), levels=(10, 20)),
            Scope(_TWO, methods=("dmml-kd",), settings=("link loss",), levels=(0.0, 0.5)),
        ),
        "features": (Scope((0,), ("mfeat",)),),
        "sensitivity": (Scope(_TWO, ("mfeat",), settings=("default", "similarity x10")),),
    },
)

# To report.
FULL = Profile(
    "full",
    rounds=40,
    evaluate_every=5,
    scopes={
        "comparison": (Scope(_FIVE),),
        "ablation": (Scope(_FIVE),),
        "balance": (
            Scope(_FIVE, levels=(0.3,)),
            Scope(_FIVE, methods=_BALANCE, levels=(0.15, 0.6)),
        ),
        "imbalance": (Scope(_FIVE),),
        "features": (Scope(_FIVE),),
        "non_iid": (Scope(_FIVE),),
        "missing": (Scope(_FIVE),),
        "topology": (Scope(_FIVE),),
        "sensitivity": (Scope(_FIVE, ("mfeat",)),),
    },
)

PROFILES: dict[str, Profile] = {profile.name: profile for profile in (SMOKE, QUICK, FULL)}
