"""Guidance: a generator, or an alternative, that pulls the devices' common features to one distribution."""

from dmmlkd_ext.training.guide.base import (
    GENERATOR,
    FeatureMoments,
    GeneratorConfig,
    Guidance,
    GuidanceBatch,
    GuidanceRound,
)
from dmmlkd_ext.training.guide.gaussian import GaussianGuidance
from dmmlkd_ext.training.guide.generator import NetworkGuidance
from dmmlkd_ext.training.guide.prototypes import PrototypeGuidance

__all__ = [
    "GENERATOR",
    "FeatureMoments",
    "GaussianGuidance",
    "GeneratorConfig",
    "Guidance",
    "GuidanceBatch",
    "GuidanceRound",
    "NetworkGuidance",
    "PrototypeGuidance",
    "make_guidance",
]


def make_guidance(config: GeneratorConfig, num_classes: int, feature_width: int, seed: int) -> Guidance | None:
    """Return the guidance that a configuration names, or None for `none` (METHOD 3).

    Example:
        >>> make_guidance(GeneratorConfig(), num_classes=3, feature_width=8, seed=0) is None
        True
        >>> type(make_guidance(GeneratorConfig(kind="gaussian"), 3, 8, seed=0)).__name__
        'GaussianGuidance'
    """
    kinds = {"network": NetworkGuidance, "gaussian": GaussianGuidance, "prototypes": PrototypeGuidance}
    if config.kind == "none":
        return None
    return kinds[config.kind](config, num_classes, feature_width, seed)
