"""Final accuracy, and the time, energy and bits that it took to reach a target accuracy."""

from __future__ import annotations

import math

import pandas as pd

from dmmlkd_ext.experiments.results import COSTS, add_costs
from dmmlkd_ext.experiments.show import words
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD, label
from dmmlkd_ext.experiments.statistics import mean_interval
from paper_figures.collect.inputs import Results
from paper_figures.draw import captions
from paper_figures.judge import measures, transforms

EXPERIMENTS = ("balance", "comparison")
NEEDS = "test accuracy of the experiments balance and comparison"
TITLE = "Cost of accuracy"
FRACTION = 0.9
"""The target, as a fraction of the best final accuracy of the reference method in the same dataset and setting."""
GROUP = ["experiment", "dataset", "setting", "level", "method"]


def transform(results: Results) -> pd.DataFrame:
    """Return what each method reached and what it took to reach the target.

    Returns:
        Columns experiment, dataset, setting, level, method, accuracy, accuracy_low, accuracy_high, target, seeds,
        reached, round, time_s, energy_joule, bits: the costs are means over the seeds that reached the target, not a
        number where none did; spent_joule and budget_joule: what a device spent in all rounds and had at first.
    """
    accuracy = transforms.accuracy_by_run(results.table)
    if accuracy.empty:
        return accuracy
    final = with_target(transforms.final_accuracy(results.table))
    reached = first_reached(accuracy, final)
    reached = add_costs(reached, results.table, [*transforms.RUN, "round"])
    found = []
    for key, group in final.groupby(GROUP, dropna=False):
        row = dict(zip(GROUP, key, strict=True))
        interval = mean_interval(group["mean"].to_numpy())
        runs = reached.merge(group[transforms.RUN], on=transforms.RUN)
        row |= {"accuracy": interval.mean, "accuracy_low": interval.low, "accuracy_high": interval.high}
        row |= {"target": group["target"].iloc[0], "seeds": len(group), "reached": len(runs)}
        found.append(row | {name: runs[name].mean() for name in ("round", *COSTS)})
    spent = measures.joules(results.table)
    return transforms.in_figure_order(pd.DataFrame(found).merge(spent, on=GROUP, how="left"))


def with_target(final: pd.DataFrame) -> pd.DataFrame:
    """Add the target of each experiment, dataset and setting; where the reference has no runs, it is not a number."""
    reference = final[final["method"] == REFERENCE_METHOD]
    keys = ["experiment", "dataset", "setting"]
    means = reference.groupby([*keys, "level"], dropna=False)["mean"].mean()
    return final.merge((FRACTION * means.groupby(keys).max()).reset_index(name="target"), on=keys, how="left")


def first_reached(accuracy: pd.DataFrame, final: pd.DataFrame) -> pd.DataFrame:
    """Return each run's first evaluated round at or above its target; a run that stayed below has no row."""
    both = accuracy.merge(final[[*transforms.RUN, "target"]], on=transforms.RUN)
    above = both[both["mean"] >= both["target"]].sort_values("round", kind="stable")
    return above.groupby(transforms.RUN, dropna=False, sort=False).head(1).reset_index(drop=True)


def show(rows: pd.DataFrame) -> pd.DataFrame:
    """Return the table as text."""
    shown = [
        {
            "Dataset": row["dataset"],
            "Setting": captions.where({"setting": row["setting"], "level": row["level"]}, "energy budget") or "-",
            "Method": label(row["method"]),
            "Accuracy (%)": words.with_interval(*words.interval_of(row, "accuracy")),
            "Target (%)": words.percent(row["target"]),
            "Reached": f"{row['reached']} of {row['seeds']}",
            "Rounds": "-" if math.isnan(row["round"]) else f"{row['round']:.1f}",
            "Time": words.quantity(row["time_s"], "s"),
            "Energy": words.quantity(row["energy_joule"], "J"),
            "Sent": words.quantity(row["bits"], "bit"),
            "Spent in all": _of_budget(row["spent_joule"], row["budget_joule"]),
        }
        for row in rows.to_dict("records")
    ]
    return pd.DataFrame(shown)


def _of_budget(spent: float, budget: float) -> str:
    shown = words.quantity(spent, "J")
    return shown if math.isnan(budget) else f"{shown} of {words.quantity(budget, 'J')}"


def caption(_results: Results, _rows: pd.DataFrame) -> tuple[str, captions.Sections]:
    """Return what is in the table."""
    shown = (
        "Test accuracy in the last round, mean ± half of the 95% Student interval over seeds; the target, "
        f"{FRACTION:.0%} of the best final accuracy of DMML on the dataset, the best over energy budgets where there "
        "are several; how many seeds' mean over devices reached it in an evaluated round; and the rounds, the "
        "simulated time, the energy per device and the bits per device until then, means over the seeds that reached "
        f"it. Spent in all: the energy per device in all rounds, of its budget where that was recorded, whatever was "
        f"reached. {captions.SAMPLED} A mean over some of the seeds is one over the luckier ones."
    )
    return shown, {}
