"""Seconds a round, bytes and time in communication over the number of ranks, on this machine.

Run with `python -m tests.benchmarks.distributed.scaling --write`; `--help` lists the options. Strong scaling keeps the
devices, weak scaling the devices a rank. Each device hears the four beside it on a torus; a rank is a process of one
thread, by torchrun and gloo on loopback. With `--at-once` a rank waits for each block's rows before it mixes the block
before: what that costs is what the overlap of exchange and mixing saves.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.network.slices import links_cut, slice_devices
from dmmlkd_ext.network.topology import build_topology
from dmmlkd_ext.seeding import numpy_generator
from dmmlkd_ext.training.ranks import Ranks, Slice, joined_ranks, started_by_torchrun
from dmmlkd_ext.training.simulation import Simulation
from tests.benchmarks.population.workloads import METHODS, WORKLOADS, build
from tests.benchmarks.results import describe_machine

ROOT = Path(__file__).parents[3]
RESULT = Path(__file__).parents[1] / "results" / "distributed_scaling.json"
TOPOLOGY = "torus"
MARK = "measured: "


def least_bytes(
    edges: npt.NDArray[np.int64],
    owner: npt.NDArray[np.int64],
    holds: Mapping[str, npt.NDArray[np.bool_]],
    row_bytes: Mapping[str, int],
) -> int:
    """Return the bytes that must pass between ranks in a round: each row once to each rank that mixes with it.

    Args:
        edges: int64 [links, 2].
        owner: int64 [devices], each device's rank.
        holds: bool [devices], who has a block.
        row_bytes: bytes of a device's row of a block.

    Example:
        >>> ends, owner = np.array([[0, 1], [0, 2], [1, 2]]), np.array([0, 1, 1])
        >>> least_bytes(ends, owner, {"shared": np.ones(3, dtype=bool)}, {"shared": 8})  # 0 once, 1 and 2 each once
        24
    """
    total = 0
    for name, held in holds.items():
        both = edges[held[edges].all(axis=1)]
        ways = np.concatenate([both, both[:, ::-1]])
        crossing = ways[owner[ways[:, 0]] != owner[ways[:, 1]]]
        pairs = np.unique(np.stack([crossing[:, 0], owner[crossing[:, 1]]], axis=1), axis=0)
        total += len(pairs) * row_bytes[name]
    return total


def slice_torus(num_devices: int, ranks: Ranks) -> Slice:
    """Return this rank's devices: equally many on each, few links between ranks."""
    edges = build_topology(TOPOLOGY, num_devices, numpy_generator(0, "topology")).edges
    return Slice(ranks, slice_devices(edges, num_devices, ranks.size))


def measure(options: argparse.Namespace, ranks: Ranks) -> dict[str, Any]:
    """Return what some rounds took on this rank, all ranks' bytes and the mean of their shares of time."""
    part = slice_torus(options.devices, ranks)
    simulation, _ = build(
        WORKLOADS[options.workload],
        options.losses,
        options.devices,
        topology=TOPOLOGY,
        part=part,
        local_iterations=options.iterations,
    )
    if options.at_once:
        ranks.exchange = _waiting_at_once(ranks.exchange)  # type: ignore[method-assign]
    simulation.run_round()
    ranks.everyone(None)  # so that all begin together
    before, seconds = (ranks.sent_bytes, ranks.collective_bytes, ranks.seconds), []
    for _ in range(options.rounds):
        begin = time.perf_counter()
        simulation.run_round()
        seconds.append(time.perf_counter() - begin)
    own = {
        "sent": (ranks.sent_bytes - before[0]) / options.rounds,
        "collective": (ranks.collective_bytes - before[1]) / options.rounds,
        "share": (ranks.seconds - before[2]) / sum(seconds),
    }
    everyone = ranks.everyone(own)
    return {
        "ranks": ranks.size,
        "devices": options.devices,
        "seconds_per_round": statistics.median(seconds),
        "bytes_sent_per_round": sum(rank["sent"] for rank in everyone),
        "collective_bytes_per_round": sum(rank["collective"] for rank in everyone),
        "least_bytes_per_round": _least_bytes_of(simulation),
        "links": len(simulation.network.topology.edges),
        "links_cut": links_cut(simulation.network.topology.edges, part.owner),
        "communication_share": statistics.fmean(rank["share"] for rank in everyone),
    }


def _least_bytes_of(simulation: Simulation) -> int:
    blocks = simulation.population.blocks
    return least_bytes(
        simulation.network.topology.edges,
        simulation.part.owner,
        {name: simulation.network.holds(name) for name in blocks},
        {name: block.num_parameters * block.start.element_size() for name, block in blocks.items()},
    )


