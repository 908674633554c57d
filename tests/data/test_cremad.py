"""The real loading code on small files in the published form; the dataset itself is not at hand."""

from __future__ import annotations

import sys
from collections.abc import Callable
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch

from dmmlkd_ext.data import DataUnavailableError, load_dataset
from dmmlkd_ext.data.sets import cremad as cremad_module
from dmmlkd_ext.data.sets.cremad import EMOTIONS, parse_name, read_frame, split_actors

image_library = pytest.importorskip("PIL.Image", reason="frames are read by Pillow")

ACTORS = range(1001, 1011)
CLIPS = [f"{actor}_DFA_{emotion}_XX" for actor in ACTORS for emotion in EMOTIONS]
SILENT, UNSEEN = "1003_DFA_SAD_XX", "1004_DFA_HAP_XX"


def save_frame(path: Path, grey: np.ndarray) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    image_library.fromarray(np.repeat(grey.astype(np.uint8)[:, :, None], 3, axis=2)).save(path)


@pytest.fixture
def placed(cache: Path, make_wav: Callable[..., bytes]) -> Path:
    root = cache / "cremad"
    (root / "AudioWAV").mkdir(parents=True)
    random = np.random.default_rng(0)
    for number, clip in enumerate(CLIPS):
        if clip != SILENT:
            samples = random.normal(scale=3000, size=16_000 + 500 * number)
            (root / f"AudioWAV/{clip}.wav").write_bytes(make_wav(samples, rate=16_000))
        if clip != UNSEEN:
            for frame in range(1 + number % 5):
                suffix = ("jpg", "png", "pgm", "bmp")[number % 4]
                save_frame(root / f"Frames/{clip}/{frame:05d}.{suffix}", random.integers(0, 256, (36, 48)))
    return root


def test_clips_are_loaded_and_absent_modalities_are_masked(placed: Path) -> None:
    data = load_dataset("cremad")
    assert data.shapes == {"audio": (1, 64, 64), "video": (3, 48, 48)}
    assert data.class_names == tuple(EMOTIONS.values())
    sides = (data.train, data.validation, data.test)
    assert sum(len(split) for split in sides) == len(CLIPS)
    for one, other in combinations(sides, 2):
        assert not set(one.groups.tolist()) & set(other.groups.tolist())
    absent = {
        (int(split.groups[row]), int(split.labels[row]), data.modalities[column])
        for split in sides
        for row, column in (~split.present).nonzero().tolist()
    }
    assert absent == {(1003, 5, "audio"), (1004, 3, "video")}
    for split in sides:
        for column, name in enumerate(data.modalities):
            assert not split.features[name][~split.present[:, column]].any()


def test_statistics_are_those_of_present_training_clips(placed: Path) -> None:
    data = load_dataset("cremad")
    audio = data.train.features["audio"][data.train.present[:, 0]]
    assert audio.mean(dim=(0, 1, 3)).abs().max() < 1e-4
    video = data.train.features["video"][data.train.present[:, 1]]
    assert abs(float(video.mean())) < 1e-4
    assert float(video.std()) == pytest.approx(1, abs=1e-3)


def test_features_are_kept_until_a_file_changes(placed: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    first = load_dataset("cremad")
    compute = cremad_module.compute_cremad
    monkeypatch.setattr(cremad_module, "compute_cremad", lambda *args: pytest.fail("was kept"))
    assert torch.equal(load_dataset("cremad", seed=4).test.features["video"], first.test.features["video"])
    monkeypatch.setattr(cremad_module, "compute_cremad", compute)
    (placed / f"AudioWAV/{CLIPS[0]}.wav").unlink()
    data = load_dataset("cremad")
    assert sum(int((~split.present).sum()) for split in (data.train, data.validation, data.test)) == 3


def test_frames_are_evenly_spaced(tmp_path: Path) -> None:
    files = []
    for frame in range(9):
        files.append(tmp_path / f"{frame}.png")
        save_frame(files[-1], np.full((10, 10), 10 * frame))
    video = cremad_module.compute_cremad([CLIPS[0]], {}, {CLIPS[0]: files})["video"][0]
    assert np.allclose(video.mean(axis=(1, 2)) * 255, [10, 40, 70])


def test_a_frame_is_cut_to_its_central_square(tmp_path: Path) -> None:
    grey = np.zeros((48, 80))
    grey[:, 16:64] = np.arange(48)[:, None]
    save_frame(tmp_path / "a.png", grey)
    assert np.allclose(read_frame(tmp_path / "a.png") * 255, grey[:, 16:64])


def test_without_the_folders_it_says_what_to_do(cache: Path) -> None:
    with pytest.raises(DataUnavailableError, match="put AudioWAV and Frames into") as caught:
        load_dataset("cremad")
    assert str(cache / "cremad") in str(caught.value)


def test_without_pillow_it_names_the_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "PIL", None)
    with pytest.raises(ImportError, match="pip install pillow"):
        read_frame(tmp_path / "a.png")


@pytest.mark.parametrize("clip", ["", "1001_DFA_ANG", "x_DFA_ANG_XX", "1001_DFA_JOY_XX"])
def test_other_names_are_refused(clip: str) -> None:
    with pytest.raises(ValueError, match="clip must be named like 1001_DFA_ANG_XX"):
        parse_name(clip)


def test_another_rate_is_refused(placed: Path, make_wav: Callable[..., bytes]) -> None:
    (placed / f"AudioWAV/{CLIPS[0]}.wav").write_bytes(make_wav(np.ones(100), rate=8000))
    with pytest.raises(ValueError, match=r"1001_DFA_ANG_XX\.wav must be sampled at 16000 Hz, got 8000"):
        load_dataset("cremad")


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"", "content must be a wave file, got an empty file"),
        (b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n", "a pointer of Git LFS"),
        (-1001, "content must be a whole wave file"),
    ],
)
def test_a_wave_that_cannot_be_read_is_named(placed: Path, content: bytes | int, reason: str) -> None:
    wave = placed / f"AudioWAV/{CLIPS[0]}.wav"
    wave.write_bytes(wave.read_bytes()[:content] if isinstance(content, int) else content)
    with pytest.raises(ValueError, match=rf"AudioWAV/1001_DFA_ANG_XX\.wav cannot be read: .*{reason}"):
        load_dataset("cremad")


@pytest.mark.parametrize("kept", [0, 3, 40, -30])
@pytest.mark.parametrize("suffix", ["png", "jpg", "bmp", "pgm"])
def test_a_frame_that_cannot_be_read_is_named(tmp_path: Path, suffix: str, kept: int) -> None:
    frame = tmp_path / f"a.{suffix}"
    save_frame(frame, np.random.default_rng(0).integers(0, 256, (36, 48)))
    frame.write_bytes(frame.read_bytes()[:kept])
    with pytest.raises(ValueError, match=rf"a\.{suffix} must be a whole image"):
        read_frame(frame)


def test_too_few_actors_are_named() -> None:
    with pytest.raises(ValueError, match="actors must be at least 3"):
        split_actors(np.asarray([1, 1, 2]))
