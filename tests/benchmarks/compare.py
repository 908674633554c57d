"""Prints what changed between stored benchmark results and those of a folder: `python -m tests.benchmarks.compare`."""

from __future__ import annotations

import argparse
import csv
import sys
from pathlib import Path

from tests.benchmarks.results import FOLDER

KEY = ("operator", "case", "work", "threads", "against")
NOISE = 0.15  # ratios of shared machines repeat to about this


def newest(folder: Path, machine: str | None = None) -> Path:
    """Return the newest results in a folder, by the date in their names; of `machine`, if there are any of it.

    Raises:
        FileNotFoundError: there are none.
    """
    found = sorted(folder.glob("*/rows.csv"), key=lambda path: (machine_of(path) == machine, path.parent.name[-10:]))
    if not found:
        raise FileNotFoundError(f"no results in {folder}; `make bench` stores some")
    return found[-1]


def machine_of(rows: Path) -> str:
    """Return what stands before the date in the name of a folder of results: processor and instruction set."""
    return rows.parent.name[: -len("-2026-01-01")]


def read(path: Path) -> dict[tuple[str, ...], float]:
    """Return the ratio of each comparison."""
    with path.open(newline="", encoding="utf-8") as file:
        return {tuple(row[key] for key in KEY): float(row["ratio"]) for row in csv.DictReader(file)}


def changes(before: dict[tuple[str, ...], float], after: dict[tuple[str, ...], float]) -> list[str]:
    """Return a line for each comparison that is new, gone, or changed by more than noise."""
    lines = [f"gone      {' | '.join(key)}" for key in before if key not in after]
    for key, ratio in after.items():
        if key not in before:
            lines.append(f"new       {' | '.join(key)}: {ratio:.2f}")
        elif abs(ratio / before[key] - 1) > NOISE:
            word = "faster" if ratio > before[key] else "slower"
            lines.append(f"{word}    {' | '.join(key)}: {before[key]:.2f} -> {ratio:.2f}")
    return lines


def main() -> int:
    """Compare the newest results of a folder with the newest stored ones, of such a machine if there are any."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, help="folder of the new results")
    try:
        options = parser.parse_args()
        fresh = newest(options.folder)
        stored = newest(FOLDER, machine_of(fresh))
    except FileNotFoundError as error:
        print(error, file=sys.stderr)
        return 2
    lines = changes(read(stored), read(fresh))
    print(f"against {stored.parent.name}, changes above {NOISE:.0%}:")
    print("\n".join(lines) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
