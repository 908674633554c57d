"""The steps of on_device.sh: each with a limit of its own, the costliest questions first, none stopped by another.

What is measured is written as JSON, what was said to log.txt, all of it summed up in report.json and a table. The exit
status is 0 if all passed, or were skipped for a reason that is printed.
"""

from __future__ import annotations

import argparse
import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

WHOLE_LIMIT_S = 480
SKIPPED = 77  # the exit status of a step that could not begin, with the reason as its last line
TIMED_OUT = (124, 137)  # of timeout, and of what it had to kill

TESTS = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "-m", "cuda", "tests/cuda")
MEASURE = ("-m", "tests.cuda.measure")
# Every kernel in one dtype, small: a sanitizer slows a kernel a hundredfold.
SMALL = (
    "(float32 or test_orthogonality) and not other_dtypes and not bfloat16 and "
    "(test_matches or test_in_place or test_halo or test_is_the_saved_gradient)"
)
METRICS = ",".join(
    (
        "gpu__time_duration.sum",
        "dram__bytes.sum",
        "dram__throughput.avg.pct_of_peak_sustained_elapsed",
        "sm__throughput.avg.pct_of_peak_sustained_elapsed",
        "sm__warps_active.avg.pct_of_peak_sustained_active",
        "launch__registers_per_thread",
    )
)


@dataclass(frozen=True)
class Step:
    """A command, the seconds that it may take, and whether it must run on a GPU."""

    name: str
    limit_s: int
    command: tuple[str, ...]
    needs_gpu: bool = True
    environment: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Outcome:
    """How a step ended: passed, skipped, failed or timed out, in how many seconds, and the line that says why."""

    name: str
    state: str
    seconds: float
    line: str


def steps(output: Path, dry_run: bool) -> list[Step]:
    """Return the steps in their order; those of a dry run measure a little, on the CPU."""
    python = sys.executable
    sizes = ("--torch-device", "cpu", "--scale", "200") if dry_run else ()
    workers = ("-n", "4", "--dist", "worksteal")

    def measure(what: str) -> tuple[str, ...]:
        return (python, *MEASURE, what, "--write", str(output / f"{what}.json"), *sizes)

    def sanitize(tool: str) -> tuple[str, ...]:
        ours = ("--kernel-name", "kernel_substring=dmmlkd", "--error-exitcode", "9")
        return ("compute-sanitizer", "--tool", tool, *ours, python, *TESTS, "-x", "-k", SMALL)

    kernels = "regex:pairwise_kl|gossip_mix|orthogonality"
    profile = ("ncu", "--clock-control", "none", "--kernel-name", kernels, "--metrics", METRICS, "--csv")
    collect = ("--collect-only",) if dry_run else workers
    build = (python, "setup.py", "--quiet", "build_ext", "--inplace")
    return [
        Step("machine", 20, ("nvidia-smi",)),
        Step("build", 150, build, environment=_build_environment() if not dry_run else {}),
        Step("kernels", 90, measure("kernels"), needs_gpu=False),
        Step("simulation", 110, measure("simulation"), needs_gpu=False),
        Step("tests", 140, (python, *TESTS, *collect), needs_gpu=False),
        Step("memcheck", 80, sanitize("memcheck")),
        Step("racecheck", 70, sanitize("racecheck")),
        Step("synccheck", 50, sanitize("synccheck")),
        Step("ncu", 60, (*profile, "--log-file", str(output / "ncu.csv"), python, *MEASURE, "once")),
    ]


def _build_environment() -> dict[str, str]:
    """Return what makes setup.py build CUDA kernels for this GPU alone, on all cores."""
    program = "import torch; print('%d%d' % torch.cuda.get_device_capability())"
    asked = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
    architecture = os.environ.get("DMMLKD_CUDA_ARCHITECTURES") or asked.stdout.strip()
    cores = {"MAX_JOBS": os.environ.get("MAX_JOBS") or str(os.cpu_count() or 1), "DMMLKD_BUILD": "cuda"}
    return {**cores, "DMMLKD_CUDA_ARCHITECTURES": architecture} if architecture else cores


