"""Veritune's checks as pytest items: every line of a file `*.veritune` is a command, and its exit status the outcome.

    # checks.veritune: run in this folder, a command a line
    audit data/train.jsonl --eval data/exam.jsonl --fail-on contamination,duplicates
    compare tuned=runs/tuned.jsonl base=runs/base.jsonl --fail-unless not_worse --margin 0.02
    gate study --condition all_layer
    lint README.md --study study

pytest finds this module by its entry point; it imports nothing of the library, and runs `python -m veritune` for each
line, so that a check reads the same in a pipeline and in a terminal. The fixture `veritune` does that in a test.
"""

from __future__ import annotations

import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

SUFFIX = ".veritune"


class CheckFailed(Exception):
    """A command ended with a status other than 0; the text is its output."""


class CheckItem(pytest.Item):
    """One command line in a file of checks."""

    command: tuple[str, ...] = ()

    def runtest(self) -> None:
        """Run the command in the file's folder. Raises CheckFailed if its exit status is not 0."""
        done = run_command(self.command, self.path.parent)
        if done.returncode:
            what = "does not pass" if done.returncode == 2 else f"ended with status {done.returncode}"
            raise CheckFailed(f"veritune {shlex.join(self.command)} {what}\n\n{done.stdout}{done.stderr}".rstrip())

    def repr_failure(self, excinfo: pytest.ExceptionInfo[BaseException], style: str | None = None) -> str:
        """The command's output, without a traceback."""
        if isinstance(excinfo.value, CheckFailed):
            return str(excinfo.value)
        return str(super().repr_failure(excinfo))

    def reportinfo(self) -> tuple[Path, None, str]:
        """The file and the line's text."""
        return self.path, None, self.name


class CheckFile(pytest.File):
    """A file of checks: one `veritune` command per line."""

    def collect(self) -> Iterator[pytest.Item]:
        """One item for each line that is not a comment. Raises CollectError for a line that cannot be parsed as a
        command.
        """
        for number, line in enumerate(self.path.read_text(encoding="utf-8").splitlines(), start=1):
            try:
                words = shlex.split(line, comments=True)
            except ValueError as exc:
                raise self.CollectError(f"{self.path}:{number}: {exc}: {line}") from exc
            if not words:
                continue
            item = CheckItem.from_parent(self, name=f"line {number} [{shlex.join(words)}]")
            item.command = tuple(words)
            yield item


def run_command(words: tuple[str, ...], folder: Path) -> subprocess.CompletedProcess[str]:
    """Run `veritune WORDS` in a folder and return the result, with its output as text."""
    command = [sys.executable, "-m", "veritune", *words]
    return subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)


class Checker:
    """The type of the fixture `veritune`: call it with the words of a command.

    >>> Checker(Path()).folder.is_dir()
    True
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def __call__(self, *words: str | Path) -> str:
        """Run the command in the test's folder and return its output. Fails the test where it does not pass."""
        done = run_command(tuple(map(str, words)), self.folder)
        if done.returncode:
            said = f"veritune {shlex.join(map(str, words))}: exit status {done.returncode}\n{done.stdout}{done.stderr}"
            pytest.fail(said, pytrace=False)
        return done.stdout


def pytest_collect_file(file_path: Path, parent: pytest.Collector) -> pytest.Collector | None:
    """Collect files named `*.veritune`."""
    return CheckFile.from_parent(parent, path=file_path) if file_path.suffix == SUFFIX else None


@pytest.fixture
def veritune(request: pytest.FixtureRequest) -> Checker:
    """A fixture that runs a Veritune command in the test file's folder and fails the test if the command fails."""
    return Checker(request.path.parent)
