"""The files of a figure or table, whose bytes depend on their content alone: no date is in any of them."""

from __future__ import annotations

import re
from pathlib import Path

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
    pdf, png = folder / f"{name}.pdf", folder / f"{name}.png"
    dateless = {"CreationDate": None, "Creator": None, "Producer": None}
    write_atomically(pdf, lambda file: figure.savefig(file, format="pdf", metadata=dateless))
    write_atomically(
        png, lambda file: figure.savefig(file, format="png", dpi=style.DOTS_PER_INCH, metadata={"Software": None})
    )
    return [pdf, png]


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
