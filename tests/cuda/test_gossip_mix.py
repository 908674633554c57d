"""The CUDA kernel of gossip mixing against a float64 product."""

import math

import pytest
import torch

from dmmlkd_ext.ops import backend

TOLERANCE = {torch.float32: 1e-6, torch.float64: 1e-14, torch.float16: 1e-3, torch.bfloat16: 8e-3}
DTYPES = list(TOLERANCE)


def random_weights(rows_out, rows_in, density=0.4, dtype=torch.float32, seed=0):
    """Compressed rows, some of them empty, that sum to one."""
    generator = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows_out, rows_in, generator=generator, dtype=torch.float64) + 0.1
    dense *= torch.rand(rows_out, rows_in, generator=generator) < density
    if rows_out > 2:
        dense[2] = 0
    dense /= dense.sum(1, keepdim=True).clamp_min(1e-30)
    sparse = dense.to(torch.float64 if dtype == torch.float64 else torch.float32).to_sparse_csr()
    return sparse.crow_indices().clone(), sparse.col_indices().clone(), sparse.values().clone()


def dense_of(weights, rows_in):
    pointers, columns, values = weights
    dense = torch.zeros(len(pointers) - 1, rows_in, dtype=torch.float64)
    for row in range(len(pointers) - 1):
        for e in range(pointers[row], pointers[row + 1]):
            dense[row, columns[e]] += values[e].double()
    return dense


def random_rows(rows, columns, dtype=torch.float32, padding=0, seed=0):
    """Rows apart by more than their length; what lies between them must not be touched."""
    data = torch.randn(rows, columns + padding, generator=torch.Generator().manual_seed(seed)).to(dtype)
    return data, data[:, :columns]


def check(
    kernels,
    rows_out,
    rows_in,
    columns,
    *,
    dtype=torch.float32,
    begin=0,
    end=None,
    padding=(0, 0),
    density=0.4,
    measure=True,
):
    end = columns if end is None else end
    weights = random_weights(rows_out, rows_in, density, dtype)
    _, local = random_rows(rows_in, columns, dtype, padding[0], seed=1)
    storage, out = random_rows(rows_out, columns, dtype, padding[1], seed=2)
    start, before = out.clone(), storage.clone()
    norms = kernels.gossip_mix(local, weights, out, begin, end, measure)

    expected = dense_of(weights, rows_in) @ local.double()
    tolerance = TOLERANCE[dtype]
    torch.testing.assert_close(out[:, begin:end].double(), expected[:, begin:end], rtol=tolerance, atol=4 * tolerance)
    before[:, begin:end] = out[:, begin:end]
    assert torch.equal(storage, before), "columns outside the range, or padding, were touched"
    assert norms.dtype == torch.float64
    if not measure:
        assert norms.numel() == 0
        return out, norms
    assert norms.shape == (2, rows_out)
    start, own = start[:, begin:end].double(), local[:rows_out, begin:end].double()
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(norms[0], (own - start).square().sum(1), rtol=tolerance, atol=0)
    torch.testing.assert_close(norms[1], start.square().sum(1), rtol=tolerance, atol=0)
    return out, norms


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (2, 7), (10, 1000), (41, 401), (100, 260), (300, 70)])
def test_matches_the_product(kernels, rows, columns, dtype):
    check(kernels, rows, rows, columns, dtype=dtype)
    check(kernels, rows, rows, columns, dtype=dtype, measure=False)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize(("begin", "end"), [(0, 0), (3, 4), (5, 6), (1, 64), (16, 700), (17, 699), (690, 704)])
@pytest.mark.parametrize("padding", [(0, 0), (16, 32), (3, 0), (0, 5)])
def test_ranges_of_columns(kernels, begin, end, padding, dtype):
    check(kernels, 6, 6, 704, dtype=dtype, begin=begin, end=end, padding=padding)


@pytest.mark.parametrize(("rows_out", "rows_in"), [(4, 9), (30, 50), (1, 40)])
def test_halo(kernels, rows_out, rows_in):
    check(kernels, rows_out, rows_in, 333)


def test_fewer_rows_at_hand_than_wanted(kernels):
    check(kernels, 9, 4, 100, measure=False)


@pytest.mark.parametrize("density", [0.0, 1.0])
@pytest.mark.parametrize("rows", [3, 70])  # the weights of 70 full rows do not fit beside the tile
def test_empty_and_full_weights(kernels, rows, density):
    check(kernels, rows, rows, 300, density=density)
    check(kernels, rows, rows, 300, density=density, dtype=torch.float64)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_shared", [4 * 1024, 20 * 1024, 64 * 1024])
def test_devices_of_other_sizes(kernels, max_shared, dtype):
    if not kernels.emulated:
        pytest.skip("a GPU has the size it has")
    kernels.resize(max_shared=max_shared)
    check(kernels, 150, 150, 333, dtype=dtype, density=0.05)
    check(kernels, 150, 150, 336, dtype=dtype, density=0.05)


def test_rows_that_no_shared_memory_holds(kernels):
    check(kernels, 20, 8000, 40, density=0.01)


def test_many_tiles_a_block(kernels):
    # So wide that a block sums several tiles before it writes its share of the norms.
    kernels.resize(processors=1)
    check(kernels, 2, 2, 20_001 if kernels.emulated else 5_000_001, begin=3, padding=(3, 3))
    check(kernels, 2, 2, 20_001 if kernels.emulated else 5_000_001, begin=3)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("max_shared", [227 * 1024, 2 * 1024])
