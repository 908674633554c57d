"""Seconds and memory of the stacked population as the number of devices grows, on one thread.

Run with `python -m tests.benchmarks.population.scale`; `--help` lists the options. Each size runs in a process of its
own, so that its peak of memory is its own.
"""

from __future__ import annotations

import argparse
import json
import resource
import statistics
import subprocess
import sys
import time
from pathlib import Path

import torch

from dmmlkd_ext.training.keep.files import write_text
from tests.benchmarks.population.workloads import METHODS, WORKLOADS, build
from tests.benchmarks.results import describe_machine

RESULTS = Path(__file__).parents[1] / "results"
FLOAT_BYTES = 4


def peak_bytes() -> int:
    """Return the most memory that this process has held."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def measure(workload: str, method: str, num_devices: int, rounds: int, iterations: int) -> dict[str, float]:
    """Return seconds a round and device, and floats a parameter and device: of the state, and at the peak.

    The peak is counted above what the process held before it built the population, data included, so that activations
    and gradients are part of it.
    """
    build(WORKLOADS[workload], method, 5)[0].run_round()  # what libraries take once
    before = peak_bytes()
    simulation, _ = build(WORKLOADS[workload], method, num_devices, local_iterations=iterations)
    blocks = simulation.population.blocks.values()
    parameters = sum(block.start.numel() for block in blocks)
    state = sum(tensor.numel() for block in blocks for tensor in (block.start, block.local, block.momentum))
    simulation.run_round()
    seconds = []
    for _ in range(rounds):
        begin = time.perf_counter()
        simulation.run_round()
        seconds.append(time.perf_counter() - begin)
    return {
        "devices": num_devices,
        "seconds_a_round": statistics.median(seconds),
        "microseconds_a_device_and_iteration": 1e6 * statistics.median(seconds) / num_devices / iterations,
        "parameters_a_device": parameters / num_devices,
        "state_floats_a_parameter": state / parameters,
        "peak_floats_a_parameter": (peak_bytes() - before) / FLOAT_BYTES / parameters,
    }


def main() -> None:
    """Measure what the options choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workload", choices=WORKLOADS, default="perceptron")
    parser.add_argument("--losses", choices=METHODS, default="all losses")
    parser.add_argument("--devices", nargs="+", type=int, default=[100, 1000, 10000])
    parser.add_argument("--iterations", type=int, default=2, help="local iterations a round")
    parser.add_argument("--rounds", type=int, default=3, help="timed rounds, after one to warm up")
    parser.add_argument("--write", action="store_true", help="also write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(1)
    if len(options.devices) == 1 and not options.write:
        print(
            json.dumps(measure(options.workload, options.losses, *options.devices, options.rounds, options.iterations))
        )
        return
    print("devices  s a round  us a device, iteration  parameters  state floats  peak floats a parameter and device")
    rows = [json.loads(_in_a_process(options, devices)) for devices in options.devices]
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        content = {
            "machine": describe_machine(" ".join(["python -m", __spec__.name, *sys.argv[1:]])),
            "options": vars(options),
            "rows": rows,
        }
        write_text(RESULTS / "population_scale.json", json.dumps(content, indent=1) + "\n")


def _in_a_process(options: argparse.Namespace, devices: int) -> str:
    arguments = ["--workload", options.workload, "--losses", options.losses, "--devices", str(devices)]
    arguments += ["--iterations", str(options.iterations), "--rounds", str(options.rounds)]
    command = [sys.executable, "-m", "tests.benchmarks.population.scale", *arguments]
    output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    row = json.loads(output)
    print(
        f"{row['devices']:7} {row['seconds_a_round']:10.3f} {row['microseconds_a_device_and_iteration']:23.0f} "
        f"{row['parameters_a_device']:11.0f} {row['state_floats_a_parameter']:13.2f} "
        f"{row['peak_floats_a_parameter']:12.1f}",
        flush=True,
    )
    return output


if __name__ == "__main__":
    main()
