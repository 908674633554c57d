"""Which balance metric is chosen, and by what: rows made by hand."""

from __future__ import annotations

import pandas as pd
import pytest
from rows import table_of

from paper_figures.collect.inputs import Results
from paper_figures.judge import metrics
from paper_figures.tables import balance_metrics

ARMS = {"": 0.0, "-random": 0.02, "-reversed": -0.03}
"""End of a method's name -> what it has more than the uniform cut."""


def runs(setting: str, gain: float, seeds: range = range(3), test: float = 0.0, dataset: str = "watch") -> list[dict]:
    """Return runs of the balance and its controls, both of which differ by `gain` on validation data."""
    rows = []
    for base in ("dmml", "dmml-kd"):
        for end, more in {**ARMS, "-tb": gain}.items():
            for seed in seeds:
                about = {"experiment": "metrics", "setting": setting, "dataset": dataset, "method": base + end}
                about |= {"seed": seed, "run": f"{dataset}{setting}{base}{end}{seed}"}
                value = 0.5 + more + 0.001 * seed * (end == "-tb")
                rows += [{**about, "part": "validation", "device": device, "value": value} for device in (0, 1)]
                rows.append({**about, "part": "test", "device": 0, "value": value + test * (end == "-tb")})
                if end == "-tb":
                    agreed = {1: 1.0, 2: 0.8, 3: 0.6, 10: 0.4, 40: 0.3}
                    rows += [
                        {**about, "metric": "ranking_agreement", "part": "", "round": index, "value": value}
                        for index, value in agreed.items()
                    ]
    return [{"round": 40, **row} for row in rows]


def test_gains_are_paired_with_each_control_and_averaged_over_places() -> None:
    table = table_of(runs("early", 0.05) + runs("early", 0.01, dataset="mfeat"))
    found = metrics.gains(table, "validation", metrics.CHOOSING).set_index(["control", "dataset", "base"])["difference"]
    assert found["uniform", "watch", "dmml"] == pytest.approx(0.051)
    assert found["random", "mfeat", "dmml-kd"] == pytest.approx(-0.009)
    assert found["reversed", "", ""] == pytest.approx(0.061)
    summary = metrics.summarize(metrics.gains(table, "validation", metrics.CHOOSING)).iloc[0]
    assert summary["random"] == pytest.approx(0.011)
    assert summary["random_worst"] == pytest.approx(-0.009)
    assert (summary["random_below"], summary["uniform_below"]) == (2, 0)


def test_agreement_is_of_the_balanced_runs() -> None:
    (first, _) = metrics.agreement(table_of(runs("early", 0.05))).to_dict("records")
    assert first["base"] == "dmml"
    assert [first[name] for name in ("early", "tenth", "last")] == pytest.approx([0.8, 0.4, 0.3])


def test_the_choice_is_made_on_validation_data_and_confirmed_on_other_seeds_and_test_data() -> None:
    first, other = range(3), range(10, 13)
    rows = runs("early", 0.05, first, test=-0.1) + runs("early", 0.05, other, test=-0.1)
    rows += runs("rank", 0.04, first, test=0.3) + runs("score", 0.3, first)
    table = table_of(rows)
    summary, differences = balance_metrics.transform(Results(table))
    chosen = summary[summary["use"] == "chosen by"]
    assert metrics.choose(chosen) == "early"  # whatever test data say, and the reference is none to choose
    confirmed = summary[summary["use"] == "confirmed by"]
    assert confirmed["setting"].tolist() == ["early"]
    assert confirmed["uniform"].item() == pytest.approx(0.05 - 0.1 + 0.011)
    text, sections = balance_metrics.caption(Results(table), summary, differences)
    assert "seeds 0 to 4: `early`." in text
    (line,) = (
        line for line in sections["Every dataset and method"] if line.startswith("- confirmed by: early, watch, DMML:")
    )
    assert "agreement 0.80 / 0.40 / 0.30; minus uniform -3.9 [" in line
    shown = balance_metrics.show(summary, differences)
    assert shown["Metric"].tolist() == ["early", "rank", "score", "early"]
    assert shown.loc[0, "Minus random (worst)"] == "+3.1 [+2.9, +3.3] (+3.1)"


def test_none_is_chosen_where_all_lose_somewhere() -> None:
    table = table_of(runs("early", 0.05) + runs("early", 0.01, dataset="mfeat") + runs("rank", 0.0))
    summary = metrics.summarize(metrics.gains(table, "validation", metrics.CHOOSING))
    assert metrics.choose(summary) is None
    assert metrics.choose(pd.DataFrame()) is None
