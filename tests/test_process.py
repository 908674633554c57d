"""What the command line does where its surroundings are odd: closed streams, an interrupt at the start, ranks."""

from __future__ import annotations

import builtins
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from dmmlkd_ext import cli

ROOT = Path(__file__).parents[1]
COMMAND = f'exec "{sys.executable}" -m dmmlkd_ext '


@pytest.mark.parametrize(
    ("arguments", "code"),
    [("run dmml nothing 2>&-", 2), ("data list 1>&-", 0), ("run dmml nothing 0<&- 1>&- 2>&-", 2)],
)
def test_what_a_closed_stream_would_have_shown_goes_nowhere_else(arguments: str, code: int) -> None:
    done = subprocess.run(["sh", "-c", COMMAND + arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (code, "", "")


def test_an_interrupt_during_the_imports_is_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real_import = builtins.__import__

    def interrupt(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "dmmlkd_ext.experiments.commands.command":
            raise KeyboardInterrupt
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", interrupt)
    assert cli.main(["info"]) == 130
    assert capsys.readouterr().err == "dmmlkd: interrupted before anything began\n"


@pytest.mark.parametrize("program", [["-m", "dmmlkd_ext"], ["{folder}/dmmlkd"], ["{folder}/mine.py"]])
def test_an_interrupt_while_torch_is_imported_is_one_line(program: list[str], tmp_path: Path) -> None:
    (tmp_path / "torch").mkdir()
    lines = ["import os, signal, time", "os.kill(os.getpid(), signal.SIGINT)", "time.sleep(60)"]
    (tmp_path / "torch" / "__init__.py").write_text("\n".join(lines))
    for name in ("dmmlkd", "mine.py"):
        (tmp_path / name).write_text("from dmmlkd_ext.cli import main\nmain()\n")
    words = [word.format(folder=tmp_path) for word in program]
    environment = {**os.environ, "PYTHONPATH": f"{tmp_path}{os.pathsep}{ROOT}"}
    done = subprocess.run(
        [sys.executable, *words, "info"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=False,
        # The tests may run in the background, where a shell lets programs ignore the interrupt.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    if words[0].endswith("mine.py"):
        assert "Traceback" in done.stderr  # a program that uses the package reports its interrupts itself
    else:
        assert (done.returncode, done.stderr) == (130, "dmmlkd: interrupted before anything began\n")


def test_a_package_that_is_missing_is_named_with_what_brings_it(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    real_import = builtins.__import__

    def without(name: str, *arguments: Any, **options: Any) -> Any:
        if name == "dmmlkd_ext.experiments.commands.command":
            raise ModuleNotFoundError("No module named 'tyro'", name="tyro")
        return real_import(name, *arguments, **options)

    monkeypatch.setattr(builtins, "__import__", without)
    assert cli.main(["info"]) == 1
    said = capsys.readouterr().err
    assert said.startswith("dmmlkd: the package tyro is missing: pip install tyro, or, in a clone, pip install '.[")
    assert said.count("\n") == 1


@pytest.mark.parametrize("command", ["run dmml mfeat", "sweep"])
def test_a_world_that_torchrun_does_not_set_is_one_line(
    command: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    for name, value in {"RANK": "0", "WORLD_SIZE": "abc", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}.items():
        monkeypatch.setenv(name, value)
    assert cli.main(command.split()) == 2
    said = "dmmlkd: WORLD_SIZE must be a whole number, as torchrun sets it; got 'abc'\n"
    assert capsys.readouterr().err == said


def test_what_one_rank_alone_cannot_do_it_says_with_its_number(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture
) -> None:
    monkeypatch.setenv("RANK", "3")
    assert cli._complain("no space left", 1) == 1
    assert cli._complain("rank 3 of 4, round 2: rank 1 is lost", 1) == 1
    assert cli._complain("what all are asked for is wrong", 2) == 2
    assert capsys.readouterr().err == ("dmmlkd: rank 3: no space left\ndmmlkd: rank 3 of 4, round 2: rank 1 is lost\n")
