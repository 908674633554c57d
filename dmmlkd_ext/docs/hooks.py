"""What `make docs` does besides Markdown: texts and figures from elsewhere, API pages by room, formulas as MathML.

The functions are hooks of mkdocs; `Docstrings` is an extension of griffe, which reads the docstrings.
"""

from __future__ import annotations

import html
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

import griffe

if TYPE_CHECKING:
    from mkdocs.config.defaults import MkDocsConfig
    from mkdocs.structure.files import Files
    from mkdocs.structure.pages import Page

ROOT = Path(__file__).parents[2]
PAGES = {
    "method.md": "dmmlkd_ext/METHOD.md",
    "extending.md": "dmmlkd_ext/EXTENDING.md",
    "reproduction.md": "paper_figures/REPRODUCTION.md",
    "cuda.md": "csrc/cuda/README.md",
    "changelog.md": "CHANGELOG.md",
}
"""Pages of the site whose text stands elsewhere."""

ROOMS = {
    "data": "Data",
    "model": "Networks",
    "wireless": "Links, energy, failures",
    "balance": "Training balance",
    "training": "Training",
    "experiments": "Experiments",
}
"""Folders of the package, each with a page of its modules, and the page's title."""

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.DOTALL)


def on_files(files: Files, config: MkDocsConfig) -> Files:
    """Add the pages and figures that stand elsewhere, and the API pages."""
    from mkdocs.structure.files import File

    sources = {page: ROOT / source for page, source in PAGES.items()}
    sources |= {f"figures/{path.name}": path for path in sorted((ROOT / "paper_figures/output/full").glob("*.png"))}
    for name, source in sources.items():
        files.append(File.generated(config, name, abs_src_path=str(source)))
    for room in ROOMS:
        files.append(File.generated(config, f"api/{room}.md", content=api_page(room)))
    return files


def api_page(room: str) -> str:
    """Return the page of a room: each module under its name, in the order of the files."""
    folder = ROOT / "dmmlkd_ext" / room
    parts = [f"# {ROOMS[room]}", f"`dmmlkd_ext.{room}`"]
    for path in sorted(folder.rglob("*.py")):
        name = ".".join(path.relative_to(folder).with_suffix("").parts)
        if not name.endswith("__init__"):
            options = "    options: { show_root_heading: false, show_root_toc_entry: false }"
            parts.append(f"## {name}\n\n::: dmmlkd_ext.{room}.{name}\n{options}")
    return "\n\n".join(parts) + "\n"


def on_page_markdown(markdown: str, page: Page, **_: object) -> str:
    """Return a text from elsewhere as this Markdown wants lists: an empty line before an item, indented by four."""
    if page.file.src_uri not in PAGES:
        return markdown
    lines: list[str] = []
    verbatim = False
    for line in markdown.splitlines():
        verbatim ^= line.startswith("```")  # code at the margin; a fence in a list is indented with its list
        indent = 0 if verbatim else len(line) - len(line.lstrip(" "))
        if line.startswith("- ") and lines and lines[-1].startswith(" ") and not verbatim:
            lines.append("")
        lines.append(" " * indent + line)
    return "\n".join(lines)


def on_page_content(content: str, **_: object) -> str:
    """Return the page with its formulas as MathML, which browsers show without a script."""
    from latex2mathml.converter import convert

    def mathml(found: re.Match[str]) -> str:
        # The converter does not know \| after \bigl.
        formula = re.sub(r"\\big[lr]\\\|", r"\\|", html.unescape(found[2]).strip())
        return str(convert(formula, display="block" if found[1] == "div" else "inline"))

    return FORMULA.sub(mathml, content)


class Docstrings(griffe.Extension):
    """Writes this project's docstrings as griffe and Markdown know them: doctests, and formulas."""

    def on_object(self, *, obj: griffe.Object, **_: Any) -> None:
        """Rewrite a docstring before it is parsed."""
        if obj.docstring:
            text = re.sub(r"(?m)^Example:$", "Examples:", obj.docstring.value)
            obj.docstring.value = re.sub(r"(?m)^( *)\.\. math:: (.*)$", r"\1$$\2$$", text)
