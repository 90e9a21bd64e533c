"""No command ends in a traceback, whatever a record holds and whatever the system answers: one line, exit code 1.

Every command that reads a study meets files of every kind, damaged in one of the ways below, and files whose opening
fails with an error of the system: a quarter of the files each, in one way. `make test-crash` tries all of them.
"""

from __future__ import annotations

import builtins
import errno
import hashlib
import io
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from veritune.commands.main import describe, main
from veritune.errors import VerituneError, describe_os_error

EVERYTHING = os.environ.get("VERITUNE_CRASH") == "all"


def trained(root: Path) -> str:
    return sorted((root / "runs").glob("all_layer-s0*"))[0].name


COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "status": lambda root: ["status", root],
    "status --cells": lambda root: ["status", root, "--cells"],
    "verify": lambda root: ["verify", root],
    "gate --controls": lambda root: ["gate", root, "--controls"],
    "gate": lambda root: ["gate", root, "--condition", "all_layer"],
    "report": lambda root: ["report", root],
    "writeup draft": lambda root: ["writeup", "draft", root],
    "lint": lambda root: ["lint", root / "study.yaml", "--study", root],
    "compare": lambda root: ["compare", *sorted(root.glob("runs/*/scores/style.jsonl"))[:2]],
    "report --probes": lambda root: ["report", root, "--probes"],
    "freeze": lambda root: ["freeze", root, "--quiet"],
    "work": lambda root: ["work", root, sorted((root / "runs").iterdir())[0].name, "--quiet"],
    "amend": lambda root: ["amend", root, "--reason", "why"],
    "verify --sign": lambda root: ["verify", root, "--sign", root / "study.yaml"],
    "bundle": lambda root: ["bundle", root, "--run", trained(root), "--out", root / "b"],
}  # fmt: skip
ARM = "runs/all_layer-s0-*"
FILES = (
    *("study.yaml", "contract.lock.json", "events.jsonl", "seal.json", "plan.json", "verdict.json", "rows.jsonl"),
    *("data/*/rows.parquet", "data/*/split.parquet", "data/*/families.parquet", "data/*/manifest.json"),
    *("audit/split.json", "audit/contamination.json", "audit/render.json", "audit/live-all_layer.json"),
    *(f"{ARM}/manifest.json", f"{ARM}/metrics.jsonl", f"{ARM}/telemetry.jsonl", f"{ARM}/training.json"),
    *(f"{ARM}/summary.json", f"{ARM}/scores/style.jsonl", f"{ARM}/scores/style.json", f"{ARM}/probes/nll.json"),
    f"{ARM}/checkpoints/*/adapter_config.json",
)


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def linked_to_itself(path: Path) -> None:
    path.unlink()
    path.symlink_to(path)


