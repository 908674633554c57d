"""Builds the native extension beside the package. `DMMLKD_BUILD` says what is wanted:

auto (default): what the machine has: on Linux the CPU extension with a C++ compiler, the CUDA one as well with nvcc
                and a CUDA build of torch; none on other systems. A build that fails leaves the package pure Python;
                it says so here and, because pip hides what is printed here, when it is imported. A CUDA build that
                fails takes the CUDA kernels away and nothing else; it says so here and in `dmmlkd_ext.build_info()`.
cpu, cuda:      that extension (cuda builds both), or an error.
none:           no extension.

The CPU extension knows nothing of Python, and of torch only the stable interface of 2.11: a wheel with it alone fits
every Python and torch that pyproject.toml allows. The CUDA one fits the torch that it was built with.
"""

import os
import re
import runpy
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.bdist_wheel import bdist_wheel
from setuptools.command.build_ext import build_ext as plain_build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ON_LINUX = sys.platform.startswith("linux")
# In the package, for dmmlkd_ext/ops/native.py: why there is no extension, and why none for CUDA.
UNBUILT, UNBUILT_CUDA = "_not_built.txt", "_cuda_not_built.txt"
WANTED = os.environ.get("DMMLKD_BUILD", "auto")
CHOICES = ("auto", "cpu", "cuda", "none")
EXTENSION = "dmmlkd_ext._ops"
OLDEST_TORCH = "0x020b000000000000"  # 2.11
if WANTED not in CHOICES:
    raise SystemExit(f"DMMLKD_BUILD must be one of {', '.join(CHOICES)}; got {WANTED!r}")

# An isolated build hides the environment's packages. The extension must fit the torch that will load it, so that
# one is looked for where the package is going to be installed, and no other is ever downloaded.
sys.path.append(sysconfig.get_path("platlib"))
try:
    import torch
    from torch.utils.cpp_extension import BuildExtension, CppExtension
except ImportError as error:
    torch = None
    MISSING = f"torch cannot be imported ({error})"
finally:
    sys.path.pop()


def notice(package: Path, reason: str) -> None:
    (package / UNBUILT).write_text(reason + "\n", encoding="utf-8")
    print(
        f"\ndmmlkd_ext: no native extension: {reason}.\n"
        "The package works without it, by its reference implementations. To build it, install torch and a C++20\n"
        "compiler, then run `pip install --no-build-isolation --force-reinstall --no-deps` on it again.\n",
        file=sys.stderr,
    )


def first_line(error: Exception) -> str:
    return str(error).partition("\n")[0]


def extensions() -> list:
    compile_flags = ["-O3", "-g0", "-std=c++20", "-Wall", "-Wno-psabi", "-fvisibility=hidden"]
    compile_flags += os.environ.get("DMMLKD_CXXFLAGS", "").split()
    link_flags = os.environ.get("DMMLKD_LDFLAGS", "").split()
    found = (path.relative_to(ROOT) for path in (ROOT / "csrc").glob("**/*.cpp"))
    sources = sorted(str(path) for path in found if "cuda" not in path.parts)
    # No Python in it, and of torch only what 2.11 and all later versions promise: one build serves them all.
    compile_flags.append(f"-DTORCH_TARGET_VERSION={OLDEST_TORCH}")
    return [
        CppExtension(
            EXTENSION,
            sources,
            extra_compile_args={"cxx": compile_flags},
            extra_link_args=link_flags,
            py_limited_api=True,
        )
    ]


def build_command() -> type:
    class Build(BuildExtension):
        def __init__(self, *arguments, **settings):
            settings.update(use_ninja=True, no_python_abi_suffix=True)
            super().__init__(*arguments, **settings)

        def run(self) -> None:
            extension = Path(self.get_ext_fullpath(EXTENSION))
            package = extension.parent
            for left_by_another_build in (UNBUILT, UNBUILT_CUDA, "_C_cuda.so"):
                (package / left_by_another_build).unlink(missing_ok=True)
            if WANTED == "auto" and not ON_LINUX:
                package.mkdir(parents=True, exist_ok=True)
                notice(package, f"it is built on Linux, and this is {sys.platform}; DMMLKD_BUILD=cpu tries it here")
                return
            try:
                super().run()
            except Exception as error:
                if WANTED != "auto":
                    raise
                package.mkdir(parents=True, exist_ok=True)
                extension.unlink(missing_ok=True)  # of older sources
                notice(package, f"the build failed ({type(error).__name__}: {first_line(error)})")
                return
            if WANTED == "cuda" or (WANTED == "auto" and torch.version.cuda is not None):
                self.build_cuda(package)

        def build_cuda(self, package: Path) -> None:
            cuda = runpy.run_path(str(ROOT / "csrc" / "cuda" / "build.py"))
            try:
                cuda["build_extension"](package / "_C_cuda.so")
            except Exception as error:
                if WANTED == "cuda":
                    raise
                (package / "_C_cuda.so").unlink(missing_ok=True)
                (package / UNBUILT_CUDA).write_text(first_line(error) + "\n", encoding="utf-8")
                print(f"\ndmmlkd_ext: no CUDA kernels: {error}\n", file=sys.stderr)

    return Build


class AnyPython(bdist_wheel):
    """Names the wheel after what the extension asks of the machine, which is no Python."""

    def get_tag(self) -> tuple[str, str, str]:
        interpreter, abi, platform = super().get_tag()
        package = Path(self.bdist_dir) / "dmmlkd_ext"
        if not (package / "_ops.so").exists():
            return interpreter, abi, platform
        if platform == "linux_x86_64" and not (package / "_C_cuda.so").exists():
            platform = manylinux((package / "_ops.so").read_bytes()) or platform
        return "py3", "none", platform


def manylinux(library: bytes) -> str | None:
    """The platform of all machines with a glibc that is new enough for a library; None if the compiler's own library
    must be newer than such a glibc's machine has it."""

    def newest(name: bytes) -> tuple[int, ...]:
        versions = re.findall(rb"\0" + name + rb"_(\d+(?:\.\d+)+)(?=\0)", library)
        return max((tuple(map(int, version.split(b"."))) for version in versions), default=())

    # The oldest that torch itself supports, and the libstdc++ that came with it.
    glibc = max((2, 28), newest(b"GLIBC"))
    if newest(b"GLIBCXX") > (3, 4, 25) or newest(b"CXXABI") > (1, 3, 11):
        return None
    return f"manylinux_{glibc[0]}_{glibc[1]}_x86_64"


class PurePython(build_py):
    def run(self) -> None:
        super().run()
        notice(ROOT / "dmmlkd_ext" if self.editable_mode else Path(self.build_lib) / "dmmlkd_ext", MISSING)


if WANTED == "none":
    setup(cmdclass={"build_ext": plain_build_ext})
elif torch is None:
    if WANTED != "auto":
        raise SystemExit(f"DMMLKD_BUILD={WANTED}: {MISSING}")
    setup(cmdclass={"build_py": PurePython})
else:
    setup(ext_modules=extensions(), cmdclass={"build_ext": build_command(), "bdist_wheel": AnyPython})
