"""Which options of a configuration are the paper's [P], which are choices of this project [C], and why: `marks.csv`.

No value is known of the paper, so that [P] says that there is such a thing, never how much of it.
"""

from __future__ import annotations

import csv
from pathlib import Path

PAPER, OURS = "[P]", "[C]"


def read_marks(path: Path) -> dict[str, tuple[str, str]]:
    """Return the mark of each option, a path in the configuration, and the reason in one line."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["option"]: (row["mark"], row["reason"]) for row in csv.DictReader(file)}


MARKS = read_marks(Path(__file__).with_name("marks.csv"))


def mark_of(option: str) -> tuple[str, str]:
    """Return the mark of an option and its reason; what the paper does not speak of is ours.

    Example:
        >>> mark_of("training.momentum")
        ('[C]', 'of SGD')
    """
    return MARKS.get(option, (OURS, "an option that the paper does not speak of"))
