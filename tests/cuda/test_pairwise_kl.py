"""The CUDA kernel of the pairwise KL similarity against a float64 loop over pairs."""

import math

import pytest
import torch

NONE, MEAN, SUM = 0, 1, 2
LOSS_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}
GRADIENT_TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 2e-3, torch.bfloat16: 1e-2}


def pairwise_loop(logits, mask, reduction):
    """The loss by its definition, and its gradient by autograd, in float64."""
    logits = logits.double().clone().requires_grad_()
    modalities = logits.shape[-2]
    mask = torch.ones(logits.shape[:-1], dtype=torch.bool) if mask is None else mask.expand(logits.shape[:-1])
    # What is absent may hold anything, NaN too.
    log_p = torch.log_softmax(logits.masked_fill(~mask.unsqueeze(-1), 0.0), dim=-1)
    total = log_p.sum(dim=(-2, -1)) * 0
    for m in range(modalities):
        for other in range(modalities):
            if m != other:
                pair = (log_p[..., m, :].exp() * (log_p[..., m, :] - log_p[..., other, :])).sum(-1)
                total = total + pair.where(mask[..., m] & mask[..., other], torch.zeros_like(pair))
    count = mask.sum(-1)
    losses = total / (count * (count - 1)).clamp_min(1)
    loss = losses if reduction == NONE else losses.sum() / (max(losses.numel(), 1) if reduction == MEAN else 1)
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    return loss.detach(), gradient


def check(kernels, logits, mask=None, reduction=MEAN):
    loss, gradient = kernels.pairwise_kl(logits, mask, reduction)
    expected_loss, expected_gradient = pairwise_loop(logits.cpu(), mask, reduction)
    assert loss.dtype == gradient.dtype == logits.dtype
    assert loss.shape == expected_loss.shape
    assert gradient.shape == logits.shape
    tolerance = LOSS_TOLERANCE[logits.dtype]
    torch.testing.assert_close(loss.double(), expected_loss, rtol=tolerance, atol=tolerance * 1e-2)
    # Where modalities agree, what is left is the rounding of probabilities; float16 has a smallest number besides.
    weight = 1 / logits.shape[:-2].numel() if reduction == MEAN else 1
    floor = 6e-8 if logits.dtype == torch.float16 else torch.finfo(logits.dtype).eps * weight
    scale = expected_gradient.abs().max().item()
    tolerance = GRADIENT_TOLERANCE[logits.dtype] * scale + floor
    torch.testing.assert_close(gradient.double(), expected_gradient, rtol=0, atol=tolerance)
    if mask is not None:
        absent = ~mask.expand(logits.shape[:-1])
        assert (gradient[absent] == 0).all()
    return loss, gradient


def random_logits(*shape, dtype=torch.float32, seed=0):
    return (2 * torch.randn(shape, generator=torch.Generator().manual_seed(seed))).to(dtype)


def random_mask(*shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


SHAPES = [
    (1, 2, 1),
    (32, 2, 10),
    (300, 2, 10),  # more than a block
    (1000, 2, 3),
    (9, 3, 1),
    (41, 5, 401),
    (64, 6, 100),
    (5, 7, 33),
    (6, 8, 1000),
    (2, 4, 3000),
    (3, 5, 64),
    (4, 3, 2, 17),
    (2, 9, 40),  # more modalities than are unrolled
    (3, 20, 1100),
    (2, 3, 20000),  # more classes than shared memory holds
    (2, 10),  # no leading dimension
]


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_matches_the_definition(kernels, shape, dtype):
    check(kernels, random_logits(*shape, dtype=dtype))
    check(kernels, random_logits(*shape, dtype=dtype, seed=2), random_mask(*shape[:-1]), NONE)


@pytest.mark.parametrize("shape", [(300, 2, 10), (41, 5, 401), (2, 9, 40), (2, 3, 20000)], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16], ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_matches_the_definition_in_the_other_dtypes(kernels, shape, dtype, reduction):
    check(kernels, random_logits(*shape, dtype=dtype), random_mask(*shape[:-1]), reduction)


@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
@pytest.mark.parametrize("shape", [(7, 2, 10), (900, 3, 10), (600, 9, 5)], ids=str)
def test_reductions(kernels, shape, reduction):
    check(kernels, random_logits(*shape), random_mask(*shape[:-1]), reduction)


@pytest.mark.parametrize("shape", [(300, 2, 10), (41, 5, 401), (64, 6, 100), (6, 8, 1000), (3, 4, 3000)], ids=str)
@pytest.mark.parametrize("max_shared", [20 * 1024, 48 * 1024, 64 * 1024])
@pytest.mark.parametrize("processors", [1, 132])
def test_devices_of_other_sizes(kernels, shape, max_shared, processors):
    if not kernels.emulated:
        pytest.skip("a GPU has the size it has")
    kernels.resize(processors, max_shared)
    check(kernels, random_logits(*shape), random_mask(*shape[:-1]))
    check(kernels, random_logits(*shape, dtype=torch.float64))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=str)
