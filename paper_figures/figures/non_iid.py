"""Final accuracy over the concentration of the devices' label distributions, and what distillation adds to it."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from paper_figures import levels
from paper_figures.inputs import Numbers

NAME = "figure_non_iid"
EXPERIMENTS = ("non_iid",)
SHOWN = levels.LevelFigure(
    name=NAME,
    experiment="non_iid",
    title="Final accuracy over the Dirichlet concentration",
    symbol="alpha",
    axis="Dirichlet concentration alpha",
    meaning="Devices' label distributions are drawn from a Dirichlet distribution; the smaller its concentration "
    "alpha, the less alike they are.",
    logarithmic=True,
    claims=("non-iid hurts", "non-iid narrowed"),
)


def make(results: Numbers, folder: Path) -> list[Path]:
    """Draw the figure from results and write its files."""
    return levels.make(SHOWN, results, folder)


def transform(table: pd.DataFrame) -> pd.DataFrame:
    """Return what is drawn: see `paper_figures.levels.over_levels`."""
    return levels.over_levels(table)
