"""Every experiment as a list of cases: what is run, for which figure, in which profile.

The search for the methods' settings is in `paper_figures.plan.search`; what it chose is read here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.training.methods import get_method
from paper_figures.plan.labels import DEFAULT_SETTING
from paper_figures.plan.profiles import PROFILES, Profile
from paper_figures.plan.tuned import LIMITED_METHODS, Choices, apply_choices, read_choices
from paper_figures.plan.worlds import DATASETS, LEVELS, Level, dirichlet, world

__all__ = ["EXPERIMENTS", "PROFILES", "Case", "Profile", "make_cases"]

CONTROLS = ("dmml-reversed", "dmml-kd-reversed", "dmml-kd-separate", "dmml-kd-greedy")
RIVALS = ("fedprox", "ogm-ge", "mmpareto", "fedgen", "fedproto")
ABLATIONS = tuple(
    f"dmml-kd-{change}"
    for change in ("no-classification", "no-similarity", "no-difference", "no-generator", "gaussian", "tb")
)
ALONE = {
    "watch": ("unimodal:accelerometer", "unimodal:gyroscope"),
    "mfeat": ("unimodal:fac", "unimodal:mor"),
    "avdigits": ("unimodal:image", "unimodal:audio"),
}
"""Modalities that are trained alone; of the six views of `mfeat` the profile of strokes and the coarsest one."""
BUDGETS = (0.3, 0.15, 0.6)
"""Energy budgets as fractions of what all iterations would cost, the tuned one first."""
PROBED = ("watch", "avdigits")
"""Datasets of two modalities, with the controls of the balance and with probed encoders at the tuned budget."""
ALPHAS = (0.1, 0.05, 0.3, 1.0, 10.0)
MISSING_RATES = (0.6, 0.0, 0.2, 0.4, 0.8)
TOPOLOGIES = (
    *("random_geometric", "ring", "torus", "star", "complete"),
    *("exponential", "erdos_renyi", "watts_strogatz"),
)
LINK_LOSSES = (0.0, 0.2, 0.5, 0.8)

METRICS: dict[str, tuple[str, float]] = {
    **{name: (name, 3.0) for name in ("variation", "root", "movement", "early", "first", "slowdown", "radial")},
    **{name: (name, 3.0) for name in ("drift", "rank", "score")},
    "early, p = 1": ("early", 1.0),
}
"""Setting of the experiment on metrics -> the metric and the exponent of the allocation."""
METRIC_WORLDS: dict[str, Level] = {"mfeat-pair": "severe", "mfeat": "severe", "watch": "moderate"}
"""Dataset of that experiment -> its level: two views that all hold, two to four of six views, two sensors."""
UNSEEN = "cameras"
"""The dataset that nothing was tuned on."""

Change = Callable[[ExperimentConfig], ExperimentConfig]


@dataclass(frozen=True)
class Case:
    """A run in its place in an experiment; a run that serves several is one case in each."""

    setting: str
    level: float | None
    config: ExperimentConfig


@dataclass(frozen=True)
class Point:
    """A point of an experiment's grid, from which a profile and a seed make a case."""

    dataset: str
    method: str
    setting: str = DEFAULT_SETTING
    level: float | None = None
    non_iid: Level = "moderate"
    budget: float | None = None
    change: Change | None = None
    """What differs from the world of that level and budget."""

    @property
    def place(self) -> tuple[str, str, str, float | None]:
        """By which a profile chooses points."""
        return self.dataset, self.method, self.setting, self.level


def comparison(_: Profile) -> Iterator[Point]:
    """Yield all methods at two levels of non-IID data, without a limit on energy; single modalities at one."""
    for level, dataset, method in product(
        reversed(LEVELS), DATASETS, ("local", *LIMITED_METHODS, *RIVALS, "centralized")
    ):
        yield Point(dataset, method, level, non_iid=level)
    for dataset in DATASETS:
        for method in ALONE[dataset]:
            yield Point(dataset, method, LEVELS[0], non_iid=LEVELS[0])


def ablation(_: Profile) -> Iterator[Point]:
    """Yield the method without each of its terms, with another generator, and with the balance."""
    for level, dataset, method in product(reversed(LEVELS), DATASETS, ("dmml", "dmml-kd", *ABLATIONS)):
        yield Point(dataset, method, level, non_iid=level)


