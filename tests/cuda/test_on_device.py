"""What on_device.sh does without a GPU: its dry run, and what becomes of steps that fail, hang or are missing."""

import json
import subprocess
import sys

import pytest

from tests.cuda import on_device
from tests.cuda.on_device import Step


def python(code):
    return (sys.executable, "-c", code)


STEPS = [
    Step("fails", 20, python("print('why'); raise SystemExit(3)"), needs_gpu=False),
    Step("hangs", 5, ("sleep", "60"), needs_gpu=False),
    Step("cannot", 20, python("print('skipped: no need'); raise SystemExit(77)"), needs_gpu=False),
    Step("missing", 20, ("no-such-program",), needs_gpu=False),
    Step("works", 20, python("import os; print(os.environ['FOR_THIS_STEP'])"), False, {"FOR_THIS_STEP": "seen"}),
    Step("gpu", 20, ("nvidia-smi",)),
]


def test_no_step_stops_another_and_the_status_tells(tmp_path, capsys):
    outcomes = on_device.run_steps(STEPS, tmp_path, dry_run=True)
    assert {outcome.name: outcome.state for outcome in outcomes} == {
        "fails": "failed",
        "hangs": "timed out",
        "cannot": "skipped",
        "missing": "failed",
        "works": "passed",
        "gpu": "skipped",
    }
    lines = {outcome.name: outcome.line for outcome in outcomes}
    assert lines["fails"] == "why"
    assert lines["hangs"].startswith("took more than 5 s")
    assert lines["missing"] == "no-such-program is not on PATH"
    assert lines["works"] == "seen"
    assert lines["gpu"] == "needs a GPU: nvidia-smi"
    assert on_device.report(outcomes, tmp_path, dry_run=True) == 1
    assert json.loads((tmp_path / "report.json").read_text())["passed"] is False
    assert on_device.report([o for o in outcomes if o.state in ("passed", "skipped")], tmp_path, dry_run=True) == 0
    assert "all passed" in capsys.readouterr().out


def test_all_steps_share_one_limit(tmp_path):
    (outcome,) = on_device.run_steps(STEPS[4:5], tmp_path, dry_run=True, limit_s=1)
    assert (outcome.state, outcome.line) == ("failed", "no time is left of 480 s")


def test_each_step_has_a_limit_and_begins_with_what_costs_most_to_ask(tmp_path, monkeypatch):
    monkeypatch.setattr(on_device, "_build_environment", dict)
    steps = on_device.steps(tmp_path, dry_run=False)
    assert [step.name for step in steps][:5] == ["machine", "build", "kernels", "simulation", "tests"]
    assert all(0 < step.limit_s <= 150 for step in steps)


@pytest.mark.timeout(120)
def test_the_dry_run_measures_on_the_cpu_and_names_what_needs_a_gpu(tmp_path):
    script = on_device.__file__.replace(".py", ".sh")
    done = subprocess.run(
        ["bash", script, "--dry-run", "--output", str(tmp_path), "--only", "machine", "kernels", "simulation", "ncu"],
        capture_output=True,
        text=True,
        check=False,
        env={**on_device.os.environ, "PYTHON": sys.executable, "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stdout + done.stderr
    report = json.loads((tmp_path / "report.json").read_text())
    states = {step["name"]: step["state"] for step in report["steps"]}
    assert states == {"machine": "skipped", "kernels": "passed", "simulation": "passed", "ncu": "skipped"}
    operators = {row["operator"].partition(",")[0] for row in report["kernels"]["rows"]}
    assert operators == {"orthogonality", "pairwise_kl", "gossip_mix"}
    assert all(row["times_floor"] > 0 for row in report["kernels"]["rows"])
    agreement = [row for row in report["simulation"]["rows"] if "from_cpu" in row]
    assert [row["from_cpu"] for row in agreement] == [0.0, 0.0]
    for words in ("needs a GPU: ncu", "times_floor", "seconds_per_round", "all passed"):
        assert words in done.stdout
