"""The page of a profile has every picture, its caption and the claims; a terminal gets the verdicts."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from paper_figures import pipeline
from paper_figures.draw.index import describe_claims, write_index

OUTPUT = Path(pipeline.__file__).parent / "output" / pipeline.REPORTED


def test_the_committed_page_has_every_picture_table_and_claim() -> None:
    text = (OUTPUT / "index.md").read_text(encoding="utf-8")
    pictures = re.findall(r"!\[[^]]+\]\((\w+\.png)\)", text)
    assert sorted(pictures) == sorted(path.name for path in OUTPUT.glob("*.png"))
    links = re.findall(r"\[[^]]+\]\((\w+\.\w+)\)", text)
    assert all((OUTPUT / link).exists() for link in links)
    assert {Path(link).stem for link in links} == set(pipeline.MODULES)
    assert len(re.findall(r"^\| .* \| (?:holds|absent|undecided|contradicted|not run) ", text, re.MULTILINE)) == 14
    assert "bands are 95% Student intervals over seeds" in text  # of the convergence's caption


def test_it_is_made_of_what_is_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name in ("figure_topology.md", "figure_topology.png", "table_claims.md"):
        (tmp_path / name).write_bytes((OUTPUT / name).read_bytes())
    page = write_index(tmp_path, pipeline.MODULES)
    first = page.read_text(encoding="utf-8")
    assert first.startswith("# Claims, figures and tables\n\n## Claims\n")
    assert "figure_topology.pdf" not in first
    pipeline.show(tmp_path)
    assert page.read_text(encoding="utf-8") == first
    lines = capsys.readouterr().out.splitlines()
    assert len(lines) == 2 + 14
    assert lines[1] == "  holds         DMML-KD with training balance improves DMML: +5.2 [+4.3, +6.1] points"
    assert lines[-1] == f"all figures with their captions: {page}"
    pipeline.show(tmp_path / "nothing")
    assert capsys.readouterr().out == ""


def test_without_claims_there_is_no_verdict(tmp_path: Path) -> None:
    assert describe_claims(tmp_path) == []
    (tmp_path / "figure_topology.md").write_bytes((OUTPUT / "figure_topology.md").read_bytes())
    assert "## Claims" not in write_index(tmp_path, pipeline.MODULES).read_text(encoding="utf-8")
