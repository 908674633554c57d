"""The CUDA kernels of the orthogonality against float64 sums over samples, in cases like those of the CPU's."""

import itertools

import pytest
import torch

from dmmlkd_ext.ops.orthogonality import orthogonality_difference_reference
from tests.ops.oracles import orthogonality_oracle

NONE, MEAN, SUM = 0, 1, 2
# (leading, samples, features of common, features of specific): both forms, tails in each size, several chunks of rows,
# rows shared out between blocks.
SHAPES = [
    ((), 5, 3, 3),
    ((), 3, 5, 5),
    ((2,), 33, 8, 8),
    ((2,), 8, 33, 33),
    ((3,), 16, 16, 16),
    ((4,), 7, 5, 9),
    ((4,), 7, 40, 3),
    ((2, 3), 6, 4, 11),
    ((1,), 1, 1, 1),
    ((2,), 1, 9, 4),
    ((5,), 41, 1, 7),
    ((2,), 50, 48, 35),
    ((9,), 70, 20, 17),
    ((2,), 45, 64, 99),
    ((1,), 20, 128, 127),
    ((1,), 110, 128, 128),
    ((2,), 300, 12, 20),
]
WIDE = [((2,), 12, 20, 129), ((1,), 140, 130, 140)]  # beyond the kernels
TOLERANCE = {torch.float32: 1e-5, torch.float64: 1e-12, torch.float16: 1e-3, torch.bfloat16: 8e-3}


