"""The commands of the README from one's runs to a table and a figure, one after the other."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from fake_simulation import build_fake

from dmmlkd_ext import cli
from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments.commands import sweep
from dmmlkd_ext.experiments.run import is_finished, run_experiment
from dmmlkd_ext.experiments.sweep import SweepReport

TOML = """
method = "dmml-kd"
data = "mfeat"
[training]
rounds = 40
"""
COMMANDS = """
dmmlkd sweep --as-reported severe --methods local dmml dmml-kd --datasets mfeat --seeds 0-4 --set training.rounds=10
dmmlkd compare runs
dmmlkd compare runs --md --export curves.csv
dmmlkd plot runs --kind difference -o difference.png
dmmlkd sweep --methods dmml-kd --datasets mfeat --grid method.losses.similarity=0,0.03,0.3 --seeds 0-4 --runs similarity
dmmlkd compare similarity --by similarity --baseline 0
dmmlkd run --as-reported severe mfeat dmml-kd-tb --runs more
dmmlkd run --config mine.toml --training.rounds 20 --runs more
"""


def run_sweep(configs, runs_folder: Path, **_) -> SweepReport:
    """Run one after the other in this process."""
    return SweepReport(tuple(run_experiment(config, runs_folder, build=build_fake) for config in configs), 0)


def test_the_walk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(world, "build_simulation", build_fake)
    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    Path("mine.toml").write_text(TOML)
    told = []
    for command in COMMANDS.strip().splitlines():
        assert cli.main(shlex.split(command)[1:]) == 0
        told.append(capsys.readouterr().out)
    assert told[0].startswith("15 runs finished")
    table = [line.split() for line in told[1].splitlines()[1:4]]
    assert [row[0] for row in table] == ["local", "dmml", "dmml-kd"]
    assert [line.split()[0] for line in told[5].splitlines()[1:4]] == ["0.0", "0.03", "0.3"]
    assert "minus 0.0" in told[5]
    assert len(Path("curves.csv").read_text().splitlines()) == 1 + 15 * 2
    assert Path("difference.png").stat().st_size > 10_000
    (folder,) = Path("more").glob("mfeat-dmml-kd-tb-*")
    assert is_finished(folder)
    assert cli.main(["run", "--config", str(folder), "--seed", "1", "--runs", "more", "--quiet"]) == 0
    assert len(list(Path("more").glob("mfeat-dmml-kd-tb-*"))) == 2
