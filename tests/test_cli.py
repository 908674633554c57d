from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments.commands import override_settings
from dmmlkd_ext.experiments.loading import load_config
from dmmlkd_ext.experiments.presets import preset

sys.path.insert(0, str(Path(__file__).parent / "experiments"))

from fake_simulation import build_fake

Captured = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def _fake_world(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(world, "build_simulation", build_fake)


def run(capsys: Captured, *arguments: str) -> tuple[int, str, str]:
    code = cli.main(arguments)
    output = capsys.readouterr()
    return code, output.out, output.err


def test_run_takes_the_preset_of_its_names_and_the_options_over_it(tmp_path: Path, capsys: Captured) -> None:
    options = ("--training.rounds", "3", "--seed", "4", "--data.modalities-per-device", "2", "3")
    code, out, err = run(capsys, "run", "dmml", "mfeat", *options, "--runs", str(tmp_path), "--quiet")
    assert (code, err) == (0, "")
    assert "test accuracy 0." in out
    (folder,) = tmp_path.glob("mfeat-dmml-*")
    config = load_config(folder)
    assert config.training.rounds == 3
    assert config.seed == 4
    assert config.data.modalities_per_device == (2, 3)
    assert config.training.learning_rate == preset("mfeat", "dmml").training.learning_rate
    assert config.method == preset("mfeat", "dmml").method


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["run", "dml", "watch"], "method must be one of local, dmml"),
        (["run", "dmml", "wacht"], "dataset must be one of "),
        (["run", "dmml"], "DATASET"),
        (["run", "--seed", "3", "dmml", "watch"], "METHOD and DATASET must come right after run"),
        (["run", "dmml", "watch", "--training.rouns", "3"], "Unrecognized options: --training.rouns"),
        (["run", "dmml", "watch", "--training.rounds", "x"], "Error parsing --training.rounds: invalid literal"),
        (["run", "dmml", "watch", "--training.rounds", "0"], "training: rounds must be at least 1, got 0"),
        (["run", "dmml", "watch", "--threads", "0"], "threads must be at least 1, got 0"),
        (["sweep", "--shard", "3/2"], "shard must be i/n with 1 <= i <= n, such as 1/2; got '3/2'"),
        (["sweep", "--methods", "dml"], "method must be one of"),
        (["sweep", "--set", "training.round=3"], "set must be like training.rounds=5"),
        (["data", "fetch", "wacht"], "names must be some of"),
        (["data", "fetch"], "got none"),
        (["fly"], "fly"),
        ([], "run, sweep, info, data"),
    ],
)
def test_wrong_input_is_one_line_and_exit_code_2(
    arguments: list[str], message: str, capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (2, "")
    assert message in err
    assert err.startswith("dmmlkd: ")
    assert err.count("\n") == 1
    assert "tyro" not in err
    assert list(tmp_path.iterdir()) == []


def test_a_configuration_that_does_not_fit_the_dataset_is_the_users_error(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(config):
        raise ValueError("num_devices must be 20")

    monkeypatch.setattr(world, "build_simulation", refuse)
    code, _, err = run(capsys, "run", "dmml", "watch", "--runs", str(tmp_path))
    assert (code, err) == (2, "dmmlkd: num_devices must be 20\n")
    assert not list(tmp_path.glob("watch*"))


def test_an_interruption_and_a_folder_that_cannot_be_written_are_one_line(
    capsys: Captured, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = run(capsys, "run", "dmml", "watch", "--runs", str(tmp_path / "file"))
    assert code == 1
    assert err.count("\n") == 1

    def interrupt(config):
        raise KeyboardInterrupt

    monkeypatch.setattr(world, "build_simulation", interrupt)
    code, _, err = run(capsys, "run", "dmml", "watch", "--runs", str(tmp_path))
    assert code == 130
    assert "goes on where this one ended" in err


def test_our_own_errors_keep_their_traceback(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(config):
        raise RuntimeError("a defect")

    monkeypatch.setattr(world, "build_simulation", fail)
    with pytest.raises(RuntimeError, match="a defect"):
        cli.main(["run", "dmml", "watch", "--runs", str(tmp_path)])


def test_help_names_every_command(capsys: Captured) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["--help"])
    assert end.value.code == 0
    shown = capsys.readouterr().out
    assert all(name in shown for name in ("run", "sweep", "info", "data"))


def test_info_and_data_list(capsys: Captured) -> None:
    code, out, _ = run(capsys, "info")
    assert code == 0
    assert "backend" in out
    assert "dmml-kd-tb" in out
    code, out, _ = run(capsys, "data", "list")
    assert code == 0
    assert "watch" in out


def test_data_that_cannot_be_had_is_one_line_and_exit_code_1(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    from dmmlkd_ext.data import DataUnavailableError
    from dmmlkd_ext.experiments import commands

    def fail(name: str):
        raise DataUnavailableError("not here\nand not there")

    monkeypatch.setattr(commands, "load_dataset", fail)
    code, out, err = run(capsys, "data", "fetch", "watch")
    assert (code, out, err) == (1, "", "watch: not here and not there\n")


def test_a_sweep_reports_the_run_that_failed(tmp_path: Path, capsys: Captured) -> None:
    options = ["--methods", "dmml", "--datasets", "mfeat", "--seeds", "0", "--workers", "1", "--quiet"]
    # A natural partition needs owners, which mfeat has not: refused in the run's process.
    wrong = ["--set", "data.partition=natural", "training.rounds=1"]
    code, out, err = run(capsys, "sweep", *options, *wrong, "--runs", str(tmp_path))
    assert code == 1
    assert "0 runs finished" in out
    assert "failed: mfeat-dmml-" in err
    (log,) = (tmp_path / "logs").iterdir()
    assert "Traceback" in log.read_text()


def test_settings_reach_every_depth() -> None:
    config = override_settings(
        preset("mfeat"),
        ("training.rounds=5", "data.modalities-per-device=[1, 2]", "method.losses.similarity=0", "seed=9"),
    )
    assert config.training.rounds == 5
    assert config.data.modalities_per_device == (1, 2)
    assert config.method.losses.similarity == 0
    assert config.seed == 9
    assert override_settings(config, ("data.modalities_per_device=None",)).data.modalities_per_device is None
    for wrong in ("training.rounds", "training=3=4", "training.x.y=1", "nothing=1"):
        with pytest.raises(ValueError, match=r"set must be like|must be a table"):
            override_settings(config, (wrong,))


def test_a_reader_that_has_had_enough_gets_no_complaint() -> None:
    read_end, write_end = os.pipe()
    os.close(read_end)
    process = subprocess.run(
        [sys.executable, "-m", "dmmlkd_ext", "data", "list"],
        stdout=write_end,
        stderr=subprocess.PIPE,
        text=True,
        check=False,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONUNBUFFERED": "1"},
    )
    os.close(write_end)
    assert (process.returncode, process.stderr) == (1, "")


def test_the_module_runs_as_a_program() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "dmmlkd_ext", "data", "list"],
        capture_output=True,
        text=True,
        check=True,
        cwd=Path(__file__).parents[1],
        env={**os.environ, "PYTHONWARNINGS": "error"},
    )
    assert "mfeat" in done.stdout
    assert json.dumps(done.stderr) == '""'
