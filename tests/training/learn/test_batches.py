from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.data.dataset import Split
from dmmlkd_ext.training.learn.batches import BatchSampler

SAMPLES = 40


def numbered_split() -> Split:
    """Samples that know their number: as feature, as label and, in binary, as what is present."""
    number = torch.arange(SAMPLES)
    present = torch.stack([number % 2 == 0, torch.ones(SAMPLES, dtype=torch.bool)], 1)
    features = {"number": number.float().unsqueeze(1), "zeros": torch.zeros(SAMPLES, 50, 4)}
    return Split(features, number, present, torch.full((SAMPLES,), -1))


def all_samples(sampler: BatchSampler, round_index: int, num_iterations: int, devices: int) -> torch.Tensor:
    """Return which samples each device draws, [devices, iterations * batch]."""
    batches = sampler.draw(round_index, num_iterations)
    everyone = torch.arange(devices)
    return torch.cat([batches.labels(iteration, everyone) for iteration in range(num_iterations)], 1)


@given(st.lists(st.integers(1, 12), min_size=1, max_size=5), st.integers(1, 6), st.integers(1, 6), st.integers(0, 99))
@settings(deadline=None)
def test_every_epoch_holds_each_sample_once(counts, batch_size, num_iterations, seed):
    owned = np.split(np.random.default_rng(0).permutation(SAMPLES), np.cumsum(counts)[: len(counts)])[: len(counts)]
    owned = [part for part in owned if len(part)]
    sampler = BatchSampler(numbered_split(), owned, batch_size, 0.0, seed)
    for drawn, own in zip(all_samples(sampler, 3, num_iterations, len(owned)).tolist(), owned, strict=True):
        for begin in range(0, len(drawn), len(own)):
            epoch = drawn[begin : begin + len(own)]
            assert len(set(epoch)) == len(epoch)
            assert set(epoch) <= set(own.tolist())


def test_a_device_with_fewer_samples_than_a_batch_begins_again_in_the_same_order():
    sampler = BatchSampler(numbered_split(), [np.array([5, 7, 9])], 8, 0.0, seed=0)
    (drawn,) = all_samples(sampler, 0, 1, 1).tolist()
    assert sorted(drawn[:3]) == [5, 7, 9]
    assert drawn == (drawn[:3] * 3)[:8]


def test_labels_presence_and_features_are_of_the_same_samples():
    sampler = BatchSampler(numbered_split(), [np.arange(0, 20), np.arange(20, 40)], 6, 0.0, seed=1)
    batches = sampler.draw(0, 3)
    for iteration in range(3):
        labels = batches.labels(iteration, torch.tensor([0, 1]))
        assert torch.equal(batches.features(iteration, "number", torch.tensor([0, 1])), labels.unsqueeze(-1).float())
        assert torch.equal(batches.present(iteration, torch.tensor([0, 1]))[..., 0], labels % 2 == 0)
        assert batches.features(iteration, "zeros", torch.tensor([1])).shape == (1, 6, 50, 4)


def test_a_device_draws_the_same_whoever_else_is_asked_for():
    sampler = BatchSampler(numbered_split(), [np.arange(5), np.arange(5, 30), np.arange(30, 40)], 4, 0.5, seed=1)
    batches = sampler.draw(2, 3)
    together = batches.features(1, "zeros", torch.tensor([0, 1, 2]))
    assert torch.equal(batches.features(1, "zeros", torch.tensor([2, 0])), together[[2, 0]])
    assert torch.equal(batches.labels(1, torch.tensor([1])), batches.labels(1, torch.tensor([0, 1, 2]))[1:2])


def test_batches_depend_on_the_seed_and_the_round_alone():
    def sampler(seed: int) -> BatchSampler:
        return BatchSampler(numbered_split(), [np.arange(25), np.arange(25, 40)], 5, 0.5, seed)

    used = sampler(4)
    used.draw(0, 2)
    used.draw(1, 7)
    fresh, everyone = sampler(4).draw(9, 4), torch.tensor([0, 1])
    again, longer, later, other = used.draw(9, 4), used.draw(9, 6), used.draw(10, 4), sampler(5).draw(9, 4)
    for iteration in range(4):
        assert torch.equal(again.labels(iteration, everyone), fresh.labels(iteration, everyone))
        assert torch.equal(longer.labels(iteration, everyone), fresh.labels(iteration, everyone))
        for name in ("number", "zeros"):
            features = fresh.features(iteration, name, everyone)
            assert torch.equal(again.features(iteration, name, everyone), features)
            assert not torch.equal(later.features(iteration, name, everyone), features)
            assert not torch.equal(other.features(iteration, name, everyone), features)
    assert not torch.equal(later.labels(0, everyone), fresh.labels(0, everyone))
    assert not torch.equal(other.labels(0, everyone), fresh.labels(0, everyone))


def test_noise_has_its_deviation_and_differs_by_device_iteration_and_modality():
    split = numbered_split()
    split.features["more zeros"] = torch.zeros(SAMPLES, 50, 4)
    split = Split(split.features, split.labels, torch.ones(SAMPLES, 3, dtype=torch.bool), split.groups)
    owned = [np.arange(10), np.arange(10, 20), np.arange(20, 40)]
    batches = BatchSampler(split, owned, 32, 0.25, seed=0).draw(0, 2)
    noise = [
        values
        for iteration in range(2)
        for name in ("zeros", "more zeros")
        for values in batches.features(iteration, name, torch.arange(3))
    ]
    for values in noise:
        assert values.std().item() == pytest.approx(0.25, rel=0.05)
        assert values.mean().item() == pytest.approx(0.0, abs=0.02)
    for first, second in ((a, b) for a in range(len(noise)) for b in range(a)):
        correlation = torch.corrcoef(torch.stack([noise[first].flatten(), noise[second].flatten()]))[0, 1]
        assert abs(correlation) < 0.06  # five standard deviations of 6,400 independent pairs


def test_noise_is_added_to_the_sample():
    owned = [np.arange(20), np.arange(20, 40)]
    noisy, clean = (BatchSampler(numbered_split(), owned, 8, noise, seed=0).draw(0, 2) for noise in (0.01, 0.0))
    everyone = torch.tensor([0, 1])
    difference = noisy.features(1, "number", everyone) - clean.features(1, "number", everyone)
    assert 0 < difference.abs().max() < 0.1


@pytest.mark.parametrize(
    ("samples", "message"),
    [
        ([np.array([0, 1]), np.array([], dtype=np.int64)], "at least one sample per device, got none for 1"),
        ([np.array([SAMPLES])], r"in \[0, 40\), got others for device 0"),
        ([np.array([3]), np.array([-1])], r"in \[0, 40\), got others for device 1"),
    ],
)
def test_bad_samples_of_a_device_are_refused(samples, message):
    with pytest.raises(ValueError, match=message):
        BatchSampler(numbered_split(), samples, 4, 0.0, seed=0)
