"""What each probe of a study says: a block a record, with its three sentences and its path. It computes nothing."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from veritune.errors import FormatError
from veritune.records import JsonLike, to_json
from veritune.report.curve import curve_table
from veritune.report.geometry import geometry_table
from veritune.report.read import Records

NAMES = {
    "three_zone_gap": "Policy or samples",
    "curve": "Checkpoints along the run",
    "leak": "What a leaky split would have flattered",
    "forced_choice": "Recall: forced choice",
    "verbatim_recall": "Recall: word for word",
    "token_fall": "Where the loss fell",
    "gradients": "How many independent examples",
    "gradient_families": "Families found by gradient",
    "telemetry": "Where the gradient fell",
    "weights": "How far the weights moved",
    "weight_series": "How far the weights moved, step by step",
    "weight_cells": "How far modules moved beside a reference arm",
    "attribution": "Training families behind outputs (experimental)",
    "geometry": "Representation geometry",
    "geometry_grid": "Representation geometry",
    "geometry_cells": "Geometry over checkpoints, seeds and conditions",
    "forgetting": "Forgetting",
    "calibration": "Calibration",
    "none": "Not measured",
}
ORDER = tuple(NAMES)
TABLES = {"geometry_grid": geometry_table, "curve": curve_table}


@dataclass(frozen=True)
class ProbeBlock:
    """One probe's sentences. `subject` names the run or file, `source` is its path in the study; `table` holds every
    cell of a record that has many, as plain text.
    """

    probe: str
    kind: str
    subject: str
    reading: str
    limits: str | None
    would_change: str | None
    source: str
    table: str | None = None


def blocks(records: Records) -> list[ProbeBlock]:
    """Every probe record of the study, sorted by probe and then by run."""
    found = [*_gaps(records), *_others(records)]
    return sorted(found, key=lambda b: ORDER.index(b.kind) if b.kind in ORDER else len(ORDER))


def _gaps(records: Records) -> Iterator[ProbeBlock]:
    for run in records.runs:
        if run.gap is not None:
            yield _block(to_json(run.gap), run.label, run.path("probes/three_zone.json"), "three_zone_gap")


def _others(records: Records) -> Iterator[ProbeBlock]:
    labels = {run.run_id: run.label for run in records.runs}
    for path, record in records.probes:
        yield from _readings(record, labels.get(str(record.get("run")), ""), path)


def _readings(record: JsonLike, subject: str, path: str, name: str = "") -> Iterator[ProbeBlock]:
    """The record itself, or those it holds under names (`record`, `base`, `trained`, `runs`, ...) and in lists."""
    if isinstance(record, list):
        for inner in record:
            label = inner.get("label") if isinstance(inner, dict) else None
            yield from _readings(inner, subject, path, str(label or name))
        return
    if not isinstance(record, dict):
        return
    if isinstance(record.get("reading"), str):
        own = record.get("condition")
        who = subject or (f"{own}, seed {record.get('seed')}" if own else path.rsplit("/", 1)[-1].removesuffix(".json"))
        yield _block(record, f"{who}, {name}" if name else who, path, name)
        return
    for key, inner in record.items():
        yield from _readings(inner, subject, path, "" if key == "record" else key)


def _block(record: Any, subject: str, path: str, kind: str) -> ProbeBlock:
    kind = str(record.get("kind") or kind)
    named = NAMES.get(kind, kind.replace("_", " "))
    limits, change = (record[k] if isinstance(record.get(k), str) else None for k in ("limits", "would_change"))
    return ProbeBlock(named, kind, subject, record["reading"], limits, change, path, _cells(record, kind))


def _cells(record: Any, kind: str) -> str | None:
    """The table of a geometry or curve record; None for other kinds, and for one of another version."""
    draw = TABLES.get(kind)
    if draw is None:
        return None
    try:
        return draw(record)
    except (FormatError, KeyError, TypeError, ValueError, AttributeError, IndexError):
        return None


def markdown(study: str, found: Sequence[ProbeBlock]) -> str:
    """The blocks as Markdown, for a pull request or a notebook."""
    lines = [f"# What the probes of {study} say", ""]
    for block in found:
        lines += [f"## {block.probe}: {block.subject}", "", block.reading, ""]
        lines += ["```", block.table, "```", ""] if block.table else []
        lines += [f"- Limits: {block.limits}"] if block.limits else []
        lines += [f"- What would change it: {block.would_change}"] if block.would_change else []
        lines += [f"- Source: `{block.source}`", ""]
    return "\n".join(lines)
