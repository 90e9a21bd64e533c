"""`selection.json` and `shapes.json`: the learning rate of each condition, and the batch shapes that were timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart
from veritune.records.training import MemoryPeak


@dataclass(frozen=True, slots=True)
class RateCandidate(RecordPart):
    """One learning rate that was tried: its run's lowest validation NLL in nats per target token, None if it failed."""

    lr: float
    run_id: str
    validation_nll: float | None
    step: int | None
    failed: str | None

    @property
    def eligible(self) -> bool:
        """Whether the rate may be chosen."""
        return self.failed is None and self.validation_nll is not None


@dataclass(frozen=True, slots=True)
class ChosenRate(RecordPart):
    """The chosen rate, and whether it is at the edge of the grid (`low`, `high` or None)."""

    selected: float
    edge: str | None
    candidates: tuple[RateCandidate, ...]


@dataclass(frozen=True, slots=True)
class Selection(Record):
    """Every condition's learning rate by `rule`, from runs on the reserved `seed`; `time` is when it was recorded."""

    input_hash: str
    rule: str
    seed: int
    data_fraction: float
    conditions: Mapping[str, ChosenRate]
    time: str

    @property
    def rates(self) -> dict[str, float]:
        """The selected learning rates by condition."""
        return {name: choice.selected for name, choice in self.conditions.items()}


@dataclass(frozen=True, slots=True)
class ShapeOffer(RecordPart):
    """Whether a batch shape can be used, and why."""

    offered: bool
    why: str


@dataclass(frozen=True, slots=True)
class TimedShape(RecordPart):
    """Measurements of one batch shape: seconds per optimizer step (median without the first) and per row, peak memory,
    NLL.

    `effective` is rows per optimizer step. `offer` is absent for the declared shape.
    """

    run_id: str
    rows_per_micro_batch: int
    micro_batches: int
    effective: int
    step_s: float | None
    row_s: float | None
    peak_memory: MemoryPeak | None
    validation_nll: float | None
    failed: str | None
    offer: ShapeOffer | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("offer",)


@dataclass(frozen=True, slots=True)
class ConditionShapes(RecordPart):
    """The declared batch shape of a condition, and the others that were tried."""

    declared: TimedShape
    tried: tuple[TimedShape, ...]


@dataclass(frozen=True, slots=True)
class ShapeTimings(Record):
    """The timings of the batch shapes of every condition."""

    input_hash: str
    conditions: Mapping[str, ConditionShapes]
