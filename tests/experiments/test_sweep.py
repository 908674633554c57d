from __future__ import annotations

import io
import subprocess
import sys
import time
from pathlib import Path

import pytest
from fake_simulation import build_fake

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.run import is_finished, run_experiment, run_name
from dmmlkd_ext.experiments.sweep import parse_shard, run_sweep, select_shard
from dmmlkd_ext.training.config import TrainingConfig


def make_configs(*seeds: int, rounds: int = 4) -> list[ExperimentConfig]:
    data, training = DataConfig(num_devices=2), TrainingConfig(rounds=rounds)
    return [ExperimentConfig(data=data, training=training, seed=seed) for seed in seeds]


def test_all_run_and_the_files_are_those_of_single_runs(tmp_path: Path) -> None:
    configs = make_configs(0, 1, 2)
    report = run_sweep([*configs, configs[0]], tmp_path / "a", workers=2, build=build_fake)
    assert [folder.name for folder in report.folders] == [run_name(config) for config in configs]
    assert report.failures == {}
    assert report.reused == 0
    for config, folder in zip(configs, report.folders, strict=True):
        single = run_experiment(config, tmp_path / "b", build=build_fake)
        names = sorted(path.name for path in single.iterdir())
        assert names == sorted(path.name for path in folder.iterdir())
        for name in names:
            assert (single / name).read_bytes() == (folder / name).read_bytes()
    assert list((tmp_path / "a" / "logs").iterdir()) == []
    assert run_sweep(configs, tmp_path / "a", build=build_fake).reused == 3


def test_runs_that_raise_or_die_are_named_and_the_others_finish(tmp_path: Path) -> None:
    configs = make_configs(0, 13, 14, 1)
    stream, sys.stderr = sys.stderr, io.StringIO()
    try:
        report = run_sweep(configs, tmp_path, workers=2, progress=True, build=build_fake)
        shown = sys.stderr.getvalue()
    finally:
        sys.stderr = stream
    raised, died = run_name(configs[1]), run_name(configs[2])
    assert set(report.failures) == {raised, died}
    assert f"run {raised} failed" in shown
    assert "4/4 runs, 2 failed" in shown
    assert "RuntimeError: the thirteenth seed fails" in report.failures[raised].read_text()
    assert "the process was ended by signal SIGKILL" in report.failures[died].read_text()
    assert all(is_finished(folder) for folder in report.folders)
    assert len(report.folders) == 2


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from fake_simulation import build_slow_fake
from test_sweep import make_configs
from dmmlkd_ext.experiments.provenance import Identity, adopt_identity
from dmmlkd_ext.experiments.sweep import run_sweep
if __name__ == "__main__":
    adopt_identity(Identity("version-of-the-tests", "commit-of-the-tests", False))
    run_sweep(make_configs(0, 1, rounds=300), Path(sys.argv[1]), workers=2, build=build_slow_fake)
"""


def test_a_sweep_that_is_killed_goes_on_with_the_same_call(tmp_path: Path) -> None:
    script, runs = tmp_path / "script.py", tmp_path / "runs"
    script.write_text(SCRIPT.format(path=[str(Path(__file__).parent), *sys.path]))
    process = subprocess.Popen([sys.executable, str(script), str(runs)])
    while len(list(runs.glob("*/checkpoint.pt"))) < 2:
        assert process.poll() is None
        time.sleep(0.02)
    process.kill()
    process.wait()
    # At once: processes of the killed sweep may still be at their last round.
    report = run_sweep(make_configs(0, 1, rounds=300), runs, workers=2, build=build_fake)
    assert report.failures == {}
    for config, folder in zip(make_configs(0, 1, rounds=300), report.folders, strict=True):
        single = run_experiment(config, tmp_path / "single", build=build_fake)
        for path in single.iterdir():
            assert path.read_bytes() == (folder / path.name).read_bytes()
    for line in (runs / "timings.csv").read_text().splitlines()[-2:]:
        assert int(line.split(",")[1]) > 0  # the last rounds alone


def test_shards_are_disjoint_and_complete() -> None:
    configs = make_configs(*range(7))
    shards = [select_shard(configs, index, 3) for index in (1, 2, 3)]
    seeds = [config.seed for shard in shards for config in shard]
    assert sorted(seeds) == list(range(7))
    assert len(shards[0]) == 3


@pytest.mark.parametrize("text", ["", "1", "0/2", "3/2", "a/b", "1/2/3", "-1/2"])
def test_bad_shards_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="shard must be i/n"):
        parse_shard(text)


@pytest.mark.parametrize("name", ["workers", "threads"])
def test_bad_numbers_are_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match=f"{name} must be at least 1, got 0"):
        run_sweep(make_configs(0), tmp_path / "runs", **{name: 0})
    assert not (tmp_path / "runs").exists()


def test_a_finished_run_that_was_changed_is_named_and_the_others_are_reused(tmp_path: Path) -> None:
    configs = make_configs(0, 1)
    folders = run_sweep(configs, tmp_path, workers=2, build=build_fake).folders
    (folders[1] / "metrics.jsonl").write_bytes(b"garbage\n")
    report = run_sweep(configs, tmp_path, build=build_fake)
    assert report.folders == folders[:1]
    assert report.reused == 1
    assert "was changed since" in report.failures[folders[1].name].read_text()


UNGUARDED = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from fake_simulation import build_fake
from test_sweep import make_configs
from dmmlkd_ext.experiments.sweep import run_sweep
try:
    run_sweep(make_configs(0, 1), Path(sys.argv[1]), workers=2, build=build_fake)
except RuntimeError as error:
    print(error)
"""


def test_a_script_without_a_main_guard_is_told_so_in_one_line(tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(UNGUARDED.format(path=[str(Path(__file__).parent), *sys.path]))
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path / "runs")], capture_output=True, text=True, check=True
    )
    assert done.stdout.count("\n") == 1
    assert f"run_sweep must be called below `if __name__ == '__main__':` in {script}" in done.stdout
    assert done.stderr == ""
