from __future__ import annotations

import itertools

import pytest
import torch
from torch.nn import functional as F

from dmmlkd_ext.model.convolution import convolve, convolve_reference
from dmmlkd_ext.ops import backend

native_only = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")

# space, kernel, stride, channels, out channels: those of the encoders, then odd ones
SHAPES = [
    ((128,), 5, 2, 3, 16),
    ((64,), 5, 2, 16, 32),
    ((28, 28), 3, 2, 1, 8),
    ((14, 14), 3, 2, 8, 16),
    ((7, 7), 3, 2, 16, 32),
    ((6, 9), 3, 1, 5, 33),
    ((6, 9), 5, 3, 33, 7),
    ((7, 4), 1, 2, 3, 9),
    ((5, 6), 3, 3, 2, 24),
    ((1, 1), 3, 2, 2, 3),
    ((2,), 1, 3, 4, 17),
    ((1,), 5, 2, 1, 1),
]


def draw(*shape: int, dtype: torch.dtype = torch.float64) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=torch.float64).to(dtype)


def operands(space, kernel, channels, out, devices=3, samples=5, dtype=torch.float64, channels_first=False):
    inputs = draw(devices, samples, *space, channels, dtype=dtype)
    if channels_first:
        inputs = inputs.movedim(-1, 2).contiguous().movedim(2, -1)
    weight = draw(devices, kernel ** len(space) * channels, out, dtype=dtype)
    bias = draw(devices, out, dtype=dtype)
    return tuple(operand.requires_grad_() for operand in (inputs, weight, bias))


def both(function, leaves, *arguments):
    """The outputs and the gradients in all leaves, for an upstream gradient that the shape gives."""
    outputs = function(*leaves, *arguments)
    upstream = draw(*outputs.shape, dtype=outputs.dtype)
    return (outputs, *torch.autograd.grad(outputs, leaves, upstream))


