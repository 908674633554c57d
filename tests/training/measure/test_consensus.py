from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.ops import backend
from dmmlkd_ext.training.measure.consensus import (
    column_sums,
    column_sums_reference,
    squared_distances,
    squared_distances_reference,
)
from tests.ops.instruction_sets import instruction_sets, kernels_of


def make_blocks(shapes: list[tuple[int, int]], dtype: torch.dtype = torch.float32) -> list[torch.Tensor]:
    """Return blocks whose rows lie apart from each other in memory."""
    generator = torch.Generator().manual_seed(0)
    return [torch.randn(rows, columns + 3, generator=generator).to(dtype)[:, :columns] for rows, columns in shapes]


def oracle(blocks: list[torch.Tensor], center: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    sums = torch.cat([block.double().sum(0) for block in blocks])
    parts = center.double().split([block.shape[1] for block in blocks])
    squares = [(block.double() - own).square().sum(1) for block, own in zip(blocks, parts, strict=True)]
    return sums, torch.cat(squares)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("kernels", instruction_sets())
@settings(deadline=None)
@given(
    shapes=st.lists(
        st.tuples(st.integers(0, 5), st.integers(0, 70) | st.sampled_from([511, 512, 513, 1030])),
        min_size=1,
        max_size=3,
    )
)
def test_sums_and_distances_equal_those_in_double_precision(shapes, dtype, kernels):
    blocks = make_blocks(shapes, dtype)
    center = torch.linspace(-1, 1, sum(columns for _, columns in shapes)).to(dtype)
    sums, squares = oracle(blocks, center)
    with kernels_of(kernels):
        for found in (column_sums(blocks), column_sums_reference(blocks)):
            torch.testing.assert_close(found, sums, rtol=1e-12, atol=1e-12)
        for found in (squared_distances(blocks, center), squared_distances_reference(blocks, center)):
            torch.testing.assert_close(found, squares, rtol=1e-12, atol=1e-12)


def test_any_number_of_threads_gives_the_same_bits():
    blocks, found = make_blocks([(7, 40_000), (300, 1000)]), []
    center = torch.zeros(41_000)
    for threads in (1, 2, 3):
        torch.set_num_threads(threads)
        found.append((column_sums(blocks), squared_distances(blocks, center)))
    for sums, squares in found[1:]:
        assert torch.equal(sums, found[0][0])
        assert torch.equal(squares, found[0][1])


def test_what_is_no_number_is_seen():
    block = torch.ones(2, 40)
    block[1, 33] = torch.nan
    assert column_sums([block]).isnan().nonzero().flatten().tolist() == [33]
    assert squared_distances([block], torch.zeros(40)).isnan().tolist() == [False, True]


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize(
    ("blocks", "words"),
    [
        ([torch.zeros(3)], r"blocks must be all float32 or all float64 of shape \[rows, columns\], got Float"),
        ([torch.zeros(3, 2), torch.zeros(3, 2).double()], "blocks must be all float32 or all float64"),
        ([torch.zeros(3, 2).half()], "blocks must be all float32 or all float64"),
        ([torch.zeros(2, 3).mT], "blocks must be contiguous in each device"),
    ],
)
def test_bad_blocks_are_named(blocks, words):
    with pytest.raises(ValueError, match="column_sums: " + words):
        torch.ops.dmmlkd.column_sums(blocks)
    with pytest.raises(ValueError, match="squared_distances: " + words):
        torch.ops.dmmlkd.squared_distances(blocks, torch.zeros(0))


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize("center", [torch.zeros(5), torch.zeros(4).double(), torch.zeros(4, 1)])
def test_a_bad_center_is_named(center):
    with pytest.raises(ValueError, match=r"squared_distances: center must be Float of shape \[4\], got"):
        squared_distances([torch.zeros(3, 2), torch.zeros(1, 2)], center)