def random_features(leading, samples, features, other, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(*leading, samples, features, generator=generator, dtype=torch.float64)
    specific = torch.randn(*leading, samples, other, generator=generator, dtype=torch.float64)
    return common.to(dtype), specific.to(dtype)


def random_mask(shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def oracle(common, specific, mask=None, normalize=False):
    h, s = common.detach().double().requires_grad_(), specific.detach().double().requires_grad_()
    losses = orthogonality_oracle(h, s, mask, normalize)
    (losses.sum() + 0 * (h.sum() + s.sum())).backward()
    return losses.detach(), h.grad, s.grad


def check(kernels, common, specific, mask=None, normalize=False, reduction=NONE):
    losses, *slopes = oracle(common, specific, mask, normalize)
    loss, *gradients = kernels.orthogonality(common, specific, mask, normalize, reduction)
    tolerance = TOLERANCE[common.dtype]
    expected = losses if reduction == NONE else losses.mean() if reduction == MEAN else losses.sum()
    assert loss.dtype == common.dtype
    torch.testing.assert_close(loss.double(), expected, rtol=tolerance, atol=tolerance * 0.1)
    factor = 1 / losses.numel() if reduction == MEAN else 1
    for gradient, features, slope in zip(gradients, (common, specific), slopes, strict=True):
        assert gradient.dtype == features.dtype
        assert gradient.is_contiguous()
        # One sample of unit length has no gradient at all; float16 has a smallest number.
        atol = factor * tolerance * max(0.1, float(slope.abs().max())) + (6e-8 if common.dtype == torch.float16 else 0)
        torch.testing.assert_close(gradient.double(), factor * slope, rtol=10 * tolerance, atol=atol)


@pytest.mark.parametrize("shape", SHAPES + WIDE, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_matches_the_definition(kernels, shape, normalize, masked):
    common, specific = random_features(*shape)
    check(kernels, common, specific, random_mask(common.shape[:-1]) if masked else None, normalize)


@pytest.mark.parametrize("shape", [((3,), 20, 6, 8), ((3,), 6, 20, 18), ((1,), 300, 20, 9), WIDE[0]], ids=str)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float16, torch.bfloat16], ids=str)
@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
def test_matches_the_definition_in_the_other_dtypes(kernels, shape, dtype, reduction):
    common, specific = random_features(*shape, dtype=dtype)
    for normalize in (False, True):
        check(kernels, common, specific, random_mask(common.shape[:-1]), normalize, reduction)


@pytest.mark.parametrize("wanted", list(itertools.product([False, True], repeat=2)))
@pytest.mark.parametrize("shape", [((3,), 20, 6, 8), ((3,), 6, 20, 18), ((1,), 300, 20, 9)], ids=str)
def test_gradients_that_are_not_wanted_are_empty(kernels, shape, wanted):
    common, specific = random_features(*shape)
    for reduction in (NONE, MEAN):
        both = kernels.orthogonality(common, specific, None, True, reduction)
        some = kernels.orthogonality(common, specific, None, True, reduction, wanted)
        assert torch.equal(some[0], both[0])
        for gradient, full, asked in zip(some[1:], both[1:], wanted, strict=True):
            assert torch.equal(gradient, full if asked else torch.empty(0))


@pytest.mark.parametrize(
    "shape", [((3,), 20, 60, 18), ((2,), 30, 50, 70), ((1,), 80, 128, 100), ((2,), 200, 33, 8)], ids=str
)
@pytest.mark.parametrize("max_shared", [20 * 1024, 64 * 1024, 163 * 1024])
@pytest.mark.parametrize("processors", [1, 132])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_devices_of_other_sizes(kernels, shape, max_shared, processors, dtype):
    if not kernels.emulated:
        pytest.skip("a GPU has the size it has")
    kernels.resize(processors, max_shared)
    common, specific = random_features(*shape, dtype=dtype)
    check(kernels, common, specific, random_mask(common.shape[:-1]), True, MEAN)


def test_few_pairs_of_many_rows_give_the_same_as_one_block_each(kernels):
    common, specific = random_features((2,), 1000, 17, 12)
    mask = random_mask((2, 1000))
    kernels.resize(processors=132)
    shared_out = kernels.orthogonality(common, specific, mask, True, MEAN)
    kernels.resize(processors=1)
    for one, other in zip(shared_out, kernels.orthogonality(common, specific, mask, True, MEAN), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-9)


# Both forms, rows shared out, and the library.
FORMS = [((3,), 12, 4, 5), ((3,), 4, 12, 15), ((3,), 200, 4, 5), ((3,), 12, 4, 130)]


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", FORMS, ids=str)
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_that_is_not_finite_never_gives_a_number(kernels, shape, normalize, value, side):
    features = random_features(*shape)
    features[side][1, 2] = 0
    features[side][1, 2, 1] = value
    loss, *gradients = kernels.orthogonality(*features, None, normalize)
    assert loss.isfinite().tolist() == [True, False, True]
    assert loss[1].isnan() or not normalize
    for gradient in gradients:
        assert not gradient[1].isfinite().all()
        assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", FORMS, ids=str)
def test_what_an_absent_sample_holds_does_not_matter(kernels, shape, normalize):
    common, specific = random_features(*shape)
    mask = random_mask(common.shape[:-1])
    mask[1] = False  # a matrix without any sample
    absent = ~mask.unsqueeze(-1)
    poisoned = common.masked_fill(absent, float("nan")), specific.masked_fill(absent, float("inf"))
    loss, *gradients = kernels.orthogonality(*poisoned, mask, normalize)
    expected = kernels.orthogonality(common, specific, mask, normalize)
    assert loss[1] == 0
    for one, other in zip((loss, *gradients), expected, strict=True):
        assert torch.equal(one, other)
    for gradient in gradients:
        assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("reduction", [NONE, MEAN, SUM])
@pytest.mark.parametrize("shape", [((), 0, 3, 4), ((2,), 0, 3, 130), ((0,), 5, 3, 3), ((3, 0), 2, 3, 8)], ids=str)
def test_empty_batches_give_zero(kernels, shape, reduction):
    common, specific = random_features(*shape)
    loss, *gradients = kernels.orthogonality(common, specific, None, True, reduction)
    assert loss.shape == (shape[0] if reduction == NONE else ())
    assert (loss == 0).all()
    for gradient, features in zip(gradients, (common, specific), strict=True):
        assert gradient.shape == features.shape
        assert (gradient == 0).all()


@pytest.mark.parametrize("scale", [1e-42, 1e-35, 1e-20, 1e-3, 1e3, 1e15, 3e38])
@pytest.mark.parametrize("shape", [((2,), 9, 5, 4), ((2,), 3, 12, 10), ((2,), 150, 5, 4)], ids=str)
def test_normalized_rows_may_have_any_length(kernels, shape, scale):
    common, specific = random_features(*shape)
    common[:, 0] = 0  # a row without a direction
    common = (common / common.abs().max() * scale).clamp(-3.4e38, 3.4e38)
    expected, slope, _ = oracle(common, specific, None, True)
    loss, gradient, _ = kernels.orthogonality(common, specific, None, True)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    assert (gradient[:, 0] == 0).all()
    if scale > 1e-30:  # below, the gradient leaves float32: it is as large as 1 / scale
        torch.testing.assert_close(gradient.double() * scale, slope * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("sizes", [(1e-30, 1e10), (1e20, 1e-20), (1e-15, 1e-3), (1e12, 1e6)])
@pytest.mark.parametrize("shape", [((2,), 5, 20, 18), ((2,), 20, 5, 6), ((2,), 200, 5, 6), ((2,), 12, 4, 130)], ids=str)
def test_products_that_leave_the_range_where_the_value_does_not(kernels, shape, sizes):
    common, specific = random_features(*shape)
    common, specific = common * sizes[0], specific * sizes[1]
    expected, slope, _ = oracle(common, specific)
    loss, gradient, _ = kernels.orthogonality(common, specific)
    fits = expected < 3e38
    torch.testing.assert_close(loss.double()[fits], expected[fits], rtol=1e-4, atol=0)
    assert loss[~fits].isinf().all()
    if bool(fits.all()) and sizes[0] > 1e-20:
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=1e-4 * float(slope.abs().max()))


@pytest.mark.parametrize(("samples", "features"), [(32, 64), (40, 100), (60, 120), (16, 12)])
@pytest.mark.parametrize("away", [1e-1, 1e-2, 1e-3, 1e-4, 0.0])
@pytest.mark.parametrize("normalize", [False, True])
def test_features_near_the_optimum_keep_their_digits(kernels, normalize, away, samples, features):
    basis = torch.linalg.qr(random_features((), samples, samples, 1, dtype=torch.float64)[0])[0]
    half = samples // 2
    inside, beside = random_features((), half, features, features, seed=1, dtype=torch.float64)
    common = basis[:, :half] @ inside
    common, specific = common.float(), (basis[:, half:] @ beside + away * common).float()
    loss, gradient, _ = kernels.orthogonality(common, specific, None, normalize)
    wide, slope, _ = oracle(common, specific, None, normalize)
    size = 1.0 if normalize else float(common.double().square().sum() * specific.double().square().sum())
    rounding = 2e-13 * size  # the square of that of the product's elements
    assert abs(loss.double() - wide) <= max(1e-5, 1e-9 / max(away, 1e-9)) * wide + rounding
    if away >= 1e-3:
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=1e-2 * float(slope.abs().max()))


