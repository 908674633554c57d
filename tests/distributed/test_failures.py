"""A rank that is killed, hangs, is stopped or runs out of memory: who says what, how soon, and how it goes on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import pytest

from tests.distributed.failing import OPTIONS
from tests.distributed.processes import start_ranks, torchrun

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]

MODULE = "tests.distributed.failing"
TIMEOUT_S = 4
LEEWAY_S = 12  # the listening for signs of life, and a busy machine


def run_arguments(runs: Path) -> tuple[str, ...]:
    return "run", "dmml-kd", "synthetic", "--runs", str(runs), "--timeout-s", str(TIMEOUT_S)


def results(runs: Path) -> dict[str, bytes]:
    (folder,) = runs.glob("synthetic-*")
    return {path.name: path.read_bytes() for path in folder.iterdir()}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Return the files of three ranks that nothing happened to."""
    runs = tmp_path_factory.mktemp("whole")
    done = torchrun(3, MODULE, "SIGKILL", "1", "99", str(runs / "marker"), *run_arguments(runs))
    assert done.returncode == 0, done.stdout
    assert "8 rounds" in done.stdout
    return results(runs)


def test_torchrun_goes_on_after_a_kill_to_the_same_bits(tmp_path: Path, whole: dict[str, bytes]) -> None:
    arguments = "SIGKILL", "1", "5", str(tmp_path / "marker"), *run_arguments(tmp_path)
    done = torchrun(3, MODULE, *arguments, options=("--max-restarts=1",))
    assert done.returncode == 0, done.stdout
    for rank in (0, 2):
        assert (
            f"rank {rank} of 3, round 5: rank 1 is lost: killed, stopped or cut off, last heard in round 5"
            in done.stdout
        )
    assert results(tmp_path) == whole
    rounds = [line.split(",")[1:3] for line in (tmp_path / "timings.csv").read_text().splitlines()[1:]]
    assert rounds == [["0", "4"], ["4", "8"]]


def say_farewell(process: subprocess.Popen, deadline: float) -> str:
    output, _ = process.communicate(timeout=max(1, deadline - time.monotonic()))
    assert process.returncode == 1
    return output


@pytest.mark.parametrize(
    ("ranks", "how", "said"),
    [
        (3, "SIGSTOP", "rank 1 is lost: killed, stopped or cut off, last heard in round 3"),
        (2, "SIGTERM", "rank 1 was told to end by SIGTERM in round 3"),
        (2, "sleep", "rank 1 hangs in round 3"),
        (2, "memory", "rank 1 failed in round 3: MemoryError: no memory left for 4 GiB"),
    ],
)
def test_the_others_name_the_rank_and_the_round_in_time(ranks: int, how: str, said: str, tmp_path: Path) -> None:
    marker = tmp_path / "marker"
    processes = start_ranks(ranks, MODULE, how, "1", "3", str(marker), *run_arguments(tmp_path))
    try:
        while not marker.exists():
            assert all(process.poll() is None for process in processes), processes[0].communicate()
            time.sleep(0.02)
        deadline = time.monotonic() + TIMEOUT_S + LEEWAY_S
        for rank in range(0, ranks, 2):
            output = say_farewell(processes[rank], deadline)
            assert f"rank {rank} of {ranks}, round 3: {said}" in output
            assert output.count("dmmlkd: ") == 1
    finally:
        for process in processes:
            if process.poll() is None:
                os.kill(process.pid, signal.SIGKILL)
            process.communicate()


def test_what_cannot_work_is_refused_by_name_before_anything_is_written(tmp_path: Path) -> None:
    runs = tmp_path / "runs"
    arguments = "run", "centralized", "synthetic", "--runs", str(runs)
    processes = start_ranks(2, MODULE, "sleep", "2", "99", str(tmp_path / "marker"), *arguments)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [2, 1]
    assert outputs[0].count("\n") == 1
    assert "nproc-per-node and nnodes must make at most 1 ranks, one per device; got 2" in outputs[0]
    assert outputs[1] == ""
    assert not runs.exists()


@pytest.mark.parametrize(
    ("dataset", "of_rank_1", "said"),
    [
        ("synthetic", ("--seed", "1"), "rank 1 must be started like rank 0, got another config.seed (1 for 0)"),
        ("synthetic", ("--training.learning-rate", "0.5"), "got another config.training.learning_rate (0.5 for "),
        ("synthetic", ("--checkpoint-every", "3"), "got another checkpoint_every (3 for 2)"),
        ("synthetic", ("--threads", "2"), "got another environment.threads (2 for 1)"),
        ("unseeded", (), "rank 1 must be started like rank 0, got another data ("),
        ("on-rank-0", (), "rank 1: the data folder must exist, got '/nope'"),
    ],
)
def test_a_rank_that_is_not_like_the_first_says_so_in_one_line_before_anything_is_written(
    dataset: str, of_rank_1: tuple[str, ...], said: str, tmp_path: Path
) -> None:
    runs = tmp_path / "runs"
    arguments = "run", "dmml-kd", dataset, "--runs", str(runs)
    failing = "sleep", "2", "99", str(tmp_path / "marker")
    processes = start_ranks(2, MODULE, *failing, *arguments, *OPTIONS, of_rank_1=of_rank_1)
    outputs = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1]
    assert outputs[0] == ""
    assert outputs[1].count("\n") == 1
    assert said in outputs[1]
    assert not runs.exists()


def test_a_sweep_is_not_shared_by_ranks(tmp_path: Path) -> None:
    (process, other) = start_ranks(2, "dmmlkd_ext", "sweep", "--runs", str(tmp_path / "runs"))
    assert "share it out by --shard i/n" in process.communicate(timeout=60)[0]
    assert (process.returncode, other.wait(timeout=60)) == (2, 2)
    other.communicate()
    assert not (tmp_path / "runs").exists()
