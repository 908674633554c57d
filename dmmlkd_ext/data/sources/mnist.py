"""The 10,000 test images of MNIST (LeCun, Cortes, Burges; CC BY-SA 3.0), in the idx format."""

from __future__ import annotations

import gzip
from functools import partial

import numpy as np
import numpy.typing as npt

from dmmlkd_ext.data.sources.fetch import download, obtain, verify

_ADDRESSES = ("https://ossci-datasets.s3.amazonaws.com/mnist/", "http://yann.lecun.com/exdb/mnist/")
_SHA256 = {
    "t10k-images-idx3-ubyte.gz": "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6",
    "t10k-labels-idx1-ubyte.gz": "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6",
}


def read_mnist() -> tuple[npt.NDArray[np.uint8], npt.NDArray[np.int64]]:
    """Return the images, uint8 ``[10000, 28, 28]``, and their digits, int64 ``[10000]``.

    The files are in the folder ``mnist`` of a data folder, or are downloaded from their official addresses.

    Raises:
        dmmlkd_ext.data.sources.fetch.DataUnavailableError: a file is neither local nor can be downloaded.
        dmmlkd_ext.data.sources.fetch.ChecksumError: a file is not the expected one.
    """
    images, labels = (parse_idx(_content(name)) for name in _SHA256)
    return images, labels.astype(np.int64)


def _content(name: str) -> bytes:
    addresses = [base + name for base in _ADDRESSES]
    check = partial(verify, expected=_SHA256[name])
    path = obtain(f"mnist/{name}", check, lambda target: download(addresses, target, check))
    return gzip.decompress(path.read_bytes())


def parse_idx(content: bytes) -> npt.NDArray[np.uint8]:
    """Decode an idx file of unsigned bytes: 0, 0, 8, the number of axes, their sizes, the values.

    Raises:
        ValueError: it is not such a file, or incomplete.

    Example:
        >>> parse_idx(bytes([0, 0, 8, 2, 0, 0, 0, 1, 0, 0, 0, 2, 7, 9])).tolist()
        [[7, 9]]
    """
    if len(content) < 4 or content[:3] != b"\0\0\x08":
        raise ValueError(f"content must be an idx file of unsigned bytes, got the first bytes {content[:4]!r}")
    header = 4 + 4 * content[3]
    shape = [int.from_bytes(content[start : start + 4], "big") for start in range(4, header, 4)]
    if len(content) != header + int(np.prod(shape)):
        raise ValueError(f"content must hold {shape} bytes after its header, got {len(content) - header} bytes")
    return np.frombuffer(content, dtype=np.uint8, offset=header).reshape(shape)
