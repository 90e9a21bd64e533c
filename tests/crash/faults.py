"""Run a command with a fault at each of its file operations, give it again, and hold the outcome against no fault.

`VERITUNE_CRASH=all` tries every operation; without it a sample spread over them is tried, the first and last included.
"""

from __future__ import annotations

import os
import random
import signal
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

KINDS = ("kill", "ENOSPC", "EIO")
SAMPLED = 3
"""Operations tried of each command and kind in a sample, so that all commands together stay under a minute."""


@dataclass(frozen=True)
class Command:
    """A command under test. `fresh(i)` makes the i-th folder to run it in; `argv(folder)` is the command line.

    `whole` asserts that the command has done its work there; `half` asserts what must hold after any fault.
    """

    fresh: Callable[[int], Path]
    argv: Callable[[Path], Sequence[object]]
    whole: Callable[[Path], None]
    half: Callable[[Path], None]
    codes: tuple[int, ...] = (0,)


def try_every_fault(forks: Any, command: Command, tmp_path: Path) -> dict[str, int]:
    """Number of faults survived by kind."""
    done = tmp_path / "done.json"

    def run(folder: Path, kind: str, at: int) -> Any:
        fault = {"kind": kind, "at": at, "roots": [str(folder)], "done": str(done)}
        return forks(*command.argv(folder), fault=fault)

    folder = command.fresh(0)
    straight = run(folder, "none", 0)
    assert straight.rc in command.codes, straight.err
    command.whole(folder)
    operations = _operations(done)
    survived = dict.fromkeys(KINDS, 0)
    tried = [(kind, at) for kind in KINDS for at in _points(kind, len(operations))]
    for number, (kind, at) in enumerate(tried, start=1):
        folder = command.fresh(number)
        where = f"{kind} at {at}: {operations[at - 1]}"
        broken = run(folder, kind, at)
        if kind == "kill":
            assert broken.rc == -signal.SIGKILL, f"{where}: not reached\n{broken.err}"
        else:
            assert broken.rc in (*command.codes, 1), f"{where}\n{broken.err}"
            assert "Traceback" not in broken.err, f"{where}\n{broken.err}"
        _asserted(command.half, folder, where)
        again = forks(*command.argv(folder))
        assert again.rc in command.codes, f"{where}, given again\n{again.err}"
        _asserted(command.whole, folder, where)
        survived[kind] += 1
    return survived


def _asserted(check: Callable[[Path], None], folder: Path, where: str) -> None:
    try:
        check(folder)
    except AssertionError as exc:
        raise AssertionError(f"{where}: {exc}") from exc


def _operations(done: Path) -> list[str]:
    import json

    operations: list[str] = json.loads(done.read_text("utf-8"))
    assert operations, "no file operation was seen"
    return operations


def _points(kind: str, n: int) -> list[int]:
    if os.environ.get("VERITUNE_CRASH") == "all" or n <= SAMPLED:
        return list(range(1, n + 1))
    inside = random.Random(f"{kind} {n}").sample(range(2, n), SAMPLED - 2)
    return sorted([1, n, *inside])


def leftovers(folder: Path) -> list[str]:
    """Temporary and staged files that nobody will look at again."""
    return [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".partial", ".next", ".tmp-folder"))]
