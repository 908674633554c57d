"""The package as others get it: out of a wheel or an sdist, in an environment with torch alone.

Installing torch anew for each test would take minutes and a network. Instead a new, empty virtual environment gets
the files of this environment's torch, and of what torch itself requires, as symbolic links, found through their
package metadata. Nothing else of this environment can be seen from there: not numpy, not this checkout.

The wheel serves other Pythons and other torches as well. Those that DMMLKD_TEST_PYTHONS names, interpreters that can
import torch with a colon between, are tried with the same wheel.
"""

from __future__ import annotations

import importlib.metadata
import json
import os
import runpy
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from dataclasses import dataclass
from pathlib import Path

import pytest
import setuptools
from packaging.requirements import Requirement

pytestmark = [
    pytest.mark.install,
    pytest.mark.timeout(1800),
    pytest.mark.skipif(sys.platform == "win32", reason="symbolic links and sh are needed"),
]
ROOT = Path(__file__).parents[2]
TRAINING = Path(__file__).parent / "foreign_training.py"
SOURCES = [
    "csrc",
    "dmmlkd_ext",
    *["setup.py", "pyproject.toml", "MANIFEST.in", "README.md", "LICENSE", "CHANGELOG.md", "CITATION.cff"],
]


def required_by(*names: str) -> set[str]:
    """The distributions that `names` need at run time, with themselves."""
    found: set[str] = set()
    open_names = list(names)
    while open_names:
        name = open_names.pop()
        if name in found:
            continue
        found.add(name)
        requirements = map(Requirement, importlib.metadata.distribution(name).requires or [])
        open_names += [r.name for r in requirements if r.marker is None or r.marker.evaluate({"extra": ""})]
    return found


