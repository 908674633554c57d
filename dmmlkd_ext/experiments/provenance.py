"""The origin of a result: the version of the code, the commit, the machine's software."""

from __future__ import annotations

import ast
import functools
import hashlib
import importlib.metadata
import platform
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

import dmmlkd_ext
from dmmlkd_ext.ops import build_info

PACKAGE = Path(dmmlkd_ext.__file__).resolve().parent
# Not the reasons of an absence, which may hold paths of the machine.
_BUILD_KEYS = ("backend", "instruction_set", "compiler", "openmp", "cuda_kernels")
NATIVE_SUFFIXES = {".cpp", ".h", ".inl", ".cu", ".cuh"}


@dataclass(frozen=True)
class Identity:
    """Which code a process runs."""

    code_version: str
    """SHA-256 over what the package's Python sources compute and, in a checkout, over the native ones."""
    commit: str | None
    """The checkout's commit; None where the package is not tracked by git, e.g. when it is installed."""
    dirty: bool | None
    """Whether tracked files of the checkout differ from the commit."""


_adopted: Identity | None = None


def identity() -> Identity:
    """Return which code this process runs, as it was at the first call.

    Example:
        >>> len(identity().code_version)
        64
    """
    return _adopted or _read_identity()


def adopt_identity(known: Identity) -> None:
    """Use the identity of the process that started this one, whatever was edited since."""
    global _adopted
    _adopted = known


def code_version() -> str:
    """Return a SHA-256 over the package's sources.

    Results are reused only by the code that made them: a change of any source file starts the runs anew, except a
    change of a Python file's comments, docstrings or layout.
    """
    return identity().code_version


@functools.cache
def _read_identity() -> Identity:
    sources = [(path.relative_to(PACKAGE.parent), path) for path in PACKAGE.rglob("*.py")]
    native = PACKAGE.parent / "csrc"
    if native.is_dir():
        sources += [
            (path.relative_to(PACKAGE.parent), path) for path in native.rglob("*") if path.suffix in NATIVE_SUFFIXES
        ]
    version = hash_files((relative.as_posix(), path) for relative, path in sources)
    if _git("ls-files", "--error-unmatch", "__init__.py") is None:
        return Identity(version, None, None)
    changes = _git("status", "--porcelain", "--untracked-files=no")
    return Identity(version, _git("rev-parse", "HEAD"), None if changes is None else bool(changes))


def hash_files(named_paths: Iterable[tuple[str, Path]]) -> str:
    """Return a SHA-256 over names and contents (of Python files, the syntax) of files, in the order of their names."""
    total = hashlib.sha256()
    for name, path in sorted(named_paths):
        content = path.read_bytes()
        if path.suffix == ".py":
            content = python_syntax(content).encode()
        total.update(f"{name}\0{hashlib.sha256(content).hexdigest()}\n".encode())
    return total.hexdigest()


def python_syntax(source: bytes) -> str:
    r"""Return what a Python source computes, as text: its syntax tree without docstrings, comments and layout.

    Raises:
        SyntaxError: `source` is not Python.

    Example:
        >>> python_syntax(b"x = 1  # one") == python_syntax(b"'What x is.'\nx = 1") != python_syntax(b"x = 2")
        True
    """
    tree = ast.parse(source)
    for node in ast.walk(tree):
        # A string that stands alone computes nothing, such as one under an attribute.
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)):
            node.body = [statement for statement in node.body if not _is_text(statement)]
    return ast.dump(tree)


def _is_text(statement: ast.stmt) -> bool:
    if not isinstance(statement, ast.Expr) or not isinstance(statement.value, ast.Constant):
        return False
    return isinstance(statement.value.value, str)


def describe_environment(threads: int, torch_device: str = "cpu") -> dict[str, Any]:
    """Return what besides the configuration can change a run's bits, with the CPU `threads` of the run.

    It is the same each time on one machine, and holds no date, host name or path. On a GPU, `cuda`, it also holds the
    current GPU's model, but not its number.
    """
    code = identity()
    build = build_info()
    return {
        "dmmlkd_ext": dmmlkd_ext.__version__,
        "code_version": code.code_version,
        "commit": code.commit,
        "dirty": code.dirty,
        "python": platform.python_version(),
        "torch": str(torch.__version__),
        "numpy": np.__version__,
        "scipy": _version_of("scipy"),
        "cpu": find_cpu_name(),
        "machine": platform.machine(),
        "threads": threads,
        **({"gpu": torch.cuda.get_device_name(), "cuda": torch.version.cuda} if torch_device == "cuda" else {}),
        "build": {key: build[key] for key in _BUILD_KEYS},
    }


def find_cpu_name() -> str:
    """Return the processor's name as the system gives it."""
    cpu_info = Path("/proc/cpuinfo")
    if cpu_info.exists():
        for line in cpu_info.read_text(encoding="utf-8", errors="replace").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    return platform.processor() or platform.machine()


def _git(*arguments: str) -> str | None:
    try:
        done = subprocess.run(["git", *arguments], cwd=PACKAGE, capture_output=True, text=True, timeout=60, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None


def _version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
