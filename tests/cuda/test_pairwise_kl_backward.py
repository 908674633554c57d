"""The backward pass of the pairwise KL similarity on CUDA: one pass, with the upstream gradient in it."""

import pytest
import torch

from dmmlkd_ext.ops import backend, pairwise_kl_similarity, pairwise_kl_similarity_reference
from dmmlkd_ext.ops import pairwise_kl as pairwise_kl_module

NONE, MEAN, SUM = 0, 1, 2
# Tiles in shared memory, registers, a streamed sample.
SHAPES = [(300, 2, 10), (4, 5, 3, 17), (41, 5, 401), (3, 8, 1000), (6, 9, 33), (2, 3, 9000)]


def random_logits(*shape, dtype=torch.float32):
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(0))).to(dtype)


def random_mask(shape):
    return torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_is_the_saved_gradient_times_the_upstream_one(kernels, shape, dtype, reduction):
    logits, mask = random_logits(*shape, dtype=dtype), random_mask(shape[:-1])
    leading = shape[:-2] if reduction == NONE else ()
    compute = torch.float64 if dtype == torch.float64 else torch.float32
    upstream = torch.linspace(-2.0, 3.0, max(1, torch.Size(leading).numel()), dtype=compute).reshape(leading)
    gradient = kernels.pairwise_kl_backward(upstream, logits, mask, reduction)
    saved = kernels.pairwise_kl(logits.to(compute), mask, reduction)[1] * upstream[..., None, None]
    assert gradient.dtype == dtype
    rounding = torch.finfo(dtype).eps
    floor = 6e-8 if dtype == torch.float16 else 0
    torch.testing.assert_close(gradient.to(compute), saved, rtol=2 * rounding, atol=floor)


def test_strides_and_the_layout_of_the_gradient(kernels):
    upstream = torch.linspace(-1.0, 1.0, 20).reshape(4, 5)
    for logits in (random_logits(5, 4, 3, 10).transpose(0, 1), random_logits(4, 5, 10, 3).mT):
        gradient = kernels.pairwise_kl_backward(upstream.mT.contiguous().mT, logits, None, NONE)
        saved = kernels.pairwise_kl(logits, None, NONE)[1]
        torch.testing.assert_close(gradient, saved * upstream[..., None, None])
        assert gradient.stride() == saved.stride()


@pytest.mark.parametrize("shape", [(0, 3, 10), (4, 1, 10)], ids=str)
def test_nothing_to_compare(kernels, shape):
    gradient = kernels.pairwise_kl_backward(torch.ones(shape[:-2]), random_logits(*shape), None, NONE)
    assert torch.equal(gradient, torch.zeros(shape))


def test_a_loss_that_is_not_finite_shows(kernels):
    logits = random_logits(3, 3, 10)
    logits[1, 0, 2] = torch.inf
    gradient = kernels.pairwise_kl_backward(torch.ones(3), logits, None, NONE)
    assert gradient[1].isnan().all()
    assert gradient[[0, 2]].isfinite().all()


def test_refuses_what_does_not_fit(kernels):
    logits = random_logits(4, 3, 10)
    with pytest.raises(
        ValueError, match=r"upstream must be floating, of the loss's shape \[4\], got Float of shape \[\]"
    ):
        kernels.pairwise_kl_backward(torch.ones(()), logits, None, NONE)
    with pytest.raises(ValueError, match=r"upstream must be floating, of the loss's shape \[\], got Long"):
        kernels.pairwise_kl_backward(torch.ones((), dtype=torch.int64), logits, None, MEAN)
    with pytest.raises(ValueError, match="mask must broadcast"):
        kernels.pairwise_kl_backward(torch.ones(4), logits, torch.ones(4, 2, dtype=torch.bool), NONE)


@pytest.fixture
def as_on_cuda(emulated_library, monkeypatch):
    """The Python function goes the way of CUDA on CPU tensors, with the emulated kernel."""
    if backend() == "reference":
        pytest.skip("the native extension is not in use")
    library = torch.library.Library("dmmlkd", "IMPL")
    library.impl("pairwise_kl_backward", torch.ops.dmmlkd_emulated.pairwise_kl_backward.default, "CPU")
    monkeypatch.setattr(pairwise_kl_module, "_gradient_comes_later", lambda _: True)
    yield
    library._destroy()


@pytest.mark.parametrize("reduction", ["none", "mean", "sum", "mean_present"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
def test_the_function_computes_its_gradient_in_the_backward_pass(as_on_cuda, reduction, dtype):
    mask = random_mask((20, 3))
    results = []
    for function in (pairwise_kl_similarity, pairwise_kl_similarity_reference):
        leaf = random_logits(20, 3, 10, dtype=dtype).requires_grad_()
        loss = function(leaf, mask, reduction)
        (loss * torch.linspace(-1, 2, loss.numel()).reshape(loss.shape)).sum().backward()
        results.append(leaf.grad)
    assert results[0].dtype == dtype
    torch.testing.assert_close(*results, rtol=1e-4 if dtype == torch.float32 else 5e-3, atol=1e-6)


def test_no_gradient_is_kept_between_the_passes(as_on_cuda):
    logits = random_logits(20, 3, 10).requires_grad_()
    kept = []
    with torch.autograd.graph.saved_tensors_hooks(lambda x: kept.append(x) or x, lambda x: x):
        loss = pairwise_kl_similarity(logits)
    assert [x.data_ptr() for x in kept] == [logits.data_ptr()]
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)


def test_derivatives_of_any_order(as_on_cuda):
    logits = random_logits(3, 3, 4, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(pairwise_kl_similarity, logits)
    assert torch.autograd.gradgradcheck(pairwise_kl_similarity, logits)
