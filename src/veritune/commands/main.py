"""The entry point of the command line, and the only place that changes the process or catches errors.

The exit codes stand in `veritune.errors.ExitCode`.
"""

from __future__ import annotations

import os
import sys
import traceback
from pathlib import Path

from veritune import machine
from veritune.commands.app import app, called
from veritune.commands.terminal import open_closed_streams, plain_streams
from veritune.errors import ExitCode, VerituneError, describe_os_error, first_line
from veritune.extras import missing

STOPPED = "veritune: stopped. Finished work is on disk; run the same command again to resume."
PACKAGE = Path(__file__).resolve().parents[1]


def main() -> None:
    """Run the command line. An error prints one line; after `--debug`, the traceback with every cause."""
    debug = "--debug" in sys.argv
    open_closed_streams()
    with plain_streams():
        try:
            machine.set_up_process()
            code = app([a for a in sys.argv[1:] if a != "--debug"] or ["--help"], prog_name="veritune",
                       standalone_mode=False)  # fmt: skip
            sys.stdout.flush()  # a full disk under `> FILE` is an error of this command, not of Python's exit
        except BrokenPipeError:
            _let_go()
            sys.exit(ExitCode.USER)
        except machine.Terminated:
            print(STOPPED, file=sys.stderr)
            sys.exit(ExitCode.TERMINATED)
        except Exception as exc:
            if debug and not hasattr(exc, "format_message"):
                _show_causes(exc)
                raise
            line, code = describe(missing(exc, called(sys.argv[1:])) or exc)
            print(f"veritune: {' '.join(line.split())}", file=sys.stderr)
            if isinstance(exc, OSError):
                _let_go()
            sys.exit(code)
        if code == ExitCode.INTERRUPTED:  # what typer returns after Ctrl-C
            print(STOPPED, file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)


def describe(exc: Exception) -> tuple[str, int]:
    """An error as one line for the user, and the exit code."""
    if isinstance(exc, VerituneError):
        return str(exc), exc.exit_code
    if hasattr(exc, "format_message"):  # what typer raises for a wrong command line; its class is not public
        return f"{exc.format_message()} See `veritune --help`.", ExitCode.USER
    if isinstance(exc, OSError):
        return " ".join(describe_os_error(exc)), ExitCode.USER
    if isinstance(exc, MemoryError):
        return "the machine has too little memory for this command. Free some, or use smaller files.", ExitCode.USER
    if isinstance(exc, RecursionError):
        return (
            f"a file nests too deeply{_place(exc)}. Find the file with `veritune verify`, or give one that nests less.",
            ExitCode.USER,
        )
    what = f"unexpected {type(exc).__name__}: {first_line(exc)}{_place(exc)}"
    return (
        f"{what}. A record may be damaged: run `veritune verify STUDY` to find it. If none is, this is a bug in "
        "Veritune: run the command again with --debug and report the output.",
        ExitCode.USER,
    )


def _place(exc: BaseException) -> str:
    """Where in this package an error arose, as ` (pipeline/plan.py:120)`; empty where it is none of ours."""
    ours = [f for f in traceback.extract_tb(exc.__traceback__) if Path(f.filename).is_relative_to(PACKAGE)]
    return f" ({Path(ours[-1].filename).relative_to(PACKAGE)}:{ours[-1].lineno})" if ours else ""


def _show_causes(exc: BaseException) -> None:
    """Have the traceback show what an error was made from, also where `raise ... from None` left it out."""
    cause: BaseException | None = exc
    while cause is not None:
        if cause.__cause__ is None:
            cause.__suppress_context__ = False
        cause = cause.__cause__ or cause.__context__


def _let_go() -> None:
    """Give up stdout: its reader left, or its disk is full, and Python would complain when it flushes it at exit."""
    try:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except (OSError, AttributeError, ValueError):
        return
