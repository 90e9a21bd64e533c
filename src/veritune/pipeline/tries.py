"""Which processes worked on a run, and where: `runs/<run_id>/tries.jsonl`, written by whoever holds the run."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

from veritune.errors import FormatError
from veritune.files import disk_errors, make_folder, now, refuse_lost, whole_lines
from veritune.records import TryLine, dumps
from veritune.records.base import parse

TRIES = "tries.jsonl"
JOB_VARIABLES = ("SLURM_ARRAY_JOB_ID", "SLURM_ARRAY_TASK_ID")


def here() -> str:
    """The name of this host."""
    return platform.node()


def job_of() -> str | None:
    """The scheduler's name for this process, such as `slurm 12_3 on node-7`; None without a scheduler."""
    array, task = (os.environ.get(name) for name in JOB_VARIABLES)
    key = f"{array}_{task}" if array and task else os.environ.get("SLURM_JOB_ID")
    if not key:
        return None
    node = os.environ.get("SLURMD_NODENAME")
    return f"slurm {key}" + (f" on {node}" if node and node != here() else "")


def record_try(folder: Path, event: Literal["began", "failed", "stopped", "done"]) -> None:
    """Append one line, after removing an incomplete one that a killed process left. The caller holds the run's lock."""
    line = TryLine(event, now(), here(), os.getpid(), job_of())
    path = folder / TRIES
    make_folder(folder)
    refuse_lost(path)
    with disk_errors(path), path.open("a+b") as stream:
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write((dumps(line) + "\n").encode())
        stream.flush()
        os.fsync(stream.fileno())


def read_tries(folder: Path) -> list[TryLine]:
    """All lines, oldest first; empty if the file is missing or unreadable, because it is only informative."""
    path = folder / TRIES
    try:
        lines = whole_lines(path.read_text("utf-8"), torn=False)
        return [parse(TryLine, line.encode(), str(path)) for line in lines]
    except (FileNotFoundError, UnicodeDecodeError, FormatError):
        return []


def lost_tries(tries: Sequence[TryLine], *, over: bool) -> list[TryLine]:
    """Tries that ended without a record: the process was killed, or its host was lost.

    `over`: no process holds the run and it is not done, so a last try without a later line is lost too.
    """
    begun: dict[tuple[str, int], TryLine] = {}
    lost: list[TryLine] = []
    for line in tries:
        if line.event == "done":
            begun = {}
            continue
        if line.event != "began":
            begun.pop((line.host, line.pid), None)
            continue
        lost += begun.values()  # a run has one holder: who began before and said nothing since is gone
        begun = {(line.host, line.pid): line}
    return lost + (list(begun.values()) if over else [])


def name_try(line: TryLine) -> str:
    """A try's name: `process 12 on host-a (slurm 7_1)`."""
    return f"process {line.pid} on {line.host}" + (f" ({line.job})" if line.job else "")
