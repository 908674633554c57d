"""Numbers as the text of tables and captions: percent, intervals, p values, quantities with their units."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any


def percent(value: float) -> str:
    """Return an accuracy in percent, e.g. ``81.3``, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def interval_of(row: Mapping[Any, Any], name: str) -> tuple[float, float, float]:
    """Return a value of a row of `dmmlkd_ext.experiments.statistics.compare` with the ends of its interval."""
    return row[name], row[f"{name}_low"], row[f"{name}_high"]


def with_interval(mean: float, low: float, high: float) -> str:
    """Return a mean and half of its interval in percent, e.g. ``81.3 ± 2.0``."""
    return percent(mean) if math.isnan(low) else f"{percent(mean)} ± {100 * (high - low) / 2:.1f}"


def signed(value: float, low: float, high: float, scale: float = 100.0, digits: int = 1) -> str:
    """Return a difference with its interval, by default in percentage points, e.g. ``+3.2 [+1.1, +5.3]``."""
    if math.isnan(value):
        return "-"
    # Adding zero to what is rounded turns -0.0 into +0.0.
    shown, *ends = (f"{round(scale * number, digits) + 0.0:+.{digits}f}" for number in (value, low, high))
    return shown if math.isnan(low) else f"{shown} [{', '.join(ends)}]"


def p_value(value: float) -> str:
    """Return a p value, e.g. ``0.012`` or ``<0.001``, or a dash where there is none."""
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def quantity(value: float, unit: str = "") -> str:
    """Return a number of a wide range with three digits and a unit with its prefix.

    Example:
        >>> quantity(12345.0, "J"), quantity(0.5, "s"), quantity(float("nan"), "s")
        ('12.3 kJ', '500 ms', '-')
    """
    if math.isnan(value):
        return "-"
    factor, prefix = prefix_of(value)
    return f"{value / factor:.3g} {prefix}{unit}".strip()


def prefix_of(largest: float) -> tuple[float, str]:
    """Return the factor and the prefix of a unit in which a largest value has one to three digits before the point.

    Example:
        >>> prefix_of(0.056), prefix_of(12.0), prefix_of(4.5e6)
        ((0.001, 'm'), (1.0, ''), (1000000.0, 'M'))
    """
    prefixes = ((1e9, "G"), (1e6, "M"), (1e3, "k"), (1.0, ""), (1e-3, "m"), (1e-6, "µ"))
    return next(((factor, prefix) for factor, prefix in prefixes if abs(largest) >= factor), (1.0, ""))
