"""Builds the CUDA operators into a shared library of their own, with nvcc and the host's C++ compiler.

torch.utils.cpp_extension refuses to compile CUDA beside a torch without CUDA. Here nothing includes a CUDA header of
torch, so a machine with nvcc alone, no GPU and no CUDA torch, compiles and links all of it::

    python csrc/cuda/build.py            # build, load beside torch, print what each kernel takes
    python csrc/cuda/build.py --output dmmlkd_ext/_C_cuda.so

setup.py loads this file by its path and calls `build_extension`. Environment: CUDA_HOME (else nvcc of PATH), CXX,
DMMLKD_CUDA_ARCHITECTURES (machine code to embed, "80;90;100" unless set; PTX of 7.5 is always there for the others).
"""

from __future__ import annotations

import argparse
import hashlib
import os
import re
import shlex
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

HERE = Path(__file__).resolve().parent
BUILD_DIR = HERE.parents[1] / "build" / "cuda"
CSRC = HERE.parent
SOURCES = ("pairwise_kl", "gossip_mix")  # each folder holds a cuda.cu and its kernel.cuh
ARCHITECTURES = "80;90;100"
PTX_ARCHITECTURE = "75"
OPERATORS = ("pairwise_kl_forward", "gossip_mix_", "gossip_mix_inplace_")


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel on one architecture."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int


