"""Home: what is here; and one file of a place."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.requests import Request
from starlette.responses import FileResponse, Response

from veritune.config.load import load_study
from veritune.counting import many
from veritune.errors import FormatError, VerituneError
from veritune.records import JsonLike, StudyVerdicts
from veritune.seal import edited_records
from veritune.store import Store
from veritune.view.pages import results
from veritune.view.pages.desk import Desk, UnknownAddress, show, to
from veritune.view.places import Place, file_in

AROUND = 40
"""Lines shown from a linked line on."""

LONGEST = 4_000


@dataclass(frozen=True)
class Listed:
    """One study in the list."""

    place: Place
    question: str
    verdicts: tuple[dict[str, Any], ...]
    state: str
    last: str
    problem: str = ""


def home(desk: Desk, request: Request) -> Response:
    """The home page: studies with question, verdicts, state and last event; audits and score files."""
    text = request.query_params.get("text", "").strip()
    studies = [_listed(p) for p in desk.places if p.kind == "study"]
    found = [s for s in studies if _holds(text, s.question, str(s.place.path), *(v["name"] for v in s.verdicts))]
    others = [p for p in desk.places if p.kind != "study" and _holds(text, p.name, str(p.path))]
    indexes = list(results.of_folders(desk))
    return show(desk, "home", tab="home", studies=found, others=others, places=desk.places, text=text, indexes=indexes)


def _holds(text: str, *fields: str) -> bool:
    return not text or any(text.casefold() in field.casefold() for field in fields)


def _listed(place: Place) -> Listed:
    store = Store(place.path)
    try:
        question = load_study(store.study_file).question
    except VerituneError as exc:
        return Listed(place, place.name, (), "study.yaml cannot be read", "", exc.message)
    verdicts, problem = _verdicts(store)
    try:
        event = next(reversed(store.events()), None) if store.events_file.exists() else None
    except VerituneError as exc:
        event, problem = None, exc.message
    edited = edited_records(store, verdicts_alone=True)  # of many studies on one page
    problem = problem or (edited[0] if edited else "")
    last = f"{event['event']} {event['time']}" if event else ""
    return Listed(place, question, verdicts, _state(store), last, problem)


def _verdicts(store: Store) -> tuple[tuple[dict[str, JsonLike], ...], str]:
    if not store.verdict_file.exists():
        return (), ""
    try:
        verdicts = StudyVerdicts.load(store.verdict_file).verdicts
    except FormatError:
        return (), "verdict.json is damaged"
    return tuple(
        {"name": v.claim, "status": v.status, "grade": v.confidence.get("grade"), "exploratory": v.exploratory}
        for v in verdicts
    ), ""


def _state(store: Store) -> str:
    done = sum(1 for _ in store.runs.glob("*/summary.json")) if store.runs.exists() else 0
    begun = sum(1 for _ in store.runs.glob("*/manifest.json")) if store.runs.exists() else 0
    held = store.holder() is not None or bool(store.held_runs())
    if held:
        return f"running, {many(done, 'cells')} done"
    if not store.contract_file.exists():
        return "not frozen"
    return f"{done} of {begun} started cells done" if begun > done else f"{many(done, 'cells')} done"


def file(desk: Desk, request: Request) -> Response:
    """One file of a place, shown as text around a line; report.html and its pages are shown as they are, without
    scripts.
    """
    place = desk.place(request)
    name, path = _named(place, request)
    if name == "report.html" or (name.startswith("report.outputs/") and name.endswith(".html")):
        sandbox = "sandbox; default-src 'none'; style-src 'unsafe-inline'; img-src data:"
        return FileResponse(path, media_type="text/html", headers={"Content-Security-Policy": sandbox})
    asked = request.query_params.get("line", "")
    line = int(asked) if asked.isdecimal() and len(asked) < 10 else 0
    first = max(1, line - AROUND // 4)
    lines, more = _lines(path, first)
    facts: dict[str, Any] = {"name": name, "size": path.stat().st_size, "line": line, "lines": lines, "more": more}
    return show(desk, "file", place=place, **facts)


def raw(desk: Desk, request: Request) -> Response:
    """One whole file of a place, as text that a browser does not execute."""
    _, path = _named(desk.place(request), request)
    return FileResponse(path, media_type="text/plain; charset=utf-8")


def _named(place: Place, request: Request) -> tuple[str, Path]:
    name = str(request.path_params["name"]).rstrip("/")
    path = file_in(place, name)
    if path is None:
        raise UnknownAddress(f"{name[:200]} is not a file of {place.name}.")
    return name, path


def _lines(path: Path, first: int) -> tuple[list[tuple[int, str]], int]:
    found, more = [], 0
    with path.open("rb") as stream:
        for number, line in enumerate(stream, start=1):
            if number >= first + AROUND:
                more = number
                break
            if number >= first:
                text = line.decode("utf-8", "replace").rstrip("\n")
                found.append((number, text if len(text) <= LONGEST else text[:LONGEST] + " …"))
    return found, more


def place(desk: Desk, request: Request) -> Response:
    """The first page of a place."""
    from veritune.view.pages.study import study

    found = desk.place(request)
    if found.kind == "study":
        return study(desk, found, request)
    return to(f"/p/{found.id}/{'audit' if found.kind == 'audit' else 'samples'}")
