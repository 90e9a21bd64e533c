"""What a message or a page tells the user to type exists: every `--option`, every command with its options, every key
of study.yaml. Read from the source's string constants, docstrings left out, and from the code in Markdown."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import typer.main

from veritune.commands.app import app
from veritune.config.load import json_schema

ROOT = Path(__file__).resolve().parents[1]
SRC = ROOT / "src" / "veritune"
PAGES = sorted(
    [
        *(p for p in ROOT.glob("*.md") if p.name not in ("CHANGELOG.md", "LOG.md")),
        *(ROOT / "docs").rglob("*.md"),
        ROOT / "docs" / "llms.txt",
        *(ROOT / "examples").rglob("*.md"),
    ]
)

FOREIGN = {
    "lm_eval": {"--log_samples", "--predict_only"},
    "torchrun": {"--nproc_per_node", "--standalone"},
    "pip": {"--no-deps"},
    "git": {"--porcelain", "--untracked-files"},
    "sbatch, squeue, sacct": {"--array", "--format", "--jobs", "--name", "--noheader", "--test-only"},
    "vllm, llama-server, convert_hf_to_gguf": {"--host", "--port", "--device", "--jinja", "--outfile", "--outtype"},
    "a style sheet's variables": {"--ink", "--muted", "--line", "--paper", "--part-", "--s"},
}
"""Options of other programs that our texts name."""

NOT_KEYS = re.compile(
    r".*\.(json|py|parquet|sig|key|pub|safetensors.*|jsonl|html|yaml)|data\.(edited|missing|families|load)"
    r"|split\.(unknown|unplaced)|train\.telemetry|conditions\.baseline"
)
"""Dotted words that look like keys and are files, modules, findings; `conditions.baseline` is refused by one."""

OPTION = re.compile(r"(?<![\w!-])--[a-z][a-z0-9_-]*")


@cache
def options() -> dict[str, set[str]]:
    """The options of each command by its name on the command line."""
    by_name = {}
    for name, command in typer.main.get_command(app).commands.items():  # type: ignore[attr-defined]
        subs = getattr(command, "commands", {})
        for full, inner in [(f"{name} {sub}", c) for sub, c in subs.items()] or [(name, command)]:
            flags = {o for p in inner.params for o in (*p.opts, *p.secondary_opts) if o.startswith("--")}
            by_name[full] = flags | {"--help"}
    return by_name


def texts(source: str) -> Iterator[tuple[int, str]]:
    """Line and text of every string constant that is no docstring; what an f-string fills in reads `{}`."""
    tree = ast.parse(source)
    skipped: set[int] = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Module | ast.FunctionDef | ast.ClassDef) and ast.get_docstring(node) is not None:
            skipped.add(id(node.body[0].value))  # type: ignore[attr-defined]
    for node in ast.walk(tree):
        if isinstance(node, ast.JoinedStr):
            skipped |= {id(inner) for inner in ast.walk(node)}
            yield node.lineno, "".join(str(v.value) if isinstance(v, ast.Constant) else "{}" for v in node.values)
    for node in ast.walk(tree):
        if isinstance(node, ast.Constant) and isinstance(node.value, str) and id(node) not in skipped:
            yield node.lineno, node.value


def wrong_options(text: str, known: dict[str, set[str]]) -> list[str]:
    """Options in a text that no command has, and those after `veritune COMMAND` that this command lacks."""
    every = set().union(*known.values(), *FOREIGN.values(), {"--version", "--debug"})
    foreign = set().union(*FOREIGN.values()) if "{" in text else set()
    found = [option for option in OPTION.findall(text) if option not in every]
    for match in re.finditer(COMMAND, text):
        own = known.get(match[1])
        found += [f"{match[1]} {o}" for o in OPTION.findall(match[2]) if own is not None and o not in own | foreign]
    return found


COMMAND = re.compile(r"(?<![\w/.-])(?<!from )veritune ((?:probe |writeup |results )?[a-z][a-z-]*)((?:\\\n|[^`\n;|&])*)")
"""A command line in a text: its command, and the rest of it with continued lines."""


def unknown_commands(text: str, known: dict[str, set[str]]) -> list[str]:
    """What stands after `veritune` in code and is no command."""
    groups = {name.split()[0] for name in known}
    return [match[1] for match in re.finditer(COMMAND, text) if match[1] not in known and match[1] not in groups]


def code_of(page: str) -> Iterator[str]:
    """Fenced blocks, indented blocks and code spans of a Markdown page."""
    yield from re.findall(r"^```[^\n]*\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    yield from re.findall(r"(?<!`)`([^`]+)`(?!`)", page)
    yield from re.findall(r"(?:^    [^\n]*\n)+", page, re.MULTILINE)


def study_keys() -> tuple[set[str], set[str]]:
    """The top keys of study.yaml and every dotted key below them."""
    schema = json_schema()
    found: set[str] = set()

    def add(part: dict[str, Any], before: str) -> None:
        part = schema["$defs"][part["$ref"].rpartition("/")[2]] if "$ref" in part else part
        for other in part.get("anyOf", ()):
            add(other, before)
        for key, inner in part.get("properties", {}).items():
            found.add(before + key)
            if before.count(".") < 5:
                add(inner, f"{before}{key}.")

    add(schema, "")
    return {key for key in found if "." not in key}, found


@cache
def every_text() -> list[tuple[str, str]]:
    return [
        (f"{path.relative_to(SRC)}:{line}", text)
        for path in sorted(SRC.rglob("*.py"))
        for line, text in texts(path.read_text(encoding="utf-8"))
    ]


def test_every_option_that_a_message_names_exists() -> None:
    known = options()
    wrong = [f"{where} {name}" for where, text in every_text() for name in wrong_options(text, known)]
    assert wrong == []


def test_every_command_that_a_message_names_in_code_exists() -> None:
    known = options()
    spans = ((where, span) for where, text in every_text() for span in re.findall(r"`([^`]+)`", text))
    assert [f"{where} {name}" for where, span in spans for name in unknown_commands(span, known)] == []


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_command_and_option_of_a_page_exists(page: Path) -> None:
    known = options()
    blocks = list(code_of(page.read_text(encoding="utf-8")))
    lines = [match[0] for block in blocks for match in re.finditer(COMMAND, block)]
    assert [name for line in lines for name in (*unknown_commands(line, known), *wrong_options(line, known))] == []


def test_a_wrong_command_is_found() -> None:
    known = options()
    assert unknown_commands("veritune cels STUDY", known) == ["cels"]
    assert unknown_commands("veritune probe gapp --model M", known) == ["probe gapp"]
    assert unknown_commands("veritune probe --help", known) == []
    assert list(code_of("a `b` c\n\n    d e\n\n```text\nf\n```\n")) == ["f\n", "b", "    d e\n"]


def test_a_wrong_option_is_found() -> None:
    known = options()
    assert wrong_options("Choose with --filtre NAME.", known) == ["--filtre"]
    assert wrong_options("veritune power A B --fixed a", known) == ["power --fixed"]
    assert wrong_options("veritune compare A B --fixed a", known) == []


def test_every_key_of_study_yaml_that_a_message_names_exists() -> None:
    top, keys = study_keys()
    head = "|".join(sorted(top))
    word = re.compile(rf"(?<![\w./{{-])((?:{head})(?:\.[a-z_]+)+)(?![\w/(])")
    named = [(where, key) for where, text in every_text() for key in word.findall(text)]
    assert [f"{where} {key}" for where, key in named if key not in keys and not NOT_KEYS.fullmatch(key)] == []
    assert {"train.max_steps", "data.path"} <= keys and "train.steps" not in keys
