"""The claims of the paper's abstract, each as paired differences that would support it, and a verdict by a fixed rule.

What is claimed is the abstract's [P], in our words; which differences test it is our choice [C]. The claims "missing
most", "generator helps" and "gentle" go further than the abstract and are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dmmlkd_ext.experiments.statistics import Interval, PairedDifference, holm, mean_interval
from paper_figures import measures
from paper_figures.style import look
from paper_figures.transforms import by_seed, difference_of, final_accuracy

RULE = (
    "A difference supports a claim if its paired 95% interval lies above zero, or above minus the margin where one "
    "is stated, and contradicts it if the interval lies below. A claim holds if all of its differences that have an "
    "interval support it. It holds in part if some do, at least one of them also with p below 0.05 after Holm's "
    "adjustment over the differences of the claim, and does not hold otherwise: it was not shown. It is not tested "
    "where no difference has an interval."
)
GENTLE = 0.05
"""The most accuracy that the highest probability of link loss may cost, for the degradation to be called gentle."""
SUPPORTS, UNDECIDED, CONTRADICTS, NO_INTERVAL = "supports", "undecided", "contradicts", "no interval"
HOLDS, IN_PART, DOES_NOT_HOLD, NOT_TESTED = "holds", "holds in part", "does not hold", "not tested"


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
class Inputs:
    """What claims are judged by."""

    table: pd.DataFrame
    features: pd.DataFrame | None = None


@dataclass(frozen=True)
class Claim:
    """One claim, the figure that shows it, and the differences that test it."""

    name: str
    text: str
    figures: tuple[str, ...]
    contrasts: Callable[[Inputs], Iterator[Contrast]]
    unit: str = "points"


def judge(
    table: pd.DataFrame, features: pd.DataFrame | None = None, names: Sequence[str] = ()
) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge claims by a table of results.

    Args:
        table: the tidy table of the experiments at hand; a claim whose experiment is not in it is not tested.
        features: the features in two dimensions, with their distances.
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
        contrasts = list(claim.contrasts(Inputs(table, features)))
        verdicts = [contrast.verdict for contrast in contrasts]
        adjusted = holm([contrast.difference.p_value for contrast in contrasts])
        overall = _mean_over(contrasts)
        claims.append(
            {
                "name": claim.name,
                "claim": claim.text,
                "figures": ", ".join(claim.figures),
                "verdict": verdict_of(verdicts, adjusted),
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

    A p value that is not a number belongs to differences that are all equal, and adds nothing to the interval.

    Example:
        >>> verdict_of(["supports", "undecided"], [0.01, 0.4]), verdict_of(["supports", "undecided"], [0.07, 0.4])
        ('holds in part', 'does not hold')
    """
    if all(verdict == NO_INTERVAL for verdict in verdicts):
        return NOT_TESTED
    if all(verdict in (SUPPORTS, NO_INTERVAL) for verdict in verdicts):
        return HOLDS
    clear = any(verdict == SUPPORTS and not p >= 0.05 for verdict, p in zip(verdicts, p_holm, strict=True))
    return IN_PART if clear else DOES_NOT_HOLD


_DIFFERENCE_COLUMNS = [
    *("name", "dataset", "setting", "what", "difference", "low", "high"),
    *("p", "p_holm", "pairs", "margin", "unit", "verdict"),
]


def _row(claim: Claim, contrast: Contrast, p_holm: float) -> dict[str, object]:
    difference = contrast.difference
    return {
        "name": claim.name,
        "dataset": contrast.dataset,
        "setting": contrast.setting,
        "what": contrast.what,
        "difference": difference.mean,
        "low": difference.low,
        "high": difference.high,
        "p": difference.p_value,
        "p_holm": p_holm,
        "pairs": difference.count,
        "margin": contrast.margin,
        "unit": claim.unit,
        "verdict": contrast.verdict,
    }


def _mean_over(contrasts: Sequence[Contrast]) -> Interval:
    """Average the differences of each seed that has all of them, and take the interval over seeds."""
    if not contrasts:
        return Interval(math.nan, math.nan, math.nan, 0)
    seeds = pd.concat([contrast.by_seed for contrast in contrasts], axis=1).dropna().mean(axis=1)
    return mean_interval(seeds.to_numpy()) if len(seeds) else Interval(math.nan, math.nan, math.nan, 0)


def _contrast(
    dataset: str, setting: str, what: str, ours: pd.Series, theirs: pd.Series, margin: float = 0.0
) -> Iterator[Contrast]:
    difference = difference_of(ours, theirs)
    if margin:
        difference = replace(difference, p_value=difference_of(ours + margin, theirs).p_value)
    if difference.count:
        yield Contrast(dataset, setting, what, difference, (ours - theirs).dropna().rename(what), margin)


def _between(experiment: str, *pairs: tuple[str, str], symbol: str = "") -> Callable[[Inputs], Iterator[Contrast]]:
    """Compare methods in every dataset, setting and level of an experiment, whose levels are called `symbol`."""

    def contrasts(inputs: Inputs) -> Iterator[Contrast]:
        table = inputs.table[inputs.table["experiment"] == experiment]
        final = final_accuracy(table, [method for pair in pairs for method in pair])
        for _, rows in final.groupby(["dataset", "setting", "level"], dropna=False):
            dataset, setting, level = rows[["dataset", "setting", "level"]].iloc[0]
            label = f"{symbol} {level:g}" if symbol and not math.isnan(level) else str(setting)
            for ours, theirs in pairs:
                what = f"{look(ours).label} minus {look(theirs).label}"
                values, base = by_seed(rows, method=ours), by_seed(rows, method=theirs)
                yield from _contrast(str(dataset), label, what, values, base)

    return contrasts


