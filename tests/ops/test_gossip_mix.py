from __future__ import annotations

import numpy as np
import pytest
import scipy.sparse
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._dynamo.testing import CompileCounter

from dmmlkd_ext.ops import (
    GossipMix,
    GossipMixing,
    GossipWeights,
    backend,
    gossip_mix,
    gossip_mix_reference,
)
from dmmlkd_ext.wireless.mixing import metropolis_hastings
from tests.ops.instruction_sets import instruction_sets, kernels_of
from tests.ops.oracles import gossip_oracle

native_only = pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
IMPLEMENTATIONS = [gossip_mix, gossip_mix_reference]
INSTRUCTION_SETS = instruction_sets()
DTYPES = [torch.float32, torch.float64, torch.float16, torch.bfloat16]
# Around the tile of 64 columns and the chunk of 8192, whole and with tails.
COLUMNS = [1, 2, 15, 63, 64, 65, 127, 128, 200, 8191, 8192, 8193, 20000]


def random_rows(rows, columns, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(rows, columns, generator=generator, dtype=torch.float64).to(dtype)


def random_weights(produced, at_hand, seed=0, dtype=torch.float32, density=0.4):
    """Weights that sum to nothing in particular, with empty rows and repeated columns."""
    generator = np.random.default_rng(seed)
    counts = generator.binomial(at_hand, density, size=produced)
    counts[generator.random(produced) < 0.2] = 0
    pointers = np.concatenate([[0], np.cumsum(counts)])
    columns = generator.integers(0, at_hand, size=pointers[-1])
    values = generator.normal(size=pointers[-1])
    wide = torch.float64 if dtype == torch.float64 else torch.float32
    return GossipWeights(torch.as_tensor(pointers), torch.as_tensor(columns), torch.as_tensor(values, dtype=wide))


def doubly_stochastic(devices, seed=0, dtype=torch.float32):
    """Metropolis-Hastings weights of a random graph."""
    generator = np.random.default_rng(seed)
    graph = np.triu(generator.random((devices, devices)) < 0.3, 1)
    graph = graph | graph.T
    degree = graph.sum(1)
    matrix = np.where(graph, 1 / (1 + np.maximum(degree[:, None], degree[None])), 0.0)
    matrix += np.diag(1 - matrix.sum(1))
    return GossipWeights.from_scipy(scipy.sparse.csr_array(matrix), dtype=dtype)


def rounding(dtype):
    return {torch.float32: 1e-6, torch.float64: 1e-14}.get(dtype, torch.finfo(dtype).eps)


@pytest.mark.parametrize("columns", COLUMNS)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_mixing_and_norms_match_the_oracle(columns, dtype, measure, implementation, instruction_set):
    local, start = random_rows(9, columns, 0, dtype), random_rows(7, columns, 1, dtype)
    weights = random_weights(7, 9, dtype=dtype)
    out = start.clone()
    result = implementation(local, weights, out, measure=measure)
    expected = gossip_oracle(local, *weights)
    torch.testing.assert_close(out.double(), expected, rtol=rounding(dtype), atol=4 * rounding(torch.float32))
    assert (out[weights.row_pointers.diff() == 0] == 0).all()
    if not measure:
        assert result is out
        torch.testing.assert_close(implementation(local, weights), out)
        return
    assert isinstance(result, GossipMixing)
    assert result.mixed is out
    assert result.variation.dtype == result.start.dtype == torch.float64
    before = start.double()
    variation = (local[:7].double() - before).square().sum(1)
    torch.testing.assert_close(result.variation, variation, rtol=1e-6, atol=0)
    torch.testing.assert_close(result.start, before.square().sum(1), rtol=1e-6, atol=0)


# Above 16 MiB whole aligned tiles are written past the cache: rows at whole lines, rows that are not, and a start
# between two lines.
@pytest.mark.parametrize(("columns", "begin"), [(131_072, 0), (131_079, 0), (131_072, 16), (131_072, 5)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_a_mix_that_does_not_fit_the_cache(columns, begin, dtype, instruction_set):
    local, out = random_rows(34, columns, 0, dtype), random_rows(34, columns, 1, dtype)
    weights, before = doubly_stochastic(34, dtype=dtype), out.clone()
    gossip_mix(local, weights, out, columns=(begin, columns))
    assert torch.equal(out[:, :begin], before[:, :begin])
    expected = gossip_mix_reference(local, weights)
    torch.testing.assert_close(out[:, begin:], expected[:, begin:], rtol=rounding(dtype), atol=4 * rounding(dtype))


@pytest.mark.parametrize("devices", [1, 2, 17, 50])
@pytest.mark.parametrize("columns", [65, 8193])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_doubly_stochastic_weights_preserve_rows_and_means(devices, columns, implementation, instruction_set):
    weights = doubly_stochastic(devices)
    constant = torch.full((devices, columns), 0.7)
    torch.testing.assert_close(implementation(constant, weights), constant, rtol=1e-6, atol=0)
    local = random_rows(devices, columns) + 3
    mixed = implementation(local, weights)
    torch.testing.assert_close(mixed.double().mean(0), local.double().mean(0), rtol=1e-6, atol=0)
    assert (mixed.var(0, unbiased=False).sum() <= local.var(0, unbiased=False).sum() * (1 + 1e-5)).all()


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("block", [(0, 0), (5, 5), (0, 64), (3, 70), (64, 200), (199, 200), (1, 199)], ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_columns_outside_of_the_range_keep_their_bits(block, dtype, in_place, implementation, instruction_set):
    weights = random_weights(8, 8, dtype=dtype)
    local, before = random_rows(8, 200, 0, dtype), random_rows(8, 200, 1, dtype)
    before[:, [0, 4, 150]] = torch.tensor([float("nan"), float("inf"), -0.0]).to(dtype)
    out = local.clone() if in_place else before.clone()
    kept = out.clone()
    begin, end = block
    if in_place:
        implementation(out, weights, out, columns=block)
        untouched = None
    else:
        untouched = local.clone()
        norms = implementation(local, weights, out, columns=block, measure=True)
        change = (local - before)[:, begin:end].double().square().sum(1)
        torch.testing.assert_close(norms.variation, change, rtol=1e-2, atol=0, equal_nan=True)
    expected = gossip_oracle(local[:, begin:end], *weights)
    torch.testing.assert_close(
        out[:, begin:end].double(), expected, rtol=rounding(dtype), atol=4 * rounding(torch.float32)
    )
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[dtype.itemsize]
    outside = torch.ones(200, dtype=torch.bool)
    outside[begin:end] = False
    assert torch.equal(out.view(bits)[:, outside], kept.view(bits)[:, outside])
    if untouched is not None:
        assert torch.equal(local, untouched)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("columns", [1, 63, 64, 65, 8193])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_in_place_gives_the_same_as_out_of_place(columns, dtype, implementation, instruction_set):
    weights = random_weights(6, 6, dtype=dtype)
    local = random_rows(6, columns, dtype=dtype)
    expected = implementation(local.clone(), weights)
    assert implementation(local, weights, local) is local
    torch.testing.assert_close(local, expected, rtol=rounding(dtype), atol=rounding(torch.float32))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_rows_of_wider_matrices(dtype, implementation, instruction_set):
    weights = random_weights(5, 7, dtype=dtype)
    trained, start = random_rows(7, 400, 0, dtype), random_rows(5, 500, 1, dtype)
    before = start.clone()
    result = implementation(trained[:, 30:230], weights, start[:, 90:290], measure=True)
    torch.testing.assert_close(
        start[:, 90:290].double(),
        gossip_oracle(trained[:, 30:230], *weights),
        rtol=rounding(dtype),
        atol=4 * rounding(torch.float32),
    )
    assert torch.equal(start[:, :90], before[:, :90])
    assert torch.equal(start[:, 290:], before[:, 290:])
    change = (trained[:5, 30:230].double() - before[:, 90:290].double()).square().sum(1)
    torch.testing.assert_close(result.variation, change, rtol=2e-6, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_strides_without_out(implementation, instruction_set):
    weights = random_weights(5, 8)
    views = {
        "transposed": random_rows(100, 8).T,
        "every other row": random_rows(16, 100)[::2],
        "every other column": random_rows(8, 200)[:, ::2],
        "expanded rows": random_rows(1, 100).expand(8, 100),
        "expanded columns": random_rows(8, 1).expand(8, 100),
        "one column": random_rows(8, 100)[:, 7:8],
        "offset": random_rows(8, 101)[:, 1:],
    }
    for name, view in views.items():
        mixed = implementation(view, weights)
        torch.testing.assert_close(
            mixed.double(),
            gossip_oracle(view, *weights),
            rtol=1e-6,
            atol=4e-6,
            msg=lambda m, n=name: f"{n}: {m}",
        )


@pytest.mark.parametrize("measure", [False, True])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_empty_matrices(measure, implementation, instruction_set):
    no_rows = GossipWeights.from_dense(torch.zeros(0, 4))
    no_columns = GossipWeights.from_dense(torch.ones(3, 3))
    no_neighbours = GossipWeights.from_dense(torch.zeros(3, 3))
    for weights, local, out in [
        (no_rows, torch.ones(4, 70), torch.ones(0, 70)),
        (no_columns, torch.ones(3, 0), torch.ones(3, 0)),
        (no_neighbours, torch.ones(3, 70), torch.ones(3, 70)),
    ]:
        assert implementation(local, weights).shape == out.shape
        result = implementation(local, weights, out, measure=measure)
        assert (out == 0).all()
        if measure:
            assert result.start.tolist() == [out.shape[1]] * out.shape[0]
            assert (result.variation == 0).all()
    assert (implementation(torch.ones(0, 70), GossipWeights.from_dense(torch.zeros(3, 0))) == 0).all()


@pytest.mark.parametrize("columns", [40, 64, 200])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("value", [float("nan"), float("inf"), -float("inf")])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_what_is_not_finite_reaches_the_neighbours_alone(columns, dtype, value, implementation, instruction_set):
    local = random_rows(4, columns, dtype=dtype)
    local[1, [3, columns - 1]] = value
    weights = GossipWeights.from_dense(
        torch.tensor([[1.0, 0, 0, 0], [0.5, 0.5, 0, 0], [0, 0.25, 0.75, 0], [0, 0, 0, 1]]).to(
            torch.float64 if dtype == torch.float64 else torch.float32
        )
    )
    start = torch.zeros(4, columns, dtype=dtype)
    result = implementation(local, weights, start, measure=True)
    reached = torch.zeros(4, columns, dtype=torch.bool)
    reached[1:3, [3, columns - 1]] = True
    assert result.mixed[~reached].isfinite().all()
    torch.testing.assert_close(
        result.mixed[reached], torch.full((4,), value, dtype=dtype), equal_nan=True, rtol=0, atol=0
    )
    assert not result.variation[1].isfinite()
    assert result.variation[[0, 2, 3]].isfinite().all()


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precisions_round_as_torch_does(dtype, implementation, instruction_set):
    every = torch.arange(-(2**15), 2**15).to(torch.int16).view(dtype).reshape(64, 1024)
    same = GossipWeights.from_dense(torch.eye(64))
    mixed = implementation(every, same)
    torch.testing.assert_close(mixed, every, equal_nan=True, rtol=0, atol=0)  # both directions are exact
    # Two rows weighed by powers of two give sums between representable numbers, subnormal and overflowing ones.
    factors = GossipWeights.from_dense(torch.tensor([[1.0, 2.0**-9], [2.0**-20, 0.0], [1.5, 1.5]]))
    both = torch.stack([every.flatten(), every.flatten().roll(517)])
    exact = torch.stack([both[0].float() + both[1].float() * 2**-9, both[0].float() * 2**-20])
    mixed = implementation(both, factors)
    finite = both.isfinite().all(0)
    torch.testing.assert_close(mixed[:2, finite], exact[:, finite].to(dtype), rtol=0, atol=0)
    last = (both[0].double() * 1.5 + both[1].double() * 1.5).float().to(dtype)
    torch.testing.assert_close(mixed[2, finite], last[finite], rtol=torch.finfo(dtype).eps, atol=0)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("in_place", [False, True])
@pytest.mark.parametrize("columns", [200, 8191, 50000])
def test_the_same_bits_on_any_number_of_threads(columns, in_place, dtype):
    weights = random_weights(6, 6, dtype=dtype)
    before = torch.get_num_threads()
    results = []
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        local, out = random_rows(6, columns, dtype=dtype), random_rows(6, columns, 1, dtype=dtype)
        if in_place:
            results.append((gossip_mix(local, weights, local),))
        else:
            results.append(tuple(gossip_mix(local, weights, out, measure=True)))
    torch.set_num_threads(before)
    for result in results[1:]:
        assert all(torch.equal(a, b) for a, b in zip(result, results[0], strict=True))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_gradcheck_and_gradgradcheck(implementation):
    weights = random_weights(5, 7, dtype=torch.float64)
    local = random_rows(7, 3, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: implementation(x, weights), local)
    assert torch.autograd.gradgradcheck(lambda x: implementation(x, weights).square(), local)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_the_gradient_is_mixed_by_the_transposed_weights(dtype, implementation, instruction_set):
    weights = random_weights(5, 7, dtype=dtype)
    local = random_rows(7, 130, dtype=dtype).requires_grad_()
    upstream = random_rows(5, 130, 3, dtype=dtype)
    implementation(local, weights).backward(upstream)
    dense = torch.zeros(5, 7, dtype=torch.float64)
    rows = torch.repeat_interleave(weights.row_pointers.diff())
    dense.index_put_((rows, weights.columns), weights.values.double(), accumulate=True)
    torch.testing.assert_close(
        local.grad.double(), dense.T @ upstream.double(), rtol=4 * rounding(dtype), atol=4 * rounding(dtype)
    )


@native_only
def test_writing_over_a_tensor_that_autograd_saved_is_noticed():
    weights = random_weights(4, 4)
    for in_place in (False, True):
        parameters = random_rows(4, 10).requires_grad_()
        loss = parameters.square().sum()
        target = parameters.detach()
        gossip_mix(target if in_place else random_rows(4, 10), weights, target)
        with pytest.raises(RuntimeError, match="modified by an inplace operation"):
            loss.backward()


def test_in_inference_mode():
    weights = random_weights(4, 4)
    with torch.inference_mode():
        local, out = random_rows(4, 100), random_rows(4, 100, 1)
        gossip_mix(local, weights, out, measure=True)
        torch.testing.assert_close(out, gossip_mix_reference(local, weights))
        gossip_mix(local, weights, local)
        torch.testing.assert_close(out, local)


@settings(max_examples=700, deadline=None, derandomize=True)
@given(data=st.data())
def test_native_equals_reference_on_random_input(data):
    at_hand = data.draw(st.integers(1, 30), label="rows at hand")
    measure = data.draw(st.booleans(), label="measure")
    produced = data.draw(st.integers(0, at_hand if measure else 30), label="rows produced")
    columns = data.draw(st.one_of(st.integers(0, 300), st.sampled_from([8191, 8192, 8257, 9000])))
    dtype = data.draw(st.sampled_from(DTYPES))
    seed = data.draw(st.integers(0, 999))
    kernels = data.draw(st.sampled_from(INSTRUCTION_SETS))
    weights = random_weights(produced, at_hand, seed, dtype, data.draw(st.sampled_from([0.1, 0.5, 1.0])))
    begin = data.draw(st.integers(0, columns))
    end = data.draw(st.integers(begin, columns))
    pad = data.draw(st.integers(0, 70))
    results = []
    for implementation in IMPLEMENTATIONS:
        local = random_rows(at_hand, columns + pad, seed, dtype)[:, pad:]
        out = random_rows(produced, columns + 2 * pad, seed + 1, dtype)[:, pad : pad + columns]
        with kernels_of(kernels):
            result = implementation(local, weights, out, measure=measure, columns=(begin, end))
        results.append((out, *result[1:]) if measure else (out,))
    tolerance = max(rounding(dtype), 4e-6 if dtype != torch.float64 else 0)
    torch.testing.assert_close(results[0][0], results[1][0], rtol=tolerance, atol=tolerance)
    for norm, wanted in zip(results[0][1:], results[1][1:], strict=True):
        torch.testing.assert_close(norm, wanted, rtol=4e-6, atol=0)


@native_only
def test_opcheck():
    weights, square = random_weights(5, 7), random_weights(7, 7)
    torch.library.opcheck(torch.ops.dmmlkd.gossip_mix.default, (random_rows(7, 70), *weights))
    torch.library.opcheck(torch.ops.dmmlkd.gossip_mix.default, (random_rows(5, 70), *weights, 7))
    for measure in (False, True):
        torch.library.opcheck(
            torch.ops.dmmlkd.gossip_mix_.default,
            (random_rows(7, 70), *weights, random_rows(5, 70), 3, 69, measure),
        )
    torch.library.opcheck(torch.ops.dmmlkd.gossip_mix_inplace_.default, (random_rows(7, 70), *square, 3, 69))


# Differences whose squares float32 cannot hold, alone, beside ordinary ones, in whole tiles and in a tail.
@pytest.mark.parametrize("scale", [1e-30, 1e-25, 1e-19, 1e-15, 1e15, 1e19, 1e30])
@pytest.mark.parametrize("columns", [3, 64, 200, 8300])
@pytest.mark.parametrize("mixed_in", [False, True], ids=["alone", "beside ordinary ones"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_norms_neither_overflow_nor_underflow(scale, columns, mixed_in, implementation, instruction_set):
    local, start = random_rows(3, columns) * scale, random_rows(3, columns, 1) * scale
    start[2, ::2] = local[2, ::2] = 0
    if mixed_in:
        local[:, columns // 2 :] /= scale
    change, before = (local - start).double(), start.double()
    result = implementation(local, SQUARE, start.clone(), measure=True)
    torch.testing.assert_close(result.variation, change.square().sum(1), rtol=1e-6, atol=0)
    torch.testing.assert_close(result.start, before.square().sum(1), rtol=1e-6, atol=0)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_backward_of_nothing_and_of_expanded_gradients(implementation):
    for rows, columns in ((0, 4), (4, 0)):
        local = torch.zeros(rows, columns, requires_grad=True)
        implementation(local, GossipWeights.from_dense(torch.zeros(rows, rows))).sum().backward()
        assert local.grad.shape == (rows, columns)
    local = torch.ones(4, 5, requires_grad=True)
    implementation(local, GossipWeights.from_dense(torch.zeros(0, 4))).sum().backward()
    assert torch.equal(local.grad, torch.zeros(4, 5))
    weights = random_weights(5, 7)
    local = random_rows(7, 9).requires_grad_()
    implementation(local, weights).sum().backward()  # its upstream gradient is one number, expanded
    totals = torch.zeros(7).index_add_(0, weights.columns, weights.values)
    torch.testing.assert_close(local.grad, totals[:, None].expand(7, 9))
    assert implementation(torch.empty(0, 10)[:, ::2], GossipWeights.from_dense(torch.zeros(3, 0))).shape == (3, 5)


@native_only
def test_forward_mode_matches_the_reference():
    weights, local, direction = random_weights(5, 7), random_rows(7, 33), random_rows(7, 33, 5)
    for point in (local, local.clone().requires_grad_()):
        with torch.autograd.forward_ad.dual_level():
            dual = torch.autograd.forward_ad.make_dual(point, direction)
            tangent = torch.autograd.forward_ad.unpack_dual(gossip_mix(dual, weights)).tangent
        torch.testing.assert_close(tangent, gossip_mix_reference(direction, weights))
    wide = random_weights(3, 2, dtype=torch.float64)
    point = random_rows(2, 2, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(
        lambda x: gossip_mix(x, wide), point, check_forward_ad=True, check_batched_grad=True
    )
    hessian = torch.func.hessian(lambda x: gossip_mix(x, wide).pow(3).sum())(point.detach())
    expected = torch.func.hessian(lambda x: gossip_mix_reference(x, wide).pow(3).sum())(point.detach())
    torch.testing.assert_close(hessian, expected)
    with (
        torch.autograd.forward_ad.dual_level(),
        pytest.raises(ValueError, match="values must not have a tangent"),
    ):
        gossip_mix(local, weights._replace(values=torch.autograd.forward_ad.make_dual(weights.values, weights.values)))


@native_only
def test_vmap_matches_a_loop():
    weights, local = random_weights(5, 7), random_rows(28, 33).reshape(4, 7, 33)
    looped = torch.stack([gossip_mix(x, weights) for x in local])
    torch.testing.assert_close(torch.func.vmap(lambda x: gossip_mix(x, weights))(local), looped)
    last = torch.func.vmap(lambda x: gossip_mix(x, weights), in_dims=2)(local.movedim(0, 2))
    torch.testing.assert_close(last, looped)
    assert torch.func.vmap(lambda x: gossip_mix(x, weights))(local[:0]).shape == (0, 5, 33)
    with pytest.raises(ValueError, match="vmap over weights is not supported"):
        torch.func.vmap(lambda v: gossip_mix(local[0], weights._replace(values=v)))(torch.stack([weights.values] * 2))


@native_only
def test_func_grad_matches_autograd():
    weights = random_weights(5, 7)
    local = random_rows(14, 33).reshape(2, 7, 33)

    def loss(x):
        return gossip_mix(x, weights).sin().sum()

    leaf = local[0].clone().requires_grad_()
    loss(leaf).backward()
    torch.testing.assert_close(torch.func.grad(loss)(local[0]), leaf.grad)
    torch.testing.assert_close(torch.func.vmap(torch.func.grad(loss))(local)[0], leaf.grad)
    direction = random_rows(7, 33, 5)
    value, change = torch.func.jvp(loss, (local[0],), (direction,))
    torch.testing.assert_close(value, loss(local[0]))
    torch.testing.assert_close(change, (leaf.grad * direction).sum())


@pytest.mark.compile
def test_compiles_without_a_graph_break():
    if backend() == "reference":
        pytest.skip("the reference reads the weights on the host")
    weights = random_weights(7, 7)

    def consensus(x):
        return gossip_mix(x * 2, weights).square().sum()

    local = random_rows(7, 100).requires_grad_()
    torch.compile(consensus, fullgraph=True)(local).backward()
    compiled = local.grad.clone()
    local.grad = None
    consensus(local).backward()
    torch.testing.assert_close(compiled, local.grad)

    def exchange(x, start):
        result = gossip_mix(x + 1, weights, start, measure=True)
        return result.variation / result.start

    expected, seen = random_rows(7, 100, 1), random_rows(7, 100, 1)
    ratio = exchange(local.detach(), expected)
    torch.testing.assert_close(torch.compile(exchange, fullgraph=True)(local.detach(), seen), ratio)
    torch.testing.assert_close(seen, expected)


@pytest.mark.compile
@native_only
def test_compiled_once_for_any_number_of_parameters():
    weights = random_weights(7, 7)

    def mixed_twice(x):
        return gossip_mix(gossip_mix(x, weights), weights).square().sum()

    torch._dynamo.reset()
    counter = CompileCounter()
    for options in ({}, {"dynamic": True}):
        compiled = torch.compile(mixed_twice, fullgraph=True, backend="aot_eager", **options)
        for columns in (100, 101, 130, 64, 7, 8193, 250, 31, 90, 55):
            local = random_rows(7, columns).requires_grad_()
            compiled(local).backward()
            seen, local.grad = local.grad, None
            mixed_twice(local).backward()
            torch.testing.assert_close(seen, local.grad)
    torch._dynamo.reset()
    counted = torch.compile(lambda x: gossip_mix(x, weights), fullgraph=True, backend=counter)
    for columns in (100, 101, 130, 64, 7):
        counted(random_rows(7, columns))
    assert counter.frame_count <= 2


def test_module_moves_with_its_model():
    weights = random_weights(5, 7, dtype=torch.float64)
    module = GossipMix(weights)
    local = random_rows(7, 20, dtype=torch.float64)
    torch.testing.assert_close(module(local), gossip_mix_reference(local, weights))
    single = module.float()
    torch.testing.assert_close(single(local.float()).double(), module(local.float()).double())
    assert set(module.state_dict()) == {"row_pointers", "columns", "values"}
    exact = module.values.clone()
    for dtype in (torch.float16, torch.bfloat16):
        torch.testing.assert_close(
            module.to(dtype)(local.to(dtype)), gossip_mix(local.to(dtype), single_weights(module))
        )
        assert torch.equal(module.values, exact)
    assert nn.Sequential(module).half()[0].values.dtype == torch.float32
    assert module.double()(local).dtype == torch.float64
    assert module.half()(local.half()).dtype == torch.float16
    with pytest.raises(TypeError, match="weights must be GossipWeights, got Tensor"):
        GossipMix(torch.eye(3))


def single_weights(module):
    return GossipWeights(module.row_pointers, module.columns, module.values)


def test_weights_from_dense_and_scipy_agree():
    matrix = torch.rand(6, 9, dtype=torch.float64) * (torch.rand(6, 9) < 0.5)
    dense = GossipWeights.from_dense(matrix)
    sparse = GossipWeights.from_scipy(scipy.sparse.coo_array(matrix.numpy()), dtype=torch.float64)
    for a, b in zip(dense, sparse, strict=True):
        assert torch.equal(a, b)
    with pytest.raises(ValueError, match="matrix must be float32 or float64"):
        GossipWeights.from_dense(torch.zeros(3, 3, dtype=torch.int64))
    with pytest.raises(ValueError, match="matrix must be float32 or float64"):
        GossipWeights.from_dense(torch.zeros(3))


def test_weights_are_named_where_they_are_wrong():
    with pytest.raises(TypeError, match=r"matrix must be a torch.Tensor, got ndarray"):
        GossipWeights.from_dense(np.eye(3))
    with pytest.raises(ValueError, match="matrix must be a dense tensor"):
        GossipWeights.from_dense(torch.eye(3).to_sparse())
    with pytest.raises(TypeError, match=r"matrix must be of scipy.sparse, got ndarray"):
        GossipWeights.from_scipy(np.eye(3))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_weights_keep_nothing_of_a_scipy_matrix(dtype):
    matrix = scipy.sparse.csr_array(np.eye(3, dtype=np.float64 if dtype == torch.float64 else np.float32))
    matrix.indptr, matrix.indices = matrix.indptr.astype(np.int64), matrix.indices.astype(np.int64)
    weights = GossipWeights.from_scipy(matrix, dtype)
    matrix.data[:], matrix.indices[:], matrix.indptr[:] = 7, 0, 0
    assert weights.values.tolist() == [1, 1, 1]
    assert weights.columns.tolist() == [0, 1, 2]
    assert weights.row_pointers.tolist() == [0, 1, 2, 3]


@pytest.mark.parametrize("nodes", [1, 2, 7, 50])
def test_metropolis_weights_equal_those_of_the_simulation(nodes):
    generator = np.random.default_rng(nodes)
    edges = np.argwhere(np.triu(generator.random((nodes, nodes)) < 0.3, 1))
    flipped = generator.random(len(edges)) < 0.5
    edges[flipped] = edges[flipped][:, ::-1]
    expected = GossipWeights.from_scipy(metropolis_hastings(edges, nodes), torch.float64)
    for given_edges in (edges, torch.as_tensor(edges), edges.tolist(), edges.astype(np.int32)):
        weights = GossipWeights.metropolis(given_edges, nodes, torch.float64)
        assert all(torch.equal(a, b) for a, b in zip(weights, expected, strict=True))
    sums = torch.zeros(nodes, dtype=torch.float64).index_add_(
        0, torch.repeat_interleave(weights.row_pointers.diff()), weights.values
    )
    torch.testing.assert_close(sums, torch.ones(nodes, dtype=torch.float64), rtol=1e-15, atol=0)
    single = GossipWeights.metropolis(edges, nodes)
    assert torch.equal(single.values, expected.values.float())


@pytest.mark.parametrize(
    ("edges", "words"),
    [
        ([[0, 3]], r"two different nodes in \[0, 3\), got \[0, 3\]"),
        ([[-1, 0]], r"got \[-1, 0\]"),
        ([[1, 1]], r"got \[1, 1\]"),
        ([[0, 1], [1, 0]], r"each link once, got \[0, 1\] twice"),
        ([[0.0, 1.0]], "must be integers of shape"),
        ([0, 1], "must be integers of shape"),
    ],
)
def test_wrong_edges_are_named(edges, words):
    with pytest.raises(ValueError, match=words):
        GossipWeights.metropolis(edges, 3)


@native_only
def test_shared_memory_is_refused_exactly(instruction_set):
    weights = random_weights(4, 4)
    base = random_rows(8, 300)
    refused = {
        "the same": (base[:4], base[:4]),
        "some rows": (base[:4], base[2:6]),
        "some columns": (base[:4, :100], base[:4, 50:150]),
        "the first column": (base[:4, :100], base[:4, 99:199]),
        "from the right": (base[:4, 99:199], base[:4, :100]),
        "wrapped into the next row": (
            base.as_strided((4, 100), (300, 1), 250),
            base.as_strided((4, 100), (300, 1), 300),
        ),
        "other distance of rows": (base[:4, :100], base.as_strided((4, 100), (400, 1), 20)),
        "rows expanded": (base[:1, :100].expand(4, 100), base[:4, 20:120]),
    }
    for name, (local, out) in refused.items():
        before = base.clone()
        with pytest.raises(ValueError, match="out must not share memory"):
            gossip_mix(local, weights, out)
        assert torch.equal(base, before), name
    accepted = {
        "neighbouring columns": (base[:4, :100], base[:4, 100:200]),
        "columns of other rows": (base[:4, :100], base[4:, 60:160]),
        "alternate rows": (base[::2, :100], base[1::2, :100]),
        "other distance, apart": (base[:2, :100].expand(2, 100)[[0, 1, 0, 1]], base[4:, :100]),
        "rows expanded": (base[:1, :100].expand(4, 100), base[4:, :100]),
    }
    for name, (local, out) in accepted.items():
        expected = gossip_oracle(local, *weights)
        gossip_mix(local, weights, out)
        torch.testing.assert_close(out.double(), expected, rtol=1e-6, atol=4e-6, msg=lambda m, n=name: f"{n}: {m}")


MALFORMED = {
    "column too large": (lambda w: w._replace(columns=w.columns + 9), "columns must be in"),
    "column below zero": (lambda w: w._replace(columns=w.columns - 1), "columns must be in"),
    "pointers decrease": (
        lambda w: w._replace(row_pointers=torch.tensor([0, 3, 1, 4, 8])),
        "row_pointers must",
    ),
    "pointers end early": (
        lambda w: w._replace(row_pointers=torch.tensor([0, 2, 4, 6, 7])),
        "row_pointers must begin with 0",
    ),
    "pointers end late": (
        lambda w: w._replace(row_pointers=torch.tensor([0, 2, 4, 6, 2**40])),
        "row_pointers must begin with 0",
    ),
    "pointers begin late": (
        lambda w: w._replace(row_pointers=torch.tensor([1, 2, 4, 6, 8])),
        "row_pointers must begin with 0",
    ),
    "pointers of another type": (
        lambda w: w._replace(row_pointers=w.row_pointers.int()),
        "row_pointers must be int64",
    ),
    "no pointers": (lambda w: w._replace(row_pointers=w.row_pointers[:0]), "row_pointers must be int64"),
    "pointers in two dimensions": (
        lambda w: w._replace(row_pointers=w.row_pointers[None]),
        "row_pointers must be int64",
    ),
    "columns of another type": (lambda w: w._replace(columns=w.columns.int()), "columns must be int64"),
    "columns in two dimensions": (lambda w: w._replace(columns=w.columns[None]), "columns must be int64"),
    "values of another type": (lambda w: w._replace(values=w.values.double()), "values must be"),
    "too few values": (lambda w: w._replace(values=w.values[:-1]), "values must be"),
    "values with a gradient": (
        lambda w: w._replace(values=w.values.clone().requires_grad_()),
        "values must not require a gradient",
    ),
}


@pytest.mark.parametrize("fault", MALFORMED)
@pytest.mark.parametrize("way", ["new", "out", "measured", "in place"])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_malformed_weights_are_refused_before_anything_is_written(implementation, fault, way):
    spoil, words = MALFORMED[fault]
    weights = spoil(
        GossipWeights(torch.tensor([0, 2, 4, 6, 8]), torch.tensor([0, 1, 1, 2, 2, 3, 3, 0]), torch.full((8,), 0.5))
    )
    local, out = random_rows(4, 130), random_rows(4, 130, 1)
    before = local.clone(), out.clone()
    target = {"new": None, "in place": local}.get(way, out)
    with pytest.raises(ValueError, match=words):
        implementation(local, weights, target, measure=way == "measured")
    assert torch.equal(local, before[0])
    assert torch.equal(out, before[1])


ROWS = torch.zeros(3, 10)
SQUARE = GossipWeights.from_dense(torch.eye(3))


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@pytest.mark.parametrize(
    ("arguments", "options", "words"),
    [
        (([[1.0]], SQUARE), {}, "local must be a torch.Tensor"),
        ((ROWS.long(), SQUARE), {}, "local must be float16"),
        ((torch.zeros(3), SQUARE), {}, r"local must have shape \[rows, parameters\]"),
        ((ROWS, torch.eye(3)), {}, "weights must be GossipWeights"),
        ((ROWS, SQUARE, [[1.0]]), {}, "out must be a torch.Tensor"),
        ((ROWS, SQUARE, ROWS.double()), {}, "out must be"),
        ((ROWS, SQUARE, torch.zeros(4, 10)), {}, "out must be"),
        ((ROWS, SQUARE, torch.zeros(3, 9)), {}, "out must be"),
        ((ROWS, SQUARE, ROWS.to("meta")), {}, "out must be"),
        ((ROWS, SQUARE, torch.zeros(10, 3).T), {}, "contiguous in their rows"),
        ((torch.zeros(10, 3).T, SQUARE, torch.zeros(3, 10)), {}, "contiguous in their rows"),
        ((ROWS, SQUARE, torch.zeros(1, 10).expand(3, 10)), {}, "rows of out must not overlap"),
        ((ROWS, SQUARE, torch.zeros(30).as_strided((3, 10), (9, 1))), {}, "rows of out must not overlap"),
        ((ROWS, SQUARE), {"measure": True}, "measure and columns need out"),
        ((ROWS, SQUARE), {"columns": (0, 3)}, "measure and columns need out"),
        ((ROWS, SQUARE, ROWS), {"measure": True}, "measure needs an out"),
        ((ROWS.to_sparse_csr(), SQUARE), {}, "local must be a dense tensor"),
        ((ROWS, SQUARE, ROWS.to_sparse()), {}, "out must be a dense tensor"),
        ((ROWS, SQUARE._replace(columns=[0, 1, 2])), {}, "columns must be a torch.Tensor, got list"),
        ((ROWS, SQUARE, torch.zeros(3, 10)), {"columns": (0.0, 2.0)}, "columns must be a pair of integers"),
        ((ROWS, SQUARE, torch.zeros(3, 10)), {"columns": ()}, "columns must be a pair of integers"),
        ((ROWS, SQUARE, torch.zeros(3, 10)), {"columns": 3}, "columns must be a pair of integers"),
        ((ROWS, SQUARE, torch.zeros(3, 10)), {"columns": (4, 3)}, "columns must lie in"),
        ((ROWS, SQUARE, torch.zeros(3, 10)), {"columns": (0, 11)}, "columns must lie in"),
        ((ROWS, SQUARE, torch.zeros(3, 10)), {"columns": (-1, 3)}, "columns must lie in"),
        (
            (ROWS, GossipWeights.from_dense(torch.ones(5, 3)), torch.zeros(5, 10)),
            {"measure": True},
            "to measure, local must hold at least 5 rows",
        ),
        ((ROWS, GossipWeights.from_dense(torch.ones(2, 3)), ROWS), {}, "out must be"),
        ((ROWS.clone().requires_grad_(), SQUARE, torch.zeros(3, 10)), {}, "is not differentiable"),
        ((ROWS, SQUARE, torch.zeros(3, 10).requires_grad_()), {}, "is not differentiable"),
    ],
)
def test_bad_input_is_named(implementation, arguments, options, words):
    with pytest.raises((TypeError, ValueError), match=words):
        implementation(*arguments, **options)
