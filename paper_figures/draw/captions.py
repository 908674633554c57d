"""The text beside a figure: what is seen, with the numbers, and where they came from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from paper_figures.inputs import Numbers
from paper_figures.style import look, prefix_of

DEFAULT_SETTING = "default"
"""What a setting is called where an experiment varies its level alone; it is not written."""
MOST_NAMES = 40
"""More runs than these are counted and hashed instead of named."""
SAMPLED = (
    "Before the last round a device is judged by a sample of the test data, another one for each device, as far as "
    "training.evaluation_samples asks for less than all."
)
"""For whatever shows accuracies before the last round."""


def percent(value: float) -> str:
    """Return an accuracy in percent, e.g. ``81.3``, or a dash where there is none."""
    return "-" if math.isnan(value) else f"{100 * value:.1f}"


def with_interval(mean: float, low: float, high: float) -> str:
    """Return a mean and half of its interval in percent, e.g. ``81.3 ± 2.0``."""
    return percent(mean) if math.isnan(low) else f"{percent(mean)} ± {100 * (high - low) / 2:.1f}"


def signed(value: float, low: float, high: float, scale: float = 100.0, digits: int = 1) -> str:
    """Return a difference with its interval, by default in percentage points, e.g. ``+3.2 [+1.1, +5.3]``."""
    if math.isnan(value):
        return "-"
    # Adding zero to what is rounded turns -0.0 into +0.0.
    shown, *ends = (f"{round(scale * number, digits) + 0.0:+.{digits}f}" for number in (value, low, high))
    return shown if math.isnan(low) else f"{shown} [{', '.join(ends)}]"


def p_value(value: float) -> str:
    """Return a p value, e.g. ``0.012`` or ``<0.001``, or a dash where there is none."""
    if math.isnan(value):
        return "-"
    return "<0.001" if value < 0.001 else f"{value:.3f}"


def quantity(value: float, unit: str = "") -> str:
    """Return a number of a wide range with three digits and a unit with its prefix.

    Example:
        >>> quantity(12345.0, "J"), quantity(0.5, "s"), quantity(float("nan"), "s")
        ('12.3 kJ', '500 ms', '-')
    """
    if math.isnan(value):
        return "-"
    factor, prefix = prefix_of(value)
    return f"{value / factor:.3g} {prefix}{unit}".strip()


def where(row: Mapping[Any, Any], symbol: str = "") -> str:
    """Return which dataset, setting and level a row is of.

    Args:
        row: with some of dataset, setting and level.
        symbol: what a level is called; empty calls it by its setting.

    Example:
        >>> where({"dataset": "watch", "level": 0.3}, "energy budget"), where({"dataset": "mfeat", "setting": "severe"})
        ('watch, energy budget 0.3', 'mfeat, severe')
    """
    parts = [str(row["dataset"])] if row.get("dataset") else []
    level = row.get("level")
    setting = str(row.get("setting") or "")
    name = "" if setting == DEFAULT_SETTING else setting
    if isinstance(level, float) and not math.isnan(level):
        name = symbol or name
        name = f"{name} {level:g}".strip()
    return ", ".join([*parts, name] if name else parts)


def describe_differences(comparison: pd.DataFrame, reference: str, symbol: str = "") -> list[str]:
    """Return a line for each setting and method: final accuracy, and the difference to the reference.

    Args:
        comparison: of `paper_figures.transforms.compare`.
        reference: the method that others were compared with.
        symbol: what a level is called.
    """
    lines = []
    for row in comparison.to_dict("records"):
        text = (
            f"- {where(row, symbol)}, {look(row['method']).label}: "
            f"{with_interval(row['mean'], row['mean_low'], row['mean_high'])} %"
        )
        if row["pairs"]:
            gap = signed(row["difference"], row["difference_low"], row["difference_high"])
            text += (
                f"; against {look(reference).label} {gap} points over {row['pairs']} "
                f"pair{'s' if row['pairs'] > 1 else ''}, p {p_value(row['p_holm'])}"
            )
        lines.append(text)
    return lines


def describe_provenance(table: pd.DataFrame, unfinished: Sequence[str] = ()) -> list[str]:
    """Return lines that say which runs, seeds and commit the numbers came from, and which runs are missing."""
    commits = sorted({str(commit) for commit in table["commit"].dropna()}) or ["unknown"]
    lines = [
        f"- Commit: {', '.join(commits)}",
        f"- Seeds: {', '.join(str(seed) for seed in sorted(table['seed'].unique()))}",
        f"- Rounds: {', '.join(str(rounds) for rounds in sorted(table['rounds'].unique()))}",
        f"- Runs: {name_runs(table['run'].unique())}",
    ]
    if unfinished:
        lines.append(f"- Not finished, and left out: {name_runs(unfinished)}")
    return lines


def name_runs(runs: Iterable[object]) -> str:
    """Return the names of runs, or where they are many their number and a hash of their sorted names.

    Example:
        >>> name_runs(["b", "a"])
        'a, b'
        >>> name_runs(map(str, range(100)))
        '100, named in the table of runs; SHA-256 of their sorted names, one a line: bde4d0d61ad1'
    """
    names = sorted(map(str, runs))
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return f"{len(names)}, named in the table of runs; SHA-256 of their sorted names, one a line: {digest}"


def compose(title: str, shown: str, sections: Mapping[str, Sequence[str]], results: Numbers | None = None) -> str:
    """Return a caption: a heading, what is shown, sections of lines, provenance; empty sections are left out.

    Args:
        title: the heading.
        shown: what is drawn and how to read it.
        sections: heading of a section -> its lines.
        results: where the numbers came from; None adds no provenance.
    """
    parts = [f"# {title}", shown]
    contents = dict(sections)
    if results is not None:
        contents["Provenance"] = describe_provenance(results.table, results.unfinished)
    for heading, lines in contents.items():
        if lines:
            parts += [f"{heading}:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def describe_claims(claims: pd.DataFrame, differences: pd.DataFrame) -> list[str]:
    """Return the verdict on each claim, and below it each difference that decided it.

    Args:
        claims: of `paper_figures.claims.judge`.
        differences: of the same call.
    """
    lines = []
    for claim in claims.to_dict("records"):
        own = differences[differences["name"] == claim["name"]]
        count = f"; {claim['supporting']} of {len(own)} differences support it" if len(own) else ""
        lines.append(f"- {claim['claim']}: **{claim['verdict']}**{count}.")
        lines += [f"  - {describe_contrast(row)}" for row in own.to_dict("records")]
    return lines


def describe_contrast(row: Mapping[Any, Any]) -> str:
    """Return a difference with its interval, its adjusted p and what it says, as one line."""
    shown = contrast_number(row)
    place = ", ".join(str(row[name]) for name in ("dataset", "setting") if row[name] not in ("", DEFAULT_SETTING))
    pairs = f"{row['pairs']} pair{'s' if row['pairs'] != 1 else ''}"
    return f"{place}: {row['what']} {shown} ({pairs}, p {p_value(row['p_holm'])}): {row['verdict']}"


def contrast_number(row: Mapping[Any, Any]) -> str:
    """Return the number of a claim or a difference with its interval, in the claim's unit."""
    value = row["difference"] if "difference" in row else row["mean"]
    if row["unit"] == "points":
        shown = signed(value, row["low"], row["high"])
        return shown if shown == "-" else f"{shown} points"
    return signed(value, row["low"], row["high"], scale=1.0, digits=3)
