"""A process that was started without stdin, stdout or stderr does its work, and nothing is written into its files."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from veritune.demo import unpack

CODE = "import os; from veritune.commands.terminal import open_closed_streams as go; go(); print(os.open('.', 0))"


def shell(line: str, cwd: Path) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "TERM": "dumb"}
    return subprocess.run(
        ["bash", "-c", line, sys.executable], cwd=cwd, env=environment, capture_output=True, text=True, check=False
    )


@pytest.mark.parametrize("closed", [">&-", "<&-", "2>&-", "<&- >&- 2>&-"])
def test_a_command_without_a_stream_ends_as_with_it(tmp_path: Path, closed: str) -> None:
    unpack(tmp_path / "demo")
    done = shell(f'"$0" -m veritune status demo/study {closed}', tmp_path)
    assert (done.returncode, done.stderr) == (0, "")


def test_an_error_without_stdout_is_still_told(tmp_path: Path) -> None:
    done = shell('"$0" -m veritune status nowhere >&-', tmp_path)
    assert done.returncode == 1 and done.stderr.startswith("veritune: there is no study at nowhere.")


def test_stdin_that_is_closed_is_empty(tmp_path: Path) -> None:
    done = shell('"$0" -m veritune audit - <&-', tmp_path)
    assert (done.returncode, done.stderr) == (1, "") and "the file is empty" in done.stdout


def test_the_next_file_does_not_get_the_number_of_stdout(tmp_path: Path) -> None:
    done = shell(f'"$0" -c "{CODE}; import sys; sys.exit(os.open(\'.\', 0))" >&- <&-', tmp_path)
    assert done.returncode > 2
