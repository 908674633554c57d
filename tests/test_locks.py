"""A system without `flock` is told so where files are locked, and not when the package is imported."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from dmmlkd_ext import locks


def test_a_lock_is_one_process_s_alone(tmp_path: Path) -> None:
    with (tmp_path / "a").open("w") as one, (tmp_path / "a").open("w") as other:
        locks.lock_file(one)
        with pytest.raises(BlockingIOError):
            locks.lock_file(other, wait=False)


def test_without_locks_of_the_system_the_package_is_imported_and_a_run_is_refused(tmp_path: Path) -> None:
    script = (
        "import sys; sys.modules['fcntl'] = None\n"
        "from dmmlkd_ext import cli\n"
        "sys.exit(cli.main(['run', 'dmml', 'mfeat', '--training.rounds', '1', '--runs', sys.argv[1]]))"
    )
    command = [sys.executable, "-c", script, str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    refused = "dmmlkd: runs and downloads lock files by flock, which this system lacks; Linux and macOS have it\n"
    assert (done.returncode, done.stderr) == (1, refused)
