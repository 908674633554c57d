from __future__ import annotations

import functools
import itertools

import pytest
import torch
import torch._dynamo.testing
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.ops import (
    PairwiseKLSimilarity,
    backend,
    pairwise_kl_similarity,
    pairwise_kl_similarity_reference,
)
from tests.ops.instruction_sets import instruction_sets, kernels_of
from tests.ops.oracles import pairwise_kl_oracle

native_only = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
IMPLEMENTATIONS = [pairwise_kl_similarity, pairwise_kl_similarity_reference]
INSTRUCTION_SETS = instruction_sets()
SHAPES = [
    (5, 2, 10),
    (33, 3, 7),
    (1, 2, 1),
    (17, 1, 4),
    (16, 8, 5),
    (2, 2, 1000),
    (7, 3, 128),
    (7, 3, 129),
    (3, 2, 2, 6),
    (2, 3, 5, 4, 10),
    (41, 2, 401),
    (2, 5),
    (64, 2, 16),
    (70, 2, 33),
    (19, 4, 6),
    (37, 6, 10),
    (5, 5, 150),
]


def random_logits(shape, seed=0, dtype=torch.float32, scale=3.0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=generator, dtype=torch.float64) * scale).to(dtype)


def oracle_gradient(logits, mask=None):
    z = logits.detach().double().requires_grad_()
    (pairwise_kl_oracle(z, mask).sum() + 0 * z.sum()).backward()  # zeros where nothing depends on z
    return z.grad


