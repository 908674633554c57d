"""The command line: `dmmlkd run METHOD DATASET`, `dmmlkd sweep`, `compare`, `plot`, `info`, `data`."""

from __future__ import annotations

import codecs
import io
import logging
import os
import re
import shutil
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, redirect_stderr
from typing import TYPE_CHECKING, Annotated, Any

from dmmlkd_ext._interrupts import imports_are_over

if TYPE_CHECKING:
    from dmmlkd_ext.experiments.commands.command import Command

_WRONGLY = 2
_INTERRUPTED = 130
_MODULE = ("--module", "--data.module")  # the second is the former name of `run`'s option
_LEAST_WIDTH, _NO_WIDTH = 40, 10_000
_REPLACED = "dmmlkd_replaced"
_FRAMES = {"─": "-", "│": "|", **dict.fromkeys("╭╮╰╯", "+"), "•": "*"}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code: 0 done, 1 failed, 2 invalid arguments, 130 interrupted.

    Args:
        arguments: the command-line arguments; None takes those of the process.
    """
    _open_closed_streams()
    try:
        from dmmlkd_ext.experiments.commands.command import UserError
    except ModuleNotFoundError as error:
        brings = "or, in a clone, pip install '.[simulation]', which brings all that commands need"
        return _complain(f"the package {error.name} is missing: pip install {error.name}, {brings}", 1)
    except KeyboardInterrupt:
        return _complain("interrupted before anything began", _INTERRUPTED)
    imports_are_over()
    _print_whatever_comes()
    logging.basicConfig(format="%(message)s", level=logging.WARNING)
    try:
        return _parse(list(sys.argv[1:] if arguments is None else arguments)).execute()
    except UserError as error:
        return _complain(str(error), error.exit_code)
    except BrokenPipeError:  # the reader of our output, such as head, has closed it
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:  # its message names the file and what is wrong with it
        return _complain(str(error), 1)
    except KeyboardInterrupt:
        return _complain("interrupted; the same command goes on where this one ended", _INTERRUPTED)


def _parse(arguments: list[str]) -> Command:
    """Read the command; the defaults of `run` are those recommended for its method and dataset.

    Raises:
        UserError: the arguments are invalid.
        SystemExit: help was asked for and printed.
    """
    import tyro

    from dmmlkd_ext.experiments.commands.command import UserError
    from dmmlkd_ext.experiments.commands.data import DataCommand
    from dmmlkd_ext.experiments.commands.info import InfoCommand
    from dmmlkd_ext.experiments.commands.run import RunCommand
    from dmmlkd_ext.experiments.commands.show import CompareCommand, PlotCommand
    from dmmlkd_ext.experiments.commands.sweep import SweepCommand
    from dmmlkd_ext.experiments.config.arguments import arrange
    from dmmlkd_ext.experiments.config.presets import preset
    from dmmlkd_ext.plugins import import_modules

    arguments, modules = _gather_modules(arguments)
    told, names = None, []
    if arguments[:1] == ["run"] and not {"-h", "--help"}.isdisjoint(arguments):
        from dmmlkd_ext.experiments.commands.help import run_help

        print(run_help(*(word for word in arguments[1:3] if not word.startswith("-"))))
        raise SystemExit(0)
    arguments = ["--help" if argument == "--help-all" else argument for argument in arguments]
    try:
        if arguments[:1] == ["run"]:
            import_modules(*modules)
            options, told = arrange(arguments[1:])
            arguments, names = ["run", *options], options[:2] if told else []
            modules = list(dict.fromkeys([*(told.module if told else ()), *modules]))
    except ValueError as error:
        raise UserError(str(error)) from error
    run = RunCommand(tyro.MISSING, tyro.MISSING, told or preset("watch"))
    commands: Any = (
        Annotated[RunCommand, tyro.conf.subcommand("run", default=run)]
        | Annotated[SweepCommand, tyro.conf.subcommand("sweep")]
        | Annotated[InfoCommand, tyro.conf.subcommand("info")]
        | Annotated[DataCommand, tyro.conf.subcommand("data")]
        | Annotated[CompareCommand, tyro.conf.subcommand("compare")]
        | Annotated[PlotCommand, tyro.conf.subcommand("plot")]
    )
    if modules:
        arguments += ["--module", *modules]
    messages = io.StringIO()
    try:
        with redirect_stderr(messages), _wide_enough(arguments):
            command: Command = tyro.cli(commands, prog="dmmlkd", description=__doc__, args=arguments)
    except SystemExit as end:
        if not end.code:
            raise
        raise UserError(_flatten(messages.getvalue())) from None
    except ValueError as error:  # from the checks of a configuration
        raise UserError(str(error)) from error
    if isinstance(command, RunCommand) and names != [command.method, command.dataset]:
        # The defaults were chosen before the options were read.
        raise UserError("METHOD and DATASET must come right after run, before any option")
    return command.checked() if isinstance(command, RunCommand) else command


def _gather_modules(arguments: list[str]) -> tuple[list[str], list[str]]:
    """Return the arguments without the user's modules, and the modules, which must be imported before parsing.

    Raises:
        UserError: an option names no module.

    Example:
        >>> _gather_modules(["sweep", "--module=a.py,b.py", "--quiet", "--module", "c"])
        (['sweep', '--quiet'], ['a.py', 'b.py', 'c'])
    """
    from dmmlkd_ext.experiments.commands.command import UserError

    remaining, found, waiting = [], [], list(arguments)
    while waiting:
        option, equals, value = waiting.pop(0).partition("=")
        if option not in _MODULE:
            remaining.append(option + equals + value)
            continue
        if not equals:
            value = waiting.pop(0) if waiting and not waiting[0].startswith("-") else ""
        names = value.split(",")
        if not all(names):
            raise UserError(f"{option} must be followed by Python files or modules, got {value!r}")
        found += names
    return remaining, found


@contextmanager
def _wide_enough(arguments: list[str]) -> Iterator[None]:
    """Set the width in the environment that tyro reads: unbroken messages, and help of a readable width."""
    helps = any(argument in ("-h", "--help") for argument in arguments)
    width = max(_LEAST_WIDTH, shutil.get_terminal_size().columns) if helps else _NO_WIDTH
    before = os.environ.get("COLUMNS")
    os.environ["COLUMNS"] = str(width)
    try:
        yield
    finally:
        del os.environ["COLUMNS"]
        if before is not None:
            os.environ["COLUMNS"] = before


def _print_whatever_comes() -> None:
    """Print characters that the output's encoding lacks: frames of the help as ASCII, the rest by number."""
    codecs.register_error(_REPLACED, _replace)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):
            stream.reconfigure(errors=_REPLACED)


