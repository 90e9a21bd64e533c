"""`results.jsonl`: the index of finished results over many studies, one entry a thing that was said or done.

Every entry has its `kind`, the `time` (UTC) and who wrote it (`by`); `previous` and `hash` are the chain's. What a
result is now follows from all entries in their order: nothing in the file is ever rewritten.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from veritune.records.base import RecordPart


@dataclass(frozen=True, slots=True)
class Caveat(RecordPart):
    """A difference between compared runs that was not declared, or an input without a hash.

    `values` maps each value that was found to the runs that have it; `with_condition` says that it differs exactly as
    the conditions do, so that a gap between them may be its effect.
    """

    kind: Literal["differs", "unhashed"]
    aspect: str
    sentence: str
    values: Mapping[str, tuple[str, ...]]
    with_condition: bool


@dataclass(frozen=True, slots=True)
class ResultVerdict(RecordPart):
    """One claim's verdict when the result was added; `grade` is None if no evidence was graded."""

    claim: str
    kind: str
    status: Literal["supported", "refuted", "inconclusive", "untested"]
    sentence: str
    grade: str | None
    exploratory: bool


@dataclass(frozen=True, slots=True)
class StudyEvent(RecordPart):
    """One event of the study's own timeline; `facts` as the report shows them."""

    time: str
    event: str
    facts: str


@dataclass(frozen=True, slots=True)
class ResultSource(RecordPart):
    """Where a result is stored, and the hashes that identify it. `folder` is relative to the index where possible.

    `contract` is None for a study that was never frozen; `report_sha256` None where no report was drawn; `missing`
    names sealed files that were not there: checkpoints that were deleted, the data file.
    """

    study: str
    folder: str
    contract: str | None
    seal: str
    verdict_sha256: str
    report_sha256: str | None
    timeline: str
    missing: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ResultAdded(RecordPart):
    """A result: the question of a study and its verdicts. `key` is the hash of contract and verdicts, so that adding a
    result twice gives one entry.
    """

    id: str
    time: str
    by: str
    key: str
    question: str
    verdicts: tuple[ResultVerdict, ...]
    source: ResultSource
    caveats: tuple[Caveat, ...]
    events: tuple[StudyEvent, ...]
    kind: Literal["result"] = "result"


@dataclass(frozen=True, slots=True)
class ResultMoved(RecordPart):
    """The same result, found in another folder or under another seal."""

    on: str
    time: str
    by: str
    source: ResultSource
    kind: Literal["source"] = "source"


@dataclass(frozen=True, slots=True)
class ResultSuperseded(RecordPart):
    """Result `on` is superseded by result `new`."""

    on: str
    new: str
    time: str
    by: str
    reason: str
    kind: Literal["superseded"] = "superseded"


@dataclass(frozen=True, slots=True)
class Comment(RecordPart):
    """A comment on a result, a mistake or a task; `on` is its id."""

    id: str
    on: str
    time: str
    by: str
    text: str
    kind: Literal["comment"] = "comment"


@dataclass(frozen=True, slots=True)
class Mistake(RecordPart):
    """What went wrong, and `fix`: what was done to prevent it. `on` may be None."""

    id: str
    on: str | None
    time: str
    by: str
    text: str
    fix: str
    kind: Literal["mistake"] = "mistake"


@dataclass(frozen=True, slots=True)
class Task(RecordPart):
    """A task of the runbook: what to do, why, when it is done, and what to do if it fails."""

    id: str
    on: str | None
    time: str
    by: str
    text: str
    why: str
    done_when: str
    on_failure: str
    kind: Literal["task"] = "task"


@dataclass(frozen=True, slots=True)
class TaskClosed(RecordPart):
    """A task that is done or given up; `text` describes the outcome."""

    on: str
    time: str
    by: str
    text: str
    kind: Literal["closed"] = "closed"


ResultEntry = ResultAdded | ResultMoved | ResultSuperseded | Comment | Mistake | Task | TaskClosed
RESULT_ENTRIES: tuple[type[ResultEntry], ...] = (
    *(ResultAdded, ResultMoved, ResultSuperseded),
    *(Comment, Mistake, Task, TaskClosed),
)
