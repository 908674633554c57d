"""Final accuracy on a dataset that nothing was tuned on, with the settings that any dataset gets."""

from __future__ import annotations

import pandas as pd

from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.tables import accuracy

EXPERIMENTS = ("unseen",)
NEEDS = "test accuracy of the experiment unseen"
TITLE = "Accuracy on a dataset that nothing was tuned on"


def transform(results: Results) -> pd.DataFrame:
    """Return the final accuracies by dataset, setting and method: see `paper_figures.judge.comparisons.compare`."""
    return accuracy.transform(results)


def show(comparison: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    return accuracy.show(comparison)


def caption(results: Results, comparison: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table."""
    shown, sections = accuracy.caption(results, comparison)
    return (
        "Two cameras with partial views of the same digit (`cameras`). All settings are the defaults, which were fixed "
        f"before the first run on these data; nothing was tuned. {shown}"
    ), sections
