"""`make bench-compare` tells what was skipped from what is gone, and shows the times of both sides."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from tests.benchmarks import compare
from tests.benchmarks.results import Results, Row, read_rows

ROW = Row("gossip", "10 devices", "mix", 1, "torch.mm", 100.0, 400.0, 4.0, None, "bench.py::test_a")


NAME = "gossip | 10 devices | mix | 1 | torch.mm"
TIMES = "100 us against 400"
NO_CORE = "Skipped: no second core"


@pytest.mark.parametrize(
    ("before", "after", "skipped", "line"),
    [
        ({}, {"native_us": 200.0, "ratio": 2.0}, {}, f"slower   {NAME}: 4.00 -> 2.00 ({TIMES} -> 200 us against 400)"),
        ({}, {"native_us": 50.0, "ratio": 8.0}, {}, f"faster   {NAME}: 4.00 -> 8.00 ({TIMES} -> 50 us against 400)"),
        ({}, {"case": "x"}, {ROW.test: NO_CORE}, f"skipped  {NAME}: {NO_CORE}"),
        ({}, {"case": "x"}, {}, f"gone     {NAME}"),
        ({}, {"operator": "x"}, {}, "not run  gossip: 1 comparisons"),
        ({"test": ""}, {"case": "x"}, {"b": "c"}, f"gone or skipped  {NAME}"),
        ({"case": "x"}, {}, {}, f"new      {NAME}: 4.00 (100 us against 400)"),
    ],
)
def test_a_change_is_one_line(before: dict, after: dict, skipped: dict, line: str) -> None:
    assert line in compare.changes([replace(ROW, **before)], [replace(ROW, **after)], skipped)


def test_what_changes_by_less_than_noise_is_not_told() -> None:
    assert compare.changes([ROW], [replace(ROW, ratio=4.4)], {}) == []


def test_a_session_keeps_its_benchmarks_and_what_it_skipped(tmp_path: Path) -> None:
    results = Results(test="bench.py::test_b")
    results.add("gossip", "case", "mix", {"native": [1.0, 1.0], "other": [2.0, 2.0]})
    results.skipped = {"bench.py::test_c": "Skipped: why"}
    folder = results.write(tmp_path, "make bench")
    assert [row.test for row in read_rows(folder / "rows.csv")] == ["bench.py::test_b"]
    assert json.loads((folder / "machine.json").read_text())["skipped"] == {"bench.py::test_c": "Skipped: why"}
    assert compare.read_skipped(folder / "rows.csv") == results.skipped
    assert sorted(path.name for path in folder.iterdir()) == ["machine.json", "rows.csv", "table.md"]
