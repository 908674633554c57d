from __future__ import annotations

import pandas as pd
import pytest
from synthetic import flatten

from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.show import files
from paper_figures.collect.inputs import Results
from paper_figures.judge.marks import MARKS, OURS, PAPER, mark_of
from paper_figures.tables.settings import ELSEWHERE, EVERYWHERE, show, transform

NAN = float("nan")


def settings(values: list[tuple[str, str, str, float, str]], option: str = "training.momentum") -> pd.DataFrame:
    rows = [
        (experiment, "default", level, dataset, method, option, value)
        for experiment, dataset, method, level, value in values
    ]
    return pd.DataFrame(rows, columns=["experiment", "setting", "level", "dataset", "method", "option", "value"])


def where(frame: pd.DataFrame) -> list[tuple[str, str]]:
    return list(
        transform(Results(pd.DataFrame(), settings=frame))[["value", "where"]].itertuples(index=False, name=None)
    )


def test_a_value_that_is_the_same_everywhere_stands_once() -> None:
    assert where(settings([("a", "mfeat", "dmml", NAN, "1"), ("b", "watch", "local", 0.3, "1")])) == [("1", EVERYWHERE)]


def test_a_value_stands_with_the_least_that_it_depends_on() -> None:
    by_dataset = [("a", dataset, method, NAN, dataset[0]) for dataset in ("mfeat", "watch") for method in ("x", "y")]
    assert where(settings(by_dataset)) == [("m", "mfeat"), ("w", "watch")]
    by_both = [
        ("a", "mfeat", "dmml", NAN, "1"),
        ("a", "mfeat", "local", NAN, "2"),
        ("a", "watch", "dmml", NAN, "2"),
        ("a", "watch", "local", NAN, "2"),
    ]
    assert where(settings(by_both)) == [("1", "mfeat: dmml"), ("2", "mfeat: local; watch: dmml, local")]
    by_level = [("a", "mfeat", "dmml", level, str(level)) for level in (0.15, 0.3)]
    assert where(settings(by_level)) == [("0.15", "level 0.15"), ("0.3", "level 0.3")]
    undecided = [("a", "mfeat", "dmml", NAN, value) for value in "12"]
    assert len(where(settings(undecided))) == 2


def test_the_commonest_value_is_told_shortly() -> None:
    many = [("a", "mfeat", f"a-rather-long-name-{index}", NAN, "2") for index in range(9)]
    found = where(settings([*many, ("a", "mfeat", "dmml", NAN, "1")]))
    assert found == [("1", "dmml"), ("2", ELSEWHERE)]


def test_options_that_are_columns_are_left_out_and_marks_stand_once() -> None:
    rows = [("a", "mfeat", "dmml", NAN, "1"), ("a", "watch", "dmml", NAN, "2")]
    frame = pd.concat([settings(rows, "seed"), settings(rows, "training.rounds")])
    shown = show(transform(Results(pd.DataFrame(), settings=frame)))
    assert shown["Option"].tolist() == ["training.rounds", ""]
    assert shown["Mark"].tolist() == [OURS, ""]


def test_every_option_of_the_configuration_has_a_mark() -> None:
    options = set(flatten(ExperimentConfig().to_dict()))
    assert options <= set(MARKS)
    assert {mark for mark, _ in MARKS.values()} == {PAPER, OURS}
    assert all("\n" not in reason and len(reason) < 100 for _, reason in MARKS.values())
    assert mark_of("something.new")[0] == OURS


@pytest.mark.parametrize(("text", "latex"), [("a_b & c", r"a\_b \& c"), ("x^2 < 3", r"x\textasciicircum{}2 $<$ 3")])
def test_latex_is_escaped_once(text: str, latex: str) -> None:
    assert files.escape(text) == latex
    assert latex in files.to_latex(pd.DataFrame({"head": [text]}))
