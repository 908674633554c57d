from __future__ import annotations

import dataclasses
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from fake_simulation import FakeSimulation, build_fake, build_slow_fake

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.run import (
    RunChangedError,
    RunLockedError,
    is_finished,
    load_config,
    run_experiment,
    run_name,
)
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.keep.callbacks import Callback

FILES = {"config.json", "environment.json", "metrics.jsonl", "checkpoint.pt", "result.json"}


def small_config(seed: int = 0, rounds: int = 7) -> ExperimentConfig:
    return ExperimentConfig(data=DataConfig(num_devices=4), training=TrainingConfig(rounds=rounds), seed=seed)


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class KillAfter(Callback):
    def __init__(self, last_round: int) -> None:
        self.last_round = last_round

    def on_round_end(self, simulation, record) -> None:
        if simulation.round == self.last_round:
            raise KeyboardInterrupt


def test_a_run_leaves_its_files_and_is_reused(tmp_path: Path) -> None:
    folder = run_experiment(small_config(), tmp_path, build=build_fake)
    assert set(read_all(folder)) == FILES
    assert folder.name == run_name(small_config())
    assert load_config(folder) == small_config()
    result = json.loads((folder / "result.json").read_text())
    assert result["rounds"] == 7
    assert result["test_accuracy_worst"] < result["test_accuracy_mean"]
    environment = json.loads((folder / "environment.json").read_text())
    assert environment["code_version"] == "version-of-the-tests"
    assert environment["threads"] == 1

    def refuse(config: ExperimentConfig) -> FakeSimulation:
        raise AssertionError("a finished run must not be built again")

    assert run_experiment(small_config(), tmp_path, build=refuse) == folder


def test_wall_time_is_kept_beside_the_folders(tmp_path: Path) -> None:
    folder = run_experiment(small_config(), tmp_path, build=build_fake)
    lines = (tmp_path / "timings.csv").read_text().splitlines()
    assert lines[0] == "run,first_round,last_round,seconds"
    assert lines[1].startswith(f"{folder.name},0,7,")


def test_equal_runs_give_equal_bytes(tmp_path: Path) -> None:
    first = run_experiment(small_config(), tmp_path / "a", build=build_fake, checkpoint_every=2)
    second = run_experiment(small_config(), tmp_path / "b", build=build_fake, checkpoint_every=5)
    assert read_all(first) == read_all(second)


