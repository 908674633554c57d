"""pairwise_kl_similarity: 8 bytes an element from memory; in the cache about the work of one exponential each."""

from __future__ import annotations

import itertools

import pytest
import torch

from dmmlkd_ext.ops import fused_linear_pairwise_kl, pairwise_kl_similarity, pairwise_kl_similarity_reference
from tests.benchmarks.paired import interleave

torch.manual_seed(0)


def naive_pairs(logits: torch.Tensor) -> torch.Tensor:
    """Loop over the ordered pairs with kl_div, as a user would write it."""
    log_probability = logits.log_softmax(-1)
    modalities = logits.shape[-2]
    total = logits.new_zeros(())
    for m, n in itertools.permutations(range(modalities), 2):
        total = total + torch.nn.functional.kl_div(
            log_probability[..., n, :], log_probability[..., m, :], reduction="batchmean", log_target=True
        )
    return total / (modalities * (modalities - 1))


def both(function, logits):
    """Loss and gradient."""
    return lambda: torch.autograd.grad(function(logits), logits)


# shape, least ratio to eager closed form and to naive pairs
CASES = [
    ((32, 2, 10), 4, 5),
    ((256, 3, 10), 4, 5),
    ((4096, 2, 10), 12, 18),
    ((500, 3, 100), 3.5, 6),
    ((64, 3, 1000), 5, 12),
]


@pytest.mark.parametrize(("shape", "eager", "naive"), CASES, ids=lambda value: str(value))
def test_loss_and_gradient(benchmark, results, threads, shape, eager, naive):
    logits = torch.randn(shape, requires_grad=True)
    functions = {
        "native": both(pairwise_kl_similarity, logits),
        "reference": both(pairwise_kl_similarity_reference, logits),
        "naive pairs": both(naive_pairs, logits),
        "floor: (x * x).sum()": both(lambda x: (x * x).sum(), logits),
    }
    targets = {"reference": eager, "naive pairs": naive}
    if shape == (32, 2, 10):
        targets["floor: (x * x).sum()"] = 1 / 1.1
    times = interleave(functions)
    benchmark.extra_info.update(results.add("pairwise_kl", str(shape), "loss + gradient", times, targets))
    benchmark.pedantic(functions["native"], rounds=5, iterations=3)


SIZES = [(256, 2, 10), (1000, 3, 10), (4096, 2, 10), (500, 3, 100), (64, 3, 1000), (20000, 6, 10)]


@pytest.mark.parametrize("shape", SIZES, ids=str)
def test_the_operator_against_one_exponential(benchmark, results, threads, shape):
    logits = torch.randn(shape)
    least = logits[:1, :, :2].contiguous()
    functions = {
        "native": lambda: torch.ops.dmmlkd.pairwise_kl_forward(logits, None, 1, True),
        "limit: torch.exp": lambda: torch.exp(logits),
        "native, least": lambda: torch.ops.dmmlkd.pairwise_kl_forward(least, None, 1, True),
        "limit: torch.exp, least": lambda: torch.exp(least),
    }
    times = interleave(functions)
    target = {"limit: torch.exp": 1.0} if threads == 1 else {}
    calls = {name: times.pop(f"{name}, least") for name in ("native", "limit: torch.exp")}
    benchmark.extra_info.update(results.add("pairwise_kl", str(shape), "inside the operator", times, target))
    # What a call of the least size takes is the way from Python to the operator, not its work.
    for name, own in times.items():
        times[name] = [whole - call for whole, call in zip(own, calls[name], strict=True)]
    results.add("pairwise_kl", str(shape), "inside the operator, less a call", times, target)
    benchmark.pedantic(functions["native"], rounds=5, iterations=3)


