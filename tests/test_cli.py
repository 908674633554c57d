from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.config.settings import override_settings

sys.path.insert(0, str(Path(__file__).parent / "experiments"))

from fake_simulation import FakeSimulation, build_fake

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
        (["run", "dmml", "watch", "--seed", "-1"], "seed must be at least 0, got -1"),
        (["run", "dmml", "watch", "--method.name", "local"], "method.name must be the one that the command names, dm"),
        (["run", "dmml", "watch", "--data.dataset", "mfeat"], "data.dataset must be the one that the command names"),
        (["run", "dmml", "watch", "--data.options", "seed", "3"], "seed is not an option of dataset 'watch'"),
        (["run", "dmml", "watch", "--data.options", "fold", "one"], "fold must be int, got 'one' (an option of"),
        (["run", "dmml", "watch", "--timeout-s", "nan"], "timeout_s must be at least 1 and finite, got nan"),
        (["run", "dmml", "watch", "--module"], "--module must be followed by Python files or modules, got ''"),
        (["sweep", "--methods"], "methods must be at least one, got none"),
        (["sweep", "--datasets"], "datasets must be at least one, got none"),
        (["sweep", "--seeds"], "seeds must be at least one, got none"),
        (["sweep", "--set", "seed=-1"], "seed must be at least 0, got -1"),
        (["sweep", "--set", "seed=5"], "set and grid must not change seed, which --seeds gives"),
        (["sweep", "--set", "module=a.py"], "set and grid must not change module, which --module gives"),
        (["sweep", "--set", "method.name=local"], "method.name must be the one that the command names"),
        (["sweep", "--set", "data.dataset=avdigits"], "data.dataset must be the one that the command names"),
        (["sweep", "--set", "training.probe=maybe"], "set: training.probe must be bool, got 'maybe'"),
        (["sweep", "--set", "data.options.fold=1e3"], "fold must be int, got '1e3' (an option of dataset 'watch')"),
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
    from dmmlkd_ext.experiments.commands import data as data_command

    def fail(name: str):
        raise DataUnavailableError("not here\nand not there")

    monkeypatch.setattr(data_command, "load_dataset", fail)
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


@pytest.mark.parametrize(
    ("words", "values"),
    [
        (("pairs=2", "image_energy=.5", "snr_db=inf"), {"pairs": 2, "image_energy": 0.5, "snr_db": math.inf}),
        (("pairs=02", "image_energy=1", "snr_db=-3e0"), {"pairs": 2, "image_energy": 1.0, "snr_db": -3.0}),
    ],
)
def test_run_and_sweep_read_the_same_words_alike(
    words: tuple[str, ...], values: dict, tmp_path: Path, capsys: Captured
) -> None:
    pairs = [word for setting in words for word in setting.split("=")]
    assert run(capsys, "run", "dmml", "avdigits", "--data.options", *pairs, "--runs", str(tmp_path), "--quiet")[0] == 0
    (folder,) = tmp_path.glob("avdigits-dmml-*")
    told = load_config(folder).data.options
    swept = override_settings(preset("avdigits", "dmml"), tuple(f"data.options.{word}" for word in words)).data.options
    assert told == swept == values
    assert [type(value) for value in told.values()] == [int, float, float]


def test_a_dataset_without_test_samples_has_no_accuracy(
    tmp_path: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Untested(FakeSimulation):
        def make_record(self) -> dict[str, Any]:
            return {**super().make_record(), "accuracy": {"test": [None], "validation": [None]}}

    monkeypatch.setattr(world, "build_simulation", Untested)
    code, out, err = run(capsys, "run", "dmml", "watch", "--runs", str(tmp_path), "--quiet")
    assert (code, err) == (0, "")
    assert out.splitlines()[0].endswith("test accuracy none, worst device none, 40 rounds")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"test_accuracy_mean": "x"}'])
def test_a_damaged_result_is_one_line(content: str, tmp_path: Path, capsys: Captured) -> None:
    arguments = ("run", "dmml", "watch", "--training.rounds", "1", "--runs", str(tmp_path), "--quiet")
    assert run(capsys, *arguments)[0] == 0
    (path,) = tmp_path.glob("watch-dmml-*/result.json")
    path.write_text(content)
    code, out, err = run(capsys, *arguments)
    assert (code, out) == (1, "")
    assert err.count("\n") == 1
    assert str(path) in err


@pytest.mark.parametrize(
    ("variable", "value", "message"),
    [
        ("DMMLKD_DATA", "/no/such/folder", "DMMLKD_DATA must name a folder that exists, got '/no/such/folder'"),
        ("HOME", None, "set XDG_CACHE_HOME"),
    ],
)
def test_info_names_a_folder_that_is_not_there(
    variable: str, value: str | None, message: str, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
        monkeypatch.setattr(Path, "home", _nobodys_home)
    else:
        monkeypatch.setenv(variable, value)
    code, out, err = run(capsys, "info")
    assert code
    assert out == ""
    assert message in err
    assert err.count("\n") == 1


def _nobodys_home() -> Path:
    raise RuntimeError("Could not determine home directory.")


@pytest.mark.parametrize("error", [ValueError("not as published"), OSError("unreadable"), ImportError("no Pillow")])
def test_whatever_a_loader_says_of_its_files_is_one_line(
    error: Exception, capsys: Captured, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(name: str):
        raise error

    monkeypatch.setattr("dmmlkd_ext.experiments.commands.data.load_dataset", fail)
    assert run(capsys, "data", "fetch", "watch") == (1, "", f"watch: {error}\n")


def test_a_narrow_terminal_loses_nothing_of_a_message(capsys: Captured, monkeypatch: pytest.MonkeyPatch) -> None:
    messages = []
    for columns in ("5", "80", "500"):
        monkeypatch.setenv("COLUMNS", columns)
        messages.append(run(capsys, "run", "dmml", "watch", "--training.rounds", "a_rather_long_word" * 9)[2])
        assert os.environ["COLUMNS"] == columns
    assert messages[0] == messages[1] == messages[2]
    assert "a_rather_long_word" * 9 in messages[0]


@pytest.mark.parametrize("encoding", ["ascii", "latin-1"])
def test_output_that_an_encoding_lacks_is_printed_all_the_same(encoding: str, tmp_path: Path) -> None:
    def call(*arguments: str) -> subprocess.CompletedProcess[str]:
        environment = {**os.environ, "PYTHONIOENCODING": encoding, "COLUMNS": "5"}
        command = [sys.executable, "-m", "dmmlkd_ext", *arguments]
        cwd = Path(__file__).parents[1]
        return subprocess.run(command, capture_output=True, text=True, check=False, cwd=cwd, env=environment)

    shown = call("--help")
    assert (shown.returncode, shown.stderr) == (0, "")
    assert "\\u" not in shown.stdout
    refused = call("run", "dmml", "watch", "--training.rounds", "ΔE")
    assert (refused.returncode, refused.stdout) == (2, "")
    assert "'\\u0394E'" in refused.stderr


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
