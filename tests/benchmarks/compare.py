"""Prints what changed between stored benchmark results and those of a folder: `python -m tests.benchmarks.compare`."""

from __future__ import annotations

import argparse
import json
import sys
from collections import Counter
from collections.abc import Mapping
from pathlib import Path

from tests.benchmarks.results import FOLDER, Row, read_rows

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


def read_skipped(rows: Path) -> dict[str, str]:
    """Return the benchmarks that a session skipped, each with the reason."""
    skipped: dict[str, str] = json.loads(rows.with_name("machine.json").read_text(encoding="utf-8")).get("skipped", {})
    return skipped


def changes(before: list[Row], after: list[Row], skipped: Mapping[str, str]) -> list[str]:
    """Return a line for each comparison that is new, missing, or changed by more than noise.

    Of an operator whose benchmarks were not run, a line says so for all of its comparisons.
    """
    old, new = ({row.comparison: row for row in rows} for rows in (before, after))
    ran = {row.operator for row in after}
    absent = Counter(row.operator for row in before if row.operator not in ran and row.test not in skipped)
    lines = [f"not run  {operator}: {count} comparisons" for operator, count in absent.items()]
    gone = [row for key, row in old.items() if key not in new]
    lines += [_missing(row, skipped) for row in gone if row.operator in ran or row.test in skipped]
    for key, row in new.items():
        if key not in old:
            lines.append(f"new      {_name(row)}: {row.ratio:.2f} ({_times(row)})")
        elif abs(row.ratio / old[key].ratio - 1) > NOISE:
            word = "faster" if row.ratio > old[key].ratio else "slower"
            lines.append(
                f"{word}   {_name(row)}: {old[key].ratio:.2f} -> {row.ratio:.2f} ({_times(old[key])} -> {_times(row)})"
            )
    return lines


def _missing(row: Row, skipped: Mapping[str, str]) -> str:
    """Return why a comparison is not there any more: skipped, or gone with its benchmark."""
    if row.test in skipped:
        return f"skipped  {_name(row)}: {skipped[row.test]}"
    if not row.test and skipped:  # of a session that did not keep which benchmark measured what
        return f"gone or skipped  {_name(row)}"
    return f"gone     {_name(row)}"


def _name(row: Row) -> str:
    return " | ".join(map(str, row.comparison))


def _times(row: Row) -> str:
    return f"{row.native_us:.4g} us against {row.other_us:.4g}"


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
    lines = changes(read_rows(stored), read_rows(fresh), read_skipped(fresh))
    print(f"against {stored.parent.name}, changes above {NOISE:.0%}, ratios and microseconds of both sides:")
    print("\n".join(lines) or "none")
    return 0


if __name__ == "__main__":
    sys.exit(main())
