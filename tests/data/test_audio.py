from __future__ import annotations

import math
from collections.abc import Callable
from contextlib import suppress

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from dmmlkd_ext.data.sources.audio import add_white_noise, fit_clip, log_mel, mel_filters, read_wav

MakeWav = Callable[..., bytes]


def test_wav_round_trip(make_wav: MakeWav) -> None:
    samples = np.asarray([0, 16384, -32768, 32767])
    decoded, rate = read_wav(make_wav(samples, rate=16000))
    assert rate == 16000
    assert decoded.dtype == np.float32
    assert np.array_equal(decoded * 32768, samples)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"channels": 2}, r"must be mono, 16-bit and not empty, got 2 channel"),
        ({"width": 1}, r"got 1 channel\(s\), 8 bits"),
        ({"samples": np.zeros(0)}, "0 bytes of samples"),
    ],
)
def test_other_waves_are_refused(make_wav: MakeWav, options: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        read_wav(make_wav(**{"samples": np.zeros(4), **options}))


@pytest.mark.parametrize("content", [b"", b"not a wave", b"RIFF\0\0\0\0WAVE"])
def test_other_files_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="content must be a wave file"):
        read_wav(content)


def test_a_pointer_of_git_lfs_is_told_from_a_wave() -> None:
    with pytest.raises(ValueError, match="got a pointer of Git LFS to one; fetch it by git lfs pull"):
        read_wav(b"version https://git-lfs.github.com/spec/v1\noid sha256:00\nsize 12\n")


@pytest.mark.parametrize("cut", [1, 2, 7])
def test_a_cut_wave_is_refused(make_wav: MakeWav, cut: int) -> None:
    with pytest.raises(ValueError, match=rf"content must be a whole wave file, got {8 - cut} of its 8 bytes"):
        read_wav(make_wav(np.zeros(4))[:-cut])


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 59), st.integers(0, 255)), max_size=4), st.integers(0, 60))
def test_a_damaged_wave_is_read_or_refused(make_wav: MakeWav, changes: list[tuple[int, int]], kept: int) -> None:
    content = bytearray(make_wav(np.arange(8)))
    for position, value in changes:
        content[position] = value
    samples = np.ones(1)
    with suppress(ValueError):  # and nothing else
        samples, _ = read_wav(bytes(content[:kept]))
    assert samples.size


def test_sounds_do_not_depend_on_the_defaults_of_torch(monkeypatch: pytest.MonkeyPatch) -> None:
    def listen() -> list[torch.Tensor]:
        noisy = add_white_noise(torch.ones(2, 600, dtype=torch.float32), 3.0, torch.Generator().manual_seed(0))
        return [noisy, mel_filters(8000, 8, 256), log_mel(noisy, 8000, 8, 256, 128)]

    expected = listen()
    monkeypatch.setattr("dmmlkd_ext.data.sources.audio._kept_filters", mel_filters)
    torch.set_default_dtype(torch.float64)
    try:
        heard = listen()
    finally:
        torch.set_default_dtype(torch.float32)
    for before, after in zip(expected, heard, strict=True):
        assert after.dtype == torch.float32
        assert torch.equal(before, after)


def test_clip_has_unit_power_and_its_middle_is_kept() -> None:
    samples = np.asarray([1.0, 2.0, 3.0, 2.0, 1.0], dtype=np.float32)
    power = np.mean(samples**2)
    assert np.allclose(fit_clip(samples, 3), samples[1:4] / np.sqrt(power))
    padded = fit_clip(samples, 9)
    assert np.allclose(padded[2:7], samples / np.sqrt(power))
    assert np.all(padded[[0, 1, 7, 8]] == 0)
    assert np.all(fit_clip(np.zeros(3, dtype=np.float32), 5) == 0)


@pytest.mark.parametrize("snr_db", [-10.0, 0.0, 20.0])
def test_noise_has_the_power_asked_for(snr_db: float) -> None:
    noise = add_white_noise(torch.zeros(20, 8000), snr_db, torch.Generator().manual_seed(1))
    assert 10 * math.log10(float(noise.square().mean())) == pytest.approx(-snr_db, abs=0.1)
    flat = torch.fft.rfft(noise).abs().square().mean(dim=0)
    assert float(flat[:2000].mean() / flat[2000:].mean()) == pytest.approx(1.0, abs=0.05)


def test_no_noise() -> None:
    clips = torch.randn(2, 100)
    assert torch.equal(add_white_noise(clips, math.inf, torch.Generator()), clips)


def test_log_mel_agrees_with_a_plain_transform() -> None:
    clips = torch.randn(2, 1024, generator=torch.Generator().manual_seed(0))
    window = np.hanning(257)[:-1]
    expected = np.empty((2, 20, 7))
    for frame in range(7):
        piece = clips.numpy()[:, frame * 128 : frame * 128 + 256] * window
        power = np.abs(np.fft.rfft(piece)) ** 2 / np.sum(window**2)
        expected[:, :, frame] = np.log(power @ mel_filters(8000, 20, 256).numpy().T + 1e-6)
    assert np.allclose(log_mel(clips, 8000, 20, 256, 128).numpy(), expected, atol=1e-4)


def test_a_higher_tone_peaks_in_a_higher_band() -> None:
    time = torch.arange(1024) / 8000
    tones = torch.stack([torch.sin(2 * torch.pi * pitch * time) for pitch in (200, 600, 1500, 3500)])
    peaks = log_mel(tones, 8000, 32, 512, 256).mean(dim=2).argmax(dim=1)
    assert bool((peaks.diff() > 0).all())


def test_filters_cover_the_spectrum() -> None:
    filters = mel_filters(8000, 32, 512)
    assert torch.allclose(filters.sum(dim=1), torch.ones(32))
    assert bool((filters[:, 1:-1].sum(dim=0) > 0).all())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: fit_clip(np.zeros((2, 2), dtype=np.float32), 3), "samples must be a non-empty vector"),
        (lambda: fit_clip(np.zeros(0, dtype=np.float32), 3), "samples must be a non-empty vector"),
        (lambda: fit_clip(np.zeros(2, dtype=np.float32), 0), "length must be at least 1"),
        (lambda: add_white_noise(torch.zeros(1, 2), math.nan, torch.Generator()), "snr_db must be a number"),
        (
            lambda: log_mel(torch.zeros(1, 100), 8000, 8, 128, 64),
            r"clips must have shape \[clips, time >= 128\]",
        ),
        (lambda: log_mel(torch.zeros(1, 200), 8000, 8, 128, 0), "hop must be at least 1"),
        (lambda: log_mel(torch.zeros(1, 200), 8000, 200, 128, 64), "window must be longer for 200 bands"),
    ],
)
def test_bad_input_is_named(call: object, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        call()  # type: ignore[operator]
