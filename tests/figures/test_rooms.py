"""Which room may use which."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import paper_figures

FOLDER = Path(paper_figures.__file__).parent


def test_what_judges_does_not_draw() -> None:
    modules = [f"paper_figures.judge.{path.stem}" for path in sorted((FOLDER / "judge").glob("[a-z]*.py"))]
    assert len(modules) >= 5
    code = f"import sys, {', '.join(modules)}; print([name for name in sys.modules if 'matplotlib' in name])"
    done = subprocess.run([sys.executable, "-c", code], cwd=FOLDER.parent, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_rooms_are_small() -> None:
    for folder in (FOLDER, *(FOLDER / name for name in ("plan", "collect", "judge", "draw"))):
        assert len(list(folder.glob("*.py"))) <= 12
    assert all(len(path.read_text().splitlines()) <= 400 for path in FOLDER.rglob("*.py"))
