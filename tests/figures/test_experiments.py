from __future__ import annotations

import dataclasses

import pytest

from dmmlkd_ext.experiments.config.tuned import Choice, Trial, by_key
from dmmlkd_ext.experiments.show.labels import REFERENCE_METHOD
from dmmlkd_ext.experiments.statistics import LEAST_SEEDS
from dmmlkd_ext.training.config import TrainingConfig
from dmmlkd_ext.training.methods import METHODS
from paper_figures.judge.metrics import CHOOSING, CONFIRMING
from paper_figures.plan.experiments import ALONE, CONFIRMED, EXPERIMENTS, METRICS, PROFILES, Case, configure, make_cases
from paper_figures.plan.profiles import Profile, Scope
from paper_figures.plan.search import SEEDS as TUNING_SEEDS

WHOLE = Profile("whole", rounds=3, evaluate_every=1, scopes={name: (Scope((0,)),) for name in EXPERIMENTS})


def everything(profile: Profile) -> dict[str, list[Case]]:
    return {name: make_cases(name, profile, {}) for name in EXPERIMENTS}


def place(case: Case) -> tuple:
    return case.config.data.dataset, case.setting, case.level, case.config.seed


@pytest.mark.parametrize("name", PROFILES)
def test_every_profile_has_every_experiment_with_repetitions_for_intervals(name: str) -> None:
    cases = everything(PROFILES[name])
    for experiment, group in cases.items():
        assert group, experiment
        assert experiment == "features" or len({case.config.seed for case in group}) >= 2
        assert not {case.config.seed for case in group} & set(TUNING_SEEDS)
    main = {(case.config.method.name, *place(case)) for case in cases["comparison"]}
    assert len(main) == len(cases["comparison"])


def test_the_profiles_are_no_larger_than_their_time_allows() -> None:
    distinct = {
        name: len({case.config for group in everything(profile).values() for case in group})
        for name, profile in PROFILES.items()
    }
    assert distinct["smoke"] <= 70
    assert distinct["quick"] <= 350
    assert distinct["full"] <= 2700
    for experiment in EXPERIMENTS:
        seeds = {case.config.seed for case in make_cases(experiment, PROFILES["full"], {})}
        few = experiment in ("regimes", "unseen")
        assert seeds == ({0, 1} if few else set(CHOOSING)) | (set(CONFIRMING) if experiment == "metrics" else set())


def test_a_metric_is_confirmed_on_seeds_that_no_other_run_has() -> None:
    cases = make_cases("metrics", PROFILES["full"], {})
    assert not set(CHOOSING) & set(CONFIRMING)
    of_metrics = {setting: {case.config.seed for case in cases if case.setting == setting} for setting in METRICS}
    assert all(set(CHOOSING) <= seeds for seeds in of_metrics.values())
    confirmed = {setting for setting, seeds in of_metrics.items() if seeds & set(CONFIRMING)}
    assert confirmed == set(CONFIRMED)
    assert of_metrics[CONFIRMED[0]] >= set(CONFIRMING)
    assert METHODS["dmml-tb"].balance.metric in {METRICS[setting][0] for setting in confirmed}
    reversed_ones = {case.setting for case in cases if case.config.method.name.endswith("reversed")}
    assert reversed_ones == {CONFIRMED[0]}


def test_metrics_differ_in_the_metric_alone() -> None:
    cases = [case.config for case in make_cases("metrics", WHOLE, {}) if case.config.data.dataset == "watch"]
    by_policy: dict[str, set] = {}
    for config in cases:
        balance = dataclasses.replace(config.method.balance, metric="variation", exponent=3.0)
        method = dataclasses.replace(config.method, balance=balance)
        by_policy.setdefault(config.method.name, set()).add(dataclasses.replace(config, method=method))
    assert {name: len(configs) for name, configs in by_policy.items()} == dict.fromkeys(by_policy, 1)
    assert {config.method.balance.policy for config in cases} == {"uniform", "balanced", "random", "reversed"}
    assert all(config.training.ranking and config.training.evaluate_every == 3 for config in cases)


def test_regimes_are_natural_ones() -> None:
    cases = {case.setting: case.config for case in make_cases("regimes", WHOLE, {})}
    assert cases["every device holds a strong and a weak view"].data.missing_rate == 0
    assert cases["a rare gyroscope, never alone"].data.lacking == "gyroscope"
    assert cases["a clean image beside noisy audio"].data.dataset == "avdigits-clean"
    unseen = [case.config for case in make_cases("unseen", WHOLE)]
    plain = TrainingConfig(rounds=3, evaluate_every=1)
    assert {config.data.dataset for config in unseen} == {"cameras"}
    assert all(dataclasses.replace(config.training, evaluate_every=1) == plain for config in unseen)
    assert {config.data.dirichlet_alpha for config in unseen} == {0.5, 0.1}
    assert {config.data.missing_rate for config in unseen} == {0.6}


