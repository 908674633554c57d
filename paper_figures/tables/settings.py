"""Every setting of every experiment, marked as the paper's or ours; a value that is the same everywhere stands once."""

from __future__ import annotations

import math
from itertools import combinations
from pathlib import Path
from typing import Any

import pandas as pd

from paper_figures import tables
from paper_figures.inputs import NumbersAndSettings, require
from paper_figures.marks import mark_of

NAME = "table_settings"
EXPERIMENTS = (
    *("comparison", "ablation", "balance", "imbalance", "features"),
    *("non_iid", "missing", "topology", "sensitivity"),
)
EVERYWHERE, ELSEWHERE = "everywhere", "elsewhere"
LONGEST = 80
"""Characters; where the most frequent value of an option holds is not told at greater length than that."""
KEYS = ("dataset", "method", "experiment", "level", "setting")
"""What a value may depend on, the plainest first."""
LEFT_OUT = ("seed", "method.name", "data.dataset")
"""Options that are columns themselves."""


def make(results: NumbersAndSettings, folder: Path) -> list[Path]:
    """Compute the table from results and write it as CSV, Markdown and LaTeX, with its caption."""
    require(results.settings, NAME, "settings of any run")
    rows = transform(results.settings)
    seeds = ", ".join(str(seed) for seed in sorted(results.table["seed"].unique()))
    caption = (
        "Every option of every run. [P]: stated by the paper's abstract or formulas; [C]: a choice of this project. No "
        "value is the paper's: none is known. A value that is the same in all runs stands once, as `everywhere`; "
        "another stands with the least that it depends on, or as `elsewhere`. "
        f"Each configuration was run with seeds {seeds} or some of them."
    )
    counts = rows.drop_duplicates("option")["mark"].value_counts()
    found = [f"- {mark}: {counts[mark]} options" for mark in sorted(counts.index)]
    return tables.save_table(rows, format_rows(rows), "Settings", caption, folder, NAME, results, {"Marks": found})


def transform(settings: pd.DataFrame) -> pd.DataFrame:
    """Return every value of every option, and where it holds.

    Args:
        settings: columns experiment, setting, level, dataset, method, option, value, a row an option of a run.

    Returns:
        Columns option, value, where, mark, reason, in the order of the options in the configuration.
    """
    names = [*KEYS, "option", "value"]
    known = settings.loc[~settings["option"].isin(LEFT_OUT), names].astype({"level": "float64"})
    unique = known.drop_duplicates()
    order = list(dict.fromkeys(unique["option"].astype(str)))
    found = []
    for option in order:
        own = unique[unique["option"] == option]
        mark, reason = mark_of(option)
        found += [(option, value, where, mark, reason) for value, where in _places(own)]
    return pd.DataFrame(found, columns=["option", "value", "where", "mark", "reason"])


def _places(own: pd.DataFrame) -> list[tuple[str, str]]:
    """Return each value of an option with where it holds."""
    if own["value"].nunique() == 1:
        return [(str(own["value"].iloc[0]), EVERYWHERE)]
    keys = _deciding_keys(own)
    places = own.drop_duplicates([*keys, "value"])
    commonest = places["value"].value_counts(sort=False).idxmax()
    found = []
    for value in dict.fromkeys(places["value"]):
        where = _describe(places[places["value"] == value], keys)
        found.append((str(value), ELSEWHERE if value == commonest and len(where) > LONGEST else where))
    return sorted(found, key=lambda entry: entry[1] == ELSEWHERE)


def _deciding_keys(own: pd.DataFrame) -> list[str]:
    """Return the fewest columns that decide the value; all of them if nothing does."""
    for size in range(1, len(KEYS)):
        for keys in combinations(KEYS, size):
            if (own.groupby(list(keys), dropna=False)["value"].nunique() == 1).all():
                return list(keys)
    return list(KEYS)


def _describe(groups: pd.DataFrame, keys: list[str]) -> str:
    """Return where a value holds, the last key's values gathered under the others': `mfeat: DMML, DMML-KD`."""
    *outer, last = keys
    found: dict[str, list[str]] = {}
    for row in groups[keys].to_dict("records"):
        found.setdefault(", ".join(_name(key, row[key]) for key in outer), []).append(_name(last, row[last]))
    gathered: dict[str, list[str]] = {}
    for place, values in found.items():
        gathered.setdefault(", ".join(dict.fromkeys(values)), []).append(place)
    return "; ".join(
        f"{' and '.join(places)}: {values}" if places[0] else values for values, places in gathered.items()
    )


def _name(key: str, value: Any) -> str:
    if key == "level":
        return "no level" if math.isnan(value) else f"level {value:g}"
    return str(value)


def format_rows(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text; option, mark and reason stand at an option's first value."""
    first = ~rows["option"].duplicated()
    shown = {
        "Option": rows["option"].where(first, ""),
        "Value": rows["value"],
        "Where": rows["where"],
        "Mark": rows["mark"].where(first, ""),
        "Reason": rows["reason"].where(first, ""),
    }
    return pd.DataFrame(shown)
