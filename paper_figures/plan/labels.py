"""What methods and settings are called, and the order in which they stand: the same in every figure and table."""

from __future__ import annotations

from collections.abc import Iterable

from dmmlkd_ext.training.methods import UNIMODAL

REFERENCE_METHOD = "dmml"
"""The method that others are compared with: the paper's starting point."""
DEFAULT_SETTING = "default"
"""The setting of a case whose experiment varies its level alone; it is not written."""
SETTING_ORDER = (DEFAULT_SETTING, "moderate", "severe", "topology", "devices", "link loss")

LABELS: dict[str, str] = {
    "local": "Local",
    "dmml": "DMML",
    "dmml-tb": "DMML + balance",
    "dmml-kd": "DMML-KD",
    "dmml-kd-tb": "DMML-KD + balance",
    "fedprox": "FedProx",
    "ogm-ge": "OGM-GE",
    "mmpareto": "MMPareto",
    "fedgen": "FedGen",
    "fedproto": "FedProto",
    "centralized": "Centralized",
    "dmml-random": "DMML, random",
    "dmml-reversed": "DMML, reversed",
    "dmml-kd-random": "DMML-KD, random",
    "dmml-kd-reversed": "DMML-KD, reversed",
    "dmml-kd-separate": "DMML-KD, separate",
    "dmml-kd-greedy": "DMML-KD, greedy",
    "dmml-kd-no-classification": "without classification",
    "dmml-kd-no-similarity": "without similarity",
    "dmml-kd-no-difference": "without difference",
    "dmml-kd-no-generator": "without generator",
    "dmml-kd-gaussian": "Gaussian generator",
}
"""Method -> its label, in the order of legends and tables."""


def label(method: str) -> str:
    """Return what a method is called; one without a label keeps its name.

    Example:
        >>> label("dmml-kd"), label("unimodal:audio")
        ('DMML-KD', 'audio alone')
    """
    if method.startswith(UNIMODAL):
        return f"{method.removeprefix(UNIMODAL)} alone"
    return LABELS.get(method, method)


def in_order(methods: Iterable[str]) -> list[str]:
    """Return methods in the order of legends and tables, those without a label last.

    Example:
        >>> in_order({"dmml-kd", "zeta", "local"})
        ['local', 'dmml-kd', 'zeta']
    """
    ranks = {name: index for index, name in enumerate(LABELS)}
    return sorted(set(methods), key=lambda name: (ranks.get(name, len(ranks)), name))
