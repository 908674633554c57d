from __future__ import annotations

import hashlib
import subprocess
import sys
import threading
from collections.abc import Iterator
from functools import partial
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from dmmlkd_ext.data import ChecksumError, DataUnavailableError
from dmmlkd_ext.data.sources.fetch import cache_folder, data_folders, download, find, obtain, placing, verify

CONTENT = b"measured once" * 1000
DIGEST = hashlib.sha256(CONTENT).hexdigest()
check = partial(verify, expected=DIGEST)


class Handler(BaseHTTPRequestHandler):
    """/whole answers the content, /cut half of what it announces, /other something else, the rest 404."""

    def do_GET(self) -> None:
        bodies = {"/whole": CONTENT, "/cut": CONTENT[: len(CONTENT) // 2], "/other": b"<html>moved</html>"}
        body = bodies.get(self.path)
        if body is None:
            self.send_error(404)
            return
        self.send_response(200)
        self.send_header("Content-Length", str(len(CONTENT) if self.path == "/cut" else len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *args: object) -> None:
        """Keep the test's output clean."""


@pytest.fixture(scope="module")
def server() -> Iterator[str]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as running:
        threading.Thread(target=running.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{running.server_address[1]}"
        running.shutdown()


def fetch(*addresses: str) -> Path:
    return obtain("set/file.bin", check, lambda path: download(addresses, path, check))


def files_below(folder: Path) -> list[Path]:
    return [path for path in folder.rglob("*") if path.is_file()]


def test_download_lands_in_the_cache_once(cache: Path, server: str) -> None:
    assert fetch(f"{server}/whole") == cache / "set/file.bin"
    assert (cache / "set/file.bin").read_bytes() == CONTENT
    assert files_below(cache) == [cache / "set/file.bin"]
    fetch("http://127.0.0.1:9/nobody-listens")  # not asked again


def test_file_addresses_work(cache: Path, tmp_path: Path) -> None:
    (tmp_path / "source").write_bytes(CONTENT)
    assert fetch((tmp_path / "source").as_uri()).read_bytes() == CONTENT


def test_next_address_is_tried(cache: Path, server: str) -> None:
    assert fetch(f"{server}/gone", f"{server}/other", f"{server}/cut", f"{server}/whole").exists()


@pytest.mark.parametrize(("page", "said"), [("cut", "expected"), ("other", "expected"), ("gone", "404")])
def test_nothing_is_left_of_a_bad_download(cache: Path, server: str, page: str, said: str) -> None:
    with pytest.raises(DataUnavailableError, match=said) as caught:
        fetch(f"{server}/{page}")
    assert f"put it as set/file.bin under {cache}" in str(caught.value)
    assert files_below(cache) == []
    assert list((cache / "set").iterdir()) == []


def test_an_interrupted_write_leaves_nothing(cache: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_bytes(CONTENT[:10])
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        obtain("set/file.bin", check, interrupted)
    assert list((cache / "set").iterdir()) == []


def test_a_file_with_another_checksum_is_refused_and_kept(cache: Path) -> None:
    (cache / "set").mkdir(parents=True)
    (cache / "set/file.bin").write_bytes(b"mine")
    with pytest.raises(ChecksumError, match=r"file\.bin has SHA-256 .*expected " + DIGEST):
        fetch()
    assert (cache / "set/file.bin").read_bytes() == b"mine"


def test_named_folder_is_read_first_and_never_written(
    cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, server: str
) -> None:
    named = tmp_path / "named"
    named.mkdir()
    monkeypatch.setenv("DMMLKD_DATA", str(named))
    assert data_folders() == (named, cache)
    assert fetch(f"{server}/whole") == cache / "set/file.bin"
    assert list(named.iterdir()) == []
    (named / "set").mkdir()
    (named / "set/file.bin").write_bytes(CONTENT)
    assert fetch() == named / "set/file.bin" == find("set/file.bin")


def test_a_named_folder_that_is_not_there_is_refused(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMMLKD_DATA", "no/such/folder")
    with pytest.raises(ValueError, match="DMMLKD_DATA must name a folder that exists"):
        data_folders()


def test_relative_cache_folder_is_ignored(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("XDG_CACHE_HOME", "relative")
    assert cache_folder() == tmp_path / ".cache/dmmlkd_ext"


def test_a_cache_that_cannot_be_made_is_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.raises(DataUnavailableError, match="set XDG_CACHE_HOME"), placing("a/b"):
        pytest.fail("nothing can be written here")


def test_without_a_home_the_missing_setting_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def unknown() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", unknown)
    with pytest.raises(DataUnavailableError, match=r"the cache is not known .*; set XDG_CACHE_HOME"):
        cache_folder()


def test_the_home_of_nobody_is_no_folder(cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DMMLKD_DATA", "~no-such-user/data")
    with pytest.raises(ValueError, match="DMMLKD_DATA must name a folder that exists, got '~no-such-user/data'"):
        data_folders()


def test_what_a_killed_process_left_is_removed(cache: Path) -> None:
    code = """
import os, signal
from dmmlkd_ext.data.sources.fetch import placing
with placing("set/file.bin") as path:
    path.write_bytes(bytes(1000))
    os.kill(os.getpid(), signal.SIGKILL)
"""
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == -9
    assert len(files_below(cache)) == 1
    with placing("set/file.bin") as held, placing("set/file.bin") as path:  # this one leaves what is in use
        held.write_bytes(b"held")
        path.write_bytes(CONTENT)
    assert files_below(cache) == [cache / "set/file.bin"]
    assert (cache / "set/file.bin").read_bytes() == b"held"


WRITER = """
import hashlib, sys, time
from dmmlkd_ext.data.sources.fetch import obtain, verify
content = b"measured once" * 1000
def produce(path):
    with path.open("wb") as stream:
        stream.write(content[:100]); stream.flush(); time.sleep(0.3); stream.write(content[100:])
for name in range(5):
    path = obtain(f"set/{name}.bin", lambda p: verify(p, hashlib.sha256(content).hexdigest()), produce)
    assert path.read_bytes() == content
"""


@pytest.mark.distributed
def test_two_processes_may_fetch_the_same_file(cache: Path) -> None:
    writers = [subprocess.Popen([sys.executable, "-c", WRITER]) for _ in range(2)]
    assert [writer.wait(timeout=120) for writer in writers] == [0, 0]
    assert sorted(path.name for path in (cache / "set").iterdir()) == [f"{name}.bin" for name in range(5)]