@pytest.mark.parametrize("shape", SHAPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_loss_and_gradient_match_the_oracle(shape, implementation, masked, instruction_set):
    logits = random_logits(shape).requires_grad_()
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.6 if masked else None
    loss = implementation(logits, mask, "none")
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits.detach(), mask), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), oracle_gradient(logits, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_double_precision_is_exact(implementation, instruction_set):
    for shape in [(20, 3, 10), (3, 2, 300)]:
        logits = random_logits(shape, dtype=torch.float64).requires_grad_()
        loss = implementation(logits, None, "none")
        loss.sum().backward()
        torch.testing.assert_close(loss, pairwise_kl_oracle(logits.detach()), rtol=1e-12, atol=1e-13)
        torch.testing.assert_close(logits.grad, oracle_gradient(logits), rtol=1e-11, atol=1e-12)


@functools.cache  # the oracle goes pair by pair, and what it says is the same for every instruction set
def near_agreement(samples, modalities, classes, seed):
    """Logits of modalities that differ by 1e-3, the oracle's losses of them, and their gradient."""
    generator = torch.Generator().manual_seed(seed)
    base = torch.randn(samples, 1, classes, generator=generator) * 3
    logits = base + 1e-3 * torch.randn(samples, modalities, classes, generator=generator)
    leaf = logits.double().requires_grad_()
    losses = pairwise_kl_oracle(leaf)
    [gradient] = torch.autograd.grad(losses.sum(), leaf)
    return logits, losses.detach(), gradient


@pytest.mark.parametrize("classes", [3, 10, 200])
@pytest.mark.parametrize("modalities", [2, 3, 5, 6])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_modalities_that_nearly_agree_do_not_cancel(implementation, modalities, classes, instruction_set):
    logits, expected, gradient = near_agreement(1000 if classes == 3 else 200, modalities, classes, 0)
    logits = logits.clone().requires_grad_()
    loss = implementation(logits, None, "none")
    loss.sum().backward()
    assert loss.min() >= -1e-7
    # What is left is the rounding of the probabilities; the reference loses a good deal more.
    tolerance = 5e-4 if implementation is pairwise_kl_similarity and backend() == "native" else 5e-3
    assert ((loss.double() - expected).abs() / expected).median() < 1e-3
    assert ((loss.double() - expected).abs() / expected.mean()).max() < tolerance
    torch.testing.assert_close(logits.grad.double(), gradient, rtol=1e-3, atol=1e-6)


@native_only
@pytest.mark.parametrize("classes", [2, 3, 10, 200])
@pytest.mark.parametrize("modalities", [2, 3, 6])
def test_each_sample_is_as_exact_as_its_modalities_differ(modalities, classes, instruction_set):
    logits, expected, _ = near_agreement(2000 if classes < 10 else 200, modalities, classes, 1)
    error = (pairwise_kl_similarity(logits, None, "none").double() - expected).abs() / expected
    # Root mean square of what the modalities' log-probabilities are from their mean: half of what two differ by.
    log_p = logits.double().log_softmax(-1)
    apart = ((log_p - log_p.mean(1, keepdim=True)).square() * log_p.exp()).sum(-1).mean(1).sqrt()
    assert (error < 1.2e-7 / apart).all()  # one rounding of the probabilities
    assert (apart >= 5e-4).any()
    assert (error[apart >= 5e-4] < 1e-3).all()


@native_only
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("modalities", [2, 3, 4, 5, 6, 7])
def test_one_class_or_equal_modalities_leave_exactly_nothing(modalities, masked, instruction_set):
    equal = random_logits((40, 1, 9)), random_logits((5, 1, 300))
    for logits in (random_logits((40, modalities, 1)), *(z.repeat(1, modalities, 1) for z in equal)):
        mask = torch.rand(logits.shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
        leaf = logits.requires_grad_()
        loss = pairwise_kl_similarity(leaf, mask, "none")
        loss.sum().backward()
        assert (loss == 0).all()
        assert (leaf.grad == 0).all()


@native_only
def test_gradients_that_live_at_once_do_not_share_memory():
    logits = [random_logits((400, 3, 100), seed).requires_grad_() for seed in range(12)]
    expected = [torch.autograd.grad(pairwise_kl_similarity_reference(z), z)[0] for z in logits]
    for _ in range(3):  # the memory of the gradients before is used again
        found = [torch.autograd.grad(pairwise_kl_similarity(z), z)[0] for z in logits]
        assert len({gradient.data_ptr() for gradient in found}) == len(found)
        for gradient, wanted in zip(found, expected, strict=True):
            torch.testing.assert_close(gradient, wanted, rtol=1e-4, atol=1e-8)


@native_only
def test_a_gradient_too_large_to_be_kept():
    logits = random_logits((300, 2, 10)).repeat(3000, 1, 1)  # 72 MB
    loss, gradient = torch.ops.dmmlkd.pairwise_kl_forward(logits, None, 2, True)
    part_loss, part = torch.ops.dmmlkd.pairwise_kl_forward(logits[:300], None, 2, True)
    torch.testing.assert_close(loss, 3000 * part_loss)
    assert torch.equal(gradient.view(3000, *part.shape), part.expand(3000, *part.shape))


@pytest.mark.parametrize("classes", [3, 10, 300])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_extreme_logits_stay_finite(implementation, classes, instruction_set):
    logits = torch.where(random_logits((50, 3, classes)) > 0, 1e4, -1e4).requires_grad_()
    loss = implementation(logits, None, "none")
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits.detach()), rtol=1e-5, atol=1e-3)
    assert logits.grad.isfinite().all()


@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("classes", [5, 300])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("place", [(4, 0, 1), (4, 1, 4)])
def test_a_value_that_is_not_finite_gives_nan_in_its_sample_alone(
    implementation, classes, value, place, instruction_set
):
    logits = random_logits((20, 2, classes))
    logits[place] = value
    loss = implementation(logits.requires_grad_(), None, "none")
    assert loss[4].isnan()
    others = torch.arange(20) != 4
    assert loss[others].isfinite().all()
    loss.sum().backward()
    assert logits.grad[4].isnan().any()
    assert logits.grad[others].isfinite().all()


