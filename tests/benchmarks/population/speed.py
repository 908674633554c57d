"""Seconds a round of the stacked population against a plain loop over devices, on one thread.

Run with `python -m tests.benchmarks.population.speed`; `--help` lists the options. Both train the same round from the
same parameters, and their results are compared, in double precision, before anything is timed. Rounds alternate, and
the ratio is the median over pairs, so that other work on the machine disturbs both alike.
"""

from __future__ import annotations

import argparse
import json
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import asdict, dataclass
from pathlib import Path

import torch

from dmmlkd_ext.training.keep.files import write_text
from tests.benchmarks.population.workloads import METHODS, WORKLOADS, build
from tests.benchmarks.results import describe_machine
from tests.training.plain_loop import PlainLoop
from tests.training.twins import plan_of

RESULTS = Path(__file__).parents[1] / "results"

Clock = Callable[[], float]
CLOCKS: dict[str, Clock] = {"wall": time.perf_counter, "cpu": time.process_time}


@dataclass(frozen=True)
class Measurement:
    """One line of the table."""

    workload: str
    losses: str
    devices: int
    population_s: float
    loop_s: float
    ratio: float
    lowest_ratio: float
    highest_ratio: float


class Pair:
    """A simulation and a loop that train the same rounds."""

    def __init__(self, workload: str, method: str, num_devices: int, clock: Clock = time.perf_counter) -> None:
        self.clock = clock
        self.simulation, samples = build(WORKLOADS[workload], method, num_devices)
        simulation = self.simulation
        self.loop = PlainLoop(
            simulation.population, simulation.dataset.train, samples, simulation.method, simulation.config
        )

    def run_round(self) -> tuple[float, float]:
        """Train one round with both and return the seconds of the population and of the loop."""
        simulation = self.simulation
        links = simulation.world.draw(simulation.round)
        number, begin = simulation.round, self.clock()
        record = simulation.run_round()
        middle = self.clock()
        plan = plan_of(record, simulation)
        again = self.clock()
        batches = simulation.sampler.draw(number, plan.num_iterations)
        self.loop.run_round(batches, plan, record["learning_rate"], links.edges)
        return middle - begin, self.clock() - again

    def assert_equal(self, tolerance: float) -> None:
        """Raise AssertionError unless parameters and momenta agree, as vectors of each device's block.

        The tolerance is a relative distance, for half of the devices, and a hundred times as much for the worst: in
        single precision a rectifier that is within rounding of its kink opens in one and not in the other.
        """
        for name, block in self.simulation.population.blocks.items():
            columns = self.loop.columns[name]
            for ours, theirs in ((block.start, self.loop.vectors(name)), (block.momentum, self.loop.momenta(name))):
                distance = (ours[:, columns] - theirs).norm(dim=1) / theirs.norm(dim=1)
                assert distance.median() < tolerance, f"block {name}: {distance.median():.2g}"
                assert distance.max() < 100 * tolerance, (
                    f"block {name}, device {distance.argmax()}: {distance.max():.2g}"
                )


def compare(workload: str, method: str) -> None:
    """Train a few devices in double precision, and raise AssertionError unless the results agree."""
    torch.set_default_dtype(torch.float64)
    try:
        pair = Pair(workload, method, num_devices=5)
        for _ in range(2):
            pair.run_round()
            pair.assert_equal(1e-10)
    finally:
        torch.set_default_dtype(torch.float32)


def measure(workload: str, method: str, num_devices: int, rounds: int, clock: Clock) -> Measurement:
    """Compare once more, in single precision, then time some rounds."""
    pair = Pair(workload, method, num_devices, clock)
    pair.run_round()
    pair.assert_equal(1e-3)
    seconds = [pair.run_round() for _ in range(rounds)]
    ratios = [loop / population for population, loop in seconds]
    population, loop = (statistics.median(column) for column in zip(*seconds, strict=True))
    ratio = statistics.median(ratios)
    return Measurement(workload, method, num_devices, population, loop, ratio, min(ratios), max(ratios))


def show(row: Measurement) -> str:
    """Return a line of the table."""
    spread = f"{row.lowest_ratio:.1f}-{row.highest_ratio:.1f}"
    return (
        f"{row.workload:11} {row.losses:21} {row.devices:7} {row.population_s:12.4f} {row.loop_s:9.4f} "
        f"{row.ratio:6.1f} {spread:>11}"
    )


def main() -> None:
    """Measure what the options choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workloads", nargs="+", choices=WORKLOADS, default=list(WORKLOADS))
    parser.add_argument("--losses", nargs="+", choices=METHODS, default=list(METHODS))
    parser.add_argument("--devices", nargs="+", type=int, default=[10, 50, 100])
    parser.add_argument("--rounds", type=int, default=5, help="timed rounds, after one that is compared")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--clock", choices=CLOCKS, default="wall", help="`cpu` bears a busy machine better")
    parser.add_argument("--write", action="store_true", help="also write the results as JSON")
    options = parser.parse_args()
    torch.set_num_threads(options.threads)
    print(f"{'workload':11} {'losses':21} devices population s    loop s  ratio       range")
    rows = []
    for workload in options.workloads:
        for method in options.losses:
            compare(workload, method)
            for devices in options.devices:
                rows.append(measure(workload, method, devices, options.rounds, CLOCKS[options.clock]))
                print(show(rows[-1]), flush=True)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        content = {
            "machine": describe_machine(" ".join(["python -m", __spec__.name, *sys.argv[1:]])),
            "options": vars(options),
            "rows": [asdict(row) for row in rows],
        }
        write_text(RESULTS / "population_speed.json", json.dumps(content, indent=1) + "\n")


if __name__ == "__main__":
    main()