DAMAGES: dict[str, Callable[[Path], Any]] = {
    "empty": lambda path: path.write_bytes(b""),
    "half": lambda path: path.write_bytes(path.read_bytes()[: path.stat().st_size // 2]),
    "another object": lambda path: path.write_bytes(b'{"entries": [{"hash": 1}], "files": [], "cells": 3}\n'),
    "a list": lambda path: path.write_bytes(b"[1, [2]]\n"),
    "no text": lambda path: path.write_bytes(b"\xff\xfe\x00\x80" * 9),
    "deep": lambda path: path.write_bytes(b'{"a":' * 3000 + b"1" + b"}" * 3000),
    "a surrogate": lambda path: path.write_bytes(b'{"run_id": "\\ud83d", "event": "\\udc00"}\n'),
    "not finite": lambda path: path.write_bytes(b'{"value": NaN, "loss": 1e999}\n'),
    "gone": lambda path: path.unlink(),
    "a folder": as_folder,
    "a loop": linked_to_itself,
}


@pytest.fixture
def told(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> Callable[[list[object]], tuple[int, str]]:
    """Runs a command line in this process: exit code and what stderr said. An exception that gets out fails."""

    def run(argv: list[object]) -> tuple[int, str]:
        monkeypatch.setattr("sys.argv", ["veritune", *map(str, argv)])
        capsys.readouterr()
        with pytest.raises(SystemExit) as stopped:
            main()
        return int(stopped.value.code or 0), capsys.readouterr().err

    return run


def damages(command: str, file: str) -> list[str]:
    """All of them, or one that command and file pick, so that a sample meets each of them often."""
    if EVERYTHING:
        return list(DAMAGES)
    return [list(DAMAGES)[int(hashlib.sha256(f"{command} {file}".encode()).hexdigest(), 16) % len(DAMAGES)]]


def files_of(command: str) -> list[str]:
    """All of them, or every fourth from a place that the command picks."""
    return list(FILES if EVERYTHING else FILES[len(command) % 4 :: 4])


def assert_one_line(code: int, err: str, where: str) -> None:
    assert code in (0, 1, 2), f"{where}: exit code {code}\n{err}"
    assert "Traceback" not in err, f"{where}\n{err}"
    if code == 1:
        last = err.strip().splitlines()[-1]
        assert last.startswith("veritune: "), f"{where}\n{err}"
        assert "unexpected" not in last or "A record may be damaged" in last, where


@pytest.mark.parametrize("command", COMMANDS)
def test_no_damaged_file_ends_a_command_in_a_traceback(command: str, finished: Any, tmp_path: Path, told: Any) -> None:
    root = tmp_path / "study"
    shutil.copytree(finished.root, root)
    for file in files_of(command):
        (path,) = sorted(root.glob(file))[:1]
        for damage in damages(command, file):
            argv, before = COMMANDS[command](root), path.read_bytes()
            DAMAGES[damage](path)
            assert_one_line(*told(argv), f"{command}, {file} {damage}")
            if path.is_dir() and not path.is_symlink():
                path.rmdir()
            else:
                path.unlink(missing_ok=True)
            path.write_bytes(before)
        if command in ("freeze", "work", "amend", "bundle"):  # may have begun to change records
            shutil.rmtree(root)
            shutil.copytree(finished.root, root)


ERRNOS = (
    errno.EIO,
    errno.EACCES,
    errno.ENAMETOOLONG,
    errno.ELOOP,
    errno.EMFILE,
    errno.ESTALE,
    errno.ENOTDIR,
    errno.ENXIO,
)


@pytest.fixture
def failing(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[Path, int], None]]:
    """`failing(path, number)`: from now on opening the file fails with this error of the system."""
    chosen: dict[str, int] = {}
    real = io.open

    def opened(file: Any, *args: Any, **kwargs: Any) -> Any:
        code = chosen.get(os.fspath(file)) if isinstance(file, str | os.PathLike) else None
        if code is not None:
            raise OSError(code, os.strerror(code), os.fspath(file))
        return real(file, *args, **kwargs)

    monkeypatch.setattr(io, "open", opened)
    monkeypatch.setattr(builtins, "open", opened)

    def choose(path: Path, code: int) -> None:
        chosen.clear()
        chosen[str(path)] = code

    yield choose
    chosen.clear()


ON_BROKEN_DISKS = ("status", "verify", "status --cells", "gate", "report", "compare", "lint", "freeze")


@pytest.mark.parametrize("command", ON_BROKEN_DISKS)
def test_no_error_of_the_system_ends_a_command_in_a_traceback(
    command: str, finished: Any, tmp_path: Path, told: Any, failing: Any
) -> None:
    root = tmp_path / "study"
    shutil.copytree(finished.root, root)
    for number, file in enumerate(files_of(command)):
        for code in ERRNOS if EVERYTHING else [ERRNOS[(number + len(command)) % len(ERRNOS)]]:
            failing(sorted(root.glob(file))[0], code)
            assert_one_line(*told(COMMANDS[command](root)), f"{command}, {file}: {errno.errorcode[code]}")


@pytest.mark.parametrize("code", sorted(errno.errorcode))
def test_every_error_of_the_system_is_a_sentence_with_a_fix(code: int) -> None:
    line, status = describe(OSError(code, os.strerror(code), "/x/y"))
    assert status == 1 and line.endswith(".") and "\n" not in line
    assert "/x/y" in line and len(line.split(". ")) >= 2
    message, fix = describe_os_error(OSError(code, os.strerror(code)), "/a/b")
    assert "/a/b" in message and fix


@pytest.mark.parametrize(
    ("exc", "words"),
    [
        (RecursionError("maximum recursion depth exceeded"), "a file nests too deeply"),
        (MemoryError(), "the machine has too little memory"),
        (KeyError("entries"), "unexpected KeyError: 'entries'"),
        (UnicodeEncodeError("utf-8", "\ud800", 0, 1, "no"), "unexpected UnicodeEncodeError"),
        (OSError("no number"), "the operating system refused: no number"),
        (VerituneError("expected x.", fix="Do y."), "expected x. Do y."),
    ],
)
def test_other_errors_are_told_apart(exc: Exception, words: str) -> None:
    line, status = describe(exc)
    assert words in line and status == 1
