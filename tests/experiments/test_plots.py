"""Pictures of runs made by hand: what is drawn is what the records hold."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest
from made_runs import make_pair, make_record, make_run
from matplotlib.figure import Figure

from dmmlkd_ext import cli
from dmmlkd_ext.experiments.compare import plan, read_runs
from dmmlkd_ext.experiments.show import plots
from dmmlkd_ext.experiments.show.style import style

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _style() -> Iterator[None]:
    with style():
        yield
        plt.close("all")


def draw(kind: str, folder: Path, by: str | None = None) -> Figure:
    runs = read_runs([folder])
    return plots.PLOTS[kind](runs, plan(runs.options, by))[0]


def lines(figure: Figure, markers: tuple[str, ...] = ("o", "s")) -> dict[str, tuple[list[float], list[float]]]:
    """Return places and values of the marked lines of the first panel by their markers."""
    return {
        line.get_marker(): (list(map(float, line.get_xdata())), list(map(float, line.get_ydata())))
        for line in figure.axes[0].lines
        if line.get_marker() in markers
    }


@pytest.mark.parametrize(
    ("kind", "places", "label"),
    [
        ("accuracy", [1, 2], "Round"),
        ("time", [2, 4], "Simulated time (s)"),
        ("energy", [2, 4], "Energy per device (J)"),
    ],
)
def test_accuracy_is_drawn_over_rounds_and_what_they_cost(kind: str, places: list, label: str, tmp_path: Path) -> None:
    figure = draw(kind, make_pair(tmp_path))
    drawn = lines(figure)
    assert drawn["o"] == (places, pytest.approx([30.0, 30.0]))
    assert drawn["s"] == (places, pytest.approx([45.0, 60.0]))
    assert figure.axes[0].get_xlabel() == label
    assert len(figure.axes[0].collections) == 2  # the bands
    assert [text.get_text() for text in figure.legends[0].get_texts()] == ["DMML", "DMML-KD"]


def test_too_few_seeds_are_dots_instead_of_a_band(tmp_path: Path) -> None:
    axis = draw("accuracy", make_pair(tmp_path, seeds=3)).axes[0]
    assert not axis.collections
    dots = [line for line in axis.lines if line.get_marker() == "."]
    assert sorted(dots[1].get_ydata()) == pytest.approx([35, 40, 40, 45, 50, 60])


def test_differences_are_paired_by_seed(tmp_path: Path) -> None:
    folder = make_pair(tmp_path)
    make_run(folder / "alone", "dmml-kd", 9, (0.9, 0.9))  # has no pair
    figure = draw("difference", folder)
    assert lines(figure)["s"] == ([1, 2], pytest.approx([15.0, 30.0]))
    assert "Difference to" in figure.axes[0].get_ylabel()


def test_each_combination_of_other_options_has_its_panel(tmp_path: Path) -> None:
    for alpha in ("0.1", "1.0"):
        make_pair(tmp_path / alpha, 2, [f"data.dirichlet_alpha={alpha}"])
    figure = draw("accuracy", tmp_path)
    assert [axis.get_title(loc="left") for axis in figure.axes] == ["dirichlet_alpha 0.1", "dirichlet_alpha 1.0"]


def test_values_of_any_option_have_lines_of_their_own(tmp_path: Path) -> None:
    for width in (8, 16, 128):
        make_run(tmp_path / str(width), settings=[f"training.feature_width={width}"])
    figure = draw("accuracy", tmp_path)
    shown = figure.legends[0]
    assert [text.get_text() for text in shown.get_texts()] == ["8", "16", "128"]
    assert len({handle.get_color() for handle in shown.legend_handles}) == 3


def test_classes_are_bars_of_the_last_round(tmp_path: Path) -> None:
    for method, shift in (("dmml", 0.0), ("dmml-kd", 0.25)):
        for seed in range(2):
            classes = {"zero": [0.25 + shift, 0.75 + shift], "one": [None, 0.5]}
            record = make_record(1, (0.5, 0.5), class_accuracy=classes)
            make_run(tmp_path / f"{method}{seed}", method, seed, records=[record])
    axis = draw("classes", tmp_path).axes[0]
    assert [text.get_text() for text in axis.get_xticklabels()] == ["one", "zero"]
    assert [bar.get_height() for bar in axis.patches] == pytest.approx([50, 50, 50, 75])


def test_iterations_are_means_over_the_devices_that_hold_a_modality(tmp_path: Path) -> None:
    axis = draw("iterations", make_pair(tmp_path, 2)).axes[0]
    drawn = {line.get_label(): list(line.get_ydata()) for line in axis.lines}
    assert drawn == {"fac": [3.0, 3.0], "mor": [6.0, 6.0]}


def test_holders_are_those_of_the_run_that_shows_most(tmp_path: Path) -> None:
    folder = make_pair(tmp_path, 2)
    narrow = make_record(1, (0.5, 0.5), local_iterations={"fac": [1, None], "mor": [None, None]})
    make_run(folder / "narrow", "unimodal:fac", 0, records=[narrow])
    axis = draw("holders", folder).axes[0]
    assert axis.collections[0].get_array().reshape(2, 2).tolist() == [[1, 1], [0, 1]]
    assert [text.get_text() for text in axis.get_yticklabels()] == ["fac", "mor"]


@pytest.mark.parametrize("ending", ["png", "pdf"])
@pytest.mark.parametrize("kind", ["accuracy", "holders"])
def test_the_command_writes_the_same_bytes_again(ending: str, kind: str, tmp_path: Path, capsys: Captured) -> None:
    folder, path = make_pair(tmp_path / "runs", 2), tmp_path / f"a.{ending}"
    written = []
    for _ in range(2):
        assert cli.main(["plot", str(folder), "--kind", kind, "-o", str(path)]) == 0
        written.append(path.read_bytes())
    assert written[0] == written[1]
    assert written[0].startswith(b"%PDF" if ending == "pdf" else b"\x89PNG")
    assert capsys.readouterr().out.startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["-o", "a.jpg"], "output must be a file called *.png or *.pdf, got a.jpg"),
        (["--kind", "classes"], "runs must have recorded accuracy by class, by --training.per-class last; none has"),
        (["--kind", "difference"], "runs must differ in an option for a difference; these differ in none"),
        (["--kind", "time"], "runs must have recorded test accuracy and simulated time; none has"),
        (["--kind", "iterations"], "runs must have recorded local iterations; none has"),
        (["--kind", "holders"], "runs must have recorded local iterations, which tell who holds what; none has"),
        (["--kind", "colours"], "colours"),
    ],
)
def test_what_cannot_be_drawn_is_one_line(arguments: list, message: str, tmp_path: Path, capsys: Captured) -> None:
    make_run(tmp_path / "run", records=[{"round": 1, "accuracy": {"test": [0.5]}}])
    if "-o" not in arguments:
        arguments = [*arguments, "-o", str(tmp_path / "a.png")]
    assert cli.main(["plot", str(tmp_path / "run"), *arguments]) == 2
    output = capsys.readouterr()
    assert (output.out, output.err.count("\n")) == ("", 1)
    assert message in output.err
    assert not list(tmp_path.glob("*.png"))


def test_too_many_panels_are_refused(tmp_path: Path, capsys: Captured) -> None:
    for number in range(13):
        for method in ("dmml", "dmml-kd"):
            make_run(tmp_path / f"{method}{number}", method, settings=[f"data.missing_rate={number / 20}"])
    assert cli.main(["plot", str(tmp_path), "-o", str(tmp_path / "a.png")]) == 2
    assert "runs must make at most 12 panels, got 13 of data.dataset, data.missing_rate" in capsys.readouterr().err
