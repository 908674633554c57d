"""What the README shows must run."""

from __future__ import annotations

import re
from pathlib import Path

import torch

README = (Path(__file__).parents[1] / "README.md").read_text(encoding="utf-8")


def test_the_snippets_run():
    snippets = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    assert snippets
    for snippet in snippets:
        names: dict = {}
        exec(compile(snippet, "README.md", "exec"), names)
        assert torch.isfinite(names["loss"])


def test_the_targets_that_it_names_are_there():
    makefile = (Path(__file__).parents[1] / "Makefile").read_text(encoding="utf-8")
    for target in set(re.findall(r"`?make ([a-z-]+)", README)):
        kind, _, name = target.partition("-")  # figure-% and table-%
        drawn = Path(__file__).parents[1] / "paper_figures" / f"{kind}s" / f"{name.replace('-', '_')}.py"
        assert re.search(rf"^{target}:", makefile, re.MULTILINE) or drawn.exists(), target


def test_the_files_that_it_links_are_there():
    for link in re.findall(r"\]\((?!http)([^)]+)\)", README):
        assert (Path(__file__).parents[1] / link).exists(), link
