from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from tests.model.test_encoders import SHAPES, count_multiplications, network_of
from tests.training.plain_loop import PlainDevice


def test_blocks_are_the_shared_head_and_one_a_modality():
    network = network_of("vector", "wave")
    assert list(network.layouts) == [SHARED, "vector", "wave"]
    assert network.layouts[SHARED].parameters["head"].shape == (3, 4)
    for name in ("vector", "wave"):
        parameters = network.layouts[name].parameters
        assert parameters["projection"].shape == (network.encoders[name].output_features, 6)
        assert parameters["head"].shape == (3, 4)


@pytest.mark.parametrize("name", SHAPES)
def test_blocks_hold_as_many_values_as_torch_layers(name):
    network = network_of(name)
    device = PlainDevice(network, [name])
    for block in (SHARED, name):
        assert network.layouts[block].size == sum(values.numel() for values in device.block(block).parameters())


@pytest.mark.parametrize("name", SHAPES)
def test_multiplications_of_a_modality_are_those_of_its_layers(name):
    network = network_of(name)
    device = PlainDevice(network, [name])
    inputs = torch.zeros(1, *SHAPES[name])
    own = count_multiplications(device.block(name), inputs)
    assert network.forward_macs == {name: own + network.feature_width * network.num_classes}  # and the shared head


def draw_network(devices: int) -> tuple[MultiModalNetwork, torch.Tensor, torch.Tensor, torch.Tensor]:
    network = network_of("vector")
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(devices, network.layouts["vector"].size, generator=generator)
    head = torch.randn(devices, 3, 4, generator=generator)
    return network, block, head, torch.randn(devices, 6, 6, generator=generator)


def test_features_are_a_common_and_a_specific_projection_of_one_encoding():
    network, block, head, inputs = draw_network(2)
    weights = network.layouts["vector"].views(block)
    features = network.forward("vector", weights, head, inputs)
    encoding = network.encoders["vector"].forward(weights, inputs)
    torch.testing.assert_close(features.common, encoding @ weights["projection"][:, :, :3])
    torch.testing.assert_close(features.specific, encoding @ weights["projection"][:, :, 3:])
    torch.testing.assert_close(features.common_logits, features.common @ head)
    torch.testing.assert_close(features.specific_logits, features.specific @ weights["head"])


def test_a_device_does_not_see_the_others():
    network, block, head, inputs = draw_network(3)
    before = network.forward("vector", network.layouts["vector"].views(block), head, inputs)
    block[1] += 1
    inputs[1] += 1
    after = network.forward("vector", network.layouts["vector"].views(block), head, inputs)
    for old, new in zip(before, after, strict=True):
        assert torch.equal(old[[0, 2]], new[[0, 2]])
        assert not torch.equal(old[1], new[1])
