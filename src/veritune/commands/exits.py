"""The exit codes: 0 fine; 1 the user's input or environment; 2 a gate failed or a claim is not supported."""

from __future__ import annotations

import typer

USER = 1
NOT_PASSED = 2


def exit_unless(passed: bool, code: int = NOT_PASSED) -> None:
    """End the command with `code` where something did not pass."""
    if not passed:
        raise typer.Exit(code)
