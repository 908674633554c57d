from __future__ import annotations

import json
import re
from pathlib import Path

import pandas as pd
import pytest
from rows import example_table

from paper_figures import pipeline
from paper_figures.collect import benchmarks
from paper_figures.collect.inputs import BENCHMARKS, MissingResultsError, Results
from paper_figures.figures import scaling
from paper_figures.tables import kernels
from tests.benchmarks.compare import newest

MEASURED = ("figure_kernels", "table_kernels", "figure_scaling")
HEADER = "operator,case,work,threads,against,native_us,other_us,ratio,target,verdict"
ROWS = (
    "gossip,10 devices,mix,1,reference,100,400,4,5,not met",
    "gossip,10 devices,mix,1,limit: copy,100,60,0.6,0.5,met",
    "gossip,10 devices,mix,1,torch.mm,100,50,0.5,,",
    "gossip,10 devices,mix,2,reference,60,400,6.667,,",
    'pairwise_kl,"(32, 2, 10)",loss,1,torch.compile,50,150,3,,',
)


def measured(source: Path = BENCHMARKS) -> Results:
    return Results(example_table().iloc[:0], benchmarks=source)


@pytest.fixture
def source(tmp_path: Path) -> Path:
    for name, rows in (("new-2026-02-01", ROWS), ("old-2025-12-31", ROWS[:1])):
        folder = tmp_path / "source" / name
        folder.mkdir(parents=True)
        (folder / "rows.csv").write_text("\n".join([HEADER, *rows]) + "\n")
        machine = {"processor": f"processor of {name}", "cores": 2, "commit": "abc", "command": "make bench"}
        (folder / "machine.json").write_text(json.dumps(machine))
    return tmp_path / "source"


def write_scaling(folder: Path) -> None:
    sizes = [
        {"devices": n, "seconds_a_round": n / 100, "parameters_a_device": 1000, "peak_floats_a_parameter": 4.0}
        for n in (10, 100)
    ]
    ranks = [
        {
            "mode": mode,
            "ranks": n,
            "devices": 100 if mode == "strong" else 100 * n,
            "seconds_per_round": seconds,
            "bytes_sent_per_round": 1000 * (n - 1),
            "communication_share": 0.1,
            "overlap_ratio": None if n == 1 else 1.1,
        }
        for mode, n, seconds in (("strong", 1, 2.0), ("strong", 2, 1.25), ("weak", 2, 2.5), ("weak", 1, 2.0))
    ]
    (folder / scaling.POPULATION).write_text(json.dumps({"machine": {"processor": "P"}, "rows": sizes}))
    machine = {"processor": "Q", "command": "measure ranks"}
    (folder / scaling.DISTRIBUTED).write_text(json.dumps({"machine": machine, "rows": ranks}))


def test_the_newest_session_is_read(source: Path) -> None:
    benchmark = benchmarks.load_kernels(source)
    assert len(benchmark.rows) == len(ROWS)
    assert benchmark.machine["processor"] == "processor of new-2026-02-01"
    assert benchmark.rows["is_limit"].tolist() == [False, True, False, False, False]


def test_wider_vectors_come_before_newer_dates(source: Path) -> None:
    for name, instruction_set in (("old-2025-12-31", "avx512"), ("new-2026-02-01", "avx2")):
        path = source / name / "machine.json"
        machine = json.loads(path.read_text())
        path.write_text(json.dumps(machine | {"build": {"instruction_set": instruction_set}}))
    assert benchmarks.load_kernels(source).machine["processor"] == "processor of old-2025-12-31"


@pytest.mark.parametrize(("machine", "wanted"), [("a-avx2", "a-avx2-2026-01-03"), ("b-avx2", "a-avx512-2026-01-04")])
def test_results_are_compared_with_those_of_such_a_machine_if_there_are_any(machine, wanted, tmp_path: Path) -> None:
    for name in ("a-avx2-2026-01-02", "a-avx2-2026-01-03", "a-avx512-2026-01-04"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "rows.csv").touch()
    assert newest(tmp_path, machine).parent.name == wanted


