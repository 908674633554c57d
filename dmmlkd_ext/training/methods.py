"""The methods that are compared, as data: a name and its settings (METHOD 7).

A term that a method lacks has weight zero and is not computed.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field, replace
from typing import Any, Literal, get_args

from dmmlkd_ext.balance import BalanceConfig
from dmmlkd_ext.training.guide.base import GeneratorConfig


@dataclass(frozen=True)
class LossWeights:
    """Weights of the loss terms other than the task loss (METHOD 3, "total"); zero leaves a term out.

    The terms `classification`, `similarity` and `difference` are the paper's [P], their weights this project's [C].
    """

    classification: float = 0.0
    """l_cls of F_cls: cross-entropy of the shared head on each modality's common feature."""
    similarity: float = 0.0
    """l_sim of F_sim: Kullback-Leibler divergence between the modalities' common predictions."""
    difference: float = 0.0
    """l_dif of F_dif: orthogonality of common and specific features, in the normalized form."""
    generator: float = 0.0
    """l_gen of F_gen: guidance of the common features by the generator."""
    rehearsal: float = 0.0
    """l_reh: cross-entropy of the shared head on generated features of all classes."""
    further: dict[str, float] = field(default_factory=dict, hash=False)
    """Weights of registered terms by name (`dmmlkd_ext.training.learn.terms.register_term`)."""

    def __post_init__(self) -> None:
        for name, value in self.named().items():
            if not 0 <= value < math.inf:
                raise ValueError(f"{name} must be finite and at least 0, got {value}")

    def named(self) -> dict[str, float]:
        """Return all weights by the names of their terms.

        Example:
            >>> LossWeights(similarity=0.1, further={"margin": 0.2}).named()["margin"]
            0.2
        """
        return {name: value for name, value in vars(self).items() if name != "further"} | self.further

    def scaled(self, factor: float) -> LossWeights:
        """Return all weights times a factor."""
        further = {name: factor * value for name, value in self.further.items()}
        weights: dict[str, Any] = {name: factor * value for name, value in vars(self).items() if name != "further"}
        return LossWeights(**weights, further=further)


Modulation = Literal["none", "ogm-ge", "mmpareto"]
Tuned = Literal["exponent", "modulation_strength", "proximal", "loss_scale"]


@dataclass(frozen=True)
class MethodConfig:
    """One method: what it minimizes, whether it exchanges, how it allocates local iterations.

    Raises:
        ValueError: a field is out of its range.
    """

    name: str = "dmml-kd"
    exchange: bool = True
    """Whether devices mix their parameters with their neighbours' after each round."""
    losses: LossWeights = field(default_factory=LossWeights)
    generator: GeneratorConfig = field(default_factory=GeneratorConfig)
    balance: BalanceConfig = field(default_factory=lambda: BalanceConfig(policy="uniform"))
    """Allocation of local iterations."""
    proximal: float = 0.0
    """Weight of the proximal term mu / 2 ||w - start||^2 (FedProx, Li et al. 2020)."""
    modulation: Modulation = "none"
    """How the gradients of the modalities' blocks are changed: by OGM-GE (Peng et al. 2022) or MMPareto (Wei and Hu
    2024)."""
    modulation_strength: float = 0.5
    """The alpha of OGM-GE; the factor on the length of a merged gradient of MMPareto."""
    only: str | None = None
    """The one modality that is used; None uses all. A device that lacks it predicts its most frequent training class,
    and counts in the mean with that accuracy."""
    centralized: bool = False
    """Whether one device gets all data, each sample with the modalities of its device: an upper bound, not a rival."""
    base: str | None = None
    """The method of which this is a variant or control: its tuned settings apply unless this one has tuned settings."""
    tunes: Tuned | None = None
    """What a search tunes besides the learning rate: `exponent` of the balance, `modulation_strength`, `proximal`, or
    `loss_scale`, a factor on the weights of all loss terms except the task's."""

    def __post_init__(self) -> None:
        if self.modulation not in get_args(Modulation):
            raise ValueError(f"modulation must be one of {', '.join(get_args(Modulation))}; got {self.modulation!r}")
        for name in ("proximal", "modulation_strength"):
            if not 0 <= getattr(self, name) < float("inf"):
                raise ValueError(f"{name} must be finite and at least 0, got {getattr(self, name)}")
        guided = self.losses.generator or self.losses.rehearsal
        if guided and self.generator.kind == "none":
            raise ValueError("generator.kind must not be none where losses.generator or losses.rehearsal is positive")


DISTILLATION = LossWeights(classification=0.5, similarity=0.03, difference=0.05, generator=0.3, rehearsal=0.1)
NETWORK = GeneratorConfig(kind="network")

_DMML_KD = MethodConfig("dmml-kd", losses=DISTILLATION, generator=NETWORK, tunes="loss_scale")
_DMML = MethodConfig("dmml")


