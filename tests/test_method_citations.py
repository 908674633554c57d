"""Docstrings cite the mathematics as "METHOD 3": every section that they name is in the file that the wheel carries."""

from __future__ import annotations

import re
import tomllib
from importlib import resources
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
PLACES = ("dmmlkd_ext", "csrc", "paper_figures", "tests")
SUFFIXES = {".py", ".cpp", ".h", ".inl", ".cu", ".cuh", ".md"}

BREAK = r"(?:\s|\n\s*(?://|\#|\*))+"  # a citation may be broken over lines, of comments too
LIST = rf"\d+(?:(?:,{BREAK}|{BREAK}and{BREAK}|{BREAK}to{BREAK})\d+)*"
CITATION = re.compile(rf"METHOD{BREAK}(?P<sections>{LIST})(?:,{BREAK}\"(?P<words>[^\"]+)\")?")


def sections() -> dict[int, str]:
    """Return the text of each section by its number."""
    text = resources.files("dmmlkd_ext").joinpath("METHOD.md").read_text(encoding="utf-8")
    _, *parts = re.split(r"^## (\d+)\. ", text, flags=re.MULTILINE)
    return {int(number): body for number, body in zip(parts[::2], parts[1::2], strict=True)}


def cited_sections(citation: str) -> set[int]:
    """Return the numbers of a list such as "3", "2, 4", "3 and 5" and "1 to 6".

    The numbers of a range are all those in it.
    """
    tokens = re.findall(r"\d+|to", citation)
    found: set[int] = set()
    for position, token in enumerate(tokens):
        if token == "to":
            found |= set(range(int(tokens[position - 1]), int(tokens[position + 1]) + 1))
        else:
            found.add(int(token))
    return found


def citations() -> list[tuple[str, set[int], str | None]]:
    """Return where each citation stands, the sections it names, and the words that it quotes of one."""
    found = []
    for path in sorted(path for place in PLACES for path in (ROOT / place).rglob("*") if path.suffix in SUFFIXES):
        text = path.read_text(encoding="utf-8")
        for match in CITATION.finditer(text):
            where = f"{path.relative_to(ROOT)}:{text.count(chr(10), 0, match.start()) + 1}"
            words = match["words"] and " ".join(re.sub(r"\n\s*(//|#|\*)?", " ", match["words"]).split())
            found.append((where, cited_sections(match["sections"]), words))
    return found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("(METHOD 3)", {3}),
        ("METHOD 3 [C]", {3}),
        ("METHOD 3 and 5, device by device", {3, 5}),
        ("METHOD 2, 4 and 6", {2, 4, 6}),
        ("METHOD 1 to 6", {1, 2, 3, 4, 5, 6}),
        ("see METHOD\n    // 3 and\n    // 8", {3, 8}),
        ("METHOD 9", {9}),
    ],
)
def test_all_forms_of_a_citation_are_read(text, expected):
    (match,) = CITATION.finditer(text)
    assert cited_sections(match["sections"]) == expected


def test_every_cited_section_exists():
    there, cited = sections(), citations()
    assert len({where for where, _, _ in cited}) > 50
    assert not [
        f"{where}: METHOD {sorted(numbers - there.keys())}" for where, numbers, _ in cited if numbers - there.keys()
    ]


def test_every_phrase_quoted_of_a_section_stands_in_it():
    there = sections()
    quoted = [(where, numbers, words) for where, numbers, words in citations() if words]
    assert quoted
    for where, numbers, words in quoted:
        text = " ".join(" ".join(there[number] for number in numbers).split()).lower()
        assert words.lower() in text, where


def test_sections_are_numbered_from_one_without_gaps():
    assert list(sections()) == list(range(1, len(sections()) + 1))


def test_the_wheel_carries_the_method():
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "METHOD.md" in settings["tool"]["setuptools"]["package-data"]["dmmlkd_ext"]
