"""Searches each method's settings on validation data and keeps them: `python -m paper_figures.tune`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]


def main(arguments: Sequence[str] | None = None) -> int:
    """Search and write; return 0, 1 if something failed, 2 if asked for wrongly, 130 if interrupted."""
    # Here and not above: each run's process imports this file.
    from dmmlkd_ext.experiments.config.tuned import PATH, TUNED_METHODS
    from dmmlkd_ext.experiments.config.worlds import DATASETS

    parser = argparse.ArgumentParser(prog="python -m paper_figures.tune", description=__doc__)
    parser.add_argument("--datasets", nargs="+", choices=DATASETS, default=DATASETS, help="whose settings")
    parser.add_argument("--methods", nargs="+", choices=TUNED_METHODS, default=TUNED_METHODS, help="which methods'")
    parser.add_argument("--budget", choices=("none", "limited"), help="only without, or with, a limit on energy")
    parser.add_argument("--workers", type=int, help="processes at a time; one per core by default")
    parser.add_argument("--runs", type=Path, default=ROOT / "runs" / "tuning", help="folder of the trials' runs")
    parser.add_argument("--output", type=Path, help="file of the chosen settings; by default beside the trials' runs")
    parser.add_argument("--keep", action="store_true", help=f"write them to {PATH.name}, in the committed ones' place")
    options = parser.parse_args(arguments)
    if options.workers is not None and options.workers < 1:
        parser.error(f"workers must be at least 1, got {options.workers}")
    if options.keep and options.output is not None:
        parser.error("output must not be given with keep, which names the file")
    options.output = PATH if options.keep else options.output or options.runs / "tuned.json"
    try:
        return search(options)
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one ended", file=sys.stderr)
        return 130


def search(options: argparse.Namespace) -> int:
    """Run what is missing of the search and write the choices; those that were not asked for stay in the file."""
    from dmmlkd_ext.experiments.config import ExperimentConfig
    from dmmlkd_ext.experiments.config.tuned import PATH, read_choices, write_choices
    from dmmlkd_ext.experiments.provenance import identity
    from dmmlkd_ext.experiments.sweep import run_sweep
    from paper_figures.collect.availability import can_load
    from paper_figures.plan import search as searching

    def run(configs: Sequence[ExperimentConfig]) -> None:
        report = run_sweep(configs, options.runs, workers=options.workers)
        print(f"{len(report.folders)} runs, {report.reused} of them finished earlier", flush=True)
        for name, log in report.failures.items():
            print(f"failed: run {name}, see {log}", file=sys.stderr)

    def wanted(one: searching.Search) -> bool:
        budget = "none" if one.budget is None else "limited"
        return one.method in options.methods and options.budget in (None, budget)

    available = [dataset for dataset in options.datasets if can_load(dataset)]
    if not available:
        print("nothing to tune: none of the datasets can be had", file=sys.stderr)
        return 1
    committed = read_choices(PATH)
    before = read_choices(options.output) or committed
    choices, failed = searching.tune(available, options.runs, run, before, wanted)
    description = {
        "rounds": searching.ROUNDS,
        "seeds": searching.SEEDS,
        "criterion": "validation accuracy of the last round, mean over devices and seeds",
        "commit": identity().commit,
    }
    options.output.parent.mkdir(parents=True, exist_ok=True)
    write_choices(choices, options.output, description)
    print(f"{len(choices)} settings chosen; they are in {options.output}")
    other = sum(choices[place].settings != committed[place].settings for place in choices if place in committed)
    stay = "were replaced" if options.keep else "stay as they are; make tune KEEP=1 replaces them"
    print(f"{other} of them differ from the committed ones in {PATH.name}, which {stay}")
    for missed in failed:
        print(f"failed: no trial of {missed.method} on {missed.dataset} finished", file=sys.stderr)
    return 1 if failed or len(available) < len(options.datasets) else 0


if __name__ == "__main__":
    sys.exit(main())
