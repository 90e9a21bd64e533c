"""An audit: families with their evidence, overlap with evals, findings by reason, versions of the data."""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from veritune.data.review import draw_lineage, lineage
from veritune.errors import VerituneError
from veritune.records import ContaminationAudit, Finding, JsonLike, SplitAudit
from veritune.store import read_jsonl
from veritune.view.diff import LONGEST, Piece
from veritune.view.pages.desk import Desk, UnknownAddress, show, shown_command
from veritune.view.pages.families import RowText, family_facts, items_told, report_of, told
from veritune.view.pages.review import packs_of
from veritune.view.places import Place

HITS = 100


def audit(desk: Desk, request: Request) -> Response:
    """The page."""
    place = desk.place(request)
    if place.kind == "scores":
        raise UnknownAddress(f"{place.name} holds score files, not an audit.")
    texts = told(place)
    packs = list(packs_of(place))
    held, said = _contamination(place)
    found, damaged = _findings(place)
    return show(
        desk,
        "audit",
        place=place,
        tab="/audit",
        note=request.query_params.get("note", "")[:200],
        head=_head(place),
        **family_facts(place, texts),
        open=request.query_params.get("open", ""),
        hits=list(_hits(place, held, texts)),
        contamination=said,
        findings=found,
        damaged=damaged,
        lineage=_lineage(place),
        packs=packs,
        command=shown_command(_command(place)),
    )


def _head(place: Place) -> str:
    path = place.path / "report.txt"
    return path.read_text(encoding="utf-8", errors="replace")[:6000] if path.exists() else ""


def _command(place: Place) -> list[str]:
    """The audit that gives this page, with the files and columns that it was given."""
    if place.kind == "study":
        return ["veritune", "plan", str(place.path)]
    record = report_of(place)
    parts = ["veritune", "audit", str(record.get("source") or "DATA")]
    for found in record.get("evals") or ():
        parts += ["--eval", str(found["source"])] if isinstance(found, dict) and found.get("source") else []
    reading = record.get("reading")
    for name, value in reading.items() if isinstance(reading, dict) else ():
        text = ",".join(f"{k}={v}" for k, v in value.items()) if isinstance(value, dict) else str(value)
        parts += [f"--{name.replace('_', '-')}", text] if value is not None and value != "all" else []
    return [*parts, "--out", str(place.path)]


# ---------------------------------------------------------------- contamination and findings


def _contamination(place: Place) -> tuple[list[Mapping[str, Any]], str]:
    """Every recorded hit, strongest first, and what the gate said, or why nothing is known."""
    try:
        if place.kind == "study":
            path = place.path / "audit" / "contamination.json"
            if not path.exists():
                return [], "Not checked yet: the data is not prepared."
            record = ContaminationAudit.load(path)
            rows: list[Mapping[str, Any]] = [{**f.evidence, "row_id": f.row_id} for f in record.findings]
            said = f"Gate {record.gate.status}: {record.gate.message}"
        else:
            if not (place.path / "contamination.jsonl").exists():
                return [], "Not checked: no eval was given (--eval)."
            rows = list(read_jsonl(place.path / "contamination.jsonl"))
            gate = report_of(place).get("gate")
            said = f"Gate {gate.get('status')}: {gate.get('message')}" if isinstance(gate, dict) else ""
    except VerituneError as exc:
        return [], exc.message
    order = {"exact": 0, "confirmed": 1, "review": 2}
    rows.sort(key=lambda r: (order.get(str(r.get("status")), 3), -(r.get("score") or 0.0)))
    return rows, said + (f" The {HITS} strongest of {len(rows):,} are shown." if len(rows) > HITS else "")


def _hits(
    place: Place, rows: Sequence[Mapping[str, JsonLike]], texts: Mapping[str, RowText]
) -> Iterator[dict[str, JsonLike]]:
    """Rows that hold an eval item, the shared words marked in both."""
    for row in rows[:HITS]:
        key, span = str(row.get("row_id")), str(row.get("span") or "")
        text = texts[key].text[:LONGEST] if key in texts else ""
        sides = [{"name": f"row {key}, {row.get('row_part')}", "pieces": _marked(text, span)}] if text else []
        item, name = str(row.get("item_id")), str(row.get("eval"))
        found = texts if name.startswith("zone ") else items_told(place, name)
        if item in found:
            shared = {
                "name": f"item {item}, {row.get('item_part')}",
                "pieces": _marked(found[item].text[:LONGEST], span),
            }
        else:
            shared = {"name": f"what row and item {item} share", "pieces": (Piece(span, True),)}
        yield {
            "status": row.get("status"),
            "kind": row.get("kind"),
            "row": key,
            "item": row.get("item_id"),
            "score": row.get("score"),
            "sides": [*sides, shared],
        }


def _marked(text: str, span: str) -> tuple[Piece, ...]:
    """The text with the shared words marked; the span is in canonical form, so words are looked for, not characters."""
    words = re.findall(r"\w+", span)
    if not words:
        return (Piece(text, False),)
    found = re.search(r"\W+".join(re.escape(w) for w in words), text, re.IGNORECASE)
    if not found:
        return (Piece(text, False),)
    parts = (Piece(text[: found.start()], False), Piece(found[0], True), Piece(text[found.end() :], False))
    return tuple(p for p in parts if p.text)


def _findings(place: Place) -> tuple[list[tuple[str, list[dict[str, str]]]], str]:
    """Findings by reason, most first; and which record of them is damaged."""
    folder = place.path / "audit" if place.kind == "study" else place.path
    rows: list[Finding] = []
    problem = ""
    try:
        if (folder / "findings.jsonl").exists():
            rows += Finding.load_all(folder / "findings.jsonl")
        if place.kind == "study" and (folder / "split.json").exists():
            rows += SplitAudit.load(folder / "split.json").findings
    except VerituneError as exc:
        problem = exc.message
    by_reason: dict[str, list[dict[str, str]]] = defaultdict(list)
    for row in rows:
        where = f"{row.source or ''}{f', line {row.line}' if row.line else ''}"
        by_reason[row.check].append({"row": row.row_id or "", "source": where, "message": row.message})
    return sorted(by_reason.items(), key=lambda f: -len(f[1])), problem


def _lineage(place: Place) -> str:
    source = str(report_of(place).get("source") or "")
    folders = [place.path, place.path.parent, *([place.path.parent / Path(source).parent] if source else [])]
    for folder in folders:
        if (folder / "_lineage.jsonl").exists():
            try:
                return draw_lineage(lineage(folder))
            except VerituneError as exc:
                return exc.message
    return ""
