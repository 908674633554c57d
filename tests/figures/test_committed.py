from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from matplotlib.figure import Figure

from paper_figures import make, pipeline
from paper_figures.collect import kept

FOLDER = Path(pipeline.__file__).parent
RESULTS, OUTPUT = FOLDER / "results", FOLDER / "output" / pipeline.REPORTED

needs_results = pytest.mark.skipif(not RESULTS.is_dir(), reason="no results are committed")


@needs_results
def test_the_committed_tables_give_the_committed_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # half of the time; other tests look at pictures
    assert pipeline.redraw(RESULTS, tmp_path) == 0
    for ending in ("csv", "md", "tex"):
        drawn = {path.name: path.read_text() for path in tmp_path.glob(f"*.{ending}")}
        assert drawn == {path.name: path.read_text() for path in OUTPUT.glob(f"*.{ending}")}


@needs_results
def test_the_committed_tables_are_small_and_name_no_path() -> None:
    assert sum(path.stat().st_size for path in RESULTS.iterdir()) < 6_000_000
    settings = kept.read(RESULTS).settings
    assert not settings["value"].str.contains("/", regex=False).any()


def test_a_comparison_has_one_p_value_wherever_it_is_shown() -> None:
    claims = pd.read_csv(OUTPUT / "table_claims.csv")
    shown = claims[claims["kind"] == "difference"].set_index(["name", "dataset", "setting", "what"])["p"]
    accuracy = pd.read_csv(OUTPUT / "table_accuracy.csv").set_index(["dataset", "setting", "method"])["p"]
    budgets = pd.read_csv(OUTPUT / "figure_iterations_energy.csv").query("panel == 'budgets'")
    missing = pd.read_csv(OUTPUT / "figure_modality_heterogeneity.csv").query("level == 0.8 and method == 'dmml-kd'")
    compared = 0
    for (dataset, setting, method), p in accuracy.items():
        for name, ours, what in (
            ("improves", "dmml-kd-tb", "DMML-KD + balance minus DMML"),
            ("no server", "local", "DMML minus Local"),
        ):
            if method == ours:
                assert shown[name, dataset, setting, what] == p
                compared += 1
    for row in budgets[budgets["method"] == "dmml-kd-tb"].to_dict("records"):
        place = (row["dataset"], f"energy budget {row['level']:g}")
        assert shown["energy", *place, "DMML-KD + balance minus DMML-KD"] == row["uniform_p"]
        compared += 1
    for row in missing.to_dict("records"):
        assert shown["missing helped", row["dataset"], "missing rate 0.8", "DMML-KD minus DMML"] == row["p"]
        compared += 1
    assert compared == 12 + 9 + 3


def test_a_claim_has_its_verdict_in_the_table_of_claims_alone() -> None:
    verdict = re.compile(r"\*\*(holds|absent|undecided|contradicted|not run|too few seeds)")
    told = {path.stem for path in OUTPUT.glob("*.md") if verdict.search(path.read_text())}
    assert told == {"table_claims"}


def test_the_committed_results_have_their_checksums(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    shutil.copytree(RESULTS, tmp_path / "results")
    runs = tmp_path / "results" / "runs.csv"
    lines = runs.read_text().splitlines(keepends=True)
    runs.write_text("".join(lines[:500]))
    with pytest.raises(SystemExit) as end:
        make.main(["--from", "results", "--results", str(runs.parent), "--output", str(tmp_path / "out")])
    assert end.value.code == 2
    told = capsys.readouterr().err.splitlines()[-1]
    assert told.endswith("runs.csv is damaged: its SHA-256 is not that of SHA256SUMS")
    assert not (tmp_path / "out").exists()


def test_a_user_s_matplotlibrc_changes_no_figure(tmp_path: Path) -> None:
    lines = ["text.usetex: True", "savefig.bbox: tight", "axes.facecolor: red", "lines.linestyle: --", "figure.dpi: 17"]
    (tmp_path / "matplotlibrc").write_text("\n".join(lines))
    arguments = ["--from", "results", "--only", "figure_topology", "--output", str(tmp_path)]
    environment = {**os.environ, "MPLCONFIGDIR": str(tmp_path)}
    command = [sys.executable, "-m", "paper_figures.make", *arguments]
    done = subprocess.run(command, cwd=FOLDER.parent, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for ending in ("png", "pdf"):
        drawn = tmp_path / pipeline.REPORTED / f"figure_topology.{ending}"
        assert drawn.read_bytes() == (OUTPUT / drawn.name).read_bytes()
