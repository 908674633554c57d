from __future__ import annotations

import json
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

import pytest

from dmmlkd_ext.experiments.config import DataConfig, ExperimentConfig
from dmmlkd_ext.experiments.config.loading import from_dict, load_config
from dmmlkd_ext.training.methods import METHODS


def write(path: Path, config: ExperimentConfig, **changes: object) -> Path:
    path.write_text(json.dumps({**config.to_dict(), **changes}))
    return path


@pytest.mark.parametrize("name", METHODS)
def test_a_configuration_comes_back_equal(tmp_path: Path, name: str) -> None:
    config = ExperimentConfig(
        method=METHODS[name], data=DataConfig(dataset="mfeat", modalities_per_device=(2, 4)), seed=3
    )
    loaded = load_config(write(tmp_path / "config.json", config))
    assert loaded == config
    assert loaded.digest("v") == config.digest("v")
    assert isinstance(loaded.data.modalities_per_device, tuple)
    assert load_config(tmp_path) == config


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sede": 1}, r"config has unknown keys \['sede'\]"),
        ({"seed": "one"}, "config.seed must be int, got 'one'"),
        ({"seed": True}, "config.seed must be int, got 'True'"),
        ({"data": 3}, "config.data must be a table of DataConfig, got 3"),
        ({"training": 3}, "config.training must be a table of TrainingConfig, got 3"),
    ],
)
def test_what_does_not_fit_is_named(tmp_path: Path, changes: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_config(write(tmp_path / "config.json", ExperimentConfig(), **changes))


def test_missing_keys_wrong_ranges_and_bad_files_are_named(tmp_path: Path) -> None:
    data = ExperimentConfig().to_dict()
    data["training"]["rounds"] = 0
    with pytest.raises(ValueError, match=r"config.training: rounds must be at least 1, got 0"):
        from_dict(ExperimentConfig, data)
    for absent, named in (("method", "method.name"), ("data", "data.dataset"), ("seed", "seed")):
        kept = {name: value for name, value in ExperimentConfig().to_dict().items() if name != absent}
        (tmp_path / "config.json").write_text(json.dumps({**kept, absent: {}} if absent != "seed" else kept))
        with pytest.raises(ValueError, match=rf"{tmp_path}/config.json: config lacks {named}"):
            load_config(tmp_path)
    (tmp_path / "config.json").write_text("[]")
    with pytest.raises(ValueError, match=r"config must be a table of ExperimentConfig, got \[\]"):
        load_config(tmp_path)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="path must be a JSON file"):
        load_config(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "absent.json")


def test_what_an_earlier_version_did_not_write_takes_its_default(tmp_path: Path) -> None:
    config = ExperimentConfig(method=METHODS["fedprox"], data=DataConfig("mfeat", num_devices=7), seed=2)
    earlier = config.to_dict()
    for section, names in (("training", ["encoders", "probe"]), ("method", ["tunes", "base"]), ("data", ["options"])):
        for name in names:
            del earlier[section][name]
    del earlier["failures"]
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert load_config(tmp_path) == replace(config, method=replace(config.method, tunes=None))


def test_values_in_a_file_are_read_as_on_the_command_line(tmp_path: Path) -> None:
    for word in ("false", "False", 0, False):
        training = {"probe": word, "learning_rate": 1, "rounds": "7"}
        read = from_dict(ExperimentConfig, {"training": training, "energy": {"budget_fraction": "0.3"}})
        assert (read.training.probe, read.training.rounds, read.energy.budget_fraction) == (False, 7, 0.3)
        assert type(read.training.learning_rate) is float
    assert from_dict(ExperimentConfig, {"data": {"options": {"split": "5", "pairs": 2}}}).data.options == {
        "split": "5",
        "pairs": 2,
    }


@pytest.mark.parametrize(("module", "now"), [(None, ()), ("robots.py", ("robots.py",))])
def test_the_module_of_an_earlier_configuration_is_read(tmp_path: Path, module: str | None, now: tuple) -> None:
    earlier = ExperimentConfig(seed=4).to_dict()
    del earlier["module"]
    earlier["data"]["module"] = module
    (tmp_path / "config.json").write_text(json.dumps(earlier))
    assert load_config(tmp_path) == ExperimentConfig(seed=4, module=now)


@dataclass(frozen=True)
class Odd:
    kind: Literal["a", "b"] = "a"
    pair: tuple[int, int] | None = None
    many: tuple[float, ...] = ()
    table: dict[str, float] | None = None


def test_every_kind_of_field() -> None:
    good = {"kind": "b", "pair": [1, 2], "many": [1, 2.5], "table": {"acc": 1.0}}
    assert from_dict(Odd, good) == Odd("b", (1, 2), (1, 2.5), {"acc": 1.0})
    for name, value, message in (
        ("kind", "c", "config.kind must be one of a, b; got 'c'"),
        ("pair", [1], "config.pair must be 2 values, such as 1,2; got"),
        ("many", 3, "config.many must be a list, got 3"),
        ("table", {"acc": "x"}, r"config.table\['acc'\] must be float"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict(Odd, {**good, name: value})
    assert from_dict(Odd, {"kind": "a", "pair": None, "many": [], "table": None}) == Odd()
