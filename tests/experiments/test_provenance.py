from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

from dmmlkd_ext.experiments.provenance import describe_environment, find_cpu_name, hash_files


def test_the_hash_knows_names_and_contents_and_no_order(tmp_path: Path) -> None:
    first, second = tmp_path / "first.py", tmp_path / "second.py"
    first.write_text("a = 1")
    second.write_text("b = 2")
    base = hash_files([("x", first), ("y", second)])
    assert base == hash_files([("y", second), ("x", first)])
    assert base != hash_files([("x", second), ("y", first)])
    assert base != hash_files([("x", first), ("z", second)])
    first.write_text("a = 2")
    assert base != hash_files([("x", first), ("y", second)])


def test_the_version_of_the_code_is_the_same_in_every_process() -> None:
    command = "from dmmlkd_ext.experiments.provenance import code_version; print(code_version())"
    versions = {
        subprocess.run([sys.executable, "-c", command], capture_output=True, text=True, check=True).stdout
        for _ in range(2)
    }
    assert len(versions) == 1
    assert len(versions.pop().strip()) == 64


def test_the_environment_is_json_and_the_same_each_time_and_names_no_path() -> None:
    environment = describe_environment(threads=2)
    text = json.dumps(environment)
    assert json.dumps(describe_environment(threads=2)) == text
    assert environment["threads"] == 2
    assert str(Path.home()) not in text
    assert find_cpu_name()


def test_comments_docstrings_and_layout_are_not_the_code(tmp_path: Path) -> None:
    path = tmp_path / "module.py"

    def version(source: str) -> str:
        path.write_text(source)
        return hash_files([("module.py", path)])

    plain = version("class A:\n    x: int = 1\n\n    def f(self):\n        return 'text'\n")
    written = (
        '"""A module."""\n# A remark.\nclass A:\n    """A class."""\n    x: int = 1  # one\n    """An attribute."""\n\n'
        '    def f(self):\n        """Return it."""\n        return (\n            "text"\n        )\n'
    )
    assert version(written) == plain
    assert version(written.replace('"text"', '"other"')) != plain
    assert version(written.replace("= 1", "= 2")) != plain
    assert version(written + "y = 3\n") != plain


def test_native_sources_are_hashed_as_they_are(tmp_path: Path) -> None:
    path = tmp_path / "kernel.cpp"
    path.write_text("int x;")
    base = hash_files([("kernel.cpp", path)])
    path.write_text("int x;  // a remark")
    assert hash_files([("kernel.cpp", path)]) != base