# The first one's gradient, 48 MB, lies in a block that is kept from call to call; the second one's, 160 MB, does not:
# the kernel then waits for fresh pages, though they are large ones where the system grants them.
@pytest.mark.parametrize("samples", [600_000, 2_000_000])
def test_the_operator_from_memory(benchmark, results, samples):
    torch.set_num_threads(1)
    logits = torch.randn(samples, 2, 10)

    def native():
        return torch.ops.dmmlkd.pairwise_kl_forward(logits, None, 1, True)

    limit, gradient = "limit: 0.8 ns an element", torch.empty_like(logits)
    times = interleave({"native": native, "limit: copy, 2 streams": lambda: gradient.copy_(logits)}, least=5)
    times[limit] = [0.8e-9 * logits.numel()] * len(times["native"])
    case = str(tuple(logits.shape))
    benchmark.extra_info.update(results.add("pairwise_kl", case, "inside the operator", times, {limit: 1.0}))
    benchmark.pedantic(native, rounds=3)


# Loss and gradient from memory against a copy of the logits; and without the logits, by chunks of a head's samples.
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [32_000, 128_000])
def test_large_vocabularies(benchmark, results, classes, dtype):
    torch.set_num_threads(1)
    logits = torch.randn(4, 64, 2, classes, dtype=dtype, requires_grad=True)
    copy = torch.empty_like(logits)
    functions = {
        "native": both(pairwise_kl_similarity, logits),
        "reference": both(pairwise_kl_similarity_reference, logits),
        "limit: copy of the logits": lambda: copy.copy_(logits.detach()),
    }
    times = interleave(functions, least=3)
    case = f"{tuple(logits.shape)}, {str(dtype).removeprefix('torch.')}"
    targets = {"limit: copy of the logits": 1 / 1.2}
    benchmark.extra_info.update(results.add("pairwise_kl", case, "loss + gradient", times, targets))
    benchmark.pedantic(functions["native"], rounds=3)


def test_a_large_head_in_chunks(benchmark, results):
    torch.set_num_threads(1)
    features, head = torch.randn(256, 2, 256, requires_grad=True), torch.randn(32_000, 256, requires_grad=True)

    def gradients(loss):
        return lambda: torch.autograd.grad(loss(), (features, head))

    functions = {
        "native": gradients(lambda: fused_linear_pairwise_kl(features, head)),
        "with the logits": gradients(lambda: pairwise_kl_similarity(features @ head.T)),
        "reference": gradients(lambda: pairwise_kl_similarity_reference(features @ head.T)),
    }
    times = interleave(functions, least=3)
    case = "(256, 2, 256) x 32000"
    benchmark.extra_info.update(results.add("fused_linear_pairwise_kl", case, "all gradients", times))
    benchmark.pedantic(functions["native"], rounds=3)


@pytest.mark.parametrize("devices", [20, 100])
def test_all_devices_in_one_call(benchmark, results, devices):
    torch.set_num_threads(1)
    logits = torch.randn(devices, 32, 2, 10, requires_grad=True)

    def loop(function):
        return lambda: torch.autograd.grad(sum(function(part) for part in logits), logits)

    functions = {
        "native": both(pairwise_kl_similarity, logits),
        "loop over devices": loop(pairwise_kl_similarity),
        "loop of the reference over devices": loop(pairwise_kl_similarity_reference),
    }
    times = interleave(functions)
    # A loop of the native operator costs a call a device and no work twice; 50 is for who has not got it.
    targets = {"loop of the reference over devices": 50.0}
    benchmark.extra_info.update(results.add("pairwise_kl", f"{devices} devices", "loss + gradient", times, targets))
    benchmark.pedantic(functions["native"], rounds=5, iterations=3)


@pytest.mark.compile
@pytest.mark.parametrize(("shape", "target"), [((4096, 2, 10), 4), ((500, 3, 100), 2.5)], ids=str)
def test_against_the_compiled_reference(benchmark, results, shape, target):
    torch.set_num_threads(1)
    logits = torch.randn(shape, requires_grad=True)
    compiled = torch.compile(pairwise_kl_similarity_reference)
    functions = {"native": both(pairwise_kl_similarity, logits), "torch.compile": both(compiled, logits)}
    times = interleave(functions)
    targets = {"torch.compile": float(target)}
    benchmark.extra_info.update(results.add("pairwise_kl", str(shape), "loss + gradient", times, targets))
    benchmark.pedantic(functions["native"], rounds=5, iterations=3)
