"""Writes docs/cli.md from every command's --help.   python docs/make_cli.py [--check]"""

from __future__ import annotations

import sys
from pathlib import Path

import typer.main
from typer.testing import CliRunner

from veritune.commands.app import app

OUT = Path(__file__).with_name("cli.md")
ABOUT = """\
`veritune` and `python -m veritune` are the same command. `veritune --install-completion` sets up completion of commands
and options for bash, zsh, fish or PowerShell. Exit codes: 0 fine; 1 the user's input or environment; 2 a gate failed or
a claim is not supported.
"""


def text() -> str:
    """The whole page."""
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    parts = ["# Command line\n\nMade from `--help` by `make docs`; do not edit.\n"]
    parts.append(ABOUT)
    command = typer.main.get_command(app)
    parts.append(_section(runner, []))
    names = sorted(command.commands)  # type: ignore[attr-defined]
    for name in names:
        parts.append(_section(runner, [name]))
        for sub in sorted(getattr(command.commands[name], "commands", {})):  # type: ignore[attr-defined]
            parts.append(_section(runner, [name, sub]))
    return "\n".join(parts)


def _section(runner: CliRunner, path: list[str]) -> str:
    result = runner.invoke(app, [*path, "--help"], prog_name="veritune")
    title = " ".join(["veritune", *path])
    body = "\n".join(line.rstrip() for line in result.output.strip().splitlines())
    return f"## `{title}`\n\n```text\n{body}\n```\n"


def main() -> None:
    page = text()
    if "--check" in sys.argv:
        sys.exit(OUT.read_text(encoding="utf-8") != page)
    OUT.write_text(page, encoding="utf-8")
    print(f"wrote {OUT}")


if __name__ == "__main__":
    main()
