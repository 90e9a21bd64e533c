"""Families of an audit or a study: what holds rows together, and a person's word on it."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any
from urllib.parse import urlencode

from starlette.requests import Request
from starlette.responses import Response

from veritune.data.families import said
from veritune.data.family_decisions import NAME, read_family_decisions, same_text
from veritune.data.load import load_rows
from veritune.data.review import row_sha256
from veritune.data.stored import row_of
from veritune.errors import InputError, VerituneError
from veritune.records import FamilyDecision, JsonLike, JsonValue, Row
from veritune.store import now, read_json, read_jsonl, read_parquet, sha256_file
from veritune.view.decisions import decide_family
from veritune.view.diff import LONGEST, Piece, differences
from veritune.view.pages.desk import Desk, UnknownAddress, to
from veritune.view.places import Place, data_folder

SHOWN = 40
"""Families drawn; the largest come first."""
MEMBERS = 8
WORDS = {True: "one family", False: "not one family", None: ""}
SAME = {"yes": True, "no": False, "": None}


@dataclass(frozen=True)
class RowText:
    """The content of a data row, as text and as the hash that a decision names."""

    text: str
    row: Row


def report_of(place: Place) -> Mapping[str, Any]:
    """An audit's report.json; empty for a study, and if the file is damaged."""
    path = place.path / "report.json"
    try:
        record = read_json(path) if place.kind == "audit" and path.exists() else {}
    except VerituneError:
        record = {}
    return record if isinstance(record, dict) else {}


def members(place: Place) -> dict[str, list[Mapping[str, JsonLike]]]:
    """The recorded rows of every family. Raises FormatError if the record is damaged."""
    rows: Sequence[Mapping[str, Any]] = []
    if place.kind == "audit" and (place.path / "families.jsonl").exists():
        rows = list(read_jsonl(place.path / "families.jsonl"))
    if place.kind == "study" and (folder := data_folder(place)) is not None:
        rows = read_parquet(folder / "families.parquet")
    by_family: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for row in rows:
        by_family[str(row.get("family"))].append(row)
    return dict(by_family)


def told(place: Place) -> Mapping[str, RowText]:
    """The content of each row by id; empty if the data file is missing or has changed since the audit."""
    if place.kind == "study":
        folder = data_folder(place)
        path = folder / "rows.parquet" if folder is not None else None
        return _of_study(path, path.stat().st_mtime_ns) if path is not None else {}
    record = report_of(place)
    path = _file_of(place, record)
    if path is None:
        return {}
    return _of_file(path, path.stat().st_mtime_ns, repr(sorted(_options(record).items())), place)


def items_told(place: Place, name: str) -> Mapping[str, RowText]:
    """The content of each eval item that the rows were compared with; empty if its file is missing or has changed."""
    record = report_of(place)
    facts = next((e for e in record.get("evals") or () if isinstance(e, dict) and e.get("name") == name), {})
    path = _file_of(place, facts)
    return _of_eval(path, path.stat().st_mtime_ns, place) if path is not None else {}


def _file_of(place: Place, facts: Mapping[str, JsonLike]) -> Path | None:
    """The file of a record with `source` and `sha256`, where it lies as it was read."""
    source = str(facts.get("source") or "")
    for base in (Path(), place.path, *list(place.path.resolve().parents)[:3]) if source else ():
        path = base / source
        if path.is_file() and sha256_file(path) == facts.get("sha256"):
            return path
    return None


def _options(record: Mapping[str, JsonLike]) -> dict[str, Any]:
    reading = record.get("reading")
    known = ("columns", "family_field", "id_field", "train_on")
    return {k: reading[k] for k in known if reading.get(k) is not None} if isinstance(reading, dict) else {}


@lru_cache(maxsize=8)
def _of_eval(path: Path, _changed: int, place: Place) -> Mapping[str, RowText]:
    reading = report_of(place).get("reading")
    columns = reading.get("eval_columns") if isinstance(reading, dict) else None
    try:
        return _by_id(load_rows(path, columns=columns, require_target=False, id_field=None).rows)
    except VerituneError:
        return {}


@lru_cache(maxsize=4)
def _of_study(path: Path, _changed: int) -> Mapping[str, RowText]:
    try:
        return _by_id([row_of(stored) for stored in read_parquet(path)])
    except (VerituneError, KeyError, TypeError, ValueError):
        return {}


@lru_cache(maxsize=4)
def _of_file(path: Path, _changed: int, _options_text: str, place: Place) -> Mapping[str, RowText]:
    try:
        return _by_id(load_rows(path, **_options(report_of(place))).rows)
    except VerituneError:
        return {}


def _by_id(rows: Sequence[Row]) -> Mapping[str, RowText]:
    return {row.id: RowText(said(row.messages), row) for row in rows}


# ---------------------------------------------------------------- the page


def decisions_file(place: Place) -> Path:
    """The file with decisions on families; the next audit into this folder applies it, and a study does if it names
    it."""
    return place.path / "review" / NAME


