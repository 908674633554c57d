"""A checkpoint is whole or not there, whoever wrote it and whoever reads it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from dmmlkd_ext.training.checkpoints import load_checkpoint, save_checkpoint, select_rows
from tests.training.stand_in import StandIn

DEVICES = [np.array([0, 3]), np.array([1, 2])]


def state_of(rank: int, round_index: int) -> dict:
    devices = DEVICES[rank]
    rows = {"shared": {"devices": devices, "start": torch.tensor(devices * 1.0 + round_index)[:, None]}}
    return {"round": round_index, "speeds": np.arange(4.0), "rows": [rows]}


def save(path, round_index):
    for rank in (1, 0):
        save_checkpoint(path, state_of(rank, round_index), StandIn(rank, 2))


def test_any_rank_reads_the_rows_of_all(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path, 3)
    state = load_checkpoint(path)
    assert state["round"] == 3
    assert state["speeds"].tolist() == [0, 1, 2, 3]
    everyone = select_rows(state["rows"], "shared", np.arange(4))
    assert everyone["start"].flatten().tolist() == [3, 4, 5, 6]
    assert select_rows(state["rows"], "shared", np.array([2, 3]))["start"].flatten().tolist() == [5, 6]
    assert select_rows(state["rows"], "generator", np.array([2])) == {}


def test_the_files_of_an_earlier_round_go_when_the_new_ones_are_whole(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path, 3)
    save_checkpoint(path, state_of(1, 4), StandIn(1, 2))
    assert load_checkpoint(path)["round"] == 3  # rank 0 has not yet made round 4 valid
    save_checkpoint(path, state_of(0, 4), StandIn(0, 2))
    assert load_checkpoint(path)["round"] == 4
    names = sorted(file.name for file in tmp_path.iterdir())
    assert names == ["checkpoint-4-1-of-2.pt", "checkpoint-4-2-of-2.pt", "checkpoint.pt"]


def test_one_process_takes_over_and_leaves_one_file(tmp_path):
    path = tmp_path / "checkpoint.pt"
    save(path, 3)
    save_checkpoint(path, load_checkpoint(path))
    assert [file.name for file in tmp_path.iterdir()] == ["checkpoint.pt"]
    assert len(load_checkpoint(path)["rows"]) == 2


def test_a_missing_or_broken_file_is_named(tmp_path):
    path = tmp_path / "checkpoint.pt"
    with pytest.raises(FileNotFoundError):
        load_checkpoint(path)
    save(path, 3)
    (tmp_path / "checkpoint-3-2-of-2.pt").unlink()
    with pytest.raises(ValueError, match=r"it names checkpoint-3-2-of-2\.pt, which is missing"):
        load_checkpoint(path)
    save(path, 3)
    (tmp_path / "checkpoint-3-1-of-2.pt").write_bytes(b"not a state")
    with pytest.raises(ValueError, match=r"checkpoint-3-1-of-2\.pt"):
        load_checkpoint(path)


def test_what_one_part_lacks_is_none():
    parts = [
        {"generator": {"devices": np.array([0]), "start": torch.ones(1, 2), "pool": None}},
        {"generator": {"devices": np.array([1]), "start": torch.zeros(1, 2), "pool": torch.ones(1, 2)}},
    ]
    chosen = select_rows(parts, "generator", np.array([0, 1]))
    assert chosen["pool"] is None
    assert chosen["start"].tolist() == [[1.0, 1.0], [0.0, 0.0]]
