from __future__ import annotations

import hashlib
import subprocess
import sys
import zipfile
from pathlib import Path

import numpy as np
import pytest
import torch

from dmmlkd_ext.training.keep.files import (
    check_state,
    load_state,
    read_seal,
    remove_temporary_files,
    save_state,
    write_atomically,
    write_text,
)

ROOT = Path(__file__).parents[3]


def example_state() -> dict:
    return {
        "round": 3,
        "blocks": {"shared": torch.arange(6.0).reshape(2, 3), "view": torch.arange(100.0)[3:5]},
        "left": np.array([1.5, float("inf")]),
        "names": ["acc", "gyr", "acc"],
        "pair": (1, None),
        "flag": True,
    }


def test_a_state_comes_back_with_its_types_and_bits(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", example_state())
    loaded = load_state(tmp_path / "state.pt")
    assert loaded["round"] == 3
    assert loaded["pair"] == (1, None)
    assert loaded["flag"] is True
    assert loaded["names"] == ["acc", "gyr", "acc"]
    assert torch.equal(loaded["blocks"]["shared"], example_state()["blocks"]["shared"])
    assert isinstance(loaded["left"], np.ndarray)
    assert loaded["left"].dtype == np.float64
    np.testing.assert_array_equal(loaded["left"], [1.5, np.inf])


def test_equal_states_give_equal_bytes_whatever_their_objects_and_file_names(tmp_path: Path) -> None:
    first, second = tmp_path / "first.pt", tmp_path / "second.pt"
    save_state(first, example_state())
    save_state(second, load_state(first))
    assert first.read_bytes() == second.read_bytes()
    shared = "".join(["a", "cc"])  # equal to, but not the same object as, the other names
    save_state(second, {**example_state(), "names": [shared, "gyr", "acc"]})
    assert first.read_bytes() == second.read_bytes()


def test_a_view_is_saved_without_the_storage_that_it_looks_into(tmp_path: Path) -> None:
    save_state(tmp_path / "state.pt", {"view": torch.zeros(1_000_000)[:2]})
    assert (tmp_path / "state.pt").stat().st_size < 10_000


def test_a_value_that_cannot_be_saved_is_named_and_nothing_is_written(tmp_path: Path) -> None:
    with pytest.raises(TypeError, match=r"state\['blocks'\]\[1\] must be a plain value.*got set"):
        save_state(tmp_path / "state.pt", {"blocks": [1, {2}]})
    assert list(tmp_path.iterdir()) == []


def test_damaged_or_foreign_files_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    path.write_bytes(b"not a checkpoint")
    with pytest.raises(ValueError, match="path holds no saved state"):
        load_state(path)
    torch.save([1], path)
    with pytest.raises(ValueError, match="it holds a list"):
        load_state(path)
    with pytest.raises(FileNotFoundError):
        load_state(tmp_path / "absent.pt")


def test_a_failed_write_leaves_the_old_file(tmp_path: Path) -> None:
    path = tmp_path / "file.txt"
    write_text(path, "old")

    def fail(file) -> None:
        file.write(b"ne")
        raise RuntimeError("cut")

    with pytest.raises(RuntimeError, match="cut"):
        write_atomically(path, fail)
    assert path.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2  # as after a death
    remove_temporary_files(tmp_path)
    assert list(tmp_path.iterdir()) == [path]


SCRIPT = """
import resource, sys, torch
from pathlib import Path
from dmmlkd_ext.training.keep.files import save_state
resource.setrlimit(resource.RLIMIT_FSIZE, (60 * 1024, 60 * 1024))
try:
    save_state(Path(sys.argv[1]), {"rows": torch.zeros(100_000)})
except OSError as error:
    print(error)
"""


def test_a_disk_that_is_full_is_named_with_the_file_and_left_as_it_was(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    save_state(path, {"round": 1})
    done = subprocess.run(
        [sys.executable, "-c", SCRIPT, str(path)], capture_output=True, text=True, check=True, cwd=ROOT
    )
    assert done.stdout == f"cannot write {path}: File too large\n"
    assert load_state(path) == {"round": 1}
    assert list(tmp_path.iterdir()) == [path]


def test_a_state_carries_the_hash_of_its_content(tmp_path: Path) -> None:
    path = tmp_path / "state.pt"
    digest = save_state(path, example_state())
    assert check_state(path) == read_seal(path) == digest
    assert hashlib.sha256(path.read_bytes()[: -len(f"sha256:{digest}")]).hexdigest() == digest
    with zipfile.ZipFile(path) as archive:
        assert archive.testzip() is None
        assert archive.comment == f"sha256:{digest}".encode()


def test_a_state_from_before_there_were_hashes_is_loaded(tmp_path: Path) -> None:
    torch.save({"round": 4}, tmp_path / "state.pt")
    assert check_state(tmp_path / "state.pt") is None
    assert load_state(tmp_path / "state.pt") == {"round": 4}


def test_a_file_that_cannot_be_read_is_not_taken_for_a_damaged_one(tmp_path: Path) -> None:
    (tmp_path / "state.pt").mkdir()
    with pytest.raises(IsADirectoryError):
        load_state(tmp_path / "state.pt")