def worst_errors(implementation, logits):
    """Return the largest relative errors of a sample's loss and of its gradient."""
    leaf, wide = logits.clone().requires_grad_(), logits.double().requires_grad_()
    losses, expected = implementation(leaf, None, "none"), pairwise_kl_similarity_reference(wide, None, "none")
    losses.sum().backward(), expected.sum().backward()
    error = ((losses.double() - expected).abs() / expected).detach()
    distance = (leaf.grad.double() - wide.grad).flatten(1).norm(dim=1) / wide.grad.flatten(1).norm(dim=1)
    return float(error.max()), float(distance.max())


def naive_pairs(logits, mask, reduction):
    log_p = logits.log_softmax(-1)
    pairs = list(itertools.permutations(range(logits.shape[-2]), 2))
    divergence = functools.partial(torch.nn.functional.kl_div, reduction="none", log_target=True)
    return sum(divergence(log_p[..., n, :], log_p[..., m, :]).sum(-1) for m, n in pairs) / len(pairs)


@pytest.mark.parametrize("classes", [3, 10, 200])
@pytest.mark.parametrize("modalities", [2, 3, 5])
@pytest.mark.parametrize("apart", [0.1, 1e-3])
@pytest.mark.parametrize("offset", [0.0, 6.0, -30.0, 3000.0, 1e4])
def test_a_constant_between_modalities_costs_no_digits(offset, apart, modalities, classes, instruction_set):
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(1000, 1, classes, generator=generator)
    logits = logits + apart * torch.randn(1000, modalities, classes, generator=generator)
    logits[:, 1] += offset
    loss, gradient = worst_errors(pairwise_kl_similarity, logits)
    for other in (pairwise_kl_similarity_reference, naive_pairs):
        theirs = worst_errors(other, logits)
        assert loss <= max(1.1 * theirs[0], 1e-6)  # a few roundings of float32
        assert gradient <= max(1.1 * theirs[1], 1e-6)
    if classes > 3 and apart == 0.1:
        assert loss < 2e-6 if backend() == "native" else 1e-5


@pytest.mark.parametrize("modalities", [2, 3, 4, 5])
@pytest.mark.parametrize("classes", [3, 10, 150])
@pytest.mark.parametrize("scale", [10.0, 30.0])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradients_of_confident_predictions_that_agree(implementation, scale, classes, modalities, instruction_set):
    logits = random_logits((1000, modalities, classes), scale=scale)
    # A probability below the least normal float32 may count as 0.
    logits = logits[pairwise_kl_similarity_reference(logits.double(), None, "none") > 1e-30]
    assert worst_errors(implementation, logits)[1] < 1e-4
    leaf = logits.clone().requires_grad_()
    implementation(leaf, None, "sum").backward()
    assert (leaf.grad.sum(-1).abs() <= 1e-4 * leaf.grad.abs().sum(-1) + 1e-30).all()


@pytest.mark.parametrize("masked", [False, True])
def test_the_gradient_of_one_confident_sample(masked, instruction_set):
    logits = torch.tensor([[[12.0, -12.0], [13.0, -13.0]]], requires_grad=True)
    pairwise_kl_similarity(logits, torch.ones(2, dtype=torch.bool) if masked else None).backward()
    expected = oracle_gradient(logits)
    torch.testing.assert_close(logits.grad.double(), expected, rtol=1e-5, atol=0)


