"""The native operators are loaded only where they fit the package and its torch."""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from dmmlkd_ext.ops import backend
from dmmlkd_ext.ops import native as _native
from dmmlkd_ext.ops import schemas as _schemas

ROOT = Path(__file__).parents[2]


@pytest.fixture
def library(monkeypatch, tmp_path):
    """A library that is there and is never read."""
    monkeypatch.delenv("DMMLKD_BACKEND", raising=False)
    path = tmp_path / "_ops.so"
    path.touch()
    monkeypatch.setattr(_native, "LIBRARY", path)
    return path


@pytest.mark.parametrize("built", [None, _native.INTERFACE + 1], ids=["older", "newer"])
def test_operators_of_other_sources_are_named(monkeypatch, library, built):
    functions = SimpleNamespace() if built is None else SimpleNamespace(dmmlkd_interface=lambda: built)
    monkeypatch.setattr(_native.torch.ops, "load_library", lambda _: None)
    monkeypatch.setattr(_native.ctypes, "CDLL", lambda _: functions)
    with pytest.raises(
        ImportError, match=rf"interface {_native.INTERFACE} of this package, got {built} in .*_ops\.so: .*make build"
    ):
        _native._load()


def run_python(code, **settings):
    """Run a program with other settings of this package."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", **settings}
    return subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=300, check=False
    )


@pytest.mark.parametrize("name", ["DMMLKD_BACKEND", "DMMLKD_INSTRUCTION_SET"])
def test_an_impossible_setting_is_one_line(name):
    if backend() == "reference" and name == "DMMLKD_INSTRUCTION_SET":
        pytest.skip("the reference has no instruction set")
    done = run_python("import dmmlkd_ext", **{name: "foo"})
    assert done.returncode == 1
    assert re.fullmatch(rf"{name}.* must be .*foo'?\n", done.stderr), done.stderr
    caught = run_python("try:\n    import dmmlkd_ext\nexcept ValueError as error:\n    print(error)", **{name: "foo"})
    assert caught.stdout == done.stderr


def test_an_empty_setting_is_as_unset(monkeypatch):
    if _native.backend_reason() and os.environ.get("DMMLKD_BACKEND"):
        pytest.skip("the reference was asked for")
    monkeypatch.setenv("DMMLKD_BACKEND", "")
    monkeypatch.setenv("DMMLKD_INSTRUCTION_SET", "")
    assert _native._load()[1] == _native._reason


@pytest.mark.parametrize("version", ["2.10.1", "2.15.0+cu130", "3.0.0a0"])
def test_another_torch_than_the_operators_are_for_is_named(monkeypatch, library, version):
    monkeypatch.setattr(torch, "__version__", version)
    words = rf"is for torch 2\.11 to 2\.14, this is torch {re.escape(version)}: install one of those"
    with pytest.warns(UserWarning, match=words):
        loaded, reason = _native._load()
    assert loaded is None
    assert re.search(words, reason)
    monkeypatch.setenv("DMMLKD_BACKEND", "native")
    with pytest.raises(ImportError, match=words):
        _native._load()


@pytest.mark.parametrize("version", ["2.11.0", "2.12.1+cpu", "2.14.0a0+git123"])
def test_each_torch_that_they_are_for_is_tried(monkeypatch, library, version):
    monkeypatch.setattr(torch, "__version__", version)
    with pytest.warns(UserWarning, match="the native extension cannot be loaded: .*_ops.so"):
        assert "file too short" in _native._load()[1]


def test_the_metadata_ask_for_the_same_torch():
    (oldest, newest), text = _native.TORCH_VERSIONS, (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert f'"torch>={oldest[0]}.{oldest[1]},<{newest[0]}.{newest[1] + 1}"' in text
    assert f'OLDEST_TORCH = "0x{oldest[0]:02x}{oldest[1]:02x}000000000000"' in (ROOT / "setup.py").read_text("utf-8")


def test_operators_that_are_not_there_are_named(monkeypatch, library):
    library.unlink()
    assert _native._load() == (None, "the native extension was not built: there is no _ops.so")
    library.with_name("_not_built.txt").write_text("no compiler\n")
    with pytest.warns(UserWarning, match="the native extension was not built: no compiler"):
        _native._load()


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
def test_the_library_asks_for_the_stable_interface_alone():
    """Neither Python's symbols nor those of torch's C++, which differ from version to version."""
    if shutil.which("nm") is None:
        pytest.skip("nm is not at hand")
    said = subprocess.run(
        ["nm", "-D", "--undefined-only", _native.LIBRARY], capture_output=True, text=True, check=True
    ).stdout
    wanted = [line.split()[-1].lstrip("_") for line in said.splitlines()]
    of_torch = [name for name in wanted if re.search("torch|c10|ATen|^ZNK?2at", name)]
    assert "torch_library_impl" in of_torch
    assert [name for name in of_torch if not name.startswith(("torch_", "aoti_torch_"))] == []
    assert [name for name in wanted if name.startswith("Py")] == []


FORKS = """
import os, signal, threading, torch
from dmmlkd_ext.ops import GossipWeights, gossip_mix
torch.set_num_threads(1)
weights, local = GossipWeights.from_dense(torch.eye(300)), torch.ones(300, 1)  # more than 64 KiB of scratch
out, done = torch.zeros(300, 1), threading.Event()
def work():
    mine = torch.zeros(300, 1)
    while not done.is_set():
        gossip_mix(local, weights, mine)
