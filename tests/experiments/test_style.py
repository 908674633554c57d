from __future__ import annotations

import pytest
from matplotlib import pyplot as plt
from matplotlib.lines import Line2D

from dmmlkd_ext.experiments.show import style


@pytest.mark.parametrize(
    ("panels", "label", "columns"),
    [(3, "DMML", 4), (3, "over a loop of the reference over devices", 2), (1, "DMML", 3), (1, "a" * 200, 1)],
    ids=["all fit", "two fit", "three fit a narrow page", "none fits"],
)
def test_a_legend_has_as_many_columns_as_fit_the_page(panels, label, columns):
    with style.style():
        check_legend(panels, label, columns)


def check_legend(panels, label, columns):
    figure, _ = style.panels(1, panels, 2.0)
    style.add_legend(figure, [Line2D([], [], label=f"{label} {number}") for number in range(7)], 4)
    figure.canvas.draw()
    (legend,) = figure.legends
    entries = [text.get_window_extent() for text in legend.get_texts()]
    assert len(entries) == 7
    assert len({round(entry.x0) for entry in entries}) == columns
    if columns > 1:
        assert all(entry.x0 >= 0 and entry.x1 <= figure.bbox.width for entry in entries)
    plt.close(figure)
