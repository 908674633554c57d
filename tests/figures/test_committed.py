from __future__ import annotations

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from paper_figures import gather, pipeline

FOLDER = Path(pipeline.__file__).parent
RESULTS, OUTPUT = FOLDER / "results", FOLDER / "output" / pipeline.REPORTED

needs_results = pytest.mark.skipif(not RESULTS.is_dir(), reason="no results are committed")


@needs_results
def test_the_committed_tables_give_the_committed_numbers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Figure, "savefig", lambda *_, **__: None)  # half of the time; other tests look at pictures
    assert pipeline.redraw(RESULTS, tmp_path) == 0
    drawn = {path.name: path.read_text() for path in tmp_path.glob("*.csv")}
    assert drawn == {path.name: path.read_text() for path in OUTPUT.glob("*.csv")}


@needs_results
def test_the_committed_tables_are_small_and_name_no_path() -> None:
    assert sum(path.stat().st_size for path in RESULTS.iterdir()) < 6_000_000
    settings = gather.read(RESULTS).settings
    assert not settings["value"].str.contains("/", regex=False).any()
