"""What the benchmarks found: rows, the targets they are held against, and the files that keep both."""

from __future__ import annotations

import csv
import datetime
import json
import os
import platform
import statistics
import subprocess
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch

from dmmlkd_ext.ops import build_info
from tests.benchmarks.paired import ratio

FOLDER = Path(__file__).parent / "results"


@dataclass(frozen=True)
class Row:
    """One comparison: how the native operator's time compares with another's in the same rounds."""

    operator: str
    case: str
    work: str
    threads: int
    against: str
    native_us: float
    other_us: float
    ratio: float
    """Time of the other over time of the native one; above 1 the native one is faster."""
    target: float | None = None
    """The least ratio that was aimed at."""
    test: str = ""
    """The benchmark that measured it, as pytest names it; empty in results from before it was kept."""

    @property
    def comparison(self) -> tuple[str, str, str, int, str]:
        """What was compared with what."""
        return self.operator, self.case, self.work, self.threads, self.against

    @property
    def verdict(self) -> str:
        """Whether the target was met."""
        return "" if self.target is None else ("met" if self.ratio >= self.target else "not met")


@dataclass
class Results:
    """The rows of one session."""

    rows: list[Row] = field(default_factory=list)
    test: str = ""
    """The benchmark that is measuring."""
    skipped: dict[str, str] = field(default_factory=dict)
    """Name of a benchmark that was skipped -> why."""

    def add(
        self,
        operator: str,
        case: str,
        work: str,
        times: Mapping[str, list[float]],
        targets: Mapping[str, float] | None = None,
    ) -> dict[str, float]:
        """Compare the entry `native` of interleaved times with all others; return the ratios."""
        ratios = {}
        for other in times:
            if other == "native":
                continue
            ratios[other] = ratio(times, other, "native")
            self.rows.append(
                Row(
                    operator,
                    case,
                    work,
                    torch.get_num_threads(),
                    other,
                    statistics.median(times["native"]) * 1e6,
                    statistics.median(times[other]) * 1e6,
                    ratios[other],
                    (targets or {}).get(other),
                    self.test,
                )
            )
        return ratios

    def write(self, folder: Path, command: str) -> Path:
        """Write rows, table and the machine's description into a folder of its own.

        Where the same machine has left rows on the same day, these are added to them, or take their places: so the
        benchmarks may be run file by file.
        """
        machine = describe_machine(command) | {"skipped": self.skipped}
        parts = machine["processor"], machine["build"]["instruction_set"] or "reference", machine["date"]
        name = "-".join(parts).lower().replace(" ", "-")
        target = folder / name
        target.mkdir(parents=True, exist_ok=True)
        if (target / "rows.csv").exists():
            self.rows = merged(read_rows(target / "rows.csv"), self.rows)
        (target / "machine.json").write_text(json.dumps(machine, indent=2) + "\n", encoding="utf-8")
        with (target / "rows.csv").open("w", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, [*asdict(self.rows[0]), "verdict"])
            writer.writeheader()
            for row in self.rows:
                numbers = {
                    key: f"{value:.4g}" if isinstance(value, float) else value for key, value in asdict(row).items()
                }
                writer.writerow({**numbers, "verdict": row.verdict})
        (target / "table.md").write_text(self.table(), encoding="utf-8")
        return target

    def table(self) -> str:
        """Return all rows as Markdown; those with a target say whether it was met."""
        lines = [
            "| operator | case | work | threads | against | native µs | ratio | target | |",
            "|---|---|---|---|---|---|---|---|---|",
        ]
        for row in self.rows:
            target = "" if row.target is None else f"{row.target:g}"
            lines.append(
                f"| {row.operator} | {row.case} | {row.work} | {row.threads} | {row.against} | {row.native_us:.1f} "
                f"| {row.ratio:.2f} | {target} | {row.verdict} |"
            )
        return "\n".join(lines) + "\n"


def read_rows(path: Path) -> list[Row]:
    """Return stored rows."""
    with path.open(newline="", encoding="utf-8") as file:
        return [
            Row(
                *(row[key] for key in ("operator", "case", "work")),
                int(row["threads"]),
                row["against"],
                *(float(row[key]) for key in ("native_us", "other_us", "ratio")),
                float(row["target"]) if row["target"] else None,
                row.get("test", ""),
            )
            for row in csv.DictReader(file)
        ]


def merged(before: list[Row], after: list[Row]) -> list[Row]:
    """Return the rows before, each replaced by that of the same comparison after, and what is new."""
    fresh = {row.comparison: row for row in after}
    return [fresh.pop(row.comparison, row) for row in before] + list(fresh.values())


def describe_machine(command: str) -> dict[str, Any]:
    """Return what a reader needs to place the figures; no path and no name of the machine."""
    processor = platform.processor() or platform.machine()
    info = Path("/proc/cpuinfo")
    if info.exists():
        names = [
            line.split(":", 1)[1].strip() for line in info.read_text().splitlines() if line.startswith("model name")
        ]
        processor = names[0] if names else processor
    commit = subprocess.run(["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False)
    return {
        "processor": processor,
        "cores": os.cpu_count(),
        "date": datetime.datetime.now(tz=datetime.UTC).date().isoformat(),
        "commit": commit.stdout.strip() or None,
        "command": command,
        "build": build_info(),
    }
