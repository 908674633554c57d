"""A dataset of one's own, from the command line to its trained runs."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.data import registry


@pytest.fixture(autouse=True)
def _known_datasets(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let what a test registers go with it."""
    monkeypatch.setattr(registry, "_LOADERS", dict(registry._LOADERS))


OWN_DATASET = """
import torch
from dmmlkd_ext.data import MultiModalDataset, Split, register_dataset

def load_robots(
    seed: int = 0, samples: int = 60, tests: int = 24, mark: str = "", flag: bool = False
) -> MultiModalDataset:
    generator = torch.Generator().manual_seed(seed)
    def part(count):
        features = {"camera": torch.randn(count, 1, 8, 8, generator=generator),
                    "torque": torch.randn(count, 6, 32, generator=generator)}
        labels = torch.randint(3, (count,), generator=generator)
        return Split(features, labels, torch.ones(count, 2, dtype=torch.bool), torch.arange(count) % 5)
    names = ("cup", "box", "ball")
    return MultiModalDataset("drones", ("camera", "torque"), 3, names, part(samples), part(12), part(tests))

register_dataset("drones", load_robots, replace=True)
"""


def test_a_dataset_of_ones_own_is_trained_from_its_file(tmp_path, capsys):
    module, runs = tmp_path / "robots.py", tmp_path / "runs"
    module.write_text(OWN_DATASET)
    sizes = ["--data.num-devices", "4", "--training.rounds", "2", "--data.options", "samples", "80"]
    run = ["run", "dmml", "drones", f"--module={module}", *sizes, "--runs", str(runs), "--quiet"]
    assert cli.main(run) == 0
    [folder] = runs.glob("drones-dmml-*")
    assert json.loads((folder / "config.json").read_text())["data"]["options"] == {"samples": 80}
    assert "test accuracy" in capsys.readouterr().out
    module.write_text(OWN_DATASET.replace("torch.randn", "torch.rand"))
    assert cli.main(run) == 2  # this process still has the old loader
    assert "was changed since this process imported it" in capsys.readouterr().err
    program = [sys.executable, "-m", "dmmlkd_ext", *run]
    subprocess.run(program, cwd=Path(__file__).parents[1], check=True, capture_output=True)
    assert len(list(runs.glob("drones-dmml-*"))) == 2  # another loader is another run


def test_the_processes_of_a_sweep_know_a_dataset_of_ones_own(tmp_path, capsys):
    module, runs = tmp_path / "robots.py", tmp_path / "runs"
    module.write_text(OWN_DATASET)
    settings = ["data.num_devices=4", "training.rounds=1", "data.options.samples=80"]
    options = ["--methods", "uniform", "--datasets", "drones", "--seeds", "0", "--set", *settings]
    assert cli.main(["sweep", *options, f"--module={module}", "--runs", str(runs), "--quiet"]) == 0
    assert len(list(runs.glob("drones-uniform-*/result.json"))) == 1


@pytest.mark.parametrize("false", ["false", "False", "0"])
def test_options_are_of_the_types_that_the_loader_states(false, tmp_path):
    module, runs = tmp_path / "robots.py", tmp_path / "runs"
    module.write_text(OWN_DATASET)
    own = ["--module", str(module), "--runs", str(runs), "--quiet"]
    words = {"flag": false, "mark": "007", "samples": "80"}
    told = [word for pair in words.items() for word in pair]
    sizes = ["--data.num-devices", "4", "--training.rounds", "1"]
    assert cli.main(["run", "uniform", "drones", *own, *sizes, "--data.options", *told]) == 0
    [folder] = runs.glob("drones-uniform-*")
    config = json.loads((folder / "config.json").read_text())
    assert config["data"]["options"] == {"flag": False, "mark": "007", "samples": 80}
    assert config["module"] == [str(module)]
    settings = [f"data.options.{name}={word}" for name, word in words.items()]
    settings += ["data.num_devices=4", "training.rounds=1"]
    methods = ["--methods", "uniform", "--datasets", "drones", "--seeds", "0"]
    assert cli.main(["sweep", *methods, *own, "--set", *settings]) == 0
    assert list(runs.glob("drones-uniform-*")) == [folder]  # the same run


def test_a_dataset_without_test_samples_is_trained(tmp_path, capsys):
    module = tmp_path / "robots.py"
    module.write_text(OWN_DATASET)
    sizes = ["--data.num-devices", "4", "--training.rounds", "1", "--data.options", "tests", "0"]
    own = ["--module", str(module), "--runs", str(tmp_path / "runs")]
    assert cli.main(["run", "dmml-kd", "drones", *own, *sizes]) == 0
    assert "test accuracy none, worst device none, 1 rounds" in capsys.readouterr().out


@pytest.mark.parametrize("given", [["--module", "{a},{b}"], ["--module={a}", "--module", "{b}"]])
def test_several_modules_are_imported(given, tmp_path, capsys):
    paths = {name: tmp_path / f"{name}.py" for name in "ab"}
    for name, path in paths.items():
        path.write_text(OWN_DATASET.replace('"drones"', f'"drones {name}"'))
    assert cli.main(["data", *(word.format(**paths) for word in given), "list"]) == 0
    assert {"drones a", "drones b"} <= set(capsys.readouterr().out.splitlines())


def test_a_module_that_ends_the_program_is_refused(tmp_path, capsys):
    module = tmp_path / "robots.py"
    module.write_text("import sys\nsys.exit(3)\n")
    assert cli.main(["run", "dmml", "drones", "--module", str(module)]) == 2
    assert "SystemExit: 3" in capsys.readouterr().err


MODULE_OPTIONS = (
    ["run", "dmml", "x", "--module"],
    ["run", "dmml", "x", "--data.module"],  # its name in earlier versions
    ["data", "--module"],
    ["sweep", "--module"],
)


@pytest.mark.parametrize("command", MODULE_OPTIONS)
def test_a_module_that_is_not_there_is_named(command, capsys):
    assert cli.main([*command, "no/such.py"]) == 2
    assert "module must be a Python file" in capsys.readouterr().err


@pytest.mark.parametrize("text", ["import nothing_like_it", "1 / 0", "def broken(:"])
def test_a_module_that_fails_is_named_with_its_error(text, tmp_path, capsys):
    module = tmp_path / "broken.py"
    module.write_text(text)
    assert cli.main(["run", "dmml", "drones", "--module", str(module)]) == 2
    message = capsys.readouterr().err
    assert message.count("\n") == 1
    assert f"got '{module}': " in message
    assert "Error: " in message


def test_an_option_that_a_dataset_lacks_is_named(tmp_path, capsys):
    assert cli.main(["run", "dmml", "watch", "--data.options", "splat", "1", "--runs", str(tmp_path)]) == 2
    assert "splat is not an option of dataset 'watch'" in capsys.readouterr().err
