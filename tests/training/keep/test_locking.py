"""One process per run, also where the file of the lock is removed."""

from __future__ import annotations

import fcntl
from pathlib import Path

import pytest

from dmmlkd_ext.training.keep.files import RunChangedError
from dmmlkd_ext.training.keep.locking import RunLockedError, run_lock


def test_the_lock_ends_with_its_block(tmp_path: Path) -> None:
    for _ in range(2):
        with run_lock(tmp_path / "lock", "a") as require_held:
            require_held()


def test_a_second_one_is_refused(tmp_path: Path) -> None:
    with (
        run_lock(tmp_path / "lock", "a"),
        pytest.raises(RunLockedError, match="run a is being run by another process"),
        run_lock(tmp_path / "lock", "a"),
    ):
        pass


def test_a_lock_that_was_removed_is_noticed_by_who_held_it(tmp_path: Path) -> None:
    path = tmp_path / "lock"
    with run_lock(path, "a") as require_held:
        path.unlink()
        with pytest.raises(RunChangedError, match=r"lock was removed while run a was on"):
            require_held()
        with run_lock(path, "a") as second_held:
            second_held()
            with pytest.raises(RunChangedError, match="was removed"):
                require_held()


def test_a_lock_that_was_removed_while_it_was_waited_for_is_taken_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, real, calls = tmp_path / "lock", fcntl.flock, []

    def remove_first(file, how: int) -> None:
        calls.append(how)
        if len(calls) == 1:
            path.unlink()
        real(file, how)

    monkeypatch.setattr(fcntl, "flock", remove_first)
    with run_lock(path, "a") as require_held:
        require_held()
        assert path.exists()
    assert len(calls) == 2
