from __future__ import annotations

import dataclasses
import json
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from dmmlkd_ext.experiments.config import ExperimentConfig, tuned
from dmmlkd_ext.experiments.config.own_parameter import get_own_parameter, loss_scale
from dmmlkd_ext.experiments.config.tuned import TUNED_BUDGET, TUNED_METHODS, Choice, Trial
from dmmlkd_ext.experiments.config.worlds import LEVELS, world
from dmmlkd_ext.experiments.run import run_name
from dmmlkd_ext.training.methods import METHODS
from paper_figures import tune
from paper_figures.plan import search as tuning

Judge = Callable[[ExperimentConfig], float]


class RecordedRuns:
    """Leaves the folders of runs whose validation accuracy a function of the configuration gives."""

    def __init__(self, folder: Path, judge: Judge) -> None:
        self.folder, self.judge = folder, judge
        self.steps: list[list[ExperimentConfig]] = []

    def __call__(self, configs: Sequence[ExperimentConfig]) -> None:
        self.steps.append(list(configs))
        for config in configs:
            folder = self.folder / run_name(config)
            folder.mkdir(parents=True, exist_ok=True)
            early = {"round": 1, "loss": {"total": 1.0}, "accuracy": {"validation": [1.0, 1.0], "test": [1.0, 1.0]}}
            # Test accuracies rank the other way round: who chose by them would choose the worst.
            value = self.judge(config)
            last = {"round": 2, "loss": {"total": 1.0}, "accuracy": {"validation": [value, None], "test": [-value, 0]}}
            (folder / "metrics.jsonl").write_text(json.dumps(early) + "\n" + json.dumps(last) + "\n")
            (folder / "result.json").write_text(json.dumps({"test_accuracy_mean": -value}))


def prefer(rate: float, own: float = 1.0) -> Judge:
    """Return a judge that likes a learning rate and a value of the own parameter best."""

    def judge(config: ExperimentConfig) -> float:
        value = get_own_parameter(config.method)
        far = 0.0 if value != value else abs(value - own)
        return 1.0 - abs(config.training.learning_rate - rate) - 0.01 * far

    return judge


def test_every_method_has_as_many_trials_on_as_many_runs(tmp_path: Path) -> None:
    runs = RecordedRuns(tmp_path, prefer(0.1))
    choices, failed = tuning.tune(["watch", "mfeat"], tmp_path, runs)
    assert not failed
    assert {len(choice.trials) for choice in choices.values()} == {6}
    assert {(choice.dataset, choice.budget_fraction) for choice in choices.values()} == {
        (dataset, budget) for dataset in ("watch", "mfeat") for budget in (None, TUNED_BUDGET)
    }
    assert {key[2] for key in choices} == set(TUNED_METHODS)
    configs = [config for step in runs.steps for config in step]
    assert len(configs) == len(set(configs)) == 2 * 15 * 6 * 2
    assert {config.seed for config in configs} == {100, 101}


def test_the_highest_validation_accuracy_of_the_last_round_is_chosen_whatever_the_test_accuracy(tmp_path: Path) -> None:
    choices, _ = tuning.tune(["mfeat"], tmp_path, RecordedRuns(tmp_path, prefer(0.25, own=2.0)))
    assert choices["mfeat", None, "dmml-kd"].learning_rate == 0.25
    assert choices["mfeat", None, "dmml-kd"].own_parameter == 2.0
    assert choices["mfeat", None, "dmml-kd"].validation_accuracy == pytest.approx(1.0)
    assert choices["mfeat", None, "ogm-ge"].own_parameter == 0.8


def test_what_the_search_reads_is_validation_alone(tmp_path: Path) -> None:
    folder = tmp_path / "run"
    folder.mkdir()
    (folder / "result.json").write_text("{}")
    (folder / "metrics.jsonl").write_text('{"loss": {"total": 1}, "accuracy": {"validation": [0.25, 0.75, null]}}\n')
    assert tuning.validation_accuracy([folder]) == 0.5
    assert tuning.validation_accuracy([folder, tmp_path / "absent"]) is None
    (folder / "metrics.jsonl").write_text('{"loss": {"total": NaN}, "accuracy": {"validation": [0.5]}}\n')
    assert tuning.validation_accuracy([folder]) is None


def test_a_method_without_a_parameter_refines_its_learning_rate(tmp_path: Path) -> None:
    choices, _ = tuning.tune(["mfeat"], tmp_path, RecordedRuns(tmp_path, prefer(0.17)))
    assert choices["mfeat", None, "local"].learning_rate == 0.16
    assert choices["mfeat", None, "local"].own_parameter is None