def _balanced(method: MethodConfig, name: str, policy: str) -> MethodConfig:
    tunes: Tuned | None = "exponent" if policy in ("balanced", "reversed", "random") else method.tunes
    return replace(method, name=name, balance=BalanceConfig(policy=policy), base=method.name, tunes=tunes)


def _without(term: str) -> MethodConfig:
    weights: dict[str, Any] = {**DISTILLATION.named(), term: 0.0}
    losses = LossWeights(**weights)
    return replace(_DMML_KD, name=f"dmml-kd-no-{term}", losses=losses, base="dmml-kd")


METHODS: dict[str, MethodConfig] = {
    method.name: method
    for method in (
        # The paper's method, its starting point and its parts
        MethodConfig("local", exchange=False),
        _DMML,
        _DMML_KD,
        _balanced(_DMML_KD, "dmml-kd-tb", "balanced"),
        _balanced(_DMML, "dmml-tb", "balanced"),
        # Ablation
        _without("classification"),
        _without("similarity"),
        _without("difference"),
        replace(
            _DMML_KD,
            name="dmml-kd-no-generator",
            losses=replace(DISTILLATION, generator=0.0, rehearsal=0.0),
            generator=GeneratorConfig(),
            base="dmml-kd",
        ),
        replace(_DMML_KD, name="dmml-kd-gaussian", generator=GeneratorConfig(kind="gaussian"), base="dmml-kd"),
        # Controls of the balance
        replace(_balanced(_DMML_KD, "dmml-kd-reversed", "reversed"), base="dmml-kd-tb"),
        replace(_balanced(_DMML_KD, "dmml-kd-random", "random"), base="dmml-kd-tb"),
        _balanced(_DMML_KD, "dmml-kd-separate", "separate"),
        _balanced(_DMML_KD, "dmml-kd-greedy", "greedy"),
        replace(_balanced(_DMML, "dmml-reversed", "reversed"), base="dmml-tb"),
        replace(_balanced(_DMML, "dmml-random", "random"), base="dmml-tb"),
        # Rivals
        MethodConfig("fedprox", proximal=0.01, tunes="proximal"),
        MethodConfig("ogm-ge", modulation="ogm-ge", tunes="modulation_strength"),
        MethodConfig("mmpareto", modulation="mmpareto", modulation_strength=1.5, tunes="modulation_strength"),
        # FedGen (Zhu et al. 2021): a generator of the common features, whose head all devices share (a modality's head
        # exists only where the modality does), trained by the heads alone.
        MethodConfig(
            "fedgen",
            losses=LossWeights(generator=1.0, rehearsal=1.0),
            generator=GeneratorConfig(kind="network", moment_weight=0.0, weigh_heads=True),
            tunes="loss_scale",
        ),
        MethodConfig(
            "fedproto",
            losses=LossWeights(generator=1.0),
            generator=GeneratorConfig(kind="prototypes"),
            tunes="loss_scale",
        ),
        MethodConfig("centralized", centralized=True),
    )
}
"""The methods by name; there is also `unimodal:<modality>` for each modality, and `uniform`, an alias of `dmml-kd`."""

UNIFORM = "uniform"
"""The control of the balance that gives all modalities equal iterations if energy is short, as `dmml-kd` does."""

UNIMODAL = "unimodal:"


_FURTHER: dict[str, MethodConfig] = {}


def register_method(method: MethodConfig) -> None:
    """Register a method under its name.

    Raises:
        ValueError: the name is empty or belongs to the package.

    Example, in a file that `--module` names:
        >>> margin = replace(get_method("dmml"), name="dmml-margin", losses=LossWeights(further={"margin": 0.3}))
        >>> register_method(replace(margin, base="dmml"))
        >>> get_method("dmml-margin").losses.named()["margin"]
        0.3
    """
    if not method.name or method.name == UNIFORM or method.name in METHODS or method.name.startswith(UNIMODAL):
        raise ValueError(f"name of a method must be one of your own, got {method.name!r}")
    _FURTHER[method.name] = method


def method_names() -> tuple[str, ...]:
    """Return the names of all methods, registered ones last."""
    return (*METHODS, UNIFORM, f"{UNIMODAL}<modality>", *_FURTHER)


def get_method(name: str) -> MethodConfig:
    """Return the method of that name.

    Raises:
        ValueError: there is no method `name`; the message lists all methods.

    Example:
        >>> get_method("dmml-kd").losses.classification
        0.5
    """
    if name == UNIFORM:
        return replace(_DMML_KD, name=UNIFORM, base="dmml-kd")
    if name.startswith(UNIMODAL) and len(name) > len(UNIMODAL):
        return MethodConfig(name, only=name.removeprefix(UNIMODAL), base="dmml")
    method = METHODS.get(name) or _FURTHER.get(name)
    if method is None:
        raise ValueError(f"method must be one of {', '.join(method_names())}; got {name!r}")
    return method
