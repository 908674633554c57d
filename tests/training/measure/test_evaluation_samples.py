from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.training.measure.evaluation_samples import draw_evaluation_samples


def draw(labels, count, num_devices, seed=0, devices=None):
    devices = np.arange(num_devices) if devices is None else devices
    return draw_evaluation_samples(labels, count, devices, num_devices, np.random.default_rng(seed))


@settings(deadline=None)
@given(
    st.integers(2, 300).flatmap(lambda n: st.tuples(st.just(n), st.integers(1, n - 1))),
    st.integers(1, 12),
    st.integers(1, 40),
    st.integers(0, 5),
)
def test_each_device_has_its_share_of_each_class_and_no_sample_twice(sizes, classes, devices, seed):
    samples, count = sizes
    labels = np.random.default_rng(seed).integers(0, classes, samples)
    rows = draw(labels, count, devices, seed)
    count = max(count, -(-samples // devices))
    if count == samples:
        assert rows is None
        return
    assert rows is not None
    assert rows.shape == (devices, count)
    assert len(rows.unique()) == samples
    share = np.bincount(labels, minlength=classes) * count / samples
    for own in rows.numpy():
        assert len(set(own.tolist())) == count
        assert (np.abs(np.bincount(labels[own], minlength=classes) - share) < 1 + 1e-9).all()


def test_all_devices_together_see_every_sample_equally_often():
    labels = np.random.default_rng(0).integers(0, 10, 745)
    times = np.bincount(draw(labels, 64, 200).flatten().numpy(), minlength=745)
    assert times.sum() == 64 * 200
    assert set(times.tolist()) <= {17, 18}  # 64 * 200 / 745 = 17.2


def test_a_mean_over_devices_is_nearly_that_of_all_samples():
    """Devices alike: what 20 of them say by 64 samples each is what one says by all, up to a few samples' worth."""
    generator = np.random.default_rng(1)
    labels, errors = generator.integers(0, 10, 745), []
    for seed in range(200):
        right = generator.random(745) < 0.7
        errors.append(right[draw(labels, 64, 20, seed).numpy()].mean() - right.mean())
    assert np.std(errors) < 0.006  # 64 samples alone: sqrt(0.7 * 0.3 / 64) = 0.057
    assert abs(np.mean(errors)) < 0.002


def test_few_devices_see_all_samples_together():
    labels = np.random.default_rng(0).integers(0, 10, 745)
    assert draw(labels, 64, 1) is None
    assert draw(labels, 64, 2).shape == (2, 373)
    assert draw(labels, 64, 12).shape == (12, 64)


def test_ranks_draw_what_one_process_draws():
    labels = np.random.default_rng(0).integers(0, 10, 100)
    everyone = draw(labels, 16, 6)
    for devices in (np.array([0, 2, 4]), np.array([1, 3, 5])):
        assert draw(labels, 16, 6, devices=devices).tolist() == everyone[devices].tolist()


@pytest.mark.parametrize("count", [0, 100, 101])
def test_all_samples_need_no_choice(count):
    assert draw(np.zeros(100, dtype=np.int64), count, 3) is None
