from __future__ import annotations

import re
from pathlib import Path

import pandas as pd
import pytest
from rows import example_table

from dmmlkd_ext.experiments.results import Results
from dmmlkd_ext.training.methods import METHODS
from paper_figures import captions, figure_convergence, style, table_accuracy, transforms
from paper_figures.pipeline import FIGURES


@pytest.fixture(scope="module", autouse=True)
def _style() -> None:
    style.use_style()


@pytest.fixture(scope="module")
def results() -> Results:
    return Results(example_table(), ("watch-local-0",))


@pytest.mark.parametrize("name", FIGURES)
def test_the_same_results_give_the_same_bytes(name: str, results: Results, tmp_path: Path) -> None:
    draw = FIGURES[name].make
    first, second = draw(results, tmp_path / "a"), draw(results, tmp_path / "b")
    assert [path.name for path in first] == [path.name for path in second]
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes(), one.name


@pytest.mark.parametrize("name", FIGURES)
def test_no_file_holds_a_date_or_a_path(name: str, results: Results, tmp_path: Path) -> None:
    for path in FIGURES[name].make(results, tmp_path):
        content = path.read_bytes()
        assert b"CreationDate" not in content
        assert str(tmp_path).encode() not in content


def test_the_figure_has_a_panel_a_setting_and_a_line_a_method(results: Results) -> None:
    curve = transforms.over_rounds(transforms.accuracy_by_run(results.table))
    figure = figure_convergence.draw(curve)
    assert len(figure.axes) == 2
    assert figure.get_size_inches()[0] == style.TWO_COLUMNS
    for axis, factor in zip(figure.axes, (1.0, 0.5), strict=True):
        colour, marker = style.look("dmml").colour, style.look("dmml").marker
        (line,) = [line for line in axis.get_lines() if (line.get_color(), line.get_marker()) == (colour, marker)]
        assert line.get_ydata()[-1] == pytest.approx(60 * factor)
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DMML", "DMML-KD"]
    assert figure.axes[0].get_ylabel() == "Test accuracy (%)"
    assert figure.axes[-1].get_xlabel() == "Round"


def test_the_drawn_numbers_are_in_the_csv_and_the_text_beside_it(results: Results, tmp_path: Path) -> None:
    figure_convergence.make(results, tmp_path)
    drawn = pd.read_csv(tmp_path / "figure_convergence.csv")
    assert drawn.query("method == 'dmml' and budget == '100%' and round == 2")["mean"].item() == 0.6
    caption = (tmp_path / "figure_convergence.md").read_text()
    assert "watch, energy budget 100%, DMML-KD: 73.3 ± 14.3 %; against DMML +13.3 [-1.0, +27.7]" in caption
    assert "Commit: c0ffee" in caption
    assert "Seeds: 0, 1, 2" in caption
    assert "watch-dmml-kd-2-0.3" in caption
    assert "Not finished, and left out: watch-local-0" in caption


def test_the_table_has_its_three_forms(results: Results, tmp_path: Path) -> None:
    table_accuracy.make(results, tmp_path)
    assert len(pd.read_csv(tmp_path / "table_accuracy.csv")) == 4
    markdown = (tmp_path / "table_accuracy.md").read_text()
    assert re.search(r"\| watch +\| 100% +\| DMML-KD +\| 73\.3 ± 14\.3 \| 63\.3 ± 14\.3", markdown)
    assert "Holm over the 2 tests" in markdown
    latex = (tmp_path / "table_accuracy.tex").read_text()
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"watch & 100\% & DMML-KD & 73.3 $\pm$ 14.3 & 63.3 $\pm$ 14.3 & +13.3 [-1.0, +27.7]" in latex


def test_one_seed_has_no_interval(tmp_path: Path) -> None:
    table = example_table()
    results = Results(table[table["seed"] == 0], ())
    for draw in (figure_convergence.make, table_accuracy.make):
        draw(results, tmp_path)
    assert "| 70.0 " in (tmp_path / "table_accuracy.md").read_text()
    assert "+10.0 points over 1 pairs" in (tmp_path / "figure_convergence.md").read_text()


def test_every_method_looks_different() -> None:
    looks = {method: style.look(method) for method in METHODS}
    assert set(METHODS) == set(style.METHOD_ORDER)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)
    assert len({look.label for look in looks.values()}) == len(looks)
    compared = [look for method, look in looks.items() if not method.startswith(("dmml-kd-", "dmml-reversed"))]
    compared.append(looks["dmml-kd-tb"])
    assert len({look.colour for look in compared}) == len({look.marker for look in compared}) == len(compared)
    assert style.look("mine").label == "mine"


def test_numbers_as_text() -> None:
    nan = float("nan")
    assert captions.with_interval(0.8, 0.75, 0.85) == "80.0 ± 5.0"
    assert captions.with_interval(0.8, nan, nan) == "80.0"
    assert captions.signed(-0.012, -0.03, 0.006) == "-1.2 [-3.0, +0.6]"
    assert captions.signed(nan, nan, nan) == "-"