@pytest.mark.parametrize("normalize", [False, True])
def test_views_and_masks_that_broadcast(kernels, normalize):
    base, other = random_features((4, 3), 10, 6, 6)
    small, _ = random_features((4,), 3, 24, 24)
    views = [
        (base.mT.contiguous().mT, other),
        (base.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3), other),
        (base[::2, 1:, ::3, 1:5], other[1:3, :2, 2:6, ::2]),
        (base[:1].expand(7, 3, 10, 6), other[:1].expand(7, 3, 10, 6)),
        (base[:, :, :1].expand(4, 3, 9, 6), other[:, :, :9]),
        (small[..., ::2], small[..., 1::3]),
        (base.flatten()[1 : 1 + 2 * 5 * 6].view(2, 5, 6), other.flatten()[3 : 3 + 2 * 5 * 6].view(2, 5, 6)),
    ]
    for common, specific in views:
        check(kernels, common, specific, None, normalize)
    for shape in [(10,), (1,), (3, 1), (4, 1, 10), (4, 3, 1), ()]:
        check(kernels, base, other, random_mask(shape), normalize)


def test_bad_input_is_named(kernels):
    common, specific = random_features((2,), 5, 3, 3)
    with pytest.raises(ValueError, match="specific must have the leading shape of common"):
        kernels.orthogonality(common, specific[:, :4])
    with pytest.raises(ValueError, match="mask must be bool"):
        kernels.orthogonality(common, specific, torch.ones(2, 5))
    with pytest.raises(ValueError, match="common must be float16"):
        kernels.orthogonality(common.long(), specific.long())


def test_agrees_with_the_reference_at_the_sizes_of_training(kernels):
    common, specific = random_features((30,), 32, 32, 32)
    mask = random_mask((30, 32))
    h, s = common.double().requires_grad_(), specific.double().requires_grad_()
    expected = orthogonality_difference_reference(h, s, mask, True)
    slopes = torch.autograd.grad(expected, (h, s))
    loss, *gradients = kernels.orthogonality(common, specific, mask, True, SUM)
    torch.testing.assert_close(loss.double(), expected.detach(), rtol=1e-6, atol=0)
    for gradient, slope in zip(gradients, slopes, strict=True):
        torch.testing.assert_close(gradient.double(), slope, rtol=0, atol=1e-6 * float(slope.abs().max()))
