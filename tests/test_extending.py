"""The parts of one's own that EXTENDING.md shows: run as they stand there, alone, in a sweep and on ranks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.data import backbone, load_dataset, registry

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "dmmlkd_ext" / "EXTENDING.md").read_text(encoding="utf-8")
FILE_COMMANDS, PARTS, COMMAND, BACKBONE, BACKBONE_COMMAND = re.findall(r"```(?:python)?\n(.*?)```", TEXT, re.DOTALL)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "parts.py").write_text(PARTS, encoding="utf-8")
    return tmp_path


def dmmlkd(folder: Path, arguments: list[str], ranks: int = 1) -> str:
    program = ["-m", "dmmlkd_ext", *arguments]
    if ranks > 1:
        program = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", str(ranks), *program]
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, *program], cwd=folder, env=environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout + done.stderr


def commands(text: str) -> list[list[str]]:
    """Return the words of each command of a block, without `dmmlkd`."""
    lines = [shlex.split(line) for line in text.replace("\\\n", " ").splitlines()]
    assert {words[0] for words in lines} == {"dmmlkd"}
    return [words[1:] for words in lines]


def results(folder: Path) -> dict[str, dict]:
    found = {}
    for path in folder.glob("**/result.json"):
        records = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
        found[path.parent.name] = {"result": json.loads(path.read_text()), "records": records}
    return found


def test_the_command_of_the_page_runs_and_says_which_tier_trained(folder):
    [words] = commands(COMMAND)
    said = dmmlkd(folder, words)
    (run,) = results(folder).values()
    last = run["records"][-1]
    assert last["round"] == 4
    assert last["loss"]["confidence"] < 0
    assert last["working_links"] == 3
    assert "the encoder of sound is a module of your own" in said
    environment = json.loads(next(folder.glob("runs/*/environment.json")).read_text())
    assert environment["local_training"].startswith("reference: the encoder of sound")
    again = dmmlkd(folder, words)
    assert len(results(folder)) == 1  # it was reused
    (folder / "parts.py").write_text(PARTS.replace("0.1}", "0.2}"), encoding="utf-8")
    dmmlkd(folder, words)
    assert len(results(folder)) == 2, again


def test_files_of_ones_own_are_shown_and_trained(tmp_path, capsys, monkeypatch):
    monkeypatch.chdir(tmp_path)
    draw = np.random.default_rng(0)
    arm, eye, labels = draw.normal(size=(120, 2)), draw.normal(size=(120, 2)), np.arange(120) % 3
    np.savez("robots.npz", arm=arm, eye=eye, labels=labels)
    rows = ["ax,ay,e1,e2,label", *(f"{a},{b},{c},{d},{k}" for (a, b), (c, d), k in zip(arm, eye, labels, strict=True))]
    Path("robots.csv").write_text("\n".join(rows))
    for words in commands(FILE_COMMANDS):
        assert cli.main(words) == 0
    assert "robots: 72 train, 18 validation, 30 test samples; 3 classes; a sample: arm [2], eye [2]" in (
        capsys.readouterr().out
    )
    assert Path("robots.png").read_bytes().startswith(b"\x89PNG")
    one, two = results(tmp_path).values()
    assert one["records"] == two["records"]  # the same numbers, from two kinds of files


def test_a_frozen_backbone_computes_once(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))
    Path("backbone.py").write_text(BACKBONE)
    [words] = commands(BACKBONE_COMMAND)
    assert cli.main(words) == 0
    [run] = results(tmp_path).values()
    assert run["result"]["test_accuracy_mean"] > 0.5
    kept = list(tmp_path.glob("cache/dmmlkd_ext/features/*.npz"))
    assert len(kept) == 1
    calls = []
    monkeypatch.setattr(backbone, "_apply", lambda *given: calls.append(given))
    data = load_dataset("scenes", seed=5)
    assert not calls
    assert data.shapes == {"image": (48,), "sound": (1, 64)}
    assert int((~data.train.present[:, 0]).sum()) > 0


OPTIONS = ["--topology.name", "path", "--training.encoders", "sound", "small-cnn", "--training.rounds", "2"]


@pytest.mark.distributed
def test_parts_of_ones_own_work_on_ranks(folder):
    arguments = ["run", "dmml-kd-confident", "toy", "--module", "parts.py", "--data.num-devices", "4", *OPTIONS]
    dmmlkd(folder, [*arguments, "--runs", "one"])
    dmmlkd(folder, [*arguments, "--runs", "two"], ranks=2)
    (one,), (two,) = results(folder / "one").values(), results(folder / "two").values()
    for ours, theirs in zip(one["records"], two["records"], strict=True):
        assert ours["loss"]["total"] == pytest.approx(theirs["loss"]["total"], rel=1e-5)
        assert ours["local_iterations"] == theirs["local_iterations"]


def test_parts_of_ones_own_work_in_a_sweep(folder):
    settings = ["data.num_devices=4", "topology.name=path", "training.rounds=2"]
    dmmlkd(
        folder,
        [
            *["sweep", "--methods", "dmml", "dmml-kd-confident", "--datasets", "toy", "--seeds", "0", "1"],
            *["--module", "parts.py", "--set", *settings],
        ],
    )
    assert len(results(folder)) == 4
