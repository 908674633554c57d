"""The claims of the paper's abstract, each as paired differences that would support it, and a verdict by a fixed rule.

`table_claims` alone shows the verdicts, so that each claim has one.

What is claimed is the abstract's [P], in our words; which differences test it is our choice [C]. The claims "missing
most", "generator helps" and "gentle" go further than the abstract and are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import pandas as pd

from dmmlkd_ext.experiments.show.labels import label
from dmmlkd_ext.experiments.statistics import (
    LEAST_SEEDS,
    NOTHING,
    Interval,
    PairedDifference,
    difference_of,
    holm,
    mean_interval,
)
from paper_figures.collect.inputs import Results
from paper_figures.judge import measures
from paper_figures.judge.transforms import by_seed, final_accuracy

RULE = (
    "A difference supports a claim if its paired 95% interval lies above zero, or above minus the margin where one "
    "is stated, and contradicts it if the interval lies below. A claim holds if all of its differences that have an "
    "interval support it. It holds in part if some do, at least one of them clearly: with p below 0.05 after Holm's "
    "adjustment over the differences of the claim. It does not hold otherwise: it was not shown. It is not tested "
    "where no difference has an interval. Where a difference has fewer than five seeds, the verdict is `too few seeds` "
    "and where all differences point."
)
GENTLE = 0.05
"""The most accuracy that the highest probability of link loss may cost, for the degradation to be called gentle."""
SUPPORTS, UNDECIDED, CONTRADICTS, NO_INTERVAL = "supports", "undecided", "contradicts", "no interval"
HOLDS, IN_PART, DOES_NOT_HOLD, NOT_TESTED = "holds", "holds in part", "does not hold", "not tested"
TOO_FEW = "too few seeds"


@dataclass(frozen=True)
class Contrast:
    """A difference that a claim expects to be positive, over the seeds of one dataset and setting."""

    dataset: str
    setting: str
    what: str
    difference: PairedDifference
    by_seed: pd.Series
    """The difference of each seed."""
    margin: float = 0.0

    @property
    def verdict(self) -> str:
        """What the interval says of the claim."""
        if math.isnan(self.difference.low):
            return NO_INTERVAL
        if self.difference.low > -self.margin:
            return SUPPORTS
        return CONTRADICTS if self.difference.high < -self.margin else UNDECIDED


@dataclass(frozen=True)
class Claim:
    """One claim, the figure that shows it, and the differences that test it."""

    name: str
    text: str
    figures: tuple[str, ...]
    contrasts: Callable[[Results], Iterator[Contrast]]
    unit: str = "points"


def judge(results: Results, names: Sequence[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge claims by results.

    Args:
        results: of the experiments at hand; a claim whose experiment is not among them is not tested.
        names: the claims to judge; empty judges all.

    Returns:
        Claims: name, claim, figures, verdict, supporting, undecided, contradicting (numbers of differences), mean,
        low, high (of the mean over the differences, over seeds), unit, seeds. Differences: name, dataset, setting,
        what, difference, low, high, p, p_holm (adjusted within the claim), pairs, margin, verdict.
    """
    claims, differences = [], []
    for claim in CLAIMS:
        if names and claim.name not in names:
            continue
        contrasts = list(claim.contrasts(results))
        verdicts = [contrast.verdict for contrast in contrasts]
        adjusted = holm([contrast.difference.p_value for contrast in contrasts])
        overall = _mean_over(contrasts)
        verdict = verdict_of(verdicts, adjusted)
        if verdict != NOT_TESTED and min(contrast.difference.count for contrast in contrasts) < LEAST_SEEDS:
            verdict = direction_of(contrasts)
        claims.append(
            {
                "name": claim.name,
                "claim": claim.text,
                "figures": ", ".join(claim.figures),
                "verdict": verdict,
                "supporting": verdicts.count(SUPPORTS),
                "undecided": verdicts.count(UNDECIDED),
                "contradicting": verdicts.count(CONTRADICTS),
                "mean": overall.mean,
                "low": overall.low,
                "high": overall.high,
                "unit": claim.unit,
                "seeds": overall.count,
            }
        )
        differences += [_row(claim, contrast, p_holm) for contrast, p_holm in zip(contrasts, adjusted, strict=True)]
    return pd.DataFrame(claims), pd.DataFrame(differences, columns=_DIFFERENCE_COLUMNS)


