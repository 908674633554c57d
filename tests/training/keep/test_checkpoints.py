"""A checkpoint of several ranks is whole or the one before, and any number of ranks goes on from it."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import dmmlkd_ext.training.keep.checkpoints as checkpoints_module
from dmmlkd_ext.training.keep.checkpoints import load_checkpoint, remove_shards, save_checkpoint, select_rows
from dmmlkd_ext.training.keep.files import save_state
from tests.distributed.threads import Numbered

OWNED = ([0, 3], [1], [2, 4])  # devices of three ranks


def state_of(devices: list[int], round_number: int) -> dict[str, Any]:
    """Return a state in which each device's row tells its number and the round."""
    rows = torch.tensor([[float(device), float(round_number)] for device in devices])
    block = {"devices": np.array(devices), "parameters": rows, "momentum": -rows}
    return {"round": round_number, "energy": {"spent": 2.5 * round_number}, "rows": [{"shared": block}]}


def save(path: Path, round_number: int, ranks: tuple[int, ...] = (2, 1, 0)) -> None:
    for rank in ranks:
        save_checkpoint(path, state_of(OWNED[rank], round_number), Numbered(rank, len(OWNED)))


def assert_holds(state: dict[str, Any], round_number: int) -> None:
    assert state["round"] == round_number
    assert state["energy"] == {"spent": 2.5 * round_number}
    assert "shards" not in state
    rows = select_rows(state["rows"], "shared", np.arange(5))
    wanted = torch.tensor([[float(device), float(round_number)] for device in range(5)])
    assert torch.equal(rows["parameters"], wanted)
    assert torch.equal(rows["momentum"], -wanted)


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "checkpoint.pt"


def test_the_rows_of_all_ranks_are_found_again(path: Path) -> None:
    save(path, 7)
    assert_holds(load_checkpoint(path), 7)
    names = sorted(file.name for file in path.parent.iterdir())
    assert names == ["checkpoint-7-1-of-3.pt", "checkpoint-7-2-of-3.pt", "checkpoint-7-3-of-3.pt", "checkpoint.pt"]


def test_the_same_states_are_the_same_bytes(path: Path, tmp_path: Path) -> None:
    save(path, 7)
    other = tmp_path / "other"
    other.mkdir()
    save(other / path.name, 7)
    for file in other.iterdir():
        assert file.read_bytes() == (tmp_path / file.name).read_bytes()


def test_a_death_before_the_last_file_leaves_the_last_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, 1)

    def die_at_last(target: Path, state: dict[str, Any]) -> None:
        if target == path:
            raise KeyboardInterrupt
        save_state(target, state)

    monkeypatch.setattr(checkpoints_module, "save_state", die_at_last)
    with pytest.raises(KeyboardInterrupt):
        save(path, 2)
    assert len(list(path.parent.glob("checkpoint-2-*"))) == 3
    assert_holds(load_checkpoint(path), 1)


@pytest.mark.parametrize("saved", [(1,), (2, 1), (1, 2)])
def test_until_all_is_saved_the_last_checkpoint_stays(saved: tuple[int, ...], path: Path) -> None:
    save(path, 1)
    save(path, 2, saved)
    assert_holds(load_checkpoint(path), 1)
    save(path, 2)
    assert_holds(load_checkpoint(path), 2)
    assert not list(path.parent.glob("checkpoint-1-*"))


