"""Writes docs/cli.md from every command's --help.   python docs/make_cli.py [--check]"""

from __future__ import annotations

import sys
from pathlib import Path

from typer.testing import CliRunner

from veritune.commands.app import app, commands
from veritune.errors import EXIT_CODES

OUT = Path(__file__).with_name("cli.md")
ABOUT = """\
`veritune` and `python -m veritune` are the same command. `--json` prints one JSON document on every command that reports,
`--out` writes to a file, `--study` names a study where it is not the argument; a repeated option says so. `--debug`, anywhere
on the line, shows the traceback of an error.

## Exit codes

{codes}

## Completion

    veritune --install-completion          # bash, zsh, fish or PowerShell: the shell that runs now
    veritune --show-completion             # prints the script, to read or to keep elsewhere

Commands, options and the values of options that have a fixed set complete. Open a new shell afterwards.
"""


def text() -> str:
    """The whole page."""
    runner = CliRunner(env={"COLUMNS": "100", "TERM": "dumb", "NO_COLOR": "1"})
    parts = ["# Command line\n\nMade from `--help` by `make docs`; do not edit.\n"]
    rows = [f"| {int(code)} | {meaning} |" for code, meaning in EXIT_CODES.items()]
    parts.append(ABOUT.format(codes="\n".join(["| code | meaning |", "| --- | --- |", *rows])))
    parts.append(_section(runner, []))
    parts += [_section(runner, name.split()) for name in commands()]
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
