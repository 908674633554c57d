from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pandas as pd
import pytest
from fake_simulation import build_fake

from dmmlkd_ext.experiments.config.worlds import world
from dmmlkd_ext.experiments.results import describe_run, read_records
from dmmlkd_ext.experiments.run import run_experiment, run_name
from paper_figures.collect import gather, kept
from paper_figures.collect.embedding import FEATURE_COLUMNS
from paper_figures.collect.kept import TABLE_COLUMNS, Gathered
from paper_figures.plan.experiments import Case

METHODS = ("dmml", "dmml-kd")


def cases() -> dict[str, list[Case]]:
    def config(method: str, seed: int, budget: float | None = None):
        made = world("watch", method, seed, budget=budget)
        training = replace(made.training, rounds=7, evaluate_every=5)
        return replace(made, data=replace(made.data, num_devices=3), training=training)

    shared = [Case("moderate", None, config(method, seed)) for method in METHODS for seed in (0, 1)]
    return {
        "comparison": shared,
        "missing": [Case("default", 0.6, case.config) for case in shared],
        "balance": [Case("default", 0.3, config("dmml", seed, 0.3)) for seed in (0, 1)],
        "features": [shared[-1]],
    }


@pytest.fixture
def runs(tmp_path: Path) -> Path:
    for config in {case.config for group in cases().values() for case in group}:
        run_experiment(config, tmp_path / "runs", build=build_fake, progress=False)
    return tmp_path / "runs"


@pytest.fixture(autouse=True)
def no_features(monkeypatch: pytest.MonkeyPatch) -> None:
    """The fake simulation has no features."""

    def embed_run(config, folder: Path, points: bool) -> pd.DataFrame:
        row = (folder.name, "watch", config.method.name, config.seed, 1, "acc", "common", 2, "pca", 1 / 3, -0.5)
        return pd.DataFrame([row], columns=list(FEATURE_COLUMNS))

    monkeypatch.setattr(gather, "embed_run", embed_run)


@pytest.fixture
def gathered(runs: Path) -> Gathered:
    tables, unreadable = gather.gather(cases(), runs)
    assert not unreadable
    return tables


def test_the_table_has_the_documented_columns_and_types(gathered: Gathered) -> None:
    results = gathered.results(["comparison"])
    assert list(results.table.columns) == list(TABLE_COLUMNS)
    assert results.table["device"].dtype == "Int32"
    assert results.table["value"].dtype == "float64"
    assert results.table["budget_fraction"].isna().all()
    assert results.table["commit"].nunique() <= 1  # none where the checkout is not known to git
    assert set(results.table["learning_rate"]) == {0.05}
    tuned = results.table.groupby("method", observed=True)["own_parameter"].first()
    assert (tuned["dmml-kd"], pd.isna(tuned["dmml"])) == (1.0, True)
    accuracy = results.table.query("metric == 'accuracy' and part == 'test' and seed == 0 and method == 'dmml'")
    assert accuracy["round"].tolist() == [5, 5, 5, 7, 7, 7]
    assert accuracy["device"].tolist() == [0, 1, 2] * 2


def test_failures_of_links_and_of_devices_stand_in_their_columns() -> None:
    config = world("watch", "dmml", 0)
    failures = replace(config.failures, link_probability=0.25, device_probability=0.125)
    row = describe_run("run", replace(config, failures=failures), None)
    assert (row["link_failure"], row["device_failure"]) == (0.25, 0.125)


def test_a_figure_gets_its_experiments_alone_and_a_shared_run_stands_in_both(gathered: Gathered) -> None:
    table = gathered.results(["comparison", "missing"]).table
    assert set(table["experiment"]) == {"comparison", "missing"}
    rows = dict(list(table.groupby("experiment", observed=True)))
    assert len(rows["comparison"]) == len(rows["missing"])
    assert set(rows["missing"]["level"]) == {0.6}
    assert rows["comparison"]["level"].isna().all()
    assert set(gathered.results(["balance"]).table["budget_fraction"]) == {0.3}
    assert gathered.results([]).table.empty


def test_devices_are_kept_round_by_round_for_one_seed_of_the_balance(gathered: Gathered) -> None:
    table = gathered.results(["balance", "comparison"]).table
    left = table[(table["metric"] == "energy_left_joule")]
    assert set(left["seed"]) == {0}
    assert set(left["experiment"]) == {"balance"}
    assert set(left["round"]) == set(range(1, 8))
    means = table[(table["metric"] == "local_iterations") & table["device"].isna()]
    assert set(means["seed"]) == {0, 1}


def test_experiments_are_renewed_beside_what_was_kept(gathered: Gathered) -> None:
    kept_names = set(gathered.runs["experiment"])
    renewed = sorted(kept_names)[0]
    part = gathered.runs[gathered.runs["experiment"] == renewed]
    shared = set(part["run"])
    other = Gathered(
        part.assign(setting="anew"),
        gathered.metrics[gathered.metrics["run"].isin(shared)].assign(value=7.0),
        gathered.settings[gathered.settings["run"].isin(shared)],
        gathered.features[gathered.features["run"].isin(shared)],
    )
    both = gathered.with_experiments_of(other)
    assert set(both.runs["experiment"]) == kept_names
    assert set(both.runs.loc[both.runs["experiment"] == renewed, "setting"]) == {"anew"}
    assert len(both.metrics) == len(gathered.metrics)
    of_part = both.metrics["run"].isin(shared)
    assert set(both.metrics.loc[of_part, "value"]) == {7.0}
    assert (both.metrics.loc[~of_part, "value"] != 7.0).any()
    alone = gathered.with_experiments_of(Gathered(part.iloc[:0], *(frame.iloc[:0] for frame in _frames(gathered))))
    assert len(alone.metrics) == len(gathered.metrics)


