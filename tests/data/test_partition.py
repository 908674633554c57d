from __future__ import annotations

import time
from itertools import combinations

import numpy as np
import numpy.typing as npt
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.data import assign_modalities, partition_dirichlet, partition_iid, partition_natural

SEEDS = st.integers(0, 2**32 - 1)
# No deadlines: a loaded machine is slow, which is no failure.


def assert_partition(parts: list[npt.NDArray[np.int64]], samples: int) -> None:
    """Disjoint, complete, each ascending and int64."""
    assert sorted(np.concatenate(parts).tolist()) == list(range(samples))
    for part in parts:
        assert part.dtype == np.int64
        assert np.all(np.diff(part) > 0)


@settings(deadline=None)
@given(st.lists(st.integers(0, 6), min_size=1, max_size=60))
def test_natural_is_one_device_an_owner(groups: list[int]) -> None:
    parts = partition_natural(groups)
    assert_partition(parts, len(groups))
    assert [{groups[index] for index in part} for part in parts] == [{owner} for owner in sorted(set(groups))]


def test_natural_takes_tensors() -> None:
    assert [part.tolist() for part in partition_natural(torch.tensor([4, 4, 0]))] == [[2], [0, 1]]


@settings(deadline=None)
@given(SEEDS, st.integers(1, 20), st.integers(0, 200))
def test_iid_is_even(seed: int, devices: int, extra: int) -> None:
    parts = partition_iid(devices + extra, devices, np.random.default_rng(seed))
    assert_partition(parts, devices + extra)
    sizes = [len(part) for part in parts]
    assert max(sizes) - min(sizes) <= 1


@settings(deadline=None)
@given(
    SEEDS,
    st.lists(st.integers(0, 4), min_size=24, max_size=200),
    st.integers(1, 8),
    st.floats(0.01, 100),
    st.integers(0, 3),
)
def test_dirichlet_is_a_partition(seed: int, labels: list[int], devices: int, alpha: float, least: int) -> None:
    parts = partition_dirichlet(labels, devices, alpha, np.random.default_rng(seed), min_samples=least)
    assert_partition(parts, len(labels))
    assert min(len(part) for part in parts) >= least


def partition_plainly(
    labels: npt.NDArray[np.int64], devices: int, alpha: float, generator: np.random.Generator, least: int
) -> list[list[int]]:
    """Deal and fill up as it is defined, looking at all devices for each sample that is moved."""
    held: list[list[int]] = [[] for _ in range(devices)]
    for label in np.unique(labels):
        members = generator.permutation(np.flatnonzero(labels == label))
        shares = generator.dirichlet(np.full(devices, alpha))
        cuts = np.rint(np.cumsum(shares)[:-1] * len(members)).astype(np.int64)
        for own, part in zip(held, np.split(members, cuts), strict=True):
            own.extend(part.tolist())
    for own in held:
        while len(own) < least:
            donor = max(held, key=len)
            own.append(donor.pop(int(generator.integers(len(donor)))))
    return [sorted(own) for own in held]


@settings(deadline=None, max_examples=200)
@given(SEEDS, st.integers(1, 30), st.integers(0, 6), st.integers(0, 60), st.floats(-4, 3))
def test_dirichlet_deals_as_it_is_defined(seed: int, devices: int, least: int, extra: int, exponent: float) -> None:
    labels = np.random.default_rng(seed).integers(0, 5, max(least, 1) * devices + extra)
    alpha = 10**exponent
    fast, plain = np.random.default_rng(seed), np.random.default_rng(seed)
    parts = partition_dirichlet(labels, devices, alpha, fast, min_samples=least)
    assert [part.tolist() for part in parts] == partition_plainly(labels, devices, alpha, plain, least)
    assert fast.random() == plain.random()  # whatever else is drawn stays as it was


def test_many_devices_are_filled_up_without_a_look_at_all_of_them() -> None:
    labels = np.random.default_rng(0).integers(0, 10, 200_000)
    begun = time.process_time()
    parts = partition_dirichlet(labels, 10_000, 0.05, np.random.default_rng(0))
    assert time.process_time() - begun < 5  # 0.2 s; a look at all devices for each sample takes 20 s
    assert_partition(parts, len(labels))
    assert min(map(len, parts)) == 10


@pytest.mark.parametrize("devices", [5, 1000])
@pytest.mark.parametrize("alpha", [1e20, 1e307, 1.7e308])
def test_the_largest_alpha_shares_out_evenly(alpha: float, devices: int) -> None:
    labels = np.repeat([0, 1], 50 * devices)
    parts = partition_dirichlet(labels, devices, alpha, np.random.default_rng(0))
    assert {len(part) for part in parts} <= {98, 99, 100, 101, 102}


def test_the_smallest_alpha_prefers_no_device() -> None:
    labels = np.zeros(10, dtype=np.int64)
    owners = [
        int(np.argmax([len(part) for part in partition_dirichlet(labels, 4, 5e-324, np.random.default_rng(seed), 0)]))
        for seed in range(400)
    ]
    assert np.bincount(owners, minlength=4).max() < 140  # 100 on average; more than 200 where the draw underflows


def test_dirichlet_skew_grows_as_alpha_falls() -> None:
    labels = np.repeat(np.arange(10), 100)

    def largest_share(alpha: float) -> float:
        shares = []
        for seed in range(5):
            parts = partition_dirichlet(labels, 10, alpha, np.random.default_rng(seed))
            shares.extend(np.bincount(labels[part]).max() / len(part) for part in parts)
        return float(np.mean(shares))

    assert largest_share(0.1) > 0.5 > 0.25 > largest_share(100.0)


