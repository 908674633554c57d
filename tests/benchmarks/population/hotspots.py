"""What the time of a round goes to, by operator of torch, on one thread.

Run with `python -m tests.benchmarks.population.hotspots`; `--help` lists the options. The local iterations are one
operator, unless `--reference` has the reference run, which costs more but tells them apart.
"""

from __future__ import annotations

import argparse

import torch
from torch.profiler import ProfilerActivity, profile

from dmmlkd_ext.training.learn import tiers
from tests.benchmarks.population.workloads import METHODS, WORKLOADS, build


def table(workload: str, method: str, num_devices: int, rows: int, by_shape: bool) -> str:
    """Return the operators that take the most time of one round, after one to warm up."""
    simulation, _ = build(WORKLOADS[workload], method, num_devices)
    simulation.run_round()
    with profile(activities=[ProfilerActivity.CPU], record_shapes=by_shape) as profiler:
        simulation.run_round()
    averages = profiler.key_averages(group_by_input_shape=by_shape)
    return averages.table(
        sort_by="self_cpu_time_total", row_limit=rows, max_name_column_width=50, max_shapes_column_width=60
    )


def main() -> None:
    """Profile what the options choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--losses", nargs="+", choices=METHODS, default=["all losses"])
    parser.add_argument("--devices", type=int, default=100)
    parser.add_argument("--rows", type=int, default=10)
    parser.add_argument("--shapes", action="store_true", help="tell operators apart by the shapes of their arguments")
    parser.add_argument("--reference", action="store_true", help="run the local iterations by the reference")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if options.reference:
        tiers.why_reference = lambda population, method: "it was asked for"
    for workload in options.workloads:
        for method in options.losses:
            print(f"{workload}, {method}, {options.devices} devices")
            print(table(workload, method, options.devices, options.rows, options.shapes), flush=True)


if __name__ == "__main__":
    main()
