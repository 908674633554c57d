"""The committed results of the benchmarks, and the machines that they ran on."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

KERNELS = "*/rows.csv of a benchmark; `make bench` writes one"
"""What is missing where there are no rows."""
WIDTHS = {"base": 0, "avx2": 1, "avx512": 2}
"""Instruction sets by the width of their vectors."""
LIMITS = ("limit", "floor")
"""What a row is compared with begins so where it is the machine's limit and not a rival."""
COLUMNS = ("operator", "case", "work", "threads", "against", "native_us", "other_us", "ratio", "target", "is_limit")


@dataclass(frozen=True)
class Benchmark:
    """The rows of one session of the kernels' benchmark and the machine that it ran on."""

    rows: pd.DataFrame
    """Columns operator, case, work, threads, against, native_us, other_us, ratio, target, verdict, is_limit."""
    machine: dict[str, Any]


def load_kernels(folder: Path) -> Benchmark:
    """Read the newest session on the widest vectors, by the date at the end of its folder's name; none has no rows."""

    def order(rows: Path) -> tuple[int, str, str]:
        build = load_json(rows.with_name("machine.json")).get("build", {})
        return WIDTHS.get(build.get("instruction_set"), -1), rows.parent.name[-10:], rows.parent.name

    found = sorted(folder.glob("*/rows.csv"), key=order)
    if not found:
        return Benchmark(pd.DataFrame(columns=list(COLUMNS)), {})
    rows = pd.read_csv(found[-1], keep_default_na=False, na_values={"target": [""]})
    return Benchmark(mark_limits(rows), load_json(found[-1].with_name("machine.json")))


def mark_limits(rows: pd.DataFrame) -> pd.DataFrame:
    """Add the column is_limit: whether the row compares with the machine's limit; its ratio is then a fraction of it.

    Example:
        >>> mark_limits(pd.DataFrame({"against": ["reference", "limit: copy, 2 streams"]}))["is_limit"].tolist()
        [False, True]
    """
    return rows.assign(is_limit=rows["against"].str.startswith(LIMITS))


def count_met(rows: pd.DataFrame) -> tuple[int, int]:
    """Return how many targets were met, of how many."""
    aimed = rows.dropna(subset=["target"])
    return int((aimed["ratio"] >= aimed["target"]).sum()), len(aimed)


def load_json(path: Path) -> dict[str, Any]:
    """Read a JSON file of results or of a machine; an empty one where there is none."""
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return content


def describe_machine(machine: dict[str, Any]) -> list[str]:
    """Return lines that say on what, at which commit and with which command was measured."""
    if not machine:
        return ["- Machine: not recorded"]
    build = machine.get("build", {})
    lines = [f"- Machine: {machine.get('processor', 'unknown')}, {machine.get('cores', '?')} cores"]
    if build:
        lines.append(
            f"- Build: torch {build.get('torch')}, {build.get('backend')}, {build.get('instruction_set')}, "
            f"{build.get('compiler')}"
        )
    return [
        *lines,
        f"- Commit: {machine.get('commit', 'unknown')}",
        f"- Command: `{machine.get('command', 'unknown')}`",
    ]
