from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dmmlkd_ext.data import ChecksumError
from dmmlkd_ext.data.sources.derived import derived, fingerprint


def test_computed_once(cache: Path) -> None:
    calls = []

    def compute() -> dict[str, np.ndarray]:
        calls.append(1)
        return {"x": np.arange(4), "y": np.ones((2, 2), dtype=np.float32)}

    first, second = derived("set/a.npz", compute), derived("set/a.npz", compute)
    assert len(calls) == 1
    for name in ("x", "y"):
        assert first[name].dtype == second[name].dtype
        assert np.array_equal(first[name], second[name])
    assert [path.name for path in (cache / "set").iterdir()] == ["a.npz"]


@pytest.mark.parametrize("keep", [0, 50, -20])
def test_a_damaged_file_is_refused(cache: Path, keep: int) -> None:
    derived("set/a.npz", lambda: {"x": np.arange(4)})
    path = cache / "set/a.npz"
    path.write_bytes(path.read_bytes()[:keep])
    with pytest.raises(ChecksumError, match=r"is damaged .* delete it"):
        derived("set/a.npz", lambda: {"x": np.arange(4)})


def test_without_a_cache_it_is_computed_with_a_warning(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="could not be kept"):
        assert derived("set/a.npz", lambda: {"x": np.arange(4)})["x"].tolist() == [0, 1, 2, 3]


def test_fingerprint_changes_with_the_files(tmp_path: Path) -> None:
    files = [tmp_path / "a", tmp_path / "b"]
    for path in files:
        path.write_bytes(b"1")
    before = fingerprint(files)
    assert before == fingerprint(reversed(files))
    files[1].write_bytes(b"12")
    assert fingerprint(files) != before
