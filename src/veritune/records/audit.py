"""What a study's own checks of its data found: `audit/render.json`, `audit/split.json`, `audit/contamination.json`.

`audit/findings.jsonl` holds one `Finding` a line.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from veritune.records.base import Record, RecordPart
from veritune.records.common import Finding, GateResult, Json


@dataclass(frozen=True, slots=True)
class TokenLengths(RecordPart):
    """Token counts over all rendered rows: total, median and maximum."""

    total: int
    median: int
    max: int


@dataclass(frozen=True, slots=True)
class RenderedExample(RecordPart):
    """The first row as the trainer sees it: the text without loss, and the text with loss."""

    row_id: str
    prompt: str
    target: str


@dataclass(frozen=True, slots=True)
class StopTokens(RecordPart):
    """The tokens that answers are trained to end on, the tokens that generation stops on and their source; `warnings`
    if the two differ.
    """

    end_tokens: tuple[str, ...]
    stop_tokens: tuple[str, ...]
    stops_from: str
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class RenderAudit(Record):
    """How rows were rendered: hashes of template and tokenizer, token counts, one example with its mask.

    `template_variables` are the values of the template's own settings, None where the template decides.
    """

    template_sha256: str
    tokenizer_sha256: str
    rows: int
    tokens: TokenLengths
    target_tokens: int
    example: RenderedExample
    template_variables: Json
    stops: StopTokens


@dataclass(frozen=True, slots=True)
class ZonePair(RecordPart):
    """What two zones share, in rows: ids, whole texts, prompts, answers, families, and near-copies."""

    a: str
    b: str
    ids: int
    texts: int
    prompts: int
    answers: int
    families: int
    near: int
    n_a: int
    n_b: int


@dataclass(frozen=True, slots=True)
class SplitCounts(RecordPart):
    """The number of rows in each zone, and what every pair of zones shares."""

    zones: Mapping[str, int]
    pairs: tuple[ZonePair, ...]


@dataclass(frozen=True, slots=True)
class SplitAudit(Record):
    """How the zones overlap; a finding of severity `error` stopped the study."""

    counts: SplitCounts
    findings: tuple[Finding, ...]
    warnings: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ContaminationAudit(Record):
    """The eval items that were looked for in the trained rows: the gate's status, and each hit."""

    gate: GateResult
    findings: tuple[Finding, ...]

    @property
    def near_copies(self) -> int:
        """Number of rows that are near-copies of an item, over all evals."""
        return sum(counts.get("rows_confirmed", 0) for counts in self.by_eval.values())

    @property
    def by_eval(self) -> Mapping[str, Mapping[str, int]]:
        """Counts by eval; empty if no eval was compared."""
        return self.gate.numbers.get("evals") or {}
