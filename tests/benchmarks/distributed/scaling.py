"""Strong and weak scaling over ranks on this machine: seconds, bytes and communication of a round.

Run with `python -m tests.benchmarks.distributed.scaling`; `--help` lists the options. Strong scaling keeps the devices,
weak scaling the devices a rank. A rank is a process with one thread, and talks by gloo on loopback. Where there are
more ranks than cores, they take turns, so that their speed-up says nothing and only their bytes do.

The share of communication includes waiting for a rank that is behind. Bytes sent are those of rows, over all ranks;
the least is each row once to each rank that has a neighbour of its device. Numbers a device, which every rank gathers,
and sums are counted apart, as what each rank contributes. Overlap is how many times longer an exchange takes that
finishes a block's rows before anything is mixed; above 1, overlapping pays.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import sys
import tempfile
from pathlib import Path
from typing import Any

from dmmlkd_ext.training.keep.files import write_text
from tests.benchmarks.distributed.rank import STAGES
from tests.benchmarks.population.workloads import METHODS, WORKLOADS
from tests.benchmarks.results import FOLDER, describe_machine
from tests.distributed.processes import start_ranks

NAME = "distributed_scaling.json"
NARROW = {"workload": "narrow", "losses": "task", "iterations": 1}
"""To time what every rank computes for all devices where there are many, whatever their model."""


def measure_on_ranks(ranks: int, options: dict[str, Any]) -> dict[str, Any]:
    """Start the ranks and return what they found (`rank.measure`).

    Raises:
        RuntimeError: a rank failed; with what it said.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "found.json"
        processes = start_ranks(ranks, "tests.benchmarks.distributed.rank", str(path), json.dumps(options))
        try:
            outputs = [process.communicate()[0] for process in processes]
        finally:
            for process in processes:
                process.kill()
                process.wait()
        if any(process.returncode for process in processes):
            raise RuntimeError(f"{ranks} ranks failed on {options}:\n" + "\n".join(outputs))
        found: dict[str, Any] = json.loads(path.read_text())
        return found


def summarize(mode: str, ranks: int, devices: int, runs: list[dict[str, Any]]) -> dict[str, Any]:
    """Return a line of the table: medians over the rounds of all runs of one kind."""
    seconds = [second for run in runs for second in run["seconds"]]
    communication = [second for run in runs for second in run["communication"]]
    overlap = [ratio for run in runs for ratio in run["overlap"]]
    last = runs[-1]
    stages = {
        f"{stage}_seconds": statistics.median(second for run in runs for second in run["stages"][stage])
        for stage in STAGES
    }
    return {
        "mode": mode,
        "ranks": ranks,
        "devices": devices,
        "seconds_per_round": statistics.median(seconds),
        "lowest_seconds": min(seconds),
        "highest_seconds": max(seconds),
        "bytes_sent_per_round": last["bytes_sent"],
        "least_bytes_per_round": last["least_bytes"],
        "collective_bytes_per_round": last["collective_bytes"],
        "communication_share": sum(communication) / sum(seconds),
        **stages,
        "overlap_ratio": statistics.median(overlap) if overlap else None,
        "links": last["links"],
        "links_cut": last["links_cut"],
        "gathered_numbers_a_device": last["gathered_numbers"],
        "summed_numbers": last["summed_numbers"],
        "parameters_a_device": last["parameters"],
        "peak_bytes_of_a_rank": max(run["peak_bytes"] for run in runs),
        "more_ranks_than_cores": ranks > (os.cpu_count() or 1),
    }


def cases(ranks: list[int], strong: int, weak: int) -> dict[tuple[int, int], list[str]]:
    """Return what is measured: (ranks, devices), and the kinds of scaling that each belongs to.

    Example:
        >>> cases([1, 2], strong=1000, weak=500)
        {(1, 1000): ['strong'], (1, 500): ['weak'], (2, 1000): ['strong', 'weak']}
    """
    found: dict[tuple[int, int], list[str]] = {}
    for number in ranks:
        for mode, devices in (("strong", strong), ("weak", weak * number)):
            found.setdefault((number, devices), []).append(mode)
    return found


