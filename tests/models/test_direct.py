"""Layers that write their gradients, against automatic differentiation of `linear`."""

from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.models.direct import linear_backward, linear_forward
from dmmlkd_ext.models.layers import linear
from dmmlkd_ext.ops import backend

TOLERANCES = {torch.float32: {"rtol": 1e-4, "atol": 1e-5}, torch.float64: {"rtol": 1e-12, "atol": 1e-12}}


def draw(*shape: int, dtype: torch.dtype, seed: int) -> torch.Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64).to(dtype)


@pytest.mark.parametrize("dtype", TOLERANCES)
@pytest.mark.parametrize("rectify", [True, False])
@pytest.mark.parametrize(
    ("devices", "samples", "inputs", "outputs"),
    [(2, 32, 64, 64), (3, 7, 6, 10), (1, 1, 1, 1), (2, 33, 17, 47), (2, 0, 3, 4), (0, 5, 3, 4), (4, 5, 216, 32)],
)
def test_equals_automatic_differentiation(devices, samples, inputs, outputs, rectify, dtype):
    rows = draw(devices, inputs * outputs + outputs + 3, dtype=dtype, seed=0)
    weight, bias = rows[:, : inputs * outputs].unflatten(1, (inputs, outputs)), rows[:, inputs * outputs : -3]
    leaves = [draw(devices, samples, inputs, dtype=dtype, seed=1), weight.clone(), bias.clone()]
    for leaf in leaves:
        leaf.requires_grad_()
    expected = linear(*leaves)
    expected = expected.relu() if rectify else expected
    upstream = draw(devices, samples, outputs, dtype=dtype, seed=2)
    gradients = torch.autograd.grad(expected, leaves, upstream)

    made = linear_forward(leaves[0], weight, bias, rectify)
    torch.testing.assert_close(made, expected.detach(), **TOLERANCES[dtype])
    target = torch.full_like(rows, 7.0)
    into = target[:, : inputs * outputs].unflatten(1, (inputs, outputs)), target[:, inputs * outputs : -3]
    found = linear_backward(leaves[0], weight, made if rectify else None, upstream, *into)
    for own, other in zip((found, *into), gradients, strict=True):
        torch.testing.assert_close(own, other, **TOLERANCES[dtype])
    assert (target[:, -3:] == 7).all()


def test_inputs_may_be_shared_and_the_bias_and_the_inputs_gradient_left_out():
    inputs = draw(1, 5, 3, dtype=torch.float64, seed=0).expand(2, 5, 3)
    weight = draw(2, 3, 4, dtype=torch.float64, seed=1)
    torch.testing.assert_close(linear_forward(inputs, weight), inputs @ weight)
    into, upstream = torch.empty(2, 3, 4, dtype=torch.float64), draw(2, 5, 4, dtype=torch.float64, seed=2)
    assert linear_backward(inputs, weight, None, upstream, into, with_input_gradient=False).numel() == 0
    torch.testing.assert_close(into, inputs.transpose(1, 2) @ upstream)


def test_a_value_that_is_no_number_is_kept():
    inputs = torch.tensor([[[float("nan")], [1.0]]])
    outputs = linear_forward(inputs, torch.ones(1, 1, 2), torch.zeros(1, 2), rectify=True)
    assert outputs[0, 0].isnan().all()
    assert (outputs[0, 1] == 1).all()
    gradient = linear_backward(inputs, torch.ones(1, 1, 2), outputs, torch.ones(1, 2, 2), torch.empty(1, 1, 2))
    assert (gradient == 2).all()


@pytest.mark.skipif(backend() != "native", reason="what torch says is torch's own")
def test_what_does_not_fit_is_named():
    inputs, weight = torch.ones(2, 4, 3), torch.ones(2, 3, 5)
    with pytest.raises(ValueError, match=r"weight must be Float of shape \[2, 3, out\]"):
        linear_forward(inputs, torch.ones(2, 4, 5))
    with pytest.raises(ValueError, match="bias must be Float of shape"):
        linear_forward(inputs, weight, torch.ones(2, 4))
    skew, upstream = torch.empty(2, 5, 3).transpose(1, 2), torch.ones(2, 4, 5)
    with pytest.raises(ValueError, match="weight_gradient must be contiguous in each device"):
        linear_backward(inputs, weight, None, upstream, skew)
    with pytest.raises(ValueError, match="gradient must be Float of shape"):
        linear_backward(inputs, weight, None, upstream[:1], torch.empty(2, 3, 5))
