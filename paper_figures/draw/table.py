"""A table as CSV, Markdown and LaTeX (booktabs)."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from dmmlkd_ext.training.keep.files import write_text
from paper_figures import captions, style
from paper_figures.inputs import Numbers

_LATEX = {
    "\\": r"\textbackslash{}",
    "&": r"\&",
    "%": r"\%",
    "$": r"\$",
    "#": r"\#",
    "_": r"\_",
    "{": r"\{",
    "}": r"\}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "±": r"$\pm$",
    "µ": r"$\mu$",
    "<": r"$<$",
    ">": r"$>$",
}
_SPECIAL = re.compile("|".join(map(re.escape, _LATEX)))


def save_table(
    data: pd.DataFrame,
    shown: pd.DataFrame,
    title: str,
    caption: str,
    folder: Path,
    name: str,
    results: Numbers | None = None,
    sections: Mapping[str, Sequence[str]] | None = None,
) -> list[Path]:
    """Write a table's numbers as CSV, and its text as Markdown, with the caption, and as LaTeX.

    Args:
        data: the numbers.
        shown: the table as text.
        title: its heading in Markdown.
        caption: what is in the table and how to read it.
        folder: made if it is not there.
        name: of the files, without ending.
        results: where the numbers came from; None adds no provenance.
        sections: headings and lines after the caption.

    Returns:
        The paths written.
    """
    folder.mkdir(parents=True, exist_ok=True)
    csv, markdown, latex = (folder / f"{name}{ending}" for ending in (".csv", ".md", ".tex"))
    style.write_csv(csv, data)
    text = f"{shown.to_markdown(index=False, disable_numparse=True)}\n\n{caption}"
    write_text(markdown, captions.compose(title, text, sections or {}, results))
    write_text(latex, to_latex(shown))
    return [csv, markdown, latex]


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
