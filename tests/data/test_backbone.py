from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from dmmlkd_ext.data import backbone as room
from dmmlkd_ext.data import frozen_features


@pytest.fixture(autouse=True)
def calls(tmp_path, monkeypatch):
    """Count how often features are computed, with a cache of the test's own."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    counted, compute = [], room._apply
    monkeypatch.setattr(room, "_apply", lambda *given: counted.append(1) or compute(*given))
    return counted


def make() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5))


def test_features_are_those_of_evaluation_and_leave_the_module_as_it_was(calls):
    network, inputs = make(), torch.randn(7, 3, dtype=torch.float64)
    statistics = network[1].running_mean.clone()
    found = frozen_features(network, inputs, batch_size=2)
    assert network.training
    assert torch.equal(network[1].running_mean, statistics)
    assert torch.allclose(torch.from_numpy(found), network.eval()(inputs.float()), atol=1e-6)


def test_the_same_is_kept_and_other_weights_or_inputs_are_not(calls):
    network, inputs = make(), np.random.default_rng(0).normal(size=(5, 3))
    first = frozen_features(network, inputs)
    assert np.array_equal(frozen_features(make(), inputs), first)
    assert len(calls) == 1
    frozen_features(network, inputs + 1)
    network[0].weight.data[0, 0] += 1
    assert not np.array_equal(frozen_features(network, inputs), first)
    assert len(calls) == 3


def test_a_sample_that_lacks_the_modality_stays_without():
    inputs = np.ones((3, 3))
    inputs[1] = np.nan
    found = frozen_features(make(), inputs)
    assert np.isnan(found).all(axis=1).tolist() == [False, True, False]
    with pytest.raises(ValueError, match="at least one sample with values"):
        frozen_features(make(), inputs[1:2])
    with pytest.raises(ValueError, match="batch_size must be at least 1, got 0"):
        frozen_features(make(), inputs, batch_size=0)
