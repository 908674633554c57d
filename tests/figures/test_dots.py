"""With fewer than five seeds, the values of the seeds are drawn as dots, and no band or bar."""

from __future__ import annotations

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from matplotlib.collections import LineCollection, PolyCollection

from dmmlkd_ext.experiments import statistics
from dmmlkd_ext.experiments.show import style
from paper_figures.draw import levels


def rows(seeds: int) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {
                "dataset": "watch",
                "level": level,
                "method": method,
                "seed": seed,
                "mean": 0.5 + 0.1 * level + gain + 0.01 * seed,
            }
            for level in (0.0, 1.0)
            for method, gain in (("dmml", 0.0), ("dmml-kd", 0.05))
            for seed in range(seeds)
        ]
    )


def drawn(axis: plt.Axes) -> tuple[int, int]:
    """Return the numbers of bands or bars, and of dots."""
    intervals = sum(isinstance(item, (PolyCollection, LineCollection)) for item in axis.collections)
    dots = sum(len(line.get_xdata()) for line in axis.lines if line.get_marker() == ".")
    return intervals, dots


@pytest.mark.parametrize("seeds", [2, 4])
def test_few_seeds_are_dots_at_their_values(seeds: int) -> None:
    curve = statistics.summarize(rows(seeds).query("method == 'dmml'"), ["level"])
    with style.style():
        _, axis = plt.subplots()
        style.draw_line(axis, curve, "dmml", "level")
        assert drawn(axis) == (0, 2 * seeds)
        shown = {round(float(y), 6) for line in axis.lines if line.get_marker() == "." for y in line.get_ydata()}
        expected = rows(seeds).query("method == 'dmml'")["mean"]
        assert shown == {round(100 * value, 6) for value in expected}
        plt.close("all")


def test_five_seeds_have_their_intervals_and_the_columns_of_before() -> None:
    curve = statistics.summarize(rows(5), ["level", "method"])
    assert "dots" not in curve
    with style.style():
        _, axis = plt.subplots()
        style.draw_line(axis, curve.query("method == 'dmml'"), "dmml", "level")
        assert drawn(axis) == (1, 0)
        plt.close("all")
    compared = statistics.compare(rows(5), ["dataset", "level"], "dmml", values=("mean",))
    assert not [name for name in compared if name.endswith("dots")]


def test_differences_of_few_seeds_are_dots_too() -> None:
    compared = statistics.compare(rows(3), ["dataset", "level"], "dmml", values=("mean",))
    with style.style():
        _, (above, below) = plt.subplots(2)
        levels.draw_accuracy(above, compared)
        levels.draw_differences(below, compared)
        assert drawn(above) == (0, 2 * 2 * 3)
        assert drawn(below) == (0, 2 * 3)
        ours = next(line.get_ydata() for line in below.lines if line.get_marker() == ".")
        assert ours == pytest.approx([5.0] * 6)
        plt.close("all")