def _improves(inputs: Inputs) -> Iterator[Contrast]:
    yield from _between("comparison", ("dmml-kd-tb", "dmml"))(inputs)
    yield from _between("balance", ("dmml-kd-tb", "dmml"), symbol="energy budget")(inputs)


def _along(
    experiment: str, method: str, rises: bool, symbol: str, setting: str = "", margin: float = 0.0
) -> Callable[[Inputs], Iterator[Contrast]]:
    """Compare a method at the two ends of an experiment's levels: what the easy end has more than the hard one.

    Args:
        experiment: its name.
        method: whose accuracy is compared.
        rises: whether the highest level is the easy one.
        symbol: what a level is called.
        setting: the setting whose levels are compared; empty takes all rows.
        margin: see `Contrast`; with one, the hard end minus the easy one is judged against it.
    """

    def contrasts(inputs: Inputs) -> Iterator[Contrast]:
        for dataset, rows, easy, hard in _ends(inputs, experiment, [method], rises, setting):
            own = [by_seed(rows, method=method, level=level) for level in (easy, hard)]
            order = (1, 0) if margin else (0, 1)
            levels = (easy, hard)
            what = f"{look(method).label} at {symbol} {levels[order[0]]:g} minus at {levels[order[1]]:g}"
            yield from _contrast(dataset, "", what, own[order[0]], own[order[1]], margin)

    return contrasts


def _ends(
    inputs: Inputs, experiment: str, methods: Sequence[str], rises: bool, setting: str = ""
) -> Iterator[tuple[str, pd.DataFrame, float, float]]:
    """Yield each dataset's final accuracies with its easiest and its hardest level, where these differ."""
    final = final_accuracy(inputs.table[inputs.table["experiment"] == experiment], methods)
    if setting:
        final = final[final["setting"] == setting]
    for dataset, rows in final.groupby("dataset"):
        levels = sorted(rows["level"].dropna().unique(), reverse=rises)
        if len(levels) > 1:
            yield str(dataset), rows, float(levels[0]), float(levels[-1])


def _narrows_non_iid(inputs: Inputs) -> Iterator[Contrast]:
    for dataset, rows, easy, hard in _ends(inputs, "non_iid", ["dmml", "dmml-kd"], rises=True):
        gains = [
            by_seed(rows, method="dmml-kd", level=level) - by_seed(rows, method="dmml", level=level)
            for level in (hard, easy)
        ]
        what = f"gain of DMML-KD over DMML at alpha {hard:g} minus its gain at {easy:g}"
        yield from _contrast(dataset, "", what, gains[0].dropna(), gains[1].dropna())


def _helps_missing(inputs: Inputs) -> Iterator[Contrast]:
    for dataset, rows, _, hard in _ends(inputs, "missing", ["dmml", "dmml-kd"], rises=False):
        ours, theirs = (by_seed(rows, method=method, level=hard) for method in ("dmml-kd", "dmml"))
        yield from _contrast(dataset, f"missing rate {hard:g}", "DMML-KD minus DMML", ours, theirs)


def _most_where_missing(inputs: Inputs) -> Iterator[Contrast]:
    gains = measures.gain_by_held(inputs.table[inputs.table["experiment"] == "missing"])
    for dataset, rows in gains.groupby("dataset"):
        means = rows.groupby(["level", "seed", "complete"], dropna=False)["gain"].mean().unstack("complete")
        if {True, False} <= set(means.columns):
            both = means.dropna().groupby("seed").mean()  # levels where a seed has devices of both kinds
            what = "gain of devices that lack a modality minus gain of the others, within missing rates"
            yield from _contrast(str(dataset), "", what, both[False], both[True])


def _compete(inputs: Inputs) -> Iterator[Contrast]:
    for dataset, gaps, modality in _gaps(inputs):
        rows = gaps[(gaps["method"] == "dmml") & (gaps["modality"] == modality)]
        what = f"probe of {modality} trained alone minus probe after joint training by DMML"
        yield from _contrast(dataset, modality, what, by_seed(rows, "alone"), by_seed(rows, "joint"))


def _balance_lessens(inputs: Inputs) -> Iterator[Contrast]:
    for dataset, gaps, modality in _gaps(inputs):
        own = gaps[gaps["modality"] == modality]
        for method, reference in (("dmml-tb", "dmml"), ("dmml-kd-tb", "dmml-kd")):
            what = f"under-training gap of {look(reference).label} minus that of {look(method).label}"
            before, after = (by_seed(own, "gap", method=name) for name in (reference, method))
            yield from _contrast(dataset, modality, what, before, after)


def _gaps(inputs: Inputs) -> Iterator[tuple[str, pd.DataFrame, str]]:
    """Yield each dataset's under-training gaps and its slowest modality."""
    table = inputs.table[inputs.table["experiment"] == "imbalance"]
    gaps = measures.undertraining_gap(table)
    for dataset, modality in measures.slowest_modality(table).items():
        yield dataset, gaps[gaps["dataset"] == dataset], modality


def _one_distribution(inputs: Inputs) -> Iterator[Contrast]:
    if inputs.features is None or inputs.features.empty:
        return
    distances = measures.feature_distance(inputs.features)
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
