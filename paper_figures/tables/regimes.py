"""Where balance matters: regimes in which modalities are unlike in different ways, and what it gains in each."""

from __future__ import annotations

import pandas as pd

from dmmlkd_ext.experiments.show import words
from dmmlkd_ext.experiments.show.labels import label
from dmmlkd_ext.experiments.statistics import LEAST_SEEDS, difference_of, mean_interval
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import measures, transforms, verdicts
from paper_figures.judge.comparisons import P_VALUES
from paper_figures.plan.experiments import REGIMES

EXPERIMENTS = ("regimes",)
NEEDS = "test accuracy of the experiment regimes"
TITLE = "Where balance matters"
CONTROLS = {"uniform": "", "random": "-random"}
"""Control -> how the names of its methods end."""
MEASURES = {"all": "all modalities", "missing": "one missing"}
"""Measure -> what devices are tested with."""


def transform(results: Results) -> pd.DataFrame:
    """Return the balance's gains by regime, method and what is tested with.

    Returns:
        Columns setting, dataset, method (that is balanced), measure (`all` is the accuracy of all devices with all of
        their modalities, `missing` that of devices with two modalities where one is missing at test), accuracy with
        its interval, and for each control its name, `_low`, `_high`, `_p`; seeds.
    """
    found = []
    for measure, rows in (
        ("all", transforms.final_accuracy(results.table)),
        ("missing", measures.accuracy_with_one_missing(results.table)),
    ):
        for (setting, dataset), regime in rows.groupby(["setting", "dataset"]):
            for base in ("dmml", "dmml-kd"):
                ours = transforms.by_seed(regime, method=f"{base}-tb")
                if len(ours):
                    about = {"setting": setting, "dataset": dataset, "method": base, "measure": measure}
                    found.append(about | _accuracy(ours) | _gains(regime, base, ours) | {"seeds": len(ours)})
    order = {setting: place for place, setting in enumerate(REGIMES)}
    frame = pd.DataFrame(found)
    return frame if frame.empty else frame.sort_values("setting", key=lambda names: names.map(order), kind="stable")


def _accuracy(values: pd.Series) -> dict[str, float]:
    interval = mean_interval(values.to_numpy())
    return {"accuracy": interval.mean, "accuracy_low": interval.low, "accuracy_high": interval.high}


def _gains(regime: pd.DataFrame, base: str, ours: pd.Series) -> dict[str, object]:
    row: dict[str, object] = {}
    for control, suffix in CONTROLS.items():
        gain = difference_of(ours, transforms.by_seed(regime, method=f"{base}{suffix}"))
        row |= {control: gain.mean, f"{control}_low": gain.low, f"{control}_high": gain.high}
        decided = gain.count >= LEAST_SEEDS
        verdict = verdicts.verdict_on(gain) if decided else verdicts.direction([gain.mean])
        row |= {f"{control}_p": gain.p_value, f"{control}_verdict": verdict if gain.count else verdicts.NOT_RUN}
    return row


def show(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    shown = [
        {
            "Regime": row["setting"],
            "Dataset": row["dataset"],
            "Method": label(row["method"]),
            "Tested with": MEASURES[row["measure"]],
            "With balance (%)": words.with_interval(*words.interval_of(row, "accuracy")),
            **{f"Minus {control}": words.signed(*words.interval_of(row, control)) for control in CONTROLS},
            "Seeds": row["seeds"],
        }
        for row in rows.to_dict("records")
    ]
    return pd.DataFrame(shown)


def caption(_results: Results, rows: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table, and what is said of each regime."""
    shown = (
        "Test accuracy with balance in the last round, mean ± half of the 95% Student interval over seeds, and its "
        "paired differences, in points, to the same cut for all modalities and to the same cuts permuted at random, at "
        "the tuned energy budget and with settings that were tuned, if at all, on other data. All modalities: all "
        "devices with what they hold. One missing: devices that hold two modalities, tested with either of them alone. "
        f"{P_VALUES}"
    )
    lines = [
        f"- {row['setting']} ({row['dataset']}), {label(row['method'])}, {MEASURES[row['measure']]}: "
        + "; ".join(f"against {control} {row[f'{control}_verdict']}" for control in CONTROLS)
        for row in rows.to_dict("records")
    ]
    return shown, {"Effects, by the rule of table_claims for one difference": lines}
