from __future__ import annotations

import dataclasses
import re
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd
import pytest
from rows import example_table
from synthetic import MODALITIES, SMOKE, TINY, make_results, of

from dmmlkd_ext.experiments.show import style, words
from dmmlkd_ext.experiments.show.labels import LABELS, label
from dmmlkd_ext.training.methods import METHODS, UNIMODAL
from paper_figures.collect.inputs import MissingResultsError, Results
from paper_figures.draw import captions
from paper_figures.figures import convergence, non_iid
from paper_figures.judge import comparisons, transforms
from paper_figures.judge.comparisons import over_levels
from paper_figures.pipeline import MODULES, draw

MEASURED = ("figure_kernels", "table_kernels", "figure_scaling")
"""Drawn from the results of benchmarks; see test_benchmarks.py."""
DRAWN = [name for name in MODULES if name not in MEASURED]
NOT_A_NUMBER = re.compile(r"\bnan\b")


@pytest.fixture(scope="module", autouse=True)
def _style() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(style, "DOTS_PER_INCH", 40)  # what is tested is the same at any resolution, and sooner drawn
        with style.style():
            yield


@pytest.fixture(scope="module")
def tiny() -> Results:
    return make_results(TINY)


@pytest.fixture(scope="module")
def example() -> Results:
    return Results(example_table(), ("watch-local-0",))


@pytest.mark.parametrize("name", DRAWN)
def test_the_same_results_give_the_same_bytes(name: str, tiny: Results, tmp_path: Path) -> None:
    results = of(tiny, MODULES[name].EXPERIMENTS)
    first, second = (draw(name, results, tmp_path / folder) for folder in ("a", "b"))
    endings = [".tex", ".csv", ".md"] if name.startswith("table_") else [".pdf", ".png", ".csv", ".md"]
    assert [path.name for path in first] == [name + ending for ending in endings]
    for one, other in zip(first, second, strict=True):
        content = one.read_bytes()
        assert content == other.read_bytes(), one.name
        assert b"CreationDate" not in content
        assert str(tmp_path).encode() not in content
    assert not plt.get_fignums()  # closed, or a long run fills the memory
    text = (tmp_path / "a" / f"{name}.md").read_text()
    assert "Commit: c0ffee1" in text
    assert "Seeds: 0, 1, 2" in text
    assert not NOT_A_NUMBER.search(text)
    assert len(pd.read_csv(tmp_path / "a" / f"{name}.csv")) > 0


@pytest.mark.parametrize("name", DRAWN)
def test_a_few_runs_of_one_seed_are_drawn_without_intervals(name: str, tmp_path: Path) -> None:
    methods = {
        "table_sensitivity": ("dmml-kd",),
        "figure_topology": ("dmml-kd",),
        "figure_features": ("dmml-kd",),
        "figure_imbalance": ("dmml", "unimodal:gyroscope"),
        "table_balance_metrics": ("dmml", "dmml-tb"),
        "table_regimes": ("dmml", "dmml-tb"),
    }
    datasets = ("watch",) if name == "figure_imbalance" else SMOKE.datasets
    size = dataclasses.replace(SMOKE, seeds=(0,), methods=methods.get(name, SMOKE.methods), datasets=datasets)
    draw(name, of(make_results(size), MODULES[name].EXPERIMENTS), tmp_path)
    assert not NOT_A_NUMBER.search((tmp_path / f"{name}.md").read_text())


@pytest.mark.parametrize("name", DRAWN)
def test_without_runs_the_error_names_the_figure_and_what_is_missing(name: str, tmp_path: Path) -> None:
    nothing = Results(example_table().iloc[:0])
    with pytest.raises(MissingResultsError, match=f"{name} cannot be drawn: there is no .+"):
        draw(name, nothing, tmp_path)
    assert not list(tmp_path.iterdir())


def test_the_figure_has_a_panel_a_setting_and_a_line_a_method(example: Results) -> None:
    figure = convergence.draw(convergence.transform(example))
    assert len(figure.axes) == 2
    assert figure.get_size_inches()[0] == style.ONE_COLUMN
    for axis, factor in zip(figure.axes, (1.0, 0.5), strict=True):
        colour, marker = style.look("dmml").colour, style.look("dmml").marker
        (line,) = [line for line in axis.get_lines() if (line.get_color(), line.get_marker()) == (colour, marker)]
        assert line.get_ydata()[-1] == pytest.approx(60 * factor)
        assert axis.get_ylabel() == "Test accuracy (%)"
        assert axis.get_xlabel() == "Round"
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DMML", "DMML-KD"]
    plt.close(figure)


def test_the_legend_lies_inside_the_canvas_and_above_the_panels(tiny: Results) -> None:
    figure = convergence.draw(convergence.transform(of(tiny, ["comparison"])))
    figure.draw_without_rendering()
    legend = figure.legends[0].get_window_extent()
    canvas = figure.bbox
    assert canvas.x0 <= legend.x0
    assert legend.x1 <= canvas.x1
    assert legend.y1 <= canvas.y1
    assert all(axis.get_tightbbox().y1 <= legend.y0 for axis in figure.axes)
    plt.close(figure)


