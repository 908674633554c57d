"""`avdigits`: an image (MNIST) and a recording (FSDD) of the same digit, both degraded, as in AV-MNIST.

By METHOD 8, images and recordings are disjoint between the splits (recordings by FSDD's test split), each recording is
paired with several images of its digit, the image keeps a quarter of its PCA energy, and the recording has white noise
at 0 dB. The degradation of the image follows AV-MNIST (Vielzeuf et al. 2018, arXiv 1808.07275). Natural owners are the
six speakers.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from dmmlkd_ext.data.dataset import MultiModalDataset, Split
from dmmlkd_ext.data.sources.audio import add_white_noise, fit_clip, log_mel
from dmmlkd_ext.data.sources.derived import derived
from dmmlkd_ext.data.sources.fsdd import RATE, Recording, read_fsdd
from dmmlkd_ext.data.sources.mnist import read_mnist
from dmmlkd_ext.data.standardize import standardize
from dmmlkd_ext.seeding import numpy_generator, torch_generator

RECIPE_VERSION = 1
"""Part of the name of the cached features: increase it with every change of what is computed."""

SIDES = ("train", "validation", "test")
MODALITIES = ("image", "audio")
NUM_CLASSES = 10

# Not the run's seed: test accuracies of different runs must be on the same samples.
_RECIPE_SEED = 0
_BANDS = 32
_FRAMES = 32
_WINDOW = 512
_HOP = 256
_CLIP = _WINDOW + (_FRAMES - 1) * _HOP
_CHUNK = 500

Pairs = dict[str, npt.NDArray[np.int64]]


def load_avdigits(seed: int = 0, pairs: int = 3, image_energy: float = 0.25, snr_db: float = 0.0) -> MultiModalDataset:
    """Load `avdigits`: float32 ``image`` ``[samples, 1, 28, 28]`` and ``audio`` ``[samples, 1, 32, 32]``.

    ``audio`` is a log-mel spectrogram (bands x frames, 64 ms windows every 32 ms) of a clip of 1.056 s with
    the recording in its middle. Images are standardized as a whole, spectrograms by mel band, with training
    statistics. Pairs and noise do not depend on the run's seed; the features are cached. With the defaults there are
    7,200 / 900 / 900 samples of 2,400 / 300 / 300 recordings.

    Args:
        seed: not used; every loader takes it.
        pairs: images that each recording is paired with, 1..20, each with other noise.
        image_energy: share of the training images' variance that is kept, above 0 to 1; 1 leaves them clean.
        snr_db: power of the recording over the noise's, in dB; ``inf`` leaves it clean.

    Raises:
        ValueError: an option is out of range.
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: files are neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one.
    """
    del seed
    if isinstance(pairs, bool) or not isinstance(pairs, int) or not 1 <= pairs <= 20:
        raise ValueError(f"pairs must be an integer in 1..20, got {pairs!r}")
    if not 0 < image_energy <= 1:
        raise ValueError(f"image_energy must lie above 0 and at most at 1, got {image_energy}")
    if math.isnan(snr_db) or snr_db == -math.inf:
        raise ValueError(f"snr_db must be a number of dB or inf, got {snr_db}")
    name = f"avdigits/v{RECIPE_VERSION}-pairs{pairs}-energy{float(image_energy)!r}-snr{float(snr_db)!r}.npz"
    arrays = derived(name, lambda: compute_avdigits(pairs, image_energy, snr_db))
    splits = {side: _split(arrays, side) for side in SIDES}
    names = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine")
    return MultiModalDataset("avdigits", MODALITIES, NUM_CLASSES, names, **splits)


def load_avdigits_clean(seed: int = 0) -> MultiModalDataset:
    """Load `avdigits-clean`: `avdigits` with clean images, by far the stronger modality; see `load_avdigits`."""
    return replace(load_avdigits(seed, image_energy=1.0), name="avdigits-clean")


def pair_up(recordings: Sequence[Recording], digits: npt.NDArray[np.int64], pairs: int) -> Pairs:
    """Draw the pairs of recordings and images of each split.

    Recordings of index 0-4 are for testing (FSDD's split), 5-9 for validation, the remaining ones for training. A
    random tenth of the images of each digit is for testing and a tenth for validation. Within a split and a digit,
    images are assigned in random order, repeatedly if needed.

    Args:
        recordings: the recordings.
        digits: int64 ``[images]``, the digit of each image.
        pairs: images per recording.

    Returns:
        int64 ``[samples, 2]`` by split, rows (recording, image).

    Raises:
        ValueError: a recorded digit has fewer than ``pairs`` images in a split.
    """
    generator = numpy_generator(_RECIPE_SEED, "avdigits pairs")
    tables: dict[str, list[npt.NDArray[np.int64]]] = {side: [] for side in SIDES}
    for digit in range(NUM_CLASSES):
        pool = generator.permutation(np.flatnonzero(digits == digit))
        tenth = len(pool) // 10
        images = {"test": pool[:tenth], "validation": pool[tenth : 2 * tenth], "train": pool[2 * tenth :]}
        for side in SIDES:
            spoken = [number for number, item in enumerate(recordings) if item.digit == digit and _side(item) == side]
            if spoken and len(images[side]) < pairs:
                raise ValueError(
                    f"pairs must not exceed the images of digit {digit} on the {side} side, "
                    f"{len(images[side])}, got {pairs}"
                )
            chosen = np.resize(images[side], len(spoken) * pairs)
            tables[side].append(np.stack([np.repeat(spoken, pairs), chosen], axis=1).astype(np.int64))
    return {side: np.concatenate(parts) for side, parts in tables.items()}


def _side(recording: Recording) -> str:
    return "test" if recording.index < 5 else "validation" if recording.index < 10 else "train"


def compute_avdigits(pairs: int, image_energy: float, snr_db: float) -> dict[str, npt.NDArray[Any]]:
    """Compute the arrays ``{side}_{image,audio,labels,groups}`` from the raw files; see `load_avdigits`."""
    images, digits = read_mnist()
    recordings = read_fsdd()
    tables = pair_up(recordings, digits, pairs)
    weak = weaken_images(images, np.unique(tables["train"][:, 1]), image_energy)
    clips = torch.from_numpy(np.stack([fit_clip(item.samples, _CLIP) for item in recordings]))
    looks = standardize(
        {side: weak[table[:, 1], None].astype(np.float64) for side, table in tables.items()},
        axes=(0, 1, 2, 3),
    )
    sounds = standardize(
        {side: _spectrograms(clips, table[:, 0], snr_db, side) for side, table in tables.items()},
        axes=(0, 1, 3),
    )
    arrays: dict[str, npt.NDArray[Any]] = {}
    for side, table in tables.items():
        arrays[f"{side}_image"] = looks[side].numpy()
        arrays[f"{side}_audio"] = sounds[side].numpy()
        arrays[f"{side}_labels"] = digits[table[:, 1]]
        arrays[f"{side}_groups"] = np.asarray([recordings[row].speaker for row in table[:, 0]], dtype=np.int64)
    return arrays


def weaken_images(
    images: npt.NDArray[np.uint8], train: npt.NDArray[np.int64], energy: float
) -> npt.NDArray[np.float32]:
    """Project every image on the fewest principal components of the training images that hold ``energy`` of it.

    Args:
        images: uint8 ``[images, height, width]``.
        train: rows of the training images.
        energy: share of the variance to keep, above 0 to 1; 1 returns the images themselves.

    Returns:
        float32, same shape, pixels about 0..1.

    Raises:
        ValueError: ``energy`` is out of range.
    """
    if not 0 < energy <= 1:
        raise ValueError(f"energy must lie above 0 and at most at 1, got {energy}")
    flat = images.reshape(len(images), -1).astype(np.float64) / 255.0
    if energy == 1:
        return flat.reshape(images.shape).astype(np.float32)
    mean = flat[train].mean(axis=0)
    variances, axes = np.linalg.eigh(np.cov(flat[train], rowvar=False))
    shares = np.cumsum(variances[::-1]) / variances.sum()
    kept = axes[:, ::-1][:, : int(np.searchsorted(shares, energy)) + 1]
    weak: npt.NDArray[np.float64] = mean + (flat - mean) @ kept @ kept.T
    return weak.reshape(images.shape).astype(np.float32)


def _spectrograms(
    clips: torch.Tensor, rows: npt.NDArray[np.int64], snr_db: float, side: str
) -> npt.NDArray[np.float64]:
    """Return float64 ``[samples, 1, bands, frames]``: every sample has other noise."""
    generator = torch_generator(_RECIPE_SEED, "avdigits noise", SIDES.index(side))
    parts = []
    for chunk in torch.from_numpy(rows).split(_CHUNK):  # bounds the memory of the noisy clips
        noisy = add_white_noise(clips[chunk], snr_db, generator)
        parts.append(log_mel(noisy, RATE, _BANDS, _WINDOW, _HOP)[:, None])
    spectrograms: npt.NDArray[np.float64] = torch.cat(parts).double().numpy()
    return spectrograms


def _split(arrays: dict[str, npt.NDArray[Any]], side: str) -> Split:
    labels = torch.from_numpy(arrays[f"{side}_labels"])
    return Split(
        features={name: torch.from_numpy(arrays[f"{side}_{name}"]) for name in MODALITIES},
        labels=labels,
        present=torch.ones(len(labels), len(MODALITIES), dtype=torch.bool, device="cpu"),
        groups=torch.from_numpy(arrays[f"{side}_groups"]),
    )
