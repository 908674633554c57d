"""Kill and resume with the real simulation on real data."""

from __future__ import annotations

import random
import signal
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from dmmlkd_ext.data import DataUnavailableError, load_dataset
from dmmlkd_ext.experiments.config import ExperimentConfig
from dmmlkd_ext.experiments.config.presets import preset
from dmmlkd_ext.experiments.run import run_experiment
from dmmlkd_ext.training.keep.callbacks import Callback
from dmmlkd_ext.wireless.energy import EnergyConfig


def make_config(rounds: int = 9) -> ExperimentConfig:
    """A small run that uses all state there is: momentum, batteries, speeds."""
    config = preset("mfeat", "dmml-kd-tb", seed=1)
    return replace(
        config,
        data=replace(config.data, num_devices=6),
        energy=EnergyConfig(budget_fraction=0.5),
        training=replace(config.training, rounds=rounds, local_iterations=4, evaluate_every=3, input_noise=0.1),
    )


@pytest.fixture(scope="module", autouse=True)
def _data_at_hand() -> None:
    try:
        load_dataset("mfeat")
    except DataUnavailableError as error:
        pytest.skip(f"mfeat is neither here nor can be downloaded: {error}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    return read_all(run_experiment(make_config(), tmp_path_factory.mktemp("whole")))


def read_all(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


class BreakOff(Callback):
    def __init__(self, last_round: int) -> None:
        self.last_round = last_round

    def on_round_end(self, simulation, record) -> None:
        if simulation.round == self.last_round:
            raise KeyboardInterrupt


def test_one_configuration_gives_the_same_bits_twice(tmp_path: Path, whole: dict[str, bytes]) -> None:
    assert read_all(run_experiment(make_config(), tmp_path)) == whole


@pytest.mark.parametrize("last_round", [1, 4, 5, 9])
def test_a_run_that_was_broken_off_ends_with_the_same_bits(
    tmp_path: Path, whole: dict[str, bytes], last_round: int
) -> None:
    with pytest.raises(KeyboardInterrupt):
        run_experiment(make_config(), tmp_path, checkpoint_every=2, callbacks=[BreakOff(last_round)])
    folder = run_experiment(make_config(), tmp_path, checkpoint_every=2)
    assert read_all(folder) == whole


SCRIPT = """
import sys
from pathlib import Path
sys.path[:0] = {path!r}
from test_resume import make_config
from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments.provenance import Identity, adopt_identity
from dmmlkd_ext.experiments.run import run_experiment
adopt_identity(Identity("version-of-the-tests", "commit-of-the-tests", False))
print("ready", flush=True)
run_experiment(make_config(rounds=60), Path(sys.argv[1]), checkpoint_every=3)
"""


def test_a_run_that_is_killed_at_random_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    expected = run_experiment(make_config(rounds=60), tmp_path / "whole")
    paths = [str(Path(__file__).parent), *sys.path]
    command = [sys.executable, "-c", SCRIPT.format(path=paths), str(tmp_path / "killed")]
    chance = random.Random(1)
    killed = 0
    for _ in range(4):
        process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
        assert process.stdout is not None
        assert process.stdout.readline() == "ready\n"
        try:
            process.wait(timeout=chance.uniform(0.5, 1.5))
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
    assert killed
    folder = run_experiment(make_config(rounds=60), tmp_path / "killed", checkpoint_every=7)
    assert read_all(folder) == read_all(expected)
