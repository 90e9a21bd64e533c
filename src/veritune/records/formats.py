"""Every file format by its path: the one list that `docs/reference/files.md` is made from and old files are read by."""

from __future__ import annotations

from veritune.records.audit import ContaminationAudit, RenderAudit, SplitAudit
from veritune.records.base import Line, Record, RecordPart
from veritune.records.bundle import BaseRecord, BundleManifest
from veritune.records.common import Finding, MetricRow, Score
from veritune.records.contract import Contract
from veritune.records.data import DataManifest, FamilyDecision
from veritune.records.failure import FailedRun, TryLine
from veritune.records.figures import FigureProvenance
from veritune.records.geometry import CellGrid, Geometry, GeometryGrid, StepGeometry, StudyGeometry
from veritune.records.jobs import ClusterJobs
from veritune.records.judge import JudgeAgreement, JudgeAnswer
from veritune.records.losses import RowLosses
from veritune.records.manifest import RunManifest
from veritune.records.plan import AnswerProbe, LiveProbe, RunPlan
from veritune.records.probes import (
    Calibration,
    ForcedChoice,
    Forgetting,
    GradientProbe,
    Leak,
    Recall,
    TelemetrySummary,
    TokenFall,
    ZoneGapRecord,
)
from veritune.records.release import Evidence, GateRecord, Waiver
from veritune.records.results import RESULT_ENTRIES
from veritune.records.safety import GradedAnswer
from veritune.records.scores import ScoreStamp
from veritune.records.selection import Selection, ShapeTimings
from veritune.records.summary import RunSummary
from veritune.records.training import TrainingRecord
from veritune.records.verdict import StudyVerdicts
from veritune.records.weights import WeightChange

FILES: dict[str, type[Record]] = {
    "contract.lock.json": Contract,
    "plan.json": RunPlan,
    "selection.json": Selection,
    "shapes.json": ShapeTimings,
    "data/<version>/manifest.json": DataManifest,
    "audit/render.json": RenderAudit,
    "audit/split.json": SplitAudit,
    "audit/contamination.json": ContaminationAudit,
    "audit/live-<condition>.json": LiveProbe,
    "audit/live-answers.json": AnswerProbe,
    "audit/judge-<eval>.json": JudgeAgreement,
    "audit/judge/<request>.json": JudgeAnswer,
    "runs/<run_id>/manifest.json": RunManifest,
    "runs/<run_id>/training.json": TrainingRecord,
    "runs/<run_id>/failed.json": FailedRun,
    "runs/<run_id>/probes/nll.json": RowLosses,
    "runs/<run_id>/probes/three_zone.json": ZoneGapRecord,
    "runs/<run_id>/scores/<eval>.json": ScoreStamp,
    "runs/<run_id>/summary.json": RunSummary,
    ".jobs/<executor>.json": ClusterJobs,
    "verdict.json": StudyVerdicts,
    "figures/<name>.provenance.json": FigureProvenance,
    "release/<kind>.json": Evidence,
    "BUNDLE/manifest.json": BundleManifest,
    "BUNDLE/base.json": BaseRecord,
}
"""One JSON object each, with its `format`."""

LINES: dict[str, type[Line]] = {
    "audit/findings.jsonl": Finding,
    "review/families.decisions.jsonl": FamilyDecision,
    "runs/<run_id>/metrics.jsonl": MetricRow,
    "runs/<run_id>/tries.jsonl": TryLine,
    "runs/<run_id>/scores/<eval>.jsonl": Score,
    "release/safety.jsonl": GradedAnswer,
}
"""One JSON object a line."""

ENTRIES: dict[str, tuple[type[RecordPart], ...]] = {
    "release/gates.jsonl": (GateRecord, Waiver),
    "results/results.jsonl": RESULT_ENTRIES,
}
"""Ledgers whose entries have a class; `previous` and `hash` are the chain's."""

GEOMETRY: dict[str, type[RecordPart]] = {
    "probes/geometry/<run_id>/step-N.json": StepGeometry,
    "probes/geometry/geometry.json": StudyGeometry,
}
"""Files whose parts hold the format."""

PROBES: dict[str, type[RecordPart]] = {
    "weights": WeightChange,
    "telemetry": TelemetrySummary,
    "gradients": GradientProbe,
    "geometry": Geometry,
    "geometry_grid": GeometryGrid,
    "geometry_cells": CellGrid,
    "leak": Leak,
    "calibration": Calibration,
    "forgetting": Forgetting,
    "forced_choice": ForcedChoice,
    "verbatim_recall": Recall,
    "token_fall": TokenFall,
}
"""Records in `probes/*.json` and `probes/<run_id>/*.json` by their `kind`: a file is one, or holds some under names."""
