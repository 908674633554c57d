"""The fake GPU of device.cpp, built once and kept, and what it counts."""

from __future__ import annotations

import fcntl
import hashlib
import os
import shutil
import subprocess
import sys
import types
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import torch

SOURCE = Path(__file__).with_name("device.cpp")
BUILT = Path(__file__).parents[2] / "build" / "fake_gpu"


@dataclass
class Counts:
    """How often, by name; filled when the block of `watching` ends."""

    launches: Counter[str] = field(default_factory=Counter)
    waits: Counter[str] = field(default_factory=Counter)
    """Of the host for the device."""
    copies: Counter[str] = field(default_factory=Counter)
    """From the host to the device."""


def start() -> None:
    """Build and load the device, unless that is done, under the name `gpu`."""
    if hasattr(torch, "gpu"):
        return
    torch.ops.load_library(str(_library()))
    torch.ops.fake_gpu.start()
    torch.utils.rename_privateuse1_backend("gpu")
    torch._register_device_module("gpu", _device_module())
    torch.utils.generate_methods_for_privateuse1_backend()


@contextmanager
def watching(forbid: bool = False) -> Iterator[Counts]:
    """Count what the block does on the device; with `forbid`, waits and copies raise."""
    before, found = _read(), Counts()
    forbade = torch.ops.fake_gpu.forbid(forbid)
    try:
        yield found
    finally:
        torch.ops.fake_gpu.forbid(forbade)
        for key, number in (_read() - before).items():
            kind, name = key.split(" ", 1)
            {"launch": found.launches, "wait": found.waits, "copy": found.copies}[kind][name] += number


def _read() -> Counter[str]:
    return Counter(dict(torch.ops.fake_gpu.counts()))


def _library() -> Path:
    """Return the library, compiled if there is none for this source and this torch."""
    key = f"{torch.__version__} {torch.__file__}".encode() + SOURCE.read_bytes()
    library = BUILT / f"{hashlib.sha256(key).hexdigest()[:16]}.so"
    BUILT.mkdir(parents=True, exist_ok=True)
    with (BUILT / "lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)  # processes that test side by side
        if not library.exists():
            _compile(library.with_suffix(".tmp")).replace(library)
    return library


def _compile(library: Path) -> Path:
    """Compile for this torch; skip without a compiler. Not by torch.utils.cpp_extension: spaces in paths break it."""
    compiler = os.environ.get("CXX", "c++").split()
    if shutil.which(compiler[0]) is None or not sys.platform.startswith("linux"):
        pytest.skip(f"the fake GPU is compiled on Linux by {compiler[0]}, which is not here")
    root = Path(torch.__file__).parent
    include = [f"-isystem{root / 'include'}", f"-isystem{root / 'include/torch/csrc/api/include'}"]
    link = ["-shared", f"-L{root / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    flags = ["-std=c++20", "-O1", "-fPIC", "-Wall", "-Wextra"]
    command = [*compiler, *flags, *include, str(SOURCE), *link, "-o", str(library)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return library


def _device_module() -> types.ModuleType:
    """Return what torch expects of `torch.gpu`."""
    module = types.ModuleType("torch.gpu")
    module.is_available = lambda: True
    module.is_initialized = lambda: True
    module.device_count = lambda: 1
    module.current_device = lambda: 0
    module.synchronize = lambda *_: None
    module.manual_seed_all = lambda _: None
    module._is_in_bad_fork = lambda: False
    module._lazy_init = lambda: None
    return module
