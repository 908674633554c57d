from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from rows import finals, table_of
from scipy import stats
from synthetic import make_features

from dmmlkd_ext.experiments.statistics import PairedDifference
from paper_figures.collect.inputs import Results
from paper_figures.judge import claims
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


def test_a_claim_holds_if_every_interval_lies_above_zero() -> None:
    claim, differences = judged("improves", table_of(comparison(GAINS) + comparison(GAINS, "mfeat")))
    assert (claim["verdict"], claim["supporting"], claim["contradicting"]) == (claims.HOLDS, 2, 0)
    assert claim["mean"] == pytest.approx(0.11)
    half = stats.t.ppf(0.975, 2) * stats.sem(GAINS)
    assert (claim["low"], claim["high"]) == (pytest.approx(0.11 - half), pytest.approx(0.11 + half))
    assert differences["p_holm"].tolist() == pytest.approx(2 * differences["p"])
    assert differences["verdict"].tolist() == [claims.SUPPORTS] * 2


def test_a_claim_holds_in_part_or_not_at_all() -> None:
    noise = (0.1, -0.1, 0.02)
    claim, _ = judged("improves", table_of(comparison(GAINS) + comparison(noise, "mfeat")))
    assert claim["verdict"] == claims.IN_PART
    claim, _ = judged("improves", table_of(comparison(noise)))
    assert (claim["verdict"], claim["undecided"]) == (claims.DOES_NOT_HOLD, 1)
    claim, _ = judged("improves", table_of(comparison(tuple(-gain for gain in GAINS))))
    assert (claim["verdict"], claim["contradicting"]) == (claims.DOES_NOT_HOLD, 1)


def test_one_lucky_interval_of_many_is_not_enough() -> None:
    lucky = (0.1, 0.2, 0.15)  # its interval is above zero, and its p is 0.036
    noise = [comparison((0.1, -0.1, 0.02), name) for name in ("mfeat", "avdigits")]
    alone, _ = judged("improves", table_of(comparison(lucky)))
    assert alone["verdict"] == claims.HOLDS
    among, _ = judged("improves", table_of(sum(noise, comparison(lucky))))
    assert (among["verdict"], among["supporting"]) == (claims.DOES_NOT_HOLD, 1)


def test_too_few_seeds_give_a_direction_and_no_verdict() -> None:
    down, five = tuple(-gain for gain in GAINS), (*GAINS, 0.13, 0.1)
    for rows, verdict in (
        (comparison(GAINS), "too few seeds, in favour"),
        (comparison(down), "too few seeds, against"),
        (comparison(GAINS) + comparison(down, "mfeat"), "too few seeds, pointing both ways"),
        (comparison(five) + comparison(five[:4], "mfeat"), "too few seeds, in favour"),
        (comparison(five), claims.HOLDS),
        (comparison((0.1,)), claims.NOT_TESTED),
    ):
        assert judged("improves", table_of(rows))[0]["verdict"] == verdict
    lost = {("dmml-kd", seed, level): 0.8 - 0.02 * level for seed in range(3) for level in (0.0, 1.0)}
    claim, _ = judged("gentle", table_of(finals(lost, experiment="topology", setting="link loss")))
    assert claim["verdict"] == "too few seeds, in favour"  # a loss within the margin


def test_what_has_no_interval_is_not_tested() -> None:
    claim, differences = judged("improves", table_of(comparison((0.1,))))
    assert (claim["verdict"], len(differences)) == (claims.NOT_TESTED, 1)
    claim, differences = judged("non-iid hurts", table_of(comparison(GAINS)))
    assert (claim["verdict"], len(differences)) == (claims.NOT_TESTED, 0)
    results = Results(table_of(comparison(GAINS)))
    _, sections = table_claims.caption(results, *claims.judge(results, names=["non-iid hurts"]))
    assert sections == {"Every difference": ["- Non-IID data hurt DMML: **not tested**."]}


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
    assert claim["verdict"] == claims.HOLDS
    assert differences["what"].item() == "DMML at alpha 10 minus at 0.1"
    assert claim["mean"] == pytest.approx(0.3)
    claim, _ = judged("non-iid narrowed", table)
    assert claim["mean"] == pytest.approx(0.15)
    assert claim["verdict"] == claims.HOLDS


def test_missing_modalities_hurt_where_the_highest_rate_is_worst() -> None:
    table = over_levels("missing", {0.0: (0.8, 0.8), 0.8: (0.5, 0.6)})
    claim, _ = judged("missing hurts", table)
    assert claim["mean"] == pytest.approx(0.3)
    claim, differences = judged("missing helped", table)
    assert differences["setting"].item() == "missing rate 0.8"
    assert differences["difference"].item() == pytest.approx(0.1, abs=1e-3)


