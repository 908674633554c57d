from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import vector_to_parameters

from dmmlkd_ext.model.encoders import ConvolutionalEncoder, PerceptronEncoder, make_encoder, rectifier_scale
from dmmlkd_ext.model.layout import BlockLayout
from dmmlkd_ext.model.network import SHARED, MultiModalNetwork
from tests.training.plain_loop import PlainDevice, make_layers, module_columns

SHAPES = {
    "vector": (6,),
    "single value": (1,),
    "short wave": (2, 3),
    "wave": (3, 33),
    "image": (1, 12, 9),
    "tiny image": (2, 1, 3),
}


def network_of(*names: str) -> MultiModalNetwork:
    return MultiModalNetwork({name: SHAPES[name] for name in names}, num_classes=4, feature_width=3, hidden_width=5)


@pytest.mark.parametrize("name", SHAPES)
def test_all_devices_at_once_equal_torch_layers_of_each(name):
    network = network_of(name)
    layouts = network.layouts
    generator = torch.Generator().manual_seed(0)
    block = torch.randn(3, layouts[name].size, generator=generator, dtype=torch.float64)
    shared = torch.randn(3, layouts[SHARED].size, generator=generator, dtype=torch.float64)
    inputs = torch.randn(3, 7, *SHAPES[name], generator=generator, dtype=torch.float64)
    features = network.forward(name, layouts[name].views(block), layouts[SHARED].views(shared)["head"], inputs)
    for number in range(3):
        device = PlainDevice(network, [name]).double()
        vector_to_parameters(block[number, module_columns(network, name)], device.block(name).parameters())
        vector_to_parameters(shared[number, module_columns(network, SHARED)], device.block(SHARED).parameters())
        for got, expected in zip(features, device({name: inputs[number]}), strict=True):
            torch.testing.assert_close(got[number], expected[0])


@pytest.mark.parametrize("name", SHAPES)
def test_encodings_have_the_width_that_is_told(name):
    encoder = make_encoder(SHAPES[name], 5)
    layout = BlockLayout(encoder.parameters())
    weights = layout.views(layout.initialize(torch.Generator().manual_seed(0)).unsqueeze(0))
    assert encoder.forward(weights, torch.ones(1, 2, *SHAPES[name])).shape == (1, 2, encoder.output_features)


def count_multiplications(module: nn.Module, inputs: torch.Tensor) -> int:
    """Count the multiply-accumulates of a sample by watching the layers: outputs times values that each reads."""
    total = 0

    def watch(layer: nn.Module, _: object, outputs: torch.Tensor) -> None:
        nonlocal total
        total += outputs[0].numel() * layer.weight[0].numel()

    for layer in module.modules():
        if isinstance(layer, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            layer.register_forward_hook(watch)
    module(inputs)
    return total


@pytest.mark.parametrize("name", SHAPES)
def test_multiplications_of_an_encoder_are_those_of_its_layers(name):
    encoder = make_encoder(SHAPES[name], 5)
    assert encoder.forward_macs == count_multiplications(make_layers(encoder), torch.zeros(2, *SHAPES[name]))


@given(
    st.lists(st.integers(1, 40), min_size=2, max_size=3),
    st.lists(st.integers(1, 6), min_size=1, max_size=3).map(tuple),
    st.sampled_from([1, 3, 5]),
    st.integers(1, 3),
)
@settings(max_examples=30, deadline=None)
def test_multiplications_of_any_convolutions_are_those_of_their_layers(shape, channels, kernel, stride):
    encoder = ConvolutionalEncoder(tuple(shape), channels, kernel, stride)
    layers = make_layers(encoder)
    assert encoder.forward_macs == count_multiplications(layers, torch.zeros(2, *shape))
    assert layers(torch.zeros(2, *shape)).shape == (2, encoder.output_features)


def test_a_shape_chooses_its_encoder():
    assert make_encoder((9,), 64) == PerceptronEncoder(9, 64)
    assert make_encoder((3, 128), 64) == ConvolutionalEncoder((3, 128), (16, 32))
    image = make_encoder((1, 28, 28), 64)
    assert isinstance(image, ConvolutionalEncoder)
    assert (image.input_shape, image.channels) == ((1, 28, 28), (8, 16, 32))


@pytest.mark.parametrize("shape", [(), (1, 2, 3, 4)])
def test_a_shape_without_an_encoder_is_refused(shape):
    with pytest.raises(ValueError, match=r"shape must be .*got"):
        make_encoder(shape, 64)


def test_the_initial_scale_keeps_the_variance_through_rectifiers():
    assert rectifier_scale(8) == 0.5
    encoder = PerceptronEncoder(200, 400)
    layout = BlockLayout(encoder.parameters())
    weights = layout.views(layout.initialize(torch.Generator().manual_seed(0)).unsqueeze(0))
    inputs = torch.randn(1, 500, 200, generator=torch.Generator().manual_seed(1))
    square = encoder.forward(weights, inputs).square().mean().item()
    assert math.sqrt(square) == pytest.approx(1.0, rel=0.1)
