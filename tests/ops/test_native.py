"""The extension is loaded only where it fits the package."""

from __future__ import annotations

import hashlib
import re
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
    assert (_native.INTERFACE, hashlib.sha256(schemas.encode()).hexdigest()[:12]) == (5, "bb70b91d7f41")
