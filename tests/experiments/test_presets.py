from __future__ import annotations

import pytest

from dmmlkd_ext.data import register_dataset
from dmmlkd_ext.data.registry import _LOADERS
from dmmlkd_ext.experiments.config.presets import PRESETS, preset
from dmmlkd_ext.training.methods import METHODS


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("dataset", PRESETS)
def test_methods_of_a_dataset_differ_in_the_method_alone(dataset: str, method: str) -> None:
    config, reference = preset(dataset, method, seed=2), preset(dataset, "dmml", seed=2)
    assert config.method == METHODS[method]
    assert (config.data, config.training, config.energy, config.topology, config.seed) == (
        reference.data,
        reference.training,
        reference.energy,
        reference.topology,
        2,
    )
    assert config.data.dataset == dataset


STARTING_VALUES = {
    "watch": (16, 0.05, 2e-3, 0.2),
    "mfeat": (32, 0.1, 1e-3, 0.0),
    "avdigits": (32, 0.05, 5e-3, 0.5),
}
"""Batch size, learning rate, weight decay and input noise of METHOD 8."""


@pytest.mark.parametrize("dataset", STARTING_VALUES)
def test_the_starting_values_are_those_of_the_method(dataset: str) -> None:
    training = preset(dataset).training
    values = (training.batch_size, training.learning_rate, training.weight_decay, training.input_noise)
    assert values == STARTING_VALUES[dataset]
    assert (training.momentum, training.clip_norm, training.final_learning_rate_fraction) == (0.9, 2.0, 0.1)


def test_a_dataset_of_ones_own_gets_the_defaults(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dmmlkd_ext.data.registry._LOADERS", dict(_LOADERS))
    register_dataset("one of my own", lambda seed=0: None)
    assert preset("one of my own").data.dataset == "one of my own"


def test_unknown_names_are_refused_with_what_there_is() -> None:
    with pytest.raises(ValueError, match=r"dataset must be one of .*mfeat.*watch.*; got 'wacht'"):
        preset("wacht")
    with pytest.raises(ValueError, match=r"method must be one of local, dmml.*; got 'dml'"):
        preset("watch", "dml")
    with pytest.raises(ValueError, match="seed must be at least 0, got -1"):
        preset("watch", seed=-1)
