"""One page of a profile: the claims, and every picture and table with its caption."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from dmmlkd_ext.experiments.show.files import save_text

NAME = "index.md"
CLAIMS = "table_claims"


def write_index(folder: Path, names: Iterable[str]) -> Path:
    """Write the page from the captions in a folder, and return its path.

    Args:
        folder: of a profile's figures.
        names: the figures and tables in the order of the page; those that are not in the folder are left out.
    """
    captions = {
        name: (folder / f"{name}.md").read_text(encoding="utf-8") for name in names if (folder / f"{name}.md").exists()
    }
    parts = ["# Claims, figures and tables"]
    if CLAIMS in captions:
        rule = f"The rule of the verdicts, and every difference that decided one: [{CLAIMS}]({CLAIMS}.md)."
        parts += ["## Claims", rule, "\n".join(table_of(captions[CLAIMS]))]
    for name, text in captions.items():
        if name != CLAIMS:
            parts += _describe(folder, name, text)
    return save_text("\n\n".join(parts) + "\n", folder / NAME)


def _describe(folder: Path, name: str, text: str) -> list[str]:
    """Return heading, picture, what is shown, and the files of a figure or table."""
    title, *paragraphs = text.split("\n\n")
    shown = next(paragraph for paragraph in paragraphs if not paragraph.startswith("|"))
    endings = {"png": "picture", "pdf": "PDF", "tex": "LaTeX", "csv": "numbers", "md": "all of the caption"}
    files = [f"[{what}]({name}.{ending})" for ending, what in endings.items() if (folder / f"{name}.{ending}").exists()]
    heading = title.removeprefix("# ").strip()
    picture = [f"![{heading}]({name}.png)"] if (folder / f"{name}.png").exists() else []
    return [f"## {heading}", *picture, shown.strip(), f"`{name}`: {', '.join(files)}"]


def table_of(caption: str) -> list[str]:
    r"""Return the lines of the table in a caption.

    Example:
        >>> table_of("# Claims\n\n| a | b |\n|---|---|\n| 1 | 2 |\n\nText")
        ['| a | b |', '|---|---|', '| 1 | 2 |']
    """
    return [line for line in caption.splitlines() if line.startswith("|")]


def describe_claims(folder: Path) -> list[str]:
    """Return a line per claim for a terminal, verdict first; nothing where the claims were not drawn."""
    path = folder / f"{CLAIMS}.md"
    if not path.exists():
        return []
    rows = [
        [cell.strip() for cell in line.strip("|").split("|")] for line in table_of(path.read_text(encoding="utf-8"))
    ]
    header, body = rows[0], rows[2:]
    claim, verdict, mean = (header.index(name) for name in ("Claim", "Verdict", "Mean difference"))
    width = max(len(row[verdict]) for row in body)
    return [f"  {row[verdict]:{width}}  {row[claim]}: {row[mean]}" for row in body]
