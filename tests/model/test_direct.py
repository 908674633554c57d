"""Layers that write their gradients, against automatic differentiation of `linear` and `convolve_reference`."""

from __future__ import annotations

from itertools import pairwise

import pytest
import torch

from dmmlkd_ext.model import direct
from dmmlkd_ext.model.convolution import convolve_reference
from dmmlkd_ext.model.direct import Layers
from dmmlkd_ext.model.layers import linear
from dmmlkd_ext.ops import backend
from tests.ops.instruction_sets import instruction_sets, kernels_of

TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 2e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}
WAYS = ["native", "reference"]


def way(name: str, of: str):
    return getattr(direct, name + ("_reference" if of == "reference" else ""))


def draw(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


def rows_of(shapes: list[tuple[int, ...]], devices: int, dtype: torch.dtype, value: float | None = None):
    """Rows that hold parameters of these shapes, as a block does, and three values more; and views of them."""
    sizes = [torch.Size(shape).numel() for shape in shapes]
    rows = draw(devices, sum(sizes) + 3, dtype=dtype, seed=0) / 4
    if value is not None:
        rows.fill_(value)
    parts = rows.split([*sizes, 3], dim=1)[:-1]
    return rows, [part.unflatten(1, shape) for part, shape in zip(parts, shapes, strict=True)]


@pytest.mark.parametrize("of", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(("biased", "rectified"), [(2, 2), (2, 1), (0, 0), (3, 3), (1, 2)])
@pytest.mark.parametrize(
    ("devices", "samples", "widths"),
    [
        (2, 32, (64, 64, 64, 64)),
        (3, 7, (6, 10, 1, 5)),
        (1, 1, (1, 1, 1, 1)),
        (2, 33, (17, 47, 16, 20)),
        (2, 0, (3, 4, 5, 6)),
        (0, 5, (3, 4, 5, 6)),
    ],
)
def test_linear_layers_equal_automatic_differentiation(devices, samples, widths, biased, rectified, dtype, of):
    shapes = [*pairwise(widths), *((width,) for width in widths[1 : 1 + biased])]
    _, parameters = rows_of(shapes, devices, dtype)
    leaves = [value.clone().requires_grad_() for value in parameters]
    inputs = draw(devices, samples, widths[0], dtype=dtype, seed=1).requires_grad_()
    expected, values = [], inputs
    for layer in range(3):
        values = linear(values, leaves[layer], leaves[3 + layer] if layer < biased else None)
        values = values.relu() if layer < rectified else values
        expected.append(values)
    upstream = draw(*values.shape, dtype=dtype, seed=2)
    gradients = torch.autograd.grad(values, [inputs, *leaves], upstream)

    made = way("linear_layers_forward", of)(inputs, Layers(parameters[:3], parameters[3:]), rectified)
    assert not any(value.requires_grad for value in made)
    for own, other in zip(made, expected, strict=True):
        torch.testing.assert_close(own, other.detach(), **TOLERANCES[dtype])
    rows, into = rows_of(shapes, devices, dtype, value=7.0)
    backward = way("linear_layers_backward", of)
    layers = Layers(parameters[:3], parameters[3:])
    found = backward(upstream, inputs, layers, made, Layers(into[:3], into[3:]), rectified, with_inputs=True)
    for own, other in zip((found, *into), gradients, strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[dtype])
    assert (rows[:, -3:] == 7).all()
    again = [torch.empty_like(value) for value in into]
    assert backward(upstream, inputs, layers, made, Layers(again[:3], again[3:]), rectified).numel() == 0
    assert all(torch.equal(own, other) for own, other in zip(again, into, strict=True))


def test_inputs_may_be_shared_between_devices():
    inputs = draw(1, 5, 3, dtype=torch.float64, seed=0).expand(2, 5, 3)
    weight, upstream = draw(2, 3, 4, dtype=torch.float64, seed=1), draw(2, 5, 4, dtype=torch.float64, seed=2)
    outputs = direct.linear_layers_forward(inputs, Layers([weight], []), rectified=0)
    torch.testing.assert_close(outputs[0], inputs @ weight)
    into = [torch.empty(2, 3, 4, dtype=torch.float64)]
    direct.linear_layers_backward(upstream, inputs, Layers([weight], []), outputs, Layers(into, []), 0)
    torch.testing.assert_close(into[0], inputs.transpose(1, 2) @ upstream)


@pytest.mark.parametrize("of", WAYS)
def test_a_value_that_is_no_number_is_kept(of):
    inputs, layers = torch.tensor([[[float("nan")], [1.0]]]), Layers([torch.ones(1, 1, 2)], [torch.zeros(1, 2)])
    outputs = way("linear_layers_forward", of)(inputs, layers, rectified=1)
    assert outputs[0][0, 0].isnan().all()
    assert (outputs[0][0, 1] == 1).all()
    into = Layers([torch.empty(1, 1, 2)], [])
    backward = way("linear_layers_backward", of)
    assert (backward(torch.ones(1, 2, 2), inputs, layers, outputs, into, 1, with_inputs=True) == 2).all()


@pytest.mark.parametrize("of", WAYS)
@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize(
    ("devices", "samples", "space", "kernel", "stride", "channels"),
    [
        (3, 16, (64,), 5, 2, (3, 16, 32)),
        (2, 7, (13, 10), 3, 2, (1, 8, 16, 32)),
        (2, 3, (9,), 3, 1, (5, 7, 3)),
        (1, 40, (5, 6), 5, 3, (2, 9)),
        (2, 0, (8,), 3, 2, (2, 3, 4)),
        (0, 4, (8,), 3, 2, (2, 3, 4)),
    ],
)
def test_convolutions_equal_automatic_differentiation(devices, samples, space, kernel, stride, channels, dtype, of):
    window, layers = kernel ** len(space), len(channels) - 1
    shapes = [(window * fan_in, out) for fan_in, out in pairwise(channels)] + [(out,) for out in channels[1:]]
    _, parameters = rows_of(shapes, devices, dtype)
    leaves = [value.clone().requires_grad_() for value in parameters]
    values = inputs = draw(devices, samples, channels[0], *space, dtype=dtype, seed=1).movedim(2, -1)
    expected = []
    for layer in range(layers):
        values = convolve_reference(values, leaves[layer], leaves[layers + layer], kernel, stride, rectify=True)
        expected.append(values)
    means = values.flatten(2, -2).mean(2)
    upstream = draw(*values.shape, dtype=dtype, seed=2)
    gradients = torch.autograd.grad(values, leaves, upstream)

    forward = way("convolve_layers_forward", of)
    stack = Layers(parameters[:layers], parameters[layers:])
    made = forward(inputs, stack, kernel, stride, with_means=True)
    for own, other in zip(made, (*expected, means), strict=True):
        torch.testing.assert_close(own, other.detach(), **TOLERANCES[dtype], equal_nan=True)
    rows, into = rows_of(shapes, devices, dtype, value=7.0)
    arguments = inputs, stack, made[:-1], Layers(into[:layers], into[layers:]), kernel, stride
    way("convolve_layers_backward", of)(upstream, *arguments)
    for own, other in zip(into, gradients, strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[dtype])
    assert (rows[:, -3:] == 7).all()
    way("convolve_layers_backward", of)(upstream.movedim(-1, 2).contiguous().movedim(2, -1), *arguments)
    for own, other in zip(into, gradients, strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[dtype])


@pytest.mark.parametrize("kernels", instruction_sets())
def test_every_instruction_set_and_number_of_threads(kernels):
    inputs, upstream = draw(5, 9, 20, 3, dtype=torch.float32, seed=0), draw(5, 9, 5, 7, dtype=torch.float32, seed=1)
    shapes = [(9, 10), (30, 7), (10,), (7,)]
    _, parameters = rows_of(shapes, 5, torch.float32)
    layers, results = Layers(parameters[:2], parameters[2:]), []
    for threads in (1, 3):
        torch.set_num_threads(threads)
        _, into = rows_of(shapes, 5, torch.float32)
        with kernels_of(kernels):
            made = direct.convolve_layers_forward(inputs, layers, 3, 2)
            direct.convolve_layers_backward(upstream, inputs, layers, made, Layers(into[:2], into[2:]), 3, 2)
        results.append([*made, *into])
    assert all(torch.equal(own, other) for own, other in zip(*results, strict=True))
    reference = direct.convolve_layers_forward_reference(inputs, layers, 3, 2)
    for own, other in zip(results[0][:2], reference, strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[torch.float32])


native = pytest.mark.skipif(backend() != "native", reason="what torch says is torch's own")


@native
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": [torch.ones(2, 4, 5)]}, r"weights of layer 0 must be Float of shape \[2, 3, out\]"),
        ({"weights": [torch.ones(2, 3, 5), torch.ones(2, 4, 5)]}, r"weights of layer 1 must be Float of shape \[2, 5"),
        ({"weights": []}, "weights must hold at least one layer"),
        ({"biases": [torch.ones(2, 4)]}, "biases must be Float of shape"),
        ({"biases": [torch.ones(2, 5)] * 2}, "biases no more than those, got 1 and 2"),
        ({"rectified": 2}, r"rectified must be in \[0, 1\], got 2"),
        ({"inputs": torch.ones(2, 3)}, r"inputs must be float32 or float64 of shape \[devices, samples, in\]"),
    ],
)
def test_what_does_not_fit_a_linear_layer_is_named(change, words):
    arguments = {"inputs": torch.ones(2, 4, 3), "weights": [torch.ones(2, 3, 5)], "biases": [], "rectified": 0}
    with pytest.raises(ValueError, match=words):
        torch.ops.dmmlkd.linear_layers(**(arguments | change))


