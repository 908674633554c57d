"""The transposes that are kept for mixing on a GPU."""

import torch

from dmmlkd_ext.ops import GossipWeights
from dmmlkd_ext.ops.transposed import MOST_KEPT, _kept, kept_transpose


def random_weights(rows=5, columns=7, seed=0):
    dense = torch.rand(rows, columns, generator=torch.Generator().manual_seed(seed)).round(decimals=1)
    dense[dense < 0.5] = 0
    return dense, GossipWeights.from_dense(dense)


def dense_of(pointers, columns, values, width):
    dense = torch.zeros(len(pointers) - 1, width)
    for row in range(len(pointers) - 1):
        for entry in range(pointers[row], pointers[row + 1]):
            dense[row, columns[entry]] += values[entry]
    return dense


def test_they_are_the_transposes():
    dense, weights = random_weights()
    assert torch.equal(dense_of(*kept_transpose(*weights, 7), 5), dense.T)


def test_the_same_weights_give_the_same_tensors_and_written_ones_others():
    _, weights = random_weights()
    first = kept_transpose(*weights, 7)
    assert all(one is other for one, other in zip(first, kept_transpose(*weights, 7), strict=True))
    weights.values.mul_(2)
    again = kept_transpose(*weights, 7)
    assert torch.equal(again[2], 2 * first[2])


def test_new_tensors_at_the_place_of_dead_ones_are_not_taken_for_them():
    for seed in range(50):
        dense, weights = random_weights(seed=seed)
        assert torch.equal(dense_of(*kept_transpose(*weights, 7), 5), dense.T)
    assert len(_kept) <= MOST_KEPT


def test_inference_tensors_are_not_kept():
    with torch.inference_mode():
        dense, weights = random_weights()
        weights.values.mul_(1)
        first = kept_transpose(*weights, 7)
        weights.values.mul_(2)
        assert torch.equal(kept_transpose(*weights, 7)[2], 2 * first[2])
        assert torch.equal(dense_of(*first, 5), dense.T)