@pytest.mark.parametrize("shape", [(40, 2, 10), (21, 3, 200), (7, 5, 12)], ids=str)
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_classes_that_all_present_modalities_exclude_count_nothing(implementation, masked, shape, instruction_set):
    logits = random_logits(shape)
    mask = torch.rand(shape[:-1], generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    held = torch.ones(shape[:-1], dtype=torch.bool) if mask is None else mask
    excluded = torch.rand(shape[0], 1, shape[2], generator=torch.Generator().manual_seed(2)) < 0.4
    excluded[::3] = False
    excluded[..., 0] = False
    logits = logits.masked_fill(excluded & held.unsqueeze(-1), -torch.inf).requires_grad_()
    losses = implementation(logits, mask, "none")
    losses.sum().backward()
    torch.testing.assert_close(losses.double(), pairwise_kl_oracle(logits.detach(), mask), rtol=1e-5, atol=1e-6)
    leaf = logits.detach().double().requires_grad_()
    pairwise_kl_oracle(leaf, mask).sum().backward()
    torch.testing.assert_close(logits.grad.double(), leaf.grad, rtol=1e-4, atol=1e-5)
    assert (logits.grad[excluded.expand(shape)] == 0).all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("create_graph", [False, True])
def test_gradients_of_absent_modalities_are_zero_beside_nan(implementation, create_graph):
    logits, mask = random_logits((6, 3, 4)), torch.ones(6, 3, dtype=torch.bool)
    mask[:, 0] = False
    logits[:, 1, 2] = float("nan")
    leaf = logits.requires_grad_()
    [gradient] = torch.autograd.grad(implementation(leaf, mask), leaf, create_graph=create_graph)
    assert (gradient[:, 0] == 0).all()
    assert gradient[:, 1].isnan().all()


def test_gradients_of_half_precision_are_saved_in_float32():
    logits = random_logits((4096, 2, 100), dtype=torch.float16).requires_grad_()
    (pairwise_kl_similarity(logits).float() * 16384).backward()
    expected = oracle_gradient(logits[:512]) * 16384 / 4096
    representable = expected.abs() > 6e-8
    assert (logits.grad[:512][representable] != 0).all()
    torch.testing.assert_close(logits.grad[:512].double(), expected, rtol=1e-3, atol=2e-7)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_forward_mode_gives_the_directional_derivative(implementation):
    logits, tangent = random_logits((6, 3, 5)), random_logits((6, 3, 5), 1)
    expected = (oracle_gradient(logits) * tangent).sum() / 6
    for requires_grad in (False, True):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(logits.clone().requires_grad_(requires_grad), tangent)
            found = torch.autograd.forward_ad.unpack_dual(implementation(dual)).tangent
        torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)
    found = torch.func.jvp(implementation, (logits,), (tangent,))[1]
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-6)


def test_vmap_of_halves_rounds_no_sum_of_terms():
    logits = torch.tensor([[1.0, 0.0], [0.0, 1.0]]).half().expand(1, 150_000, 2, 2)
    torch.testing.assert_close(torch.func.vmap(pairwise_kl_similarity)(logits), torch.tensor([0.4621]).half())
    assert torch.func.vmap(pairwise_kl_similarity)(torch.zeros(0, 3, 2, 4)).shape == (0,)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("classes", [5, 300])
def test_what_an_absent_modality_holds_does_not_matter(implementation, classes, instruction_set):
    logits = random_logits((20, 3, classes))
    mask = torch.ones(20, 3, dtype=torch.bool)
    mask[:, 0] = False
    mask[3] = torch.tensor([False, True, False])
    mask[4] = False
    expected = pairwise_kl_oracle(logits, mask)
    poisoned = logits.masked_fill(~mask.unsqueeze(-1), float("nan")).requires_grad_()
    loss = implementation(poisoned, mask, "none")
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=1e-6)
    assert (poisoned.grad[~mask] == 0).all()
    assert (poisoned.grad[3:5] == 0).all()
    assert loss[3] == 0
    assert loss[4] == 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
@pytest.mark.parametrize("shape", [(0, 2, 5), (3, 0, 4, 6), (12, 1, 5)])
def test_empty_and_single_modality_batches_give_zero(implementation, reduction, shape):
    logits = torch.randn(shape, requires_grad=True)
    loss = implementation(logits, None, reduction)
    assert loss.shape == (shape[:-2] if reduction == "none" else ())
    assert (loss == 0).all()
    loss.sum().backward()
    assert (logits.grad == 0).all()


@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_reductions_and_upstream_gradients(reduction, instruction_set):
    logits = random_logits((4, 9, 3, 6)).requires_grad_()
    loss = pairwise_kl_similarity(logits, None, reduction)
    (loss * 2.5).backward()
    samples = pairwise_kl_oracle(logits.detach())
    expected = samples.mean() if reduction == "mean" else samples.sum()
    factor = 2.5 / samples.numel() if reduction == "mean" else 2.5
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad.double(), oracle_gradient(logits) * factor, rtol=1e-4, atol=1e-6)