def run_step(step: Step, log: Path, limit_s: float, dry_run: bool) -> Outcome:
    """Run one step under its limit; its output goes behind that of the others in the log."""
    if dry_run and step.needs_gpu:
        return Outcome(step.name, "skipped", 0.0, f"needs a GPU: {' '.join(step.command[:3])}")
    if shutil.which(step.command[0]) is None:
        return Outcome(step.name, "failed", 0.0, f"{step.command[0]} is not on PATH")
    limit_s = min(step.limit_s, limit_s)
    if limit_s < 5:
        return Outcome(step.name, "failed", 0.0, f"no time is left of {WHOLE_LIMIT_S} s")
    began = time.monotonic()
    command = ["timeout", "--kill-after=5", f"{limit_s:.0f}", *step.command]
    with log.open("a", encoding="utf-8") as file:
        file.write(f"=== {step.name}: {' '.join(step.command)}\n")
        file.flush()
        start = file.tell()
        done = subprocess.run(
            command, stdout=file, stderr=subprocess.STDOUT, check=False, env={**os.environ, **step.environment}
        )
    seconds = time.monotonic() - began
    said = log.read_bytes()[start:].decode(errors="replace").strip().splitlines()
    line = said[-1].strip() if said else ""
    if done.returncode in TIMED_OUT:
        return Outcome(step.name, "timed out", seconds, f"took more than {limit_s:.0f} s; {line}")
    return Outcome(step.name, {0: "passed", SKIPPED: "skipped"}.get(done.returncode, "failed"), seconds, line)


def run_steps(todo: Sequence[Step], output: Path, dry_run: bool, limit_s: float = WHOLE_LIMIT_S) -> list[Outcome]:
    """Run all steps, whatever became of those before, within the limit of all; print a line for each."""
    log, end, outcomes = output / "log.txt", time.monotonic() + limit_s, []
    log.write_text("", encoding="utf-8")
    for step in todo:
        outcome = run_step(step, log, end - time.monotonic(), dry_run)
        print(f"{outcome.name:12} {outcome.state:10} {outcome.seconds:6.1f} s  {outcome.line[:100]}", flush=True)
        outcomes.append(outcome)
    return outcomes


def table(rows: Sequence[dict[str, Any]]) -> str:
    """Return rows as text, a column a key; numbers with three digits."""

    def text(value: object) -> str:
        if isinstance(value, float):
            return f"{value:.3g}"
        return "" if value is None else str(value)

    columns = list(dict.fromkeys(key for row in rows for key in row))
    cells = [columns, *([text(row.get(column)) for column in columns] for row in rows)]
    widths = [max(len(line[i]) for line in cells) for i in range(len(columns))]
    lines = ("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)) for line in cells)
    return "\n".join(line.rstrip() for line in lines)


def report(outcomes: Sequence[Outcome], output: Path, dry_run: bool) -> int:
    """Write report.json, print what was measured, and return the exit status."""
    measured = {}
    for name in ("kernels", "simulation"):
        if (path := output / f"{name}.json").exists():
            measured[name] = json.loads(path.read_text(encoding="utf-8"))
            print(f"\n{name}\n{table(measured[name]['rows'])}")
    passed = all(outcome.state in ("passed", "skipped") for outcome in outcomes)
    whole = {"passed": passed, "dry_run": dry_run, "steps": [asdict(outcome) for outcome in outcomes], **measured}
    (output / "report.json").write_text(json.dumps(whole, indent=1) + "\n", encoding="utf-8")
    print(f"\n{'all passed' if passed else 'NOT all passed'}; {output / 'report.json'}, {output / 'log.txt'}")
    return 0 if passed else 1


def main(arguments: Sequence[str] | None = None) -> int:
    """Run all steps and report."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--output", type=Path, default=Path("build/gpu-check"), help="folder of the results")
    parser.add_argument("--dry-run", action="store_true", help="on a CPU, what a CPU can do; name what needs a GPU")
    parser.add_argument("--only", nargs="+", metavar="STEP", help="these steps alone")
    options = parser.parse_args(arguments)
    options.output.mkdir(parents=True, exist_ok=True)
    for left in options.output.glob("*.json"):
        left.unlink()
    todo = steps(options.output, options.dry_run)
    if unknown := set(options.only or ()) - {step.name for step in todo}:
        parser.error(f"--only knows {', '.join(step.name for step in todo)}; got {', '.join(sorted(unknown))}")
    todo = [step for step in todo if not options.only or step.name in options.only]
    return report(run_steps(todo, options.output, options.dry_run), options.output, options.dry_run)


if __name__ == "__main__":
    sys.exit(main())
