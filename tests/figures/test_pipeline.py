from __future__ import annotations

import dataclasses
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest
import torch
from fake_simulation import build_fake

from dmmlkd_ext.data import DataUnavailableError, load_dataset
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.run import run_experiment, run_name
from dmmlkd_ext.experiments.sweep import SweepReport
from paper_figures import make, pipeline
from paper_figures.collect import availability, gather, kept
from paper_figures.collect.embedding import FEATURE_COLUMNS
from paper_figures.collect.inputs import Results
from paper_figures.plan.experiments import EXPERIMENTS
from paper_figures.plan.profiles import Profile, Scope

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


class Table(ModuleType):
    """The module of a table that says what it was drawn from."""

    NEEDS, TITLE = "numbers", "Numbers"

    def __init__(self, *experiments: str) -> None:
        super().__init__("table")
        self.EXPERIMENTS = experiments

    def transform(self, results: Results) -> pd.DataFrame:
        if not self.EXPERIMENTS:
            return pd.DataFrame({"count": [1]})
        rows = results.table.groupby(["experiment", "run", "metric"], observed=True)["value"].agg(["count", "mean"])
        return rows.reset_index()

    def show(self, rows: pd.DataFrame) -> pd.DataFrame:
        return rows.astype(str)

    def caption(self, results: Results, rows: pd.DataFrame) -> tuple[str, dict[str, list[str]]]:
        return "Numbers.", {}


@pytest.fixture(autouse=True)
def _figures(monkeypatch: pytest.MonkeyPatch) -> None:
    """Two tables of the tests, whatever the package has."""
    monkeypatch.setattr(
        pipeline, "MODULES", {"table_one": Table("comparison"), "table_two": Table("comparison", "balance")}
    )


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
    assert {path.name for path in (tmp_path / "out").glob("*.csv")} == {"table_one.csv", "table_two.csv"}
    said = capsys.readouterr().out
    assert "12 of 12 runs finished, 0 of them earlier\n" in said
    assert said.endswith(f"all figures with their captions: {tmp_path / 'out' / 'index.md'}\n")
    one, two = (pd.read_csv(tmp_path / "out" / f"{name}.csv") for name in pipeline.MODULES)
    assert set(one["experiment"]) == {"comparison"}
    assert set(two["experiment"]) == {"comparison", "balance"}


def test_one_figure_runs_its_experiments_alone(tmp_path: Path, fake_runs: None) -> None:
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["table_one"]) == 0
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 8
    assert not (tmp_path / "out" / "table_two.csv").exists()


def test_runs_on_gpus_are_drawn_and_their_tables_are_not_kept(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    profile, kept = dataclasses.replace(TINY, name=pipeline.REPORTED), tmp_path / "kept"
    options = {"results_folder": kept, "device": "auto"}
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda number=0: "model A")
    assert pipeline.make(profile, tmp_path / "runs", tmp_path / "out", **options) == 0
    configs = [load_config(path.parent) for path in (tmp_path / "runs").glob("*/result.json")]
    assert {config.torch_device for config in configs} == {"cuda"}
    assert (tmp_path / "out" / "table_one.csv").exists()
    assert not kept.exists()


def test_a_gpu_that_is_not_there_is_named_before_anything_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(availability, "load_dataset", lambda name: None)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    arguments = ["--profile", "smoke", "--runs", str(tmp_path / "runs"), "--only", "table_one"]
    assert make.main([*arguments, "--device", "cuda"]) == 1
    assert "device cuda is not there; the GPUs are: none" in capsys.readouterr().err
    with pytest.raises(SystemExit) as end:
        make.main([*arguments, "--device", "tpu"])
    assert end.value.code == 2
    assert "device must be cpu, cuda, cuda:N or auto; got 'tpu'" in capsys.readouterr().err
    assert not (tmp_path / "runs").exists()


def test_the_reported_profile_is_kept_and_drawn_again_without_its_runs(tmp_path: Path, fake_runs: None) -> None:
    profile = dataclasses.replace(TINY, name=pipeline.REPORTED)
    folder = tmp_path / "results"
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", results_folder=folder) == 0
    assert pipeline.make(profile, tmp_path / "runs", tmp_path / "out", ["table_one"], results_folder=folder) == 0
    assert not folder.exists()  # not of another profile, nor of some figures
    assert pipeline.make(profile, tmp_path / "runs", tmp_path / "out", results_folder=folder) == 0
    assert pipeline.redraw(folder, tmp_path / "again") == 0
    for path in (tmp_path / "out").iterdir():
        assert path.read_bytes() == (tmp_path / "again" / path.name).read_bytes()


def test_some_figures_of_the_reported_profile_renew_their_experiments(tmp_path: Path, fake_runs: None) -> None:
    profile, results = dataclasses.replace(TINY, name=pipeline.REPORTED), tmp_path / "results"
    assert pipeline.make(profile, tmp_path / "runs", tmp_path / "out", results_folder=results) == 0
    longer = dataclasses.replace(profile, rounds=profile.rounds + 1)
    options = {"results_folder": results, "add": True}
    assert pipeline.make(longer, tmp_path / "runs", tmp_path / "out", ["table_one"], **options) == 0
    renewed = kept.read(results).runs.groupby("experiment")["rounds"].unique()
    assert renewed["comparison"].tolist() == [longer.rounds]
    assert renewed["balance"].tolist() == [profile.rounds]