def test_degradation_is_gentle_within_the_margin() -> None:
    for lost, verdict in ((0.02, claims.HOLDS), (0.2, claims.DOES_NOT_HOLD)):
        table = over_levels("topology", {0.0: (0.8, 0.8), 0.5: (0.8, 0.8 - lost)}, "link loss")
        claim, differences = judged("gentle", table)
        assert claim["verdict"] == verdict
        assert differences["difference"].item() == pytest.approx(-lost)
        assert differences["margin"].item() == claims.GENTLE


def test_a_difference_is_undecided_where_its_interval_holds_the_margin() -> None:
    def contrast(low: float, high: float) -> claims.Contrast:
        found = PairedDifference((low + high) / 2, low, high, 5, 0.01)
        return claims.Contrast("watch", "", "hard minus easy", found, pd.Series(dtype=float), margin=0.05)

    assert contrast(-0.09, -0.03).verdict == claims.UNDECIDED
    assert contrast(-0.04, -0.02).verdict == claims.SUPPORTS
    assert contrast(-0.09, -0.06).verdict == claims.CONTRADICTS


def test_a_balanced_method_is_judged_by_the_method_that_it_balances() -> None:
    final = {"dmml": 0.5, "dmml-tb": 0.6, "dmml-kd": 0.7, "dmml-kd-tb": 0.72}
    values = {(method, seed, 0.3): value + 0.001 * seed**2 for method, value in final.items() for seed in range(3)}
    _, differences = judged("energy", table_of(finals(values, experiment="balance")))
    assert differences.set_index("what")["difference"].round(6).to_dict() == {
        "DMML + balance minus DMML": 0.1,
        "DMML-KD + balance minus DMML-KD": 0.02,
    }
    probes = {"dmml": 0.5, "dmml-tb": 0.6, "dmml-kd": 0.55, "dmml-kd-tb": 0.75, "unimodal:audio": 0.8}
    rows = []
    for method, probe in probes.items():
        for seed in range(3):
            about = {"experiment": "imbalance", "method": method, "seed": seed}
            rows.append({**about, "metric": "probe_accuracy", "part": "audio", "device": 0, "value": probe})
            for part, speed in (("audio", 0.5), ("image", 1.5)):
                rows.append({**about, "metric": "balance_metric", "part": part, "value": speed})
    _, differences = judged("balance", table_of(rows))
    assert differences.set_index("what")["difference"].round(6).to_dict() == {
        "under-training gap of DMML minus that of DMML + balance": 0.1,
        "under-training gap of DMML-KD minus that of DMML-KD + balance": 0.2,
    }


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
    assert claim["verdict"] == claims.HOLDS
    assert claim["mean"] == pytest.approx(0.06)


def test_balance_is_judged_by_the_slow_modality() -> None:
    rows = []
    for seed, noise in enumerate((0.0, 0.01, 0.03)):
        for method, audio, image in (
            ("dmml", 0.5 - noise, 0.9),
            ("dmml-tb", 0.6, 0.9),
            ("unimodal:audio", 0.8, 0.0),
            ("unimodal:image", 0.0, 0.9),
        ):
            about = {"experiment": "imbalance", "method": method, "seed": seed}
            for part, value, speed in (("audio", audio, 0.5), ("image", image, 1.5)):
                rows.append({**about, "metric": "probe_accuracy", "part": part, "device": 0, "value": value})
                rows.append({**about, "metric": "balance_metric", "part": part, "value": speed})
    claim, differences = judged("compete", table_of(rows))
    assert claim["verdict"] == claims.HOLDS
    assert differences["setting"].item() == "audio"
    assert claim["mean"] == pytest.approx(0.3 + 0.04 / 3)
    claim, _ = judged("balance", table_of(rows))
    assert claim["mean"] == pytest.approx(0.1 + 0.04 / 3)


def test_the_generator_is_judged_by_the_distance_of_devices() -> None:
    claim, differences = judged("one distribution", table_of(comparison(GAINS)), make_features())
    assert claim["verdict"] == claims.HOLDS
    assert claim["unit"] == "distance"
    assert differences["dataset"].tolist() == ["avdigits", "mfeat"]
    line = table_claims.describe_difference(differences.to_dict("records")[0])
    assert line.startswith("avdigits: distance of devices' class means without the generator minus with it +1.")
    assert "points" not in line


def test_every_claim_is_told_and_its_figures_are_there() -> None:
    from paper_figures.pipeline import MODULES

    found, _ = claims.judge(Results(table_of(comparison(GAINS))))
    assert found["name"].tolist() == [claim.name for claim in claims.CLAIMS]
    notes = (Path(claims.__file__).parents[1] / "REPRODUCTION.md").read_text()
    for claim in claims.CLAIMS:
        assert f"| {claim.text} | {', '.join(f'`{figure}`' for figure in claim.figures)} |" in notes
        assert set(claim.figures) <= set(MODULES)
