"""What figures and tables are drawn from, and the error where it is not there."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

import pandas as pd

BENCHMARKS = Path(__file__).resolve().parents[2] / "tests" / "benchmarks" / "results"
"""The folder of the committed results of the benchmarks."""


@dataclass(frozen=True)
class Results:
    """The numbers of some experiments' runs, and what else figures show.

    Attributes:
        table: a row per number: experiment, setting, level, and the columns of a run and of a number that
            `dmmlkd_ext.experiments.results` documents.
        unfinished: names of runs without a result.
        features: columns `FEATURE_COLUMNS` of `paper_figures.collect.embedding`.
        settings: experiment, setting, level, dataset, method, option, value; a row per option of a run.
        benchmarks: the folder of the results of benchmarks.
    """

    table: pd.DataFrame
    unfinished: tuple[str, ...] = ()
    features: pd.DataFrame = field(default_factory=pd.DataFrame)
    settings: pd.DataFrame = field(default_factory=pd.DataFrame)
    benchmarks: Path = BENCHMARKS


class MissingResultsError(ValueError):
    """A figure cannot be drawn, because the results lack what it shows."""
