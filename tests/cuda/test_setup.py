"""A build leaves what it can: nvcc that is missing, too old, too new or broken costs the CUDA kernels alone."""

import runpy
import shutil
import sys
from pathlib import Path
from types import ModuleType

import pytest
import setuptools
import torch
import torch.utils.cpp_extension

ROOT = Path(__file__).parents[2]
PACKAGE = Path("dmmlkd_ext")


def fake_nvcc(folder: Path, *, release: str = "13.0", knows: tuple[int, ...] = (75, 80, 90, 100, 120), fails=False):
    """An nvcc that writes down how it was called and makes empty files, or fails as an old one does."""
    nvcc = folder / "bin" / "nvcc"
    nvcc.parent.mkdir(parents=True, exist_ok=True)
    work = "echo nvcc fatal : Unsupported gpu architecture >&2; exit 1"
    if not fails:
        work = 'while [ "$1" != -o ]; do shift; done; echo made > "$2"'
    architectures = "\n".join(f"compute_{number}" for number in knows)
    nvcc.write_text(
        "#!/bin/sh\n"
        f'case " $* " in\n*" --version "*) echo "Cuda compilation tools, release {release}, V{release}.88"; exit;;\n'
        f'*" --list-gpu-arch "*) echo "{architectures}"; exit;;\nesac\n'
        f'echo "$@" >> "{folder}/calls"\n{work}\n'
    )
    nvcc.chmod(0o755)
    return folder


def fake_compiler(folder: Path) -> Path:
    """A C++ compiler that makes empty files."""
    compiler = folder / "fake-c++"
    compiler.write_text('#!/bin/sh\nwhile [ "$1" != -o ]; do shift; done; echo made > "$2"\n')
    compiler.chmod(0o755)
    return compiler


def calls(home: Path) -> str:
    return (home / "calls").read_text() if (home / "calls").exists() else ""


