from __future__ import annotations

from collections.abc import Callable
from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.data import MultiModalDataset, load_dataset, partition_natural
from dmmlkd_ext.data.sets.watch import HOP, WINDOW, Windows, read_watch, windows_by_subject, windows_by_time

Real = Callable[..., MultiModalDataset]


def covered(windows: Windows, side: str, recording: int) -> set[int]:
    starts = windows[side][windows[side][:, 0] == recording, 1]
    return {sample for start in starts for sample in range(start, start + WINDOW)}


@settings(deadline=None)  # a loaded machine is slow, which is no failure
@given(st.lists(st.integers(6 * WINDOW, 3000), min_size=1, max_size=3))
def test_no_sample_stands_on_two_sides(lengths: list[int]) -> None:
    windows = windows_by_time(lengths)
    for recording, length in enumerate(lengths):
        for earlier, later in (("train", "validation"), ("validation", "test")):
            first, second = covered(windows, earlier, recording), covered(windows, later, recording)
            assert first
            assert second
            assert min(second) - max(first) > WINDOW  # a whole window fits between
        test = covered(windows, "test", recording)
        assert min(test) == int(0.75 * length)
        assert max(test) < length


def test_windows_are_half_overlapping() -> None:
    starts = windows_by_time([2000])["train"][:, 1]
    assert set(np.diff(starts)) == {HOP}


def test_subjects_are_held_out_and_each_is_tested_once() -> None:
    subjects = np.repeat(np.arange(1, 11), 2)
    tested: list[int] = []
    for fold in range(5):
        windows = windows_by_subject([WINDOW] * 20, subjects, fold)
        people = {side: set(subjects[table[:, 0]].tolist()) for side, table in windows.items()}
        for one, other in permutations(people, 2):
            assert not people[one] & people[other]
        assert [len(people[side]) for side in ("train", "validation", "test")] == [7, 1, 2]
        tested.extend(people["test"])
    assert sorted(tested) == list(range(1, 11))


def test_sizes_and_owners(real: Real) -> None:
    data = real("watch")
    assert data.shapes == {"accelerometer": (3, WINDOW), "gyroscope": (3, WINDOW)}
    assert data.num_classes == 7
    assert (len(data.train), len(data.validation), len(data.test)) == (1578, 312, 745)
    devices = partition_natural(data.train.groups.numpy())
    assert len(devices) == 20
    assert min(len(device) for device in devices) >= 30
    for split in (data.train, data.validation, data.test):
        assert split.groups.unique().tolist() == list(range(20))
        assert split.labels.unique().tolist() == list(range(7))
        assert bool(split.present.all())


def test_features_are_the_windows_standardized_by_training_channel(real: Real) -> None:
    data, raw = real("watch"), read_watch()
    windows = windows_by_time([len(recording) for recording in raw["X"]])
    values = {
        side: np.stack([raw["X"][row][start : start + WINDOW].T for row, start in table])
        for side, table in windows.items()
    }
    mean, deviation = values["train"].mean(axis=(0, 2)), values["train"].std(axis=(0, 2))
    for side, split in (("train", data.train), ("test", data.test)):
        restored = torch.cat([split.features[name] for name in data.modalities], dim=1).numpy()
        restored = restored * deviation[:, None] + mean[:, None]
        assert np.allclose(restored, values[side], atol=1e-5)
        assert np.array_equal(split.labels.numpy(), raw["y"][windows[side][:, 0]])


def test_recordings_are_distinct(real: Real) -> None:
    real("watch")
    assert len({recording.tobytes() for recording in read_watch()["X"]}) == 140


def test_subject_split_shares_no_owner(real: Real) -> None:
    data = real("watch", split="subject", fold=1)
    owners = [set(split.groups.tolist()) for split in (data.train, data.validation, data.test)]
    assert owners[2] == {4, 5, 6, 7}
    assert owners[1] == {8, 9}
    assert owners[0] == set(range(20)) - owners[1] - owners[2]
    together = torch.cat([data.train.features["gyroscope"][:, 0].flatten()])
    assert abs(float(together.mean())) < 1e-4
    assert abs(float(together.std()) - 1) < 1e-3


def test_every_seed_gives_the_same(real: Real) -> None:
    first, second = real("watch"), real("watch", seed=5)
    assert torch.equal(first.train.features["gyroscope"], second.train.features["gyroscope"])


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "person"}, "split must be 'time' or 'subject'"),
        ({"split": "subject", "fold": 5}, r"fold must be one of 0\.\.4"),
        ({"fold": 1}, "fold chooses subjects"),
        ({"folds": 1}, "folds is not an option of dataset 'watch'"),
    ],
)
def test_bad_options_are_named(options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("watch", **options)


def test_bad_tables_are_named() -> None:
    with pytest.raises(ValueError, match="lengths must be at least 768, recording 1 has 500"):
        windows_by_time([1000, 500])
    with pytest.raises(ValueError, match="subjects must name one subject a recording, 2, got 1"):
        windows_by_subject([1000, 1000], [1])
    with pytest.raises(ValueError, match="fold must be"):
        windows_by_subject([1000], [1], fold=9)
