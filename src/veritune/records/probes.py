"""`runs/<run_id>/probes/three_zone.json`: how much of a run's gain in loss carries to siblings and to strangers."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

from veritune.records.base import FORMAT_VERSION, Record, RecordPart
from veritune.records.common import Estimate, Json

GapVerdict = Literal["generalises", "partly", "memorises", "cannot tell"]


@dataclass(frozen=True)
class ThreeZoneGap(RecordPart):
    """The record of a three-zone gap. Gains are in the units given (nats per token for losses); shares are of the gain
    on seen rows.

    `thresholds` are the numbers that chose the word.
    """

    zones: Json
    carried: Mapping[str, Estimate]
    verdict: GapVerdict
    why: str
    thresholds: Json
    reading: str
    limits: str
    would_change: str
    kind: str = "three_zone_gap"
    format: int = FORMAT_VERSION


@dataclass(frozen=True, slots=True)
class ZoneGapRecord(Record):
    """The three-zone gap of one run, from its losses and the baseline's."""

    input_hash: str
    gap: ThreeZoneGap
