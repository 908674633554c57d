"""What is printed when a run ends."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path

import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.experiments.commands.summary import read_seconds, summarize_run

SMALL = ["mfeat", "--data.num-devices", "4", "--training.evaluate-every", "1", "--training.local-iterations", "2"]


def run(folder: Path, capsys: pytest.CaptureFixture[str], *options: str, method: str = "dmml") -> tuple[list[str], str]:
    assert cli.main(["run", method, *SMALL, *options, "--runs", str(folder), "--quiet"]) == 0
    output = capsys.readouterr()
    return output.out.splitlines(), output.err


def test_it_says_what_the_records_hold(tmp_path, capsys):
    options = ["--training.rounds", "3", "--training.per-class", "last", "--energy.budget-fraction", "0.9"]
    lines, _ = run(tmp_path, capsys, *options)
    [folder] = tmp_path.glob("mfeat-*")
    records = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    shown = {line[2:16].strip(): line[17:] for line in lines[1:]}
    test = records[-1]["accuracy"]["test"]
    mean = sum(test) / 4
    assert lines[0] == f"{folder}: test accuracy {mean:.4f}, worst device {min(test):.4f}, 3 rounds"
    assert shown["over devices"].startswith(f"{min(test):.4f} to {max(test):.4f}, standard deviation 0.")
    assert shown["macro-F1"].startswith(f"{sum(records[-1]['macro_f1']) / 4:.4f}")
    assert "accuracy of    0 " in "\n".join(lines)
    assert max(map(len, lines[1:-1])) <= 80
    assert re.fullmatch(r"[\d.]+ [mk]?J per device, [\d.]+ [mk]?J left", shown["energy"])
    assert re.fullmatch(r"[\d.]+ [kMG]?bit per device", shown["sent"])
    assert float(shown["simulated time"].split()[0]) == pytest.approx(
        sum(record["simulated_time_s"] for record in records), abs=0.06
    )
    assert shown["wall time"] == f"{read_seconds(tmp_path / 'timings.csv')[folder.name]:.1f} s"
    assert "diverged" not in shown
    program, *words = shlex.split(shown["next"])
    assert program == "dmmlkd"
    assert cli.main(words) == 0
    assert f"{100 * mean:.1f}" in capsys.readouterr().out


def test_a_run_that_diverges_is_named_when_it_happens_and_at_the_end(tmp_path, capsys, caplog):
    lines, _ = run(
        tmp_path, capsys, "--training.rounds", "3", "--training.learning-rate", "1e30", "--training.clip-norm", "1e30"
    )
    assert re.search(r"round 1: the loss of devices? .* is not finite: the training diverged there", caplog.text)
    assert any(re.fullmatch(r"  diverged +devices 0, 1, 2, 3, from round 1 on", line) for line in lines)


def test_a_run_that_stops_early_says_so(tmp_path, capsys):
    stalled = ["--training.rounds", "30", "--training.learning-rate", "1e-12", "--training.patience", "1"]
    lines, _ = run(tmp_path, capsys, *stalled, "--training.evaluation-samples", "0")
    assert "3 rounds" in lines[0]
    assert "  stopped early  after 3 of 30 rounds, by training.patience" in lines


def test_a_run_is_extended_from_the_command_line(tmp_path, capsys):
    constant = ["--training.final-learning-rate-fraction", "1"]
    run(tmp_path, capsys, *constant, "--training.rounds", "2")
    lines, _ = run(tmp_path, capsys, *constant, "--training.rounds", "4", "--extend")
    assert "4 rounds" in lines[0]
    assert (tmp_path / "timings.csv").read_text().splitlines()[-1].split(",")[1:3] == ["2", "4"]
    refused = ["run", "dmml", *SMALL, "--training.rounds", "4", "--extend", "--runs", str(tmp_path)]
    assert cli.main(refused) == 2
    message = capsys.readouterr().err
    assert message.startswith("dmmlkd: training.final_learning_rate_fraction must be 1")
    assert message.count("\n") == 1


def test_records_that_are_gone_are_named(tmp_path, capsys):
    run(tmp_path, capsys, "--training.rounds", "1")
    [folder] = tmp_path.glob("mfeat-*")
    (folder / "metrics.jsonl").unlink()
    with pytest.raises(FileNotFoundError, match=r"metrics\.jsonl"):
        summarize_run(folder)
