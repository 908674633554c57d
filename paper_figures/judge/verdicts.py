"""The rule by which a difference, and a claim, is decided: one of four verdicts, or none where nothing was run."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping

from scipy import stats

from dmmlkd_ext.experiments.statistics import Interval

EQUIVALENCE = 0.01
"""An effect is absent if its interval lies within plus and minus this: a point of accuracy [C]."""
LEAST_SEEDS = 5
"""Of each difference; with fewer, a claim has a direction and no verdict."""
POWER = 0.8
"""The probability with which the effect that is called detectable is found."""
HOLDS, ABSENT, CONTRADICTED, UNDECIDED = "holds", "absent", "contradicted", "undecided"
NO_INTERVAL, NOT_RUN, TOO_FEW = "no interval", "not run", "too few seeds"
VERDICTS = (HOLDS, ABSENT, UNDECIDED, CONTRADICTED)

RULE = (
    "A difference is positive if its claim is true. Its effect is `absent` if the paired 95% interval lies within "
    f"±{100 * EQUIVALENCE:g} point. Otherwise it `holds` if the interval lies above zero, is `contradicted` if it lies "
    "below, and `undecided` if it holds zero. Against a margin, where one is stated, it holds above minus the margin "
    "and is contradicted below. A claim has the verdict of the mean over its differences, by the same rule, over the "
    "seeds that have all of them; one of several parts has the verdict of its worst part, and is `not run` where a "
    "part has no runs, unless another part contradicts it. Differences that contradict a claim are named, `clearly` "
    "where p is below 0.05 after Holm's adjustment over the differences of the claim, whatever the verdict on the "
    f"mean. Where a difference has fewer than {LEAST_SEEDS} seeds, the verdict is `{TOO_FEW}` and where all "
    f"differences point. Detectable is the effect that would be found with a probability of {POWER:.0%} at this spread "
    "and number of seeds."
)


def verdict_on(interval: Interval, margin: float = 0.0) -> str:
    """Return the verdict on a difference by `RULE`.

    Args:
        interval: the difference, which is positive if the claim is true.
        margin: the loss up to which the claim is true all the same; 0 asks for a gain that is not absent.

    Example:
        >>> intervals = [(0.005, 0.03), (0.001, 0.006), (-0.02, 0.01), (-0.04, -0.002)]
        >>> [verdict_on(Interval(0.0, low, high, 5)) for low, high in intervals]
        ['holds', 'absent', 'undecided', 'contradicted']
        >>> verdict_on(Interval(-0.03, -0.04, -0.02, 5), margin=0.05)
        'holds'
    """
    if math.isnan(interval.low):
        return NO_INTERVAL
    if not margin and interval.low > -EQUIVALENCE and interval.high < EQUIVALENCE:
        return ABSENT
    if interval.low > -margin:
        return HOLDS
    return CONTRADICTED if interval.high < -margin else UNDECIDED


def verdict_of_parts(parts: Mapping[str, str]) -> str:
    """Return the verdict on a claim from those on its parts: the worst; not run where a part has none.

    Example:
        >>> [verdict_of_parts({"uniform": "holds", "random": found}) for found in ("absent", "")]
        ['absent', 'not run']
    """
    found = set(parts.values())
    if CONTRADICTED in found:
        return CONTRADICTED
    if not found <= set(VERDICTS):
        return NOT_RUN
    return ABSENT if ABSENT in found else UNDECIDED if UNDECIDED in found else HOLDS


def direction(values: Iterable[float]) -> str:
    """Return where differences of too few seeds for a verdict point, each shifted by its margin."""
    signs = {value > 0 for value in values}
    return f"{TOO_FEW}, {'pointing both ways' if len(signs) > 1 else 'in favour' if signs == {True} else 'against'}"


def detectable(interval: Interval) -> float:
    """Return the effect that a paired t test finds with the probability `POWER` at an interval's spread and count.

    It is (t(0.975) + t(0.8)) standard errors, close to the exact value by the noncentral distribution.

    Example:
        >>> round(detectable(Interval(0.0, -0.0278, 0.0278, 5)), 4)
        0.0372
    """
    if interval.count < 2 or math.isnan(interval.low):
        return math.nan
    freedom = interval.count - 1
    quantile = float(stats.t.ppf(0.975, freedom))
    error = (interval.high - interval.low) / (2.0 * quantile)
    return error * (quantile + float(stats.t.ppf(POWER, freedom)))
