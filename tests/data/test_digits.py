"""MNIST's and FSDD's own formats, on small files that the tests make."""

from __future__ import annotations

import gzip
import hashlib
import io
import tarfile
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from dmmlkd_ext.data import ChecksumError, DataUnavailableError
from dmmlkd_ext.data.sources import fsdd as fsdd_module
from dmmlkd_ext.data.sources import mnist as mnist_module
from dmmlkd_ext.data.sources.fsdd import read_fsdd
from dmmlkd_ext.data.sources.mnist import parse_idx, read_mnist


def idx(array: np.ndarray) -> bytes:
    return bytes([0, 0, 8, array.ndim]) + np.asarray(array.shape, dtype=">i4").tobytes() + array.tobytes()


def test_mnist_files_are_downloaded_checked_and_parsed(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    images = np.arange(2 * 28 * 28, dtype=np.int64).astype(np.uint8).reshape(2, 28, 28)
    contents = {"t10k-images-idx3-ubyte.gz": idx(images), "t10k-labels-idx1-ubyte.gz": idx(np.uint8([7, 3]))}
    digests = {}
    for name, content in contents.items():
        (tmp_path / name).write_bytes(gzip.compress(content))
        digests[name] = hashlib.sha256((tmp_path / name).read_bytes()).hexdigest()
    monkeypatch.setattr(mnist_module, "_ADDRESSES", (f"{tmp_path.as_uri()}/",))
    with pytest.raises(DataUnavailableError, match=r"put it as mnist/t10k-images-idx3-ubyte\.gz under"):
        read_mnist()  # the files are others than MNIST's
    monkeypatch.setattr(mnist_module, "_SHA256", digests)
    read, digits = read_mnist()
    assert np.array_equal(read, images)
    assert digits.tolist() == [7, 3]
    assert digits.dtype == np.int64
    assert sorted(path.name for path in (cache / "mnist").iterdir()) == sorted(contents)


@pytest.mark.parametrize("content", [b"", b"\0\0\x0d\1\0\0\0\0", idx(np.uint8([1, 2, 3]))[:-1], b"\0\0\x08\2\0\0"])
def test_other_idx_files_are_refused(content: bytes) -> None:
    with pytest.raises(ValueError, match="content must"):
        parse_idx(content)


@pytest.fixture
def waves(make_wav: Callable[..., bytes]) -> dict[str, bytes]:
    return {
        "9_theo_1.wav": make_wav(np.asarray([1, 2, 3])),
        "0_george_49.wav": make_wav(np.asarray([4, 5])),
    }


@pytest.fixture
def expected(waves: dict[str, bytes], monkeypatch: pytest.MonkeyPatch) -> None:
    digest = hashlib.sha256()
    for name in sorted(waves):
        digest.update(f"{name} {hashlib.sha256(waves[name]).hexdigest()}\n".encode())
    monkeypatch.setattr(fsdd_module, "_CONTENT_SHA256", digest.hexdigest())


def write_archive(path: Path, waves: dict[str, bytes], mode: str, folder: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with tarfile.open(path, mode) as archive:  # type: ignore[call-overload]
        for name, content in {**waves, "../README.md": b"text"}.items():
            member = tarfile.TarInfo(f"{folder}/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))


def assert_is_read() -> None:
    first, second = read_fsdd()
    assert (first.digit, first.speaker, first.index) == (0, 0, 49)
    assert (second.digit, second.speaker, second.index) == (9, 4, 1)
    assert np.array_equal(second.samples * 32768, [1, 2, 3])


@pytest.mark.usefixtures("expected")
@pytest.mark.parametrize("place", ["recordings", "recordings.tar.xz", "recordings.tar.gz"])
def test_fsdd_is_read_from_every_place(cache: Path, waves: dict[str, bytes], place: str) -> None:
    target = cache / "fsdd" / place
    if "." in place:
        write_archive(target, waves, f"w:{place[-2:]}", "recordings")
    else:
        target.mkdir(parents=True)
        for name, content in waves.items():
            (target / name).write_bytes(content)
    assert_is_read()


@pytest.mark.usefixtures("expected")
def test_fsdd_is_downloaded_as_the_repository_packs_it(
    cache: Path, tmp_path: Path, waves: dict[str, bytes], monkeypatch: pytest.MonkeyPatch
) -> None:
    published = tmp_path / "v1.tar.gz"
    write_archive(published, waves, "w:gz", "free-spoken-digit-dataset-1.0.10/recordings")
    monkeypatch.setattr(fsdd_module, "_ADDRESSES", (published.as_uri(),))
    assert_is_read()
    published.unlink()
    assert_is_read()
    assert [path.name for path in (cache / "fsdd").iterdir()] == ["recordings.tar.gz"]


@pytest.mark.usefixtures("expected")
def test_a_cut_archive_is_refused(cache: Path, waves: dict[str, bytes]) -> None:
    target = cache / "fsdd/recordings.tar.xz"
    write_archive(target, waves, "w:xz", "recordings")
    target.write_bytes(target.read_bytes()[:200])
    with pytest.raises(ChecksumError, match=r"recordings\.tar\.xz"):
        read_fsdd()


@pytest.mark.usefixtures("expected")
@pytest.mark.parametrize("kind", [tarfile.SYMTYPE, tarfile.LNKTYPE, tarfile.FIFOTYPE])
def test_what_is_no_file_in_an_archive_is_passed_over(cache: Path, waves: dict[str, bytes], kind: bytes) -> None:
    target = cache / "fsdd/recordings.tar.xz"
    target.parent.mkdir(parents=True)
    with tarfile.open(target, "w:xz") as archive:
        for name, content in waves.items():
            member = tarfile.TarInfo(f"recordings/{name}")
            member.size = len(content)
            archive.addfile(member, io.BytesIO(content))
        link = tarfile.TarInfo("recordings/8_theo_1.wav")
        link.type, link.linkname = kind, "../../nowhere.wav"
        archive.addfile(link)
    assert_is_read()


@pytest.mark.parametrize("suffix", ["xz", "gz"])
@pytest.mark.parametrize("name", ["recordings/0_theo_0.wav", "padding.bin"])
def test_an_archive_that_unpacks_to_more_than_the_recordings_is_refused(
    cache: Path, name: str, suffix: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(fsdd_module, "_MOST_BYTES", 2**20)
    target = cache / f"fsdd/recordings.tar.{suffix}"
    target.parent.mkdir(parents=True)
    with tarfile.open(target, f"w:{suffix}") as archive:  # type: ignore[call-overload]
        member = tarfile.TarInfo(name)
        member.size = 2**22
        archive.addfile(member, io.BytesIO(bytes(member.size)))
    with pytest.raises(ChecksumError, match=rf"recordings\.tar\.{suffix} is not a .*: it unpacks to more than 1048576"):
        read_fsdd()


def test_other_recordings_are_refused(cache: Path, waves: dict[str, bytes]) -> None:
    write_archive(cache / "fsdd/recordings.tar.xz", waves, "w:xz", "recordings")
    with pytest.raises(ChecksumError, match=r"holds 2 recordings whose SHA-256 is .*expected the 3000"):
        read_fsdd()
