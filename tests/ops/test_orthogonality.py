from __future__ import annotations

import itertools

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.ops import (
    OrthogonalityDifference,
    backend,
    orthogonality_difference,
    orthogonality_difference_reference,
)
from tests.ops.instruction_sets import instruction_sets, kernels_of
from tests.ops.oracles import orthogonality_oracle

native_only = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
IMPLEMENTATIONS = [orthogonality_difference, orthogonality_difference_reference]
INSTRUCTION_SETS = instruction_sets()
# (leading, samples, features of common, features of specific): both forms of the product and their border.
SHAPES = [
    ((), 5, 3, 3),
    ((), 3, 5, 5),
    ((2,), 33, 8, 8),
    ((2,), 8, 33, 33),
    ((3,), 12, 16, 16),
    ((3,), 16, 16, 16),
    ((4,), 7, 5, 9),
    ((4,), 7, 40, 3),
    ((2, 3), 6, 4, 11),
    ((1,), 1, 1, 1),
    ((2,), 1, 9, 4),
    ((5,), 41, 1, 7),
    ((2,), 50, 48, 35),
    ((2,), 45, 64, 99),
]


def random_features(leading, samples, features, other, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    common = torch.randn(*leading, samples, features, generator=generator, dtype=torch.float64)
    specific = torch.randn(*leading, samples, other, generator=generator, dtype=torch.float64)
    return common.to(dtype), specific.to(dtype)


def random_mask(shape, seed=1):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed)) < 0.6


def oracle_gradients(common, specific, mask=None, normalize=False):
    h, s = common.detach().double().requires_grad_(), specific.detach().double().requires_grad_()
    (orthogonality_oracle(h, s, mask, normalize).sum() + 0 * (h.sum() + s.sum())).backward()
    return h.grad, s.grad


