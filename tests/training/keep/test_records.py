"""Records are what was written, or the run does not go on."""

from __future__ import annotations

import hashlib
import json
import math
import os
from pathlib import Path

import pytest

from dmmlkd_ext.training.keep.files import RunChangedError
from dmmlkd_ext.training.keep.records import RecordWriter
from tests.training.keep.counter import Counter, make_record


def test_records_are_one_line_a_round_and_not_a_number_becomes_null(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = RecordWriter(path)
    Counter(3).run(writer)
    lines = path.read_text().splitlines()
    assert [json.loads(line)["round"] for line in lines] == [1, 2, 3]
    writer.on_round_end(Counter(4, done=4), make_record(4, loss=math.nan))
    assert json.loads(path.read_text().splitlines()[-1])["loss"]["total"] is None


@pytest.mark.parametrize("cut", [0, 1, 7])
def test_resumed_records_equal_uninterrupted_ones_also_after_a_torn_line(tmp_path: Path, cut: int) -> None:
    path = tmp_path / "metrics.jsonl"
    Counter(6).run(RecordWriter(path))
    whole = path.read_bytes()
    fifth_line_ends = sum(len(line) for line in whole.splitlines(keepends=True)[:5])
    path.write_bytes(whole[: fifth_line_ends + cut])
    Counter(6, done=4).run(RecordWriter(path))
    assert path.read_bytes() == whole


def test_records_are_on_the_disk_as_often_as_asked_for_and_at_the_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, synced, real = tmp_path / "metrics.jsonl", [], os.fsync

    def note(descriptor: int) -> None:
        real(descriptor)
        synced.append(path.read_bytes().count(b"\n"))

    writer, counter = RecordWriter(path, every=3), Counter(7)
    writer.on_start(counter)
    monkeypatch.setattr(os, "fsync", note)
    for index in range(1, 8):
        counter.round = index
        writer.on_round_end(counter, make_record(index))
        assert path.read_bytes().count(b"\n") == index  # a process that dies here loses nothing
    writer.on_end(counter)
    assert synced == [3, 6, 7]


def test_records_must_reach_the_disk_some_time(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="every must be at least 1, got 0"):
        RecordWriter(tmp_path / "metrics.jsonl", every=0)


def test_records_that_lack_completed_rounds_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    path.write_bytes(b'{"round": 1}\n{"round": 2')
    with pytest.raises(ValueError, match=r"metrics.jsonl must hold the 2 completed rounds, it holds 1"):
        RecordWriter(path).on_start(Counter(3, done=2))


def test_the_hash_is_of_all_records_also_after_a_resumption(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer = RecordWriter(path)
    Counter(3).run(writer)
    assert writer.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()
    resumed = RecordWriter(path)
    Counter(6, done=2).run(resumed)
    assert resumed.sha256 == hashlib.sha256(path.read_bytes()).hexdigest()


def remove(path: Path) -> None:
    path.unlink()


def rename(path: Path) -> None:
    path.rename(path.with_name("other"))


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [remove, rename, cut, empty])
def test_records_that_are_harmed_during_a_run_end_it(tmp_path: Path, harm) -> None:
    path = tmp_path / "metrics.jsonl"
    writer, counter = RecordWriter(path), Counter(3)
    writer.on_start(counter)
    writer.on_round_end(counter, make_record(1))
    harm(path)
    with pytest.raises(RunChangedError, match=r"metrics.jsonl was changed while its run was on: it (is|holds)"):
        writer.on_round_end(counter, make_record(2))
    with pytest.raises(RunChangedError, match=r"metrics.jsonl was changed"):
        writer.on_end(counter)


def test_other_records_of_the_same_size_are_noticed_at_the_end(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer, counter = RecordWriter(path), Counter(3)
    writer.on_start(counter)
    writer.on_round_end(counter, make_record(1))
    path.write_bytes(path.read_bytes().replace(b"0.5", b"0.6"))
    with pytest.raises(RunChangedError, match="it holds other records than were written"):
        writer.on_end(counter)


def test_nothing_is_written_where_it_must_not_be(tmp_path: Path) -> None:
    path = tmp_path / "metrics.jsonl"
    writer, counter = RecordWriter(path), Counter(3)
    writer.on_start(counter)

    def refuse() -> None:
        raise RunChangedError("the lock was removed")

    writer.may_write = refuse
    with pytest.raises(RunChangedError, match="lock"):
        writer.on_round_end(counter, make_record(1))
    assert path.read_bytes() == b""
