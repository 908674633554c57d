"""Starts ranks on this machine, by torchrun or one by one."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).parents[2]


def environment(**further: str) -> dict[str, str]:
    """Return the environment of a rank: one thread, this checkout, talk by loopback."""
    loopback = {"OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo", "PYTHONPATH": str(ROOT)}
    return {**os.environ, **loopback, **further}


def torchrun(ranks: int, module: str, *arguments: str, options: tuple[str, ...] = ()) -> subprocess.CompletedProcess:
    """Run a module on some ranks to its end."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", *options]
    return subprocess.run(
        [*command, "-m", module, *arguments],
        env=environment(),
        cwd=ROOT,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=200,
        check=False,
    )


def start_ranks(
    ranks: int,
    module: str,
    *arguments: str,
    further: Mapping[str, str] | None = None,
    of_rank_1: Sequence[str] = (),
) -> list[subprocess.Popen]:
    """Start a module on some ranks with nobody to watch over them; rank 1 may get further arguments."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    group = {"WORLD_SIZE": str(ranks), "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), **(further or {})}
    return [
        subprocess.Popen(
            [sys.executable, "-m", module, *arguments, *(of_rank_1 if rank == 1 else ())],
            env=environment(RANK=str(rank), LOCAL_RANK=str(rank), **group),
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for rank in range(ranks)
    ]
