from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rows import finals, table_of
from scipy import stats
from synthetic import make_features

from dmmlkd_ext.experiments.statistics import PairedDifference
from paper_figures.collect.inputs import Results
from paper_figures.judge import claims, verdicts
from paper_figures.tables import claims as table_claims

GAINS = (0.10, 0.12, 0.11)


@pytest.fixture(autouse=True)
def _three_seeds_are_enough(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    """The rule is the same at any number of seeds; one test alone is about too few of them."""
    if request.node.name != "test_too_few_seeds_give_a_direction_and_no_verdict":
        monkeypatch.setattr(claims, "LEAST_SEEDS", 3)


def judged(name: str, table: pd.DataFrame, features: pd.DataFrame | None = None) -> tuple[dict, pd.DataFrame]:
    found, differences = claims.judge(Results(table, features=pd.DataFrame() if features is None else features), [name])
    (claim,) = found.to_dict("records")
    return claim, differences


def comparison(gains: tuple[float, ...], dataset: str = "watch") -> list[dict]:
    values = {("dmml", seed): 0.5 for seed in range(len(gains))}
    values |= {("dmml-kd-tb", seed): 0.5 + gain for seed, gain in enumerate(gains)}
    return finals(values, dataset=dataset)


def test_a_claim_has_the_verdict_of_the_mean_over_its_differences() -> None:
    claim, differences = judged("improves", table_of(comparison(GAINS) + comparison(GAINS, "mfeat")))
    assert (claim["verdict"], claim[verdicts.HOLDS], claim[verdicts.CONTRADICTED]) == (verdicts.HOLDS, 2, 0)
    assert claim["mean"] == pytest.approx(0.11)
    half = stats.t.ppf(0.975, 2) * stats.sem(GAINS)
    assert (claim["low"], claim["high"]) == (pytest.approx(0.11 - half), pytest.approx(0.11 + half))
    assert claim["detectable"] == pytest.approx((stats.t.ppf(0.975, 2) + stats.t.ppf(0.8, 2)) * stats.sem(GAINS))
    assert differences["p_holm"].tolist() == pytest.approx(2 * differences["p"])
    assert differences["verdict"].tolist() == [verdicts.HOLDS] * 2


@pytest.mark.parametrize(
    ("gains", "verdict"),
    [
        (GAINS, verdicts.HOLDS),
        ((0.1, -0.1, 0.02), verdicts.UNDECIDED),
        (tuple(-gain for gain in GAINS), verdicts.CONTRADICTED),
        ((0.004, 0.006, 0.005), verdicts.ABSENT),  # it is there, and nobody would care
        ((-0.001, 0.001, 0.0), verdicts.ABSENT),
        ((0.009, 0.012, 0.013), verdicts.HOLDS),
    ],
)
def test_there_are_four_verdicts(gains: tuple[float, ...], verdict: str) -> None:
    claim, differences = judged("improves", table_of(comparison(gains)))
    assert claim["verdict"] == verdict
    assert claim[verdict] == 1
    assert differences["verdict"].tolist() == [verdict]


def test_differences_that_contradict_are_named_whatever_the_mean_says() -> None:
    down = tuple(-gain / 4 for gain in GAINS)
    table = table_of(comparison(GAINS) + comparison(down, "mfeat"))
    claim, differences = judged("improves", table)
    assert (claim["verdict"], claim[verdicts.HOLDS], claim[verdicts.CONTRADICTED]) == (verdicts.HOLDS, 1, 1)
    text = table_claims.describe_exceptions(claim, differences)
    assert text == "; contradicted by mfeat, default (DMML-KD + balance minus DMML, clearly)"
    lucky, _ = judged("improves", table_of(comparison((-0.1, -0.2, -0.15))))  # its p is 0.036
    noise = [comparison((0.1, -0.1, 0.02), name) for name in ("mfeat", "avdigits")]
    among, differences = judged("improves", table_of(sum(noise, comparison((-0.1, -0.2, -0.15)))))
    assert lucky[verdicts.CONTRADICTED] == among[verdicts.CONTRADICTED] == 1
    assert "clearly" not in table_claims.describe_exceptions(among, differences)


def test_too_few_seeds_give_a_direction_and_no_verdict() -> None:
    down, five = tuple(-gain for gain in GAINS), (*GAINS, 0.13, 0.1)
    for rows, verdict in (
        (comparison(GAINS), "too few seeds, in favour"),
        (comparison(down), "too few seeds, against"),
        (comparison(GAINS) + comparison(down, "mfeat"), "too few seeds, pointing both ways"),
        (comparison(five) + comparison(five[:4], "mfeat"), "too few seeds, in favour"),
        (comparison(five), verdicts.HOLDS),
        (comparison((0.1,)), verdicts.NOT_RUN),
    ):
        assert judged("improves", table_of(rows))[0]["verdict"] == verdict
    lost = {("dmml-kd", seed, level): 0.8 - 0.02 * level for seed in range(3) for level in (0.0, 1.0)}
    claim, _ = judged("gentle", table_of(finals(lost, experiment="topology", setting="link loss")))
    assert claim["verdict"] == "too few seeds, in favour"  # a loss within the margin


def test_what_has_no_interval_is_not_run() -> None:
    claim, differences = judged("improves", table_of(comparison((0.1,))))
    assert (claim["verdict"], len(differences)) == (verdicts.NOT_RUN, 1)
    claim, differences = judged("non-iid hurts", table_of(comparison(GAINS)))
    assert (claim["verdict"], len(differences)) == (verdicts.NOT_RUN, 0)
    results = Results(table_of(comparison(GAINS)))
    _, sections = table_claims.caption(results, *claims.judge(results, names=["non-iid hurts"]))
    assert sections == {"Every difference": ["- Non-IID data hurt DMML: **not run**."]}


def over_levels(experiment: str, levels: dict[float, tuple[float, float]], setting: str = "default") -> pd.DataFrame:
    rows = []
    for level, (plain, distilled) in levels.items():
        for seed, noise in enumerate((0.0, 0.01, 0.02)):
            values = {("dmml", seed, level): plain + noise, ("dmml-kd", seed, level): distilled + noise + noise**2}
            rows += finals(values, experiment=experiment, setting=setting)
    return table_of(rows)


def test_non_iid_data_hurt_where_the_least_alpha_is_worst() -> None:
    table = over_levels("non_iid", {0.1: (0.5, 0.7), 1.0: (0.9, 0.9), 10.0: (0.8, 0.85)})
    claim, differences = judged("non-iid hurts", table)
    assert claim["verdict"] == verdicts.HOLDS
    assert differences["what"].item() == "DMML at alpha 10 minus at 0.1"
    assert claim["mean"] == pytest.approx(0.3)
    claim, _ = judged("non-iid narrowed", table)
    assert claim["mean"] == pytest.approx(0.15)
    assert claim["verdict"] == verdicts.HOLDS


def test_missing_modalities_hurt_where_the_highest_rate_is_worst() -> None:
    table = over_levels("missing", {0.0: (0.8, 0.8), 0.8: (0.5, 0.6)})
    claim, _ = judged("missing hurts", table)
    assert claim["mean"] == pytest.approx(0.3)
    claim, differences = judged("missing helped", table)
    assert differences["setting"].item() == "missing rate 0.8"
    assert differences["difference"].item() == pytest.approx(0.1, abs=1e-3)


def test_degradation_is_gentle_within_the_margin() -> None:
    for lost, verdict in ((0.02, verdicts.HOLDS), (0.2, verdicts.CONTRADICTED)):
        table = over_levels("topology", {0.0: (0.8, 0.8), 0.5: (0.8, 0.8 - lost)}, "link loss")
        claim, differences = judged("gentle", table)
        assert claim["verdict"] == verdict
        assert differences["difference"].item() == pytest.approx(-lost)
        assert differences["margin"].item() == claims.GENTLE


def test_a_difference_is_undecided_where_its_interval_holds_the_margin() -> None:
    def contrast(low: float, high: float) -> claims.Contrast:
        found = PairedDifference((low + high) / 2, low, high, 5, 0.01)
        return claims.Contrast("watch", "", "hard minus easy", found, pd.Series(dtype=float), margin=0.05)

    assert contrast(-0.09, -0.03).verdict == verdicts.UNDECIDED
    assert contrast(-0.04, -0.02).verdict == verdicts.HOLDS
    assert contrast(-0.09, -0.06).verdict == verdicts.CONTRADICTED


BALANCED = {"dmml": 0.5, "dmml-tb": 0.6, "dmml-kd": 0.7, "dmml-kd-tb": 0.72}


def budget_table(final: dict[str, float], level: float = 0.3) -> pd.DataFrame:
    values = {(method, seed, level): value + 0.001 * seed**2 for method, value in final.items() for seed in range(3)}
    return table_of(finals(values, experiment="balance"))


def test_the_optimum_must_beat_each_control() -> None:
    claim, differences = judged("energy", budget_table(BALANCED))
    assert (claim["verdict"], claim["lacking"]) == (verdicts.NOT_RUN, "random, reversed")
    assert differences.set_index("what")["difference"].round(6).to_dict() == {
        "DMML + balance minus DMML": 0.1,
        "DMML-KD + balance minus DMML-KD": 0.02,
    }
    controls = {"dmml-random": 0.5, "dmml-reversed": 0.4, "dmml-kd-random": 0.6, "dmml-kd-reversed": 0.6}
    claim, differences = judged("energy", budget_table(BALANCED | controls))
    assert (claim["verdict"], claim["lacking"]) == (verdicts.HOLDS, "")
    assert differences["part"].value_counts().to_dict() == {"uniform": 2, "random": 2, "reversed": 2}
    # Above two of three is not enough, and one that is below refutes the claim, whatever else was run.
    assert judged("energy", budget_table(BALANCED | controls | {"dmml-random": 0.6, "dmml-kd-random": 0.72}))[0][
        "verdict"
    ] == (verdicts.ABSENT)
    better = {"dmml-random": 0.7, "dmml-kd-random": 0.8}
    assert judged("energy", budget_table(BALANCED | better))[0]["verdict"] == verdicts.CONTRADICTED


def test_methods_are_compared_at_equal_joules_where_they_had_them() -> None:
    table = budget_table(BALANCED)
    assert judged("equal joules", table)[0]["verdict"] == verdicts.NOT_RUN
    settings = pd.DataFrame({"run": table["run"].astype(str), "option": "energy.budget_basis", "value": "dmml"})
    found, differences = claims.judge(Results(table, settings=settings), ["equal joules"])
    assert found["verdict"].tolist() == [verdicts.HOLDS]
    assert differences["difference"].round(6).tolist() == [0.22]
    other = settings.assign(value="method")
    assert claims.judge(Results(table, settings=other), ["equal joules"])[0]["verdict"].tolist() == [verdicts.NOT_RUN]


def gain_rows(experiment: str, gains: dict[int, float], level: float = 0.2) -> list[dict]:
    """Return runs of one missing rate: modalities that a device holds -> what it gains, a little more each seed."""
    rows = []
    for seed in range(3):
        for device, (held, gain) in enumerate(gains.items()):
            for method, value in (("dmml", 0.1), ("dmml-kd", 0.1 + gain + 0.001 * seed * held)):
                about = {"experiment": experiment, "method": method, "level": level, "seed": seed, "device": device}
                about["run"] = f"{method}-{seed}-{level}"  # a run may serve several experiments
                rows.append({**about, "value": value})
                rows.append({**about, "metric": "modalities_held", "part": "", "value": held})
    return rows


def test_gains_of_other_experiments_are_not_counted() -> None:
    rows = gain_rows("missing", {1: 0.3, 2: 0.1})
    alone, _ = judged("missing most", table_of(rows))
    among, _ = judged("missing most", table_of(rows + gain_rows("topology", {1: 0.0, 2: 0.6}, level=0.8)))
    assert alone["mean"] == pytest.approx(0.199)
    assert among == alone


def test_the_gain_of_incomplete_devices_is_compared_within_a_missing_rate() -> None:
    rows = []
    for level in (0.2, 0.8):
        for seed, more in enumerate((0.05, 0.06, 0.07)):
            for device, held in ((0, 1), (1, 2)):
                for method in ("dmml", "dmml-kd"):
                    gain = (level + (more if held == 1 else 0.0)) if method == "dmml-kd" else 0.0
                    about = {"experiment": "missing", "method": method, "level": level, "seed": seed, "device": device}
                    rows.append({**about, "value": gain})
                    rows.append({**about, "metric": "modalities_held", "part": "", "value": held})
    claim, _ = judged("missing most", table_of(rows))
    assert claim["verdict"] == verdicts.HOLDS
    assert claim["mean"] == pytest.approx(0.06)


def lone_rows(accuracy: dict[str, tuple[float, float]]) -> list[dict]:
    """Return runs of three devices: with image, with audio, with both; method -> accuracy of the first two."""
    rows = []
    for method, lone in accuracy.items():
        for seed, noise in enumerate((0.0, 0.01, 0.03)):
            about = {"experiment": "imbalance", "method": method, "seed": seed}
            alone = method.removeprefix("unimodal:") if method.startswith("unimodal") else None
            for device, held in enumerate((("image",), ("audio",), ("image", "audio"))):
                kept = [name for name in held if alone in (None, name)]
                value = lone[device] + (noise if alone else 0.0) if device < 2 else 0.9
                rows.append({**about, "device": device, "value": value})
                rows.append({**about, "device": device, "metric": "modalities_held", "part": "", "value": len(kept)})
                rows += [
                    {**about, "device": device, "metric": "modality_accuracy", "part": name, "value": 0.3}
                    for name in kept
                ]
    return rows


def test_competition_is_judged_by_the_devices_that_hold_one_modality() -> None:
    accuracy = {"dmml": (0.5, 0.3), "dmml-tb": (0.6, 0.5), "dmml-kd": (0.7, 0.7), "dmml-kd-tb": (0.7, 0.7)}
    # Of a run with images alone, the device with audio only guesses: it does not count.
    table = table_of(lone_rows({**accuracy, "unimodal:image": (0.6, 0.1), "unimodal:audio": (0.1, 0.8)}))
    claim, differences = judged("compete", table)
    assert claim["verdict"] == verdicts.HOLDS
    found = differences.set_index("setting")["difference"]
    assert found["audio"] == pytest.approx(0.5 + 0.04 / 3)
    assert found["image"] == pytest.approx(0.1 + 0.04 / 3)
    claim, differences = judged("balance", table)
    assert differences["difference"].round(6).tolist() == [0.2, 0.0, 0.1, 0.0]
    assert claim["mean"] == pytest.approx(0.075)


def test_the_generator_is_judged_by_the_ratio_of_distances() -> None:
    features = make_features()
    assert judged("one distribution", table_of(comparison(GAINS)), features)[0]["verdict"] == verdicts.NOT_RUN
    measured = features[features["embedding"] == "distance"]
    ratios = pd.concat([features, measured.assign(embedding="ratio", x=0.1 * measured["x"])])
    claim, differences = judged("one distribution", table_of(comparison(GAINS)), ratios)
    assert claim["verdict"] == verdicts.HOLDS
    assert claim["unit"] == "ratio"
    assert differences["dataset"].tolist() == ["avdigits", "mfeat"]
    line = table_claims.describe_difference(differences.to_dict("records")[0])
    assert line.startswith("avdigits: distance of devices' class means over that of classes, without the generator")
    assert "points" not in line


def test_the_generator_helps_where_labels_are_skewed() -> None:
    values = {("dmml-kd", seed): 0.6 for seed in range(3)} | {("dmml-kd-no-generator", seed): 0.5 for seed in range(3)}
    rows = finals(values, experiment="ablation", setting="moderate")
    assert judged("generator helps", table_of(rows))[0]["verdict"] == verdicts.NOT_RUN
    rows += finals(values, experiment="ablation", setting="severe")
    assert judged("generator helps", table_of(rows))[0][verdicts.HOLDS] == 1


def test_every_claim_is_told_and_its_figures_are_there() -> None:
    from paper_figures.pipeline import MODULES

    found, _ = claims.judge(Results(table_of(comparison(GAINS))))
    assert found["name"].tolist() == [claim.name for claim in claims.CLAIMS]
    notes = (Path(claims.__file__).parents[1] / "REPRODUCTION.md").read_text()
    for claim in claims.CLAIMS:
        assert f"| {claim.text} | {', '.join(f'`{figure}`' for figure in claim.figures)} |" in notes
        assert set(claim.figures) <= set(MODULES)
