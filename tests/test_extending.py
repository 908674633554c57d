"""The parts of one's own that EXTENDING.md shows: run as they stand there, alone, in a sweep and on ranks."""

from __future__ import annotations

import json
import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
TEXT = (ROOT / "dmmlkd_ext" / "EXTENDING.md").read_text(encoding="utf-8")
PARTS, COMMAND = re.findall(r"```(?:python)?\n(.*?)```", TEXT, re.DOTALL)


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


def results(folder: Path) -> dict[str, dict]:
    found = {}
    for path in folder.glob("**/result.json"):
        records = [json.loads(line) for line in path.with_name("metrics.jsonl").read_text().splitlines()]
        found[path.parent.name] = {"result": json.loads(path.read_text()), "records": records}
    return found


def test_the_command_of_the_page_runs_and_says_which_tier_trained(folder):
    words = shlex.split(COMMAND.replace("\\\n", " "))
    assert words[0] == "dmmlkd"
    said = dmmlkd(folder, words[1:])
    (run,) = results(folder).values()
    last = run["records"][-1]
    assert last["round"] == 4
    assert last["loss"]["confidence"] < 0
    assert last["working_links"] == 3
    assert "the encoder of sound is a module of your own" in said
    environment = json.loads(next(folder.glob("runs/*/environment.json")).read_text())
    assert environment["local_training"].startswith("reference: the encoder of sound")
    again = dmmlkd(folder, words[1:])
    assert len(results(folder)) == 1  # it was reused
    (folder / "parts.py").write_text(PARTS.replace("0.1}", "0.2}"), encoding="utf-8")
    dmmlkd(folder, words[1:])
    assert len(results(folder)) == 2, again


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