@pytest.mark.parametrize(("begin", "end"), [(0, 600), (3, 598), (5, 5)])
def test_in_place(kernels, dtype, max_shared, begin, end):
    kernels.resize(max_shared=max_shared)
    weights = random_weights(100, 100, 0.1, dtype)
    storage, local = random_rows(100, 600, dtype, padding=8)
    before, out = storage.clone(), local.clone()
    kernels.resize()
    kernels.gossip_mix(local, weights, out, begin, end, False)
    kernels.resize(max_shared=max_shared)
    kernels.gossip_mix_inplace(local, weights, begin, end)
    before[:, :600] = out
    assert torch.equal(storage, before)


def test_rows_that_no_shared_memory_holds_in_place(kernels):
    rows = 8000
    pointers = torch.arange(rows + 1)
    columns = (torch.arange(rows) + 1) % rows
    _, local = random_rows(rows, 300)
    expected = local.roll(-1, 0)
    kernels.gossip_mix_inplace(local, (pointers, columns, torch.ones(rows)), 0, 300)
    assert torch.equal(local, expected)


def test_means_are_preserved(kernels):
    rows = 20
    ring = torch.eye(rows) / 2 + (torch.eye(rows).roll(1, 0) + torch.eye(rows).roll(-1, 0)) / 4
    sparse = ring.to_sparse_csr()
    weights = (sparse.crow_indices().clone(), sparse.col_indices().clone(), sparse.values().clone())
    _, local = random_rows(rows, 500)
    out = torch.empty_like(local)
    kernels.gossip_mix(local, weights, out, 0, 500, False)
    torch.testing.assert_close(out.double().mean(0), local.double().mean(0), rtol=1e-6, atol=1e-7)


def test_rows_that_are_not_read_do_not_matter(kernels):
    weights = (torch.tensor([0, 1, 2]), torch.tensor([1, 0]), torch.tensor([1.0, 1.0]))
    local = torch.full((3, 50), math.nan)
    local[:2] = torch.arange(100.0).view(2, 50)
    out = torch.empty(2, 50)
    kernels.gossip_mix(local, weights, out, 0, 50, False)
    assert torch.equal(out, local[[1, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_the_same_bits_each_time(kernels, dtype):
    first = check(kernels, 30, 30, 3000, dtype=dtype)
    for _ in range(3):
        again = check(kernels, 30, 30, 3000, dtype=dtype)
        assert torch.equal(first[0], again[0])
        assert torch.equal(first[1], again[1])


@pytest.mark.parametrize(
    ("pointers", "columns", "message"),
    [
        ([0, 1, 2], [0, 2], "columns must be in"),
        ([0, 1, 2], [0, -1], "columns must be in"),
        ([0, 2, 1], [0, 1], "row_pointers must"),
        ([0, 3, 2], [0, 1], "row_pointers must"),
        ([1, 1, 2], [0, 1], "row_pointers must"),
    ],
)
def test_malformed_weights_are_refused(kernels, pointers, columns, message):
    weights = (torch.tensor(pointers), torch.tensor(columns), torch.ones(len(columns)))
    local, out = torch.ones(2, 8), torch.zeros(2, 8)
    with pytest.raises(ValueError, match=message):
        kernels.gossip_mix(local, weights, out, 0, 8, False)
    with pytest.raises(ValueError, match=message):
        kernels.gossip_mix_inplace(local, weights, 0, 8)
    assert (out == 0).all()
    assert (local == 1).all()


def test_weights_are_checked_again_after_a_write(kernels):
    weights = [torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2)]
    weights = [part.to(kernels.device) for part in weights]
    local, out = torch.ones(2, 8), torch.zeros(2, 8)
    for _ in range(3):
        kernels.gossip_mix(local, weights, out, 0, 8, False)
    weights[1][1] = 2
    with pytest.raises(ValueError, match="columns must be in"):
        kernels.gossip_mix(local, weights, out, 0, 8, False)


def overlaps():
    """Pairs of views (local, out) of one matrix [8, 300]: what shares memory, and what does not."""
    return {
        "the same": (lambda base: (base[:4], base[:4]), True),
        "some rows": (lambda base: (base[:4], base[2:6]), True),
        "some columns": (lambda base: (base[:4, :100], base[:4, 50:150]), True),
        "the last column": (lambda base: (base[:4, :100], base[:4, 99:199]), True),
        "rows at another distance": (lambda base: (base[:4, :100], base.as_strided((4, 100), (400, 1), 20)), True),
        "other rows": (lambda base: (base[:4], base[4:]), False),
        "other columns": (lambda base: (base[:4, :100], base[:4, 100:200]), False),
        "columns on the left": (lambda base: (base[:4, 100:200], base[:4, :100]), False),
    }


@pytest.mark.parametrize("name", overlaps())
@pytest.mark.parametrize("cpu", [False, True], ids=["cuda", "cpu"])
def test_overlap_is_refused_alike_on_both_processors(kernels, name, cpu):
    views, shared = overlaps()[name]
    ops, device = kernels.ops(), kernels.device
    if cpu:
        if backend() == "reference":
            pytest.skip("the CPU's operators are not in use")
        ops, device = torch.ops.dmmlkd, torch.device("cpu")
    weights = [part.to(device) for part in random_weights(4, 4)]
    base = torch.randn(8, 300, generator=torch.Generator().manual_seed(0)).to(device)
    before = base.clone()
    local, out = views(base)
    expected = dense_of([part.cpu() for part in weights], 4) @ local.cpu().double()
    if not shared:
        ops.gossip_mix_(local, *weights, out, 0, out.shape[1], False)
        torch.testing.assert_close(out.cpu().double(), expected, rtol=1e-6, atol=4e-6)
        return
    with pytest.raises(ValueError, match="out must not share memory with local"):
        ops.gossip_mix_(local, *weights, out, 0, out.shape[1], False)
    assert torch.equal(base, before)
