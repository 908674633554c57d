from __future__ import annotations

import warnings
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

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


def change_nothing_else(path: Path, **arrays: np.ndarray) -> None:
    """Write the kept arrays again, some of them others: a whole file, with the checksum of what it held."""
    with np.load(path) as kept:
        np.savez(path, **{**kept, **arrays})


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda path: path.write_bytes(b""), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:50]), "is damaged"),
        (lambda path: path.write_bytes(path.read_bytes()[:-20]), "is damaged"),
        (lambda path: change_nothing_else(path, x=np.arange(4)[::-1]), "does not hold the arrays of its checksum"),
        (lambda path: change_nothing_else(path, x=np.arange(4, dtype=np.uint64)), "does not hold the arrays"),
        (lambda path: change_nothing_else(path, x=np.arange(4).reshape(2, 2)), "does not hold the arrays"),
        (lambda path: change_nothing_else(path, y=np.arange(4)), "does not hold the arrays"),
        (lambda path: np.savez(path, x=np.arange(4)), "was kept without a checksum"),
    ],
)
def test_a_file_with_other_arrays_is_made_anew(cache: Path, damage: Callable[[Path], object], message: str) -> None:
    derived("set/a.npz", lambda: {"x": np.arange(4)})
    damage(cache / "set/a.npz")
    with pytest.warns(UserWarning, match=rf"a\.npz {message}.*; it is computed again"):
        arrays = derived("set/a.npz", lambda: {"x": np.arange(4)})
    assert arrays["x"].tolist() == [0, 1, 2, 3]
    assert derived("set/a.npz", lambda: pytest.fail("was kept"))["x"].tolist() == [0, 1, 2, 3]


def test_a_flipped_bit_is_noticed(cache: Path) -> None:
    derived("set/a.npz", lambda: {"x": np.arange(4)})
    path = cache / "set/a.npz"
    whole = path.read_bytes()
    for position in range(0, len(whole), 7):
        path.write_bytes(whole[:position] + bytes([whole[position] ^ 16]) + whole[position + 1 :])
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            assert derived("set/a.npz", lambda: {"x": np.arange(4)})["x"].tolist() == [0, 1, 2, 3]


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
