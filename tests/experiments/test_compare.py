"""Comparisons of runs made by hand, whose answers are known."""

from __future__ import annotations

import json
import math
import shutil
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from made_runs import GAINS, make_pair, make_record, make_run
from scipy import stats

from dmmlkd_ext import cli
from dmmlkd_ext.experiments.compare import ComparisonError, compare, find_runs, plan, read_runs

Captured = pytest.CaptureFixture[str]


@pytest.fixture
def pairs(tmp_path: Path) -> Path:
    return make_pair(tmp_path / "runs")


def told(capsys: Captured, *arguments: str | Path) -> tuple[int, str, str]:
    code = cli.main(["compare", *map(str, arguments)])
    output = capsys.readouterr()
    return code, output.out, output.err


def test_means_intervals_and_paired_differences_are_the_known_ones(pairs: Path) -> None:
    runs = read_runs([pairs])
    design = plan(runs.options)
    assert (design.by, design.baseline, design.keys, design.along) == ("method.name", "dmml", ("data.dataset",), ())
    assert "method.losses.similarity" in design.decided
    dmml, kd = compare(runs, design).to_dict("records")
    assert (dmml["method.name"], kd["method.name"], dmml["seeds"], kd["seeds"]) == ("dmml", "dmml-kd", 5, 5)
    assert (dmml["mean"], dmml["worst"], dmml["mean_low"], dmml["pairs"]) == pytest.approx((0.3, 0.2, 0.3, 0))
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.025 / 5)
    assert half == pytest.approx(0.19632, abs=1e-5)
    assert (kd["mean"], kd["worst"]) == pytest.approx((0.6, 0.5))
    difference = [kd[name] for name in ("difference", "difference_low", "difference_high")]
    assert difference == pytest.approx([0.3, 0.3 - half, 0.3 + half])
    assert kd["p"] == pytest.approx(0.01324, abs=1e-5)
    assert (kd["pairs"], kd["verdict"]) == (5, "higher")
    assert (kd["time_s"], kd["energy_joule"], kd["bits"]) == (4.0, 4.0, 400.0)


def test_the_terminal_shows_them_with_the_level(pairs: Path, capsys: Captured) -> None:
    code, out, err = told(capsys, pairs)
    assert (code, err) == (0, "")
    header, dmml, kd, *notes = out.splitlines()
    assert header.split("  ")[0] == "method"
    assert " ".join(dmml.split()) == "dmml 30.0 ± 0.0 20.0 ± 0.0 - - - 5 4 J 4 s 400 bit"
    assert " ".join(kd.split()) == "dmml-kd 60.0 ± 19.6 50.0 ± 19.6 +30.0 [+10.4, +49.6] 0.013 higher 5 4 J 4 s 400 bit"
    text = " ".join(notes)
    assert "95% Student interval over seeds" in text
    assert "p of the paired t test, not adjusted" in text
    assert "dataset mfeat" in text
    assert "more options that differ: method.losses.classification" in text


def test_below_five_seeds_there_is_a_direction_and_no_verdict(tmp_path: Path, capsys: Captured) -> None:
    _, out, _ = told(capsys, make_pair(tmp_path / "runs", seeds=4))
    kd = " ".join(out.splitlines()[2].split())
    assert kd.startswith("dmml-kd 55.0 45.0 +25.0 - too few seeds 4")
    assert "±" not in out.splitlines()[2]
    assert "With fewer than 5 seeds there is no interval" in " ".join(out.split())


def test_pairs_are_the_seeds_that_both_have(pairs: Path) -> None:
    shutil.rmtree(pairs / "dmml-4")
    make_run(pairs / "more", "dmml-kd", 9, (0.9,))
    kd = compare(runs := read_runs([pairs]), plan(runs.options)).iloc[1]
    assert (kd["seeds"], kd["pairs"]) == (6, 4)
    assert kd["difference"] == pytest.approx(sum(GAINS[:4]) / 4)


