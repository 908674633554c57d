"""`cremad`: six emotions in the voice and the face of 91 actors.

CREMA-D (Cao et al. 2014, IEEE Transactions on Affective Computing; Open Database License), 7,442 clips. It is
not downloaded: put it into the folder ``cremad`` of a data folder, as published, and extract the frames of
the videos:

- ``cremad/AudioWAV/1001_DFA_ANG_XX.wav``: the published waves (16 kHz, 16 bits, mono); the name says actor,
  sentence, emotion and intensity;
- ``cremad/Frames/1001_DFA_ANG_XX/*.jpg``: frames of ``VideoFlash/1001_DFA_ANG_XX.flv`` in the order of their
  names, as jpg, png, bmp, pgm or ppm, at any rate and size; for instance, clip by clip,
  ``ffmpeg -i VideoFlash/$clip.flv -vf fps=3 Frames/$clip/%05d.jpg``.

A clip with only a wave or only frames is kept and lacks the other modality. Natural owners are the actors.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.sources.audio import fit_clip, log_mel, read_wav
from dmmlkd_ext.data.sources.derived import derived, fingerprint
from dmmlkd_ext.data.sources.fetch import DataUnavailableError, data_folders, find
from dmmlkd_ext.data.standardize import standardize
from dmmlkd_ext.seeding import numpy_generator

RECIPE_VERSION = 1
"""Part of the name of the cached features: increase it with every change of what is computed."""

SIDES = ("train", "validation", "test")
MODALITIES = ("audio", "video")
EMOTIONS = {
    "ANG": "anger",
    "DIS": "disgust",
    "FEA": "fear",
    "HAP": "happiness",
    "NEU": "neutral",
    "SAD": "sadness",
}
RATE = 16_000
FRAMES = 3
SIZE = 48

# Not the run's seed: test accuracies of different runs must be on the same actors.
_SPLIT_SEED = 0
_TEST_SHARE = 0.2
_VALIDATION_SHARE = 0.1
_BANDS = 64
_STEPS = 64
_WINDOW = 1024
_HOP = 745
_CLIP = _WINDOW + (_STEPS - 1) * _HOP
_SUFFIXES = (".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm")


def load_cremad(seed: int = 0) -> MultiModalDataset:
    """Load `cremad`: float32 ``audio`` ``[clips, 1, 64, 64]`` and ``video`` ``[clips, 3, 48, 48]``.

    ``audio`` is a log-mel spectrogram (bands x steps) of three seconds with the recording in its middle,
    standardized by band; ``video`` holds three grey frames, evenly spaced over the clip, cut to their central
    square, standardized as a whole; both with training statistics. A fifth of the actors is for testing and a tenth for
    validation, whatever the run's seed. The features are cached.

    Args:
        seed: not used; every loader takes it.

    Returns:
        The dataset; ``groups`` is the actor's number, 1001..1091.

    Raises:
        ValueError: a file's name or content is not of the published form.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: the folders do not exist.
        ImportError: there are frames and Pillow is not installed.
    """
    del seed
    root = find("cremad")
    if root is None or not (root / "AudioWAV").is_dir() or not (root / "Frames").is_dir():
        folders = " or ".join(str(folder / "cremad") for folder in data_folders())
        raise DataUnavailableError(
            f"CREMA-D is not downloaded by this package; put AudioWAV and Frames into {folders} "
            "(see dmmlkd_ext.data.sets.cremad)"
        )
    waves = {path.stem: path for path in (root / "AudioWAV").glob("*.wav")}
    frames = {folder.name: _frame_files(folder) for folder in (root / "Frames").iterdir() if folder.is_dir()}
    frames = {clip: files for clip, files in frames.items() if files}
    clips = sorted({*waves, *frames})
    key = fingerprint([*waves.values(), *(path for files in frames.values() for path in files)])
    arrays = derived(f"cremad/v{RECIPE_VERSION}-{key}.npz", lambda: compute_cremad(clips, waves, frames))
    names = tuple(EMOTIONS.values())
    splits = _splits(arrays, split_actors(arrays["actors"]))
    return MultiModalDataset("cremad", MODALITIES, len(names), names, **splits)


def parse_name(clip: str) -> tuple[int, int]:
    """Return actor and class of a clip from its name.

    Raises:
        ValueError: the name is not actor_sentence_emotion_intensity.

    Example:
        >>> parse_name("1001_DFA_FEA_XX")
        (1001, 2)
    """
    parts = clip.split("_")
    if len(parts) != 4 or not parts[0].isdecimal() or parts[2] not in EMOTIONS:
        raise ValueError(f"clip must be named like 1001_DFA_ANG_XX, got {clip!r}")
    return int(parts[0]), list(EMOTIONS).index(parts[2])


def split_actors(actors: npt.NDArray[np.int64]) -> dict[str, npt.NDArray[np.int64]]:
    """Draw the actors of each split and return its clips; no actor is in two splits.

    Args:
        actors: int64 ``[clips]``.

    Raises:
        ValueError: there are fewer than three actors.

    Example:
        >>> rows = split_actors(np.repeat(np.arange(10), 2))
        >>> {side: len(index) for side, index in rows.items()}
        {'test': 4, 'validation': 2, 'train': 14}
    """
    people = np.unique(actors)
    if len(people) < 3:
        raise ValueError(f"actors must be at least 3, one a side, got {len(people)}")
    drawn = numpy_generator(_SPLIT_SEED, "cremad actors").permutation(people)
    test = max(1, int(_TEST_SHARE * len(people)))
    validation = max(1, int(_VALIDATION_SHARE * len(people)))
    chosen = np.split(drawn, [test, test + validation])
    return {
        side: np.flatnonzero(np.isin(actors, group))
        for side, group in zip(("test", "validation", "train"), chosen, strict=True)
    }


def compute_cremad(
    clips: Sequence[str], waves: dict[str, Path], frames: dict[str, list[Path]]
) -> dict[str, npt.NDArray[Any]]:
    """Compute features before standardization, and labels and actors from the names.

    Args:
        clips: names of the clips.
        waves: wave file by clip; some may be missing.
        frames: frame files by clip, in order; some may be missing.

    Returns:
        float32 ``audio`` and ``video`` (zeros where absent), bool ``present`` ``[clips, 2]``, int64
        ``labels`` and ``actors``.

    Raises:
        ValueError: a name, a wave or a frame is not of the published form.
        ImportError: Pillow is not installed.
    """
    named = [parse_name(clip) for clip in clips]
    audio = np.zeros((len(clips), 1, _BANDS, _STEPS), dtype=np.float32)
    video = np.zeros((len(clips), FRAMES, SIZE, SIZE), dtype=np.float32)
    for row, clip in enumerate(clips):
        if clip in waves:
            audio[row, 0] = _spectrogram(waves[clip])
        if clip in frames:
            files = frames[clip]
            middles = [int((position + 0.5) * len(files) / FRAMES) for position in range(FRAMES)]
            video[row] = np.stack([read_frame(files[middle]) for middle in middles])
    return {
        "audio": audio,
        "video": video,
        "present": np.asarray([[clip in waves, clip in frames] for clip in clips]),
        "actors": np.asarray([actor for actor, _ in named], dtype=np.int64),
        "labels": np.asarray([label for _, label in named], dtype=np.int64),
    }


def _spectrogram(path: Path) -> npt.NDArray[np.float32]:
    try:
        samples, rate = read_wav(path.read_bytes())
    except ValueError as error:
        raise ValueError(f"{path} cannot be read: {error}") from error
    if rate != RATE:
        raise ValueError(f"{path} must be sampled at {RATE} Hz, got {rate}")
    clip = torch.from_numpy(fit_clip(samples, _CLIP))[None]
    spectrogram: npt.NDArray[np.float32] = log_mel(clip, RATE, _BANDS, _WINDOW, _HOP)[0].numpy()
    return spectrogram


def _frame_files(folder: Path) -> list[Path]:
    return sorted(path for path in folder.iterdir() if path.suffix.lower() in _SUFFIXES)


def read_frame(path: Path) -> npt.NDArray[np.float32]:
    """Return the central square of an image in grey, float32 ``[48, 48]`` in 0..1.

    Raises:
        ImportError: Pillow is not installed.
        ValueError: the file is not a complete image.
    """
    try:
        from PIL import Image
    except ImportError as error:
        raise ImportError("frames of cremad are read by Pillow, which is not installed: pip install pillow") from error
    try:
        with Image.open(io.BytesIO(path.read_bytes())) as image:
            grey = image.convert("L")
    except (Image.DecompressionBombError, OSError, SyntaxError, ValueError) as error:  # what Pillow's readers raise
        raise ValueError(f"{path} must be a whole image: {error}") from error
    width, height = grey.size
    side = min(width, height)
    left, top = (width - side) // 2, (height - side) // 2
    square = grey.crop((left, top, left + side, top + side))
    return np.asarray(square.resize((SIZE, SIZE), Image.Resampling.BILINEAR), dtype=np.float32) / 255.0


def _splits(arrays: dict[str, npt.NDArray[Any]], rows: dict[str, npt.NDArray[np.int64]]) -> dict[str, Split]:
    features = {
        name: _standardize_present(arrays[name], arrays["present"][:, column], rows, axes)
        for column, (name, axes) in enumerate((("audio", (0, 1, 3)), ("video", (0, 1, 2, 3))))
    }
    return {
        side: Split(
            features={name: features[name][side] for name in MODALITIES},
            labels=torch.from_numpy(arrays["labels"][index]),
            present=torch.from_numpy(arrays["present"][index]),
            groups=torch.from_numpy(arrays["actors"][index]),
        )
        for side, index in rows.items()
    }


def _standardize_present(
    values: npt.NDArray[np.float32],
    present: npt.NDArray[np.bool_],
    rows: dict[str, npt.NDArray[np.int64]],
    axes: tuple[int, ...],
) -> dict[str, torch.Tensor]:
    """Standardize the present values by those of training clips; absent ones stay zero."""
    scaled = standardize({side: values[index[present[index]]].astype(np.float64) for side, index in rows.items()}, axes)
    result = {}
    for side, index in rows.items():
        result[side] = torch.zeros(len(index), *values.shape[1:], dtype=torch.float32, device="cpu")
        result[side][torch.from_numpy(present[index])] = scaled[side]
    return result
