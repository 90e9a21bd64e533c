"""What stages hand each other and what lies on disk. A class that has `load` and `save` is a file format.

common.py     data, scores, estimates, verdicts: records without a file of their own
base.py       Record and RecordPart: read strictly, written canonically
manifest.py   runs/<run_id>/manifest.json
training.py   runs/<run_id>/training.json
summary.py    runs/<run_id>/summary.json
"""

from __future__ import annotations

from veritune.canonical import dumps, to_json
from veritune.records.base import Record, RecordPart
from veritune.records.common import (
    FORMAT_VERSION,
    ZONES,
    Estimate,
    Finding,
    GateResult,
    Json,
    Membership,
    Message,
    MetricRow,
    Rendered,
    Row,
    Score,
    Verdict,
    Zone,
)
from veritune.records.manifest import GitState, MachineFacts, NamedModel, RunManifest, TrainedRows
from veritune.records.summary import RuleCount, RunSummary, ZoneLoss, ZoneScore
from veritune.records.training import (
    CheckpointCandidate,
    MemoryPeak,
    ServerCandidate,
    ServerExport,
    ServerTraining,
    Trainable,
    TrainingRecord,
)

__all__ = [
    "FORMAT_VERSION",
    "ZONES",
    "CheckpointCandidate",
    "Estimate",
    "Finding",
    "GateResult",
    "GitState",
    "Json",
    "MachineFacts",
    "Membership",
    "MemoryPeak",
    "Message",
    "MetricRow",
    "NamedModel",
    "Record",
    "RecordPart",
    "Rendered",
    "Row",
    "RuleCount",
    "RunManifest",
    "RunSummary",
    "Score",
    "ServerCandidate",
    "ServerExport",
    "ServerTraining",
    "Trainable",
    "TrainedRows",
    "TrainingRecord",
    "Verdict",
    "Zone",
    "ZoneLoss",
    "ZoneScore",
    "dumps",
    "to_json",
]
