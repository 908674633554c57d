"""The extension is loaded only where it fits the package."""

from __future__ import annotations

import hashlib
import re
from pathlib import Path
from types import SimpleNamespace

import pytest

from dmmlkd_ext.ops import _native, backend

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


def test_both_sides_have_one_number():
    text = (SCHEMAS.parent / "module.cpp").read_text(encoding="utf-8")
    assert int(re.search(r'attr\("interface"\) = (\d+)', text).group(1)) == _native.INTERFACE
    if backend() == "native":
        assert _native._module.interface == _native.INTERFACE


def test_the_number_rises_with_the_schemas():
    """Who changes a schema raises the number on both sides, then writes the digest of the schemas here."""
    code = re.sub(r"//[^\n]*", "", SCHEMAS.read_text(encoding="utf-8"))
    schemas = "".join("".join(re.findall(r'"([^"]*)"', code)).split())
    assert (_native.INTERFACE, hashlib.sha256(schemas.encode()).hexdigest()[:12]) == (3, "7074f508bb73")
