"""Seconds a round on one thread over those on two, rounds in turns.

Run with `python -m tests.benchmarks.population.threads`; `--help` lists the options. Both cores have to be idle: beside
other work the threads wait for each other.
"""

from __future__ import annotations

import argparse
import json
import sys
from pathlib import Path

import torch

from dmmlkd_ext.training.keep.files import write_text
from tests.benchmarks.paired import interleave, ratio
from tests.benchmarks.population.workloads import METHODS, WORKLOADS, build
from tests.benchmarks.results import describe_machine

RESULT = Path(__file__).parents[1] / "results" / "population_threads.json"


def measure(workload: str, losses: str, devices: int, threads: int, rounds: int) -> dict[str, object]:
    """Return the milliseconds of a round on one thread and on several, and their median ratio."""
    simulation, _ = build(WORKLOADS[workload], losses, devices)

    def on(number: int) -> object:
        torch.set_num_threads(number)
        return simulation.run_round()

    functions = {"one": lambda: on(1), "several": lambda: on(threads)}
    times = interleave(functions, seconds=0.0, least=rounds)
    row: dict[str, object] = {"workload": workload, "losses": losses, "devices": devices, "threads": threads}
    row |= {name: 1e3 * sorted(seconds)[len(seconds) // 2] for name, seconds in times.items()}
    return row | {"ratio": ratio(times, "one", "several")}


def main() -> None:
    """Measure what the options choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--losses", choices=METHODS, default="all losses")
    parser.add_argument("--devices", nargs="+", type=int, default=[20, 100])
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds of each")
    parser.add_argument("--write", action="store_true", help="also write the results as JSON")
    options = parser.parse_args()
    rows = []
    print("workload    devices  one thread ms  several ms  ratio")
    for workload in options.workloads:
        for devices in options.devices:
            row = measure(workload, options.losses, devices, options.threads, options.rounds)
            print(
                f"{workload:11} {devices:7} {row['one']:14.1f} {row['several']:11.1f} {row['ratio']:6.2f}", flush=True
            )
            rows.append(row)
    if options.write:
        machine = describe_machine(" ".join(["python -m tests.benchmarks.population.threads", *sys.argv[1:]]))
        write_text(RESULT, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
