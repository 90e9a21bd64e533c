"""The entry point of the command line, and the only place that changes the process or catches errors.

Exit codes: 0 fine; 1 the user's input or environment; 2 a gate failed or a claim is not supported (exits.py).
"""

from __future__ import annotations

import os
import sys

from veritune import machine
from veritune.commands.app import app
from veritune.commands.exits import USER
from veritune.errors import VerituneError

INTERRUPTED = 130
"""What typer returns after Ctrl-C."""


def main() -> None:
    """Run the command line: one line on the screen for an error, the traceback with `--debug`."""
    machine.set_up_process()
    try:
        code = app(sys.argv[1:] or ["--help"], prog_name="veritune", standalone_mode=False)
    except VerituneError as exc:
        if "--debug" in sys.argv:
            raise
        print(f"veritune: {' '.join(str(exc).split())}", file=sys.stderr)
        sys.exit(exc.exit_code)
    except BrokenPipeError:
        # The reader left (`veritune ... | head`). Python would complain when it flushes stdout at exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(USER)
    except Exception as exc:
        if not hasattr(exc, "format_message"):  # what typer raises for a wrong command line; its class is not public
            raise
        print(f"veritune: {exc.format_message()} See `veritune --help`.", file=sys.stderr)
        sys.exit(USER)
    if code == INTERRUPTED:
        print("veritune: stopped. What was finished is on disk; the same command goes on from there.", file=sys.stderr)
    sys.exit(code if isinstance(code, int) else 0)
