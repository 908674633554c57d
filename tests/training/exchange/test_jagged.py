from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.ops import GossipWeights, gossip_mix
from dmmlkd_ext.training.exchange.jagged import JaggedWeights

CPU = torch.device("cpu")


@given(st.integers(0, 6), st.integers(0, 3), st.integers(0, 99), st.sampled_from([torch.float32, torch.float64]))
@settings(deadline=None)
def test_they_mix_as_the_kernel_does(rows, halo, seed, dtype):
    draw = torch.Generator().manual_seed(seed)
    dense = torch.rand(rows, rows + halo, generator=draw, dtype=dtype)
    dense[torch.rand(dense.shape, generator=draw) < 0.5] = 0  # rows of any number of entries, also of none
    local, start = (torch.randn(count, 5, generator=draw, dtype=dtype) for count in (rows + halo, rows))
    weights, expected = GossipWeights.from_dense(dense), start.clone()
    found = JaggedWeights(weights, CPU).mix(local, start)
    kernel = gossip_mix(local, weights, expected, measure=True)
    assert found.mixed is start
    for one, other in zip(found, kernel, strict=True):
        assert one.dtype == other.dtype
        torch.testing.assert_close(one, other, rtol=1e-6 if dtype == torch.float32 else 1e-12, atol=1e-6)


def test_a_row_that_is_not_finite_spreads_to_its_neighbours_alone():
    weights = GossipWeights.metropolis([[0, 1], [2, 3]], 4)
    local, start = torch.tensor([[torch.inf], [1.0], [2.0], [4.0]]), torch.zeros(4, 1)
    JaggedWeights(weights, CPU).mix(local, start)
    assert start.isfinite().flatten().tolist() == [False, False, True, True]
    assert start[2:].flatten().tolist() == [3.0, 3.0]


@pytest.mark.parametrize("devices", [2, 500])
def test_a_star_takes_a_piece_for_each_neighbour_of_its_hub(devices):
    weights = GossipWeights.metropolis([[0, leaf] for leaf in range(1, devices)], devices)
    jagged = JaggedWeights(weights, CPU)
    assert sum(jagged._lengths) == len(weights.columns)
    assert len(jagged._lengths) == devices