@settings(max_examples=300, deadline=None)
@given(SEEDS, st.integers(1, 24), st.integers(2, 7), st.floats(0, 1))
def test_modality_sets(seed: int, devices: int, modalities: int, rate: float) -> None:
    held = assign_modalities(devices, modalities, rate, np.random.default_rng(seed))
    assert held.shape == (devices, modalities)
    assert held.dtype == np.bool_
    assert held.any(axis=1).all()
    assert int((~held.all(axis=1)).sum()) == round(rate * devices)
    holders = held.sum(axis=0)
    if held.sum() >= 2 * modalities and devices >= 2:
        assert holders.min() >= 2
    else:
        assert holders.max() - holders.min() <= 1
    if modalities == 2:
        assert abs(int(holders[0]) - int(holders[1])) <= 1


@settings(max_examples=200, deadline=None)
@given(SEEDS, st.integers(1, 24), st.floats(0, 1))
def test_modality_sets_of_given_sizes(seed: int, devices: int, rate: float) -> None:
    held = assign_modalities(devices, 6, rate, np.random.default_rng(seed), modalities_per_device=(2, 4))
    incomplete = held[~held.all(axis=1)]
    assert len(incomplete) == round(rate * devices)
    assert np.isin(incomplete.sum(axis=1), (2, 3, 4)).all()


def test_modalities_do_not_go_missing_together() -> None:
    """Masks drawn with related seeds would correlate modalities, the defect of FedMultimodal."""
    rows = np.concatenate([assign_modalities(40, 4, 1.0, np.random.default_rng(seed), (2, 2)) for seed in range(50)])
    shares = [float((rows[:, a] & rows[:, b]).mean()) for a, b in combinations(range(4), 2)]
    # A uniform pair out of six holds a given pair with probability 1/6; 2,000 rows, five standard deviations.
    assert np.allclose(shares, 1 / 6, atol=5 * np.sqrt(5 / 36 / 2000))


@pytest.mark.parametrize(("modalities", "lacking"), [(2, 1), (6, 0)])
def test_a_rare_sensor_is_never_alone(modalities: int, lacking: int) -> None:
    held = assign_modalities(20, modalities, 0.8, np.random.default_rng(0), lacking=lacking)
    assert held[:, lacking].sum() == 4
    assert np.delete(held, lacking, axis=1).all()
    one = assign_modalities(4, modalities, 0.9, np.random.default_rng(0), lacking=lacking)
    assert one[:, lacking].sum() == 0  # no device is made to hold what all shall lack


def test_everything_is_determined_by_the_generator() -> None:
    labels = np.arange(100) % 5
    for draw in (
        lambda generator: np.concatenate(partition_iid(100, 7, generator)),
        lambda generator: np.concatenate(partition_dirichlet(labels, 5, 0.3, generator)),
        lambda generator: assign_modalities(20, 6, 0.7, generator),
    ):
        first, again, other = (draw(np.random.default_rng(seed)) for seed in (1, 1, 2))
        assert np.array_equal(first, again)
        assert not np.array_equal(first, other)


GENERATOR = np.random.default_rng(0)


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: partition_natural([]), "groups must be a non-empty vector of integers"),
        (lambda: partition_natural([0.5]), "groups must be a non-empty vector of integers"),
        (lambda: partition_natural([0, -1]), "groups must name an owner"),
        (lambda: partition_iid(0, 1, GENERATOR), "num_samples must be an integer of at least 1"),
        (lambda: partition_iid(3, 4, GENERATOR), "num_samples must be at least num_devices = 4, got 3"),
        (lambda: partition_iid(3, True, GENERATOR), "num_devices must be an integer"),
        (lambda: partition_iid(3, 2, 0), "generator must be a numpy.random.Generator, got int"),
        (lambda: partition_dirichlet([-1, 0], 1, 1.0, GENERATOR), "labels must not be negative"),
        (lambda: partition_dirichlet([[0]], 1, 1.0, GENERATOR), "labels must be a non-empty vector"),
        (lambda: partition_dirichlet([0] * 20, 0, 1.0, GENERATOR), "num_devices must be"),
        (lambda: partition_dirichlet([0] * 20, 2, 0.0, GENERATOR), "alpha must be a finite number above 0"),
        (lambda: partition_dirichlet([0] * 20, 2, float("nan"), GENERATOR), "alpha must be a finite number"),
        (
            lambda: partition_dirichlet([0] * 20, 3, 1.0, GENERATOR),
            "min_samples . num_devices must not exceed",
        ),
        (lambda: partition_dirichlet([0] * 20, 2, 1.0, GENERATOR, min_samples=-1), "min_samples must be"),
        (lambda: assign_modalities(0, 2, 0.5, GENERATOR), "num_devices must be"),
        (lambda: assign_modalities(4, 0, 0.5, GENERATOR), "num_modalities must be"),
        (lambda: assign_modalities(4, 2, 1.5, GENERATOR), r"missing_rate must lie in 0\.\.1"),
        (lambda: assign_modalities(4, 2, float("nan"), GENERATOR), "missing_rate must lie"),
        (lambda: assign_modalities(4, 1, 0.5, GENERATOR), "missing_rate must leave a single modality"),
        (lambda: assign_modalities(4, 3, 0.5, GENERATOR, (2, 3)), "modalities_per_device must be"),
        (lambda: assign_modalities(4, 3, 0.5, GENERATOR, (0, 1)), "modalities_per_device must be"),
        (lambda: assign_modalities(4, 3, 0.5, GENERATOR, lacking=3), r"lacking must be a modality in 0\.\.2, got 3"),
        (
            lambda: assign_modalities(4, 3, 0.5, GENERATOR, (1, 2), 0),
            "modalities_per_device must be None where lacking",
        ),
        (lambda: assign_modalities(4, 3, 0.5, None), "generator must be"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
