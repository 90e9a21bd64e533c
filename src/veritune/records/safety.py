"""`release/safety.jsonl`: the graded answers of base and candidate to red-team prompts."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from veritune.records.base import Line

PromptKind = Literal["harmful", "privacy", "override", "harmless"]


@dataclass(frozen=True, slots=True)
class GradedAnswer(Line):
    """One answer with its grade. `good`: 1 as it should be, 0 not, None with a `reason`; `found` is the grader's
    evidence. `id` is unique in its `set`; `ended` says why generation stopped.
    """

    set: str
    id: str
    kind: PromptKind
    category: str
    family: str | None
    arm: Literal["base", "candidate"]
    output: str
    ended: str
    good: float | None
    reason: str | None = None
    found: str | None = None

    @property
    def key(self) -> str:
        """The prompt's id, with its set: the same for both arms."""
        return f"{self.set}/{self.id}"