def family_facts(place: Place, texts: Mapping[str, RowText]) -> dict[str, Any]:
    """The facts that the page shows: the largest families, and which decisions were applied."""
    path, problem = decisions_file(place), ""
    standing: tuple[FamilyDecision, ...] = ()
    try:
        standing = read_family_decisions(path).decisions if path.exists() else ()
    except VerituneError as exc:
        problem = exc.message
    word = {d.pair: d.same for d in standing}
    grouped: dict[str, list[Mapping[str, Any]]] = {}
    try:
        grouped = members(place)
    except VerituneError as exc:
        problem = exc.message
    large = sorted((f for f in grouped.items() if len(f[1]) > 1), key=lambda f: (-len(f[1]), f[0]))
    return {
        "families": [_family(name, rows, texts, word) for name, rows in large[:SHOWN]],
        "n_families": len(large),
        "problem": problem,
        "standing": [{"a": d.a, "b": d.b, "word": WORDS[d.same], "same": _form(d.same)} for d in standing],
        "obeyed": _obeyed(place, path) if standing else "",
        "readable": bool(texts),
    }


def _form(word: bool | None) -> str:
    return next(text for text, value in SAME.items() if value is word)


def _obeyed(place: Place, path: Path) -> str:
    """Whether the families on this page were made from the decisions that stand now."""
    if place.kind == "audit":
        made = report_of(place).get("family_decisions")
        again = "the next audit with --out to this folder does"
    else:
        made = _frozen(place)
        name = path.relative_to(place.path).as_posix()
        again = f"write `family_decisions: {name}` under `data:` in study.yaml; if the study is frozen: veritune amend"
    known = made.get("sha256") if isinstance(made, dict) else None
    return (
        "these families have the decisions applied"
        if known == sha256_file(path)
        else (f"the decisions are not applied to these families yet: {again}")
    )


def _frozen(place: Place) -> Any:
    folder = data_folder(place)
    try:
        manifest = read_json(folder / "manifest.json") if folder is not None else {}
        return manifest["facts"]["families"].get("decisions")
    except (VerituneError, OSError, KeyError, TypeError, AttributeError):
        return None


def _family(
    name: str,
    rows: Sequence[Mapping[str, JsonValue]],
    texts: Mapping[str, RowText],
    word: Mapping[frozenset[str], bool | None],
) -> dict[str, JsonLike]:
    """A family: its first row beside each further one, with the words that they do not share."""
    pairs = [_pair(rows[0], row, texts, word) for row in rows[1:MEMBERS]]
    kinds = list(dict.fromkeys(str(row.get("evidence") or "evidence that is not recorded") for row in rows))
    first = texts.get(row_id(rows[0]))
    head = " ".join(first.text[:200].split())[:60] if first is not None else ""
    facts: dict[str, JsonLike] = {
        "name": name,
        "rows": rows,
        "evidence": kinds,
        "pairs": pairs,
        "head": f"“{head} …”" if head else "",
    }
    return {**facts, "more": max(0, len(rows) - MEMBERS)}


def row_id(row: Mapping[str, JsonLike]) -> str:
    """The row's id: `row_id` in an audit's file, `id` in a study's."""
    return str(row.get("row_id") or row.get("id"))


def _pair(
    a: Mapping[str, JsonLike],
    b: Mapping[str, JsonLike],
    texts: Mapping[str, RowText],
    word: Mapping[frozenset[str], bool | None],
) -> dict[str, JsonLike]:
    ids = (row_id(a), row_id(b))
    missing = "(the data file is not here, or has changed since the audit)"
    both = [texts[i].text[:LONGEST] if i in texts else missing for i in ids]
    found = differences(*both) or tuple((Piece(text, False),) for text in both)
    sides = [
        {"id": i, "evidence": row.get("evidence"), "similarity": row.get("similarity"), "pieces": pieces}
        for i, row, pieces in zip(ids, (a, b), found, strict=True)
    ]
    same = word.get(frozenset(ids))
    return {"sides": sides, "decided": WORDS[same], "seen": _form(same)}


def audit_decide(desk: Desk, form: Mapping[str, str], request: Request) -> Response:
    """Record that two rows are, or are not, one family. Raises InputError if that would contradict earlier
    decisions."""
    place = desk.place(request)
    a, b, same = form.get("a", "").strip(), form.get("b", "").strip(), form.get("same")
    families = {row_id(row): name for name, rows in members(place).items() for row in rows}
    for name in (a, b):
        if name not in families:
            raise UnknownAddress(
                f"{name[:80]!r} is not a row of this audit.", fix="Copy the row's id from the line above its text."
            )
    if a == b or same not in SAME:
        raise InputError("Expected two rows, and whether they are one family.", fix="Go back and choose both.")
    texts = told(place)
    if a not in texts or b not in texts:
        raise InputError(
            "The data file is missing or has changed since the audit, but a decision must refer to the rows' content.",
            fix="Run the audit again beside the data.",
        )
    if same == "no" and same_text(texts[a].row, texts[b].row):
        raise InputError(
            f"{a} and {b} have equal text: as separate families they would leak from one zone into another."
        )
    decision = FamilyDecision(a, b, SAME[same], row_sha256(texts[a].row), row_sha256(texts[b].row), now())
    decide_family(decisions_file(place), decision, SAME.get(form.get("seen", "")))
    note = f"saved: {a} and {b}: {WORDS[SAME[same]] or 'taken back'}"
    return to(f"/p/{place.id}/audit?{urlencode({'open': families[a], 'note': note})}#families")