def test_a_rank_that_cannot_save_leaves_the_last_checkpoint(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save(path, 1)

    def full(target: Path, state: dict[str, Any]) -> None:
        raise OSError("no space left")

    monkeypatch.setattr(checkpoints_module, "save_state", full)
    with pytest.raises(OSError, match="no space left"):
        save(path, 2, (0,))
    assert_holds(load_checkpoint(path), 1)


def test_the_file_that_makes_it_valid_comes_last(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    written = []

    def note(target: Path, state: dict[str, Any]) -> str:
        written.append(target.name)
        return save_state(target, state)

    monkeypatch.setattr(checkpoints_module, "save_state", note)
    save(path, 4)
    assert written == ["checkpoint-4-3-of-3.pt", "checkpoint-4-2-of-3.pt", "checkpoint-4-1-of-3.pt", "checkpoint.pt"]


def test_one_process_takes_over_and_clears_what_ranks_left(path: Path) -> None:
    save(path, 1)
    for ranks in (None, Numbered(0, 1)):
        save_checkpoint(path, state_of([0, 1, 2, 3, 4], 2), ranks)
        assert_holds(load_checkpoint(path), 2)
        assert [file.name for file in path.parent.iterdir()] == ["checkpoint.pt"]


def test_only_the_ranks_files_are_removed(path: Path) -> None:
    for name in ("checkpoint-1-1-of-2.pt", "checkpoint-1-2-of-2.pt", "best-1-1-of-2.pt", "checkpoint-note.pt"):
        (path.parent / name).touch()
    remove_shards(path, ["checkpoint-1-2-of-2.pt"])
    left = sorted(file.name for file in path.parent.iterdir())
    assert left == ["best-1-1-of-2.pt", "checkpoint-1-2-of-2.pt", "checkpoint-note.pt"]


def test_missing_files_are_named(path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)
    save(path, 3)
    (path.parent / "checkpoint-3-2-of-3.pt").unlink()
    with pytest.raises(ValueError, match=r"it names checkpoint-3-2-of-3.pt, which is missing"):
        load_checkpoint(path)
    save_state(path, {"round": 1, "rows": [], "shards": ["checkpoint.pt.broken"]})
    (path.parent / "checkpoint.pt.broken").write_bytes(b"no state")
    with pytest.raises(ValueError, match=r"path holds no saved state: .*broken"):
        load_checkpoint(path)


def test_rows_are_those_asked_for_in_the_order_of_devices() -> None:
    parts = [state_of(devices, 1)["rows"][0] for devices in OWNED]
    found = select_rows(parts, "shared", np.array([1, 3, 4]))
    assert found["parameters"][:, 0].tolist() == [1.0, 3.0, 4.0]
    assert "devices" not in found
    # A device that nobody saved is left out, which the shapes then tell.
    assert select_rows(parts, "shared", np.array([2, 9]))["parameters"][:, 0].tolist() == [2.0]
    assert select_rows(parts, "other", np.array([1])) == {}


def test_what_a_part_lacks_is_lacking() -> None:
    parts = [
        {"shared": {"devices": np.array([1]), "pool": torch.ones(1, 2), "count": torch.ones(1)}},
        {"left": {"devices": np.array([5])}},
        {"shared": {"devices": np.array([0]), "pool": None, "count": torch.zeros(1)}},
    ]
    found = select_rows(parts, "shared", np.array([0, 1]))
    assert found["pool"] is None
    assert found["count"].tolist() == [0.0, 1.0]


def flip(path: Path, bit: int) -> None:
    content = bytearray(path.read_bytes())
    content[bit // 8] ^= 1 << bit % 8
    path.write_bytes(content)


@pytest.mark.parametrize("name", ["checkpoint.pt", "checkpoint-3-2-of-3.pt"])
def test_no_flipped_bit_is_accepted(path: Path, name: str) -> None:
    save(path, 3)
    file = path.with_name(name)
    whole = file.read_bytes()
    chance, bits = random.Random(0), 8 * len(whole)
    last = range(bits - 8 * 100, bits)  # the end of the archive and its hash
    for bit in [*chance.sample(range(bits), 30), *chance.sample(last, 30)]:
        flip(file, bit)
        with pytest.raises(ValueError, match="path holds no saved state"):
            load_checkpoint(path)
        flip(file, bit)
    assert_holds(load_checkpoint(path), 3)


def test_a_whole_shard_of_another_checkpoint_is_refused(path: Path) -> None:
    save(path, 3)
    save_state(path.with_name("checkpoint-3-2-of-3.pt"), {"rows": state_of(OWNED[1], 2)["rows"]})
    with pytest.raises(ValueError, match=r"checkpoint-3-2-of-3.pt \(it is of another checkpoint\)"):
        load_checkpoint(path)


def test_ranks_share_out_the_comparing_and_leave_nothing_out(path: Path) -> None:
    save(path, 3)
    for name in ("checkpoint-3-1-of-3.pt", "checkpoint-3-2-of-3.pt", "checkpoint-3-3-of-3.pt"):
        whole = path.with_name(name).read_bytes()
        path.with_name(name).write_bytes(whole.replace(b"sha256:", b"sha256:0", 1)[: len(whole)])
        refused = 0
        for rank in range(2):
            try:
                load_checkpoint(path, Numbered(rank, 2))
            except ValueError:
                refused += 1
        assert refused == 1
        path.with_name(name).write_bytes(whole)


def test_checkpoints_from_before_there_were_hashes_are_loaded(path: Path) -> None:
    names = []
    for rank, devices in enumerate(OWNED):
        names.append(f"checkpoint-3-{rank + 1}-of-3.pt")
        rows = {name: rows for name, rows in state_of(devices, 3)["rows"][0]["shared"].items() if name != "devices"}
        numbers = {"numpy.ndarray": torch.tensor(devices)}
        torch.save({"rows": [{"shared": {"devices": numbers, **rows}}]}, path.with_name(names[-1]))
    torch.save({"round": 3, "energy": {"spent": 7.5}, "rows": [], "shards": names}, path)
    assert_holds(load_checkpoint(path), 3)