def test_among_equals_the_smaller_learning_rate_then_the_table_s_value(tmp_path: Path) -> None:
    choices, _ = tuning.tune(["mfeat"], tmp_path, RecordedRuns(tmp_path, lambda config: 0.5))
    assert choices["mfeat", None, "fedgen"].learning_rate == 0.04
    assert choices["mfeat", None, "fedgen"].own_parameter is None


def test_trials_that_failed_are_not_chosen_and_a_search_without_any_is_named(tmp_path: Path) -> None:
    runs = RecordedRuns(tmp_path, prefer(0.1))

    def run(configs: Sequence[ExperimentConfig]) -> None:
        alive = [config for config in configs if config.method.name != "fedgen" and config.training.learning_rate < 0.1]
        runs(alive)

    choices, failed = tuning.tune(["mfeat"], tmp_path, run)
    assert [search.method for search in failed] == ["fedgen"]
    assert choices["mfeat", None, "dmml-kd"].learning_rate == 0.04
    assert choices["mfeat", None, "dmml-kd"].trials[1].validation_accuracy is None


def test_a_balanced_method_is_tuned_with_the_losses_that_were_chosen_before(tmp_path: Path) -> None:
    runs = RecordedRuns(tmp_path, prefer(0.1, own=2.0))
    choices, _ = tuning.tune(["mfeat"], tmp_path, runs)
    balanced = [config for config in runs.steps[2] if config.method.name == "dmml-kd-tb"]
    assert {loss_scale(config.method) for config in balanced} == {2.0}
    applied = tuned.apply_choices(world("mfeat", "dmml-kd-tb", 0), choices)
    assert (loss_scale(applied.method), applied.method.balance.exponent) == (2.0, 3.0)


def test_a_part_is_searched_anew_and_the_rest_stays(tmp_path: Path) -> None:
    known, _ = tuning.tune(["mfeat"], tmp_path / "a", RecordedRuns(tmp_path / "a", prefer(0.1, own=2.0)))
    runs = RecordedRuns(tmp_path / "b", prefer(0.25, own=1.0))
    choices, _ = tuning.tune(["mfeat"], tmp_path / "b", runs, known, lambda search: search.method == "dmml-tb")
    assert {config.method.name for step in runs.steps for config in step} == {"dmml-tb"}
    assert choices["mfeat", None, "dmml-tb"].learning_rate == 0.25
    assert {key: one for key, one in choices.items() if key[2] != "dmml-tb"} == {
        key: one for key, one in known.items() if key[2] != "dmml-tb"
    }
    runs = RecordedRuns(tmp_path / "c", prefer(0.1))
    tuning.tune(["mfeat"], tmp_path / "c", runs, known, lambda search: search.method == "dmml-kd-tb")
    assert {loss_scale(config.method) for config in runs.steps[0]} == {2.0}  # of what was known before


def choice(method: str, rate: float, own: float | None = None, budget: float | None = None) -> Choice:
    return Choice("watch", budget, method, rate, own, 0.5, (Trial(rate, own, 0.5),))


def test_what_is_not_tuned_takes_over_its_parent_s_settings_at_the_nearer_budget() -> None:
    choices = tuned.by_key(
        [
            choice("dmml-kd", 0.2, 0.5),
            choice("dmml-kd", 0.4, 2.0, 0.3),
            choice("dmml-tb", 0.7, 6.0, 0.3),
            choice("dmml", 0.3),
        ]
    )

    def applied(method: str, budget: float | None) -> ExperimentConfig:
        return tuned.apply_choices(world("watch", method, 0, budget=budget), choices)

    assert applied("dmml-kd-no-generator", None).training.learning_rate == 0.2
    assert applied("dmml-kd-no-generator", None).method.losses.classification == 0.25
    assert applied("dmml-kd-greedy", 0.6).training.learning_rate == 0.4
    assert applied("dmml-kd", 0.7).training.learning_rate == 0.2
    assert applied("dmml-reversed", 0.15).method.balance.exponent == 6.0
    assert applied("dmml-reversed", 0.15).training.learning_rate == 0.7
    assert applied("unimodal:accelerometer", 0.3).training.learning_rate == 0.3  # no choice at 0.3: the one without
    assert applied("fedprox", None) == world("watch", "fedprox", 0)
    with pytest.raises(ValueError, match="method must be one of"):
        tuned.parent("adam")


