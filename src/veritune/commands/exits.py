"""How a command ends without an error: with the code of `veritune.errors.ExitCode` that fits what it found."""

from __future__ import annotations

import typer

from veritune.errors import ExitCode


def exit_unless(passed: bool, code: int = ExitCode.NOT_PASSED) -> None:
    """Exit with `code` unless the condition holds."""
    if not passed:
        raise typer.Exit(code)