@pytest.mark.parametrize(
    "view",
    [
        lambda: random_logits(3, 40, 10).transpose(0, 1),  # one modality after the other
        lambda: random_logits(3, 40, 64).transpose(0, 1),
        lambda: random_logits(40, 10, 3).transpose(1, 2),  # classes apart
        lambda: random_logits(10, 3, 40).permute(2, 1, 0),
        lambda: random_logits(5, 300, 3).transpose(1, 2),
        lambda: random_logits(2, 9000, 3).transpose(1, 2),
        lambda: random_logits(3, 2, 4, 300).permute(1, 0, 2, 3)[:, ::2],
        lambda: random_logits(40, 3, 24)[:, :, 3:20],
        lambda: random_logits(40, 3, 24)[:, :, 8:24],
        lambda: random_logits(40, 6, 16)[:, ::2],
        lambda: random_logits(80, 3, 16)[::2],
        lambda: random_logits(1, 3, 16).expand(40, 3, 16),
        lambda: random_logits(40, 1, 16).expand(40, 3, 16),
        lambda: random_logits(40, 3, 1).expand(40, 3, 16),
        lambda: random_logits(4, 3, 5, 17).permute(2, 0, 1, 3),
        lambda: random_logits(6, 4, 3, 5, 17)[::2].permute(3, 1, 0, 2, 4),
        lambda: random_logits(2, 3, 2, 2, 3, 2, 2, 2, 9).permute(6, 4, 2, 0, 5, 3, 1, 7, 8),  # too many to merge
        lambda: random_logits(20 * 3 * 10 + 1)[1:].view(20, 3, 10),  # begins between two aligned addresses
        lambda: random_logits(20 * 3 * 16 + 1)[1:].view(20, 3, 16),
        lambda: random_logits(1 * 3 * 16 + 3)[3:].view(1, 3, 16),
    ],
)
def test_views(kernels, view, dtype):
    logits = view()
    memory = torch.empty(0).set_(logits.untyped_storage()).to(kernels.device, dtype)
    logits = memory.as_strided(logits.shape, logits.stride(), logits.storage_offset())
    check(kernels, logits)
    check(kernels, logits, random_mask(*logits.shape[:-1]), NONE)


@pytest.mark.parametrize("shape", [(1,), (3,), (40, 1), (1, 3), (5, 1, 3)])
def test_masks_broadcast(kernels, shape):
    check(kernels, random_logits(5, 40, 3, 10), random_mask(*shape, seed=3))


@pytest.mark.parametrize("shape", [(8, 3, 10), (4, 8, 1000), (4, 9, 33), (4, 2, 10)], ids=str)
def test_one_or_no_modality_left(kernels, shape):
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    mask[0, :2] = True
    mask[1, -1] = True
    mask[2, 0] = mask[2, -1] = True
    loss, gradient = check(kernels, random_logits(*shape), mask, NONE)
    assert (loss[[1, 3]] == 0).all()
    assert (gradient[[1, 3]] == 0).all()


