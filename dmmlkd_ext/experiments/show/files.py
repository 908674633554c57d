"""The files of a figure or table, whose bytes depend on their content alone: no date is in any of them."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pandas as pd
from matplotlib.figure import Figure

from dmmlkd_ext.experiments.show import style
from dmmlkd_ext.training.keep.files import write_atomically, write_text

_LATEX = {sign: f"\\{sign}" for sign in "&%$#_{}"}
_LATEX |= {"\\": r"\textbackslash{}", "~": r"\textasciitilde{}", "^": r"\textasciicircum{}"}
_LATEX |= {"±": r"$\pm$", "µ": r"$\mu$", "<": r"$<$", ">": r"$>$"}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def save_figure(figure: Figure, folder: Path, name: str) -> list[Path]:
    """Write a figure as PDF and PNG, and return their paths."""
    return [write_figure(figure, folder / f"{name}{ending}") for ending in (".pdf", ".png")]


def write_figure(figure: Figure, path: Path) -> Path:
    """Write a figure as PDF or PNG, as the file's name says, and return the path."""
    dateless = {"Software": None} if path.suffix == ".png" else dict.fromkeys(("CreationDate", "Creator", "Producer"))
    options: dict[str, Any] = {"format": path.suffix[1:], "dpi": style.DOTS_PER_INCH, "metadata": dateless}
    write_atomically(path, lambda file: figure.savefig(file, **options))
    return path


def save_text(text: str, path: Path) -> Path:
    """Write text, and return its path."""
    write_text(path, text)
    return path


def save_csv(data: pd.DataFrame, path: Path) -> Path:
    """Write the rows that are shown as CSV, numbers with as many digits as are meant, and return the path."""
    return save_text(data.to_csv(index=False, float_format="%.6g", lineterminator="\n"), path)


def to_markdown(shown: pd.DataFrame) -> str:
    """Return a table of text in Markdown."""
    return shown.to_markdown(index=False, disable_numparse=True)


def to_columns(shown: pd.DataFrame) -> str:
    """Return a table of text in aligned columns, for a terminal.

    Example:
        >>> print(to_columns(pd.DataFrame({"method": ["dmml", "dmml-kd"], "mean": ["71.8", "83.0"]})))
        method   mean
        dmml     71.8
        dmml-kd  83.0
    """
    rows = [list(map(str, row)) for row in (shown.columns, *shown.to_numpy())]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return "\n".join("  ".join(map(str.ljust, row, widths)).rstrip() for row in rows)


def to_latex(shown: pd.DataFrame) -> str:
    """Return a table of text in LaTeX, for the package booktabs."""
    escaped = shown.map(lambda cell: escape(str(cell))).rename(columns=escape)
    latex: str = escaped.style.hide(axis="index").to_latex(hrules=True, column_format="l" * len(shown.columns))
    return latex


def escape(text: str) -> str:
    r"""Return text with LaTeX's special characters escaped.

    Example:
        >>> escape("80.0 ± 5.0 %")
        '80.0 $\\pm$ 5.0 \\%'
    """
    return _SPECIAL.sub(lambda match: _LATEX[match.group()], text)
