"""The loss of a large head in chunks equals that of its logits, which are never held at once."""

from __future__ import annotations

import subprocess
import sys

import pytest
import torch

from dmmlkd_ext.ops import fused_linear_pairwise_kl, pairwise_kl_similarity


def with_gradients(function, *tensors):
    leaves = [tensor.detach().clone().requires_grad_() for tensor in tensors]
    loss = function(*leaves)
    loss.sum().backward()
    return loss.detach(), *(leaf.grad for leaf in leaves)


@pytest.mark.parametrize("reduction", ["mean", "mean_present", "sum", "none"])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("chunk", [1, 500, 10**9])
def test_equals_the_loss_of_the_logits(reduction, masked, chunk):
    torch.manual_seed(0)
    tensors = torch.randn(2, 5, 3, 8), torch.randn(70, 8), torch.randn(70)
    mask = torch.rand(5, 3) < 0.6 if masked else None

    def fused(features, weight, bias):
        return fused_linear_pairwise_kl(features, weight, mask, reduction, bias=bias, chunk=chunk)

    def plain(features, weight, bias):
        return pairwise_kl_similarity(torch.nn.functional.linear(features, weight, bias), mask, reduction)

    for found, expected in zip(with_gradients(fused, *tensors), with_gradients(plain, *tensors), strict=True):
        torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_an_empty_batch(reduction):
    loss = fused_linear_pairwise_kl(torch.zeros(3, 0, 2, 4), torch.zeros(5, 4), None, reduction)
    assert loss.shape == ((3, 0) if reduction == "none" else ())
    assert (loss == 0).all()


def test_half_precision_and_autocast():
    torch.manual_seed(0)
    features, weight = torch.randn(6, 2, 8, dtype=torch.bfloat16), torch.randn(90, 8, dtype=torch.bfloat16)
    expected = pairwise_kl_similarity(features.float() @ weight.float().T)
    loss = fused_linear_pairwise_kl(features, weight, chunk=200)
    assert loss.dtype == torch.bfloat16
    torch.testing.assert_close(loss.float(), expected, rtol=2e-2, atol=0)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert fused_linear_pairwise_kl(features.float(), weight.float()).dtype == torch.float32


MEMORY = """
import re, sys, torch
from pathlib import Path
from dmmlkd_ext.ops import fused_linear_pairwise_kl, pairwise_kl_similarity
torch.set_num_threads(1)
def step(samples):
    features, head = torch.randn(samples, 2, 16, requires_grad=True), torch.randn(32_000, 16, requires_grad=True)
    if sys.argv[1] == "fused":
        fused_linear_pairwise_kl(features, head, chunk=2 * 32_000 * 8).backward()
    else:
        pairwise_kl_similarity(features @ head.T).backward()
def peak():  # of this program alone: what getrusage gives begins with that of the process that started it
    return int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1])
step(4)
before = peak()
step(1024)
print(peak() - before)
"""


def peak_growth(form):
    done = subprocess.run([sys.executable, "-c", MEMORY, form], capture_output=True, text=True, check=True)
    return 1024 * int(done.stdout)


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_peak_memory_stays_below_the_logits():
    logits = 1024 * 2 * 32_000 * 4
    assert peak_growth("fused") < logits // 2
    assert peak_growth("plain") > 0.8 * logits


@pytest.mark.parametrize(
    ("arguments", "settings", "words"),
    [
        (([[1.0]], torch.zeros(5, 4)), {}, "features must be a torch.Tensor"),
        ((torch.zeros(4), torch.zeros(5, 4)), {}, "features must have shape"),
        ((torch.zeros(3, 2, 4), torch.zeros(5, 3)), {}, r"head_weight must have shape \[classes, 4\]"),
        ((torch.zeros(3, 2, 4), torch.zeros(5, 4)), {"bias": torch.zeros(4)}, r"bias must have shape \[5\]"),
        ((torch.zeros(3, 2, 4), torch.zeros(5, 4)), {"chunk": 0}, "chunk must be a positive int, got 0"),
        ((torch.zeros(3, 2, 4), torch.zeros(5, 4)), {"reduction": "all"}, "fused_linear_pairwise_kl: reduction must"),
        ((torch.zeros(3, 2, 4), torch.zeros(5, 4), torch.ones(3)), {}, "mask must be bool"),
    ],
)
def test_bad_input_is_named(arguments, settings, words):
    with pytest.raises((TypeError, ValueError), match=words):
        fused_linear_pairwise_kl(*arguments, **settings)