@pytest.mark.parametrize("last_round", range(1, 8))
def test_a_run_that_was_broken_off_goes_on_to_the_same_bytes(tmp_path: Path, last_round: int) -> None:
    whole = run_experiment(small_config(), tmp_path / "a", build=build_fake)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(
            small_config(),
            tmp_path / "b",
            build=build_fake,
            checkpoint_every=3,
            callbacks=[KillAfter(last_round)],
        )
    assert not is_finished(tmp_path / "b" / whole.name)
    resumed = run_experiment(small_config(), tmp_path / "b", build=build_fake, checkpoint_every=3)
    assert read_all(whole) == read_all(resumed)
    starts = [line.split(",")[1:3] for line in (tmp_path / "b" / "timings.csv").read_text().splitlines()[1:]]
    assert starts == [["0", str(last_round)], [str(last_round // 3 * 3), "7"]]


def test_a_death_in_any_write_leaves_what_the_next_start_needs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = run_experiment(small_config(), tmp_path / "whole", build=build_fake, checkpoint_every=2)
    real = os.fsync
    for fatal in range(1, 1000):
        calls = 0

        def die_at_the_fatal_call(descriptor: int, fatal: int = fatal) -> None:
            nonlocal calls
            calls += 1
            if calls == fatal:
                raise KeyboardInterrupt
            real(descriptor)

        monkeypatch.setattr(os, "fsync", die_at_the_fatal_call)
        runs = tmp_path / str(fatal)
        try:
            run_experiment(small_config(), runs, build=build_fake, checkpoint_every=2)
            break
        except KeyboardInterrupt:
            monkeypatch.setattr(os, "fsync", real)
            folder = run_experiment(small_config(), runs, build=build_fake, checkpoint_every=2)
            assert read_all(folder) == read_all(whole)
    assert fatal > 20


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from fake_simulation import build_slow_fake
from test_run import small_config
from dmmlkd_ext.experiments.provenance import Identity, adopt_identity
from dmmlkd_ext.experiments.run import run_experiment
adopt_identity(Identity("version-of-the-tests", "commit-of-the-tests", False))
print("ready", flush=True)
run_experiment(small_config(rounds=60), Path(sys.argv[1]), build=build_slow_fake, checkpoint_every=2)
"""


def start_process(runs: Path) -> subprocess.Popen:
    paths = [str(Path(__file__).parent), *sys.path]
    process = subprocess.Popen(
        [sys.executable, "-c", SCRIPT.format(path=paths), str(runs)], stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    return process


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole = run_experiment(small_config(rounds=60), tmp_path / "a", build=build_slow_fake)
    chance = random.Random(0)
    for _ in range(5):
        process = start_process(tmp_path / "b")
        try:
            process.wait(timeout=chance.uniform(0.02, 0.4))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
    resumed = run_experiment(small_config(rounds=60), tmp_path / "b", build=build_fake)
    assert read_all(whole) == read_all(resumed)


def test_the_second_of_two_processes_is_told_who_has_the_run(tmp_path: Path) -> None:
    process = start_process(tmp_path)
    try:
        lock = tmp_path / ".locks" / run_name(small_config(rounds=60))
        while not (lock.exists() and lock.read_text().strip()):
            assert process.poll() is None
            time.sleep(0.01)
        with pytest.raises(RunLockedError, match=rf"being run by another process \(id {process.pid}\)"):
            run_experiment(small_config(rounds=60), tmp_path, build=build_fake)
    finally:
        process.kill()
        process.wait()


def break_off(runs: Path) -> Path:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(small_config(), runs, build=build_fake, checkpoint_every=2, callbacks=[KillAfter(5)])
    return runs / run_name(small_config())


def flip_a_bit(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 4
    path.write_bytes(content)


def replace_earlier_lines(path: Path) -> None:
    lines = path.read_bytes().splitlines(keepends=True)
    path.write_bytes(b"".join([b"garbage\n"] * (len(lines) - 1) + lines[-1:]))


def change_torch(path: Path) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), "torch": "0.0"}))


DAMAGES = {
    "checkpoint.pt is torn": ("checkpoint.pt", lambda path: path.write_bytes(b"torn")),
    "checkpoint.pt has another bit": ("checkpoint.pt", flip_a_bit),
    "records are cut": ("metrics.jsonl", lambda path: path.write_bytes(b'{"round": 1}\n{"rou')),
    "records are gone": ("metrics.jsonl", lambda path: path.unlink()),
    "earlier records are others": ("metrics.jsonl", replace_earlier_lines),
    "environment is another": ("environment.json", change_torch),
    "environment is damaged": ("environment.json", lambda path: path.write_bytes(b"\xff{")),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_what_cannot_be_trusted_is_set_aside_and_computed_again(
    tmp_path: Path, damage: str, caplog: pytest.LogCaptureFixture
) -> None:
    whole = run_experiment(small_config(), tmp_path / "a", build=build_fake)
    folder = break_off(tmp_path / "b")
    name, harm = DAMAGES[damage]
    harm(folder / name)
    before = read_all(folder)
    run_experiment(small_config(), tmp_path / "b", build=build_fake)
    assert "starts over" in caplog.text
    assert read_all(whole) == read_all(folder)
    aside = tmp_path / "b" / ".rejected" / f"{folder.name}-1"
    assert str(aside) in caplog.text
    assert read_all(aside) == {key: before[key] for key in ("checkpoint.pt", "metrics.jsonl") if key in before}


def test_nothing_that_is_set_aside_is_written_over(tmp_path: Path) -> None:
    for _ in range(2):
        folder = break_off(tmp_path)
        (folder / "checkpoint.pt").write_bytes(b"torn")
    run_experiment(small_config(), tmp_path, build=build_fake)
    assert sorted(path.name for path in (tmp_path / ".rejected").iterdir()) == [f"{folder.name}-1", f"{folder.name}-2"]


def test_a_checkpoint_that_cannot_be_read_stops_the_run_and_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = break_off(tmp_path)
    before = read_all(folder)
    real = Path.open

    def fail(path: Path, mode: str = "r", *arguments, **options):
        if path.name == "checkpoint.pt" and mode == "rb":
            raise OSError(5, "Input/output error", str(path))
        return real(path, mode, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "open", fail)
        with pytest.raises(OSError, match=r"Input/output error: .*checkpoint.pt"):
            run_experiment(small_config(), tmp_path, build=build_fake)
    assert read_all(folder) == before
    assert not (tmp_path / ".rejected").exists()


class Meddle(Callback):
    """Does something to the run's files after its third round."""

    def __init__(self, meddle) -> None:
        self.meddle = meddle

    def on_round_end(self, simulation, record) -> None:
        if simulation.round == 3:
            self.meddle()


@pytest.mark.parametrize("name", ["config.json", "environment.json", "metrics.jsonl"])
def test_a_file_that_goes_while_a_run_is_on_is_missed(tmp_path: Path, name: str) -> None:
    folder = tmp_path / run_name(small_config())
    meddle = Meddle(lambda: (folder / name).unlink())
    with pytest.raises(RunChangedError, match=rf"{name} was changed"):
        run_experiment(small_config(), tmp_path, build=build_fake, callbacks=[meddle])
    assert not is_finished(folder)
    run_experiment(small_config(), tmp_path, build=build_fake)
    assert is_finished(folder)


def test_a_lock_that_is_removed_while_a_run_is_on_is_missed(tmp_path: Path) -> None:
    meddle = Meddle(lambda: shutil.rmtree(tmp_path / ".locks"))
    with pytest.raises(RunChangedError, match="was removed while run"):
        run_experiment(small_config(), tmp_path, build=build_fake, callbacks=[meddle])


@pytest.mark.parametrize("name", ["config.json", "metrics.jsonl", "result.json", "environment.json"])
def test_a_finished_run_that_was_changed_is_not_reused(tmp_path: Path, name: str) -> None:
    folder = run_experiment(small_config(), tmp_path, build=build_fake)
    (folder / name).write_bytes((folder / name).read_bytes()[:-3])
    with pytest.raises(RunChangedError, match=rf"run {folder.name} is finished, but was changed since: .*{name}"):
        run_experiment(small_config(), tmp_path, build=build_fake)


def test_another_commit_with_the_same_code_does_not_start_over(tmp_path: Path) -> None:
    folder = break_off(tmp_path)
    environment = json.loads((folder / "environment.json").read_text())
    (folder / "environment.json").write_text(json.dumps({**environment, "commit": "another"}))
    run_experiment(small_config(), tmp_path, build=build_fake)
    assert json.loads((folder / "environment.json").read_text())["commit"] == "another"
    assert len((tmp_path / "timings.csv").read_text().splitlines()) == 3


def test_bad_arguments_are_refused_before_anything_is_written(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="threads must be at least 1, got 0"):
        run_experiment(small_config(), tmp_path / "runs", build=build_fake, threads=0)
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        run_experiment(small_config(), tmp_path / "runs", build=build_fake, checkpoint_every=0)
    assert not (tmp_path / "runs").exists()


def test_what_trackers_write_stays_out_of_the_folder(tmp_path: Path) -> None:
    folder = run_experiment(small_config(), tmp_path, build=build_fake, track=["csv"])
    assert set(read_all(folder)) == FILES
    assert (tmp_path / "csv" / f"{folder.name}.csv").exists()


def test_settings_of_torch_are_restored(tmp_path: Path) -> None:
    before = torch.get_num_threads(), torch.are_deterministic_algorithms_enabled()
    run_experiment(small_config(), tmp_path, build=build_fake, threads=1)
    assert before == (torch.get_num_threads(), torch.are_deterministic_algorithms_enabled())


def test_names_of_methods_with_odd_characters_make_a_folder(tmp_path: Path) -> None:
    config = small_config()
    config = dataclasses.replace(config, method=dataclasses.replace(config.method, name="unimodal:acc/x"))
    assert run_experiment(config, tmp_path, build=build_fake).name.startswith("watch-unimodal_acc_x-")
