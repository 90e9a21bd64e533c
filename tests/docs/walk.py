"""Runs the commands of a documentation page, in order, and compares what they print with what the page shows.

A page is Markdown. Every fence is run in one scratch folder:

    ```bash      run by bash; a `text` fence right after it is what the reader is told to expect
    ```python    run by Python
    ```text      expected output: its lines stand in the output in this order; `…` stands for anything

`<!-- exit 2 -->` before a fence: the exit status expected (0 without it). `<!-- file NAME -->` before a fence: its text
is written to NAME and not run. `<!-- shown -->` before a fence: shown to the reader, not run, for a stated reason.
"""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

FENCE = re.compile(
    r"(?:^<!-- (?P<mark>[^>]*?) -->\n)?^```(?P<language>\w+)[^\n]*\n(?P<body>.*?)^```$", re.MULTILINE | re.DOTALL
)
RUN = ("bash", "python")


@dataclass(frozen=True)
class Step:
    """One fence: `language`, `body`, the comment before it, and the line of the page where it starts (from 1)."""

    language: str
    body: str
    mark: str
    line: int


class PageFault(AssertionError):
    """A command of a page ended otherwise than the page says."""


def steps(page: str) -> Iterator[Step]:
    """The fences of a page, in order."""
    for m in FENCE.finditer(page):
        yield Step(m["language"], m["body"], (m["mark"] or "").strip(), page.count("\n", 0, m.start("body")))


def missing_line(expected: str, output: str) -> str | None:
    """The first expected line that does not stand in the output after the line before it; None where all do."""
    lines = iter(output.splitlines())
    for wanted in filter(str.strip, expected.splitlines()):
        pattern = ".*".join(re.escape(part) for part in wanted.strip().split("…"))
        if not any(re.fullmatch(pattern, line.strip()) for line in lines):
            return wanted
    return None


def walk(page: Path, folder: Path, environment: dict[str, str] | None = None, timeout_s: float = 1800) -> int:
    """Run a page in `folder`; the number of fences that ran. Raises PageFault with page, line and output."""
    shim = folder / ".bin"
    shim.mkdir()
    (shim / "veritune").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} -m veritune "$@"\n')
    (shim / "python").write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} "$@"\n')
    for command in shim.iterdir():
        command.chmod(0o755)
    env = {**os.environ, **(environment or {}), "COLUMNS": "120", "PATH": f"{shim}{os.pathsep}{os.environ['PATH']}"}
    ran, output, last = 0, "", None
    for step in steps(page.read_text(encoding="utf-8")):
        where = f"{page.name}, line {step.line}"
        if step.mark.startswith("file "):
            target = folder / step.mark.removeprefix("file ").strip()
            target.parent.mkdir(parents=True, exist_ok=True)
            target.write_text(step.body, encoding="utf-8")
        elif step.mark.startswith("shown"):
            output, last = "", None
        elif step.language == "text" and last is not None:
            if gone := missing_line(step.body, output):
                raise PageFault(f"{where}: expected the line\n  {gone}\nin the output of\n{last.body}\n{output}")
            last = None
        elif step.language in RUN:
            output = _run(step, folder, env, timeout_s, where)
            ran, last = ran + 1, step
    return ran


def _run(step: Step, folder: Path, env: dict[str, str], timeout_s: float, where: str) -> str:
    command = ["bash", "-euo", "pipefail", "-c", step.body]
    if step.language == "python":
        command = [sys.executable, "-c", step.body]
    wanted = int(step.mark.removeprefix("exit ")) if step.mark.startswith("exit ") else 0
    done = subprocess.run(command, cwd=folder, env=env, capture_output=True, text=True, timeout=timeout_s, check=False)
    output = done.stdout + done.stderr
    if done.returncode != wanted:
        raise PageFault(f"{where}: exit status {done.returncode}, the page says {wanted}\n{step.body}\n{output}")
    return output