@pytest.mark.parametrize("experiment", EXPERIMENTS)
def test_methods_of_a_case_differ_in_the_method_alone(experiment: str) -> None:
    groups: dict[tuple, set] = {}
    for case in make_cases(experiment, WHOLE, {}):
        alike = dataclasses.replace(case.config, method=make_cases("comparison", WHOLE, {})[0].config.method)
        groups.setdefault((*place(case), case.config.topology.name), set()).add(alike)
    assert all(len(group) == 1 for group in groups.values())


@pytest.mark.parametrize("experiment", sorted(EXPERIMENTS.keys() - {"features", "sensitivity"}))
def test_every_case_has_its_reference(experiment: str) -> None:
    cases = make_cases(experiment, WHOLE, {})
    reference = {place(case) for case in cases if case.config.method.name == REFERENCE_METHOD}
    assert {place(case) for case in cases} == reference


def test_energy_is_the_wireless_one_everywhere() -> None:
    configs = [case.config for group in everything(WHOLE).values() for case in group]
    assert {config.energy.model for config in configs} == {"wireless"}
    assert {config.data.num_devices for config in configs if config.data.dataset == "avdigits"} == {10}
    assert all(config.training.local_iterations == 10 for config in configs)


def test_what_experiments_vary() -> None:
    cases = everything(WHOLE)
    assert {case.level for case in cases["balance"]} == {0.15, 0.3, 0.6}
    assert all(case.config.energy.budget_fraction == case.level for case in cases["balance"])
    assert all(case.config.data.dirichlet_alpha == case.level for case in cases["non_iid"])
    assert all(case.config.data.missing_rate == case.level for case in cases["missing"])
    axes = {(case.setting, case.level): case.config for case in cases["topology"]}
    assert axes["link loss", 0.5].failures.link_probability == 0.5
    assert axes["devices", 40.0].data.num_devices == 40
    assert len({case.config.topology.name for case in cases["topology"]}) == 8
    assert axes["devices", 20.0] == axes["link loss", 0.0]  # one run serves both
    probed = [case.config for case in cases["imbalance"]]
    assert all(config.training.probe and config.energy.budget_fraction == 0.3 for config in probed)
    assert {config.method.name for config in probed} >= {*ALONE["watch"], *ALONE["avdigits"]}
    baseline, *changed = (case.config for case in cases["sensitivity"] if case.config.data.dataset == "mfeat")
    assert len(changed) == 5
    assert len({baseline, *changed}) == 6


def test_runs_are_shared_between_experiments() -> None:
    cases = everything(WHOLE)
    runs = {name: {case.config for case in group} for name, group in cases.items()}
    assert runs["features"] <= runs["ablation"]
    for other in ("ablation", "non_iid", "missing", "topology", "sensitivity"):
        assert runs["comparison"] & runs[other]
    assert runs["balance"] & runs["imbalance"]


def test_all_of_a_seed_comes_before_the_next_one() -> None:
    seeds = [case.config.seed for case in make_cases("comparison", PROFILES["full"], {})]
    assert seeds == sorted(seeds)


def test_tuned_settings_are_taken_before_what_an_experiment_changes() -> None:
    trial = Trial(0.7, 2.0, 0.5)
    choices = by_key([Choice("mfeat", None, "dmml-kd", 0.7, 2.0, 0.5, (trial,))])
    made = [case for case in make_cases("sensitivity", WHOLE, choices) if case.config.data.dataset == "mfeat"]
    cases = {case.setting: case.config for case in made}
    assert cases["default"].training.learning_rate == 0.7
    assert cases["similarity x10"].method.losses.similarity == pytest.approx(10 * 2 * 0.03)
    assert cases["similarity x10"].method.losses.generator == pytest.approx(2 * 0.3)


def test_a_profile_with_fewer_devices_has_no_natural_split() -> None:
    point = next(EXPERIMENTS["missing"](PROFILES["smoke"]))
    assert point.dataset == "watch"
    small = configure(PROFILES["smoke"], point, 0, {})
    assert (small.data.partition, small.data.num_devices) == ("dirichlet", 6)
    assert configure(PROFILES["full"], point, 0, {}).data.partition == "natural"


def test_the_quick_profile_has_a_verdict_on_every_claim() -> None:
    """Each of its points has five seeds, and each experiment that a claim needs is there."""
    for name, scopes in PROFILES["quick"].scopes.items():
        assert all(len(scope.seeds) >= LEAST_SEEDS for scope in scopes), name
