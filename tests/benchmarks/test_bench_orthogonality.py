"""orthogonality_difference: 6 B d min(B, d) operations, here at the rate that the GEMM library has for its best."""

from __future__ import annotations

import pytest
import torch

from dmmlkd_ext.ops import orthogonality_difference, orthogonality_difference_reference
from tests.benchmarks.paired import interleave

LIMIT = "limit: operations at the rate of torch.mm"

# pairs, samples, features, least ratio to eager autograd
CASES = [
    (2, 32, 32, 2.5),
    (100, 32, 32, 2.5),
    (2, 64, 512, 5),
    (2, 128, 512, 5),
    (2, 256, 256, 2.5),
    (3, 1024, 64, 2.5),
    (2, 2048, 512, 0.97),
]


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("pairs", "samples", "width", "target"), CASES)
def test_loss_and_gradient(benchmark, results, threads, pairs, samples, width, target, normalize):
    common = torch.randn(pairs, samples, width, requires_grad=True)
    specific = torch.randn(pairs, samples, width, requires_grad=True)

    def both(function):
        return lambda: torch.autograd.grad(function(common, specific, None, normalize), (common, specific))

    square = torch.randn(2, 512, 512)
    functions = {
        "native": both(orthogonality_difference),
        "reference": both(orthogonality_difference_reference),
        LIMIT: lambda: torch.mm(square[0], square[1]),
    }
    work = "loss + gradient" + (", normalized" if normalize else "")
    times = interleave(functions)
    operations = 6 * pairs * samples * width * min(samples, width)
    times[LIMIT] = [seconds * operations / (2 * 512**3) for seconds in times[LIMIT]]
    case = f"({pairs}, {samples}, {width})"
    benchmark.extra_info.update(results.add("orthogonality", case, work, times, {"reference": target}))
    benchmark.pedantic(functions["native"], rounds=3)


@pytest.mark.compile
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize(("pairs", "samples", "width"), [(100, 32, 32), (2, 128, 512), (2, 256, 256)])
def test_against_a_loop_and_the_compiled_reference(benchmark, results, pairs, samples, width, normalize):
    torch.set_num_threads(1)
    common, specific = torch.randn(2, pairs, samples, width).unbind(0)
    common.requires_grad_(), specific.requires_grad_()

    def loop(h, s, mask, form):
        return sum(orthogonality_difference_reference(a, b, mask, form) for a, b in zip(h, s, strict=True))

    def both(function):
        return lambda: torch.autograd.grad(function(common, specific, None, normalize), (common, specific))

    functions = {
        "native": both(orthogonality_difference),
        "loop over pairs": both(loop),
        "torch.compile": both(torch.compile(orthogonality_difference_reference)),
    }
    work = "loss + gradient" + (", normalized" if normalize else "")
    times = interleave(functions)
    benchmark.extra_info.update(results.add("orthogonality", f"({pairs}, {samples}, {width})", work, times))
    benchmark.pedantic(functions["native"], rounds=3)


@pytest.mark.parametrize("size", [32, 256])
def test_fraction_of_the_product_rate(benchmark, results, size):
    torch.set_num_threads(1)
    common, specific = torch.randn(2, 4, size, size).unbind(0)
    common.requires_grad_(), specific.requires_grad_()

    def products():
        with torch.no_grad():
            for _ in range(3):
                torch.bmm(common, specific)

    def native():
        loss = orthogonality_difference(common, specific)
        return torch.autograd.grad(loss, (common, specific))

    times = interleave({"native": native, "limit: three products": products})
    benchmark.extra_info.update(results.add("orthogonality", f"(4, {size}, {size})", "loss + gradient", times))
    benchmark.pedantic(native, rounds=3)
