"""Builds the native extension beside the package. `DMMLKD_BUILD` says what is wanted:

auto (default): what the machine has: the CPU extension with a C++ compiler, the CUDA one as well with nvcc and a
                CUDA build of torch. A build that fails leaves the package pure Python; it says so here and, because
                pip hides what is printed here, when it is imported.
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
UNBUILT = "_not_built.txt"  # in the package: why there is no extension, for dmmlkd_ext/ops/native.py
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


def extensions() -> list:
    compile_flags = ["-O3", "-g0", "-std=c++20", "-fopenmp", "-Wall", "-Wno-psabi", "-fvisibility=hidden"]
    compile_flags += os.environ.get("DMMLKD_CXXFLAGS", "").split()
    link_flags = os.environ.get("DMMLKD_LDFLAGS", "").split()
    sources = sorted(
        str(path.relative_to(ROOT)) for path in (ROOT / "csrc").glob("**/*.cpp") if "cuda" not in path.parts
    )
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
            (package / UNBUILT).unlink(missing_ok=True)
            try:
                super().run()
                self.build_cuda()
            except Exception as error:
                if WANTED != "auto":
                    raise
                package.mkdir(parents=True, exist_ok=True)
                extension.unlink(missing_ok=True)  # of older sources
                notice(package, f"the build failed ({type(error).__name__}: {str(error).partition(chr(10))[0]})")

        def build_cuda(self) -> None:
            if WANTED == "cpu" or (WANTED == "auto" and torch.version.cuda is None):
                return
            script = ROOT / "csrc" / "cuda" / "build.py"
            cuda = runpy.run_path(str(script))
            if WANTED == "auto" and not cuda["nvcc_available"]():
                return
            target = Path(self.get_ext_fullpath("dmmlkd_ext._C")).parent / "_C_cuda.so"
            cuda["build_extension"](target)

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
