"""What figures and tables are drawn from, and the error where it is not there."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import pandas as pd


class Numbers(Protocol):
    """The tidy table of the runs, a row a number, and the names of the runs that did not finish."""

    @property
    def table(self) -> pd.DataFrame:
        """The table of `dmmlkd_ext.experiments.results`, with the columns experiment, setting and level before."""
        ...

    @property
    def unfinished(self) -> tuple[str, ...]:
        """Names of runs without a result."""
        ...


class NumbersAndFeatures(Numbers, Protocol):
    """Also the features of some devices in two dimensions."""

    @property
    def features(self) -> pd.DataFrame:
        """Columns dataset, method, seed, device, modality, kind, class, embedding, x, y.

        Rows whose embedding is `distance` hold the between-device distance of class means in x.
        """
        ...


class NumbersAndSettings(Numbers, Protocol):
    """Also the settings of the runs."""

    @property
    def settings(self) -> pd.DataFrame:
        """Columns experiment, setting, level, dataset, method, option, value."""
        ...


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
        table: the tidy table.
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


def require(rows: pd.DataFrame, name: str, what: str) -> pd.DataFrame:
    """Return rows, or raise the error that names the figure and what is missing.

    Raises:
        MissingResultsError: there are no rows.

    Example:
        >>> require(pd.DataFrame(), "figure_topology", "test accuracy of the experiment topology")
        Traceback (most recent call last):
        ...
        paper_figures.inputs.MissingResultsError: figure_topology cannot be drawn: there is no test accuracy of ...
    """
    if rows.empty:
        raise MissingResultsError(f"{name} cannot be drawn: there is no {what}")
    return rows
