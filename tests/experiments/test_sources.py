"""What a run begins with: a file, another run, the reported tables; and a sweep over a grid."""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path

import pytest
from fake_simulation import build_fake

from dmmlkd_ext import cli
from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments.commands import sweep
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.loading import load_config
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.config.sources import begin
from dmmlkd_ext.experiments.sweep import SweepReport
from dmmlkd_ext.training import methods
from paper_figures.plan.experiments import PROFILES, make_cases

TOML = """
method = "dmml-kd"
seed = 4
[data]
dataset = "mfeat"
num_devices = 8
"""


@pytest.fixture(autouse=True)
def _fake_world(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(world, "build_simulation", build_fake)
    monkeypatch.chdir(tmp_path)


def run_config(*arguments: str) -> ExperimentConfig:
    """Return the configuration of the one run that a command made."""
    before = set(Path("runs").glob("*-*"))
    assert cli.main(["run", *arguments, "--quiet"]) == 0
    (folder,) = set(Path("runs").glob("*-*")) - before
    return load_config(folder)


@pytest.fixture
def swept(monkeypatch: pytest.MonkeyPatch) -> list[ExperimentConfig]:
    """Collect the configurations of sweeps instead of running them."""
    found: list[ExperimentConfig] = []

    def run_sweep(configs, *_, **__) -> SweepReport:
        found.extend(configs)
        return SweepReport((), 0)

    monkeypatch.setattr(sweep, "run_sweep", run_sweep)
    return found


def test_a_file_states_options_over_the_recommended_ones_and_the_command_line_comes_on_top() -> None:
    Path("mine.toml").write_text(TOML + "[training]\nrounds = 3\nprobe = true\nlearning_rate = 1\n")
    Path("mine.yaml").write_text(
        "method: {name: dmml-kd}\nseed: 4\ndata: {dataset: mfeat, num_devices: 8}\n"
        "training: {rounds: 3, probe: 'yes', learning_rate: 1}\n"
    )
    recommended = preset("mfeat", "dmml-kd", 4)
    told = replace(
        recommended,
        data=replace(recommended.data, num_devices=8),
        training=replace(recommended.training, rounds=3, probe=True, learning_rate=1.0),
    )
    assert begin(file=Path("mine.toml")).digest() == begin(file=Path("mine.yaml")).digest() == told.digest()
    changed = run_config("--config", "mine.toml", "--training.rounds", "2", "--training.probe", "False", "--seed=5")
    assert changed == replace(told, seed=5, training=replace(told.training, rounds=2, probe=False))


def test_a_file_without_a_method_takes_those_of_the_command() -> None:
    Path("short.toml").write_text("[training]\nrounds = 2\n")
    assert run_config("dmml", "mfeat", "--config", "short.toml").method.name == "dmml"
    assert run_config("--config=short.toml", "local", "watch").training.rounds == 2


def test_options_of_a_loader_in_a_file_have_the_types_of_its_signature(swept: list[ExperimentConfig]) -> None:
    Path("own.toml").write_text('[data.options]\npairs = "2"\nsnr_db = 3\n')
    words = ("--data.options", "pairs", "2", "snr_db", "3")
    told = run_config("dmml", "avdigits", *words)
    assert (
        cli.main(["sweep", "--methods", "dmml", "--datasets", "avdigits", "--config", "own.toml", "--seeds", "0"]) == 0
    )
    assert swept[0].digest() == begin("dmml", "avdigits", file=Path("own.toml")).digest() == told.digest()
    assert told.data.options == {"pairs": 2, "snr_db": 3.0}


def test_a_run_is_repeated_from_its_folder_or_its_configuration() -> None:
    first = run_config("dmml", "mfeat", "--training.rounds", "2", "--seed", "3", "--data.missing-rate", "0.25")
    (folder,) = Path("runs").glob("mfeat-dmml-*")
    for source in (folder, folder / "config.json"):
        assert begin(file=source).digest() == first.digest()
        assert run_config("--config", str(source), "--seed", str(len(str(source)))).data == first.data


@pytest.mark.parametrize("word", ["false", "False", "0", "no"])
def test_a_bool_has_one_spelling_in_every_place(word: str, swept: list[ExperimentConfig]) -> None:
    rounds = ("--training.rounds", "1")
    assert run_config("dmml", "mfeat", "--method.exchange", word, *rounds).method.exchange is False
    assert run_config("dmml", "watch", f"--method.exchange={word}", *rounds).method.exchange is False
    Path("b.toml").write_text(f'[method]\nexchange = "{word}"\n')
    assert begin("dmml", "mfeat", file=Path("b.toml")).method.exchange is False
    cli.main(["sweep", "--methods", "dmml", "--datasets", "mfeat", "--set", f"method.exchange={word}"])
    assert [config.method.exchange for config in swept] == [False] * 3


@pytest.mark.parametrize("level", ["moderate", "severe"])
def test_as_reported_is_what_the_tables_show(level: str) -> None:
    cases = [case for case in make_cases("comparison", PROFILES["full"]) if case.setting == level]
    assert len(cases) > 100
    for case in cases:
        config = case.config
        assert begin(config.method.name, config.data.dataset, seed=config.seed, level=level) == config
    for case in make_cases("balance", PROFILES["full"]):
        config = replace(case.config, training=replace(case.config.training, probe=False))
        names = config.method.name, config.data.dataset
        budget = config.energy.budget_fraction
        assert begin(*names, seed=config.seed, level="moderate", budget=budget) == config


def test_as_reported_from_the_command_line_in_either_order_and_with_a_budget(swept: list[ExperimentConfig]) -> None:
    (case,) = (
        case
        for case in make_cases("comparison", PROFILES["full"])
        if (case.setting, case.config.method.name, case.config.data.dataset, case.config.seed)
        == ("severe", "dmml-kd-tb", "mfeat", 0)
    )
    assert run_config("--as-reported", "severe", "mfeat", "dmml-kd-tb") == case.config
    again = run_config("dmml-kd-tb", "mfeat", "--as-reported", "severe", "--seed", "1")
    assert again == replace(case.config, seed=1)
    (limited,) = (
        case.config
        for case in make_cases("balance", PROFILES["full"])
        if (case.level, case.config.method.name, case.config.data.dataset, case.config.seed)
        == (0.3, "dmml-kd", "mfeat", 0)
    )
    budget = ("--energy.budget-fraction", "0.3")
    assert run_config("--as-reported", "moderate", "mfeat", "dmml-kd", *budget) == limited
    sweep = ("--methods", "dmml-kd-tb", "--datasets", "mfeat", "--seeds", "0-1")
    assert cli.main(["sweep", "--as-reported", "severe", *sweep]) == 0
    assert swept == [case.config, replace(case.config, seed=1)]
    swept.clear()
    limits = ("--grid", "energy.budget-fraction=0.3,None", "--seeds", "0")
    names = ("--methods", "dmml-kd", "--datasets", "mfeat")
    assert cli.main(["sweep", "--as-reported", "moderate", *names, *limits]) == 0
    assert swept[0] == limited
    assert swept[1] == begin("dmml-kd", "mfeat", level="moderate")
    assert swept[0].method.losses != swept[1].method.losses


def test_a_grid_is_run_at_each_of_its_points_for_each_seed(swept: list[ExperimentConfig]) -> None:
    names = ("--methods", "dmml-kd", "--datasets", "mfeat")
    grid = ("--grid", "method.losses.similarity=0,0.3", "data.modalities-per-device=[1, 2],[2, 4]")
    assert cli.main(["sweep", *names, *grid, "--seeds", "0-2", "7", "--set", "training.rounds=2"]) == 0
    found = [(c.method.losses.similarity, c.data.modalities_per_device, c.seed) for c in swept]
    pairs = [(0.0, (1, 2)), (0.0, (2, 4)), (0.3, (1, 2)), (0.3, (2, 4))]
    assert found == [(*point, seed) for point in pairs for seed in (0, 1, 2, 7)]
    assert {config.training.rounds for config in swept} == {2}


def test_a_sweep_takes_a_file_for_all_its_runs(swept: list[ExperimentConfig]) -> None:
    Path("all.toml").write_text("seed = 9\n[training]\nrounds = 3\n[method.losses]\nfurther = {}\n")
    assert cli.main(["sweep", "--methods", "dmml", "local", "--datasets", "mfeat", "--config", "all.toml"]) == 0
    assert [(c.method.name, c.seed, c.training.rounds) for c in swept] == [
        (name, seed, 3) for name in ("dmml", "local") for seed in range(3)
    ]


@pytest.mark.parametrize(
    ("files", "arguments", "message"),
    [
        ({}, ["run", "--config", "no.toml"], "config must be a .toml, .yaml or .json file, or the folder of a run; no"),
        ({}, ["run", "--config"], "--config must be followed by its value"),
        ({"a.txt": ""}, ["run", "--config", "a.txt"], "a.txt: config must be a .toml, .yaml or .json file"),
        ({"a.toml": "x = "}, ["run", "--config", "a.toml"], "a.toml: "),
        ({"a.toml": "seed = 1"}, ["run", "--config", "a.toml"], "a.toml: it must state method.name, or METHOD and"),
        ({"a.yaml": "- 1"}, ["run", "dmml", "mfeat", "--config", "a.yaml"], "a.yaml: it must hold a table of options"),
        ({"a.yaml": "{"}, ["run", "dmml", "mfeat", "--config", "a.yaml"], "a.yaml: it is not YAML"),
        (
            {"a.toml": "[training]\nrouns = 1"},
            ["run", "dmml", "mfeat", "--config", "a.toml"],
            "a.toml: config.training has unknown keys ['rouns']; it needs ['batch_size'",
        ),
        (
            {"a.toml": "[training]\nprobe = 'maybe'"},
            ["run", "dmml", "mfeat", "--config", "a.toml"],
            "a.toml: config.training.probe must be bool, got 'maybe'",
        ),
        ({"a.toml": "training = 3"}, ["run", "dmml", "mfeat", "--config", "a.toml"], "must be a table of TrainingConf"),
        (
            {"a.toml": "method = 'dmml'\ndata = 'mfeat'"},
            ["run", "local", "mfeat", "--config", "a.toml"],
            "method.name must be the one that the command names, local; got dmml",
        ),
        ({"config.json": "{}"}, ["run", "--config", "."], "config.json: config lacks method.name"),
        ({}, ["run", "dmml", "mfeat", "--training.probe=maybe"], "training.probe must be bool, got 'maybe'"),
        ({}, ["run", "--as-reported", "mild", "mfeat", "dmml"], "as_reported must be one of moderate, severe, which"),
        (
            {},
            ["run", "--as-reported", "severe", "ucihar", "dmml"],
            "dataset must be one of watch, mfeat, avdigits, ",
        ),
        ({}, ["run", "--as-reported", "severe", "mfeat", "dml"], "method must be one of local, dmml"),
        (
            {"a.toml": ""},
            ["run", "dmml", "mfeat", "--as-reported", "severe", "--config", "a.toml"],
            "config and as_reported must not both be given",
        ),
        ({}, ["sweep", "--grid", "training.rounds"], "grid must name each setting with values, such as"),
        ({}, ["sweep", "--grid", "training.rounds="], "grid must name each setting with values, such as"),
        ({}, ["sweep", "--grid", "seed=1,2"], "set and grid must not change seed, which --seeds gives"),
        ({}, ["sweep", "--grid", "training.rouns=1,2"], "grid must be like training.rounds=5, a setting that there is"),
        ({}, ["sweep", "--grid", "training.rounds=1,a"], "grid: training.rounds must be int, got 'a'"),
        ({}, ["sweep", "--grid", "training.rounds=1", "training.rounds=2"], "grid must name each setting once; got"),
        ({}, ["sweep", "--seeds", "3-1"], "seeds must be numbers of at least 0, or ranges such as 0-9; got '3-1'"),
    ],
)
def test_what_does_not_fit_is_one_line_before_anything_runs(
    files: dict[str, str], arguments: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, content in files.items():
        Path(name).write_text(content)
    assert cli.main(arguments) == 2
    output = capsys.readouterr()
    assert output.out == ""
    assert message in output.err
    assert output.err.count("\n") == 1
    assert sorted(path.name for path in Path.cwd().iterdir()) == sorted(files)


def test_yaml_without_its_package_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "yaml", None)
    Path("a.yaml").write_text("seed: 1")
    assert cli.main(["run", "dmml", "mfeat", "--config", "a.yaml"]) == 2
    assert capsys.readouterr().err == "dmmlkd: a.yaml: a file in YAML needs the package pyyaml; TOML needs none\n"


def test_a_file_s_module_is_imported_and_one_of_the_command_line_too(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(methods, "_FURTHER", {})
    register = "from dmmlkd_ext.training import methods\nmethods.register_method(methods.MethodConfig({!r}))"
    Path("one.py").write_text(register.format("my-one"))
    Path("two.py").write_text(register.format("my-two"))
    Path("own.toml").write_text('module = "one.py"\nmethod = "my-one"\ndata = "mfeat"\n[training]\nrounds = 1\n')
    config = run_config("--config", "own.toml", "--module", "two.py")
    assert (config.method.name, config.module) == ("my-one", ("one.py", "two.py"))
