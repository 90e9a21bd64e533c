"""`runs/<run_id>/scores/<eval>.json`: the stamp of the scores in `<eval>.jsonl` beside it (lines: `Score`)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart


@dataclass(frozen=True, slots=True)
class AskedOfServer(RecordPart):
    """The sampling settings sent to a server; temperature 0 requests greedy decoding."""

    temperature: float
    seed: int


@dataclass(frozen=True, slots=True)
class DecodingNotes(RecordPart):
    """How the outputs were generated. If a server answers, `batch_size` is None and `backend` and `asked` are given."""

    greedy: bool
    max_new_tokens: int
    batch_size: int | None
    backend: str | None = None
    asked: AskedOfServer | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("backend", "asked")


@dataclass(frozen=True, slots=True)
class ScoreStamp(Record):
    """The inputs of one eval's scores of one run, and the SHA-256 of their file; `items` is their number."""

    input_hash: str
    sha256: str
    items: int
    decoding: DecodingNotes
