"""Sound for networks: wave files, clips of one length, noise, log-mel spectrograms."""

from __future__ import annotations

import functools
import io
import math
import wave

import numpy as np
import numpy.typing as npt
import torch

_POINTER = b"version https://git-lfs.github.com/spec/"
_FLOOR = 1e-6
"""Added to a mel power before the logarithm: -60 dB of a clip of unit power."""


def read_wav(content: bytes) -> tuple[npt.NDArray[np.float32], int]:
    """Decode the bytes of a mono wave file of 16-bit samples.

    Returns:
        The samples, float32 ``[time]`` in -1..1, and the rate in Hz.

    Raises:
        ValueError: it is not such a file, or holds no samples.
    """
    try:
        with wave.open(io.BytesIO(content)) as stream:
            channels, width, rate, count, *_ = stream.getparams()
            raw = stream.readframes(count)
    except (wave.Error, EOFError, RuntimeError) as error:  # RuntimeError: a length exceeds its chunk
        raise ValueError(f"content must be a wave file, got {_describe(content)}") from error
    if channels != 1 or width != 2 or not raw:
        raise ValueError(
            f"content must be mono, 16-bit and not empty, got {channels} channel(s), {8 * width} bits, "
            f"{len(raw)} bytes of samples"
        )
    if len(raw) != count * width:
        raise ValueError(f"content must be a whole wave file, got {len(raw)} of its {count * width} bytes of samples")
    return np.frombuffer(raw, dtype="<i2").astype(np.float32) / 32768.0, rate


def _describe(content: bytes) -> str:
    if content.startswith(_POINTER):
        return "a pointer of Git LFS to one; fetch it by git lfs pull"
    return f"{len(content)} other bytes" if content else "an empty file"


def fit_clip(samples: npt.NDArray[np.float32], length: int) -> npt.NDArray[np.float32]:
    """Scale a recording to unit power and fit it to ``length`` samples: padded with silence or cut at both ends.

    Args:
        samples: float32 ``[time]``, not empty.
        length: samples of the clip, at least 1.

    Returns:
        float32 ``[length]``. A silent recording stays silent.

    Raises:
        ValueError: ``samples`` is empty or not a vector, or ``length`` is not positive.

    Example:
        >>> fit_clip(np.array([2.0, -2.0], dtype=np.float32), 4).tolist()
        [0.0, 1.0, -1.0, 0.0]
    """
    if samples.ndim != 1 or samples.size == 0:
        raise ValueError(f"samples must be a non-empty vector, got shape {samples.shape}")
    if length < 1:
        raise ValueError(f"length must be at least 1, got {length}")
    power = float(np.mean(np.square(samples, dtype=np.float64)))
    scaled = samples / np.float32(math.sqrt(power)) if power > 0 else samples
    excess = max(0, len(scaled) - length)
    kept = scaled[excess // 2 : excess // 2 + length]
    before = (length - len(kept)) // 2
    return np.pad(kept, (before, length - len(kept) - before)).astype(np.float32)


def add_white_noise(clips: torch.Tensor, snr_db: float, generator: torch.Generator) -> torch.Tensor:
    """Add white Gaussian noise to clips whose speech has unit power (`fit_clip`).

    Args:
        clips: float32 ``[clips, time]``.
        snr_db: power of the speech over power of the noise, in dB; infinite for none.
        generator: the source of randomness.

    Raises:
        ValueError: ``snr_db`` is not a number.

    Example:
        >>> silence = torch.zeros(1, 4000)
        >>> noise = add_white_noise(silence, 0.0, torch.Generator().manual_seed(0))
        >>> 0.9 < float(noise.square().mean()) < 1.1
        True
    """
    if math.isnan(snr_db):
        raise ValueError(f"snr_db must be a number of dB, got {snr_db}")
    noise = torch.randn(clips.shape, generator=generator, dtype=torch.float32, device="cpu")
    return clips + 10 ** (-snr_db / 20) * noise


def log_mel(clips: torch.Tensor, rate: int, bands: int, window: int, hop: int) -> torch.Tensor:
    """Return log-mel spectrograms: log of the power in triangular bands, evenly spaced in mel.

    Hann windows, no padding, so a clip of ``window + (frames - 1) * hop`` samples gives ``frames`` frames.
    The mel scale is 2595 log10(1 + f / 700), from 0 Hz to half the rate.

    Args:
        clips: float32 ``[clips, time]``.
        rate: samples per second.
        bands: mel bands.
        window: samples per window, also the length of the Fourier transform.
        hop: samples between windows.

    Returns:
        float32 ``[clips, bands, frames]``.

    Raises:
        ValueError: ``clips`` is not of that form or shorter than a window, a number is not positive, or the
            window is too short to resolve the bands.

    Example:
        >>> tone = torch.sin(2 * torch.pi * 1000 * torch.arange(512) / 8000)[None]
        >>> spectrogram = log_mel(tone, rate=8000, bands=32, window=256, hop=128)
        >>> tuple(spectrogram.shape), int(spectrogram.mean(dim=2).argmax())
        ((1, 32, 3), 14)
    """
    for argument, value in (("rate", rate), ("bands", bands), ("window", window), ("hop", hop)):
        if value < 1:
            raise ValueError(f"{argument} must be at least 1, got {value}")
    if clips.dim() != 2 or clips.shape[1] < window:
        raise ValueError(f"clips must have shape [clips, time >= {window}], got {tuple(clips.shape)}")
    shape = torch.hann_window(window, dtype=torch.float32, device="cpu")
    spectrum = torch.stft(clips, window, hop, window=shape, center=False, return_complex=True)
    power = spectrum.abs().square() / shape.square().sum()
    return torch.log(_kept_filters(rate, bands, window) @ power + _FLOOR)


def mel_filters(rate: int, bands: int, window: int) -> torch.Tensor:
    """Return triangular filters float32 ``[bands, window // 2 + 1]``, each with weights of sum one.

    Raises:
        ValueError: a band is narrower than the resolution of the Fourier transform, ``rate / window`` Hz.

    Example:
        >>> filters = mel_filters(rate=8000, bands=4, window=64)
        >>> tuple(filters.shape), filters.sum(1).round(decimals=5).tolist()
        ((4, 33), [1.0, 1.0, 1.0, 1.0])
    """
    top = 2595.0 * math.log10(1.0 + rate / 2 / 700.0)
    edges = 700.0 * (10.0 ** (torch.linspace(0.0, top, bands + 2, dtype=torch.float64, device="cpu") / 2595.0) - 1.0)
    bins = torch.linspace(0.0, rate / 2, window // 2 + 1, dtype=torch.float64, device="cpu")
    rising = (bins - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    falling = (edges[2:, None] - bins) / (edges[2:] - edges[1:-1])[:, None]
    filters = torch.minimum(rising, falling).clamp(min=0.0)
    sums = filters.sum(dim=1, keepdim=True)
    if not bool((sums > 0).all()):
        raise ValueError(f"window must be longer for {bands} bands at {rate} Hz, got {window}")
    return (filters / sums).float()


# Private: a caller that changed the cached tensor would change every later spectrogram.
_kept_filters = functools.cache(mel_filters)