def _replace(error: UnicodeError) -> tuple[str, int]:
    if not isinstance(error, UnicodeEncodeError):
        raise error
    lacking = error.object[error.start : error.end]
    return "".join(_FRAMES.get(character) or ascii(character)[1:-1] for character in lacking), error.end


def _flatten(message: str) -> str:
    r"""Return tyro's framed message as one line: without the frame, its title, and the pointer to the help.

    Example:
        >>> _flatten("╭─ Value error ─╮\n│ rounds must be 1 │\n│ ──────── │\n│ For full helptext, x │\n╰───╯")
        'rounds must be 1'
    """
    parts: list[list[str]] = [[]]
    for framed in message.splitlines()[1:]:
        line = re.sub(r"[│─╭╮╰╯]|^ *[|+]|[|+] *$|-{3,}", " ", framed).strip()  # in ASCII the frame is -, | and +
        if line.startswith(("For full helptext", "Argument helptext")):
            break
        if not line:  # a horizontal line
            parts.append([])
        elif not line.startswith("in dmmlkd"):
            parts[-1].append(line)
    text = "; ".join(" ".join(part) for part in parts if part)
    return re.sub(r"(__tyro-dummy-inner__|config)\.", "", text) or message.strip()


def _open_closed_streams() -> None:
    """Open closed standard streams to the null device.

    Otherwise the next opened file, such as a run's records, takes the descriptor, and messages go into it.
    """
    while (descriptor := os.open(os.devnull, os.O_RDWR)) <= 2:
        os.set_inheritable(descriptor, True)
    os.close(descriptor)
    if sys.stdout is None:
        sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115 - for the process's life
    if sys.stderr is None:
        sys.stderr = open(2, "w", encoding="utf-8", closefd=False)  # noqa: SIM115


def _complain(message: str, exit_code: int) -> int:
    rank = os.environ.get("RANK", "0")
    if exit_code == _WRONGLY and rank.isdigit() and int(rank) > 0:
        return exit_code  # of several ranks, only the first reports the error
    if rank != "0" and not message.startswith("rank "):
        message = f"rank {rank}: {message}"
    print(f"dmmlkd: {' '.join(message.split())}", file=sys.stderr)
    return exit_code
