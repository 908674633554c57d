"""The one place that loads the native extension, or keeps the reason why it is not loaded.

The environment variable ``DMMLKD_BACKEND`` is ``auto`` (the default: use the extension if it loads), ``native`` (raise
if it does not) or ``reference`` (do not load it). ``DMMLKD_INSTRUCTION_SET`` (``auto``, ``base``, ``avx2``, ``avx512``)
overrides the choice of the CPU kernels, for tests. An empty variable counts as unset.
"""

from __future__ import annotations

import ctypes
import os
import platform
import re
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from dmmlkd_ext._version import __version__

INTERFACE = 6
"""Version of the schemas in csrc/ops.cpp, equal to that in csrc/interface.h; increase both when a schema changes."""

CUDA_LIBRARY = Path(__file__).parents[1] / "_C_cuda.so"

_BUILD_AGAIN = (
    "build it again (`make build` in a clone, `pip install --no-build-isolation --force-reinstall --no-deps` elsewhere)"
)


class SettingError(SystemExit, ValueError):
    """An environment variable has an invalid value; the import raises it.

    As a SystemExit, an uncaught one prints its message without a traceback.
    """


def _load() -> tuple[ModuleType | None, str]:
    wanted = os.environ.get("DMMLKD_BACKEND") or "auto"
    if wanted not in ("auto", "native", "reference"):
        raise SettingError(f"DMMLKD_BACKEND must be auto, native or reference; got {wanted!r}")
    if wanted == "reference":
        return None, "DMMLKD_BACKEND=reference asks for the reference implementations"
    try:
        module = import_module("dmmlkd_ext._C")
    except ImportError as error:
        package = Path(__file__).parents[1]
        unbuilt = package / "_not_built.txt"  # written by setup.py
        reason = _why_not_loaded(error, package)
        if unbuilt.exists():
            reason = f"the native extension was not built: {unbuilt.read_text(encoding='utf-8').strip()}"
        if wanted == "native":
            raise ImportError(f"DMMLKD_BACKEND=native, but {reason}") from error
        if unbuilt.exists() or any(package.glob("_C.*")):  # the extension was meant to be built
            warnings.warn(f"dmmlkd_ext runs by its reference implementations: {reason}", stacklevel=2)
        return None, reason
    _check_interface(getattr(module, "interface", None), module.__file__)
    try:
        module.select_instruction_set(os.environ.get("DMMLKD_INSTRUCTION_SET") or "auto")
    except ValueError as error:
        raise SettingError(f"DMMLKD_INSTRUCTION_SET: {error}") from error
    return module, ""


def _why_not_loaded(error: ImportError, package: Path) -> str:
    """Return why the extension is not loaded; one built for another torch version cannot resolve its symbols."""
    for library in package.glob("_C.*"):
        built_for = re.search(rb"dmmlkd_ext was built for torch ([^;\0]+);", library.read_bytes())
        if built_for and built_for[1].decode() != _number(torch.__version__):
            return (
                f"the native extension was built for torch {built_for[1].decode()}, this is torch {torch.__version__}: "
                f"{_BUILD_AGAIN}"
            )
    return f"the native extension cannot be loaded: {error}"


def _number(version: str) -> str:
    """Return a version without its local part, which names the build (+cpu, +cu130)."""
    return version.partition("+")[0]


def _load_cuda() -> str:
    """Load the CUDA kernels; return the reason if they are not loaded, else an empty text."""
    if _module is None:
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
        return f"the CUDA kernels cannot be loaded: {error}"
    _check_interface(interface() if interface else None, str(CUDA_LIBRARY))
    return ""


def _check_interface(built: int | None, file: str | None) -> None:
    """Raise ImportError if a library was built from sources with another interface."""
    if built != INTERFACE:
        raise ImportError(
            f"the native extension must have the interface {INTERFACE} of this package, got {built} in {file}: it was "
            f"built from other sources; {_BUILD_AGAIN}"
        )


_module, _reason = _load()
_cuda_reason = _load_cuda()


def backend() -> Literal["native", "reference"]:
    """Return which implementation runs on CPU tensors: "native" or "reference".

    Example:
        >>> backend() in ("native", "reference")
        True
    """
    return "reference" if _module is None else "native"


def backend_reason() -> str | None:
    """Return why the reference implementations run, or None if the native ones do."""
    return _reason or None


def uses_native(tensor: torch.Tensor) -> bool:
    """Return whether the native operators support this tensor's torch device.

    Example:
        >>> uses_native(torch.zeros(2)) == (backend() == "native")
        True
    """
    if _module is None:
        return False
    return tensor.device.type in ("cpu", "meta") or (tensor.device.type == "cuda" and not _cuda_reason)


def simulates_natively(tensor: torch.Tensor) -> bool:
    """Return whether the simulation's native operators support this tensor: on a CPU, in float32 or float64.

    Example:
        >>> simulates_natively(torch.zeros(2, dtype=torch.float16))
        False
    """
    return backend() == "native" and tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


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
        "instruction_set": _module.instruction_set() if _module else None,
        "built_for_torch": _module.built_for if _module else None,
        "compiler": _module.compiler if _module else None,
        "openmp": _module.openmp if _module else None,
        "cuda_kernels": not _cuda_reason,
        "cuda_reason": _cuda_reason or None,
    }