def _waiting_at_once(exchange: Callable[..., Callable[[], None]]) -> Callable[..., Callable[[], None]]:
    def blocking(*arguments: Any, **named: Any) -> Callable[[], None]:
        exchange(*arguments, **named)()
        return lambda: None

    return blocking


def run(options: argparse.Namespace, ranks: int, devices: int) -> dict[str, Any]:
    """Measure in processes of their own: `ranks` of them."""
    module = "tests.benchmarks.distributed.scaling"
    arguments = ["--worker", "--workload", options.workload, "--losses", options.losses]
    arguments += ["--devices", str(devices), "--iterations", str(options.iterations), "--rounds", str(options.rounds)]
    arguments += ["--at-once"] if options.at_once else []
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={ranks}", "-m", module]
    if ranks == 1:
        command = [sys.executable, "-m", module]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, env=environment, capture_output=True, text=True, check=False
    )
    found = [line.removeprefix(MARK) for line in done.stdout.splitlines() if line.startswith(MARK)]
    if done.returncode or not found:
        raise RuntimeError(f"{ranks} ranks with {devices} devices ended with {done.returncode}: {done.stderr[-2000:]}")
    result: dict[str, Any] = json.loads(found[0])
    return result


def table(rows: Sequence[Mapping[str, Any]]) -> str:
    """Return the rows as a table in Markdown, with the speed-up over one rank.

    Example:
        >>> row = {"mode": "strong", "ranks": 1, "devices": 9, "seconds_per_round": 2.0, "bytes_sent_per_round": 0.0,
        ...        "least_bytes_per_round": 0, "links": 18, "links_cut": 0, "communication_share": 0.0}
        >>> print(table([row]).splitlines()[-1])
        | strong | 1 | 9 | 2.000 | 1.00 | 0 of 18 | 0.00 | 0.00 | 0 % |
    """
    single = {row["mode"]: row["seconds_per_round"] for row in rows if row["ranks"] == 1}
    lines = [
        "| mode | ranks | devices | s a round | speed-up | links cut | MB sent | least MB | in communication |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for row in rows:
        factor = row["ranks"] if row["mode"].startswith("weak") else 1
        mode = row["mode"].removesuffix(", at once")
        speed_up = f"{factor * single[mode] / row['seconds_per_round']:.2f}" if mode in single else ""
        lines.append(
            f"| {row['mode']} | {row['ranks']} | {row['devices']} | {row['seconds_per_round']:.3f} | {speed_up} | "
            f"{row['links_cut']} of {row['links']} | {row['bytes_sent_per_round'] / 1e6:.2f} | "
            f"{row['least_bytes_per_round'] / 1e6:.2f} | {row['communication_share']:.0%}".replace("%", " %")
            + " |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the options choose, and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="mfeat")
    parser.add_argument("--losses", choices=METHODS, default="all losses")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--devices", type=int, default=1000, help="of strong scaling")
    parser.add_argument("--devices-a-rank", type=int, default=500, help="of weak scaling")
    parser.add_argument("--iterations", type=int, default=5, help="local iterations a round")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one to warm up")
    parser.add_argument("--at-once", action="store_true", help="wait for each exchange where it begins")
    parser.add_argument("--write", action="store_true", help="also write the results as JSON")
    parser.add_argument("--worker", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.worker:
        _work(options)
        return
    rows = []
    for mode in ("strong", "weak"):
        for ranks in options.ranks:
            devices = options.devices if mode == "strong" else ranks * options.devices_a_rank
            rows.append({"mode": mode, **run(options, ranks, devices)})
            print(table(rows[-1:]).splitlines()[-1], file=sys.stderr, flush=True)
    print(table(rows))
    if options.write:
        settings = {name: value for name, value in vars(options).items() if name not in ("worker", "write")}
        command = " ".join(["python -m tests.benchmarks.distributed.scaling", *sys.argv[1:]])
        content = {"machine": describe_machine(command), "options": settings, "rows": rows}
        temporary = RESULT.with_suffix(".tmp")
        temporary.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        temporary.replace(RESULT)


def _work(options: argparse.Namespace) -> None:
    torch.set_num_threads(1)
    if not started_by_torchrun():
        print(MARK + json.dumps(measure(options, Ranks())), flush=True)
        return
    with joined_ranks(300.0) as ranks:
        found = measure(options, ranks)
        if ranks.rank == 0:
            print(MARK + json.dumps(found), flush=True)


if __name__ == "__main__":
    main()