def test_any_strides(instruction_set):
    base = random_logits((6, 4, 5, 7))
    views = {
        "modalities first": base.permute(0, 2, 1, 3),
        "classes not contiguous": base.permute(0, 3, 1, 2),
        "sliced": base[::2, 1:, :3, 1:6],
        "expanded samples": base[:1].expand(9, 4, 5, 7),
        "expanded modalities": base[:, :, :1].expand(6, 4, 3, 7),
        "flipped": base.flip(0)[1:],
        "interleaved": random_logits((5, 8, 3, 24))[..., ::2],
    }
    for name, view in views.items():
        leaf = view.detach().requires_grad_()
        loss = pairwise_kl_similarity(leaf, None, "none")
        loss.sum().backward()
        torch.testing.assert_close(
            loss.double(), pairwise_kl_oracle(view), rtol=1e-5, atol=1e-6, msg=lambda m, n=name: f"{n}: {m}"
        )
        torch.testing.assert_close(leaf.grad.double(), oracle_gradient(view), rtol=1e-4, atol=1e-5)


def test_broadcast_masks(instruction_set):
    logits = random_logits((5, 20, 3, 6)).requires_grad_()
    mask = torch.rand(5, 1, 3) < 0.7
    loss = pairwise_kl_similarity(logits, mask, "none")
    loss.sum().backward()
    torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits.detach(), mask), rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(logits.grad.double(), oracle_gradient(logits, mask), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_half_precisions_accumulate_in_float32(implementation, dtype):
    logits = random_logits((40, 3, 20), dtype=dtype).requires_grad_()
    loss = implementation(logits, None, "none")
    loss.sum().backward()
    assert loss.dtype == logits.grad.dtype == dtype
    rounding = torch.finfo(dtype).eps
    torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits.detach()), rtol=rounding, atol=rounding)
    torch.testing.assert_close(logits.grad.double(), oracle_gradient(logits), rtol=rounding, atol=rounding)