def test_every_option_that_differs_is_a_column_and_pairs_have_the_same_data(tmp_path: Path, capsys: Captured) -> None:
    for alpha in ("0.1", "1.0"):
        make_pair(tmp_path / alpha, 2, [f"data.dirichlet_alpha={alpha}"])
    runs = read_runs([tmp_path])
    design = plan(runs.options)
    assert design.keys == ("data.dataset", "data.dirichlet_alpha")
    rows = compare(runs, design)
    assert rows["data.dirichlet_alpha"].tolist() == ["0.1", "0.1", "1.0", "1.0"]
    assert rows["difference"].tolist()[1::2] == pytest.approx([0.15, 0.15])
    assert told(capsys, tmp_path)[1].splitlines()[0].split()[:2] == ["dirichlet_alpha", "method"]
    # Another split of the data is no pair, even where each method has one split of its own.
    for folder in [*(tmp_path / "0.1").glob("dmml-kd-*"), *(path for path in (tmp_path / "1.0").glob("dmml-?"))]:
        shutil.rmtree(folder)
    runs = read_runs([tmp_path])
    assert compare(runs, plan(runs.options))["pairs"].tolist() == [0, 0]


def test_a_tuned_learning_rate_goes_along_with_the_method(tmp_path: Path) -> None:
    for seed in range(2):
        make_run(tmp_path / f"a{seed}", "dmml", seed, (0.3,), ["training.learning_rate=0.1"])
        make_run(tmp_path / f"b{seed}", "dmml-kd", seed, (0.5,), ["training.learning_rate=0.25"])
    runs = read_runs([tmp_path])
    design = plan(runs.options)
    assert design.along == ("training.learning_rate",)
    rows = compare(runs, design)
    assert rows["training.learning_rate"].tolist() == ["0.1", "0.25"]
    assert rows["difference"].tolist()[1] == pytest.approx(0.2)


@pytest.mark.parametrize("by", [None, "similarity", "method.losses.similarity"])
def test_an_option_is_compared_by_its_values(by: str | None, tmp_path: Path) -> None:
    for place, weight in enumerate(("10", "0", "0.3")):
        for seed in range(2):
            settings = [f"method.losses.similarity={weight}"]
            make_run(tmp_path / f"{weight}-{seed}", "dmml-kd", seed, (0.5 + place / 10,), settings)
    runs = read_runs([tmp_path])
    rows = compare(runs, plan(runs.options, by))
    assert rows["method.losses.similarity"].tolist() == ["0.0", "0.3", "10.0"]  # by size
    assert rows["difference"].tolist()[1:] == pytest.approx([0.1, -0.1])
    other = compare(runs, plan(runs.options, by, "10"))
    assert other["difference"].tolist()[:2] == pytest.approx([0.1, 0.2])


def test_versions_of_the_code_are_a_column_and_a_filter(pairs: Path, capsys: Captured) -> None:
    for seed in range(5):
        make_run(pairs / f"new-{seed}", "dmml", seed, (0.4,), version="fedcba98")
    header, *rows = told(capsys, pairs)[1].splitlines()[:4]
    assert header.split()[:2] == ["code_version", "method"]
    assert [row.split()[:2] for row in rows] == [["01234567", "dmml"], ["01234567", "dmml-kd"], ["fedcba98", "dmml"]]
    header, row = told(capsys, pairs, "--code-version", "fedc")[1].splitlines()[:2]
    assert (header.split()[0], row.split()[:3]) == ("dataset", ["mfeat", "40.0", "±"])
    code, _, err = told(capsys, pairs, "--code-version", "abc")
    assert (code, err) == (2, "dmmlkd: code_version must be one of 01234567, fedcba98; got abc\n")
    compared = compare(runs := read_runs([pairs]), plan(runs.options, "code-version"))
    assert compared["difference"].dropna().tolist() == pytest.approx([0.1])


def test_runs_that_read_other_files_are_told_apart(tmp_path: Path) -> None:
    for name in ("one", "two"):
        make_run(tmp_path / name, inputs={"module": f"{name}-0123456789"})
    assert plan(read_runs([tmp_path]).options).by == "inputs.module"