@pytest.fixture
def sources(tmp_path, monkeypatch):
    """A copy of what setup.py reads, so that nothing of this build is touched; and nvcc nowhere."""
    root = tmp_path / "sources"
    shutil.copytree(ROOT / "csrc", root / "csrc")
    shutil.copy(ROOT / "setup.py", root)
    (root / PACKAGE).mkdir()
    monkeypatch.chdir(root)
    for name in ("CUDA_HOME", "CUDA_PATH", "DMMLKD_CUDA_ARCHITECTURES", "DMMLKD_BUILD"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("CXX", str(fake_compiler(tmp_path)))
    return root


def build(monkeypatch, home: Path | None, *, wanted: str = "auto", torch_cuda: str | None = "13.0") -> None:
    """Run setup.py's command as setuptools does; compiling for the CPU is left out."""
    if home is not None:
        monkeypatch.setenv("CUDA_HOME", str(home))
    monkeypatch.setenv("DMMLKD_BUILD", wanted)
    monkeypatch.setattr(torch.version, "cuda", torch_cuda)
    given = {}
    monkeypatch.setattr(setuptools, "setup", lambda **settings: given.update(settings))
    monkeypatch.setattr(
        torch.utils.cpp_extension.BuildExtension,
        "run",
        lambda self: Path(self.get_ext_fullpath("dmmlkd_ext._ops")).write_text("the CPU extension"),
    )
    runpy.run_path("setup.py")
    distribution = setuptools.Distribution({"name": "dmmlkd_ext", "packages": ["dmmlkd_ext"]})
    command = given["cmdclass"]["build_ext"](distribution)
    command.inplace = True
    command.extensions = given["ext_modules"]
    command.run()


def built() -> set[str]:
    return {path.name.partition(".")[0] for path in PACKAGE.iterdir()}


def test_an_nvcc_that_fails_leaves_the_cpu_extension(sources, tmp_path, monkeypatch, capsys):
    build(monkeypatch, fake_nvcc(tmp_path / "cuda", fails=True))
    assert built() == {"_ops", "_cuda_not_built"}
    reason = (PACKAGE / "_cuda_not_built.txt").read_text()
    assert "Unsupported gpu architecture" in reason
    assert len(reason.splitlines()) == 1
    assert "no CUDA kernels" in capsys.readouterr().err


def test_it_is_an_error_where_cuda_was_asked_for(sources, tmp_path, monkeypatch):
    with pytest.raises(RuntimeError, match="Unsupported gpu architecture"):
        build(monkeypatch, fake_nvcc(tmp_path / "cuda", fails=True), wanted="cuda")
    assert "_ops" in built()


@pytest.mark.parametrize(
    ("knows", "machine_code", "ptx"),
    [((75, 80, 86, 90, 100, 120), {80, 90, 100, 120}, 75), ((70, 75, 80, 86), {80}, 75), ((90, 100), {90, 100}, 90)],
)
def test_only_what_nvcc_knows_is_asked_of_it(sources, tmp_path, monkeypatch, knows, machine_code, ptx):
    home = fake_nvcc(tmp_path / "cuda", knows=knows)
    build(monkeypatch, home)
    assert built() == {"_ops", "_C_cuda"}
    said = calls(home)
    assert {number for number in range(50, 200) if f"code=sm_{number}" in said} == machine_code
    assert {number for number in range(50, 200) if f"code=compute_{number}" in said} == {ptx}


@pytest.mark.parametrize("asked", ["80;101", "sm_90", "80,90"])
def test_architectures_that_nvcc_does_not_know_are_named(sources, tmp_path, monkeypatch, asked):
    monkeypatch.setenv("DMMLKD_CUDA_ARCHITECTURES", asked)
    with pytest.raises(RuntimeError, match=rf"DMMLKD_CUDA_ARCHITECTURES must be .*75, 80, 90.*, got '{asked}'"):
        build(monkeypatch, fake_nvcc(tmp_path / "cuda"), wanted="cuda")


@pytest.mark.parametrize("wanted", ["auto", "cpu"])
def test_an_old_library_does_not_outlive_a_build_without_cuda(sources, monkeypatch, wanted):
    (PACKAGE / "_C_cuda.so").write_text("of other sources")
    (PACKAGE / "_cuda_not_built.txt").write_text("of another nvcc")
    build(monkeypatch, None, wanted=wanted, torch_cuda=None)
    assert built() == {"_ops"}


def test_nor_one_whose_compilation_fails(sources, tmp_path, monkeypatch):
    (PACKAGE / "_C_cuda.so").write_text("of other sources")
    build(monkeypatch, fake_nvcc(tmp_path / "cuda", fails=True))
    assert "_C_cuda" not in built()


@pytest.mark.parametrize("release", ["11.8", "12.4", "13.0", "13.9"])
def test_an_nvcc_of_torch_s_cuda_or_an_older_one_fits(sources, tmp_path, monkeypatch, release):
    build(monkeypatch, fake_nvcc(tmp_path / "cuda", release=release))
    assert built() == {"_ops", "_C_cuda"}


def test_a_newer_nvcc_than_torch_s_cuda_is_named(sources, tmp_path, monkeypatch):
    home = fake_nvcc(tmp_path / "cuda", release="14.0")
    build(monkeypatch, home)
    assert "is of CUDA 14, torch was built for CUDA 13" in (PACKAGE / "_cuda_not_built.txt").read_text()
    assert not calls(home)
    build(monkeypatch, home, wanted="cuda", torch_cuda=None)  # only to be compiled
    assert built() == {"_ops", "_C_cuda"}


def test_a_missing_nvcc_is_named(sources, tmp_path, monkeypatch):
    build(monkeypatch, tmp_path / "nowhere")
    assert "nvcc was not found in" in (PACKAGE / "_cuda_not_built.txt").read_text()
    assert "nowhere" in (PACKAGE / "_cuda_not_built.txt").read_text()


def test_nvcc_is_found_in_the_folder_of_cuda(cuda_build: ModuleType, tmp_path, monkeypatch):
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(cuda_build, "CUDA_FOLDERS", (str(tmp_path / "none"), str(tmp_path / "cuda-[0-9]*")))
    assert cuda_build.nvcc_path() is None
    assert "PATH" in cuda_build.why_not()
    home = fake_nvcc(tmp_path / "cuda-13.0")
    assert cuda_build.nvcc_path() == home / "bin" / "nvcc"


@pytest.mark.parametrize("header", ["interface.h", "cuda/launchers.h", "cuda/common.cuh", "gossip_mix/kernel.cuh"])
def test_a_changed_header_is_compiled_again(sources, tmp_path, monkeypatch, header):
    home = fake_nvcc(tmp_path / "cuda")
    compiled = lambda: calls(home).count(" -c ")  # noqa: E731
    build(monkeypatch, home)
    first = compiled()
    build(monkeypatch, home)
    assert compiled() == first
    with (sources / "csrc" / header).open("a") as file:
        file.write("// changed\n")
    build(monkeypatch, home)
    assert compiled() > first


def test_the_package_says_why_it_has_no_cuda_kernels(monkeypatch, tmp_path):
    from dmmlkd_ext.ops import native

    if native.backend() == "reference":
        pytest.skip("the reference has no kernels")
    monkeypatch.setattr(native, "CUDA_LIBRARY", tmp_path / "_C_cuda.so")
    (tmp_path / "_cuda_not_built.txt").write_text("nvcc failed\n")
    assert native._load_cuda() == "the CUDA kernels were not built: nvcc failed"


def test_other_systems_than_linux_run_by_the_reference(sources, monkeypatch, capsys):
    monkeypatch.setattr(sys, "platform", "darwin")
    build(monkeypatch, None, torch_cuda=None)
    reason = (sources / PACKAGE / "_not_built.txt").read_text()
    assert reason.startswith("it is built on Linux, and this is darwin")
    assert not list((sources / PACKAGE).glob("_ops*"))
    build(monkeypatch, None, wanted="cpu", torch_cuda=None)
    assert list((sources / PACKAGE).glob("_ops*"))
