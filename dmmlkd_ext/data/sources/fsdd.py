"""The Free Spoken Digit Dataset (Jakobovski and contributors; CC BY-SA 4.0): 3,000 recordings at 8 kHz.

Ten digits, six speakers, 50 recordings each; the official test split is the recordings of index 0-4. Its archives
differ by how they were packed, so the SHA-256 of the recordings is checked.
"""

from __future__ import annotations

import gzip
import hashlib
import lzma
import tarfile
import zlib
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.data.sources.audio import read_wav
from dmmlkd_ext.data.sources.fetch import ChecksumError, download, find, obtain

RATE = 8000
SPEAKERS = ("george", "jackson", "lucas", "nicolas", "theo", "yweweler")

_REPOSITORY = "https://github.com/Jakobovski/free-spoken-digit-dataset/archive/refs/"
_ADDRESSES = (f"{_REPOSITORY}tags/v1.0.10.tar.gz", f"{_REPOSITORY}heads/master.tar.gz")
_DOWNLOADED = "fsdd/recordings.tar.gz"
_PLACES = ("fsdd/recordings", "fsdd/recordings.tar.xz", _DOWNLOADED)
_MOST_BYTES = 2**27
"""Most bytes that an archive may unpack to, with other files of the repository; the recordings have 21 MB."""
_GZIP = b"\x1f\x8b"
_CONTENT_SHA256 = "dbd573d7cafe79c4b49f65718115e1304e24e067fa39eff18a660dc6cb9c360f"


@dataclass(frozen=True)
class Recording:
    """A spoken digit.

    Attributes:
        digit: 0..9.
        speaker: position in `SPEAKERS`.
        index: which of the speaker's recordings of the digit, 0..49.
        samples: float32 ``[time]`` in -1..1, at 8 kHz.
    """

    digit: int
    speaker: int
    index: int
    samples: npt.NDArray[np.float32]


def read_fsdd() -> list[Recording]:
    """Return the 3,000 recordings, ordered by file name.

    They are read from a data folder, as ``fsdd/recordings`` (a folder of wave files),
    ``fsdd/recordings.tar.xz`` or ``fsdd/recordings.tar.gz``, or the archive is downloaded from the project's
    repository.

    Raises:
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: they are neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: the recordings are not the expected ones.
    """
    path = next((found for found in map(find, _PLACES) if found is not None), None)
    if path is None:
        path = obtain(_DOWNLOADED, _verified, lambda target: download(_ADDRESSES, target, _verified))
    return [_decode(name, content) for name, content in sorted(_verified(path).items())]


def _verified(path: Path) -> dict[str, bytes]:
    """Return the wave files in an archive or folder by name, after their checksum."""
    try:
        files = _folder(path) if path.is_dir() else _archive(path)
    except (tarfile.TarError, lzma.LZMAError, gzip.BadGzipFile, zlib.error, EOFError, ValueError) as error:
        raise ChecksumError(f"{path} is not a whole archive of the recordings: {error}") from error
    digest = hashlib.sha256()
    for name, content in sorted(files.items()):
        digest.update(f"{name} {hashlib.sha256(content).hexdigest()}\n".encode())
    if digest.hexdigest() != _CONTENT_SHA256:
        raise ChecksumError(
            f"{path} holds {len(files)} recordings whose SHA-256 is {digest.hexdigest()}, "
            f"expected the 3000 with {_CONTENT_SHA256}"
        )
    return files


def _folder(path: Path) -> dict[str, bytes]:
    return {file.name: file.read_bytes() for file in path.glob("*.wav")}


def _archive(path: Path) -> dict[str, bytes]:
    """Read ``.../recordings/*.wav`` of an archive, unpacked in memory, so that its names can do no harm.

    The checksum is checked after unpacking, so the unpacked size is limited.
    """
    files = {}
    with path.open("rb") as file:
        unpack = gzip.open if file.read(len(_GZIP)) == _GZIP else lzma.open
    with unpack(path) as unpacked:
        bounded: Any = _Bounded(unpacked)  # has all methods that tarfile calls
        with tarfile.open(fileobj=bounded, mode="r|") as archive:
            for member in archive:
                name = PurePosixPath(member.name)
                if not (member.isreg() and name.suffix == ".wav" and name.parent.name == "recordings"):
                    continue  # also links
                stream = archive.extractfile(member)
                assert stream is not None
                files[name.name] = stream.read()
    return files


class _Bounded:
    """A stream that raises after `_MOST_BYTES`."""

    def __init__(self, stream: gzip.GzipFile | lzma.LZMAFile) -> None:
        self._stream, self._left = stream, _MOST_BYTES

    def read(self, size: int) -> bytes:
        """Return up to ``size`` bytes."""
        content = self._stream.read(size)
        self._left -= len(content)
        if self._left < 0:
            raise ValueError(f"it unpacks to more than {_MOST_BYTES} bytes")
        return content


def _decode(name: str, content: bytes) -> Recording:
    digit, speaker, index = PurePosixPath(name).stem.split("_")
    samples, rate = read_wav(content)
    if rate != RATE:
        raise ValueError(f"{name} must be sampled at {RATE} Hz, got {rate}")
    return Recording(int(digit), SPEAKERS.index(speaker), int(index), samples)
