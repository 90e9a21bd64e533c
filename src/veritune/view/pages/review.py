"""Review packs: one row at a time, decided by key, on disk before the answer is sent."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from veritune.errors import InputError
from veritune.view.decisions import REVIEWER, agreement, choices, decide, folder_of, merged, rows_of
from veritune.view.pages.desk import Desk, UnknownAddress, show, shown_command, to
from veritune.view.places import Place, data_file

KINDS = ("keep", "drop", "edit")


def packs_of(place: Place) -> dict[str, Path]:
    """The review packs of a study or an audit, by name."""
    folders = [place.path / "review", place.path / "audit" / "review"]
    return {
        p.relative_to(place.path).as_posix(): p
        for folder in folders
        for p in sorted(folder.glob("*.jsonl"))
        if "." not in p.stem
    }


def review(desk: Desk, request: Request) -> Response:
    """One row of a pack, with this reviewer's decision."""
    place = desk.place(request)
    name, pack = _pack(place, request.query_params.get("pack", ""))
    reviewer = request.query_params.get("reviewer", "")
    if not REVIEWER.fullmatch(reviewer):
        problem = f"{reviewer[:40]!r} cannot be used as a reviewer's name." if reviewer else ""
        return show(desk, "review", place=place, tab="/audit", pack=name, reviewer="", problem=problem)
    rows, decided = rows_of(pack), choices(pack, reviewer)
    asked = request.query_params.get("n", "")
    number = int(asked) if asked.isdecimal() and len(asked) < 8 else _next(rows, decided)
    number = min(max(1, number), max(1, len(rows)))
    row = rows[number - 1] if rows else None
    everything = len([r for r in rows if decided.get(str(r["row_id"])) and decided[str(r["row_id"])].decision])
    return show(
        desk,
        "review",
        place=place,
        tab="/audit",
        pack=name,
        reviewer=reviewer,
        problem="",
        row=row,
        number=number,
        total=len(rows),
        done=everything,
        choice=decided.get(str(row["row_id"])) if row else None,
        kept=(folder_of(pack) / f"{reviewer}.jsonl").relative_to(place.path).as_posix(),
        agreed=agreement(pack, KINDS) if everything == len(rows) else None,
        command=shown_command(_next_version(place, pack)),
    )


def _next_version(place: Place, pack: Path) -> list[str]:
    """The command that makes the next data version of what the reviewers agree on."""
    data = data_file(place)
    out = Path(data).with_name(f"{Path(data).name.split('.')[0]}-reviewed.jsonl")
    decided = pack.with_name(f"{pack.stem}.reviewed.jsonl")
    return ["veritune", "review", data, str(decided), "--out", str(out)]


def _next(rows: list[Mapping[str, Any]], decided: Mapping[str, Any]) -> int:
    """The first row without a decision, else the last row."""
    left = (n for n, r in enumerate(rows, 1) if not (d := decided.get(str(r["row_id"]))) or d.decision is None)
    return next(left, len(rows))


def review_decide(desk: Desk, form: Mapping[str, str], request: Request) -> Response:
    """Record a decision, then show the next row."""
    place = desk.place(request)
    name, pack = _pack(place, form.get("pack", ""))
    rows = {str(r["row_id"]): r for r in rows_of(pack)}
    item, kind = form.get("item", ""), form.get("decision", "")
    if item not in rows:
        raise UnknownAddress("That row is not in the pack.")
    if kind not in (*KINDS, ""):
        raise InputError(f"{kind[:40]!r} is not a decision.", fix="Choose keep, drop or edit.")
    why = form.get("why", "").strip()
    if kind in ("drop", "edit") and not why:
        raise InputError("A reason is needed to drop or edit a row.", fix="Go back and write a reason.")
    edited = form.get("edited", "").replace("\r\n", "\n") if kind == "edit" else None
    seen = int(form["seen"]) if form.get("seen", "").isdecimal() else 0
    row = rows[item]
    facts = {"decision": kind or None, "why": why or None, "edited": edited, "row_sha256": row.get("row_sha256")}
    decide(pack, form.get("reviewer", ""), item, seen, **facts)
    merged(pack)
    here = int(form["number"]) if form.get("number", "").isdecimal() else 1
    following = {"n": here if kind == "" else min(here + 1, len(rows))}
    query = urlencode({"pack": name, "reviewer": form.get("reviewer", ""), **following})
    return to(f"/p/{place.id}/review?{query}")


def _pack(place: Place, name: str) -> tuple[str, Path]:
    packs = packs_of(place)
    if name not in packs:
        raise UnknownAddress("There is no such review pack here.", fix="The audit page lists the packs.")
    return name, packs[name]
