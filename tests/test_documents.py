"""What README.md and the pages of the documentation show must run, and what they link must be there."""

from __future__ import annotations

import json
import re
import shlex
from collections.abc import Iterator
from pathlib import Path

import matplotlib.pyplot as plt
import pytest

from dmmlkd_ext.cli import main
from dmmlkd_ext.data import DataUnavailableError, load_dataset

ROOT = Path(__file__).parents[1]
DOCS = ROOT / "dmmlkd_ext" / "docs"
PAGES = [ROOT / "README.md", *sorted(DOCS.rglob("*.md"))]
NOTEBOOKS = sorted(DOCS.rglob("*.ipynb"))


def named(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(page: Path) -> Iterator[tuple[str, str]]:
    """Yield language and text of a page's blocks of code."""
    yield from re.findall(r"^```(\w*)\n(.*?)^```", page.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working folder of the test's own, and the data that the pages use."""
    try:
        load_dataset("watch")
    except DataUnavailableError as error:
        pytest.skip(f"the files of watch are neither here nor can be downloaded: {error}")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.mark.parametrize("page", [page for page in PAGES if any(kind for kind, _ in blocks(page))], ids=named)
def test_the_code_of_a_page_runs_in_its_order(page, elsewhere, capsys):
    names: dict = {"__name__": named(page)}
    for kind, text in blocks(page):
        if kind == "python":
            # A block that says which file it is goes there too, for the commands that follow.
            if title := re.match(r"# (\S+\.py)\n", text):
                Path(title[1]).write_text(text, encoding="utf-8")
            exec(compile(text, named(page), "exec"), names)
        elif kind == "toml":
            title = re.match(r"# (\S+\.toml)\n", text)
            assert title, "a configuration says which file it is"
            Path(title[1]).write_text(text, encoding="utf-8")
        elif kind == "console":
            for line in text.replace("\\\n", " ").splitlines():
                program, *arguments = shlex.split(line, comments=True) or [""]
                if Path(program).name == "dmmlkd":
                    assert main(arguments) == 0, f"{line}: {capsys.readouterr().err}"


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=named)
def test_a_notebook_runs(notebook, elsewhere):
    names: dict = {}
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            exec(compile("".join(cell["source"]), notebook.name, "exec"), names)
    plt.close("all")


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_targets_that_it_names_are_there(page):
    makefile = (ROOT / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"(?:`|^)make ([a-z-]+)", page.read_text(encoding="utf-8"), re.MULTILINE)):
        kind, _, name = target.partition("-")  # figure-% and table-%
        drawn = ROOT / "paper_figures" / f"{kind}s" / f"{name.replace('-', '_')}.py"
        assert re.search(rf"^{target}:", makefile, re.MULTILINE) or drawn.exists(), target


@pytest.mark.parametrize("page", PAGES, ids=named)
def test_the_files_that_it_links_are_there(page):
    # Pages of the site that stand elsewhere, and the figures, are added by dmmlkd_ext/docs/hooks.py.
    added = re.findall(r'^    "([a-z/_]+\.md)": "', (DOCS / "hooks.py").read_text(encoding="utf-8"), re.MULTILINE)
    for link in re.findall(r"\]\((?!http)([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        found = (page.parent / link).resolve()
        if found.is_relative_to(DOCS) and found.parent.name == "figures":
            found = ROOT / "paper_figures" / "output" / "full" / found.name
        assert found.exists() or (found.is_relative_to(DOCS) and str(found.relative_to(DOCS)) in added), link
