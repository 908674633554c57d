"""Differences over the same seeds, their intervals and p values: what all figures, tables and claims read.

A comparison has one p value wherever it is shown: that of the paired t test, which agrees with the 95% interval beside
it. It is not adjusted for how many comparisons stand in a table: only claims are decided, in `judge.claims`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pandas as pd

from dmmlkd_ext.experiments import statistics
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD
from paper_figures.judge.transforms import final_accuracy, in_figure_order

P_VALUES = "p of the paired t test, not adjusted: which claims hold is decided in table_claims alone."
"""For the captions that show p values."""


def compare(rows: pd.DataFrame, keys: Sequence[str], reference: str = REFERENCE_METHOD, **options: Any) -> pd.DataFrame:
    """Return `dmmlkd_ext.experiments.statistics.compare`, in the order of figures."""
    return in_figure_order(statistics.compare(rows, keys, reference, **options))


def over_levels(table: pd.DataFrame) -> pd.DataFrame:
    """Return each method's final accuracy at each level and its paired difference to the reference.

    Returns:
        Columns dataset, setting, level, method and those of `compare`; rows without a level are left out.
    """
    final = final_accuracy(table)
    return compare(final.dropna(subset=["level"]), ["dataset", "setting", "level"])
