"""`release/<kind>.json`, the evidence of one check, and `release/gates.jsonl`, the gates' evaluations and waivers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import date
from typing import Literal

from veritune.files import hash_of, now
from veritune.records.base import Record, RecordPart
from veritune.records.common import GateResult, Json

GateStatus = Literal["passed", "failed", "undecided"]


@dataclass(frozen=True, slots=True)
class Subject(RecordPart):
    """The weights that were measured, as `weights_digest` of their folders.

    `candidate` is the adapter, or the whole weights of a full fine-tune. `merged` are weights that were compared with
    base + candidate and stand for them, None where nothing was merged.
    """

    base: str
    candidate: str
    merged: str | None = None

    @property
    def hash(self) -> str:
        """Digest of base and candidate together; a gate record is valid for these weights only."""
        return hash_of({"base": self.base, "candidate": self.candidate})


@dataclass(frozen=True, slots=True)
class Evidence(Record):
    """One evidence record; `release.gate.evidence` documents its fields. `input_hash` and `hash` are filled in on
    writing.
    """

    kind: str
    status: GateStatus
    message: str
    subject: Subject
    numbers: Json
    thresholds: Json = field(default_factory=dict)
    inputs: Mapping[str, str] = field(default_factory=dict)
    settings: Json = field(default_factory=dict)
    outputs: Mapping[str, str] = field(default_factory=dict)
    created: str = field(default_factory=now)
    input_hash: str = ""
    hash: str = ""

    def hash_of_inputs(self) -> str:
        """Hash of everything the record was made from."""
        return hash_of({"subject": self.subject, "inputs": self.inputs, "settings": self.settings})


@dataclass(frozen=True, slots=True)
class Waiver(RecordPart):
    """A named person takes responsibility for an undecided gate until a day, that day included.

    `covers` is the hash of what the person saw; `seen` the gate's message then.
    """

    gate: str
    by: str
    reason: str
    until: str
    covers: str
    seen: str
    created: str
    kind: Literal["waiver"] = "waiver"
    previous: str | None = None
    hash: str = ""

    def holds(self, today: date) -> bool:
        """Whether the waiver has not expired."""
        return date.fromisoformat(self.until) >= today


@dataclass(frozen=True, slots=True)
class GateRecord(RecordPart):
    """One evaluation of the gates. `status` is `passed` only if every gate passed, or is undecided and waived.

    `covers` are the subject hashes that it speaks for: base + candidate, and base + merged weights where the merge
    gate itself passed. `trained_elsewhere` is what could not be checked of adopted weights. `waived` holds the waivers
    that counted, by gate. `evidence` has the SHA-256 of each file.
    """

    status: GateStatus
    subject: Subject
    covers: tuple[str, ...]
    run_id: str
    condition: str
    seed: int
    contract: str
    policy: str
    policy_source: str
    policy_declared: str
    gates: tuple[GateResult, ...]
    not_asked: tuple[str, ...]
    waived: Mapping[str, Waiver]
    evidence: Mapping[str, str]
    settings: Json
    created: str = field(default_factory=now)
    trained_elsewhere: tuple[str, ...] = ()
    kind: Literal["evaluation"] = "evaluation"
    previous: str | None = None
    hash: str = ""
