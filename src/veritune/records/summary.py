"""`runs/<run_id>/summary.json`: written last; while it is there, the run is done."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart
from veritune.records.training import MemoryPeak, TrainingRecord


@dataclass(frozen=True, slots=True)
class ZoneLoss(RecordPart):
    """Loss on one zone's expected answers: nats per target token, and the numbers of rows and tokens behind it."""

    nll: float
    rows: int
    target_tokens: int


@dataclass(frozen=True, slots=True)
class RuleCount(RecordPart):
    """The number of outputs on which one rule held, out of those it was applied to."""

    held: int
    of: int


@dataclass(frozen=True, slots=True)
class ZoneScore(RecordPart):
    """Scores of one eval on one zone: `mean` over the `scored` of `items` that have a value, None if none has.

    `missing` counts the others by reason, `cut` the outputs stopped at the token limit; `rules` is None (and absent in
    the file) for an eval without rules.
    """

    mean: float | None
    scored: int
    items: int
    missing: Mapping[str, int]
    cut: int
    rules: Mapping[str, RuleCount] | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("rules",)


@dataclass(frozen=True, slots=True)
class RunSummary(Record):
    """The results of a finished run. `seed`, `lr` and `training` are None for the untouched baseline, `lr` also for
    weights that were trained elsewhere.

    `failed` is why a selection run's setting is out. `nll` is by zone, `scores` by eval and zone. `exploratory` and
    `before_amendment` (the last amendment that the run came before) are marked when the contract changes.
    """

    input_hash: str
    run_id: str
    phase: str
    condition: str
    seed: int | None
    lr: float | None
    exploratory: bool
    failed: str | None
    training: TrainingRecord | None
    scoring_memory: MemoryPeak | None
    nll: Mapping[str, ZoneLoss]
    scores: Mapping[str, Mapping[str, ZoneScore]]
    finished: str
    before_amendment: int | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("before_amendment",)
