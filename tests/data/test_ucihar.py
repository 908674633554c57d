"""The real loading code on small files in the published form; the dataset itself is not at hand."""

from __future__ import annotations

import hashlib
import shutil
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.data import ChecksumError, DataUnavailableError, load_dataset
from dmmlkd_ext.data.sets import ucihar as ucihar_module
from dmmlkd_ext.data.sets.ucihar import GAP, sides_by_subject, sides_by_time

BOUT = 20
SUBJECTS = {"train": (1, 3, 5, 6, 7), "test": (2, 4)}


def write_text(path: Path, table: np.ndarray) -> None:
    """Like the published files: two spaces before a number, seven decimals, three digits in the exponent."""
    path.parent.mkdir(parents=True, exist_ok=True)
    lines = ["".join(f"  {value: .7e}".replace("e+0", "e+00").replace("e-0", "e-00") for value in row) for row in table]
    path.write_text("\n".join(lines) + "\n")


@pytest.fixture(scope="module")
def published(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Five training and two test subjects, a bout of each activity, half-overlapping windows of it."""
    root = tmp_path_factory.mktemp("published") / "UCI HAR Dataset"
    for side, people in SUBJECTS.items():
        subjects = np.repeat(people, 6 * BOUT)
        labels = np.tile(np.repeat(np.arange(1, 7), BOUT), len(people))
        starts = np.concatenate([bout * 10_000 + 64 * np.arange(BOUT) for bout in range(6 * len(people))])
        samples = starts[:, None] + np.arange(128)
        (root / side).mkdir(parents=True)
        (root / f"{side}/subject_{side}.txt").write_text("".join(f"{value}\n" for value in subjects))
        (root / f"{side}/y_{side}.txt").write_text("".join(f"{value}\n" for value in labels))
        for signal, offset in (("total_acc", 1.0), ("body_acc", 0.0), ("body_gyro", 0.5)):
            for axis, scale in zip("xyz", (1e-4, 2e-4, 3e-4), strict=True):
                write_text(root / f"{side}/Inertial Signals/{signal}_{axis}_{side}.txt", samples * scale + offset)
    return root


@pytest.fixture
def placed(published: Path, cache: Path) -> Path:
    return Path(shutil.copytree(published, cache / "ucihar" / published.name))


def test_official_split(placed: Path) -> None:
    data = load_dataset("ucihar")
    assert data.shapes == {"accelerometer": (3, 128), "gyroscope": (3, 128)}
    assert data.train.groups.unique().tolist() == [1, 3]
    assert data.validation.groups.unique().tolist() == [5, 6, 7]
    assert data.test.groups.unique().tolist() == [2, 4]
    assert data.test.labels.tolist() == np.tile(np.repeat(np.arange(6), BOUT), 2).tolist()
    channels = data.train.features["accelerometer"].double()
    assert torch.allclose(channels.mean(dim=(0, 2)), torch.zeros(3, dtype=torch.float64), atol=1e-5)
    assert torch.allclose(channels.std(dim=(0, 2)), torch.ones(3, dtype=torch.float64), atol=1e-3)


def test_time_split_has_every_subject_on_every_side_and_shares_no_sample(placed: Path) -> None:
    data = load_dataset("ucihar", split="time", acceleration="body")
    raw = ucihar_module._read_kept()
    rows = sides_by_time(raw["labels"], raw["subjects"])
    samples = {
        side: {
            (bool(raw["official_test"][row]), round(float(value), 4))
            for row in index
            for value in raw["body_acc"][row, 0]
        }
        for side, index in rows.items()
    }
    assert not samples["train"] & samples["validation"]
    assert not samples["train"] & samples["test"]
    assert not samples["validation"] & samples["test"]
    for split in (data.train, data.validation, data.test):
        assert split.groups.unique().tolist() == [1, 2, 3, 4, 5, 6, 7]
        assert split.labels.unique().tolist() == list(range(6))


@settings(deadline=None)  # a loaded machine is slow, which is no failure
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(1, 40)), min_size=1, max_size=6))
def test_sides_by_time_leaves_gaps(bouts: list[tuple[int, int]]) -> None:
    labels = np.concatenate([np.full(length, label) for label, length in bouts])
    subjects = np.ones_like(labels)
    rows = sides_by_time(labels, subjects)
    side_of = {int(row): side for side, index in rows.items() for row in index}
    assert len(side_of) == sum(len(index) for index in rows.values())
    bout = np.concatenate([[0], np.cumsum(np.diff(labels) != 0)])
    for row, side in side_of.items():
        for other in range(row + 1, row + GAP + 1):
            if other in side_of and bout[other] == bout[row]:
                assert side_of[other] == side


def test_text_is_parsed_once(placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("ucihar")
    monkeypatch.setattr(ucihar_module, "parse", lambda read: pytest.fail("was kept"))
    assert torch.equal(load_dataset("ucihar", seed=3).test.features["gyroscope"], first.test.features["gyroscope"])


def zip_folder(folder: Path, path: Path) -> None:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for file in sorted(folder.rglob("*.txt")):
            archive.write(file, file.relative_to(folder.parent).as_posix())


def test_wrapped_archive_is_downloaded_checked_and_unwrapped(
    published: Path, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    inner, wrapper = tmp_path / "UCI HAR Dataset.zip", tmp_path / "published.zip"
    zip_folder(published, inner)
    with zipfile.ZipFile(wrapper, "w") as archive:
        archive.write(inner, inner.name)
    monkeypatch.setattr(ucihar_module, "_WRAPPERS", (wrapper.as_uri(),))
    with pytest.raises(DataUnavailableError, match="expected 2045e435"):
        load_dataset("ucihar")
    monkeypatch.setattr(ucihar_module, "_ZIP_SHA256", hashlib.sha256(inner.read_bytes()).hexdigest())
    assert len(load_dataset("ucihar").test) == 2 * 6 * BOUT
    kept = sorted(path.name for path in (cache / "ucihar").iterdir())
    assert len(kept) == 2
    assert kept[0] == inner.name
    (cache / "ucihar" / inner.name).write_bytes(b"cut")
    with pytest.raises(ChecksumError, match="has SHA-256"):
        load_dataset("ucihar")


def test_a_wrapped_archive_of_another_size_is_not_unpacked(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    wrapper = tmp_path / "published.zip"
    with zipfile.ZipFile(wrapper, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("UCI HAR Dataset.zip", bytes(2**20))
    monkeypatch.setattr(ucihar_module, "_WRAPPERS", (wrapper.as_uri(),))
    monkeypatch.setattr(ucihar_module, "_MOST_BYTES", 2**19)
    with pytest.raises(DataUnavailableError, match="it unpacks to more than 524288 bytes"):
        load_dataset("ucihar")


@pytest.mark.parametrize(("before", "length"), [(0, 20), (7, 40), (3, 25)])
def test_windows_of_different_sides_lie_more_than_the_gap_apart(before: int, length: int) -> None:
    """Half-overlapping windows share samples with the next one; GAP lie between, so that a whole window would fit."""
    labels = np.concatenate([np.zeros(before, dtype=np.int64), np.ones(length, dtype=np.int64)])
    rows = sides_by_time(labels, np.ones_like(labels))
    train, validation, test = (rows[side][labels[rows[side]] == 1] for side in ("train", "validation", "test"))
    assert validation.min() - train.max() == 4
    assert test.min() - validation.max() == 4
    assert test.max() == before + length - 1
    assert GAP == 3


@pytest.mark.parametrize("content", [b"", b"<html>", None])
def test_another_answer_is_refused(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, content: bytes | None
) -> None:
    answer = tmp_path / "answer.zip"
    if content is None:
        with zipfile.ZipFile(answer, "w") as archive:
            archive.writestr("other.txt", "")
    else:
        answer.write_bytes(content)
    monkeypatch.setattr(ucihar_module, "_WRAPPERS", (answer.as_uri(),))
    with pytest.raises(DataUnavailableError, match=r"is not a zip that holds UCI HAR Dataset\.zip"):
        load_dataset("ucihar")
    assert list((cache / "ucihar").iterdir()) == []


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("train/y_train.txt", "7\n" * 600, r"train/y_train\.txt must hold 1\.\.6"),
        ("train/y_train.txt", "1\n", r"train/y_train\.txt must hold 600 rows of 1 number"),
        ("test/Inertial Signals/body_gyro_z_test.txt", "1 2\n" * 240, r"must hold 240 rows of 128 number"),
        ("test/Inertial Signals/body_gyro_z_test.txt", "a b\n", r"body_gyro_z_test\.txt must hold rows"),
        ("test/subject_test.txt", "1\n" * 240, "got one in both"),
        pytest.param(
            "train/subject_train.txt",
            "",
            r"train/subject_train\.txt must hold some rows",
            marks=pytest.mark.filterwarnings("ignore:loadtxt"),
        ),
        ("test/subject_test.txt", None, r"must hold test/subject_test\.txt, as published"),
    ],
)
def test_other_files_are_refused(placed: Path, name: str, content: str | None, message: str) -> None:
    if content is None:
        (placed / name).unlink()
    else:
        (placed / name).write_text(content)
    with pytest.raises(ValueError, match=message):
        load_dataset("ucihar")


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"split": "random"}, "split must be 'subject' or 'time'"),
        ({"acceleration": "x"}, "acceleration must be"),
    ],
)
def test_bad_options_are_named(options: dict[str, str], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        load_dataset("ucihar", **options)


def test_bad_tables_are_named() -> None:
    with pytest.raises(ValueError, match="subjects must leave more than 3"):
        sides_by_subject(np.asarray([1, 2, 3, 4]), np.asarray([False, False, False, True]))
    with pytest.raises(ValueError, match="labels and subjects must be alike"):
        sides_by_time(np.zeros(3, dtype=np.int64), np.zeros(2, dtype=np.int64))
