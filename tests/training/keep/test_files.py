from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dmmlkd_ext.training.keep.files import (
    load_state,
    remove_temporary_files,
    save_state,
    write_atomically,
    write_text,
)


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
    assert len(list(tmp_path.iterdir())) == 2
    remove_temporary_files(tmp_path)
    assert list(tmp_path.iterdir()) == [path]
