"""What figures and tables are drawn from, and the error where it is not there."""

from __future__ import annotations

from collections.abc import Sequence
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


def pick(
    table: pd.DataFrame,
    metric: str,
    parts: Sequence[str] = (),
    methods: Sequence[str] = (),
    of_devices: bool | None = None,
) -> pd.DataFrame:
    """Return the rows of a metric, names as plain strings.

    Args:
        table: of `Results`.
        metric: its name.
        parts: the parts to keep; empty keeps all.
        methods: the methods to keep; empty keeps all.
        of_devices: True keeps numbers of single devices, False those of the whole population, None both.
    """
    chosen = table["metric"] == metric
    if parts:
        chosen &= table["part"].isin(parts)
    if methods:
        chosen &= table["method"].isin(methods)
    if of_devices is not None:
        chosen &= table["device"].notna() == of_devices
    rows = table[chosen & table["value"].notna()]
    names = [name for name in rows.columns if isinstance(rows[name].dtype, pd.CategoricalDtype)]
    return rows.assign(**{name: rows[name].astype(object).where(rows[name].notna(), "").astype(str) for name in names})