@pytest.mark.parametrize("shape", [(0, 3, 10), (4, 0, 3, 10), (4, 1, 10), (1, 1, 1)], ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_nothing_to_compare(kernels, shape, reduction):
    loss, gradient = kernels.pairwise_kl(random_logits(*shape), None, reduction)
    assert loss.shape == (shape[:-2] if reduction == NONE else ())
    assert (loss == 0).all()
    assert gradient.shape == shape
    assert (gradient == 0).all()


def test_gradient_only_on_demand(kernels):
    logits = random_logits(40, 3, 10)
    loss, gradient = kernels.pairwise_kl(logits, None, MEAN, with_gradient=False)
    assert gradient.shape == (0,)
    assert loss == kernels.pairwise_kl(logits, None, MEAN)[0]


@pytest.mark.parametrize("shape", [(6, 3, 10), (3, 8, 1000), (2, 3, 20000), (3, 9, 40)], ids=str)
@pytest.mark.parametrize("bad", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("rows", [[0], [1], [0, 1, 2]], ids=str)
def test_what_is_not_finite_shows(kernels, shape, bad, rows):
    if bad == -math.inf and len(rows) == 3:
        rows = [0, 2]  # a class that all modalities exclude counts nothing: test_digits.py
    logits = random_logits(*shape)
    mask = torch.ones(shape[:-1], dtype=torch.bool)
    mask[:, -1] = False
    mask[1, 0] = False
    logits[0, rows, shape[-1] // 2] = bad
    logits[1, 0] = bad  # absent: must not matter
    mask[0, -1] = True
    loss, gradient = kernels.pairwise_kl(logits, mask, NONE)
    assert loss[0].isnan()
    assert gradient[0][mask[0]].isnan().all()
    assert (gradient[0][~mask[0]] == 0).all()
    clean = logits.nan_to_num(0.0, 0.0, 0.0)
    expected_loss, expected_gradient = kernels.pairwise_kl(clean, mask, NONE)
    assert torch.equal(loss[1:], expected_loss[1:])
    assert torch.equal(gradient[1:], expected_gradient[1:])
    assert kernels.pairwise_kl(logits, mask, MEAN)[0].isnan()


@pytest.mark.parametrize("shape", [(6, 2, 10), (6, 3, 1000), (6, 9, 40)], ids=str)
def test_one_modality_that_is_not_finite_is_no_pair(kernels, shape):
    logits = random_logits(*shape)
    logits[:, 0] = math.nan
    mask = torch.zeros(shape[:-1], dtype=torch.bool)
    mask[:, 0] = True
    loss, gradient = kernels.pairwise_kl(logits, mask, NONE)
    assert (loss == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("shape", [(6, 3, 10), (3, 8, 500), (3, 9, 40)], ids=str)
def test_huge_logits(kernels, shape):
    logits = torch.where(random_mask(*shape), 1e4, -1e4)
    check(kernels, logits + random_logits(*shape))


@pytest.mark.parametrize("difference", [1e-3, 1e-5, 0.0])
@pytest.mark.parametrize("shape", [(20, 3, 10), (4, 3, 1000), (4, 9, 100)], ids=str)
def test_modalities_that_nearly_agree(kernels, shape, difference):
    base = random_logits(shape[0], 1, shape[2], seed=4)
    logits = base + difference * random_logits(*shape, seed=5)
    loss, gradient = kernels.pairwise_kl(logits, None, NONE)
    expected_loss, expected_gradient = pairwise_loop(logits, None, NONE)
    assert (loss >= 0).all()
    if difference == 0.0:
        assert (loss == 0).all()
        assert (gradient == 0).all()
    elif difference == 1e-3:
        torch.testing.assert_close(loss.double(), expected_loss, rtol=1e-3, atol=0)
        error = (gradient.double() - expected_gradient).norm() / expected_gradient.norm()
        assert error < 1e-3


@pytest.mark.parametrize("shape", [(20, 2, 1), (20, 3, 1), (20, 7, 1), (4, 9, 1)], ids=str)
def test_one_class_leaves_exactly_nothing(kernels, shape):
    loss, gradient = kernels.pairwise_kl(random_logits(*shape), random_mask(*shape[:-1]), NONE)
    assert (loss == 0).all()
    assert (gradient == 0).all()


@pytest.mark.parametrize("modalities", [2, 3])
def test_three_classes_that_nearly_agree(kernels, modalities):
    logits = random_logits(1000, 1, 3, seed=4) + 1e-3 * random_logits(1000, modalities, 3, seed=5)
    loss, _ = kernels.pairwise_kl(logits, None, NONE)
    expected, _ = pairwise_loop(logits, None, NONE)
    assert ((loss.double() - expected).abs() / expected.mean()).max() < 1e-3


@pytest.mark.parametrize("shape", [(3000, 2, 10), (100, 3, 401), (70, 9, 33)], ids=str)
def test_the_same_bits_each_time(kernels, shape):
    logits, mask = random_logits(*shape), random_mask(*shape[:-1])
    loss, gradient = kernels.pairwise_kl(logits, mask, MEAN)
    for _ in range(3):
        again, gradient_again = kernels.pairwise_kl(logits, mask, MEAN)
        assert torch.equal(loss, again)
        assert torch.equal(gradient, gradient_again)


@pytest.mark.parametrize(
    "dtype",
    [
        torch.float8_e4m3fnuz,
        torch.float8_e5m2fnuz,
        torch.float8_e8m0fnu,
        torch.float8_e5m2,
        torch.int64,
        torch.complex64,
    ],
    ids=str,
)
def test_other_dtypes_are_refused(kernels, dtype):
    logits = torch.zeros(4, 3, 10).to(dtype)
    with pytest.raises(ValueError, match="logits must be float16, bfloat16, float32 or float64"):
        kernels.pairwise_kl(logits)
    weights = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1)
    rows = torch.zeros(1, 8).to(dtype)
    for call in (
        lambda: kernels.gossip_mix(rows, weights, rows.clone(), 0, 8, True),
        lambda: kernels.gossip_mix_inplace(rows, weights, 0, 8),
    ):
        with pytest.raises(ValueError, match="local must be float16, bfloat16, float32 or float64"):
            call()


def test_refuses_what_does_not_fit(kernels):
    with pytest.raises(ValueError, match="mask must be bool"):
        kernels.pairwise_kl(random_logits(4, 3, 10), torch.ones(4, 3))
    with pytest.raises(ValueError, match="mask must broadcast"):
        kernels.pairwise_kl(random_logits(4, 3, 10), torch.ones(4, 2, dtype=torch.bool))
