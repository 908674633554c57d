from __future__ import annotations

import functools

import pytest
import torch
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
    for requires_grad in (False, True):
        logits = torch.randn(4, 3, 5, requires_grad=requires_grad)
        for reduction in (0, 1, 2):
            torch.library.opcheck(torch.ops.dmmlkd.pairwise_kl_similarity.default, (logits, mask, reduction))
            torch.library.opcheck(
                torch.ops.dmmlkd.pairwise_kl_forward.default, (logits.detach(), mask, reduction, True)
            )


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


def test_autocast_computes_in_float32():
    logits = random_logits((8, 2, 5)).bfloat16()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        loss = pairwise_kl_similarity(logits)
    if backend() == "native":
        assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), pairwise_kl_oracle(logits).mean(), rtol=1e-2, atol=0)


@pytest.mark.compile
def test_compiles_without_a_graph_break():
    compiled = torch.compile(lambda z, m: pairwise_kl_similarity(z.relu() * 2, m).sin(), fullgraph=True)
    logits, mask = random_logits((16, 3, 10)).requires_grad_(), torch.rand(16, 3) < 0.7
    compiled(logits, mask).backward()
    gradient = logits.grad.clone()
    logits.grad = None
    pairwise_kl_similarity(logits.relu() * 2, mask).sin().backward()
    torch.testing.assert_close(gradient, logits.grad)


def test_module_and_its_repr():
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
        ((torch.zeros(3, 2, 4), None, "average"), "reduction must be one of none, mean, sum"),
    ],
)
def test_bad_input_is_named(implementation, arguments, words):
    with pytest.raises((TypeError, ValueError), match=words):
        implementation(*arguments)
