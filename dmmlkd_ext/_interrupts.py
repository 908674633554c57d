"""One line where `dmmlkd` is interrupted while it imports torch, which takes seconds; other programs are left alone.

Importing the package imports torch before any function of the command runs, so that this is done on import. A handler
ends the process at once: an exception could be lost within what is imported, and leave it half there.
"""

from __future__ import annotations

import os
import signal
import sys
from types import FrameType


def _is_command(words: list[str]) -> bool:
    """Return whether Python was called with these words to run `dmmlkd` or `-m dmmlkd_ext`.

    Example:
        >>> _is_command(["-u", "-m", "dmmlkd_ext", "info"]), _is_command(["bin/dmmlkd", "run"]), _is_command(["-c", ""])
        (True, True, False)
    """
    for place, word in enumerate(words):
        if word in ("-m", "-c"):
            return word == "-m" and words[place + 1 : place + 2] == ["dmmlkd_ext"]
        if not word.startswith("-"):
            return os.path.basename(word) == "dmmlkd"  # noqa: PTH119 - nothing that takes time is imported here
    return False


def _end(_signal: int, _frame: FrameType | None) -> None:
    os.write(2, b"dmmlkd: interrupted before anything began\n")
    os._exit(130)


def imports_are_over() -> None:
    """Let an interrupt raise KeyboardInterrupt again."""
    if signal.getsignal(signal.SIGINT) is _end:
        signal.signal(signal.SIGINT, signal.default_int_handler)


if _is_command(sys.orig_argv[1:]) and signal.getsignal(signal.SIGINT) is signal.default_int_handler:
    signal.signal(signal.SIGINT, _end)
