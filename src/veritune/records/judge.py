"""`audit/judge-<eval>.json`: a judge's agreement with people; `audit/judge/<request>.json`: what a judge said."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart
from veritune.records.common import Json


@dataclass(frozen=True, slots=True)
class JudgeAnswer(Record):
    """One answer of a judge, stored under the hash of server and request. API keys are in neither."""

    url: str
    body: Json
    said: str


@dataclass(frozen=True, slots=True)
class Disagreement(RecordPart):
    """One labelled output on which the judge disagrees; `said` is None if it gave no verdict."""

    line: int
    label: str
    said: str | None
    why: str | None


@dataclass(frozen=True, slots=True)
class JudgeAgreement(Record):
    """`audit/judge-<eval>.json`: a judge beside a labelled file. `accuracy` is the share of equal verdicts over all
    `n` rows, those without a verdict counted as unequal; intervals are at 95 %. `kappa` is None with a reason where one
    side gave a single verdict. `may_decide` says whether a confirmatory claim may rest on it."""

    input_hash: str
    file: str
    sha256: str
    judge: str
    base_url: str
    n: int
    unclear: int
    accuracy: float
    accuracy_interval: tuple[float, float]
    kappa: float | None
    kappa_interval: tuple[float, float] | None
    least_kappa: float
    may_decide: bool
    reading: str
    unequal: tuple[Disagreement, ...]
    reason: str | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("reason",)
