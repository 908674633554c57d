from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

import pytest
import torch

from dmmlkd_ext.data import MultiModalDataset, Split
from dmmlkd_ext.data.dataset import RESERVED_MODALITIES
from dmmlkd_ext.experiments.build import build_simulation
from dmmlkd_ext.experiments.config.presets import preset


def make_split(samples: int = 4, width: int = 3) -> Split:
    return Split(
        features={"a": torch.zeros(samples, width), "b": torch.zeros(samples, 2, 5)},
        labels=torch.arange(samples) % 2,
        present=torch.ones(samples, 2, dtype=torch.bool),
        groups=torch.full((samples,), -1),
    )


def make_dataset(**changes: object) -> MultiModalDataset:
    fields: dict[str, object] = {
        "name": "tiny",
        "modalities": ("a", "b"),
        "num_classes": 2,
        "class_names": ("no", "yes"),
        "train": make_split(),
        "validation": make_split(0),
        "test": make_split(2),
    }
    return MultiModalDataset(**(fields | changes))  # type: ignore[arg-type]


def test_valid_dataset_reports_shapes() -> None:
    assert make_dataset().shapes == {"a": (3,), "b": (2, 5)}


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("features", {}, "features must hold at least one"),
        ("features", {"a": torch.zeros(4, 3)}, "present must have one column"),
        (
            "features",
            {"a": torch.zeros(4, 3).double(), "b": torch.zeros(4)},
            r"features\['a'\] must be torch.float32",
        ),
        (
            "features",
            {"a": torch.zeros(3, 3), "b": torch.zeros(4)},
            r"features\['a'\] must have one row per sample",
        ),
        (
            "features",
            {"a": torch.tensor(1.0), "b": torch.zeros(4)},
            r"features\['a'\] must have at least 1 dim",
        ),
        ("features", {"a": torch.full((4, 3), torch.nan), "b": torch.zeros(4)}, "must be finite"),
        (
            "features",
            {"a": torch.zeros(4, 0), "b": torch.zeros(4)},
            r"features\['a'\] must hold at least one value a sample, got shape \(4, 0\)",
        ),
        ("features", {"a": torch.zeros(4, 3), "b": torch.zeros(4, 2, 0)}, r"features\['b'\] must hold at least one"),
        ("labels", torch.zeros(4), "labels must be torch.int64"),
        ("labels", [0, 1, 0, 1], "labels must be a torch.Tensor"),
        ("labels", torch.zeros(4, 1, dtype=torch.int64), "labels must have 1 dim"),
        ("groups", torch.zeros(3, dtype=torch.int64), "groups must have one row per sample"),
        ("groups", torch.full((4,), -2), "groups must be at least -1"),
        ("present", torch.ones(4, 2), "present must be torch.bool"),
        ("present", torch.tensor([[True, True]] * 3 + [[False, False]]), "row 3 has none"),
    ],
)
def test_split_refuses(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        replace(make_split(), **{field: value})


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("name", "", "name must not be empty"),
        ("modalities", ("b", "a"), "train.features must hold the modalities"),
        ("modalities", ("a", "a"), "modalities must be distinct"),
        ("modalities", ["a", "b"], "modalities must be a non-empty tuple"),
        ("num_classes", 1, "num_classes must be at least 2"),
        ("class_names", ("no",), "class_names must hold num_classes = 2"),
        ("train", make_split(0), "train must hold at least one sample"),
        ("test", make_split(2, width=4), r"test.features\['a'\] must have samples of shape \(3,\)"),
        ("test", replace(make_split(2), labels=torch.tensor([0, 2])), r"test.labels must lie in 0\.\.1"),
    ],
)
def test_dataset_refuses(field: str, value: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make_dataset(**{field: value})


def test_no_modality_takes_the_name_of_an_inner_part() -> None:
    inner = set(_inner_names())
    assert inner == set(RESERVED_MODALITIES)
    for name in inner:
        split = replace(make_split(), features={name: torch.zeros(4, 3), "b": torch.zeros(4, 2, 5)})
        with pytest.raises(ValueError, match=f"modalities must not be named '{name}'"):
            make_dataset(modalities=(name, "b"), train=split, validation=split, test=split)


def _inner_names() -> Iterator[str]:
    """Yield the names beside the modalities' in a simulation's checkpoint, where the method has a generator."""
    simulation = build_simulation(preset("mfeat", "dmml-kd"))
    (rows,) = simulation.state_dict()["rows"]
    yield from set(rows) - set(simulation.dataset.modalities)


def test_select_takes_rows_in_order() -> None:
    split = replace(make_split(3), labels=torch.tensor([5, 6, 7]))
    chosen = split.select(torch.tensor([2, 0]))
    assert chosen.labels.tolist() == [7, 5]
    assert len(chosen) == 2


def test_what_is_there_already_is_not_copied() -> None:
    dataset = make_dataset()
    assert dataset.to(torch.device("cpu")) is dataset
    assert dataset.train.to(torch.device("cpu")) is dataset.train
