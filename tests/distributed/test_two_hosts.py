"""Two hosts, as network namespaces joined by a cable: the bits of one process, a cut cable, folders of their own."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from tests.distributed.processes import ROOT, environment, start_ranks

pytestmark = [pytest.mark.distributed, pytest.mark.xdist_group("ranks")]

HOSTS = (f"dmmlkd-a-{os.getpid()}", f"dmmlkd-b-{os.getpid()}")
ADDRESSES = ("10.213.77.1", "10.213.77.2")
MODULE = "tests.distributed.failing"
TIMEOUT_S = 4
LEEWAY_S = 25  # the listening for signs of life, the store's own timeout, and a busy machine


def ip(*arguments: str) -> None:
    subprocess.run(["ip", *arguments], check=True, capture_output=True, text=True)


@contextmanager
def cable() -> Iterator[None]:
    """Two namespaces, and a cable from `end0` in the first to `end1` in the second."""
    try:
        for host in HOSTS:
            ip("netns", "add", host)
        first, second = HOSTS
        ip("link", "add", "end0", "netns", first, "type", "veth", "peer", "name", "end1", "netns", second)
        for number, host in enumerate(HOSTS):
            ip("-n", host, "address", "add", f"{ADDRESSES[number]}/24", "dev", f"end{number}")
            ip("-n", host, "link", "set", f"end{number}", "up")
            ip("-n", host, "link", "set", "lo", "up")
        yield
    finally:
        for host in HOSTS:
            subprocess.run(["ip", "netns", "delete", host], check=False, capture_output=True)


@pytest.fixture(scope="module")
def hosts() -> Iterator[None]:
    try:
        with cable():
            subprocess.run(["ip", "netns", "exec", HOSTS[1], "true"], check=True, capture_output=True)
            yield
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"no network namespaces here: {getattr(error, 'stderr', None) or error}")


def start(runs: Path, marker: Path, how: str = "SIGKILL", moment: int = 99) -> list[subprocess.Popen]:
    """Start torchrun on both hosts, with a rank on each."""
    group = ["--nnodes=2", "--nproc-per-node=1", "--rdzv-backend=c10d", f"--rdzv-endpoint={ADDRESSES[0]}:29511"]
    command = [sys.executable, "-m", "torch.distributed.run", *group, "--rdzv-conf"]
    arguments = [how, "1", str(moment), str(marker), "run", "dmml-kd", "synthetic", "--runs", str(runs)]
    return [
        subprocess.Popen(
            [
                "ip",
                "netns",
                "exec",
                host,
                *command,
                f"is_host={number == 0}",
                "--local-addr",
                ADDRESSES[number],
                "-m",
                MODULE,
                *arguments,
                f"--timeout-s={TIMEOUT_S}",
            ],
            env=environment(GLOO_SOCKET_IFNAME=f"end{number}"),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for number, host in enumerate(HOSTS)
    ]


def results(runs: Path) -> dict[str, bytes]:
    (folder,) = runs.glob("synthetic-*")
    return {name: (folder / name).read_bytes() for name in ("metrics.jsonl", "result.json")}


def test_two_hosts_give_the_bits_of_one_process(hosts, tmp_path):
    processes = start(tmp_path / "two", tmp_path / "marker")
    for process in processes:
        output, _ = process.communicate(timeout=60)
        assert process.returncode == 0, output
    (alone,) = start_ranks(1, MODULE, "SIGKILL", "1", "99", str(tmp_path / "marker"), "run", "dmml-kd", "synthetic",
                           "--runs", str(tmp_path / "one"))  # fmt: skip
    output, _ = alone.communicate(timeout=120)
    assert alone.returncode == 0, output
    assert results(tmp_path / "two") == results(tmp_path / "one")


def test_a_cut_cable_is_named_in_time(hosts, tmp_path):
    marker = tmp_path / "marker"
    processes = start(tmp_path, marker, "sleep", 3)
    while not marker.exists():
        assert all(process.poll() is None for process in processes), processes[0].communicate()
        time.sleep(0.05)
    ip("-n", HOSTS[1], "link", "set", "end1", "down")
    try:
        begin = time.monotonic()
        output, _ = processes[0].communicate(timeout=TIMEOUT_S + LEEWAY_S)
        assert "rank 0 of 2, round 3: rank 1 is lost" in output
        assert time.monotonic() - begin < TIMEOUT_S + LEEWAY_S
    finally:
        for process in processes:
            process.kill()
            process.wait()
        ip("-n", HOSTS[1], "link", "set", "end1", "up")


def test_hosts_with_folders_of_their_own_are_refused_at_the_start(tmp_path):
    arguments = "SIGKILL", "1", "99", str(tmp_path / "marker"), "run", "dmml-kd", "synthetic"
    processes = start_ranks(
        2, MODULE, *arguments, "--runs", str(tmp_path / "a"), of_rank_1=("--runs", str(tmp_path / "b"))
    )
    said = [process.communicate(timeout=60)[0] for process in processes]
    assert [process.returncode for process in processes] == [1, 1], said
    assert said[0] == ""
    assert said[1].startswith("dmmlkd: rank 1: --runs must name a folder that all ranks see")
    assert not list(tmp_path.glob("*/synthetic-*"))
