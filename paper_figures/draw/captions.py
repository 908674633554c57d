"""The text beside a figure: what is seen, with the numbers, and where they came from."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from dmmlkd_ext.experiments.config.worlds import LEVELS
from dmmlkd_ext.experiments.show.labels import label
from dmmlkd_ext.experiments.show.words import interval_of, p_value, signed, with_interval
from paper_figures.collect.inputs import Results
from paper_figures.plan.experiments import DEFAULT_SETTING

Sections = Mapping[str, Sequence[str]]
"""Heading of a section of a caption -> its lines."""
MOST_NAMES = 40
"""More runs than these are counted and hashed instead of named."""
SAMPLED = (
    "Before the last round a device is judged by a sample of the test data, another one for each device, as far as "
    "training.evaluation_samples asks for less than all."
)
"""For whatever shows accuracies before the last round."""


def where(row: Mapping[Any, Any], symbol: str = "") -> str:
    """Return which dataset, setting and level a row is of.

    Args:
        row: with some of dataset, setting and level.
        symbol: what a level is called; empty calls it by its setting.

    Example:
        >>> where({"dataset": "watch", "level": 0.3}, "energy budget"), where({"dataset": "mfeat", "setting": "severe"})
        ('watch, energy budget 0.3', 'mfeat, severe')
    """
    level, name = row.get("level"), str(row.get("setting") or "").removeprefix(DEFAULT_SETTING)
    if isinstance(level, float) and not math.isnan(level):
        name = f"{symbol or name} {level:g}".strip()
    return ", ".join(str(part) for part in (row.get("dataset"), name) if part)


def describe_differences(comparison: pd.DataFrame, reference: str, symbol: str = "") -> list[str]:
    """Return a line per row of a comparison: final accuracy, and the difference to the reference.

    What a level is called is `symbol`; the comparison is of `paper_figures.judge.comparisons.compare`.
    """
    lines = []
    for row in comparison.to_dict("records"):
        text = f"- {where(row, symbol)}, {label(row['method'])}: {with_interval(*interval_of(row, 'mean'))} %"
        if row["pairs"]:
            gap, plural = signed(*interval_of(row, "difference")), "s" if row["pairs"] > 1 else ""
            text += f"; against {label(reference)} {gap} points over {row['pairs']} pair{plural}, p {p_value(row['p'])}"
        lines.append(text)
    return lines


def absent(drawn: Mapping[str, bool | np.bool_]) -> str:
    """Return the sentence that names what is not drawn for want of numbers; nothing where all is drawn.

    Example:
        >>> absent({"time": True, "energy": False})
        ' Not drawn, because it was not measured: energy.'
    """
    names = [name for name, is_drawn in drawn.items() if not is_drawn]
    return f" Not drawn, because it was not measured: {', '.join(names)}." if names else ""


def describe_levels(table: pd.DataFrame) -> list[str]:
    """Return a line per level of non-IID data: how each dataset is split, and how many devices lack a modality."""
    lines = []
    for level, runs in table[table["setting"].isin(LEVELS)].groupby("setting", observed=True):
        places: dict[str, set[str]] = {}
        for row in (
            runs[["dataset", "partition", "dirichlet_alpha", "missing_rate"]].drop_duplicates().to_dict("records")
        ):
            dirichlet = f"a Dirichlet distribution of labels with alpha {row['dirichlet_alpha']:g}"
            split = "its natural owners" if row["partition"] == "natural" else dirichlet
            places.setdefault(f"split by {split}, missing rate {row['missing_rate']:g}", set()).add(row["dataset"])
        shown = "; ".join(f"{', '.join(sorted(datasets))} {text}" for text, datasets in sorted(places.items()))
        lines.append(f"- {level}: {shown}")
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
        '100, named in the table of runs; SHA-256 of their sorted names, one per line: bde4d0d61ad1'
    """
    names = sorted(map(str, runs))
    if len(names) <= MOST_NAMES:
        return ", ".join(names)
    digest = hashlib.sha256("\n".join(names).encode()).hexdigest()[:12]
    return f"{len(names)}, named in the table of runs; SHA-256 of their sorted names, one per line: {digest}"


def compose(title: str, shown: str, sections: Sections, results: Results | None = None) -> str:
    """Return a caption: a heading, what is shown, sections, and of results also settings and provenance.

    Sections without lines are left out.
    """
    parts = [f"# {title}", shown]
    contents = dict(sections)
    if results is not None:
        contents["Settings; the missing rate is the share of devices that lack a modality"] = describe_levels(
            results.table
        )
        contents["Provenance"] = describe_provenance(results.table, results.unfinished)
    for heading, lines in contents.items():
        if lines:
            parts += [f"{heading}:", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"
