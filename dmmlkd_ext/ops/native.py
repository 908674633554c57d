"""The one place that loads the native extension, or keeps the reason why there is none.

The environment variable ``DMMLKD_BACKEND`` chooses: ``auto`` (the default) takes the extension where it loads,
``native`` insists on it, ``reference`` leaves it alone. ``DMMLKD_INSTRUCTION_SET`` (``auto``, ``base``, ``avx2``,
``avx512``) overrides the choice of the CPU kernels, for tests.
"""

from __future__ import annotations

import ctypes
import os
import platform
import warnings
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any, Literal

import torch

from dmmlkd_ext._version import __version__

INTERFACE = 5
"""Of the operators' schemas in csrc/ops.cpp; csrc/interface.h has the same number, and both rise when one changes."""

CUDA_LIBRARY = Path(__file__).parents[1] / "_C_cuda.so"


def _load() -> tuple[ModuleType | None, str]:
    wanted = os.environ.get("DMMLKD_BACKEND", "auto")
    if wanted not in ("auto", "native", "reference"):
        raise ValueError(f"DMMLKD_BACKEND must be auto, native or reference; got {wanted!r}")
    if wanted == "reference":
        return None, "DMMLKD_BACKEND=reference asks for the reference implementations"
    try:
        module = import_module("dmmlkd_ext._C")
    except ImportError as error:
        package = Path(__file__).parents[1]
        unbuilt = package / "_not_built.txt"  # written by setup.py
        reason = f"the native extension cannot be loaded: {error}"
        if unbuilt.exists():
            reason = f"the native extension was not built: {unbuilt.read_text(encoding='utf-8').strip()}"
        if wanted == "native":
            raise ImportError(f"DMMLKD_BACKEND=native, but {reason}") from error
        if unbuilt.exists() or any(package.glob("_C.*")):  # it was meant to be there
            warnings.warn(f"dmmlkd_ext runs by its reference implementations: {reason}", stacklevel=2)
        return None, reason
    _check_interface(getattr(module, "interface", None), module.__file__)
    module.select_instruction_set(os.environ.get("DMMLKD_INSTRUCTION_SET", "auto"))
    return module, ""


def _load_cuda() -> str:
    """Load the CUDA kernels beside the CPU ones; return why not, or an empty text."""
    if _module is None:
        return _reason
    if not CUDA_LIBRARY.exists():
        return "built without CUDA"
    try:
        torch.ops.load_library(str(CUDA_LIBRARY))
        interface = getattr(ctypes.CDLL(str(CUDA_LIBRARY)), "dmmlkd_cuda_interface", None)
    except OSError as error:
        return f"the CUDA kernels cannot be loaded: {error}"
    _check_interface(interface() if interface else None, str(CUDA_LIBRARY))
    return ""


def _check_interface(built: int | None, file: str | None) -> None:
    """Raise ImportError where a library was built from other sources than this package's."""
    if built != INTERFACE:
        raise ImportError(
            f"the native extension must have the interface {INTERFACE} of this package, got {built} in {file}: it was "
            "built from other sources; build it again (`make build` in a clone, "
            "`pip install --no-build-isolation --force-reinstall --no-deps` elsewhere)"
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
    """Return why the reference implementations run, or None: the native ones do."""
    return _reason or None


def uses_native(tensor: torch.Tensor) -> bool:
    """Return whether the native operators take this tensor; other devices go to the reference.

    Example:
        >>> uses_native(torch.zeros(2)) == (backend() == "native")
        True
    """
    if _module is None:
        return False
    return tensor.device.type in ("cpu", "meta") or (tensor.device.type == "cuda" and not _cuda_reason)


def simulates_natively(tensor: torch.Tensor) -> bool:
    """Return whether the native operators of the simulation take this tensor: on a CPU, in float32 or float64.

    Example:
        >>> simulates_natively(torch.zeros(2, dtype=torch.float16))
        False
    """
    return backend() == "native" and tensor.device.type == "cpu" and tensor.dtype in (torch.float32, torch.float64)


def build_info() -> dict[str, Any]:
    """Return what was built and what runs: versions, backend, instruction set, and the reason of an absence.

    Example:
        >>> sorted(build_info())[:3]
        ['backend', 'compiler', 'cuda_kernels']
    """
    return {
        "version": __version__,
        "torch": torch.__version__,
        "python": platform.python_version(),
        "backend": backend(),
        "reason": _reason or None,
        "instruction_set": _module.instruction_set() if _module else None,
        "compiler": _module.compiler if _module else None,
        "openmp": _module.openmp if _module else None,
        "cuda_kernels": not _cuda_reason,
        "cuda_reason": _cuda_reason or None,
    }
