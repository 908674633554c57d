"""The commands `compare` and `plot`, as dataclasses: their fields are the options."""

from __future__ import annotations

import importlib
import sys
import textwrap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from dmmlkd_ext.experiments.commands.command import UnavailableError, UserError

if TYPE_CHECKING:
    import pandas as pd

    from dmmlkd_ext.experiments.compare import Design, Runs

Flag = Annotated[bool, tyro.conf.FlagCreatePairsOff]
Folders = Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUNS")]


@dataclass(frozen=True)
class CompareCommand:
    """Compare runs: means over seeds with intervals, and differences to a baseline, paired by seed.

    Runs are grouped by every option that differs, the seed aside.
    """

    runs: Folders = (Path("runs"),)
    """Folders of runs, or folders that contain them."""
    by: str | None = None
    """The option whose values are compared, such as `training.feature_width`; by default the method, if it differs."""
    baseline: str | None = None
    """The value that the others are compared with; by default `dmml`, or else the first."""
    code_version: str | None = None
    """Take the runs of this version of the code alone, by its first digits."""
    csv: Flag = False
    """Print the numbers as CSV."""
    md: Flag = False
    """Print a table in Markdown."""
    tex: Flag = False
    """Print a table in LaTeX, for the package booktabs."""
    export: Path | None = None
    """Write a row per run and evaluated round into a file called *.csv or *.parquet."""

    def __post_init__(self) -> None:
        if self.csv + self.md + self.tex > 1:
            raise ValueError("csv, md and tex must not be given together")

    def execute(self) -> int:
        """Print the comparison."""
        with _needing("compare"):
            from dmmlkd_ext.experiments import compare

            if self.export is not None:
                compare.check_export(self.export)
            for wanted, package in ((self.md, "tabulate"), (self.tex, "jinja2")):
                if wanted:
                    importlib.import_module(package)
            runs, design = _read(self.runs, self.code_version, self.by, self.baseline)
            rows = compare.compare(runs, design)
            text = self._format(rows, runs, design)
            if self.export is not None:
                compare.export(runs, design, self.export)
        print(text)
        return 0

    def _format(self, rows: pd.DataFrame, runs: Runs, design: Design) -> str:
        from dmmlkd_ext.experiments.show import files, tables

        if self.csv:
            return rows.to_csv(index=False, lineterminator="\n").rstrip()
        shown = tables.show(rows, design)
        if self.tex:
            return files.to_latex(shown).rstrip()
        lines = tables.describe(rows, design, _common(runs))
        if self.md:
            return "\n\n".join([files.to_markdown(shown), *lines])
        return "\n".join([files.to_columns(shown), "", *map(textwrap.fill, lines)])


Kind = Literal["accuracy", "time", "energy", "difference", "classes", "iterations", "holders"]


@dataclass(frozen=True)
class PlotCommand:
    """Draw runs: their accuracy, its differences to a baseline, their local iterations, or who holds what.

    `accuracy`, `time` and `energy` draw accuracy over rounds, simulated time and energy; `difference` draws differences
    to the baseline over rounds, paired by seed; `classes` accuracy by class in the last round; `iterations` local
    iterations by modality; `holders` which device holds which modality.
    """

    runs: Folders = (Path("runs"),)
    """Folders of runs, or folders that contain them."""
    kind: Kind = "accuracy"
    """What is drawn."""
    output: Annotated[Path, tyro.conf.arg(aliases=["-o"])] = Path("plot.png")
    """The picture's file, called *.png or *.pdf."""
    by: str | None = None
    """The option that has a line each of its values; by default the method, if it differs."""
    baseline: str | None = None
    """The value that `difference` compares with; by default `dmml`, or else the first."""
    code_version: str | None = None
    """Take the runs of this version of the code alone, by its first digits."""

    def __post_init__(self) -> None:
        if self.output.suffix not in (".png", ".pdf"):
            raise ValueError(f"output must be a file called *.png or *.pdf, got {self.output}")

    def execute(self) -> int:
        """Draw, and print what is seen."""
        with _needing("plot"):
            from dmmlkd_ext.experiments.show import files, plots
            from dmmlkd_ext.experiments.show.style import style

            runs, design = _read(self.runs, self.code_version, self.by, self.baseline)
            with style():
                figure, seen = plots.PLOTS[self.kind](runs, design)
                files.write_figure(figure, self.output)
        print(f"{self.output}: {seen}")
        return 0


def _read(
    folders: tuple[Path, ...], code_version: str | None, by: str | None, baseline: str | None
) -> tuple[Runs, Design]:
    from dmmlkd_ext.experiments import compare

    runs = compare.read_runs(folders, code_version)
    design = compare.plan(runs.options, by, baseline)
    if runs.unfinished:
        named = ", ".join(runs.unfinished[:3]) + (", ..." if len(runs.unfinished) > 3 else "")
        print(f"runs that are not finished are left out: {named}", file=sys.stderr)
    return runs, design


def _common(runs: Runs) -> dict[str, str]:
    """Return the dataset, method and number of rounds, where all runs have the same."""
    from dmmlkd_ext.experiments.compare import DATASET, METHOD

    told = {"dataset": DATASET, "method": METHOD, "rounds": "training.rounds"}
    return {
        name: str(runs.options[option].iloc[0]) for name, option in told.items() if runs.options[option].nunique() == 1
    }


@contextmanager
def _needing(command: str) -> Iterator[None]:
    """Say in one line which package is not here, or which folder or value does not fit."""
    try:
        from dmmlkd_ext.experiments.compare import ComparisonError
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{command} needs the package {error.name}: pip install {error.name}") from error
    try:
        yield
    except ModuleNotFoundError as error:
        raise UnavailableError(f"{command} needs the package {error.name}: pip install {error.name}") from error
    except ComparisonError as error:
        raise UserError(str(error)) from error