def test_differences_are_drawn_below_the_accuracy_only_where_there_are_some(example: Results) -> None:
    table = example.table.assign(level=0.5)
    both = non_iid.draw(over_levels(table))
    assert len(both.axes) == 2
    alone = non_iid.draw(over_levels(table[table["method"] == "dmml"]))
    assert len(alone.axes) == 1
    plt.close("all")


def test_the_drawn_numbers_are_in_the_csv_and_the_text_beside_it(example: Results, tmp_path: Path) -> None:
    draw("figure_convergence", example, tmp_path)
    drawn = pd.read_csv(tmp_path / "figure_convergence.csv")
    assert drawn.query("method == 'dmml' and setting == 'moderate' and round == 2")["mean"].item() == 0.6
    caption = (tmp_path / "figure_convergence.md").read_text()
    assert "watch, moderate, DMML-KD: 73.3 ± 14.3 %; against DMML +13.3 [-1.0, +27.7]" in caption
    assert "Not drawn, because it was not measured: simulated time, the energy that a device has spent." in caption
    assert "Commit: c0ffee" in caption
    assert "Seeds: 0, 1, 2" in caption
    assert "watch-dmml-kd-2-severe" in caption
    assert "Not finished, and left out: watch-local-0" in caption


def test_captions_say_what_the_levels_of_non_iid_data_are(example: Results) -> None:
    table = example.table
    severe = table["setting"] == "severe"
    mild, hard = (table[~severe], 0.5), (table[severe], 0.1)
    rows = [part.assign(partition="dirichlet", dirichlet_alpha=alpha, missing_rate=0.6) for part, alpha in (mild, hard)]
    rows.append(rows[0].assign(dataset="pamap", partition="natural"))
    assert captions.describe_levels(pd.concat(rows)) == [
        "- moderate: watch split by a Dirichlet distribution of labels with alpha 0.5, missing rate 0.6; pamap split "
        "by its natural owners, missing rate 0.6",
        "- severe: watch split by a Dirichlet distribution of labels with alpha 0.1, missing rate 0.6",
    ]
    assert captions.describe_levels(table.assign(setting="default")) == []


def test_the_table_has_its_three_forms(example: Results, tmp_path: Path) -> None:
    draw("table_accuracy", example, tmp_path)
    assert len(pd.read_csv(tmp_path / "table_accuracy.csv")) == 4
    markdown = (tmp_path / "table_accuracy.md").read_text()
    assert re.search(r"\| watch +\| moderate +\| DMML-KD +\| 73\.3 ± 14\.3 \| 63\.3 ± 14\.3", markdown)
    assert "p of the paired t test, not adjusted" in markdown
    latex = (tmp_path / "table_accuracy.tex").read_text()
    assert all(rule in latex for rule in (r"\toprule", r"\midrule", r"\bottomrule"))
    assert r"watch & moderate & DMML-KD & 73.3 $\pm$ 14.3 & 63.3 $\pm$ 14.3 & +13.3 [-1.0, +27.7]" in latex


def test_every_method_looks_different() -> None:
    alone = [UNIMODAL + modality for names in MODALITIES.values() for modality in names]
    looks = {method: style.look(method) for method in (*METHODS, *alone)}
    assert set(METHODS) == set(LABELS)
    assert len({(look.colour, look.marker) for look in looks.values()}) == len(looks)
    assert len({label(method) for method in looks}) == len(looks)
    apart = ("dmml-kd-", "dmml-reversed", "dmml-random")
    compared = [looks[method] for method in METHODS if not method.startswith(apart)]
    compared.append(looks["dmml-kd-tb"])
    assert len({look.colour for look in compared}) == len({look.marker for look in compared}) == len(compared)
    assert label("mine") == "mine"


def test_numbers_as_text() -> None:
    nan = float("nan")
    assert words.with_interval(0.8, 0.75, 0.85) == "80.0 ± 5.0"
    assert words.with_interval(0.8, nan, nan) == "80.0"
    assert words.signed(-0.012, -0.03, 0.006) == "-1.2 [-3.0, +0.6]"
    assert words.signed(nan, nan, nan) == "-"
    assert [words.p_value(value) for value in (nan, 0.0001, 0.04)] == ["-", "<0.001", "0.040"]
    assert captions.where({"dataset": "mfeat", "setting": "default", "level": nan}) == "mfeat"


def test_many_runs_are_counted_and_hashed() -> None:
    names = [f"run-{index}" for index in range(captions.MOST_NAMES + 1)]
    shown = captions.name_runs(reversed(names))
    assert shown.startswith("41, ")
    assert shown == captions.name_runs(names)
    assert shown != captions.name_runs([*names[1:], "other"])
    assert captions.name_runs(names[1:]).count("run-") == captions.MOST_NAMES


def test_a_method_that_only_one_seed_has_is_compared_over_it() -> None:
    table = example_table()
    lacking = table[~((table["method"] == "dmml-kd") & (table["seed"] > 0))]
    rows = comparisons.compare(transforms.final_accuracy(lacking), ["dataset", "setting"])
    lines = captions.describe_differences(rows, "dmml")
    assert "- watch, moderate, DMML-KD: 70.0 %; against DMML +10.0 points over 1 pair, p -" in lines