def with_gradients(implementation, common, specific, *arguments):
    h, s = common.detach().requires_grad_(), specific.detach().requires_grad_()
    loss = implementation(h, s, *arguments)
    loss.sum().backward()
    return loss.detach(), h.grad, s.grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_loss_and_gradients_match_the_oracle(shape, normalize, masked, implementation, instruction_set):
    common, specific = random_features(*shape)
    mask = random_mask(common.shape[:-1]) if masked else None
    loss, *gradients = with_gradients(implementation, common, specific, mask, normalize, "fro", "none")
    expected = orthogonality_oracle(common, specific, mask, normalize)
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    for gradient, wanted in zip(gradients, oracle_gradients(common, specific, mask, normalize), strict=True):
        size = max(0.1, float(wanted.abs().max()))  # one sample of unit length has no gradient at all
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5 * size)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [((3,), 20, 6, 8), ((3,), 6, 20, 18)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_double_precision_is_exact(implementation, shape, normalize):
    common, specific = random_features(*shape, dtype=torch.float64)
    loss, *gradients = with_gradients(implementation, common, specific, None, normalize, "fro", "none")
    torch.testing.assert_close(loss, orthogonality_oracle(common, specific, None, normalize), rtol=1e-12, atol=1e-13)
    for gradient, wanted in zip(gradients, oracle_gradients(common, specific, None, normalize), strict=True):
        torch.testing.assert_close(gradient, wanted, rtol=1e-10, atol=1e-12)


# More than one panel of the kernels; rows that they keep apart in scratch, by samples and by features; then beyond the
# sizes that they take, products that go to the GEMM library.
LARGE = [((2,), 300, 260, 257), ((2,), 260, 900, 800)]
LARGE += [((2,), 120, 384, 250), ((2,), 140, 120, 128)]
LARGE += [((2,), 530, 520, 514), ((2,), 520, 900, 800)]


@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_large_matrices(shape, normalize, masked, instruction_set):
    common, specific = random_features(*shape)
    mask = random_mask(common.shape[:-1]) if masked else None
    loss, *gradients = with_gradients(orthogonality_difference, common, specific, mask, normalize, "fro", "none")
    wide = common.double(), specific.double()
    # Its own agreement with the oracle is tested at sizes at which loops end.
    expected = with_gradients(orthogonality_difference_reference, *wide, mask, normalize, "fro", "none")
    torch.testing.assert_close(loss.double(), expected[0], rtol=1e-5, atol=0)
    for gradient, wanted in zip(gradients, expected[1:], strict=True):
        torch.testing.assert_close(gradient.double(), wanted, rtol=1e-4, atol=1e-5 * float(wanted.abs().max()))


@pytest.mark.parametrize("shape", LARGE, ids=str)
def test_large_matrices_twice_differentiated(shape):
    common, specific = random_features((), *shape[1:], dtype=torch.float64)
    direction = torch.randn_like(common)
    products = [
        torch.autograd.functional.hvp(lambda h, f=f: f(h, specific, None, True), common, direction)[1]
        for f in IMPLEMENTATIONS
    ]
    torch.testing.assert_close(*products, rtol=1e-8, atol=1e-12)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("shape", LARGE, ids=str)
@pytest.mark.parametrize("normalize", [False, True])
def test_large_matrices_that_are_not_finite(shape, normalize, value):
    common, specific = random_features(*shape)
    common[1, 2, 1] = value
    loss = orthogonality_difference(common, specific, None, normalize, "fro", "none")
    assert loss[0].isfinite()
    assert not loss[1].isfinite()


@pytest.mark.parametrize("shape", [((2,), 30, 5, 5), ((2,), 5, 30, 30)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_features_that_are_orthogonal_give_almost_zero_and_never_less(implementation, shape):
    common, specific = random_features(*shape)
    specific[..., : shape[1] // 2, :] = 0  # no sample has both, so that the product is zero
    common[..., shape[1] // 2 :, :] = 0
    for normalize in (False, True):
        loss = implementation(common, specific, None, normalize, "fro", "none")
        assert (loss >= 0).all()
        assert (loss <= 1e-6).all()
    shared = torch.randn(3, 1, 40)  # all samples alike: the sum over them vanishes by cancellation alone
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0]).reshape(1, 4, 1)
    loss = implementation(shared * signs, torch.ones(3, 4, 40), None, True, "fro", "none")
    assert (loss >= 0).all()
    assert (loss <= 1e-6).all()


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [((2,), 12, 4, 5), ((2,), 4, 12, 15)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_an_absent_sample_holds_does_not_matter(implementation, shape, normalize):
    common, specific = random_features(*shape)
    mask = random_mask(common.shape[:-1])
    mask[1] = False  # a matrix without any sample
    expected = orthogonality_oracle(common, specific, mask, normalize)
    absent = ~mask.unsqueeze(-1)
    poisoned = common.masked_fill(absent, float("nan")), specific.masked_fill(absent, float("inf"))
    loss, *gradients = with_gradients(implementation, *poisoned, mask, normalize, "fro", "none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert loss[1] == 0
    for gradient in gradients:
        assert gradient.isfinite().all()
        assert (gradient[~mask] == 0).all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [((3,), 12, 4, 5), ((3,), 4, 12, 15)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("side", [0, 1])
def test_a_value_that_is_not_finite_never_gives_a_number(implementation, shape, normalize, value, side):
    features = random_features(*shape)
    features[side][1, 2, 1] = value
    loss, *gradients = with_gradients(implementation, *features, None, normalize, "fro", "none")
    assert not loss[1].isfinite()
    if normalize:
        assert loss[1].isnan()
    assert loss[[0, 2]].isfinite().all()
    for gradient in gradients:
        assert not gradient[1].isfinite().all()
        assert gradient[[0, 2]].isfinite().all()


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("norm", ["fro", "spectral"])
@pytest.mark.parametrize("shape", [((), 0, 3, 4), ((2,), 0, 3, 3), ((0,), 5, 3, 3), ((3, 0), 2, 3, 8)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_batches_give_zero(implementation, shape, norm, normalize, reduction):
    common, specific = random_features(*shape)
    loss, *gradients = with_gradients(implementation, common, specific, None, normalize, norm, reduction)
    assert loss.shape == (shape[0] if reduction == "none" else ())
    assert (loss == 0).all()
    assert gradients[0].shape == common.shape
    assert gradients[1].shape == specific.shape
    assert all((gradient == 0).all() for gradient in gradients)


@pytest.mark.parametrize("scale", [1e-35, 1e-20, 1e-3, 1e3, 1e15, 3e38])
@pytest.mark.parametrize("shape", [((2,), 9, 5, 4), ((2,), 3, 12, 10)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_normalized_rows_may_have_any_length(implementation, shape, scale, instruction_set):
    common, specific = random_features(*shape)
    common[:, 0] = 0  # a row without a direction
    expected = orthogonality_oracle(common, specific, None, True)
    common = (common / common.abs().max() * scale).clamp(-3.4e38, 3.4e38)
    loss, gradient, _ = with_gradients(implementation, common, specific, None, True, "fro", "none")
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-7)
    assert (gradient[:, 0] == 0).all()
    if scale > 1e-30:  # below, the gradient leaves float32: it is as large as 1 / scale
        wanted = oracle_gradients(common.double(), specific.double(), None, True)[0]
        torch.testing.assert_close(gradient.double() * scale, wanted * scale, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_nan_in_a_row_of_zeros_is_not_lost(implementation, instruction_set):
    common, specific = random_features((2,), 6, 40, 5)
    common[1, 2] = 0
    common[1, 2, 3] = float("nan")
    loss = implementation(common, specific, None, True, "fro", "none")
    assert loss.isnan().tolist() == [False, True]


@native_only
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [((3,), 200, 170, 180), ((1,), 150, 300, 290), ((20,), 9, 30, 30)], ids=str)
def test_the_same_bits_on_any_number_of_threads(shape, normalize):
    common, specific = random_features(*shape)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        results.append(with_gradients(orthogonality_difference, common, specific, None, normalize))
    torch.set_num_threads(before)
    for others in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(others, results[0], strict=True))


@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_reductions_and_upstream_gradients(implementation, normalize, reduction):
    common, specific = random_features((4, 3), 6, 5, 5)
    h, s = common.clone().requires_grad_(), specific.clone().requires_grad_()
    loss = implementation(h, s, None, normalize, "fro", reduction)
    upstream = torch.linspace(-1.0, 2.5, loss.numel()).reshape(loss.shape)
    loss.backward(upstream)
    values = orthogonality_oracle(common, specific, None, normalize)
    expected = {"none": values, "sum": values.sum(), "mean": values.mean()}[reduction]
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    factor = upstream.double() / (12 if reduction == "mean" else 1)
    factor = factor.expand(4, 3).reshape(4, 3, 1, 1)
    wanted = oracle_gradients(common, specific, None, normalize)
    torch.testing.assert_close(h.grad.double(), wanted[0] * factor, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(s.grad.double(), wanted[1] * factor, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_spectral_norm_is_the_largest_singular_value_squared(implementation, normalize):
    common, specific = random_features((2, 3), 9, 4, 6)
    mask = random_mask(common.shape[:-1])
    loss = implementation(common, specific, mask, normalize, "spectral", "none")
    for index in [(0, 0), (1, 2)]:
        h, s = common[index][mask[index]].double(), specific[index][mask[index]].double()
        if normalize:
            h, s = torch.nn.functional.normalize(h), torch.nn.functional.normalize(s)
        largest = torch.linalg.svdvals(h.T @ s)[0]
        wanted = largest**2 / (int(mask[index].sum()) ** 2 if normalize else 1)
        torch.testing.assert_close(loss[index].double(), wanted, rtol=1e-5, atol=1e-7)
    frobenius = implementation(common, specific, mask, normalize, "fro", "none")
    assert (loss <= frobenius * (1 + 1e-5)).all()


@pytest.mark.parametrize("normalize", [False, True])
def test_any_strides(normalize):
    base, other = random_features((4, 3), 10, 6, 6)
    small, wide = random_features((4,), 3, 24, 24)
    views = {
        "transposed": (base.mT.contiguous().mT, other),
        "samples first": (base.permute(2, 0, 1, 3).contiguous().permute(1, 2, 0, 3), other),
        "sliced": (base[::2, 1:, ::3, 1:5], other[1:3, :2, 2:6, ::2]),
        "expanded leading": (base[:1].expand(7, 3, 10, 6), other[:1].expand(7, 3, 10, 6)),
        "expanded samples": (base[:, :, :1].expand(4, 3, 9, 6), other[:, :, :9]),
        "interleaved features": (small[..., ::2], wide[..., 1::3]),
        "expanded features": (small[..., :1].expand(4, 3, 20), wide[..., :20]),
    }
    for name, (common, specific) in views.items():
        loss, *gradients = with_gradients(orthogonality_difference, common, specific, None, normalize, "fro", "none")
        expected = orthogonality_oracle(common, specific, None, normalize)
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}")
        wanted = oracle_gradients(common, specific, None, normalize)
        for gradient, w in zip(gradients, wanted, strict=True):
            torch.testing.assert_close(gradient.double(), w, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("mask_shape", [(8,), (1,), (3, 1), (2, 1, 8), (2, 3, 1), ()], ids=str)
def test_broadcast_masks(implementation, mask_shape):
    common, specific = random_features((2, 3), 8, 4, 4)
    mask = random_mask(mask_shape)
    loss = implementation(common, specific, mask, True, "fro", "none")
    torch.testing.assert_close(loss.double(), orthogonality_oracle(common, specific, mask, True), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("shape", [((3,), 20, 6, 6), ((3,), 5, 20, 20)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precisions_accumulate_in_float32(implementation, shape, normalize, dtype):
    common, specific = random_features(*shape, dtype=dtype)
    values = orthogonality_oracle(common, specific, None, normalize)
    rounding = torch.finfo(dtype).eps
    for reduction, expected in [("none", values), ("sum", values.sum()), ("mean", values.mean())]:
        loss, *gradients = with_gradients(implementation, common, specific, None, normalize, "fro", reduction)
        assert loss.dtype == gradients[0].dtype == gradients[1].dtype == dtype
        # One rounding of the result alone: the sum is rounded, not its terms.
        torch.testing.assert_close(loss.double(), expected, rtol=rounding / 2 + 1e-5, atol=0)
        factor = 1 / values.numel() if reduction == "mean" else 1
        for gradient, wanted in zip(gradients, oracle_gradients(common, specific, None, normalize), strict=True):
            torch.testing.assert_close(gradient.double(), wanted * factor, rtol=rounding, atol=rounding * 1e-2 * factor)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(data=st.data())
def test_native_equals_reference_on_random_input(data):
    leading = tuple(data.draw(st.lists(st.integers(0, 4), max_size=3), label="leading"))
    samples = data.draw(st.sampled_from([0, 1, 2, 3, 8, 31, 70]), label="samples")
    features, other = (data.draw(st.sampled_from([1, 2, 5, 16, 33, 64])) for _ in range(2))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    kernels = data.draw(st.sampled_from(INSTRUCTION_SETS))
    normalize, reduction = data.draw(st.booleans()), data.draw(st.sampled_from(["none", "mean", "sum"]))
    common, specific = random_features(leading, samples, features, other, data.draw(st.integers(0, 99)), dtype)
    order = data.draw(st.permutations(range(common.dim())))
    common = common.permute(order).contiguous().permute(*torch.tensor(order).argsort().tolist())
    mask = None
    if data.draw(st.booleans()):
        shape = [size if data.draw(st.booleans()) else 1 for size in common.shape[:-1]]
        mask = random_mask(shape)
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    with kernels_of(kernels):
        native, reference = (
            with_gradients(f, common, specific, mask, normalize, "fro", reduction) for f in IMPLEMENTATIONS
        )
    # Where rows have one feature, a normalized gradient is 0; what is left is rounding, of the other gradient's size.
    size = max((float(theirs.abs().max()) for theirs in reference if theirs.numel()), default=0.0)
    for ours, theirs in zip(native, reference, strict=True):
        torch.testing.assert_close(ours, theirs, rtol=tolerance, atol=tolerance * (size + 1e-2))


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", [((2,), 5, 2, 3), ((2,), 3, 6, 5)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck_and_gradgradcheck(implementation, shape, masked, normalize, reduction):
    common, specific = random_features(*shape, dtype=torch.float64)
    mask = torch.ones(common.shape[:-1], dtype=torch.bool)
    mask[0, 1] = mask[1, 0] = False

    def loss(h, s):
        return implementation(h, s, mask if masked else None, normalize, "fro", reduction)

    inputs = common.requires_grad_(), specific.requires_grad_()
    assert torch.autograd.gradcheck(loss, inputs)
    assert torch.autograd.gradgradcheck(loss, inputs)
    for side in (0, 1):  # only one side may want a gradient
        other = inputs[1 - side].detach()
        one = (lambda x, o=other: loss(x, o)) if side == 0 else (lambda x, o=other: loss(o, x))
        assert torch.autograd.gradcheck(one, inputs[side])
        assert torch.autograd.gradgradcheck(one, inputs[side])


def test_spectral_gradcheck():
    common, specific = random_features((2,), 5, 3, 4, dtype=torch.float64)
    inputs = common.requires_grad_(), specific.requires_grad_()
    assert torch.autograd.gradcheck(lambda h, s: orthogonality_difference(h, s, None, True, "spectral"), inputs)


def test_backward_twice_through_a_retained_graph():
    common, specific = random_features((2,), 6, 4, 4)
    common.requires_grad_()
    loss = orthogonality_difference(common, specific)
    loss.backward(retain_graph=True)
    once = common.grad.clone()
    loss.backward()
    torch.testing.assert_close(common.grad, 2 * once)


@native_only
@pytest.mark.parametrize("shape", [((2,), 6, 3, 4), ((2,), 3, 8, 9)], ids=str)
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(shape, normalize, masked):
    common, specific = random_features(*shape)
    mask = random_mask(common.shape[:-1]) if masked else None
    for reduction, wanted in itertools.product((0, 1, 2), [(True, True), (True, False), (False, False)]):
        arguments = common, specific, mask, normalize, reduction, *wanted
        torch.library.opcheck(torch.ops.dmmlkd.orthogonality_forward.default, arguments)


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_vmap_matches_a_loop(reduction, normalize, dtype):
    common, specific = random_features((5, 3), 6, 4, 4, dtype=dtype)
    mask = random_mask((5, 3, 6))

    def loss(h, s, m):
        return orthogonality_difference(h, s, m, normalize, "fro", reduction)

    batched = torch.func.vmap(loss)(common, specific, mask)
    looped = torch.stack([loss(h, s, m) for h, s, m in zip(common, specific, mask, strict=True)])
    torch.testing.assert_close(batched, looped)
    one_side = torch.func.vmap(loss, in_dims=(0, None, None))(common, specific[0], mask[0, 0])
    looped = torch.stack([loss(h, specific[0], mask[0, 0]) for h in common])
    torch.testing.assert_close(one_side, looped)
    last = torch.func.vmap(loss, in_dims=(3, 3, None))(common.movedim(0, -1), specific.movedim(0, -1), None)
    looped = torch.stack([loss(h, s, None) for h, s in zip(common, specific, strict=True)])
    torch.testing.assert_close(last, looped)


@pytest.mark.parametrize("normalize", [False, True])
def test_func_grad_and_hessian_vector_products(normalize):
    common, specific = random_features((4,), 3, 6, 6, dtype=torch.float64)

    def loss(h, s):
        return orthogonality_difference(h, s, None, normalize)

    gradients = torch.func.vmap(torch.func.grad(loss, argnums=(0, 1)))(common, specific)
    wanted = oracle_gradients(common, specific, None, normalize)
    torch.testing.assert_close(gradients, wanted)
    direction = torch.randn_like(common[0])
    forward = torch.func.jvp(lambda h: torch.func.grad(loss)(h, specific[0]), (common[0],), (direction,))[1]
    reverse = torch.autograd.functional.hvp(lambda h: loss(h, specific[0]), common[0], direction)[1]
    torch.testing.assert_close(forward, reverse)


@pytest.mark.parametrize("norm", ["fro", "spectral"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_computes_in_float32(implementation, norm):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        common, specific = random_features((2,), 8, 4, 4, dtype=dtype)
        expected = implementation(common.double(), specific.double(), None, True, norm)
        leaf = common.requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = implementation(leaf, specific, None, True, norm)
        loss.backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert leaf.grad.dtype == dtype
        torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_without_a_graph_break_and_once_for_all_batch_sizes(dynamic):
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(h, s, m):
        return orthogonality_difference(h.relu() + 1, s * 2, m, True, center=True).sin()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=compilations)
    for samples in (4, 40, 7, 9, 33, 2, 100, 17, 64, 71):  # both forms of the product
        common, specific = random_features((2,), samples, 12, 11)
        mask, results = random_mask((2, samples)), []
        for function in (compiled, loss):
            leaf = common.clone().requires_grad_()
            function(leaf, specific, mask).backward()
            results.append(leaf.grad)
        torch.testing.assert_close(*results)
    assert compilations.frame_count <= 4  # of 10 batch sizes


@pytest.mark.compile
def test_exports_with_any_number_of_samples():
    batch = torch.export.Dim("batch", min=2)
    shapes = ({0: batch}, {0: batch}, {0: batch})
    arguments = *random_features((), 6, 12, 12), random_mask((6,))
    program = torch.export.export(OrthogonalityDifference(normalize=True), arguments, dynamic_shapes=shapes)
    for samples in (3, 50):
        more = *random_features((), samples, 12, 12), random_mask((samples,))
        torch.testing.assert_close(program.module()(*more), orthogonality_difference(*more, True))


def nearly_orthogonal(samples, features, away, dtype=torch.float32):
    """Return H and S whose samples lie in two subspaces, S moved towards the other by so much."""
    generator = torch.Generator().manual_seed(0)
    basis = torch.linalg.qr(torch.randn(samples, samples, generator=generator, dtype=torch.float64))[0]
    half = samples // 2
    common = basis[:, :half] @ torch.randn(half, features, generator=generator, dtype=torch.float64)
    specific = basis[:, half:] @ torch.randn(samples - half, features, generator=generator, dtype=torch.float64)
    return common.to(dtype), (specific + away * common).to(dtype)


@pytest.mark.parametrize(("samples", "features"), [(32, 64), (40, 500), (600, 900)])
@pytest.mark.parametrize("away", [1e-1, 1e-2, 1e-3, 1e-4, 0.0])
@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_features_near_the_optimum_keep_their_digits(implementation, normalize, away, samples, features):
    common, specific = nearly_orthogonal(samples, features, away)
    loss, gradient, _ = with_gradients(implementation, common, specific, None, normalize)
    wide = with_gradients(orthogonality_difference_reference, common.double(), specific.double(), None, normalize)
    size = float(common.double().square().sum() * specific.double().square().sum())
    if normalize:
        size = 1.0
    rounding = 2e-13 * size  # the square of that of the product's elements
    assert abs(loss.double() - wide[0]) <= max(1e-5, 1e-9 / max(away, 1e-9)) * wide[0] + rounding
    if away >= 1e-3:
        torch.testing.assert_close(gradient.double(), wide[1], rtol=0, atol=1e-2 * float(wide[1].abs().max()))


@pytest.mark.parametrize("sizes", [(1e-30, 1e10), (1e20, 1e-20), (1e-15, 1e-3), (1e12, 1e6)])
@pytest.mark.parametrize("shape", [((2,), 5, 20, 18), ((2,), 20, 5, 6), ((1,), 530, 520, 514)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_products_that_leave_the_range_where_the_value_does_not(implementation, shape, sizes, instruction_set):
    common, specific = random_features(*shape)
    common, specific = common * sizes[0], specific * sizes[1]
    loss, gradient, _ = with_gradients(implementation, common, specific, None, False, "fro", "none")
    expected = with_gradients(
        orthogonality_difference_reference, common.double(), specific.double(), None, False, "fro", "none"
    )
    if implementation is orthogonality_difference_reference and sizes[0] < 1e-20:
        return  # it squares in float32
    fits = expected[0].abs() < 3e38
    torch.testing.assert_close(loss.double()[fits], expected[0][fits], rtol=1e-4, atol=0)
    assert loss[~fits].isinf().all()
    if bool(fits.all()) and sizes[0] > 1e-20:
        torch.testing.assert_close(gradient.double(), expected[1], rtol=0, atol=1e-4 * float(expected[1].abs().max()))


def test_normalized_rows_shorter_than_any_inverse(instruction_set):
    for features in (2, 40):
        common = torch.zeros(2, features)
        common[:, 0] = 1e-39
        loss = orthogonality_difference(common, torch.eye(2, features), None, True)
        torch.testing.assert_close(loss, torch.tensor(0.5))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward_mode_gives_the_directional_derivative(implementation):
    common, specific = random_features((2,), 4, 6, 5)
    tangent = torch.randn_like(common)
    expected = (oracle_gradients(common, specific)[0] * tangent).sum()
    for requires_grad in (False, True):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(common.clone().requires_grad_(requires_grad), tangent)
            found = torch.autograd.forward_ad.unpack_dual(implementation(dual, specific)).tangent
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-4)


def centered(matrix):
    return matrix - matrix.mean(0)


def detached_unit_rows(matrix):
    return matrix / (matrix.norm(dim=1, keepdim=True).detach() + 1e-6)


# Published losses of H [B, d] and S [B, e], as their authors write them, and the same by one line here.
PUBLISHED = {
    "the paper's": (lambda h, s: (h.T @ s).square().sum(), lambda f, h, s: f(h, s)),
    "ours": (
        lambda h, s: (torch.nn.functional.normalize(h).T @ torch.nn.functional.normalize(s) / len(h)).square().sum(),
        lambda f, h, s: f(h, s, normalize=True),
    ),
    "domain separation networks": (
        lambda h, s: (
            (torch.nn.functional.normalize(centered(h)).T @ torch.nn.functional.normalize(centered(s))).square().mean()
        ),
        lambda f, h, s: len(h) ** 2 / (h.shape[1] * s.shape[1]) * f(h, s, center=True, normalize=True),
    ),
    "MISA": (
        lambda h, s: (detached_unit_rows(centered(h)).T @ detached_unit_rows(centered(s))).square().mean(),
        lambda f, h, s: f(detached_unit_rows(centered(h)), detached_unit_rows(centered(s))) / (h.shape[1] * s.shape[1]),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("shape", [((), 20, 5, 6), ((), 5, 20, 18)], ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_published_losses_by_one_line(implementation, shape, name):
    published, ours = PUBLISHED[name]
    features = random_features(*shape)
    narrow = [x.clone().requires_grad_() for x in features]
    wide = [x.double().requires_grad_() for x in features]
    loss, expected = ours(implementation, *narrow), published(*wide)
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    for x, y in zip(narrow, wide, strict=True):
        torch.testing.assert_close(x.grad.double(), y.grad, rtol=1e-4, atol=1e-5 * float(y.grad.abs().max()))


@pytest.mark.parametrize("normalize", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_centering_leaves_absent_samples_out(implementation, normalize):
    common, specific = random_features((3,), 9, 4, 12)
    mask = random_mask((3, 9))
    mask[2] = False
    poisoned = common.masked_fill(~mask.unsqueeze(-1), float("nan"))
    loss, gradient, _ = with_gradients(
        lambda h, s: implementation(h, s, mask, normalize, "fro", "none", center=True), poisoned, specific
    )
    for k in range(2):
        h, s = (centered(x[k][mask[k]]) for x in (common, specific))
        torch.testing.assert_close(loss[k].double(), orthogonality_oracle(h, s, None, normalize), rtol=1e-5, atol=1e-6)
    assert loss[2] == 0
    assert (gradient[~mask] == 0).all()
    empty = torch.zeros(2, 0, 4)
    assert implementation(empty, empty, center=True) == 0


def test_module_and_its_repr():
    common, specific = random_features((2,), 5, 3, 3)
    module = OrthogonalityDifference(normalize=True, reduction="mean")
    torch.testing.assert_close(
        module(common, specific), orthogonality_difference(common, specific, None, True, "fro", "mean")
    )
    assert "normalize=True" in repr(module)
    assert "mean" in repr(module)
    with pytest.raises(ValueError, match="norm must be 'fro' or 'spectral'"):
        OrthogonalityDifference(norm="nuclear")
    with pytest.raises(ValueError, match="reduction must be one of"):
        OrthogonalityDifference(reduction="average")


FEATURES = torch.zeros(2, 5, 3)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[1.0]], FEATURES), "common must be a torch.Tensor"),
        ((FEATURES, None), "specific must be a torch.Tensor"),
        ((torch.zeros(3), torch.zeros(3)), "common must have shape"),
        ((FEATURES.long(), FEATURES.long()), "common must be float16"),
        ((FEATURES, torch.zeros(2, 4, 3)), "specific must have the leading shape of common"),
        ((FEATURES, torch.zeros(5, 3)), "specific must have the leading shape of common"),
        ((FEATURES, FEATURES.double()), "specific must have the dtype and device of common"),
        ((FEATURES, FEATURES.to("meta")), "specific must have the dtype and device of common"),
        ((FEATURES[..., :0], FEATURES), "at least one feature"),
        ((FEATURES, FEATURES[..., :0]), "at least one feature"),
        ((FEATURES, FEATURES, torch.zeros(2, 5)), "mask must be bool"),
        ((FEATURES, FEATURES, [[True]]), "mask must be a torch.Tensor"),
        ((FEATURES, FEATURES, torch.ones(2, 4, dtype=torch.bool)), "mask must broadcast"),
        ((FEATURES, FEATURES, torch.ones(1, 2, 5, dtype=torch.bool)), "mask must broadcast"),
        ((FEATURES, FEATURES, None, "yes"), "normalize must be a bool, got str"),
        ((FEATURES.to(torch.float8_e4m3fnuz), FEATURES.to(torch.float8_e4m3fnuz)), "common must be float16"),
        ((FEATURES, FEATURES, None, False, "nuclear"), "norm must be 'fro' or 'spectral'"),
        ((FEATURES, FEATURES, None, False, "fro", "average"), "reduction must be one of none, mean, sum"),
    ],
)
def test_bad_input_is_named(implementation, arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        implementation(*arguments)
    with pytest.raises(TypeError, match="center must be a bool, got int"):
        implementation(FEATURES, FEATURES, center=1)