def verdict_of(verdicts: Sequence[str], p_holm: Sequence[float]) -> str:
    """Return the verdict on a claim from those of its differences and their adjusted p values, by `RULE`.

    Example:
        >>> verdict_of(["supports", "undecided"], [0.01, 0.4]), verdict_of(["supports", "undecided"], [0.07, 0.4])
        ('holds in part', 'does not hold')
    """
    if all(verdict == NO_INTERVAL for verdict in verdicts):
        return NOT_TESTED
    if all(verdict in (SUPPORTS, NO_INTERVAL) for verdict in verdicts):
        return HOLDS
    return IN_PART if any(map(is_clear, verdicts, p_holm)) else DOES_NOT_HOLD


def direction_of(contrasts: Sequence[Contrast]) -> str:
    """Return where differences of too few seeds for a verdict point."""
    signs = {contrast.difference.mean > -contrast.margin for contrast in contrasts}
    return f"{TOO_FEW}, {'pointing both ways' if len(signs) > 1 else 'in favour' if signs == {True} else 'against'}"


def is_clear(verdict: str, p_holm: float) -> bool:
    """Return whether a difference supports its claim also after the adjustment.

    A p value that is not a number belongs to differences that are all equal, and adds nothing to the interval.
    """
    return verdict == SUPPORTS and not p_holm >= 0.05


_DIFFERENCE_COLUMNS = [
    *("name", "dataset", "setting", "what", "difference", "low", "high"),
    *("p", "p_holm", "pairs", "margin", "unit", "verdict"),
]


def _row(claim: Claim, contrast: Contrast, p_holm: float) -> dict[str, object]:
    found = contrast.difference
    difference = (found.mean, found.low, found.high, found.p_value, p_holm, found.count)
    place = (claim.name, contrast.dataset, contrast.setting, contrast.what)
    row = (*place, *difference, contrast.margin, claim.unit, contrast.verdict)
    return dict(zip(_DIFFERENCE_COLUMNS, row, strict=True))


def _mean_over(contrasts: Sequence[Contrast]) -> Interval:
    """Average the differences of each seed that has all of them, and take the interval over seeds."""
    columns = {place: contrast.by_seed for place, contrast in enumerate(contrasts)}
    seeds = pd.DataFrame(columns, dtype=float).dropna().mean(axis=1)
    return mean_interval(seeds.to_numpy()) if len(seeds) else NOTHING


def _contrast(
    dataset: str, setting: str, what: str, ours: pd.Series, theirs: pd.Series, margin: float = 0.0
) -> Iterator[Contrast]:
    difference = difference_of(ours, theirs, margin)
    if difference.count:
        yield Contrast(dataset, setting, what, difference, (ours - theirs).dropna().rename(what), margin)


def _between(experiment: str, *pairs: tuple[str, str], symbol: str = "") -> Callable[[Results], Iterator[Contrast]]:
    """Compare methods in every dataset, setting and level of an experiment, whose levels are called `symbol`."""

    def contrasts(results: Results) -> Iterator[Contrast]:
        table = results.table[results.table["experiment"] == experiment]
        final = final_accuracy(table, [method for pair in pairs for method in pair])
        for _, rows in final.groupby(["dataset", "setting", "level"], dropna=False):
            dataset, setting, level = rows[["dataset", "setting", "level"]].iloc[0]
            place = f"{symbol} {level:g}" if symbol and not math.isnan(level) else str(setting)
            for ours, theirs in pairs:
                what = f"{label(ours)} minus {label(theirs)}"
                values, base = by_seed(rows, method=ours), by_seed(rows, method=theirs)
                yield from _contrast(str(dataset), place, what, values, base)

    return contrasts


