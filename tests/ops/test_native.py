"""The extension is loaded only where it fits the package."""

from __future__ import annotations

import hashlib
import os
import re
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmmlkd_ext.ops import backend
from dmmlkd_ext.ops import native as _native

SCHEMAS = Path(__file__).parents[2] / "csrc" / "ops.cpp"


@pytest.mark.parametrize("built", [{}, {"interface": _native.INTERFACE + 1}], ids=["older", "newer"])
def test_an_extension_of_other_sources_is_named(monkeypatch, built):
    stale = SimpleNamespace(__file__="_C.so", **built)
    monkeypatch.setattr(_native, "import_module", lambda _: stale)
    monkeypatch.delenv("DMMLKD_BACKEND", raising=False)
    own = _native.INTERFACE
    with pytest.raises(
        ImportError, match=rf"interface {own} of this package, got (None|{own + 1}) in _C\.so: .*make build"
    ):
        _native._load()


def run_python(code, **settings):
    """Run a program with other settings of this package."""
    environment = {**os.environ, "PYTHONPATH": str(SCHEMAS.parents[1]), "OMP_NUM_THREADS": "1", **settings}
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
    monkeypatch.setenv("DMMLKD_BACKEND", "")
    monkeypatch.setenv("DMMLKD_INSTRUCTION_SET", "")
    assert _native._load()[1] in ("", _native._why_not_loaded(ImportError("x"), Path()), _native._reason)


def test_an_extension_of_another_torch_is_named(monkeypatch, tmp_path):
    (tmp_path / "ops").mkdir()
    library = tmp_path / "_C.cpython-311.so"
    monkeypatch.setattr(_native, "__file__", str(tmp_path / "ops" / "native.py"))
    monkeypatch.delenv("DMMLKD_BACKEND", raising=False)

    def fail(_):
        raise ImportError("undefined symbol: _ZN3c106detail23torchInternalAssertFail")

    monkeypatch.setattr(_native, "import_module", fail)
    library.write_bytes(b"\x7fELF...\0dmmlkd_ext was built for torch 1.0.0;\0...")
    words = r"built for torch 1\.0\.0, this is torch .*: build it again \(`make build`"
    with pytest.warns(UserWarning, match=words):
        assert "1.0.0" in _native._load()[1]
    monkeypatch.setenv("DMMLKD_BACKEND", "native")
    with pytest.raises(ImportError, match=words):
        _native._load()
    here = _native._number(_native.torch.__version__)
    library.write_bytes(f"dmmlkd_ext was built for torch {here};".encode())
    with pytest.raises(ImportError, match="cannot be loaded: undefined symbol"):
        _native._load()


@pytest.mark.skipif(backend() == "reference", reason="the native extension is not in use")
def test_the_extension_says_which_torch_it_is_for():
    assert _native._module.built_for == _native._number(_native.torch.__version__)
    text = f"dmmlkd_ext was built for torch {_native._module.built_for};".encode()
    assert text in Path(_native._module.__file__).read_bytes()


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
    text = (SCHEMAS.parent / "interface.h").read_text(encoding="utf-8")
    assert int(re.search(r"interface_number = (\d+);", text).group(1)) == _native.INTERFACE
    if backend() == "native":
        assert _native._module.interface == _native.INTERFACE


def test_the_number_rises_with_the_schemas():
    """Who changes a schema raises the number on both sides, then writes the digest of the schemas here."""
    code = re.sub(r"//[^\n]*", "", SCHEMAS.read_text(encoding="utf-8"))
    schemas = "".join("".join(re.findall(r'"([^"]*)"', code)).split())
    assert (_native.INTERFACE, hashlib.sha256(schemas.encode()).hexdigest()[:12]) == (6, "d87a4040cab5")