@dataclass(frozen=True)
class Environment:
    """A virtual environment of its own."""

    folder: Path

    @property
    def python(self) -> Path:
        return self.folder / "bin" / "python"

    @property
    def packages(self) -> Path:
        version = f"python{sys.version_info.major}.{sys.version_info.minor}"
        return self.folder / "lib" / version / "site-packages"

    def link(self, *names: str) -> None:
        """Make the distributions `names` and what they need importable, without copying them."""
        for name in required_by(*names):
            for file in importlib.metadata.distribution(name).files or []:
                source, target = Path(file.locate()), self.packages / file
                if ".." not in file.parts and source.exists() and not target.exists():
                    target.parent.mkdir(parents=True, exist_ok=True)
                    target.symlink_to(source.resolve())

    def pretend(self, name: str, version: str) -> None:
        """Let pip believe that a distribution is installed, and no other version of it."""
        for other in self.packages.glob(f"{name}-*.dist-info"):
            shutil.rmtree(other)
        described = self.packages / f"{name}-{version}.dist-info"
        described.mkdir()
        (described / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")

    def run(self, *arguments: str | Path, **variables: str) -> str:
        """Run its Python away from the checkout and return what it said, last what it printed; it must succeed."""
        return self._call([self.python, *arguments], variables)

    def pip(self, *arguments: str | Path, **variables: str) -> str:
        """Run the pip of this environment on the other one."""
        return self._call([sys.executable, "-m", "pip", "--python", self.python, *arguments], variables)

    def pip_refuses(self, *arguments: str | Path) -> str:
        """Run it likewise; return what it said, which must be that it cannot."""
        with pytest.raises(AssertionError) as refusal:
            self.pip("install", "--no-index", *arguments, PIP_CONFIG_FILE=os.devnull, PIP_FIND_LINKS="")
        return str(refusal.value)

    def _call(self, command: list[str | Path], variables: dict[str, str]) -> str:
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DMMLKD_", "PYTHON"))}
        path = f"{self.python.parent}{os.pathsep}{os.environ['PATH']}"
        done = subprocess.run(
            command,
            cwd=self.folder,
            env=kept | {"PATH": path} | variables,
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{command} failed:\n{done.stdout}\n{done.stderr}"
        return done.stderr + done.stdout

    def train(self, **variables: str) -> dict:
        """Run somebody else's training loop; return what ran in it."""
        return json.loads(self.run(TRAINING, **variables).splitlines()[-1])


def new_environment(folder: Path) -> Environment:
    venv.create(folder / "environment")
    return Environment(folder / "environment")


@pytest.fixture
def environment(tmp_path):
    """An environment with torch alone."""
    made = new_environment(tmp_path)
    made.link("torch")
    assert made.run("-c", "import torch; print(torch.ones(2).sum().item())").splitlines()[-1] == "2.0"
    return made


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, made of a copy: a build leaves its traces beside setup.py."""
    copy = tmp_path_factory.mktemp("checkout")
    for name in SOURCES:
        source = ROOT / name
        if source.is_dir():
            ignored = shutil.ignore_patterns("*.so", "__pycache__", "*_not_built.txt")
            shutil.copytree(source, copy / name, ignore=ignored)
        else:
            shutil.copy(source, copy)
    command = [sys.executable, "setup.py", "--quiet", "sdist", "--dist-dir", "dist"]
    subprocess.run(command, cwd=copy, check=True, capture_output=True, env=os.environ | {"DMMLKD_BUILD": "none"})
    [archive] = (copy / "dist").iterdir()
    return archive


def test_the_sdist_holds_all_sources(sdist):
    with tarfile.open(sdist) as archive:
        held = {Path(name).relative_to(Path(name).parts[0]).as_posix() for name in archive.getnames()}
    suffixes = {".cpp", ".h", ".inl", ".cu", ".cuh"}
    native = {p.relative_to(ROOT).as_posix() for p in (ROOT / "csrc").rglob("*") if p.suffix in suffixes}
    python = {p.relative_to(ROOT).as_posix() for p in (ROOT / "dmmlkd_ext").rglob("*.py")}
    assert native | python | {"LICENSE", "README.md", "setup.py", "dmmlkd_ext/METHOD.md", "dmmlkd_ext/py.typed"} <= held
    assert not [name for name in held if name.endswith((".so", ".o", ".pyc"))]


@pytest.mark.parametrize(
    ("asks_for", "platform"),
    [
        (["GLIBC_2.2.5", "GLIBC_2.14"], "manylinux_2_28_x86_64"),
        (["GLIBC_2.4", "GLIBC_2.34", "GLIBCXX_3.4.21", "CXXABI_1.3.11"], "manylinux_2_34_x86_64"),
        (["GLIBC_2.14", "GLIBCXX_3.4.9", "GLIBCXX_3.4.29"], None),
        (["GLIBC_2.14", "CXXABI_1.3.13"], None),
    ],
)
def test_the_wheel_is_for_the_machines_that_have_what_it_asks_for(monkeypatch, asks_for, platform):
    monkeypatch.setenv("DMMLKD_BUILD", "none")
    monkeypatch.setattr(setuptools, "setup", lambda **_: None)
    library = b"\x7fELF\0" + b"".join(version.encode() + b"\0" for version in asks_for)
    assert runpy.run_path(str(ROOT / "setup.py"))["manylinux"](library) == platform


# Gives the object that the checkout's own build has made of a source, and notes the command; all else, linking above
# all, is left to the real compiler.
KEEPING_COMPILER = """#!/bin/sh
asked="$*"
case " $asked " in
  *" -c "*) output=$(while [ "$1" != -o ]; do shift; done; echo "$2")
            if cp "{objects}/csrc/${{output#*/csrc/}}" "$output" 2>/dev/null; then
              echo "$asked" >> "{notes}"
              exit 0
            fi ;;
esac
exec "{compiler}" "$@"
"""


def keep_compiled(folder: Path, notes: Path) -> bool:
    """Put such a compiler into a folder, if the checkout's objects are those of its sources as they are now."""
    ninja = shutil.which("ninja", path=f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}")
    for objects in (ROOT / "build").glob(f"temp.*-{sys.implementation.cache_tag}") if ninja else ():
        said = subprocess.run([ninja, "-n"], cwd=objects, capture_output=True, text=True, check=False).stdout
        if "no work to do" not in said:
            continue
        for name in ("c++", "g++", "gcc", "cc"):
            if compiler := shutil.which(name):
                text = KEEPING_COMPILER.format(objects=objects, notes=notes, compiler=compiler)
                (folder / name).write_text(text)
                (folder / name).chmod(0o755)
        return True
    return False


def build_wheel(sdist: Path, folder: Path) -> tuple[Path, bool]:
    """A wheel made by plain pip, and True; or without build isolation, where no package index is at hand.

    Nothing is compiled that the checkout has compiled already: it would take minutes.
    """
    target, notes = new_environment(folder), folder / "notes"
    target.link("torch")
    kept = keep_compiled(target.python.parent, notes)
    command = ["wheel", "--no-deps", "--wheel-dir", folder / "wheels", sdist]
    # A compiler cache would ask the compiler that keeps twice, first for the preprocessed source.
    settings = {"DMMLKD_BUILD": "cpu"} | ({"CCACHE_DISABLE": "1"} if kept else {"DMMLKD_CXXFLAGS": "-O1"})
    try:
        target.pip(*command, **settings)
        isolated = True
    except AssertionError as failure:
        if "No matching distribution found" not in str(failure):
            raise
        target.link("setuptools")
        target.pip(*command, "--no-build-isolation", "--no-index", **settings)
        isolated = False
    if kept:  # every source was asked for, for the torch of this environment
        asked = notes.read_text().splitlines()
        assert len(asked) == len([path for path in (ROOT / "csrc").rglob("*.cpp") if path.parent.name != "cuda"])
        assert all(f"-I{target.packages}/torch/include" in line for line in asked)
    [wheel] = (folder / "wheels").iterdir()
    return wheel, isolated


def check_refusals(wheel: Path, folder: Path) -> None:
    """Where the wheel does not fit, pip names what does not; it neither searches nor downloads another torch."""
    bare = new_environment(folder)
    bare.pretend("numpy", "2.0.0")
    for version in (None, "2.10.1", "2.15.0"):
        if version is not None:
            bare.pretend("torch", version)
        assert "No matching distribution found for torch<2.15,>=2.11" in bare.pip_refuses(wheel)
    elsewhere = "--no-deps", "--only-binary=:all:", "--target", folder / "target"
    if sys.platform != "darwin":
        other = "--platform", "macosx_14_0_arm64", *elsewhere, wheel
        assert "is not a supported wheel on this platform" in bare.pip_refuses(*other)
    assert "requires a different Python: 3.10" in bare.pip_refuses("--python-version", "3.10", *elsewhere, wheel)


def check_other_pythons(wheel: Path, folder: Path) -> list[str]:
    """Train with each interpreter that was named; return what ran."""
    found = []
    for number, python in enumerate(filter(None, os.environ.get("DMMLKD_TEST_PYTHONS", "").split(os.pathsep))):
        target = folder / str(number)
        command = [sys.executable, "-m", "pip", "--python", python, "install", "--no-index", "--no-deps"]
        subprocess.run([*command, "--target", target, wheel], check=True, capture_output=True)
        kept = {name: value for name, value in os.environ.items() if not name.startswith(("DMMLKD_", "PYTHON"))}
        done = subprocess.run(
            [python, TRAINING],
            cwd=folder,
            env=kept | {"PYTHONPATH": str(target)},
            capture_output=True,
            text=True,
            check=False,
        )
        assert done.returncode == 0, f"{python} failed:\n{done.stdout}\n{done.stderr}"
        ran = json.loads(done.stdout.splitlines()[-1])
        assert ran["backend"] == "native", ran
        found.append(f"Python {ran['python']} with torch {ran['torch']}")
    return found


# One test and not several, so that one wheel is built, however tests are shared out among processes.
def test_the_wheel_works_beside_torch_alone(sdist, environment, tmp_path_factory):
    wheel, isolated = build_wheel(sdist, tmp_path_factory.mktemp("building"))
    assert "-py3-none-" in wheel.name  # for any Python,
    assert "none-any" not in wheel.name  # on one platform
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        [metadata] = [archive.read(name).decode() for name in names if name.endswith("METADATA")]
    assert all(name.startswith("dmmlkd_ext") for name in names)
    assert {"dmmlkd_ext/METHOD.md", "dmmlkd_ext/py.typed"} <= set(names)
    assert [name for name in names if name.endswith((".so", ".pyd", ".dylib"))] == ["dmmlkd_ext/_ops.so"]
    needed = [line for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra ==" not in line]
    assert {Requirement(line.partition(": ")[2]).name for line in needed} == {"torch", "numpy"}

    environment.pip("install", "--no-index", "--no-deps", wheel)
    ran = environment.train()
    assert ran["backend"] == "native"
    assert ran["reason"] is None
    assert not ran["numpy"]
    assert environment.train(DMMLKD_BACKEND="reference")["backend"] == "reference"
    if ran["instruction_set"] != "base":
        assert environment.train(DMMLKD_INSTRUCTION_SET="base")["instruction_set"] == "base"
    check_refusals(wheel, tmp_path_factory.mktemp("refusing"))
    print("also ran on:", *check_other_pythons(wheel, tmp_path_factory.mktemp("others")))
    # Plain pip hides the environment from the build, so that setup.py has to look for its torch: tested as well,
    if not isolated:
        pytest.skip("all passed, but no package index is at hand, from which an isolated build gets setuptools")


def test_without_a_compiler_the_reference_runs_and_says_why(sdist, environment):
    environment.link("setuptools")
    tools = {"PATH": str(environment.python.parent), "CC": "no-such-compiler", "CXX": "no-such-compiler"}
    said = environment.pip("install", "-v", "--no-index", "--no-deps", "--no-build-isolation", sdist, **tools)
    assert "no native extension: the build failed" in said
    assert environment.train()["backend"] == "reference"
    said = environment.run("-c", "import dmmlkd_ext; print(dmmlkd_ext.build_info()['reason'])")
    assert "UserWarning: dmmlkd_ext runs by its reference implementations" in said
    assert said.splitlines()[-1].startswith("the native extension was not built: the build failed")
    # Whoever asks for the reference knows, and whoever asks for native must hear it.
    assert "reference implementations" not in environment.run("-c", "import dmmlkd_ext", DMMLKD_BACKEND="reference")
    with pytest.raises(AssertionError, match="DMMLKD_BACKEND=native, but the native extension was not built"):
        environment.run("-c", "import dmmlkd_ext", DMMLKD_BACKEND="native")


def test_an_environment_without_torch_gets_the_reference(sdist, tmp_path):
    """A build that finds no torch must not fail: torch may come later."""
    made = new_environment(tmp_path)
    made.link("setuptools")
    said = made.pip("install", "-v", "--no-index", "--no-deps", "--no-build-isolation", sdist)
    assert "no native extension: torch cannot be imported" in said
    made.link("torch")
    assert made.train()["backend"] == "reference"
    assert "torch cannot be imported" in made.run("-c", "import dmmlkd_ext; print(dmmlkd_ext.build_info()['reason'])")
