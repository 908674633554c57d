"""Every setting of every experiment, marked as the paper's or ours; a value that is the same everywhere stands once."""

from __future__ import annotations

import math
from itertools import combinations
from typing import Any

import pandas as pd

from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge.marks import mark_of
from paper_figures.plan import experiments

EXPERIMENTS = tuple(experiments.EXPERIMENTS)
NEEDS = "settings of any run"
TITLE = "Settings"
EVERYWHERE, ELSEWHERE = "everywhere", "elsewhere"
LONGEST = 80
"""Characters; where the most frequent value of an option holds is not told at greater length than that."""
KEYS = ("dataset", "method", "experiment", "level", "setting")
"""What a value may depend on, the plainest first."""
LEFT_OUT = ("seed", "method.name", "data.dataset")
"""Options that are columns themselves."""


def transform(results: Results) -> pd.DataFrame:
    """Return every value of every option, and where it holds.

    Returns:
        Columns option, value, where, mark, reason, in the order of the options in the configuration.
    """
    if results.settings.empty:
        return pd.DataFrame()
    settings = results.settings
    names = [*KEYS, "option", "value"]
    known = settings.loc[~settings["option"].isin(LEFT_OUT), names].astype({"level": "float64"})
    unique = known.drop_duplicates()
    order = list(dict.fromkeys(unique["option"].astype(str)))
    found = []
    for option in order:
        mark, reason = mark_of(option)
        places = _places(unique[unique["option"] == option])
        found += [(option, value, where, mark, reason) for value, where in places]
    return pd.DataFrame(found, columns=["option", "value", "where", "mark", "reason"])


def _places(values: pd.DataFrame) -> list[tuple[str, str]]:
    """Return each value of an option with where it holds."""
    if values["value"].nunique() == 1:
        return [(str(values["value"].iloc[0]), EVERYWHERE)]
    keys = _deciding_keys(values)
    places = values.drop_duplicates([*keys, "value"])
    commonest = places["value"].value_counts(sort=False).idxmax()
    found = []
    for value in dict.fromkeys(places["value"]):
        where = _describe(places[places["value"] == value], keys)
        found.append((str(value), ELSEWHERE if value == commonest and len(where) > LONGEST else where))
    return sorted(found, key=lambda entry: entry[1] == ELSEWHERE)


def _deciding_keys(values: pd.DataFrame) -> list[str]:
    """Return the fewest columns that decide the value; all of them if nothing does."""
    for size in range(1, len(KEYS)):
        for keys in combinations(KEYS, size):
            if (values.groupby(list(keys), dropna=False)["value"].nunique() == 1).all():
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


def show(rows: pd.DataFrame) -> pd.DataFrame:
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


def caption(results: Results, rows: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table, and how many options are the paper's and ours."""
    seeds = ", ".join(str(seed) for seed in sorted(results.table["seed"].unique()))
    shown = (
        "Every option of every run. [P]: stated by the paper's abstract or formulas; [C]: a choice of this project. No "
        "value is the paper's: none is known. A value that is the same in all runs stands once, as `everywhere`; "
        "another stands with the least that it depends on, or as `elsewhere`. "
        f"Each configuration was run with seeds {seeds} or some of them."
    )
    counts = rows.drop_duplicates("option")["mark"].value_counts()
    return shown, {"Marks": [f"- {mark}: {counts[mark]} options" for mark in sorted(counts.index)]}
