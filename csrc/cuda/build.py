"""Builds the CUDA operators into a shared library of their own, with nvcc and the host's C++ compiler.

torch.utils.cpp_extension refuses to compile CUDA beside a torch without CUDA. Here nothing includes a CUDA header of
torch, so a machine with nvcc alone, no GPU and no CUDA torch, compiles and links all of it::

    python csrc/cuda/build.py            # build, load beside torch, print what each kernel takes; fails if one spills
    python csrc/cuda/build.py --output dmmlkd_ext/_C_cuda.so

setup.py loads this file by its path and calls `build_extension`. Environment: CUDA_HOME (else nvcc of PATH, else that
of CUDA's own folder), CXX, DMMLKD_CUDA_ARCHITECTURES (machine code to embed; unless set, what nvcc knows of 80, 90,
100 and 120; given as "80;90"). PTX of 7.5, or of the least that nvcc knows, is always there for the others.
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
SOURCES = ("pairwise_kl", "gossip_mix", "orthogonality")  # each folder holds a cuda.cu and its kernel.cuh
HOST_SOURCES = (HERE / "bindings.cpp", CSRC / "orthogonality" / "library.cpp", CSRC / "stable" / "tensor.cpp")
ARCHITECTURES = (80, 90, 100, 120)
PTX_ARCHITECTURE = 75
CUDA_FOLDERS = ("/usr/local/cuda", "/usr/local/cuda-[0-9]*")  # where its installers put it
OPERATORS = (
    "pairwise_kl_forward",
    "pairwise_kl_backward",
    "orthogonality_forward",
    "gossip_mix_",
    "gossip_mix_inplace_",
)


@dataclass(frozen=True)
class Kernel:
    """What ptxas reports of one kernel on one architecture."""

    name: str
    architecture: str
    registers: int
    stack_bytes: int
    spill_bytes: int
    shared_bytes: int  # what is fixed; most kernels ask for theirs at the launch


def nvcc_path() -> Path | None:
    """Returns nvcc of CUDA_HOME, else of PATH, else of CUDA's own folder, else None."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if home:
        nvcc = Path(home) / "bin" / "nvcc"
        return nvcc if nvcc.exists() else None
    if found := shutil.which("nvcc"):
        return Path(found)
    root = Path("/")
    installed = [nvcc for folder in CUDA_FOLDERS for nvcc in sorted(root.glob(f"{folder[1:]}/bin/nvcc"))]
    return installed[0] if installed else None


def why_not() -> str:
    """Returns why the CUDA operators cannot be compiled here, or an empty text."""
    if not sys.platform.startswith("linux"):
        return f"the CUDA kernels are built on Linux, this is {sys.platform}"
    nvcc = nvcc_path()
    if nvcc is None:
        home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
        where = f"{home}/bin (CUDA_HOME)" if home else f"PATH, {', '.join(CUDA_FOLDERS)}"
        return f"nvcc was not found in {where}: set CUDA_HOME to CUDA's folder"
    wanted = _torch_cuda_major()
    release, _ = _nvcc_release()
    if wanted is not None and release > wanted:
        return (
            f"{nvcc} is of CUDA {release}, torch was built for CUDA {wanted}, whose driver may not know it: set "
            f"CUDA_HOME to a CUDA {wanted}"
        )
    return ""


def nvcc_available() -> bool:
    """Whether the CUDA operators can be compiled here."""
    return not why_not()


