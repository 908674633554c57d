from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from fake_simulation import build_fake

from dmmlkd_ext.data import DataUnavailableError, load_dataset
from dmmlkd_ext.experiments.results import Results
from dmmlkd_ext.experiments.run import run_experiment, run_name
from dmmlkd_ext.experiments.sweep import SweepReport
from paper_figures import availability, gather, make, pipeline
from paper_figures.embedding import FEATURE_COLUMNS
from paper_figures.experiments import EXPERIMENTS
from paper_figures.pipeline import Figure
from paper_figures.profiles import Profile, Scope

TINY = Profile(
    "tiny",
    rounds=2,
    evaluate_every=1,
    num_devices=4,
    local_iterations=2,
    scopes={
        "comparison": (Scope((0, 1), ("watch", "mfeat"), ("dmml", "dmml-kd-tb"), ("severe",)),),
        "balance": (Scope((0, 1), ("watch",), ("dmml", "dmml-tb"), levels=(0.3,)),),
    },
)
"""Twelve runs; `comparison` and `balance` share none."""


def drawer(name: str) -> Callable[[Results, Path], list[Path]]:
    """Return what draws a figure that says what it was drawn from."""

    def draw(results: Results, folder: Path) -> list[Path]:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / f"{name}.csv"
        rows = results.table.groupby(["experiment", "run", "metric"], observed=True)["value"].agg(["count", "mean"])
        rows.to_csv(path)
        (folder / f"{name}.md").write_text(f"unfinished: {', '.join(results.unfinished)}\n")
        return [path]

    return draw


@pytest.fixture(autouse=True)
def _figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two figures of the tests' own, whatever the package has."""
    figures = {
        "figure_one": Figure(("comparison",), drawer("figure_one")),
        "table_two": Figure(("comparison", "balance"), drawer("table_two")),
    }
    monkeypatch.setattr(pipeline, "FIGURES", figures)


@pytest.fixture
def fake_runs(monkeypatch: pytest.MonkeyPatch) -> None:
    """Run by the fake simulation, in this process, whether or not data are at hand."""

    def sweep(configs: list, runs_folder: Path, **_: Any) -> SweepReport:
        finished, failures = [], {}
        for config in configs:
            try:
                finished.append(run_experiment(config, runs_folder, build=build_fake, progress=False))
            except RuntimeError:
                failures[run_name(config)] = runs_folder / "log"
        return SweepReport(tuple(finished), 0, failures)

    monkeypatch.setattr(pipeline, "run_sweep", sweep)
    monkeypatch.setattr(availability, "load_dataset", lambda name: None)
    monkeypatch.setattr(gather, "embed_run", lambda *_, **__: pd.DataFrame(columns=list(FEATURE_COLUMNS)))


def test_all_figures_of_a_profile(tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str]) -> None:
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out") == 0
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {"figure_one.csv", "table_two.csv"}
    assert f"12 of 12 runs finished, 0 of them earlier; figures are in {tmp_path / 'out'}" in capsys.readouterr().out
    one, two = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in pipeline.FIGURES)
    assert set(one["experiment"]) == {"comparison"}
    assert set(two["experiment"]) == {"comparison", "balance"}


def test_one_figure_runs_its_experiments_alone(tmp_path: Path, fake_runs: None) -> None:
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["figure_one"]) == 0
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 8
    assert not (tmp_path / "out" / "table_two.csv").exists()


def test_the_reported_profile_is_kept_and_drawn_again_without_its_runs(tmp_path: Path, fake_runs: None) -> None:
    profile = dataclasses.replace(TINY, name=pipeline.REPORTED)
    kept = tmp_path / "results"
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", results_folder=kept) == 0
    assert pipeline.make(profile, tmp_path / "runs", tmp_path / "out", ["figure_one"], results_folder=kept) == 0
    assert not kept.exists()  # not of another profile, nor of some figures
    assert pipeline.make(profile, tmp_path / "runs", tmp_path / "out", results_folder=kept) == 0
    assert pipeline.redraw(kept, tmp_path / "again") == 0
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_finished_runs_are_drawn_without_the_others(tmp_path: Path, fake_runs: None) -> None:
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["figure_one"]) == 0
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", run=False) == 0
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 8
    assert (tmp_path / "out" / "table_two.md").read_text().count("watch-dmml") == 4