def loop_oracle(inputs, weight, bias, kernel, stride, rectify):
    """Float64 sums by the definition, position by position."""
    if inputs.dim() == 4:
        windows = weight.shape[1] // kernel
        tall = weight.new_zeros(len(weight), kernel, kernel, windows, weight.shape[2])
        tall[:, kernel // 2] = weight.detach().unflatten(1, (kernel, windows))
        return loop_oracle(inputs.unsqueeze(2), tall.flatten(1, 3), bias, kernel, stride, rectify).squeeze(2)
    devices, samples, height, width, channels = inputs.shape
    taps = weight.double().unflatten(1, (kernel, kernel, channels))
    outputs = bias.double().view(devices, 1, 1, 1, -1).repeat(1, samples, -(-height // stride), -(-width // stride), 1)
    for (y, x), i, j in itertools.product(
        itertools.product(range(0, height, stride), range(0, width, stride)), range(kernel), range(kernel)
    ):
        row, column = y + i - kernel // 2, x + j - kernel // 2
        if 0 <= row < height and 0 <= column < width:
            outputs[:, :, y // stride, x // stride] += inputs[:, :, row, column].double() @ taps[:, i, j]
    return outputs.clamp_min(0) if rectify else outputs


@pytest.mark.parametrize("space", [(1,), (2,), (9,), (10,), (1, 1), (6, 9), (7, 4)])
@pytest.mark.parametrize(("kernel", "stride"), [(1, 1), (3, 1), (5, 2), (3, 2), (5, 3)])
@pytest.mark.parametrize("implementation", [convolve, convolve_reference])
def test_each_device_has_its_own_convolution(implementation, space, kernel, stride):
    leaves = operands(space, kernel, 3, 4, devices=2)
    inputs, weight, bias = leaves
    reference = F.conv1d if len(space) == 1 else F.conv2d
    expected = []
    for device in range(2):
        windows = weight[device].view(*(kernel,) * len(space), 3, 4).permute(-1, -2, *range(len(space)))
        result = reference(inputs[device].movedim(-1, 1), windows, bias[device], stride, kernel // 2)
        expected.append(result.movedim(1, -1))
    stacked = torch.stack(expected)
    wanted = torch.autograd.grad(stacked, leaves, draw(*stacked.shape))
    for got, want in zip(both(implementation, leaves, kernel, stride), (stacked, *wanted), strict=True):
        torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("rectify", [False, True])
@pytest.mark.parametrize("channels_first", [False, True])
def test_outputs_and_gradients_match_the_reference(shape, rectify, channels_first, instruction_set):
    space, kernel, stride, channels, out = shape
    for dtype, tolerance in ((torch.float64, 1e-12), (torch.float32, 2e-5)):
        leaves = operands(space, kernel, channels, out, dtype=dtype, channels_first=channels_first)
        got = both(convolve, leaves, kernel, stride, rectify)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        if rectify and dtype == torch.float32:  # an output within rounding of 0 may open in one and not in the other
            near = convolve_reference(*wide, kernel, stride).abs() < 1e-4
            if near.any():
                continue
        for value, want in zip(got, both(convolve_reference, wide, kernel, stride, rectify), strict=True):
            torch.testing.assert_close(
                value.double(), want, rtol=tolerance, atol=tolerance * float(want.detach().abs().max())
            )


@pytest.mark.parametrize("shape", SHAPES[1:], ids=str)
@pytest.mark.parametrize("implementation", [convolve, convolve_reference])
def test_outputs_match_the_definition(implementation, shape):
    space, kernel, stride, channels, out = shape
    leaves = operands(space, kernel, channels, out, devices=2, samples=2)
    with torch.no_grad():
        for rectify in (False, True):
            expected = loop_oracle(*leaves, kernel, stride, rectify)
            torch.testing.assert_close(implementation(*leaves, kernel, stride, rectify), expected)


@pytest.mark.parametrize("channels", range(1, 34))
def test_any_number_of_channels(channels, instruction_set):
    for space, out in (((5, 4), 34 - channels), ((7,), channels)):
        leaves = operands(space, 3, channels, out, devices=2, samples=3, dtype=torch.float32)
        wide = [leaf.detach().double().requires_grad_() for leaf in leaves]
        for got, want in zip(both(convolve, leaves, 3, 2), both(convolve_reference, wide, 3, 2), strict=True):
            torch.testing.assert_close(got.double(), want, rtol=2e-5, atol=2e-5 * float(want.detach().abs().max()))


@pytest.mark.parametrize("empty", [(0, 3), (2, 0)])
def test_no_samples_and_no_devices(empty, instruction_set):
    devices, samples = empty
    leaves = operands((6, 5), 3, 2, 4, devices, samples)
    outputs = convolve(*leaves, 3, 2, True)
    assert outputs.shape == (devices, samples, 3, 3, 4)
    gradients = torch.autograd.grad(outputs, leaves, torch.ones_like(outputs))
    for gradient, leaf in zip(gradients, leaves, strict=True):
        assert gradient.shape == leaf.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("space", [(11,), (6, 7)])
def test_strides_do_not_matter(space, instruction_set):
    wide = draw(3, 4, *space, 10)
    weight, bias = draw(3, 2 * 5 * 3 ** len(space), 8), draw(3, 16)
    cases = [
        (wide[..., ::2], weight[:, ::2], bias[:, ::2]),
        (wide[..., :5].flip(2), weight[:, : 5 * 3 ** len(space)], bias[:, 8:]),
        (wide[:1, :, ..., 5:].expand(3, *wide.shape[1:-1], 5), weight[:, 1::2], bias[:1, :8].expand(3, 8)),
        (wide[..., :1].expand(*wide.shape[:-1], 5), weight[:1, ::2].expand(3, -1, 8), bias[:, :8]),
        (wide.transpose(2, -2)[..., 3:8], weight[:, ::2].transpose(1, 2).contiguous().transpose(1, 2), bias[:, :8]),
    ]
    for case in cases:
        leaves = [operand.detach().requires_grad_() for operand in case]
        for upstream_of in (lambda y: draw(*y.shape), lambda y: draw(*y.shape[:2], y.shape[-1])):
            results = []
            for function in (convolve, convolve_reference):
                outputs = function(*leaves, 3, 2, True)
                upstream = upstream_of(outputs)
                if upstream.dim() < outputs.dim():  # as a mean over space gives it: expanded
                    upstream = upstream.view(*upstream.shape[:2], *(1,) * len(space), -1).expand(outputs.shape)
                results.append((outputs, *torch.autograd.grad(outputs, leaves, upstream)))
            for got, want in zip(*results, strict=True):
                torch.testing.assert_close(got, want)


@pytest.mark.parametrize("shape", [((64,), 5, 2, 16, 32), ((9, 8), 3, 2, 3, 5)], ids=str)
def test_any_number_of_threads_gives_the_same_bits(shape):
    space, kernel, stride, channels, out = shape
    leaves = operands(space, kernel, channels, out, devices=7, samples=40, dtype=torch.float32)
    alone = both(convolve, leaves, kernel, stride, True)
    torch.set_num_threads(2)
    for one, two in zip(alone, both(convolve, leaves, kernel, stride, True), strict=True):
        assert torch.equal(one, two)


def test_a_device_and_a_sample_do_not_depend_on_others(instruction_set):
    inputs, weight, bias = operands((9, 8), 3, 3, 5, devices=3, samples=40, dtype=torch.float32)
    outputs = convolve(inputs, weight, bias, 3, 2, True)
    part = convolve(inputs[1:2, 7:20], weight[1:2], bias[1:2], 3, 2, True)
    assert torch.equal(outputs[1:2, 7:20], part)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_rectifier_passes_nothing_at_zero_and_nan_on(dtype, instruction_set):
    inputs = torch.zeros(1, 3, 4, 2, dtype=dtype)
    inputs[0, 2, 1, 0] = float("nan")
    inputs.requires_grad_()
    weight, bias = torch.ones(1, 6, 9, dtype=dtype).requires_grad_(), torch.zeros(1, 9, dtype=dtype).requires_grad_()
    outputs = convolve(inputs, weight, bias, 3, 1, True)
    assert (outputs[0, :2] == 0).all()
    assert outputs[0, 2, :3].isnan().all()
    gradients = torch.autograd.grad(outputs[:, :2].sum(), (inputs, bias))
    assert all((gradient == 0).all() for gradient in gradients)


def test_data_needs_no_gradient():
    inputs, weight, bias = operands((9, 8), 3, 3, 5)
    outputs = convolve(inputs.detach(), weight, bias, 3, 2, True)
    got = torch.autograd.grad(outputs.sum(), (weight, bias))
    want = torch.autograd.grad(convolve_reference(inputs, weight, bias, 3, 2, True).sum(), (weight, bias))
    for one, other in zip(got, want, strict=True):
        torch.testing.assert_close(one, other)


@pytest.mark.parametrize("shape", [((5,), 3, 2, 2, 3), ((4, 3), 3, 2, 2, 3), ((3, 4), 3, 1, 1, 9)], ids=str)
@pytest.mark.parametrize("rectify", [False, True])
def test_gradcheck(shape, rectify, instruction_set):
    space, kernel, stride, channels, out = shape
    leaves = operands(space, kernel, channels, out, devices=2, samples=2)
    assert torch.autograd.gradcheck(lambda *operand: convolve(*operand, kernel, stride, rectify), leaves)


@native_only
@pytest.mark.parametrize("space", [(7,), (4, 5)])
@pytest.mark.parametrize("needs_inputs", [False, True])
def test_opcheck(space, needs_inputs):
    inputs, weight, bias = operands(space, 3, 2, 5, dtype=torch.float32)
    arguments = (inputs.requires_grad_(needs_inputs), weight, bias, 3, 2, True)
    torch.library.opcheck(torch.ops.dmmlkd.convolve.default, arguments)
    outputs = convolve(*arguments).detach()
    torch.library.opcheck(
        torch.ops.dmmlkd.convolve_backward.default,
        (outputs.cos(), inputs.detach(), weight.detach(), outputs, 3, 2, True, needs_inputs),
    )


@native_only
def test_derivatives_of_derivatives_are_refused_and_function_transforms_work():
    leaves = operands((7,), 3, 2, 5)
    outputs = convolve(*leaves, 3, 2, True)
    with pytest.raises(NotImplementedError, match="derivatives of derivatives"):
        torch.autograd.grad(outputs.sum(), leaves, create_graph=True)

    def total(weight):
        return convolve(leaves[0].detach(), weight, leaves[2].detach(), 3, 2, True).sum()

    (expected,) = torch.autograd.grad(outputs.sum(), leaves[1])
    torch.testing.assert_close(torch.func.grad(total)(leaves[1].detach()), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_takes_the_reference(dtype):
    leaves = operands((9, 8), 3, 3, 5)
    half = [leaf.detach().to(dtype) for leaf in leaves]
    outputs = convolve(*half, 3, 2, True)
    assert outputs.dtype == dtype
    torch.testing.assert_close(
        outputs.double(), convolve(*(leaf.double() for leaf in half), 3, 2, True), rtol=0.02, atol=0.05
    )


@native_only
@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"inputs": torch.ones(2, 3, 4)}, "inputs must be float32 or float64 of shape"),
        ({"weight": torch.ones(2, 17, 5)}, "weight must be .* = \\[2, 18, out\\]"),
        ({"weight": torch.ones(1, 18, 5)}, "weight must be"),
        ({"weight": torch.ones(2, 18, 5, dtype=torch.float64)}, "weight must be Float"),
        ({"bias": torch.ones(2, 4)}, "bias must be .* \\[2, 5\\]"),
        ({"bias": torch.ones(5)}, "bias must be"),
        ({"kernel": 2}, "kernel must be odd"),
        ({"stride": 0}, "stride must be in"),
    ],
)
def test_bad_arguments_are_named(change, message):
    arguments = {
        "inputs": torch.ones(2, 3, 4, 4, 2),
        "weight": torch.ones(2, 18, 5),
        "bias": torch.ones(2, 5),
        "kernel": 3,
        "stride": 2,
    }
    with pytest.raises(ValueError, match=message):
        convolve(**(arguments | change))
