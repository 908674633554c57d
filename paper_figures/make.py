"""Runs what is missing and draws every figure and table: `python -m paper_figures.make --profile quick`."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

FOLDER = Path(__file__).resolve().parent


def main(arguments: Sequence[str] | None = None) -> int:
    """Run and draw; return 0, 1 if a run or a figure failed, 2 if asked for wrongly, 130 if interrupted."""
    # Here and not above: each run's process imports this file, and none of it draws.
    import logging

    from dmmlkd_ext.experiments.config.processor import GpuMissingError
    from paper_figures.pipeline import MODULES, REPORTED, make, redraw
    from paper_figures.plan.experiments import PROFILES

    parser = argparse.ArgumentParser(prog="python -m paper_figures.make", description=__doc__)
    parser.add_argument("--profile", choices=PROFILES, help="how much is run; quick by default")
    parser.add_argument("--only", nargs="+", default=[], metavar="NAME", help=f"some of {', '.join(MODULES)}")
    parser.add_argument("--device", default="cpu", help="processor that simulates: cpu, cuda, cuda:N or auto")
    parser.add_argument("--workers", type=int, help="processes at a time; one per core, or per GPU, by default")
    parser.add_argument(
        "--runs", type=Path, default=FOLDER.parent / "runs", help="folder of runs, one per profile in it"
    )
    parser.add_argument(
        "--output", type=Path, default=FOLDER / "output", help="folder of figures, one per profile in it"
    )
    parser.add_argument(
        "--from",
        choices=("runs", "results"),
        default="runs",
        dest="source",
        help=f"what is drawn: runs, made as far as they are missing, or the kept tables of the profile {REPORTED}",
    )
    parser.add_argument("--no-run", action="store_true", help="draw from the runs that are finished")
    parser.add_argument(
        "--results",
        type=Path,
        default=FOLDER / "results",
        help=f"folder of the tables, which are kept when all of the profile {REPORTED} is drawn",
    )
    parser.add_argument(
        "--add", action="store_true", help="with --only: renew these figures' experiments in the kept tables"
    )
    options = parser.parse_args(arguments)
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        if options.source == "results":
            if options.profile not in (None, REPORTED):
                raise ValueError(f"profile must be {REPORTED}, whose tables are kept, got {options.profile}")
            return redraw(options.results, options.output / REPORTED, options.only)
        profile = options.profile or "quick"
        if options.add and (profile != REPORTED or not options.only):
            raise ValueError(f"add must come with --only and --profile {REPORTED}, whose tables are kept")
        return make(
            PROFILES[profile],
            options.runs / profile,
            options.output / profile,
            options.only,
            options.workers,
            results_folder=options.results,
            run=not options.no_run,
            device=options.device,
            add=options.add,
        )
    except (ValueError, FileNotFoundError) as error:
        parser.error(str(error))
    except GpuMissingError as error:
        print(error, file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("interrupted; the same command goes on where this one ended", file=sys.stderr)
        return 130


if __name__ == "__main__":
    sys.exit(main())