@settings(max_examples=1000, deadline=None, derandomize=True)
@given(data=st.data())
def test_native_equals_reference_on_random_input(data):
    leading = data.draw(st.lists(st.integers(0, 20), min_size=0, max_size=3), label="leading")
    modalities, classes = data.draw(st.integers(1, 8)), data.draw(st.sampled_from([1, 2, 3, 10, 16, 31, 130]))
    dtype = data.draw(st.sampled_from([torch.float32, torch.float64, torch.float16, torch.bfloat16]))
    kernels = data.draw(st.sampled_from(INSTRUCTION_SETS))
    reduction = data.draw(st.sampled_from(["none", "mean", "sum"]))
    logits = random_logits((*leading, modalities, classes), data.draw(st.integers(0, 99)), dtype)
    order = data.draw(st.permutations(range(logits.dim())))
    logits = logits.permute(order).contiguous().permute(*torch.tensor(order).argsort().tolist())
    mask = None
    if data.draw(st.booleans()):
        shape = [size if data.draw(st.booleans()) else 1 for size in logits.shape[:-1]]
        mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.7
    tolerance = {torch.float32: 1e-4, torch.float64: 1e-9, torch.float16: 4e-3, torch.bfloat16: 2e-2}[dtype]
    results = []
    for implementation in IMPLEMENTATIONS:
        leaf = logits.detach().requires_grad_()
        with kernels_of(kernels):
            loss = implementation(leaf, mask, reduction)
            loss.sum().backward()
        results.append((loss.detach(), leaf.grad))
    torch.testing.assert_close(results[0][0], results[1][0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(results[0][1], results[1][1], rtol=tolerance, atol=tolerance)


def test_the_same_bits_on_any_number_of_threads():
    logits = random_logits((5000, 3, 10))
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        leaf = logits.clone().requires_grad_()
        loss = pairwise_kl_similarity(leaf)
        loss.backward()
        results.append((loss.detach(), leaf.grad))
    torch.set_num_threads(before)
    for loss, gradient in results[1:]:
        assert torch.equal(loss, results[0][0])
        assert torch.equal(gradient, results[0][1])


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck_and_gradgradcheck(implementation, reduction, masked):
    logits = random_logits((4, 3, 5), dtype=torch.float64, scale=1.0).requires_grad_()
    mask = torch.tensor([[1, 1, 1], [1, 0, 1], [0, 1, 0], [1, 1, 0]], dtype=torch.bool) if masked else None
    assert torch.autograd.gradcheck(lambda z: implementation(z, mask, reduction), logits)
    assert torch.autograd.gradgradcheck(lambda z: implementation(z, mask, reduction), logits)


def test_backward_twice_through_a_retained_graph():
    logits = random_logits((6, 2, 4)).requires_grad_()
    loss = pairwise_kl_similarity(logits)
    loss.backward(retain_graph=True)
    once = logits.grad.clone()
    loss.backward()
    torch.testing.assert_close(logits.grad, 2 * once)


@native_only
@pytest.mark.parametrize("masked", [False, True])
def test_opcheck(masked):
    mask = torch.rand(4, 3) < 0.8 if masked else None
    for reduction, gradient in itertools.product((0, 1, 2), (False, True)):
        arguments = (torch.randn(4, 3, 5), mask, reduction, gradient)
        torch.library.opcheck(torch.ops.dmmlkd.pairwise_kl_forward.default, arguments)


def test_vmap_and_func_grad_match_a_loop():
    logits, mask = random_logits((4, 6, 3, 5)), torch.rand(4, 6, 3) < 0.7
    for reduction in ("none", "mean", "sum"):
        batched = torch.func.vmap(lambda z, m, r=reduction: pairwise_kl_similarity(z, m, r))(logits, mask)
        looped = torch.stack([pairwise_kl_similarity(z, m, reduction) for z, m in zip(logits, mask, strict=True)])
        torch.testing.assert_close(batched, looped)
        shared = torch.func.vmap(lambda z, r=reduction: pairwise_kl_similarity(z, mask[0, 0], r))(logits)
        looped = torch.stack([pairwise_kl_similarity(z, mask[0, 0], reduction) for z in logits])
        torch.testing.assert_close(shared, looped)
    gradient = torch.func.vmap(torch.func.grad(pairwise_kl_similarity))(logits)
    for z, g in zip(logits, gradient, strict=True):
        torch.testing.assert_close(g.double(), oracle_gradient(z) / 6, rtol=1e-4, atol=1e-6)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_autocast_computes_in_float32(implementation):
    for dtype in (torch.bfloat16, torch.float32, torch.float64):
        logits = random_logits((8, 2, 5), dtype=dtype).requires_grad_()
        with torch.autocast("cpu", dtype=torch.bfloat16):
            loss = implementation(logits)
        loss.backward()
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert logits.grad.dtype == dtype
        torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits.detach()).mean(), rtol=1e-5, atol=0)


@pytest.mark.compile
@pytest.mark.parametrize("dynamic", [None, True])
def test_compiles_without_a_graph_break_and_once_for_all_batch_sizes(dynamic):
    compilations = torch._dynamo.testing.CompileCounterWithBackend("aot_eager")

    def loss(z, m):
        return pairwise_kl_similarity(z.relu() * 2, m).sin()

    torch._dynamo.reset()
    compiled = torch.compile(loss, fullgraph=True, dynamic=dynamic, backend=compilations)
    for samples in (16, 5, 9, 33, 2, 40, 17, 64, 71, 100):
        mask = torch.rand(samples, 3) < 0.7
        leaves = [random_logits((samples, 3, 10)).requires_grad_() for _ in range(2)]
        compiled(leaves[0], mask).backward()
        loss(leaves[1], mask).backward()
        torch.testing.assert_close(leaves[0].grad, leaves[1].grad)
    assert compilations.frame_count <= 4  # of 10 batch sizes


