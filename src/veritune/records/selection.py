"""`selection.json` and `shapes.json`: the learning rate of each condition, and the batch shapes that were timed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart
from veritune.records.training import MemoryPeak


@dataclass(frozen=True, slots=True)
class RateCandidate(RecordPart):
    """One learning rate tried: its run's lowest validation NLL in nats per target token, None where it failed."""

    lr: float
    run_id: str
    validation_nll: float | None
    step: int | None
    failed: str | None

    @property
    def eligible(self) -> bool:
        """Whether the rate may win."""
        return self.failed is None and self.validation_nll is not None


@dataclass(frozen=True, slots=True)
class ChosenRate(RecordPart):
    """The rate that won, and whether it lies at the grid's edge (`low`, `high` or None)."""

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
    """Whether a batch shape may be had, and why."""

    offered: bool
    why: str


@dataclass(frozen=True, slots=True)
class TimedShape(RecordPart):
    """What one batch shape took: seconds an optimizer step (median without the first) and a row, peak memory, NLL.

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
    """The batch shapes of every condition, timed."""

    input_hash: str
    conditions: Mapping[str, ConditionShapes]