threads = [threading.Thread(target=work) for _ in range(3)]
for thread in threads: thread.start()
for _ in range(100):
    child = os.fork()
    if child == 0:
        signal.alarm(20)  # a child that hangs dies by SIGALRM
        gossip_mix(local, weights, out)
        os._exit(0)
    if os.waitpid(child, 0)[1]:
        print("a child hung")
        break
done.set()
for thread in threads: thread.join()
"""


@pytest.mark.skipif(backend() == "reference" or not hasattr(os, "fork"), reason="needs the native extension and fork")
def test_a_process_forked_while_others_compute_does_not_hang():
    done = run_python(FORKS)
    assert (done.returncode, done.stdout) == (0, ""), done.stderr


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize("built", [None, _native.INTERFACE - 1, _native.INTERFACE], ids=["older", "old", "right"])
def test_so_are_cuda_kernels_of_other_sources(monkeypatch, tmp_path, built):
    library = tmp_path / "_C_cuda.so"
    library.touch()
    monkeypatch.setattr(_native, "CUDA_LIBRARY", library)
    monkeypatch.setattr(_native.torch.ops, "load_library", lambda _: None)
    functions = SimpleNamespace() if built is None else SimpleNamespace(dmmlkd_cuda_interface=lambda: built)
    monkeypatch.setattr(_native.ctypes, "CDLL", lambda _: functions)
    if built == _native.INTERFACE:
        assert _native._load_cuda() == ""
        return
    with pytest.raises(ImportError, match=rf"interface {_native.INTERFACE} of this package, got {built} in .*_C_cuda"):
        _native._load_cuda()


def test_cuda_kernels_that_do_not_load_say_why(monkeypatch, tmp_path):
    monkeypatch.setattr(_native, "CUDA_LIBRARY", tmp_path / "_C_cuda.so")
    if backend() == "native":
        assert _native._load_cuda() == "built without CUDA"
        _native.CUDA_LIBRARY.write_text("no library")
        assert "the CUDA kernels cannot be loaded" in _native._load_cuda()


def test_both_sides_have_one_number():
    text = (ROOT / "csrc" / "interface.h").read_text(encoding="utf-8")
    assert int(re.search(r"interface_number = (\d+);", text).group(1)) == _native.INTERFACE
    if backend() == "native":
        assert _native._library.dmmlkd_interface() == _native.INTERFACE


SCHEMAS = (*_schemas.LOSSES, *_schemas.GOSSIP, *_schemas.SIMULATION)


def test_the_number_rises_with_the_schemas():
    """Who changes a schema raises the number on both sides, then writes the digest of the schemas here."""
    digest = hashlib.sha256("".join("".join(SCHEMAS).split()).encode()).hexdigest()[:12]
    assert (_native.INTERFACE, digest) == (6, "9c8d848ab326")


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
def test_each_schema_has_a_kernel_and_each_kernel_a_schema():
    code = (ROOT / "csrc" / "ops.cpp").read_text(encoding="utf-8")
    names = [schema.partition("(")[0] for schema in SCHEMAS]
    names.remove("pairwise_kl_backward")  # on CUDA alone
    assert sorted(re.findall(r'm\.impl\("(\w+)"', code)) == sorted(names)
    for name in names:
        assert torch._C._dispatch_has_kernel_for_dispatch_key(f"dmmlkd::{name}", "CPU")


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
@pytest.mark.parametrize("in_place", [False, True])
def test_autograd_sees_that_a_tensor_was_overwritten(in_place):
    weights = torch.tensor([0, 1, 2]), torch.tensor([0, 1]), torch.ones(2)
    parameter, rows = torch.ones(2, 3, requires_grad=True), torch.ones(2, 3)
    product = parameter * rows  # saves rows
    version = rows._version
    if in_place:
        torch.ops.dmmlkd.gossip_mix_inplace_(rows, *weights, 0, 3)
    else:
        torch.ops.dmmlkd.gossip_mix_(torch.zeros(2, 3), *weights, rows, 0, 3, False)
    assert rows._version == version + 1
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        product.sum().backward()
