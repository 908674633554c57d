"""The digits that the CUDA kernels keep where terms are large and results small, against the CPU's oracles."""

import math

import pytest
import torch

from tests.ops.oracles import pairwise_kl_oracle

NONE = 0
# A tile in shared memory; registers; a sample streamed from shared memory, and from global memory.
SHAPES = [(60, 2, 3), (60, 2, 10), (40, 3, 10), (30, 5, 12), (20, 3, 200), (6, 8, 1000), (12, 9, 40)]
STREAMED = [(3, 3, 9000)]


def random_logits(*shape, seed=0):
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def oracle(logits, mask=None):
    """Each sample's loss in float64, and its gradient."""
    leaf = logits.double().requires_grad_()
    losses = pairwise_kl_oracle(leaf, mask)
    (losses.sum() + 0 * leaf.nan_to_num(0, 0, 0).sum()).backward()  # zeros where nothing depends on leaf
    return losses.detach(), leaf.grad


def worst_errors(kernels, logits, mask=None):
    """The largest relative errors of a sample's loss and of its gradient."""
    loss, gradient = kernels.pairwise_kl(logits, mask, NONE)
    expected, slope = oracle(logits, mask)
    size = slope.flatten(1).norm(dim=1)
    distance = (gradient.double() - slope).flatten(1).norm(dim=1) / size
    distance = distance[size > 1e-8]  # below, the sum over p is too near to 1 for the oracle itself
    return float(((loss.double() - expected).abs() / expected).max()), float(distance.max())


@pytest.mark.parametrize("shape", SHAPES + STREAMED, ids=str)
@pytest.mark.parametrize("offset", [0.0, 6.0, -30.0, 3000.0, 1e4])
def test_a_constant_between_modalities_costs_no_digits(kernels, shape, offset):
    logits = random_logits(shape[0], 1, shape[2]) + 0.1 * random_logits(*shape, seed=1)
    logits[:, 1] += offset
    loss, gradient = worst_errors(kernels, logits)
    # What an offset leaves of the logits' own digits is the input; its loss is known to all digits of float32.
    few = shape[2] == 3  # a sample of few classes may have almost no loss
    assert loss < (5e-5 if few else 1e-5)
    assert gradient < (5e-5 if few else 1e-5)


@pytest.mark.parametrize("shape", SHAPES + STREAMED, ids=str)
@pytest.mark.parametrize("scale", [10.0, 30.0])
def test_gradients_of_confident_predictions(kernels, shape, scale):
    logits = scale * random_logits(*shape)
    assert worst_errors(kernels, logits)[1] < 1e-4
    _, gradient = kernels.pairwise_kl(logits, None, NONE)
    assert (gradient.sum(-1).abs() <= 1e-4 * gradient.abs().sum(-1) + 1e-30).all()


@pytest.mark.parametrize("modalities", [2, 9])
def test_the_gradient_of_one_confident_sample(kernels, modalities):
    logits = torch.tensor([[12.0, -12.0], [13.0, -13.0]]).repeat(5, 1)[:modalities].unsqueeze(0)
    _, gradient = kernels.pairwise_kl(logits, None, NONE)
    torch.testing.assert_close(gradient.double(), oracle(logits)[1], rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", SHAPES + STREAMED, ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("offset", [0.0, 100.0])
def test_classes_that_all_present_modalities_exclude_count_nothing(kernels, shape, masked, offset):
    logits = 2 * random_logits(*shape)
    logits[:, 1] += offset
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    held = torch.ones(shape[:-1], dtype=torch.bool) if mask is None else mask
    excluded = torch.rand(shape[0], 1, shape[2], generator=torch.Generator().manual_seed(2)) < 0.4
    excluded[::3] = False
    excluded[..., 0] = False
    excluded[1, :, 1:] = True  # one class is left
    logits = logits.masked_fill(excluded & held.unsqueeze(-1), -torch.inf)
    loss, gradient = kernels.pairwise_kl(logits, mask, NONE)
    expected, slope = oracle(logits, mask)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-5)
    assert (gradient[excluded.expand(shape)] == 0).all()


@pytest.mark.parametrize("shape", SHAPES + STREAMED, ids=str)
def test_a_class_that_one_modality_alone_excludes_shows(kernels, shape):
    logits = random_logits(*shape)
    logits[0, :1, 1] = logits[1, 1:, 1] = logits[2, :, :] = -torch.inf
    loss, gradient = kernels.pairwise_kl(logits, None, NONE)
    assert loss[:3].isnan().all()
    assert gradient[:3].isnan().all()
    assert loss[3:].isfinite().all()


SQUARE = torch.tensor([0, 2, 3, 5]), torch.tensor([0, 1, 1, 1, 2]), torch.tensor([0.5, 0.5, 1.0, 0.25, 0.75])


@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-19, 1e-15, 1e15, 1e19, 1e30])
@pytest.mark.parametrize("columns", [3, 64, 200, 8300])
@pytest.mark.parametrize("mixed_in", [False, True], ids=["alone", "beside ordinary ones"])
def test_norms_neither_overflow_nor_underflow(kernels, scale, columns, mixed_in):
    local, start = random_logits(3, columns) * scale, random_logits(3, columns, seed=1) * scale
    start[2, ::2] = local[2, ::2] = 0
    if mixed_in:
        local[:, columns // 2 :] /= scale
    norms = kernels.gossip_mix(local, SQUARE, start.clone(), 0, columns, True)
    torch.testing.assert_close(norms[0], (local - start).double().square().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(norms[1], start.double().square().sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_norms_of_what_is_not_finite_show(kernels, bad):
    local, start = random_logits(3, 200), random_logits(3, 200, seed=1)
    local[1, 7] = bad
    start[2, 150] = bad
    norms = kernels.gossip_mix(local, SQUARE, start.clone(), 0, 200, True)
    assert norms[:, 0].isfinite().all()
    assert not norms[0, 1:].isfinite().any()
    assert not norms[1, 2].isfinite()
