"""The claims of the paper's abstract, each as paired differences that would support it, and a verdict by a fixed rule.

`table_claims` alone shows the verdicts, so that each claim has one.

What is claimed is the abstract's [P], in our words; which differences test it is our choice [C]. The claims "equal
joules", "missing most", "generator helps" and "gentle" go further than the abstract and are ours.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import pandas as pd

from dmmlkd_ext.experiments.statistics import Interval, PairedDifference, holm, mean_interval
from dmmlkd_ext.training.methods import UNIMODAL
from paper_figures.collect.inputs import Results
from paper_figures.judge import measures, verdicts
from paper_figures.judge.comparisons import NOTHING, difference_of
from paper_figures.judge.transforms import by_seed, final_accuracy
from paper_figures.plan.labels import label

CONTROLS = {"uniform": "", "random": "-random", "reversed": "-reversed"}
"""Control of the balance -> how the names of its methods end."""
GENTLE = 0.05
"""The most accuracy that the highest probability of link loss may cost, for the degradation to be called gentle."""


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
    part: str = ""
    """The part of the claim that it tests, if the claim has several."""

    @property
    def verdict(self) -> str:
        """What the interval says of the claim."""
        return verdicts.verdict_on(self.difference, self.margin)


@dataclass(frozen=True)
class Claim:
    """One claim, the figure that shows it, and the differences that test it."""

    name: str
    text: str
    figures: tuple[str, ...]
    contrasts: Callable[[Results], Iterator[Contrast]]
    unit: str = "points"
    parts: tuple[str, ...] = ("",)
    """What must all be true for the claim to be."""


def judge(results: Results, names: Sequence[str] = ()) -> tuple[pd.DataFrame, pd.DataFrame]:
    """Judge claims by results.

    Args:
        results: of the experiments at hand; a claim whose experiment is not among them is not run.
        names: the claims to judge; empty judges all.

    Returns:
        Claims: name, claim, figures, verdict, the numbers of differences with each verdict, lacking (parts without
        runs), mean, low, high (of the mean over the differences, over seeds), detectable, unit, seeds. Differences:
        name, part, dataset, setting, what, difference, low, high, p, p_holm (adjusted within the claim), pairs, margin,
        detectable, unit, verdict.
    """
    claims, differences = [], []
    for claim in CLAIMS:
        if names and claim.name not in names:
            continue
        contrasts = list(claim.contrasts(results))
        found = [contrast.verdict for contrast in contrasts]
        overall = _mean_over(contrasts)
        claims.append(
            {
                "name": claim.name,
                "claim": claim.text,
                "figures": ", ".join(claim.figures),
                "verdict": decide(claim, contrasts),
                **{verdict: found.count(verdict) for verdict in verdicts.VERDICTS},
                "lacking": ", ".join(part for part in claim.parts if not _of_part(contrasts, part)),
                "mean": overall.mean,
                "low": overall.low,
                "high": overall.high,
                "detectable": verdicts.detectable(overall),
                "unit": claim.unit,
                "seeds": overall.count,
            }
        )
        adjusted = holm([contrast.difference.p_value for contrast in contrasts])
        differences += [_row(claim, contrast, p_holm) for contrast, p_holm in zip(contrasts, adjusted, strict=True)]
    return pd.DataFrame(claims), pd.DataFrame(differences, columns=_DIFFERENCE_COLUMNS)


def decide(claim: Claim, contrasts: Sequence[Contrast]) -> str:
    """Return the verdict on a claim by the rule of `paper_figures.judge.verdicts`."""
    tested = [contrast for contrast in contrasts if contrast.verdict != verdicts.NO_INTERVAL]
    if not tested:
        return verdicts.NOT_RUN
    if min(contrast.difference.count for contrast in tested) < verdicts.LEAST_SEEDS:
        return verdicts.direction(contrast.difference.mean + contrast.margin for contrast in tested)
    parts = {part: _of_part(tested, part) for part in claim.parts}
    return verdicts.verdict_of_parts(
        {
            part: verdicts.verdict_on(_mean_over(chosen), chosen[0].margin) if chosen else ""
            for part, chosen in parts.items()
        }
    )


def _of_part(contrasts: Sequence[Contrast], part: str) -> list[Contrast]:
    return [contrast for contrast in contrasts if contrast.part == part]


def is_clear(verdict: str, p_holm: float) -> bool:
    """Return whether a difference contradicts its claim also after the adjustment.

    A p value that is not a number belongs to differences that are all equal, and adds nothing to the interval.
    """
    return verdict == verdicts.CONTRADICTED and not p_holm >= 0.05


_DIFFERENCE_COLUMNS = [
    *("name", "part", "dataset", "setting", "what", "difference", "low", "high"),
    *("p", "p_holm", "pairs", "margin", "detectable", "unit", "verdict"),
]


def _row(claim: Claim, contrast: Contrast, p_holm: float) -> dict[str, object]:
    found = contrast.difference
    difference = (found.mean, found.low, found.high, found.p_value, p_holm, found.count)
    place = (claim.name, contrast.part, contrast.dataset, contrast.setting, contrast.what)
    row = (*place, *difference, contrast.margin, verdicts.detectable(found), claim.unit, contrast.verdict)
    return dict(zip(_DIFFERENCE_COLUMNS, row, strict=True))


def _mean_over(contrasts: Sequence[Contrast]) -> Interval:
    """Average the differences of each seed that has all of them, and take the interval over seeds."""
    columns = {place: contrast.by_seed for place, contrast in enumerate(contrasts)}
    seeds = pd.DataFrame(columns, dtype=float).dropna().mean(axis=1)
    return mean_interval(seeds.to_numpy()) if len(seeds) else NOTHING


def _contrast(
    dataset: str, setting: str, what: str, ours: pd.Series, theirs: pd.Series, margin: float = 0.0, part: str = ""
) -> Iterator[Contrast]:
    difference = difference_of(ours, theirs, margin)
    if difference.count:
        yield Contrast(dataset, setting, what, difference, (ours - theirs).dropna().rename(what), margin, part)


def _between(
    experiment: str, *pairs: tuple[str, str], symbol: str = "", settings: Sequence[str] = (), part: str = ""
) -> Callable[[Results], Iterator[Contrast]]:
    """Compare methods in every dataset, setting and level of an experiment.

    Args:
        experiment: its name.
        *pairs: two methods, the first of which should be better.
        symbol: what a level is called.
        settings: the settings that are compared; empty takes all.
        part: see `Contrast`.
    """

    def contrasts(results: Results) -> Iterator[Contrast]:
        table = results.table[results.table["experiment"] == experiment]
        table = table[table["setting"].isin(list(settings))] if settings else table
        final = final_accuracy(table, [method for pair in pairs for method in pair])
        for _, rows in final.groupby(["dataset", "setting", "level"], dropna=False):
            dataset, setting, level = rows[["dataset", "setting", "level"]].iloc[0]
            place = f"{symbol} {level:g}" if symbol and not math.isnan(level) else str(setting)
            for ours, theirs in pairs:
                what = f"{label(ours)} minus {label(theirs)}"
                values, base = by_seed(rows, method=ours), by_seed(rows, method=theirs)
                yield from _contrast(str(dataset), place, what, values, base, part=part)

    return contrasts


def _at_equal_joules(results: Results) -> Iterator[Contrast]:
    runs = measures.runs_with(results.settings, "energy.budget_basis", "dmml")
    alike = replace(results, table=results.table[results.table["run"].isin(runs)])
    yield from _between("balance", ("dmml-kd-tb", "dmml"), symbol="energy budget")(alike)


def _optimized(results: Results) -> Iterator[Contrast]:
    """Compare the balance with each control at the same energy."""
    for part, suffix in CONTROLS.items():
        pairs = [(f"{method}-tb", f"{method}{suffix}") for method in ("dmml", "dmml-kd")]
        yield from _between("balance", *pairs, symbol="energy budget", part=part)(results)


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
    for dataset, modality, rows in _lone_devices(results):
        alone, joint = (by_seed(rows, "accuracy", method=method) for method in (f"{UNIMODAL}{modality}", "dmml"))
        what = f"accuracy of devices with {modality} alone: all trained for {modality} alone minus jointly by DMML"
        yield from _contrast(dataset, modality, what, alone, joint)


def _balance_lessens(results: Results) -> Iterator[Contrast]:
    for dataset, modality, rows in _lone_devices(results):
        for method, reference in (("dmml-tb", "dmml"), ("dmml-kd-tb", "dmml-kd")):
            what = f"accuracy of devices with {modality} alone: {label(method)} minus {label(reference)}"
            after, before = (by_seed(rows, "accuracy", method=name) for name in (method, reference))
            yield from _contrast(dataset, modality, what, after, before)


def _lone_devices(results: Results) -> Iterator[tuple[str, str, pd.DataFrame]]:
    """Yield the accuracies of devices that hold one modality, by dataset and modality."""
    accuracy = measures.lone_accuracy(results.table[results.table["experiment"] == "imbalance"])
    for (dataset, modality), rows in accuracy.groupby(["dataset", "modality"]):
        yield str(dataset), str(modality), rows


def _one_distribution(results: Results) -> Iterator[Contrast]:
    ratios = measures.feature_ratio(results.features)
    for dataset, rows in ratios.groupby("dataset"):
        without, guided = (by_seed(rows, "ratio", method=method) for method in ("dmml-kd-no-generator", "dmml-kd"))
        what = "distance of devices' class means over that of classes, without the generator minus with it"
        yield from _contrast(str(dataset), "", what, without, guided)


CLAIMS: tuple[Claim, ...] = (
    Claim(
        "improves",
        "DMML-KD with training balance improves DMML",
        ("figure_convergence", "table_accuracy"),
        _between("comparison", ("dmml-kd-tb", "dmml")),
    ),
    Claim(
        "equal joules",
        "DMML-KD with training balance improves DMML with the same joules",
        ("figure_iterations_energy", "table_energy"),
        _at_equal_joules,
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
        unit="ratio",
    ),
    Claim(
        "generator helps",
        "The generator improves accuracy where labels are skewed",
        ("table_ablation",),
        _between("ablation", ("dmml-kd", "dmml-kd-no-generator"), settings=("severe",)),
    ),
    Claim(
        "compete",
        "Modalities compete: devices with one modality lose by joint training",
        ("figure_imbalance",),
        _compete,
    ),
    Claim(
        "balance", "Balance gives devices with one modality some of it back", ("figure_imbalance",), _balance_lessens
    ),
    Claim(
        "energy",
        "Local iterations optimized under the remaining energy beat uniform, random and reversed cuts",
        ("figure_iterations_energy", "table_energy"),
        _optimized,
        parts=tuple(CONTROLS),
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
