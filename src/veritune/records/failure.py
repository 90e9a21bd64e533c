"""`runs/<run_id>/failed.json`: why a run's last try ended; `tries.jsonl`: which processes worked on it, and where."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

from veritune.records.base import Line, Record


@dataclass(frozen=True, slots=True)
class FailedRun(Record):
    """The error that ended a run at `time`, as shown on the screen, and its host (absent in old files)."""

    input_hash: str
    time: str
    error: str
    host: str | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("host",)


@dataclass(frozen=True, slots=True)
class TryLine(Line):
    """A line that says that a process started work on a run, or ended it with an error (`failed`) or because it was
    told to (`stopped`).

    `done`: the run had already finished, and this process resumed it to score other evals.

    One that has begun and neither line nor summary after it ended without a word: it was killed, or its host was lost.
    `job` is the scheduler's own name for it: a Slurm job id, a Ray node; None where nobody scheduled it.
    """

    event: Literal["began", "failed", "stopped", "done"]
    time: str
    host: str
    pid: int
    job: str | None
