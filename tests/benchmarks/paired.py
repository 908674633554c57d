"""Times of several functions, taken in turns, so that their ratios hold on a machine whose speed drifts."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping

SHORT = 2e-3
"""Seconds: what takes less is called once more at the beginning of each turn, without counting."""


def interleave(
    functions: Mapping[str, Callable[[], object]], seconds: float = 0.4, least: int = 7, most: int = 400
) -> dict[str, list[float]]:
    """Return the seconds of each call, round by round: a, b, c, a, b, c, ... after two rounds that do not count.

    A turn of a short function begins with a call that does not count: what it then finds in the caches is its own, as
    in a loop that calls it alone, and not what the function before it left there.
    """
    first = {}
    for name, function in functions.items():
        function()
        start = time.perf_counter()
        function()
        first[name] = time.perf_counter() - start
    # Short calls are repeated, so that the clock and the loop do not count.
    repeats = {name: max(1, int(SHORT / 2 / max(duration, 1e-7))) for name, duration in first.items()}
    round_seconds = sum(repeats[name] * duration for name, duration in first.items())
    rounds = min(most, max(least, int(seconds * len(functions) / max(round_seconds, 1e-6))))
    times: dict[str, list[float]] = {name: [] for name in functions}
    for _ in range(rounds):
        for name, function in functions.items():
            if first[name] < SHORT:
                function()
            start = time.perf_counter()
            for _ in range(repeats[name]):
                function()
            times[name].append((time.perf_counter() - start) / repeats[name])
    return times


def ratio(times: Mapping[str, list[float]], numerator: str, denominator: str) -> float:
    """Return the median of the ratios of the calls of a round."""
    return statistics.median(a / b for a, b in zip(times[numerator], times[denominator], strict=True))