@pytest.mark.parametrize("name", MEASURED)
def test_the_same_measurements_give_the_same_bytes(name: str, source: Path, tmp_path: Path) -> None:
    write_scaling(source)
    first, second = (pipeline.draw(name, measured(source), tmp_path / folder) for folder in ("a", "b"))
    for one, other in zip(first, second, strict=True):
        assert one.read_bytes() == other.read_bytes()
        assert b"CreationDate" not in one.read_bytes()
    assert not re.search(r"\bnan\b", (tmp_path / "a" / f"{name}.md").read_text())


@pytest.mark.parametrize("name", MEASURED)
def test_without_measurements_the_error_says_what_writes_them(name: str, tmp_path: Path) -> None:
    with pytest.raises(MissingResultsError, match=rf"{name} cannot be drawn: there is no .*`(make bench|python)"):
        pipeline.draw(name, measured(tmp_path), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_the_committed_benchmarks_are_drawn(tmp_path: Path) -> None:
    pipeline.draw("figure_kernels", measured(), tmp_path)
    pipeline.draw("table_kernels", measured(), tmp_path)
    drawn = pd.read_csv(tmp_path / "figure_kernels.csv")
    assert {"gossip", "orthogonality", "pairwise_kl"} <= set(drawn["operator"])
    assert drawn["threads"].nunique() == 1


def test_wins_and_losses_are_told(source: Path, tmp_path: Path) -> None:
    pipeline.draw("figure_kernels", measured(source), tmp_path)
    caption = (tmp_path / "figure_kernels.md").read_text()
    assert "- gossip over torch.mm: 0.50 to 0.50 times, median 0.50, 1 of 1 slower" in caption
    assert "- gossip, fraction of the limit: 0.60 to 0.60 in 1 cases" in caption
    assert "- gossip, targets: 1 of 2 met" in caption
    assert "- pairwise_kl, fraction of the limit: not measured" in caption


def test_the_table_has_a_row_a_case_and_number_of_threads(source: Path) -> None:
    rows = kernels.transform(measured(source))
    shown = kernels.show(rows)
    assert shown["Threads"].tolist() == [1, 2, 1]
    assert shown["Reference"].tolist() == ["400 (4.00)", "400 (6.67)", "-"]
    assert shown["torch.compile"].tolist() == ["-", "-", "150 (3.00)"]
    assert shown["Fraction of limit"].tolist() == ["0.6", "-", "-"]
    assert shown["Ratio to others"].tolist() == ["torch.mm 0.50", "-", "-"]
    assert shown["Targets met"].tolist() == ["1 of 2", "-", "-"]


def test_speed_up_counts_the_work_that_is_done(tmp_path: Path) -> None:
    write_scaling(tmp_path)
    ranks = scaling.over_ranks(benchmarks.load_json(tmp_path / scaling.DISTRIBUTED))
    assert ranks.set_index(["mode", "ranks"])["speed_up"].to_dict() == {
        ("strong", 1): 1.0,
        ("strong", 2): 1.6,
        ("weak", 1): 1.0,
        ("weak", 2): 1.6,
    }
    devices = scaling.over_devices(benchmarks.load_json(tmp_path / scaling.POPULATION))
    assert devices["memory_bytes"].tolist() == [4 * 4 * 1000 * 10, 4 * 4 * 1000 * 100]


def test_what_was_not_measured_is_said(tmp_path: Path) -> None:
    write_scaling(tmp_path)
    (tmp_path / scaling.DISTRIBUTED).unlink()
    pipeline.draw("figure_scaling", measured(tmp_path), tmp_path / "out")
    caption = (tmp_path / "out" / "figure_scaling.md").read_text()
    assert "Not drawn, because it was not measured: distributed_scaling.json." in caption
    assert "- 100 devices: 1 s per round, peak of 2 MiB" in caption
    (tmp_path / scaling.POPULATION).unlink()
    write_scaling(tmp_path)
    (tmp_path / scaling.POPULATION).unlink()
    pipeline.draw("figure_scaling", measured(tmp_path), tmp_path / "ranks")
    caption = (tmp_path / "ranks" / "figure_scaling.md").read_text()
    assert "not measured: population_scale.json." in caption
    assert "- weak scaling, 2 ranks, 200 devices: 2.5 s per round, speed-up 1.60" in caption
    assert "- Machine: Q, ? cores" in caption
    assert "- Command: `measure ranks`" in caption
