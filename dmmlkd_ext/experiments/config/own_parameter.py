"""The one parameter that characterizes a method, which a search tunes besides the learning rate."""

from __future__ import annotations

import math
from dataclasses import replace

from dmmlkd_ext.training.methods import METHODS, MethodConfig


def get_own_parameter(method: MethodConfig) -> float:
    """Return the value of a method's characteristic parameter; NaN where it has none or it is not known.

    Example:
        >>> get_own_parameter(METHODS["dmml-kd-tb"]), get_own_parameter(METHODS["dmml-kd"])
        (3.0, 1.0)
    """
    match method.tunes:
        case "exponent":
            return method.balance.exponent
        case "modulation_strength":
            return method.modulation_strength
        case "proximal":
            return method.proximal
        case "loss_scale":
            return loss_scale(method)
    return math.nan


def set_own_parameter(method: MethodConfig, value: float) -> MethodConfig:
    """Return a method with another value of its characteristic parameter.

    Raises:
        ValueError: the method has none, or `value` is out of the parameter's range.

    Example:
        >>> set_own_parameter(METHODS["fedprox"], 0.1).proximal
        0.1
    """
    match method.tunes:
        case "exponent":
            return replace(method, balance=replace(method.balance, exponent=value))
        case "modulation_strength":
            return replace(method, modulation_strength=value)
        case "proximal":
            return replace(method, proximal=value)
        case "loss_scale":
            return scale_losses(method, value)
    raise ValueError(f"method {method.name} has no parameter of its own, got the value {value}")


def loss_scale(method: MethodConfig) -> float:
    """Return the ratio of a method's loss weights to those in the table of methods; NaN if it is not one number."""
    if method.name not in METHODS:
        return math.nan
    known, weights = METHODS[method.name].losses.named(), method.losses.named()
    factors = {round(weights[term] / weight, 9) for term, weight in known.items() if weight}
    absent_alike = all(not weights[term] for term, weight in known.items() if not weight)
    return factors.pop() if len(factors) == 1 and absent_alike else math.nan


def scale_losses(method: MethodConfig, scale: float) -> MethodConfig:
    """Return a method whose loss weights, except the task's, are those in the table of methods times `scale`.

    Raises:
        ValueError: `scale` is not positive and finite, or the method is not in the table.

    Example:
        >>> scale_losses(METHODS["dmml-kd"], 2).losses.generator
        0.6
    """
    if not 0 < scale < math.inf:
        raise ValueError(f"scale must be positive and finite, got {scale}")
    if method.name not in METHODS:
        raise ValueError(f"method must be one of {', '.join(METHODS)}; got {method.name!r}")
    return replace(method, losses=METHODS[method.name].losses.scaled(scale))
