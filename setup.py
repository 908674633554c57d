"""Builds the native extension beside the package. `DMMLKD_BUILD` says what is wanted:

auto (default): what the machine has: on Linux the CPU extension with a C++ compiler, the CUDA one as well with nvcc
                and a CUDA build of torch; none on other systems. A build that fails leaves the package pure Python;
                it says so here and, because pip hides what is printed here, when it is imported. A CUDA build that
                fails takes the CUDA kernels away and nothing else; it says so here and in `dmmlkd_ext.build_info()`.
cpu, cuda:      that extension (cuda builds both), or an error.
none:           no extension.
"""

import os
import runpy
import sys
import sysconfig
from pathlib import Path

from setuptools import setup
from setuptools.command.build_ext import build_ext as plain_build_ext
from setuptools.command.build_py import build_py

ROOT = Path(__file__).parent
ON_LINUX = sys.platform.startswith("linux")
# In the package, for dmmlkd_ext/ops/native.py: why there is no extension, and why none for CUDA.
UNBUILT, UNBUILT_CUDA = "_not_built.txt", "_cuda_not_built.txt"
WANTED = os.environ.get("DMMLKD_BUILD", "auto")
CHOICES = ("auto", "cpu", "cuda", "none")
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
    compile_flags = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-Wall", "-Wno-psabi", "-fvisibility=hidden"]
    compile_flags += os.environ.get("DMMLKD_CXXFLAGS", "").split()
    link_flags = os.environ.get("DMMLKD_LDFLAGS", "").split()
    found = (path.relative_to(ROOT) for path in (ROOT / "csrc").glob("**/*.cpp"))
    sources = sorted(str(path) for path in found if "cuda" not in path.parts)
    return [
        CppExtension("dmmlkd_ext._C", sources, extra_compile_args={"cxx": compile_flags}, extra_link_args=link_flags)
    ]


def build_command() -> type:
    class Build(BuildExtension):
        def __init__(self, *arguments, **settings):
            settings["use_ninja"] = True
            super().__init__(*arguments, **settings)

        def run(self) -> None:
            extension = Path(self.get_ext_fullpath("dmmlkd_ext._C"))
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
    setup(ext_modules=extensions(), cmdclass={"build_ext": build_command()})