def _improves(results: Results) -> Iterator[Contrast]:
    yield from _between("comparison", ("dmml-kd-tb", "dmml"))(results)
    yield from _between("balance", ("dmml-kd-tb", "dmml"), symbol="energy budget")(results)


def _along(
    experiment: str, method: str, rises: bool, symbol: str, setting: str = "", margin: float = 0.0
) -> Callable[[Results], Iterator[Contrast]]:
    """Compare a method at the two ends of an experiment's levels: what the easy end has more than the hard one.

    Args:
        experiment: its name.
        method: whose accuracy is compared.
        rises: whether the highest level is the easy one.
        symbol: what a level is called.
        setting: the setting whose levels are compared; empty takes all rows.
        margin: see `Contrast`; with one, the hard end minus the easy one is judged against it.
    """

    def contrasts(results: Results) -> Iterator[Contrast]:
        for dataset, rows, easy, hard in _ends(results, experiment, [method], rises, setting):
            first, second = (hard, easy) if margin else (easy, hard)
            ours, theirs = (by_seed(rows, method=method, level=level) for level in (first, second))
            what = f"{label(method)} at {symbol} {first:g} minus at {second:g}"
            yield from _contrast(dataset, "", what, ours, theirs, margin)

    return contrasts


def _ends(
    results: Results, experiment: str, methods: Sequence[str], rises: bool, setting: str = ""
) -> Iterator[tuple[str, pd.DataFrame, float, float]]:
    """Yield each dataset's final accuracies with its easiest and its hardest level, where these differ."""
    final = final_accuracy(results.table[results.table["experiment"] == experiment], methods)
    if setting:
        final = final[final["setting"] == setting]
    for dataset, rows in final.groupby("dataset"):
        levels = sorted(rows["level"].dropna().unique(), reverse=rises)
        if len(levels) > 1:
            yield str(dataset), rows, float(levels[0]), float(levels[-1])


def _narrows_non_iid(results: Results) -> Iterator[Contrast]:
    for dataset, rows, easy, hard in _ends(results, "non_iid", ["dmml", "dmml-kd"], rises=True):
        gains = [
            by_seed(rows, method="dmml-kd", level=level) - by_seed(rows, method="dmml", level=level)
            for level in (hard, easy)
        ]
        what = f"gain of DMML-KD over DMML at alpha {hard:g} minus its gain at {easy:g}"
        yield from _contrast(dataset, "", what, gains[0].dropna(), gains[1].dropna())


def _helps_missing(results: Results) -> Iterator[Contrast]:
    for dataset, rows, _, hard in _ends(results, "missing", ["dmml", "dmml-kd"], rises=False):
        ours, theirs = (by_seed(rows, method=method, level=hard) for method in ("dmml-kd", "dmml"))
        yield from _contrast(dataset, f"missing rate {hard:g}", "DMML-KD minus DMML", ours, theirs)


def _most_where_missing(results: Results) -> Iterator[Contrast]:
    gains = measures.gain_by_held(results.table[results.table["experiment"] == "missing"])
    for dataset, rows in gains.groupby("dataset"):
        means = rows.groupby(["level", "seed", "complete"], dropna=False)["gain"].mean().unstack("complete")
        if {True, False} <= set(means.columns):
            both = means.dropna().groupby("seed").mean()  # levels where a seed has devices of both kinds
            what = "gain of devices that lack a modality minus gain of the others, within missing rates"
            yield from _contrast(str(dataset), "", what, both[False], both[True])


def _compete(results: Results) -> Iterator[Contrast]:
    for dataset, gaps, modality in _gaps(results):
        rows = gaps[(gaps["method"] == "dmml") & (gaps["modality"] == modality)]
        what = f"probe of {modality} trained alone minus probe after joint training by DMML"
        yield from _contrast(dataset, modality, what, by_seed(rows, "alone"), by_seed(rows, "joint"))