def test_finished_runs_are_drawn_without_the_others(tmp_path: Path, fake_runs: None) -> None:
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["table_one"]) == 0
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", run=False) == 0
    assert len(list((tmp_path / "runs").glob("*/result.json"))) == 8
    assert (tmp_path / "out" / "table_two.md").read_text().splitlines()[-1].count("watch-dmml") == 4


def test_a_failed_run_is_named_and_the_rest_is_drawn(
    tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str]
) -> None:
    (scope,) = TINY.scopes["comparison"]  # the fake's seed 13 fails in its second round
    scopes = {**TINY.scopes, "comparison": (dataclasses.replace(scope, seeds=(0, 13)),)}
    assert pipeline.make(dataclasses.replace(TINY, scopes=scopes), tmp_path / "runs", tmp_path / "out") == 1
    assert capsys.readouterr().err.count("failed: run ") == 4
    assert (tmp_path / "out" / "table_one.md").read_text().splitlines()[-1].count("mfeat-dmml") == 2


def test_a_figure_that_cannot_be_drawn_is_named_and_the_others_are(
    tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(results: Results) -> pd.DataFrame:
        raise RuntimeError("no ink")

    monkeypatch.setattr(pipeline.MODULES["table_one"], "transform", fail)
    monkeypatch.setitem(pipeline.MODULES, "table_three", Table("topology"))
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out") == 1
    shown = capsys.readouterr().err
    assert "RuntimeError: no ink" in shown
    assert "failed: table_one was not drawn" in shown
    assert "table_three cannot be drawn: no run of topology finished" in shown
    assert (tmp_path / "out" / "table_two.csv").exists()


def test_a_figure_without_experiments_needs_no_runs(
    tmp_path: Path, fake_runs: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(pipeline.MODULES, "table_kernels", Table())
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["table_kernels"]) == 0
    assert (tmp_path / "out" / "table_kernels.csv").exists()


def test_a_dataset_that_cannot_be_had_is_left_out(
    tmp_path: Path, fake_runs: None, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    def load(name: str) -> None:
        if name == "watch":
            raise DataUnavailableError("no network\nno file")

    monkeypatch.setattr(availability, "load_dataset", load)
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "out", ["table_one"]) == 0
    assert "dataset watch is left out: no network no file" in capsys.readouterr().err
    table = (tmp_path / "out" / "table_one.csv").read_text()
    assert "mfeat" in table
    assert "watch" not in table
    monkeypatch.setattr(pipeline, "can_load", lambda name: False)
    assert pipeline.make(TINY, tmp_path / "runs", tmp_path / "again", ["table_one"]) == 0  # needs no data
    assert (tmp_path / "again" / "table_one.csv").read_text() == table
    assert pipeline.make(TINY, tmp_path / "empty", tmp_path / "out") == 1
    assert "none of the datasets can be had" in capsys.readouterr().err


def test_wrong_input_is_refused_before_anything_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["--runs", str(tmp_path / "runs"), "--output", str(tmp_path / "out"), "--results", str(tmp_path / "kept")]
    for wrong, message in (
        (["--only", "figure_x"], "names must be some of"),
        (["--profile", "x"], "invalid choice"),
        (["--from", "results"], "results must hold runs.csv"),
        (["--from", "results", "--profile", "full"], "results must hold runs.csv"),
        (["--add"], "add must come with --only and --profile full, whose tables are kept"),
        (["--add", "--only", "table_one", "--profile", "smoke"], "add must come with --only and --profile full"),
        (["--from", "results", "--profile", "smoke"], "profile must be full, whose tables are kept, got smoke"),
    ):
        with pytest.raises(SystemExit) as end:
            make.main([*options, *wrong])
        assert end.value.code == 2
        assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def test_every_module_of_a_figure_is_found_with_experiments_that_there_are() -> None:
    modules = pipeline.find_modules()
    for name, module in modules.items():
        assert set(module.EXPERIMENTS) <= EXPERIMENTS.keys()
        assert hasattr(module, "show") == name.startswith("table_")
        assert hasattr(module, "draw") == name.startswith("figure_")
    folder = Path(pipeline.__file__).parent
    files = [path for kind in ("figures", "tables") for path in (folder / kind).glob("[a-z]*.py")]
    assert set(modules) == {f"{path.parent.name.removesuffix('s')}_{path.stem}" for path in files}


def test_a_tiny_profile_on_real_data(tmp_path: Path) -> None:
    try:
        load_dataset("mfeat")
    except DataUnavailableError as error:
        pytest.skip(f"mfeat is neither here nor can be downloaded: {error}")
    scopes = {"features": (Scope((0,), ("mfeat",), ("dmml-kd",)),)}
    profile = dataclasses.replace(TINY, name=pipeline.REPORTED, scopes=scopes)
    table = Table("features")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(table, "transform", lambda results: results.features)
        patch.setattr(pipeline, "MODULES", {"table_features": table})
        kept = tmp_path / "results"
        assert pipeline.make(profile, tmp_path / "runs", tmp_path / "a", results_folder=kept) == 0
        assert pipeline.make(profile, tmp_path / "runs", tmp_path / "b") == 0
        assert pipeline.redraw(kept, tmp_path / "c") == 0
    first = (tmp_path / "a" / "table_features.csv").read_bytes()
    assert first.count(b"tsne") > 100
    assert (
        first
        == (tmp_path / "b" / "table_features.csv").read_bytes()
        == (tmp_path / "c" / "table_features.csv").read_bytes()
    )