@pytest.mark.parametrize("method", METHODS)
def test_every_method_has_a_parent_that_is_tuned(method: str) -> None:
    assert tuned.parent(method) in TUNED_METHODS
    assert set(tuning.OWN_VALUES) <= set(TUNED_METHODS)


def test_the_choices_are_read_as_they_were_written(tmp_path: Path) -> None:
    path = tmp_path / "tuned.json"
    choices = tuned.by_key([choice("dmml", 0.3), choice("dmml-kd", 0.2, 2.0, 0.3)])
    tuned.write_choices(choices, path, {"rounds": 20})
    assert tuned.read_choices(path) == choices
    tuned.write_choices(dict(reversed(choices.items())), path, {"rounds": 20})
    assert list(tuned.read_choices(path)) == list(choices)
    assert json.loads(path.read_text())["search"] == {"rounds": 20}
    assert tuned.read_choices(tmp_path / "absent.json") == {}
    path.write_text('{"choices": [{"dataset": "watch"}]}')
    with pytest.raises(ValueError, match=r"path must be a file that paper_figures.tune wrote, tuned.json is not"):
        tuned.read_choices(path)


def test_the_command_writes_what_it_chose_and_keeps_other_datasets(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmmlkd_ext.experiments import sweep

    runs = RecordedRuns(tmp_path / "runs", prefer(0.1))

    def run_sweep(configs: Sequence[ExperimentConfig], folder: Path, **_: object) -> sweep.SweepReport:
        assert folder == tmp_path / "runs"
        runs(configs)
        return sweep.SweepReport(tuple(folder / run_name(config) for config in configs), 0)

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    monkeypatch.setattr("paper_figures.collect.availability.load_dataset", lambda name: None)
    output = tmp_path / "tuned.json"
    tuned.write_choices(tuned.by_key([choice("dmml", 0.3)]), output, {})
    arguments = ["--datasets", "mfeat", "--runs", str(tmp_path / "runs"), "--output", str(output)]
    assert tune.main(arguments) == 0
    assert {key[0] for key in tuned.read_choices(output)} == {"watch", "mfeat"}
    assert "16 settings chosen" in capsys.readouterr().out  # one of them earlier
    with pytest.raises(SystemExit):
        tune.main(["--workers", "0"])


def test_the_command_leaves_the_committed_settings_unless_it_is_told_to_keep_its_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from dmmlkd_ext.experiments import sweep

    def run_sweep(configs: Sequence[ExperimentConfig], folder: Path, **_: object) -> sweep.SweepReport:
        RecordedRuns(folder, prefer(0.17))(configs)
        return sweep.SweepReport(tuple(folder / run_name(config) for config in configs), 0)

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    monkeypatch.setattr("paper_figures.collect.availability.load_dataset", lambda name: None)
    committed = tmp_path / "committed.json"
    tuned.write_choices(
        tuned.by_key([choice("dmml", 0.3), replace(choice("dmml", 0.3), dataset="mfeat")]), committed, {}
    )
    before = committed.read_bytes()
    monkeypatch.setattr(tuned, "PATH", committed)
    arguments = ["--datasets", "mfeat", "--methods", "dmml", "--budget", "none", "--runs", str(tmp_path / "runs")]
    assert tune.main(arguments) == 0
    assert committed.read_bytes() == before
    found = tuned.read_choices(tmp_path / "runs" / "tuned.json")
    assert found["mfeat", None, "dmml"].learning_rate != 0.3
    assert found["watch", None, "dmml"].learning_rate == 0.3
    assert "1 of them differ from the committed ones in committed.json, which stay" in capsys.readouterr().out
    assert tune.main([*arguments, "--keep"]) == 0
    assert tuned.read_choices(committed) == found
    assert "which were replaced" in capsys.readouterr().out
    with pytest.raises(SystemExit):
        tune.main(["--keep", "--output", "x.json"])


def test_the_levels_of_a_dataset_differ_in_the_split_alone() -> None:
    for dataset in ("watch", "mfeat", "avdigits"):
        moderate, severe = (world(dataset, "dmml", 0, level) for level in LEVELS)
        assert severe.data.partition == "dirichlet"
        assert severe.data.dirichlet_alpha == 0.1
        assert dataclasses.replace(moderate, data=severe.data) == severe
        assert moderate.energy.model == "wireless"
    assert world("watch", "dmml", 0).data.partition == "natural"
    assert world("mfeat", "dmml", 0).data.dirichlet_alpha == 0.5