def _balance_lessens(results: Results) -> Iterator[Contrast]:
    for dataset, gaps, modality in _gaps(results):
        slow = gaps[gaps["modality"] == modality]
        for method, reference in (("dmml-tb", "dmml"), ("dmml-kd-tb", "dmml-kd")):
            what = f"under-training gap of {label(reference)} minus that of {label(method)}"
            before, after = (by_seed(slow, "gap", method=name) for name in (reference, method))
            yield from _contrast(dataset, modality, what, before, after)


def _gaps(results: Results) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield each dataset's under-training gaps and its slowest modality."""
    table = results.table[results.table["experiment"] == "imbalance"]
    gaps = measures.undertraining_gap(table)
    for dataset, modality in measures.slowest_modality(table).items():
        yield dataset, gaps[gaps["dataset"] == dataset], modality


def _one_distribution(results: Results) -> Iterator[Contrast]:
    if results.features.empty:
        return
    distances = measures.feature_distance(results.features)
    for dataset, rows in distances.groupby("dataset"):
        without, guided = (by_seed(rows, "distance", method=method) for method in ("dmml-kd-no-generator", "dmml-kd"))
        what = "distance of devices' class means without the generator minus with it"
        yield from _contrast(str(dataset), "", what, without, guided)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "improves",
        "DMML-KD with training balance improves DMML",
        ("figure_convergence", "table_accuracy", "table_energy"),
        _improves,
    ),
    Claim("non-iid hurts", "Non-IID data hurt DMML", ("figure_non_iid",), _along("non_iid", "dmml", True, "alpha")),
    Claim("non-iid narrowed", "DMML-KD narrows the loss by non-IID data", ("figure_non_iid",), _narrows_non_iid),
    Claim(
        "missing hurts",
        "Modality heterogeneity hurts DMML",
        ("figure_modality_heterogeneity",),
        _along("missing", "dmml", False, "missing rate"),
    ),
    Claim(
        "missing helped",
        "Shared modality-common features help where modalities are missing",
        ("figure_modality_heterogeneity",),
        _helps_missing,
    ),
    Claim(
        "missing most",
        "Devices that lack a modality gain most from them",
        ("figure_modality_heterogeneity",),
        _most_where_missing,
    ),
    Claim(
        "one distribution",
        "The generator pulls devices' common features to one distribution",
        ("figure_features",),
        _one_distribution,
        unit="distance",
    ),
    Claim(
        "generator helps",
        "The generator improves accuracy",
        ("table_ablation",),
        _between("ablation", ("dmml-kd", "dmml-kd-no-generator")),
    ),
    Claim(
        "compete", "Modalities compete: the slow one trains less than it would alone", ("figure_imbalance",), _compete
    ),
    Claim("balance", "Balance lessens the slow modality's under-training", ("figure_imbalance",), _balance_lessens),
    Claim(
        "energy",
        "Local iterations optimized under the remaining energy beat the same cut for all modalities",
        ("figure_iterations_energy", "table_energy"),
        _between("balance", ("dmml-tb", "dmml"), ("dmml-kd-tb", "dmml-kd"), symbol="energy budget"),
    ),
    Claim(
        "no server",
        "Exchange between neighbours alone, without a server, helps",
        ("figure_convergence", "table_accuracy"),
        _between("comparison", ("dmml", "local"), ("dmml-kd", "local")),
    ),
    Claim(
        "gentle",
        f"Link loss degrades gently: by less than {100 * GENTLE:g} points at the highest probability",
        ("figure_topology",),
        _along("topology", "dmml-kd", False, "link loss", "link loss", GENTLE),
    ),
)
"""The claims that are judged, in the order of the abstract."""


def shown_in(figure: str) -> list[Claim]:
    """Return the claims that a figure or table shows."""
    return [claim for claim in CLAIMS if figure in claim.figures]
