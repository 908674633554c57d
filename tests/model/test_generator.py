from __future__ import annotations

import torch
from torch import nn
from torch.nn.functional import one_hot
from torch.nn.utils import vector_to_parameters

from dmmlkd_ext.model.generator import FeatureGenerator
from tests.model.test_encoders import count_multiplications

GENERATOR = FeatureGenerator(num_classes=3, feature_width=4, noise_width=2, hidden_width=7)


def make_layers() -> nn.Sequential:
    return nn.Sequential(nn.Linear(2 + 3, 7), nn.ReLU(), nn.Linear(7, 4))


def test_each_device_generates_by_its_own_layers():
    draw = torch.Generator().manual_seed(0)
    rows = torch.randn(3, GENERATOR.layout.size, generator=draw)
    noise, labels = torch.randn(6, 2, generator=draw), torch.tensor([0, 0, 1, 2, 2, 1])
    features = GENERATOR.forward(GENERATOR.layout.views(rows), noise, labels)
    assert features.shape == (3, 6, 4)
    for row, own in zip(rows, features, strict=True):
        layers, views = make_layers(), GENERATOR.layout.views(row.unsqueeze(0))
        transposed = [value[0].movedim(0, -1).flatten() for value in views.values()]
        vector_to_parameters(torch.cat(transposed), layers.parameters())
        torch.testing.assert_close(layers(torch.cat([noise, one_hot(labels, 3).float()], 1)), own)


def test_its_size_and_multiplications_are_those_of_its_layers():
    assert GENERATOR.layout.size == sum(values.numel() for values in make_layers().parameters())
    assert GENERATOR.forward_macs == count_multiplications(make_layers(), torch.zeros(1, 5))


def test_a_device_generates_the_same_whatever_the_others_have():
    rows = torch.randn(2, GENERATOR.layout.size, generator=torch.Generator().manual_seed(0))
    noise, labels = torch.ones(3, 2), torch.tensor([0, 1, 2])
    before = GENERATOR.forward(GENERATOR.layout.views(rows), noise, labels)
    rows[0] += 1
    after = GENERATOR.forward(GENERATOR.layout.views(rows), noise, labels)
    assert torch.equal(before[1], after[1])
    assert not torch.equal(before[0], after[0])