def test_one_group_has_means_alone(tmp_path: Path, capsys: Captured) -> None:
    for seed in range(5):
        make_run(tmp_path / str(seed), "dmml", seed, (0.3 + seed / 10,))
    header, row = told(capsys, tmp_path)[1].splitlines()[:2]
    assert " ".join(header.split()) == "dataset mean worst device seeds energy time sent"
    assert " ".join(row.split()) == "mfeat 50.0 ± 19.6 40.0 ± 19.6 5 2 J 2 s 200 bit"


def test_what_was_not_recorded_is_left_out(tmp_path: Path, capsys: Captured) -> None:
    plain = {"round": 1, "accuracy": {"test": [0.25, None]}}
    make_run(tmp_path / "old", records=[plain], version=None)
    (tmp_path / "old" / "environment.json").unlink()
    config = json.loads((tmp_path / "old" / "config.json").read_text())
    del config["failures"], config["method"]["tunes"], config["training"]["encoders"]
    (tmp_path / "old" / "config.json").write_text(json.dumps(config))
    header, row = told(capsys, tmp_path)[1].splitlines()[:2]
    assert header.split() == ["dataset", "mean", "worst", "device", "seeds"]
    assert row.split() == ["mfeat", "25.0", "25.0", "1"]


def test_runs_are_found_once_wherever_they_lie(tmp_path: Path) -> None:
    folder = make_run(tmp_path / "deep" / "er" / "run")
    make_run(tmp_path / ".rejected" / "run")
    assert find_runs([tmp_path, folder, tmp_path / "deep" / ".." / "deep"]) == [folder]


def test_a_copy_of_a_run_counts_once_and_another_result_is_refused(pairs: Path, tmp_path: Path) -> None:
    shutil.copytree(pairs / "dmml-0", tmp_path / "copy")
    assert len(read_runs([pairs, tmp_path / "copy"]).options) == 10
    make_run(tmp_path / "other", "dmml", 0, (0.9,))
    runs = read_runs([pairs, tmp_path / "other"])
    with pytest.raises(ComparisonError, match=rf"option or the seed; {pairs}/dmml-0 and {tmp_path}/other do not"):
        compare(runs, plan(runs.options))


def test_unfinished_runs_are_named_and_left_out(pairs: Path, capsys: Captured) -> None:
    make_run(pairs / "going", "local", finished=False)
    code, out, err = told(capsys, pairs)
    assert (code, err) == (0, f"runs that are not finished are left out: {pairs}/going\n")
    assert "local" not in out


@pytest.mark.parametrize(
    ("file", "content", "why"),
    [
        ("metrics.jsonl", "{}", "has other records in metrics.jsonl than it finished with"),
        ("config.json", "{", "path must be a JSON file"),
        ("config.json", '{"method": {"name": "dmml"}, "data": {"dataset": "mfeat"}}', "config lacks seed"),
        ("environment.json", "[]", "path must be a JSON file of a table"),
        ("result.json", "{}", "lacks the hash of the records"),
    ],
)
def test_a_damaged_run_is_one_line_that_names_its_folder(
    file: str, content: str, why: str, pairs: Path, capsys: Captured
) -> None:
    (pairs / "dmml-3" / file).write_text(content)
    code, out, err = told(capsys, pairs)
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert f"run {pairs}/dmml-3 cannot be read: " in err
    assert why in err


