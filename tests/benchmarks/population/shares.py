"""What evaluation, records and checkpoints take of a whole run, from the start of Python to the last file.

Run with `python -m tests.benchmarks.population.shares`; `--help` lists the options. Each run is a process of its own on
one thread, as `dmmlkd run` makes it, with its default settings.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path
from statistics import median
from typing import Any

from dmmlkd_ext.training.keep.files import write_text
from tests.benchmarks.results import describe_machine

RESULT = Path(__file__).parents[1] / "results" / "population_shares.json"
PARTS = ("evaluation", "record", "log", "checkpoint")


def clock(owner: Any, name: str, part: str, seconds: dict[str, float]) -> None:
    """Let a function add the time that it takes to a part's seconds."""
    function: Callable[..., Any] = getattr(owner, name)

    def timed(*arguments: Any, **options: Any) -> Any:
        begin = time.perf_counter()
        try:
            return function(*arguments, **options)
        finally:
            seconds[part] += time.perf_counter() - begin

    setattr(owner, name, timed)


def run_clocked(method: str, dataset: str) -> None:
    """Run one method in this process, and print as JSON what took how many seconds."""
    from dmmlkd_ext.experiments.config.presets import preset
    from dmmlkd_ext.experiments.run import run_experiment
    from dmmlkd_ext.training import round as simulation
    from dmmlkd_ext.training.keep import callbacks

    seconds: dict[str, float] = defaultdict(float)
    clock(simulation.Simulation, "run", "rounds", seconds)
    clock(simulation.Simulation, "_evaluations", "evaluation", seconds)
    clock(simulation, "make_record", "record", seconds)
    for owner, part in (
        (callbacks.RecordWriter, "log"),
        (callbacks.ProgressBar, "log"),
        (callbacks.Checkpoint, "checkpoint"),
    ):
        for occasion in ("on_round_end", "on_end"):
            clock(owner, occasion, part, seconds)
    with tempfile.TemporaryDirectory() as folder:
        run_experiment(preset(dataset, method), Path(folder), progress=True)
    print(json.dumps(seconds))


def measure(method: str, dataset: str, repetitions: int) -> dict[str, object]:
    """Return the medians of some runs, in seconds, and the share of evaluation, records and progress in two wholes."""
    runs: list[dict[str, float]] = []
    for _ in range(repetitions):
        begin = time.perf_counter()
        command = [sys.executable, "-m", __spec__.name, "--clocked", method, dataset]
        done = subprocess.run(
            command, check=True, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
        )
        runs.append({"run": time.perf_counter() - begin, **json.loads(done.stdout.splitlines()[-1])})
    row: dict[str, object] = {"method": method, "dataset": dataset}
    row |= {name: median(run[name] for run in runs) for name in ("run", "rounds", *PARTS)}
    for whole in ("run", "rounds"):
        row[f"share_of_{whole}"] = median(sum(run[part] for part in PARTS[:3]) / run[whole] for run in runs)
    return row


def main() -> None:
    """Measure what the options choose."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--methods", nargs="+", default=["dmml-kd-tb", "dmml"])
    parser.add_argument("--datasets", nargs="+", default=["watch", "mfeat", "avdigits"])
    parser.add_argument("--repetitions", type=int, default=3)
    parser.add_argument("--write", action="store_true", help="also write the results as JSON")
    parser.add_argument("--clocked", nargs=2, metavar=("METHOD", "DATASET"), help="run one and print its seconds")
    options = parser.parse_args()
    if options.clocked:
        run_clocked(*options.clocked)
        return
    rows = []
    print("method      dataset    run s  rounds s  evaluation  record    log  checkpoint  share of run  of rounds")
    for dataset in options.datasets:
        for method in options.methods:
            row = measure(method, dataset, options.repetitions)
            print(
                f"{method:11} {dataset:9} {row['run']:6.2f} {row['rounds']:9.2f} {row['evaluation']:11.3f} "
                f"{row['record']:7.3f} {row['log']:6.3f} {row['checkpoint']:11.3f} {row['share_of_run']:13.1%} "
                f"{row['share_of_rounds']:10.1%}",
                flush=True,
            )
            rows.append(row)
    if options.write:
        machine = describe_machine(" ".join(["python -m tests.benchmarks.population.shares", *sys.argv[1:]]))
        write_text(RESULT, json.dumps({"machine": machine, "rows": rows}, indent=1) + "\n")


if __name__ == "__main__":
    main()