def balance(_: Profile) -> Iterator[Point]:
    """Yield the balance and its controls at equal energy, at three budgets; without it the allotment is uniform."""
    for budget in BUDGETS:
        for dataset in DATASETS:
            change = PROBE if budget == BUDGETS[0] and dataset in PROBED else None
            for method in (*LIMITED_METHODS, *(CONTROLS if dataset in PROBED else ())):
                yield Point(dataset, method, level=budget, budget=budget, change=change)


def imbalance(_: Profile) -> Iterator[Point]:
    """Yield what a linear probe compares: encoders trained jointly, with and without balance, and each one alone."""
    for dataset in PROBED:
        for method in ("dmml", "dmml-tb", "dmml-reversed", "dmml-kd", "dmml-kd-tb", *ALONE[dataset]):
            yield Point(dataset, method, budget=BUDGETS[0], change=PROBE)


def features(_: Profile) -> Iterator[Point]:
    """Yield the method with and without the generator, whose features are looked at."""
    for dataset, method in product(DATASETS, ("dmml-kd", "dmml-kd-no-generator")):
        yield Point(dataset, method, LEVELS[-1], non_iid=LEVELS[-1])


def non_iid(_: Profile) -> Iterator[Point]:
    """Yield the method, its starting point and no exchange over the concentration of the devices' labels."""
    for alpha, dataset, method in product(ALPHAS, DATASETS, ("local", "dmml", "dmml-kd")):
        yield Point(dataset, method, level=alpha, non_iid="severe", change=split_by(alpha))


def missing(_: Profile) -> Iterator[Point]:
    """Yield the method and its starting point over the share of devices that lack modalities."""
    for rate, dataset, method in product(MISSING_RATES, DATASETS, ("dmml", "dmml-kd")):
        yield Point(dataset, method, level=rate, change=changed("data", missing_rate=rate))


