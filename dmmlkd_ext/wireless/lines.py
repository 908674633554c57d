"""The lines of a text file that a user wrote."""

from __future__ import annotations

import os
from pathlib import Path


def read_lines(path: str | os.PathLike[str], argument: str) -> list[str]:
    r"""Return the lines of a UTF-8 text file, with or without a byte-order mark.

    Args:
        path: the file.
        argument: its name in messages.

    Raises:
        OSError: the file cannot be read; the message names it.
        ValueError: it is in another encoding; the message names the line.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     file = Path(folder) / "edges.txt"
        ...     _ = file.write_bytes(b"\xef\xbb\xbf0 1\r\n1 2\r\n")
        ...     read_lines(file, "path")
        ['0 1', '1 2']
    """
    content = Path(path).read_bytes()
    try:
        return content.decode("utf-8-sig").splitlines()
    except UnicodeDecodeError as error:
        where = place(argument, content[: error.start].count(b"\n") + 1, path)
        raise ValueError(f"{where} must be UTF-8 text, got the byte 0x{content[error.start]:02x}") from error


def place(argument: str, number: int, path: str | os.PathLike[str]) -> str:
    """Return how a message names a line.

    Example:
        >>> place("path", 3, "edges.txt")
        'path: line 3 of edges.txt'
    """
    return f"{argument}: line {number} of {os.fspath(path)}"