@pytest.mark.compile
def test_compiles_with_inductor_and_exports_with_any_number_of_samples():
    logits, mask = random_logits((16, 3, 10)), torch.rand(16, 3) < 0.7
    torch._dynamo.reset()
    leaf = logits.clone().requires_grad_()
    torch.compile(pairwise_kl_similarity, fullgraph=True)(leaf, mask).backward()
    torch.testing.assert_close(leaf.grad.double(), oracle_gradient(logits, mask) / 16, rtol=1e-4, atol=1e-6)
    batch = torch.export.Dim("batch", min=2)
    program = torch.export.export(PairwiseKLSimilarity(), (logits, mask), dynamic_shapes=({0: batch}, {0: batch}))
    for samples in (2, 40):
        more = random_logits((samples, 3, 10)), torch.rand(samples, 3) < 0.7
        torch.testing.assert_close(program.module()(*more), pairwise_kl_similarity(*more))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_mean_over_the_samples_that_count(implementation):
    logits = random_logits((3, 6, 3, 4)).requires_grad_()
    mask = torch.rand(6, 3, generator=torch.Generator().manual_seed(3)) < 0.5
    counts = (mask.sum(-1) > 1).expand(3, 6)
    assert 0 < counts.sum() < 18
    loss = implementation(logits, mask, "mean_present")
    loss.backward()
    expected = pairwise_kl_oracle(logits.detach(), mask)[counts].mean()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    wanted = oracle_gradient(logits, mask) / counts.sum()
    torch.testing.assert_close(logits.grad.double(), wanted, rtol=1e-4, atol=1e-7)
    assert implementation(logits, torch.zeros(3, dtype=torch.bool), "mean_present") == 0
    torch.testing.assert_close(implementation(logits, None, "mean_present"), implementation(logits))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("masked", [False, True])
def test_temperature_and_weighted_pairs(implementation, masked):
    logits, weights = random_logits((9, 3, 6)).requires_grad_(), torch.rand(3, 3)
    mask = torch.rand(9, 3, generator=torch.Generator().manual_seed(1)) < 0.7 if masked else None
    weights[0, 1] = 0
    for chosen in (weights, torch.tensor([[0.0, 1, 1], [0, 0, 0], [0, 0, 0]]), None):
        logits.grad = None
        losses = implementation(logits, mask, "none", temperature=2.5, pair_weights=chosen)
        losses.sum().backward()
        leaf = logits.detach().double().requires_grad_()
        expected = pairwise_kl_oracle(leaf / 2.5, mask, chosen)
        expected.sum().backward()
        torch.testing.assert_close(losses.double(), expected, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(logits.grad.double(), leaf.grad, rtol=1e-4, atol=1e-6)


def cross_divergence(target, logits, temperature=1.0):
    """KL(target || logits) by F.kl_div, mean over samples."""
    log_q, p = (logits / temperature).log_softmax(-1), (target / temperature).softmax(-1)
    return torch.nn.functional.kl_div(log_q, p, reduction="batchmean")


# Published losses and the same by one line here, of logits [samples, modalities, classes].
PUBLISHED = {
    "R-Drop": (
        lambda z: (cross_divergence(z[:, 0], z[:, 1]) + cross_divergence(z[:, 1], z[:, 0])) / 2,
        lambda f, z: f(z[:, :2]),
    ),
    "deep mutual learning": (
        lambda z: sum(cross_divergence(z[:, m].detach(), z[:, n]) / 2 for m, n in itertools.permutations(range(3), 2)),
        lambda f, z: 3 * f(z, targets="detached"),
    ),
    "distillation": (
        lambda z: 4.0**2 * cross_divergence(z[:, 0].detach(), z[:, 1], 4.0),
        lambda f, z: (
            4.0**2 * f(z[:, :2], temperature=4.0, targets="detached", pair_weights=torch.tensor([[0.0, 1], [0, 0]]))
        ),
    ),
    "the paper's": (
        lambda z: sum(cross_divergence(z[:, m], z[:, n]) for m, n in itertools.permutations(range(3), 2)) / 6,
        lambda f, z: f(z),
    ),
}


@pytest.mark.parametrize("name", PUBLISHED)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_published_losses_by_one_line(implementation, name):
    published, ours = PUBLISHED[name]
    logits, wide = random_logits((12, 3, 7)).requires_grad_(), random_logits((12, 3, 7)).double().requires_grad_()
    loss, expected = ours(implementation, logits), published(wide)
    loss.backward(), expected.backward()
    torch.testing.assert_close(loss.double(), expected, rtol=1e-5, atol=0)
    torch.testing.assert_close(logits.grad.double(), wide.grad, rtol=1e-4, atol=1e-6)
    if name == "distillation":
        assert (logits.grad[:, 0] == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_large_vocabularies(dtype):
    logits = random_logits((2, 3, 2, 32_000), dtype=dtype).requires_grad_()
    loss = pairwise_kl_similarity(logits, None, "none")
    loss.sum().backward()
    tolerance = 1e-5 if dtype == torch.float32 else 8e-3
    torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits.detach()), rtol=tolerance, atol=0)
    torch.testing.assert_close(logits.grad.double(), oracle_gradient(logits), rtol=tolerance, atol=1e-6)


