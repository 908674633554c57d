"""The container builds and draws by the README's commands."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[1]


def read(name: str) -> str:
    return (ROOT / name).read_text(encoding="utf-8")


def test_it_calls_targets_that_there_are_and_those_of_the_readme() -> None:
    dockerfile, makefile = read("Dockerfile"), read("Makefile")
    called = set(re.findall(r"make ([a-z-]+)", dockerfile)) | set(re.findall(r'"make", "([a-z-]+)"', dockerfile))
    assert called == {"build", "figures", "test", "setup"}
    assert {"figures", "test"} <= set(re.findall(r"`?make ([a-z-]+)", read("README.md")))
    assert all(re.search(rf"^{target}:", makefile, re.MULTILINE) for target in called)


def test_it_takes_the_torch_of_the_makefile() -> None:
    torch_here = re.search(r"^TORCH \?= (.*)$", read("Makefile"), re.MULTILINE)
    assert torch_here is not None
    assert f"ARG TORCH={torch_here[1]}\n" in read("Dockerfile")
