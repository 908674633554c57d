"""convolve: against one grouped convolution of torch, and against a matrix product of as many multiply-adds.

A layer takes positions * window * channels * out channels multiply-adds forward, as many for the gradient of its
weights, and as many for that of its inputs, which the first layer leaves out. The limit is the rate of the GEMM
library, on a product that is large enough to reach it.
"""

from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.model.convolution import convolve, convolve_reference
from tests.benchmarks.paired import interleave

DEVICES = 20

# name, batch, space, kernel, channels, out channels: the layers of the datasets' encoders, all of stride 2
LAYERS = [
    ("watch 1", 16, (128,), 5, 3, 16),
    ("watch 2", 16, (64,), 5, 16, 32),
    ("image 1", 32, (28, 28), 3, 1, 8),
    ("image 2", 32, (14, 14), 3, 8, 16),
    ("image 3", 32, (7, 7), 3, 16, 32),
    ("audio 1", 32, (32, 32), 3, 1, 8),
    ("audio 2", 32, (16, 16), 3, 8, 16),
    ("audio 3", 32, (8, 8), 3, 16, 32),
]


@pytest.mark.parametrize(("name", "batch", "space", "kernel", "channels", "out"), LAYERS)
def test_forward_and_gradients(benchmark, results, threads, name, batch, space, kernel, channels, out):
    first = name.endswith("1")
    weight = torch.randn(DEVICES, kernel ** len(space) * channels, out, requires_grad=True)
    bias = torch.randn(DEVICES, out, requires_grad=True)
    # Each in the layout in which it meets its inputs: channels first as data have them, else as it left them itself.
    native = reference = torch.randn(DEVICES, batch, channels, *space).movedim(2, -1)
    if not first:
        native = native.contiguous().requires_grad_()
        grouped = native.detach().movedim(-1, 2).transpose(0, 1).contiguous()
        reference = grouped.transpose(0, 1).movedim(2, -1).requires_grad_()

    def both(function, inputs):
        leaves = (weight, bias) if first else (inputs, weight, bias)
        outputs = function(inputs, weight, bias, kernel, 2, True)
        return torch.autograd.grad(outputs, leaves, torch.ones(()).expand(outputs.shape))

    positions = DEVICES * batch * convolve(native[:1, :1], weight[:1], bias[:1], kernel, 2).shape[2:-1].numel()
    products = positions * weight.shape[1] * out * (2 if first else 3)
    left, right = torch.randn(products // 256**2, 256), torch.randn(256, 256)
    functions = {
        "native": lambda: both(convolve, native),
        "reference": lambda: both(convolve_reference, reference),
        "limit: a product": lambda: torch.mm(left, right),
    }
    times = interleave(functions)
    benchmark.extra_info.update(results.add("convolve", name, "outputs + gradients", times, {"reference": 1.0}))
    benchmark.pedantic(functions["native"], rounds=3)
