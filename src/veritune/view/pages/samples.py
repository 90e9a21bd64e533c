"""Samples: outputs of two or more runs side by side, filtered, and exported."""

from __future__ import annotations

from collections.abc import Mapping
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import quote

from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from veritune.config.load import load_study
from veritune.errors import InputError, VerituneError
from veritune.records import JsonValue
from veritune.report import views
from veritune.report.read import read_records
from veritune.store import Store
from veritune.view.foreign import index_any
from veritune.view.pages.desk import Desk, UnknownAddress, labels_of, show, shown_command
from veritune.view.places import Place, data_folder, score_files
from veritune.view.samples import PAGE, FilteredItems, Joined, Query, export, join, select, shown

LABELS = {
    "all": "all",
    "a": "A higher",
    "b": "B higher",
    "same": "equal",
    "failed": "failed extraction",
    "cut": "cut",
    "missing": "missing",
}


def samples(desk: Desk, request: Request) -> Response:
    """The page."""
    place = desk.place(request)
    files, query = _asked(place, request)
    rows, prompts = _rows(place)
    facts: dict[str, Any] = {"joined": None, "problem": "", "items": [], "zones": [], "rules": (), "chips": []}
    facts |= {"verdicts": [], "sources": {}, "command": "", "active": 0, "wide": True}
    facts |= {"files": _of_eval(files, query.eval), "labels": labels_of(place), "evals": _evals(files), "query": query}
    try:
        joined = _joined(place, files, query)
        selection = select(joined, query, prompts)
    except VerituneError as exc:
        facts |= {"problem": f"{exc.message} {exc.fix}".strip()}
        return show(desk, "samples", place=place, tab="/samples", **facts)
    pages = max(1, -(-len(selection.places) // PAGE))
    page = min(query.page, pages)
    start = (page - 1) * PAGE
    items = shown(joined, [int(n) for n in selection.places[start : start + PAGE]], start + 1, rows)
    every = select(joined, Query(eval=query.eval))
    facts |= {
        "joined": joined,
        "selection": selection,
        "items": items,
        "zones": sorted(every.zones.items()),
        "rules": sorted({rule for index in joined.indexes for rule in index.rules}),
        "chips": _chips(joined, selection, query),
        "sources": {name: f"/p/{place.id}/files/{_relative(place, files[name])}" for name in joined.runs},
        "pages": pages,
        "total": len(selection.places),
        "first": start + 1 if items else 0,
        "last": start + len(items),
        "active": sum(bool(x) for x in (query.zone, query.family, query.rule, query.text, query.item)),
        "verdicts": _verdicts(place, joined, query),
        "command": _command(place, files, joined, query),
    }
    return show(desk, "samples", place=place, tab="/samples", **facts)


def samples_export(desk: Desk, request: Request) -> Response:
    """The filtered rows as JSONL or CSV."""
    place = desk.place(request)
    form = str(request.path_params["form"])
    if form not in ("jsonl", "csv"):
        raise UnknownAddress("Samples are available as .jsonl and .csv only.")
    files, query = _asked(place, request)
    joined = _joined(place, files, query)
    places = [int(n) for n in select(joined, query, _rows(place)[1]).places]
    kind = "text/csv" if form == "csv" else "application/jsonl"
    head = {"Content-Disposition": f'attachment; filename="samples.{form}"'}
    return StreamingResponse(export(joined, places, form), media_type=f"{kind}; charset=utf-8", headers=head)


def _asked(place: Place, request: Request) -> tuple[dict[str, Path], Query]:
    """The score files and the query with its defaults: the first eval, the last and the first of its runs."""
    if place.kind == "audit":
        raise UnknownAddress("An audit has no samples.")
    files = score_files(place)
    if not files:
        raise InputError(f"{place.name} has no score files yet.", fix="Run the study, or name a folder of logs.")
    query = Query.of(request.query_params.multi_items())
    evals = _evals(files)
    name = query.eval if query.eval in evals else evals[0]
    names = _of_eval(files, name)
    runs = tuple(run for run in query.runs if run in names) or tuple(dict.fromkeys((names[-1], names[0])))
    if len(runs) == 1 and len(names) > 1:
        runs = (*runs, next(run for run in names if run != runs[0]))
    return files, Query(**{**query.__dict__, "runs": runs, "eval": name})


def _evals(files: Mapping[str, Path]) -> list[str]:
    return list(dict.fromkeys(name.split("/", 1)[1] if "/" in name else "" for name in files))


def _of_eval(files: Mapping[str, Path], name: str) -> list[str]:
    found = [key for key in files if (key.split("/", 1)[1] if "/" in key else "") == name]
    return sorted(found, key=lambda key: (not key.startswith("baseline"), key))


def _joined(place: Place, files: Mapping[str, Path], query: Query) -> Joined:
    return join([(run, index_any(files[run], own=place.kind == "study")) for run in query.runs])


def _relative(place: Place, path: Path) -> str:
    return quote(path.relative_to(place.path).as_posix())


def _chips(joined: Joined, selection: FilteredItems, query: Query) -> list[tuple[str, str, int]]:
    binary = all(index.binary for index in joined.indexes)
    words = LABELS | ({"a": "flipped to A", "b": "flipped to B"} if binary else {})
    keep = [k for k in LABELS if k in ("all", query.show) or selection.counts[k] or k in ("a", "b")]
    keep = [k for k in keep if len(joined.runs) > 1 or k not in ("a", "b", "same")]
    return [(key, words[key], selection.counts[key]) for key in keep]


def _rows(place: Place) -> tuple[Mapping[str, Mapping[str, Any]], Mapping[str, str]]:
    """The study's data rows and its benchmarks' items by id, and the text of each prompt."""
    folder = data_folder(place) if place.kind == "study" else None
    if folder is None:
        return {}, {}
    path = folder / "rows.parquet"
    rows, texts = _parquet(path, path.stat().st_mtime_ns)
    for path in sorted(folder.glob("benchmark-*.parquet")):
        items, prompts = _parquet(path, path.stat().st_mtime_ns)
        rows, texts = {**rows, **items}, {**texts, **prompts}
    return rows, texts


@lru_cache(maxsize=8)
def _parquet(path: Path, _changed: int) -> tuple[Mapping[str, Mapping[str, JsonValue]], Mapping[str, str]]:
    from veritune.store import read_parquet

    try:
        rows = {str(row["id"]): row for row in read_parquet(path)}
    except (VerituneError, OSError, KeyError):
        return {}, {}
    texts = {key: "\n".join(str(t.get("content")) for t in row.get("messages") or ()) for key, row in rows.items()}
    return rows, texts


def _verdicts(place: Place, joined: Joined, query: Query) -> list[views.ClaimCard]:
    """The verdicts about these arms: they stand above the samples, whatever a filter shows."""
    if place.kind != "study":
        return []
    store = Store(place.path)
    try:
        records = read_records(store, load_study(store.study_file))
    except VerituneError:
        return []
    arms = {run.condition for run in records.runs for name in joined.runs if name.startswith(run.run_id + "/")}
    about = {c.name for c in records.study.claims if {c.condition, c.against or "baseline"} <= arms | {None}}
    return [card for card in views.claims(records) if card.name in about]


def _command(place: Place, files: Mapping[str, Path], joined: Joined, query: Query) -> str:
    if len(joined.runs) < 2:
        return ""
    zone = ["--zone", query.zone] if query.zone else []
    names = [str(files[run]) for run in joined.runs[:2]]
    return shown_command(["veritune", "compare", f"a={names[0]}", f"b={names[1]}", *zone])