def test_records_without_what_every_record_has_name_the_folder(tmp_path: Path) -> None:
    make_run(tmp_path / "run", records=[{"accuracy": None}])
    with pytest.raises(ComparisonError, match=rf"run {tmp_path}/run cannot be read: KeyError: 'round'"):
        read_runs([tmp_path])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["{pairs}/no"], "runs must be folders of runs; {pairs}/no is not there"),
        (["{pairs}/dmml-0/config.json"], "runs must be folders of runs; {pairs}/dmml-0/config.json is not a folder"),
        (["{tmp}/empty"], "runs must be folders of runs; {tmp}/empty holds none"),
        (["{tmp}/going"], "runs must be finished, to be compared; none of 1 is"),
        (["{pairs}", "--by", "rounds"], "by must be an option that differs: method.name, method.losses"),
        (
            ["{pairs}", "--by", "method.losses.similarty"],
            "method.losses.similarty; did you mean method.losses.simi",
        ),
        (
            ["{pairs}", "--baseline", "local"],
            "baseline must be one of dmml, dmml-kd, the values of method.name; got",
        ),
        (["{pairs}", "--csv", "--md"], "csv, md and tex must not be given together"),
        (["{pairs}", "--export", "a.xlsx"], "export must be a file called *.csv or *.parquet, got a.xlsx"),
        (["{tmp}/blind"], "runs must have test samples: none has a test accuracy"),
    ],
)
def test_what_cannot_be_compared_is_one_line(
    arguments: list[str], message: str, pairs: Path, tmp_path: Path, capsys: Captured
) -> None:
    (tmp_path / "empty").mkdir()
    make_run(tmp_path / "going" / "run", finished=False)
    make_run(tmp_path / "blind" / "run", records=[make_record(1, (None, None))])
    places = {"pairs": pairs, "tmp": tmp_path}
    code, out, err = told(capsys, *(argument.format(**places) for argument in arguments))
    assert (code, out, err.count("\n")) == (2, "", 1)
    assert message.format(**places) in err


def test_the_formats_hold_the_same_numbers(pairs: Path, capsys: Captured, tmp_path: Path) -> None:
    (tmp_path / "table.csv").write_text(told(capsys, pairs, "--csv")[1])
    table = pd.read_csv(tmp_path / "table.csv").set_index("method.name")
    assert table.loc["dmml-kd", ["difference", "pairs"]].tolist() == pytest.approx([0.3, 5])
    markdown = told(capsys, pairs, "--md")[1].splitlines()
    assert markdown[0].startswith("| method ")
    assert "| +30.0 [+10.4, +49.6] |" in markdown[3]
    latex = told(capsys, pairs, "--tex")[1]
    assert latex.startswith(r"\begin{tabular}")
    assert r"60.0 $\pm$ 19.6" in latex
    assert latex.rstrip().endswith(r"\end{tabular}")


@pytest.mark.parametrize("ending", ["csv", "parquet"])
def test_an_export_has_a_row_per_run_and_round_with_every_option_that_differs(
    ending: str, pairs: Path, tmp_path: Path, capsys: Captured
) -> None:
    path = tmp_path / f"curves.{ending}"
    assert told(capsys, pairs, "--export", path)[0] == 0
    rows = pd.read_csv(path) if ending == "csv" else pd.read_parquet(path)
    assert len(rows) == 20
    last = rows[(rows["method.name"] == "dmml-kd") & (rows["round"] == 2)].sort_values("seed")
    assert last["mean"].tolist() == pytest.approx([0.3 + gain for gain in GAINS])
    assert last[["time_s", "energy_joule", "bits"]].iloc[0].tolist() == [4.0, 4.0, 400.0]
    assert {"method.losses.similarity", "data.dataset", "code_version", "run"} <= set(rows.columns)


def test_a_package_that_is_not_here_is_one_line(pairs: Path, tmp_path: Path) -> None:
    code = """if True:
        import sys
        from dmmlkd_ext import cli
        runs, picture = sys.argv[1:]
        for package, arguments in (
            ("pandas", ["compare", runs]),
            ("pyarrow", ["compare", runs, "--export", "a.parquet"]),
            ("tabulate", ["compare", runs, "--md"]),
            ("jinja2", ["compare", runs, "--tex"]),
            ("seaborn", ["plot", runs, "-o", picture]),
        ):
            sys.modules[package] = None
            print(cli.main(arguments))
            del sys.modules[package]
    """
    command = [sys.executable, "-c", code, str(pairs), str(tmp_path / "a.png")]
    done = subprocess.run(command, capture_output=True, text=True, check=True, cwd=Path(__file__).parents[2])
    assert done.stdout.split() == ["1"] * 5
    assert done.stderr.splitlines() == [
        f"dmmlkd: {command} needs the package {package}: pip install {package}"
        for command, package in (
            *(("compare", name) for name in ("pandas", "pyarrow", "tabulate", "jinja2")),
            ("plot", "seaborn"),
        )
    ]
