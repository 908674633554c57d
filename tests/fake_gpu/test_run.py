"""A run on the GPU from its configuration to its result: its name, its files, its resumption."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import pytest

from dmmlkd_ext.experiments import build as world
from dmmlkd_ext.experiments import provenance
from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig, schema
from dmmlkd_ext.experiments.run import run_experiment, run_name
from dmmlkd_ext.training.keep.callbacks import Callback
from tests.fake_gpu.twins import TRAINING, from_the_first_round
from tests.training.synthetic import TINY_SHAPES, make_dataset


@pytest.fixture(autouse=True)
def _small_world_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(schema, "PROCESSORS", ("cpu", "gpu"))
    monkeypatch.setattr(world, "load_data", lambda _: make_dataset(TINY_SHAPES))
    monkeypatch.setattr(provenance, "_adopted", provenance.Identity("version", "commit", False))


def make_config(where: str, rounds: int = 2, method: str = "dmml-kd") -> ExperimentConfig:
    training = dataclasses.replace(TRAINING, rounds=rounds)
    data = DataConfig("mfeat", partition="iid", num_devices=4)
    return ExperimentConfig(from_the_first_round(method), data, training=training, torch_device=where)


class BreakOff(Callback):
    def on_round_end(self, simulation, record) -> None:
        if simulation.round == 1:
            raise KeyboardInterrupt


def test_a_run_on_a_gpu_is_another_run_and_says_so(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = {where: run_experiment(make_config(where), tmp_path, progress=True) for where in ("cpu", "gpu")}
    assert folders["cpu"] != folders["gpu"]
    environment = json.loads((folders["gpu"] / "environment.json").read_text())
    assert environment["local_training"] == "reference: native code trains on a CPU, not on gpu"
    assert "mfeat dmml-kd, gpu:0 " in capsys.readouterr().err
    assert json.loads((folders["gpu"] / "config.json").read_text())["torch_device"] == "gpu"
    records = [
        [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
        for folder in folders.values()
    ]
    for here, there in zip(*records, strict=True):
        assert there["accuracy"] == here["accuracy"]
        assert there["loss"] == pytest.approx(here["loss"], rel=1e-5)
        assert there["consensus_distance"] == pytest.approx(here["consensus_distance"], rel=1e-4)
        assert there["energy_left_joule"] == here["energy_left_joule"]


def test_a_run_that_was_broken_off_ends_with_the_same_bytes(tmp_path: Path) -> None:
    config = make_config("gpu", rounds=3)
    with pytest.raises(KeyboardInterrupt):
        run_experiment(config, tmp_path / "broken", checkpoint_every=1, callbacks=[BreakOff()])
    folders = [run_experiment(config, tmp_path / name, checkpoint_every=1) for name in ("broken", "whole")]
    assert folders[0].name == run_name(config)
    for name in ("metrics.jsonl", "result.json", "checkpoint.pt", "environment.json"):
        assert (folders[0] / name).read_bytes() == (folders[1] / name).read_bytes()


def test_a_centralized_run_is_on_the_gpu_too(tmp_path: Path) -> None:
    centralized = dataclasses.replace(make_config("gpu", method="dmml").method, name="centralized", centralized=True)
    simulation = world.build_simulation(dataclasses.replace(make_config("gpu"), method=centralized))
    assert simulation.torch_device.type == simulation.dataset.test.labels.device.type == "gpu"
    assert simulation.run_round()["loss"]["task"] > 0
