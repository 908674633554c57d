"""The native kernels that this processor can run, and a way to run some of them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from dmmlkd_ext.ops import backend, native


def instruction_sets() -> list[str]:
    """Return their names, or "reference" alone."""
    if backend() == "reference":
        return ["reference"]
    found = []
    for name in ("base", "avx2", "avx512"):
        try:
            native.select_instruction_set(name)
        except ValueError:
            continue
        found.append(name)
    native.select_instruction_set("auto")
    return found


@contextmanager
def kernels_of(name: str) -> Iterator[None]:
    """Run the kernels of one instruction set in the block."""
    if name == "reference":
        yield
        return
    native.select_instruction_set(name)
    try:
        yield
    finally:
        native.select_instruction_set("auto")
