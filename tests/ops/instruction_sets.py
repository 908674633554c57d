"""The native kernels that this processor can run, and a way to run some of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmmlkd_ext.ops import backend


def instruction_sets() -> list[str]:
    """Return their names, or "reference" alone."""
    if backend() == "reference":
        return ["reference"]
    from dmmlkd_ext import _C

    found = []
    for name in ("base", "avx2", "avx512"):
        try:
            _C.select_instruction_set(name)
        except ValueError:
            continue
        found.append(name)
    _C.select_instruction_set("auto")
    return found


@contextmanager
def kernels_of(name: str) -> Iterator[None]:
    """Run the kernels of one instruction set in the block."""
    if name == "reference":
        yield
        return
    from dmmlkd_ext import _C

    _C.select_instruction_set(name)
    try:
        yield
    finally:
        _C.select_instruction_set("auto")
