"""The one place that loads the native operators, or keeps the reason why they are not loaded.

The environment variable ``DMMLKD_BACKEND`` is ``auto`` (the default: use them if they load), ``native`` (raise if they
do not) or ``reference`` (do not load them). ``DMMLKD_INSTRUCTION_SET`` (``auto``, ``base``, ``avx2``, ``avx512``)
overrides the choice of the CPU kernels, for tests. An empty variable counts as unset.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import warnings
from pathlib import Path
from typing import Any, Literal

import torch

from dmmlkd_ext._version import __version__
from dmmlkd_ext.ops.schemas import INTERFACE, define

LIBRARY = Path(__file__).parents[1] / "_ops.so"
CUDA_LIBRARY = LIBRARY.with_name("_C_cuda.so")
TORCH_VERSIONS = ((2, 11), (2, 14))
"""The oldest and the newest torch that the native operators are tested with; pyproject.toml requires the same."""

_BUILD_AGAIN = (
    "build it again (`make build` in a clone, `pip install --no-build-isolation --force-reinstall --no-deps` elsewhere)"
)


class SettingError(SystemExit, ValueError):
    """An environment variable has an invalid value; the import raises it.

    As a SystemExit, an uncaught one prints its message without a traceback.
    """


def _load() -> tuple[ctypes.CDLL | None, str]:
    """Return the library of the operators, or None and the reason why it is not loaded."""
    wanted = os.environ.get("DMMLKD_BACKEND") or "auto"
    if wanted not in ("auto", "native", "reference"):
        raise SettingError(f"DMMLKD_BACKEND must be auto, native or reference; got {wanted!r}")
    if wanted == "reference":
        return None, "DMMLKD_BACKEND=reference asks for the reference implementations"
    if reason := _why_not():
        return None, _without(reason, wanted)
    try:
        torch.ops.load_library(str(LIBRARY))
        library = ctypes.CDLL(str(LIBRARY))
    except OSError as error:
        return None, _without(f"the native extension cannot be loaded: {error.__cause__ or error}", wanted)
    interface = getattr(library, "dmmlkd_interface", None)
    _check_interface(interface() if interface else None, str(LIBRARY))
    for name in ("instruction_set", "built_for", "compiler"):
        getattr(library, f"dmmlkd_{name}").restype = ctypes.c_char_p
    define()
    try:
        _select(library, os.environ.get("DMMLKD_INSTRUCTION_SET") or "auto")
    except ValueError as error:
        raise SettingError(f"DMMLKD_INSTRUCTION_SET: {error}") from error
    return library, ""


def _why_not() -> str:
    """Return why the library cannot be loaded here, as far as can be told without trying, or an empty text."""
    if not LIBRARY.exists():
        unbuilt = LIBRARY.with_name("_not_built.txt")  # written by setup.py
        reason = unbuilt.read_text(encoding="utf-8").strip() if unbuilt.exists() else f"there is no {LIBRARY.name}"
        return f"the native extension was not built: {reason}"
    oldest, newest = TORCH_VERSIONS
    if not oldest <= _release(torch.__version__) <= newest:
        return (
            f"the native extension is for torch {oldest[0]}.{oldest[1]} to {newest[0]}.{newest[1]}, this is torch "
            f"{torch.__version__}: install one of those"
        )
    return ""


def _without(reason: str, wanted: str) -> str:
    """Return the reason why the reference runs; raise or warn where somebody expects the native operators."""
    if wanted == "native":
        raise ImportError(f"DMMLKD_BACKEND=native, but {reason}")
    if LIBRARY.exists() or LIBRARY.with_name("_not_built.txt").exists():  # they were meant to be built
        warnings.warn(f"dmmlkd_ext runs by its reference implementations: {reason}", stacklevel=3)
    return reason


def _release(version: str) -> tuple[int, int]:
    """Return the first two numbers of a version."""
    major, minor = re.findall(r"\d+", version)[:2]
    return int(major), int(minor)


def _select(library: ctypes.CDLL, name: str) -> None:
    if not library.dmmlkd_select_instruction_set(name.encode()):
        raise ValueError(f"instruction_set must be auto, base, avx2 or avx512 and known to this processor, got {name}")


def select_instruction_set(name: str) -> None:
    """Use the CPU kernels of one instruction set, or of the best for "auto".

    Raises:
        ValueError: there are no such kernels, or the processor lacks the instructions.
    """
    if _library is not None:
        _select(_library, name)


def _load_cuda() -> str:
    """Load the CUDA kernels; return the reason if they are not loaded, else an empty text."""
    if _library is None:
        return _reason
    if not CUDA_LIBRARY.exists():
        unbuilt = CUDA_LIBRARY.with_name("_cuda_not_built.txt")  # written by setup.py
        if unbuilt.exists():
            return f"the CUDA kernels were not built: {unbuilt.read_text(encoding='utf-8').strip()}"
        return "built without CUDA"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
        interface = getattr(ctypes.CDLL(str(CUDA_LIBRARY)), "dmmlkd_cuda_interface", None)
    except OSError as error:
        return f"the CUDA kernels cannot be loaded: {error.__cause__ or error}"
    _check_interface(interface() if interface else None, str(CUDA_LIBRARY))
    return ""


def _check_interface(built: int | None, file: str | None) -> None:
    """Raise ImportError if a library was built from sources with another interface."""
    if built != INTERFACE:
        raise ImportError(
            f"the native extension must have the interface {INTERFACE} of this package, got {built} in {file}: it was "
            f"built from other sources; {_BUILD_AGAIN}"
        )


_library, _reason = _load()
_cuda_reason = _load_cuda()


def backend() -> Literal["native", "reference"]:
    """Return which implementation runs on CPU tensors: "native" or "reference".

    Example:
        >>> backend() in ("native", "reference")
        True
    """
    return "reference" if _library is None else "native"


def backend_reason() -> str | None:
    """Return why the reference implementations run, or None if the native ones do."""
    return _reason or None


def uses_native(tensor: torch.Tensor) -> bool:
    """Return whether the native operators support this tensor's torch device.

    Example:
        >>> uses_native(torch.zeros(2)) == (backend() == "native")
        True
    """
    if _library is None:
        return False
    return tensor.device.type in ("cpu", "meta") or (tensor.device.type == "cuda" and not _cuda_reason)


def simulates_natively(tensor: torch.Tensor) -> bool:
    """Return whether the simulation's native operators support this tensor: on a CPU, in float32 or float64.

    Example:
        >>> simulates_natively(torch.zeros(2, dtype=torch.float16))
        False
    """
    return backend() == "native" and tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def _said(name: str) -> str | None:
    text: bytes | None = getattr(_library, f"dmmlkd_{name}")() if _library else None
    return text.decode() if text is not None else None


def build_info() -> dict[str, Any]:
    """Return versions, backend, instruction set, and the reason why a library is not loaded.

    Example:
        >>> sorted(build_info())[:3]
        ['backend', 'built_for_torch', 'compiler']
    """
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backend(),
        "reason": _reason or None,
        "instruction_set": _said("instruction_set"),
        "built_for_torch": _said("built_for"),
        "compiler": _said("compiler"),
        "openmp": torch.backends.openmp.is_available(),
        "cuda_kernels": not _cuda_reason,
        "cuda_reason": _cuda_reason or None,
    }