@native
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weight_gradients": [torch.empty(2, 5, 3).mT]}, "weight_gradients must be contiguous in each device"),
        ({"weight_gradients": []}, "must hold one tensor a layer = 1"),
        ({"upstream": torch.ones(1, 4, 5)}, "upstream must be Float of shape"),
        ({"outputs": [torch.ones(2, 4, 4)]}, "outputs must be Float of shape"),
        ({"bias_gradients": [torch.ones(2, 5).double()]}, "bias_gradients must be Float"),
    ],
)
def test_what_does_not_fit_a_gradient_is_named(change, words):
    arguments = {
        "upstream": torch.ones(2, 4, 5),
        "inputs": torch.ones(2, 4, 3),
        "weights": [torch.ones(2, 3, 5)],
        "outputs": [torch.ones(2, 4, 5)],
        "weight_gradients": [torch.full((2, 3, 5), 7.0)],
        "bias_gradients": [],
        "rectified": 0,
        "with_inputs": False,
    }
    with pytest.raises(ValueError, match=words):
        torch.ops.dmmlkd.linear_layers_backward_(**(arguments | change))
    assert (arguments["weight_gradients"][0] == 7).all()


@native
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"weights": []}, "weights must hold at least one layer"),
        ({"outputs": []}, "outputs must hold one tensor a layer = 1, got 0"),
        ({"outputs": [torch.ones(2, 4, 5, 7)]}, r"outputs must be Float of shape \[2, 4, 5, 6\]"),
        ({"upstream": torch.ones(2, 4, 5, 7)}, "upstream must be Float of shape"),
        ({"weight_gradients": [torch.ones(2, 6, 9).mT]}, "weight_gradients must be contiguous in each device"),
        ({"bias_gradients": [torch.ones(2, 5)]}, "bias_gradients must be Float of shape"),
        ({"kernel": 2}, "kernel must be odd"),
    ],
)
def test_what_does_not_fit_a_convolution_is_named(change, words):
    arguments = {
        "upstream": torch.ones(2, 4, 5, 6),
        "inputs": torch.ones(2, 4, 9, 3),
        "weights": [torch.ones(2, 9, 6)],
        "outputs": [torch.ones(2, 4, 5, 6)],
        "weight_gradients": [torch.full((2, 9, 6), 7.0)],
        "bias_gradients": [torch.ones(2, 6)],
        "kernel": 3,
        "stride": 2,
    }
    with pytest.raises(ValueError, match=words):
        torch.ops.dmmlkd.convolve_layers_backward_(**(arguments | change))
    assert (arguments["weight_gradients"][0] == 7).all()