def _frames(gathered: Gathered) -> tuple[pd.DataFrame, ...]:
    return gathered.metrics, gathered.settings, gathered.features


def test_written_and_read_tables_are_the_gathered_ones(gathered: Gathered, tmp_path: Path) -> None:
    gathered.write(tmp_path / "a")
    read = kept.read(tmp_path / "a")
    for name in ("runs", "metrics", "settings", "features"):
        pd.testing.assert_frame_equal(getattr(read, name), getattr(gathered, name))
    read.write(tmp_path / "b")
    for path in (tmp_path / "a").iterdir():
        assert path.read_bytes() == (tmp_path / "b" / path.name).read_bytes()


def test_values_keep_the_digits_that_figures_show(gathered: Gathered, runs: Path) -> None:
    numbers = gathered.metrics[gathered.metrics["metric"] == "accuracy"].set_index(["run", "round", "part", "device"])
    plain = {
        (folder.name, record["round"], part, device): value
        for folder in runs.iterdir()
        if folder.is_dir() and (folder / "result.json").exists()
        for record in read_records(folder)
        if record["accuracy"] is not None
        for part, values in record["accuracy"].items()
        for device, value in enumerate(values)
        if value is not None
    }
    assert len(numbers) == len(plain)
    for key, value in plain.items():
        assert numbers.loc[key, "value"] == pytest.approx(value, abs=1e-7)


def test_every_option_is_in_the_settings(gathered: Gathered) -> None:
    settings = gathered.results(["balance"]).settings
    assert {"experiment", "setting", "level", "dataset", "method", "option", "value"} <= set(settings.columns)
    values = settings[settings["seed"] == 1].set_index("option")["value"]
    assert values["energy.budget_fraction"] == "0.3"
    assert values["training.rounds"] == "7"
    assert values["method.balance.policy"] == "uniform"


def test_unfinished_and_unreadable_runs_are_named_and_the_rest_is_gathered(runs: Path) -> None:
    group = cases()
    unfinished, altered = (run_name(case.config) for case in group["comparison"][:2])
    (runs / unfinished / "result.json").unlink()
    with (runs / altered / "metrics.jsonl").open("a") as file:
        file.write('{"round": 8}\n')
    tables, unreadable = gather.gather(group, runs)
    assert "has other records" in unreadable.pop(altered)
    assert not unreadable
    results = tables.results(["comparison"])
    assert results.unfinished == (unfinished, altered)
    assert not {unfinished, altered} & set(results.table["run"])
    assert tables.results(["balance"]).unfinished == ()


def test_features_that_cannot_be_had_are_named_and_the_rest_is_gathered(
    runs: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def embed_run(*_: object, **__: object) -> None:
        raise ValueError("no checkpoint")

    monkeypatch.setattr(gather, "embed_run", embed_run)
    tables, unreadable = gather.gather(cases(), runs)
    assert list(unreadable.values()) == ["features: ValueError: no checkpoint"]
    assert tables.features.empty
    assert not tables.results(["features"]).table.empty


def test_features_are_those_of_the_figure_s_runs(gathered: Gathered) -> None:
    assert len(gathered.results(["features"]).features) == 1
    assert gathered.results(["balance"]).features.empty
    assert gathered.features["x"].tolist() == [0.33333]


def test_seconds_of_a_run_that_was_resumed_are_added(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    path.write_text("run,first_round,last_round,seconds\na,0,5,1.5\nb,0,9,2.0\na,5,9,0.25\n")
    assert gather.read_seconds(path) == {"a": 1.75, "b": 2.0}
    assert gather.read_seconds(tmp_path / "absent.csv") == {}


@pytest.mark.parametrize("name", ["runs.csv", "metrics.parquet", "settings.parquet", "features.csv"])
@pytest.mark.parametrize("damage", ["a flipped bit", "a cut end"])
def test_a_damaged_table_is_named_in_one_line(gathered: Gathered, tmp_path: Path, name: str, damage: str) -> None:
    gathered.write(tmp_path)
    content = bytearray((tmp_path / name).read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / name).write_bytes(content if damage == "a flipped bit" else content[:-20])
    with pytest.raises(ValueError, match=rf"^.*{name} is damaged: its SHA-256 is not that of SHA256SUMS$"):
        kept.read(tmp_path)


def test_damaged_timings_are_named(tmp_path: Path) -> None:
    path = tmp_path / "timings.csv"
    for content in (b"run,first_round,last_round,seconds\na,0,5,1.5\nb,0\n", b"run,seconds\na,1.\xff5\n", b"ru\na\n"):
        path.write_bytes(content)
        with pytest.raises(ValueError, match=r"timings.csv is damaged: a line has no run and seconds"):
            gather.read_seconds(path)


def test_no_runs_give_empty_tables_that_are_read_again(tmp_path: Path) -> None:
    tables, _ = gather.gather(cases(), tmp_path)
    assert tables.results(["comparison"]).table.empty
    assert len(tables.results(["comparison"]).unfinished) == 4
    tables.write(tmp_path / "results")
    assert kept.read(tmp_path / "results").metrics.empty
    (tmp_path / "results" / "runs.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"results must hold .*; runs.csv is not there"):
        kept.read(tmp_path / "results")