def test_module_and_its_repr():
    weights = torch.tensor([[0.0, 1.0], [0.0, 0.0]])
    teacher = PairwiseKLSimilarity(temperature=2.0, targets="detached", pair_weights=weights).double()
    wide = random_logits((4, 2, 3), dtype=torch.float64)
    expected = pairwise_kl_similarity(wide, temperature=2.0, targets="detached", pair_weights=weights)
    torch.testing.assert_close(teacher(wide), expected)
    assert "pair_weights=[[0.0, 1.0], [0.0, 0.0]]" in repr(teacher)
    module = PairwiseKLSimilarity("sum")
    logits = random_logits((4, 2, 3))
    torch.testing.assert_close(module(logits), pairwise_kl_similarity(logits, None, "sum"))
    assert "sum" in repr(module)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (([[1.0]],), "logits must be a torch.Tensor"),
        ((torch.zeros(3),), "logits must have shape"),
        ((torch.zeros(3, 0, 4),), "logits"),
        ((torch.zeros(3, 2, 4, dtype=torch.int64),), "logits must be float16"),
        ((torch.zeros(3, 2, 4), [[True, False]]), "mask must be a torch.Tensor or None, got list"),
        ((torch.zeros(3, 2, 4), None, ["mean"]), "reduction must be one of"),
        ((torch.zeros(3, 2, 4), torch.zeros(3, 2)), "mask must be bool"),
        ((torch.zeros(3, 2, 4), torch.ones(4, 2, dtype=torch.bool)), "mask must broadcast"),
        ((torch.zeros(3, 2, 4), torch.ones(1, 1, 3, 2, dtype=torch.bool)), "mask must broadcast"),
        ((torch.zeros(3, 2, 4), None, "average"), "reduction must be one of none, mean, sum, mean_present"),
        ((torch.zeros(3, 2, 4).to(torch.float8_e4m3fnuz),), "logits must be float16"),
    ],
)
def test_bad_input_is_named(implementation, arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        implementation(*arguments)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ({"temperature": 0.0}, "temperature must be a positive finite number, got 0.0"),
        ({"temperature": "hot"}, "temperature must be a positive"),
        ({"targets": "first"}, "targets must be 'both' or 'detached', got 'first'"),
        ({"pair_weights": [[1.0]]}, "pair_weights must be a torch.Tensor, got list"),
        ({"pair_weights": torch.ones(3, 3)}, r"pair_weights must have shape \[2, 2\]"),
    ],
)
def test_bad_settings_are_named(implementation, setting, words):
    with pytest.raises((TypeError, ValueError), match=words):
        implementation(torch.zeros(3, 2, 4), **setting)