def test_a_failed_run_is_named_and_the_rest_is_drawn(
    tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (scope,) = TINY.scopes["comparison"]  # the fake's seed 13 fails in its second round
    scopes = {**TINY.scopes, "comparison": (dataclasses.replace(scope, seeds=(0, 13)),)}
    assert pipeline.make(dataclasses.replace(TINY, scopes=scopes), tmp_path / "runs", tmp_path / "out") == 1
    assert capsys.readouterr().err.count("failed: run ") == 4
    assert (tmp_path / "out" / "figure_one.md").read_text().count("mfeat-dmml") == 2


def test_a_figure_that_cannot_be_drawn_is_named_and_the_others_are(
    tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(results: Results, folder: Path) -> list[Path]:
        raise RuntimeError("no ink")

    monkeypatch.setitem(pipeline.FIGURES, "figure_one", Figure(("comparison",), fail))
    monkeypatch.setitem(pipeline.FIGURES, "figure_three", Figure(("topology",), drawer("figure_three")))
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert "RuntimeError: no ink" in shown
    assert "failed: figure_one was not drawn" in shown
    assert "ValueError: no run of topology finished" in shown
    assert (tmp_path / "out" / "table_two.csv").exists()


def test_a_figure_without_experiments_needs_no_runs(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.FIGURES, "figure_kernels", Figure((), drawer("figure_kernels")))
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["figure_kernels"]) == 0
    assert (tmp_path / "out" / "figure_kernels.csv").exists()


def test_a_dataset_that_cannot_be_had_is_left_out(
    tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        if name == "watch":
            raise DataUnavailableError("no network\nno file")

    monkeypatch.setattr(availability, "load_dataset", load)
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["figure_one"]) == 0
    assert "dataset watch is left out: no network no file" in capsys.readouterr().err
    table = (tmp_path / "out" / "figure_one.csv").read_text()
    assert "mfeat" in table
    assert "watch" not in table
    monkeypatch.setattr(pipeline, "can_load", lambda name: False)
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "again", ["figure_one"]) == 0  # needs no data
    assert (tmp_path / "again" / "figure_one.csv").read_text() == table
    assert pipeline.make(TINY, tmp_path / "empty", tmp_path / "out") == 1
    assert "none of the datasets can be had" in capsys.readouterr().err


def test_wrong_input_is_refused_before_anything_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--results", str(tmp_path / "kept")]
    for wrong, message in (
        (["--only", "figure_x"], "names must be some of"),
        (["--profile", "x"], "invalid choice"),
        (["--from", "results"], "results must hold runs.csv"),
    ):
        with pytest.raises(SystemExit) as end:
            make.main([*options, *wrong])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_module_of_a_figure_is_found_with_experiments_that_there_are() -> None:
    figures = pipeline.find_figures()
    for name, figure in figures.items():
        assert name == importlib.import_module(f"paper_figures.{name}").NAME
        assert set(figure.experiments) <= EXPERIMENTS.keys()
    files = Path(pipeline.__file__).parent.glob("*.py")
    assert set(figures) == {path.stem for path in files if path.stem.startswith(("figure_", "table_"))}


def test_a_tiny_profile_on_real_data(tmp_path: Path) -> None:
    try:
        load_dataset("mfeat")
    except DataUnavailableError as error:
        pytest.skip(f"mfeat is neither here nor can be downloaded: {error}")
    scopes = {"features": (Scope((0,), ("mfeat",), ("dmml-kd",)),)}
    profile = dataclasses.replace(TINY, name=pipeline.REPORTED, scopes=scopes)
    drawn = {"figure_one": Figure(("features",), _draw_features)}
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pipeline, "FIGURES", drawn)
        kept = tmp_path / "results"
        assert pipeline.make(profile, tmp_path / "runs", tmp_path / "a", results_folder=kept) == 0
        assert pipeline.make(profile, tmp_path / "runs", tmp_path / "b") == 0
        assert pipeline.redraw(kept, tmp_path / "c") == 0
    first = (tmp_path / "a" / "features.csv").read_bytes()
    assert first.count(b"tsne") > 100
    assert first == (tmp_path / "b" / "features.csv").read_bytes() == (tmp_path / "c" / "features.csv").read_bytes()


def _draw_features(results: Results, folder: Path) -> list[Path]:
    folder.mkdir(parents=True)
    results.features.to_csv(folder / "features.csv", index=False)
    return [folder / "features.csv"]