def compile_objects(build_dir: Path) -> list[Path]:
    """Compiles every .cu file for all architectures, in parallel; skips what is up to date.

    Args:
        build_dir: Where objects go, with a `.log` of what the compiler said beside each.

    Returns:
        The objects, to be linked with the static CUDA runtime.
    """
    flags = ["-O3", "-std=c++17", "--expt-relaxed-constexpr", "-Xptxas=-v"]
    release, version = _nvcc_release()
    if release >= 13:  # a quarter of the size; every driver that can run CUDA 13 knows it
        flags += ["--compress-mode=size"]
    flags += ["-Xcompiler=-fPIC,-fvisibility=hidden,-Wall,-Wextra,-Wno-unknown-pragmas"]
    machine_code, ptx = _architectures()
    for architecture in machine_code:
        flags += ["-gencode", f"arch=compute_{architecture},code=sm_{architecture}"]
    flags += ["-gencode", f"arch=compute_{ptx},code=compute_{ptx}"]
    flags += ["--threads", str(max(1, (os.cpu_count() or 1) // len(SOURCES)))]
    shared = [*HERE.glob("*.cuh"), HERE / "launchers.h", CSRC / "interface.h"]

    def compile_source(source: str) -> Path:
        command = [*_nvcc(), *flags, "-c", str(CSRC / source / "cuda.cu")]
        return _compile(command, build_dir / f"{source}.o", [*(CSRC / source).glob("*.cu*"), *shared], version)

    with ThreadPoolExecutor() as pool:
        return list(pool.map(compile_source, SOURCES))


def build_extension(output_path: Path, build_dir: Path | None = None) -> Path:
    """Builds the library that registers the CUDA operators, against the torch of this environment.

    Args:
        output_path: The shared library to write.
        build_dir: Where objects go, to be used again; `build/cuda` of the repository unless given.

    Returns:
        `output_path`.

    Raises:
        RuntimeError: nvcc is missing, does not fit torch, or fails; the first line says which.
    """
    if reason := why_not():
        raise RuntimeError(reason)
    build_dir = BUILD_DIR if build_dir is None else build_dir
    build_dir.mkdir(parents=True, exist_ok=True)
    with ThreadPoolExecutor() as pool:
        hosts = [pool.submit(_compile_host, source, build_dir / f"{source.stem}.o") for source in HOST_SOURCES]
        objects = [*compile_objects(build_dir), *(host.result() for host in hosts)]
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
    schemas = CSRC.parent / "dmmlkd_ext" / "ops" / "schemas.py"
    program = (
        "import ctypes, runpy, sys, torch\n"
        "runpy.run_path(sys.argv[1])['define']()\n"
        "torch.ops.load_library(sys.argv[2])\n"
        "assert ctypes.CDLL(sys.argv[2]).dmmlkd_cuda_interface() > 0\n"
        "for name in sys.argv[3:]:\n"
        "    assert torch._C._dispatch_has_kernel_for_dispatch_key(f'dmmlkd::{name}', 'CUDA'), name\n"
    )
    _run([sys.executable, "-c", program, str(schemas), str(library), *OPERATORS])
    kernels = [kernel for source in SOURCES for kernel in _read_log(build_dir / f"{source}.o.log")]
    return sorted(kernels, key=lambda kernel: (kernel.name, int(kernel.architecture)))


def refuse_spills(kernels: list[Kernel]) -> None:
    """Checks that every kernel keeps its variables in registers.

    Raises:
        RuntimeError: some do not; the line names each with its architecture and bytes.
    """
    spilled = [kernel for kernel in kernels if kernel.spill_bytes or kernel.stack_bytes]
    if spilled:
        named = "; ".join(
            f"{kernel.name} on sm_{kernel.architecture}: {kernel.spill_bytes} bytes spilled, "
            f"{kernel.stack_bytes} bytes of stack"
            for kernel in spilled
        )
        raise RuntimeError(f"kernels must keep their variables in registers, these do not: {named}")


def _architectures() -> tuple[list[int], int]:
    """Returns the architectures to embed machine code for, and the one of the PTX: all of them known to nvcc."""
    known = {int(number) for number in re.findall(r"compute_(\d+)\b", _run([*_nvcc(), "--list-gpu-arch"]))}
    if not known:
        raise RuntimeError(f"{nvcc_path()} --list-gpu-arch names no architecture")
    ptx = PTX_ARCHITECTURE if PTX_ARCHITECTURE in known else min(known)
    asked = os.environ.get("DMMLKD_CUDA_ARCHITECTURES")
    if not asked:
        return [architecture for architecture in ARCHITECTURES if architecture in known], ptx
    listed = ", ".join(map(str, sorted(known)))
    if not re.fullmatch(r"\d+(;\d+)*", asked) or not known.issuperset(map(int, asked.split(";"))):
        raise RuntimeError(
            f"DMMLKD_CUDA_ARCHITECTURES must be numbers that nvcc knows ({listed}) with ; between, got {asked!r}"
        )
    return [int(number) for number in asked.split(";")], ptx


def _nvcc_release() -> tuple[int, str]:
    """Returns nvcc's major version, and all that it says of itself."""
    said = _run([*_nvcc(), "--version"])
    release = re.search(r"release (\d+)", said)
    if release is None:
        raise RuntimeError(f"{nvcc_path()} --version names no release")
    return int(release[1]), said


def _torch_cuda_major() -> int | None:
    """Returns the major version of the CUDA that torch was built for; None: torch has none."""
    import torch

    return int(torch.version.cuda.partition(".")[0]) if torch.version.cuda else None


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    said = done.stdout + done.stderr
    if done.returncode != 0:
        error = re.search(r"^.*(?:error|fatal).*$", said, re.MULTILINE | re.IGNORECASE)
        summary = error[0] if error else f"exit status {done.returncode}"
        raise RuntimeError(f"{command[0]} failed: {summary}\n{shlex.join(command)}\n{said}")
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
        raise RuntimeError(why_not())
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
    headers = [*CSRC.glob("*.h"), *CSRC.glob("stable/*.h"), CSRC / "orthogonality" / "form.h", HERE / "launchers.h"]
    inputs = [source, *headers, _torch_dir() / "version.py"]
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
            shared = re.search(r"(\d+) bytes smem", line)
            fixed = int(shared[1]) if shared else 0
            kernels.append(Kernel(_short(name), architecture, int(used[1]), stack, spills, fixed))
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
    try:
        kernels = check(options.build_dir)
        print(f"{'kernel':44} {'for':6} {'registers':>9} {'stack':>6} {'spilled':>7} {'fixed shared memory':>19}")
        for kernel in kernels:
            print(
                f"{kernel.name:44} sm_{kernel.architecture:3} {kernel.registers:9} {kernel.stack_bytes:6} "
                f"{kernel.spill_bytes:7} {kernel.shared_bytes:19}"
            )
        refuse_spills(kernels)
    except RuntimeError as error:
        sys.exit(f"cuda-check: {error}")
    library = options.build_dir / "_C_cuda.so"
    print(f"{len(kernels)} kernels; {library.name} has {library.stat().st_size / 2**20:.1f} MiB and loads beside torch")
    if options.output:
        shutil.copy2(library, options.output)


if __name__ == "__main__":
    main()
