"""How a command ends without an error: with the code of `veritune.errors.ExitCode` that fits what it found."""

from __future__ import annotations

import typer

from veritune.errors import ExitCode


def exit_unless(passed: bool, code: int = ExitCode.NOT_PASSED) -> None:
    """End the command with `code` where something did not pass."""
    if not passed:
        raise typer.Exit(code)
