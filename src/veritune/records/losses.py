"""`runs/<run_id>/probes/nll.json`: the loss of every measured row, and by zone."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import ClassVar

from veritune.records.base import Record, RecordPart
from veritune.records.summary import ZoneLoss


@dataclass(frozen=True, slots=True)
class RowLoss(RecordPart):
    """One row's loss: `nll_sum` in nats over its `target_tokens`."""

    row_id: str
    zone: str
    family: str
    nll_sum: float
    target_tokens: int

    @property
    def nll(self) -> float:
        """Nats per target token."""
        return self.nll_sum / self.target_tokens


@dataclass(frozen=True, slots=True)
class Conversion(RecordPart):
    """Validation NLL (nats per target token) of a server's training weights and of the converted ones.

    `apart` is their absolute difference.
    """

    training_weights: float
    sampler_weights: float
    apart: float


@dataclass(frozen=True, slots=True)
class RowLosses(Record):
    """The loss of every row that was measured; if there are none, `reason` says why.

    `conversion` is there where a server converted the weights before they were measured.
    """

    input_hash: str
    unit: str
    zones: Mapping[str, ZoneLoss]
    rows: tuple[RowLoss, ...]
    reason: str | None = None
    conversion: Conversion | None = None

    ABSENT_WHEN_NONE: ClassVar[tuple[str, ...]] = ("reason", "conversion")