def topology(profile: Profile) -> Iterator[Point]:
    """Yield the method and its starting point over graphs, numbers of devices and the loss of links, on `mfeat`."""
    usual = profile.num_devices or world("mfeat", "dmml", 0).data.num_devices
    axes: list[tuple[str, float | None, Change]] = [
        *(("topology", None, changed("topology", name=name)) for name in profile.topologies or TOPOLOGIES),
        *(("devices", float(count), changed("data", num_devices=count)) for count in (usual, usual // 2, 2 * usual)),
        *(("link loss", loss, changed("failures", link_probability=loss)) for loss in LINK_LOSSES),
    ]
    for setting, level, change in axes:
        for method in ("dmml", "dmml-kd"):
            yield Point("mfeat", method, setting, level, "severe", change=change)


def sensitivity(_: Profile) -> Iterator[Point]:
    """Yield the method with one of our own choices [C] changed at a time."""
    for dataset, (setting, change) in product(("mfeat", "watch"), SENSITIVITIES.items()):
        yield Point(dataset, "dmml-kd", setting, non_iid="severe", change=change)


def metrics(_: Profile) -> Iterator[Point]:
    """Yield the balance by each metric with its controls, at the tuned budget, where two views or more compete.

    The learning rate is that of the method that is balanced, and the exponent is the same for all metrics, so that
    nothing but the metric differs.
    """
    for setting, (metric, exponent) in METRICS.items():
        for (dataset, level), base in product(METRIC_WORLDS.items(), ("dmml", "dmml-kd")):
            place = {"non_iid": level, "budget": BUDGETS[0]}
            yield Point(dataset, base, setting, change=ranked, **place)
            for suffix in ("tb", "random", "reversed"):
                yield Point(dataset, base, setting, change=by_metric(f"{base}-{suffix}", metric, exponent), **place)


def regimes(_: Profile) -> Iterator[Point]:
    """Yield the balance with two of its controls where modalities are unlike in other ways, with untuned settings."""
    for setting, (dataset, change) in REGIMES.items():
        for base in ("dmml", "dmml-kd"):
            for method in (base, f"{base}-tb", f"{base}-random"):
                yield Point(dataset, method, setting, budget=BUDGETS[0], change=change)


def unseen(_: Profile) -> Iterator[Point]:
    """Yield the methods on a dataset that nobody tuned on, with the settings that any dataset gets."""
    for level, method in product(reversed(LEVELS), ("local", *LIMITED_METHODS, "centralized")):
        yield Point(UNSEEN, method, level, non_iid=level)


EXPERIMENTS: dict[str, Callable[[Profile], Iterator[Point]]] = {
    experiment.__name__: experiment
    for experiment in (
        *(comparison, ablation, balance, imbalance, features),
        *(non_iid, missing, topology, sensitivity),
        *(metrics, regimes, unseen),
    )
}
"""Name of an experiment -> the points of its grid, in the order in which experiments are run."""


def make_cases(name: str, profile: Profile, choices: Choices | None = None) -> list[Case]:
    """Return what a profile runs of an experiment, all of the first seed first, with the committed choices if None.

    Example:
        >>> [case.config.method.name for case in make_cases("features", PROFILES["smoke"])]
        ['dmml-kd', 'dmml-kd-no-generator']
    """
    choices = read_choices() if choices is None else choices
    scopes = profile.scopes.get(name, ())
    points = list(EXPERIMENTS[name](profile))
    return [
        Case(point.setting, point.level, configure(profile, point, seed, choices))
        for seed in sorted({seed for scope in scopes for seed in scope.seeds})
        for point in points
        if any(seed in scope.seeds and scope.has(*point.place) for scope in scopes)
    ]


def configure(profile: Profile, point: Point, seed: int, choices: Choices) -> ExperimentConfig:
    """Return a point's configuration: its world, cut to the profile, with tuned settings, and what it changes."""
    config = world(point.dataset, point.method, seed, point.non_iid, point.budget)
    training = replace(
        config.training,
        rounds=profile.rounds,
        evaluate_every=profile.evaluate_every,
        local_iterations=profile.local_iterations or config.training.local_iterations,
    )
    data = config.data
    if profile.num_devices is not None:
        # The natural partition has a number of devices of its own.
        data = replace(data, num_devices=profile.num_devices)
        data = dirichlet(data, 0.5) if data.partition == "natural" else data
    config = apply_choices(replace(config, data=data, training=training), choices)
    return point.change(config) if point.change else config


def changed(section: str, **options: Any) -> Change:
    """Return the change of options of a section of the configuration.

    Example:
        >>> changed("data", missing_rate=0.2)(world("watch", "dmml", seed=0)).data.missing_rate
        0.2
    """
    return lambda config: replace(config, **{section: replace(getattr(config, section), **options)})


PROBE = changed("training", probe=True)
"""Encoders are probed at the end."""


def by_metric(name: str, metric: str, exponent: float) -> Change:
    """Return the change to a balance or one of its controls, by a metric, of the method that is run otherwise."""
    policy = get_method(name).balance.policy

    def change(config: ExperimentConfig) -> ExperimentConfig:
        method = config.method
        balanced = replace(method.balance, policy=policy, metric=metric, exponent=exponent)
        return ranked(replace(config, method=replace(method, name=name, balance=balanced, base=method.name)))

    return change


def ranked(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration in which the metric's ranking is judged, and accuracy in the last round alone."""
    return replace(config, training=replace(config.training, ranking=True, evaluate_every=config.training.rounds))


def split_by(alpha: float) -> Change:
    """Return the change to a Dirichlet split of a concentration."""
    return lambda config: replace(config, data=dirichlet(config.data, alpha))


def guide_at_once(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration whose generator guides from the first round on, at full strength."""
    generator = replace(config.method.generator, warmup_rounds=0, ramp_rounds=1)
    return replace(config, method=replace(config.method, generator=generator))


def tenfold_similarity(config: ExperimentConfig) -> ExperimentConfig:
    """Return the configuration whose similarity loss weighs ten times as much."""
    losses = replace(config.method.losses, similarity=10 * config.method.losses.similarity)
    return replace(config, method=replace(config.method, losses=losses))


def rare_sensor(modality: str) -> Change:
    """Return the change to a modality that a fifth of the devices hold, beside all the others."""
    return changed("data", missing_rate=0.8, lacking=modality)


REGIMES: dict[str, tuple[str, Change | None]] = {
    "every device holds a strong and a weak view": ("mfeat-pair", None),
    "a clean image beside noisy audio": ("avdigits-clean", None),
    "a rare gyroscope, never alone": ("watch", rare_sensor("gyroscope")),
    "a rare recording, never alone": ("avdigits", rare_sensor("audio")),
    "as tuned": ("watch", None),
}
"""What is unlike the other experiments -> the dataset, and the change of its world."""

SENSITIVITIES: dict[str, Change | None] = {
    DEFAULT_SETTING: None,
    "similarity x10": tenfold_similarity,
    "generator from round 1": guide_at_once,
    "constant learning rate": changed("training", final_learning_rate_fraction=1.0),
    "no momentum": changed("training", momentum=0.0),
    "feature width 8": changed("training", feature_width=8),
}
"""Name of a changed choice -> the change."""