def table(rows: list[dict[str, Any]]) -> str:
    """Return the rows as Markdown."""
    lines = [
        "| scaling | ranks | devices | s a round (range) | speed-up | bytes of rows (over the least) "
        "| bytes of numbers | communication | training, mixing, replicated s | links cut | overlap |",
        "|---|---|---|---|---|---|---|---|---|---|---|",
    ]
    single = {row["mode"]: row["seconds_per_round"] for row in rows if row["ranks"] == 1}
    for row in rows:
        factor = row["ranks"] if row["mode"] == "weak" else 1
        one = single.get(row["mode"])
        speed_up = "-" if one is None else f"{factor * one / row['seconds_per_round']:.2f}"
        least = row["least_bytes_per_round"]
        excess = f" ({row['bytes_sent_per_round'] / least:.3f})" if least else ""
        stages = ", ".join(f"{row[f'{stage}_seconds']:.3g}" for stage in STAGES)
        lines.append(
            f"| {row['mode']} | {row['ranks']}{' (more than cores)' if row['more_ranks_than_cores'] else ''} "
            f"| {row['devices']:,} | {row['seconds_per_round']:.3g} "
            f"({row['lowest_seconds']:.3g}-{row['highest_seconds']:.3g}) | {speed_up} "
            f"| {row['bytes_sent_per_round']:,.0f}{excess} | {row['collective_bytes_per_round']:,.0f} "
            f"| {row['communication_share']:.0%} | {stages} | {row['links_cut']} of {row['links']} "
            f"| {'-' if row['overlap_ratio'] is None else format(row['overlap_ratio'], '.2f')} |"
        )
    return "\n".join(lines)


def main() -> None:
    """Measure what the options choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="perceptron")
    parser.add_argument("--losses", choices=METHODS, default="all losses")
    parser.add_argument("--ranks", nargs="+", type=int, default=[1, 2, 4])
    parser.add_argument("--devices", type=int, default=1000, help="of strong scaling")
    parser.add_argument("--devices-a-rank", type=int, default=500, help="of weak scaling")
    parser.add_argument("--iterations", type=int, default=10, help="local iterations a round")
    parser.add_argument("--replicated-devices", type=int, default=20_000, help="of a narrow model, on one rank")
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of a run, after one to warm up")
    parser.add_argument("--repeats", type=int, default=2, help="runs of each case, in turn")
    parser.add_argument("--pairs", type=int, default=11, help="exchanges with and without overlap, a run")
    parser.add_argument("--write", action="store_true", help="also write the results as JSON")
    parser.add_argument("--folder", type=Path, default=FOLDER, help="where to write them")
    options = parser.parse_args()
    least = max(options.ranks)
    if min(options.ranks) < 1 or options.devices < 5 or options.devices < least or options.devices_a_rank < 5:
        parser.error(f"--ranks must be at least 1, the devices at least 5 and as many as ranks ({least})")
    if options.write:
        options.folder.mkdir(parents=True, exist_ok=True)
    shared = {name: getattr(options, name) for name in ("workload", "losses", "rounds", "iterations", "pairs")}
    measured = cases(options.ranks, options.devices, options.devices_a_rank)
    runs: dict[tuple[int, int], list[dict[str, Any]]] = {case: [] for case in measured}
    for _ in range(options.repeats):
        for ranks, devices in measured:
            runs[ranks, devices].append(measure_on_ranks(ranks, {**shared, "devices": devices}))
            print(f"{ranks} ranks, {devices} devices: done", file=sys.stderr, flush=True)
    many = measure_on_ranks(1, {**shared, **NARROW, "devices": options.replicated_devices})["stages"]["replicated"]
    replicated = {"devices": options.replicated_devices, "seconds": statistics.median(many)}
    rows = [
        summarize(mode, *case, runs[case]) for mode in ("strong", "weak") for case in measured if mode in measured[case]
    ]
    if options.write:
        chosen = {name: value for name, value in vars(options).items() if name not in ("write", "folder")}
        command = " ".join(["python -m", __spec__.name, *sys.argv[1:]])
        content = {"machine": describe_machine(command), "options": chosen, "replicated": replicated, "rows": rows}
        write_text(options.folder / NAME, json.dumps(content, indent=1) + "\n")
    print(
        f"{table(rows)}\n\nWhat every rank computes for all devices: {1e6 * replicated['seconds']:,.0f} us a round ",
        end="",
    )
    print(f"for {replicated['devices']:,} devices")


if __name__ == "__main__":
    main()
