"""Run a command with a fault at each of its file operations, give it again, and hold the outcome against no fault.

`VERITUNE_CRASH=all` tries every operation, `VERITUNE_CRASH=20` that many of each kind; without it a small sample is
tried, the first and last operation included.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import signal
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

_spec = importlib.util.spec_from_file_location("power", Path(__file__).with_name("power.py"))
assert _spec and _spec.loader
power = importlib.util.module_from_spec(_spec)
sys.modules["power"] = power
_spec.loader.exec_module(power)

KINDS = ("kill", "ENOSPC", "EIO")
SAMPLED = 2
"""Operations tried of each command and kind in a sample, so that all commands together stay under a minute."""


@dataclass(frozen=True)
class Command:
    """A command under test. `fresh(i)` makes the i-th folder to run it in; `argv(folder)` is the command line.

    `whole` asserts that the command has done its work there; `half` asserts what must hold after any fault. `name` is
    what the table of faults calls it.
    """

    name: str
    fresh: Callable[[int], Path]
    argv: Callable[[Path], Sequence[object]]
    whole: Callable[[Path], None]
    half: Callable[[Path], None]
    codes: tuple[int, ...] = (0,)


def try_every_fault(forks: Any, command: Command, tmp_path: Path) -> dict[str, int]:
    """Number of faults survived by kind; `forks.tally` counts them beside those that were tried."""
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
        forks.tally.try_one(command.name, "faults", of=len(KINDS) * len(operations))
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
        forks.tally.survive_one(command.name, "faults")
    return survived


def try_every_power_loss(forks: Any, command: Command, tmp_path: Path) -> dict[str, int]:
    """Number of power cuts survived by kind of disk: the command is given again on what was left of its folder."""
    folder, done = command.fresh(0), tmp_path / "journal.json"
    fault = {"kind": "journal", "at": 0, "roots": [str(folder)], "done": str(done)}
    straight = forks(*command.argv(folder), fault=fault)
    assert straight.rc in command.codes, straight.err
    journal = json.loads(done.read_text("utf-8"))
    assert any(entry["do"] == "fsync" for entry in journal), "nothing was flushed"
    survived = dict.fromkeys(power.DISKS, 0)
    tried = [(disk, at) for disk in power.DISKS for at in _points(disk, len(journal))]
    for number, (disk, at) in enumerate(tried, start=1):
        folder = command.fresh(number)
        forks.tally.try_one(command.name, "power cuts", of=len(power.DISKS) * len(journal))
        power.lose_power(folder, journal, at, disk)
        where = f"{disk} disk, power lost after {at}: {journal[at - 1]['do']} {journal[at - 1]['path']}"
        _asserted(command.half, folder, where)
        again = forks(*command.argv(folder))
        assert again.rc in command.codes, f"{where}, given again\n{again.err}"
        _asserted(command.whole, folder, where)
        survived[disk] += 1
        forks.tally.survive_one(command.name, "power cuts")
    return survived


def every_power_cut(forks: Any, command: Command, tmp_path: Path) -> int:
    """Number of power cuts after which `half` holds: after every operation, on every disk. Nothing is given again, so
    that all of them take seconds."""
    folder, done, left = command.fresh(0), tmp_path / "every.json", tmp_path / "left"
    fault = {"kind": "journal", "at": 0, "roots": [str(folder)], "done": str(done)}
    before = tmp_path / "before"
    shutil.copytree(folder, before)
    straight = forks(*command.argv(folder), fault=fault)
    assert straight.rc in command.codes, straight.err
    command.whole(folder)
    journal = json.loads(done.read_text("utf-8"))
    for disk in power.DISKS:
        for at in range(1, len(journal) + 1):
            shutil.copytree(before, left)
            forks.tally.try_one(command.name, "power cuts", of=len(power.DISKS) * len(journal))
            power.lose_power(left, journal, at, disk)
            where = f"{journal[at - 1]['do']} {journal[at - 1]['path']}"
            _asserted(command.half, left, f"{disk} disk, power lost after {at}: {where}")
            forks.tally.survive_one(command.name, "power cuts")
            shutil.rmtree(left)
        shutil.copytree(before, left)
        power.lose_power(left, journal, len(journal), disk)
        _asserted(command.whole, left, f"{disk} disk, power lost after the command")
        shutil.rmtree(left)
    return len(power.DISKS) * len(journal)


def _asserted(check: Callable[[Path], None], folder: Path, where: str) -> None:
    try:
        check(folder)
    except AssertionError as exc:
        raise AssertionError(f"{where}: {exc}") from exc


def _operations(done: Path) -> list[str]:
    operations: list[str] = json.loads(done.read_text("utf-8"))
    assert operations, "no file operation was seen"
    return operations


def _points(kind: str, n: int) -> list[int]:
    asked = os.environ.get("VERITUNE_CRASH", "")
    sampled = n if asked == "all" else int(asked or SAMPLED)
    if n <= sampled:
        return list(range(1, n + 1))
    inside = random.Random(f"{kind} {n}").sample(range(2, n), sampled - 2)
    return sorted([1, n, *inside])


def leftovers(folder: Path) -> list[str]:
    """Temporary and staged files that nobody will look at again."""
    return [p.name for p in folder.rglob("*") if p.name.endswith((".tmp", ".partial", ".next", ".tmp-folder"))]
