from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.optimizer import sgd_step, sgd_step_reference
from tests.ops.instruction_sets import instruction_sets, kernels_of


@pytest.mark.parametrize("kernels", instruction_sets())
@pytest.mark.parametrize("step", [sgd_step, sgd_step_reference])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("columns", [1, 15, 16, 17, 1000])
def test_it_is_the_optimizer_of_torch(step, dtype, columns, kernels):
    generator = torch.Generator().manual_seed(0)
    wide = torch.randn(3, columns + 5, generator=generator, dtype=dtype)
    parameters, momentum = wide[:, 2 : 2 + columns], torch.zeros(3, columns, dtype=dtype)
    untouched = wide.clone()
    twin = torch.nn.Parameter(parameters.clone())
    optimizer = torch.optim.SGD([twin], lr=0.1, momentum=0.9, weight_decay=0.01)
    scale = torch.tensor([1.0, 0.25, 0.0], dtype=dtype)
    for _ in range(4):
        gradient = torch.randn(3, columns, generator=generator, dtype=dtype)
        with kernels_of(kernels):
            step(parameters, momentum, gradient, scale, 0.1, 0.9, 0.01)
        twin.grad = gradient * scale.unsqueeze(1)
        optimizer.step()
    torch.testing.assert_close(parameters, twin.detach())
    torch.testing.assert_close(momentum, optimizer.state[twin]["momentum_buffer"])
    outside = [0, 1, *range(2 + columns, columns + 5)]
    assert torch.equal(wide[:, outside], untouched[:, outside])


@pytest.mark.parametrize("shape", [(7, 30_000), (1, 200_000), (3000, 11)])
def test_the_same_bits_on_any_number_of_threads(shape):
    results = []
    for threads in (1, 2, 3):
        generator = torch.Generator().manual_seed(0)
        parameters, momentum, gradient = (torch.randn(shape, generator=generator) for _ in range(3))
        torch.set_num_threads(threads)
        sgd_step(parameters, momentum, gradient, torch.rand(shape[0], generator=generator), 0.1, 0.9, 0.01)
        results.append((parameters, momentum))
    for other in results[1:]:
        assert all(torch.equal(ours, theirs) for ours, theirs in zip(results[0], other, strict=True))


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"momentum": torch.zeros(2, 3)}, "momentum must be like parameters"),
        ({"gradient": torch.zeros(2, 4, dtype=torch.float64)}, "gradient must be like parameters"),
        ({"scale": torch.zeros(3)}, "scale must be Float of shape"),
        ({"gradient": torch.zeros(4, 2).T}, "rows must be contiguous"),
    ],
)
def test_bad_input_is_named_and_writes_nothing(change, words):
    arguments = {name: torch.ones(2, 4) for name in ("parameters", "momentum", "gradient")} | {"scale": torch.ones(2)}
    arguments |= change
    with pytest.raises(ValueError, match=words):
        sgd_step(*arguments.values(), 0.1, 0.9, 0.0)
    assert (arguments["parameters"] == 1).all()
