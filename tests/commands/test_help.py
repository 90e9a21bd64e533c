"""The command line as one meets it: help, completion, one name for one thing, options that exclude each other."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer.main
from typer.testing import CliRunner

from veritune.commands.app import NAME_WIDTH, SECTIONS, app, commands, full_name
from veritune.errors import EXIT_CODES, ExitCode

MOST_COMMANDS = 50


def every() -> Iterator[tuple[str, Any]]:
    """Every command under its full name."""
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        inner = getattr(command, "commands", {})
        yield from [(f"{name} {sub}", c) for sub, c in inner.items()] or [(name, command)]


def options(command: Any) -> list[str]:
    return [p.opts[0] for p in command.params if p.param_type_name == "option" and p.name != "help"]


def help_text(colour: bool) -> str:
    env = {"COLUMNS": "80", "TERM": "xterm-256color" if colour else "dumb", **({} if colour else {"NO_COLOR": "1"})}
    return CliRunner(env=env).invoke(app, ["--help"], color=colour).output


@pytest.mark.parametrize("colour", [True, False])
def test_the_help_lists_every_command_in_its_section_within_80_columns(colour: bool) -> None:
    lines = re.sub(r"\x1b\[[0-9;]*m", "", help_text(colour)).splitlines()
    assert max(map(len, lines)) <= 80
    titles = [line.rstrip(":") for line in lines if line.rstrip(":") in SECTIONS]
    assert titles == list(SECTIONS) and titles[0] == "Daily"
    for title, (group, members) in SECTIONS.items():
        after = lines[lines.index(f"{title}:") + 1 :]
        for line, (command, words) in zip(after, members.items()):
            assert line == f"  {full_name(group, command):{NAME_WIDTH}}  {words}"


def test_every_command_is_in_the_help_once() -> None:
    names = [name for name, _ in every()]
    assert sorted(names) == sorted(commands()) and len(names) == len(set(names)) <= MOST_COMMANDS


def test_one_thing_has_one_name() -> None:
    """Where several commands take a thing, they call it the same; these words were in use for it before."""
    other = {
        "--why": "--reason", "--licence": "--license", "--max-tokens": "--max-new-tokens", "--folder": "--out",
        "--ray-address": "--address", "--svg": "--plot", "--html": "--page", "--key": "--sign", "--output": "--out",
    }  # fmt: skip
    used = {option for _, command in every() for option in options(command)}
    assert used & set(other) == set()
    assert set(other.values()) <= used


def test_every_command_that_reports_speaks_json() -> None:
    silent = {name for name, command in every() if "--json" not in options(command)}
    assert silent == {"schema", "view", "writeup draft"}, "schema prints JSON, view serves pages, a draft is a text"


def test_the_exit_codes_of_the_help_and_the_docs_are_those_of_the_errors() -> None:
    shown = " ".join(help_text(False).split())
    page = (Path(__file__).parents[2] / "docs" / "cli.md").read_text(encoding="utf-8")
    for code, meaning in EXIT_CODES.items():
        assert f"| {int(code)} | {meaning} |" in page
        assert (f"{int(code)} {meaning}" in shown) == (code <= ExitCode.IN_USE)


@pytest.mark.parametrize(
    ("line", "expected"),
    [("veritune wri", {"writeup"}), ("veritune probe ge", {"geometry"}), ("veritune rollback --d", {"--drill"})],
)
def test_completion_knows_commands_groups_and_options(line: str, expected: set[str]) -> None:
    env = {**os.environ, "_VERITUNE_COMPLETE": "complete_bash", "COMP_WORDS": line, "COMP_CWORD": str(line.count(" "))}
    command = [sys.executable, "-m", "veritune"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, timeout=120)
    assert set(done.stdout.split()) == expected, done.stderr


# ---------------------------------------------------------------- commands that do several things


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("gate . --waive merge --controls", "--waive and --controls exclude each other."),
        ("gate . --attest c.json --waive merge", "--attest and --waive exclude each other."),
        ("gate . --by Ada", "--by is only used with --attest or --waive."),
        ("gate . --until 2030-01-01 --controls", "--reason and --until can only be used with --waive."),
        ("gate . --candidate a.jsonl", "--candidate and --base can only be used with --attest."),
        ("promote --registry r --to staging", "expected either a bundle or --require-signature."),
        (
            "promote b --registry r --to staging --require-signature k",
            "expected either a bundle or --require-signature.",
        ),
        (
            "promote --registry r --to staging --require-signature none --require-signature k.pub",
            "--require-signature was given both keys and `none`.",
        ),
        ("rollback", "expected --registry or --drill, found neither."),
        ("rollback b --registry r", "a bundle and --study can only be given with --drill."),
        ("rollback --drill", "--drill: expected one or two bundles, found 0."),
        ("rollback a b c --drill", "--drill: expected one or two bundles, found 3."),
        ("rollback b --drill --registry r", "--drill works in a scratch registry, which it makes itself."),
        ("push . --to hf://a/b --license mit", "--license, --columns and --eval can only be used with a data file."),
        ("lineage . --successor b.jsonl", "--successor and --columns need --retire."),
        ("audit . --sharded --out x --family-decisions d.jsonl", "--family-decisions needs all rows in memory"),
        ("audit . --sharded --out x --fail-on leak", "--fail-on needs all rows in memory"),
        ("doctor --no-guard", "--no-guard can only be used with --selftest."),
        ("report . --out p.md", "--out needs --probes: it writes their blocks to a file."),
        ("writeup export table.x --like gap", "--like filters the list of names, but a table was named."),
        (
            "probe calibration --data x.csv --extract a",
            "--adapter, --extract, --max-new-tokens and --template-kwargs need a model to ask, but --model is missing.",
        ),
        ("probe calibration --data x --model m --correct c", "--confidence and --correct read a table"),
        (
            "probe gap --model m --adapter a --seen s --stranger t --page p.html",
            "--page shows tokens, which were not measured.",
        ),
        (
            "merge-parity --model m --adapter a --export a.gguf --export b.gguf",
            "--export b.gguf: expected at most one folder of shards and one .gguf file.",
        ),
    ],
)
def test_an_option_of_another_mode_is_refused(forks: Any, arguments: str, message: str) -> None:
    done = forks(*arguments.split())
    assert done.rc == 1 and message in done.err and done.err.count("\n") == 1, done.err
    assert done.out == ""