def nvcc_path() -> Path | None:
    """Returns nvcc of CUDA_HOME, else of PATH, else None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home and (Path(home) / "bin" / "nvcc").exists():
        return Path(home) / "bin" / "nvcc"
    found = shutil.which("nvcc")
    return Path(found) if found else None


def nvcc_available() -> bool:
    """Whether the CUDA operators can be compiled here."""
    return sys.platform.startswith("linux") and nvcc_path() is not None


def compile_objects(build_dir: Path) -> list[Path]:
    """Compiles every .cu file for all architectures, in parallel; skips what is up to date.

    Args:
        build_dir: Where objects go, with a `.log` of what the compiler said beside each.

    Returns:
        The objects, to be linked with the static CUDA runtime.
    """
    flags = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Xptxas=-v"]
    version = _run([*_nvcc(), "--version"])
    release = re.search(r"release (\d+)", version)
    if release and int(release[1]) >= 13:  # a quarter of the size; every driver that can run CUDA 13 knows it
        flags += ["--compress-mode=size"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unknown-pragmas"]
    for architecture in _architectures():
        flags += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    flags += ["-gencode", f"arch=compute_{PTX_ARCHITECTURE},code=compute_{PTX_ARCHITECTURE}"]
    flags += ["--threads", str(max(1, (os.cpu_count() or 1) // len(SOURCES)))]
    inputs = [*CSRC.glob("*/*.cu"), *CSRC.glob("*/*.cuh"), HERE / "launchers.h", CSRC / "interface.h"]
    jobs = [([*_nvcc(), *flags, "-c", str(CSRC / source / "cuda.cu")], build_dir / f"{source}.o") for source in SOURCES]
    with ThreadPoolExecutor() as pool:
        return list(pool.map(lambda job: _compile(job[0], job[1], inputs, version), jobs))


def build_extension(output_path: Path, build_dir: Path | None = None) -> Path:
    """Builds the library that registers the CUDA operators, against the torch of this environment.

    Args:
        output_path: The shared library to write.
        build_dir: Where objects go, to be used again; `build/cuda` of the repository unless given.

    Returns:
        `output_path`.
    """
    build_dir = BUILD_DIR if build_dir is None else build_dir
    build_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        bindings = pool.submit(_compile_host, HERE / "bindings.cpp", build_dir / "bindings.o")
        objects = [*compile_objects(build_dir), bindings.result()]
    # nvcc knows where its runtime lies. Hidden, so that the symbols of this copy and those of torch's never meet.
    _link([*_nvcc(), "-shared", "-cudart=static", "-Xlinker=--exclude-libs=ALL,--no-undefined"], objects, output_path)
    return output_path


def check(build_dir: Path) -> list[Kernel]:
    """Builds everything and loads it beside torch, for which no GPU and no CUDA torch is needed.

    Args:
        build_dir: Where objects and libraries go.

    Returns:
        What each kernel takes on each architecture.
    """
    library = build_extension(build_dir / "_C_cuda.so", build_dir)
    schemas = build_dir / "schemas.so"
    _link([*_compiler(), "-shared"], [_compile_host(CSRC / "ops.cpp", build_dir / "ops.o")], schemas)
    program = (
        "import ctypes, sys, torch\n"
        "for library in sys.argv[1:3]: torch.ops.load_library(library)\n"
        "assert ctypes.CDLL(sys.argv[2]).dmmlkd_cuda_interface() > 0\n"
        "for name in sys.argv[3:]:\n"
        "    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'dmmlkd::{name}', 'CUDA'), name\n"
    )
    _run([sys.executable, "-c", program, str(schemas), str(library), *OPERATORS])
    kernels = [kernel for source in SOURCES for kernel in _read_log(build_dir / f"{source}.o.log")]
    return sorted(kernels, key=lambda kernel: (kernel.name, int(kernel.architecture)))


def _architectures() -> list[str]:
    return (os.environ.get("DMMLKD_CUDA_ARCHITECTURES") or ARCHITECTURES).split(";")


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        raise RuntimeError(f"{shlex.join(command)}\n{said}")
    return said


def _compile(command: list[str], output: Path, inputs: list[Path], compiler: str = "") -> Path:
    """Runs a compiler unless the same command of the same compiler has seen the same inputs."""
    output.parent.mkdir(parents=True, exist_ok=True)
    digest = hashlib.sha256((compiler + shlex.join(command)).encode())
    for path in sorted(inputs):
        digest.update(path.read_bytes())
    stamp = output.with_name(output.name + ".stamp")
    if not (output.exists() and stamp.exists() and stamp.read_text() == digest.hexdigest()):
        stamp.unlink(missing_ok=True)
        output.with_name(output.name + ".log").write_text(_run([*command, "-o", str(output)]))
        stamp.write_text(digest.hexdigest())
    return output


def _nvcc() -> list[str]:
    nvcc = nvcc_path()
    if nvcc is None:
        raise RuntimeError("nvcc was not found: set CUDA_HOME or put it on PATH")
    host = ["-ccbin", _compiler()[-1]] if os.environ.get("CXX") else []
    return [str(nvcc), *host]


def _compiler() -> list[str]:
    return shlex.split(os.environ.get("CXX") or "g++")


def _torch_dir() -> Path:
    import torch

    return Path(torch.__file__).parent


def _compile_host(source: Path, output: Path) -> Path:
    include = _torch_dir() / "include"
    flags = ["-O2", "-std=c++20", "-fPIC", "-fvisibility=hidden", "-Wall", "-Wextra"]
    flags += [f"-isystem{include}", f"-isystem{include / 'torch/csrc/api/include'}"]
    inputs = [source, CSRC / "check.h", CSRC / "interface.h", HERE / "launchers.h", _torch_dir() / "version.py"]
    return _compile([*_compiler(), *flags, "-c", str(source)], output, inputs)


def _link(linker: list[str], objects: list[Path], output: Path) -> None:
    output.parent.mkdir(parents=True, exist_ok=True)
    torch = [f"-L{_torch_dir() / 'lib'}", "-lc10", "-ltorch_cpu", "-ltorch"]
    _run([*linker, *map(str, objects), *torch, "-o", str(output)])


def _read_log(log: Path) -> list[Kernel]:
    """Reads what `ptxas -v` said: for each kernel its name, its stack and spills, its registers."""
    kernels = []
    name, architecture, stack, spills = "", "", 0, 0
    for line in log.read_text().splitlines():
        if entry := re.search(r"Compiling entry function '(.*)' for 'sm_(\d+)'", line):
            name, architecture, stack, spills = entry[1], entry[2], 0, 0
        elif frame := re.search(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads", line):
            stack, spills = int(frame[1]), int(frame[2]) + int(frame[3])
        elif used := re.search(r"Used (\d+) registers", line):
            kernels.append(Kernel(_short(name), architecture, int(used[1]), stack, spills))
    return kernels


def _short(name: str) -> str:
    """The kernel's name and template arguments, of either a mangled or a readable signature."""
    if name.startswith("_Z") and shutil.which("c++filt"):
        name = _run(["c++filt", name]).strip()
    return re.sub(r"\(.*$", "", name.replace("(int)", "").replace("(bool)", "")).replace("void dmmlkd::cuda::", "")


def main() -> None:
    """Builds, checks and prints."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--build-dir", type=Path, default=BUILD_DIR)
    parser.add_argument("--output", type=Path, help="copy the library here if all is well")
    options = parser.parse_args()
    kernels = check(options.build_dir)
    for kernel in kernels:
        print(
            f"{kernel.name:60} sm_{kernel.architecture:4} {kernel.registers:4} registers "
            f"{kernel.stack_bytes:4} bytes of stack {kernel.spill_bytes:4} bytes spilled"
        )
    library = options.build_dir / "_C_cuda.so"
    print(f"{len(kernels)} kernels; {library.name} has {library.stat().st_size / 2**20:.1f} MiB and loads beside torch")
    if options.output:
        shutil.copy2(library, options.output)


if __name__ == "__main__":
    main()
