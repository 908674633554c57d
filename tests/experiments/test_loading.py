from __future__ import annotations

import json
from dataclasses import dataclass
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
        ({"seed": True}, "config.seed must be int, got True"),
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
    del data["training"]["rounds"]
    with pytest.raises(ValueError, match=r"config.training lacks the keys \['rounds'\]"):
        from_dict(ExperimentConfig, data)
    (tmp_path / "config.json").write_text("{")
    with pytest.raises(ValueError, match="path must be a JSON file"):
        load_config(tmp_path)
    with pytest.raises(FileNotFoundError):
        load_config(tmp_path / "absent.json")


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
        ("kind", "c", r"config.kind must be one of \['a', 'b'\], got 'c'"),
        ("pair", [1], "config.pair must be a list of 2 values"),
        ("many", 3, "config.many must be a list, got 3"),
        ("table", {"acc": "x"}, r"config.table\['acc'\] must be float"),
    ):
        with pytest.raises(ValueError, match=message):
            from_dict(Odd, {**good, name: value})
    assert from_dict(Odd, {"kind": "a", "pair": None, "many": [], "table": None}) == Odd()
