"""`dmmlkd run --help` fits a screen, and says nothing that the options are not."""

from __future__ import annotations

import re

import pytest

from dmmlkd_ext import cli
from dmmlkd_ext.experiments.config.presets import preset


def ask(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    with pytest.raises(SystemExit) as end:
        cli.main(words)
    assert end.value.code == 0
    return capsys.readouterr().out


@pytest.mark.parametrize(
    "words", [("--help",), ("-h",), ("dmml", "mfeat", "--help"), ("dmml", "mfeat", "--seed", "1", "-h")]
)
def test_it_fits_a_screen(words, capsys):
    lines = ask(capsys, "run", *words).splitlines()
    assert len(lines) <= 30
    assert max(map(len, lines)) <= 80
    assert "usage: dmmlkd run METHOD DATASET [options]" in lines
    assert any(line.startswith("example: dmmlkd run ") for line in lines)


def test_its_options_are_those_that_there_are_with_the_defaults_of_the_dataset(capsys):
    short, whole = ask(capsys, "run", "dmml", "mfeat", "--help"), ask(capsys, "run", "--help-all")
    options = re.findall(r"^  (--[a-z.-]+)", short, re.MULTILINE)
    assert len(options) > 15
    for option in set(options) - {"--help-all"}:
        assert re.search(rf"{re.escape(option)}\b", whole), option
    assert "natural | dirichlet | iid [dirichlet]" in short
    assert f"[{preset('mfeat').training.learning_rate}]" in short
    assert "--method.balance.exponent" in whole


def test_the_example_runs(capsys, tmp_path):
    [example] = re.findall(r"^example: dmmlkd (.*)$", ask(capsys, "run", "--help"), re.MULTILINE)
    words = example.split()
    assert cli.main([*words[:-1], "1", "--data.num-devices", "20", "--runs", str(tmp_path), "--quiet"]) == 0
