"""Review packs, decisions, and the lineage of data versions.

A pack is a JSONL file of suspicious rows for a person to read: fill in `decision` (`keep`, `drop` or `edit`), `why`
and `reviewer`. `apply_decisions` turns it into the next version of the data; what was dropped or edited is counted by
reason. Beside the data lies `_lineage.jsonl`, a ledger to which every version and every retirement is appended, by
content hash, before the version's file appears: a process killed on the way leaves no version without its lineage.
A retirement is also written to a list of this user, so that a retired version is refused under any file name, in any
folder, and as any file that says the same rows.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import random
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal

from veritune.counting import grouped
from veritune.data.fields import LABEL_COLUMNS, TAKEN_OUT
from veritune.data.load import load_rows, require_clean, rows_from
from veritune.data.sources.raw import Cell, Reject
from veritune.data.split import stratum_of
from veritune.data.turns import messages_from
from veritune.errors import DataError
from veritune.ledger import CHAIN, Entry, Ledger
from veritune.records import (
    Finding,
    JsonLike,
    JsonValue,
    Message,
    Row,
    dumps,
    to_json,
)
from veritune.store import atomic, remove_left, sha256_file, whole_lines, write_text
from veritune.untrusted import parse_json

LEDGER = "_lineage.jsonl"
_LOG = logging.getLogger(__name__)
DECISIONS = ("keep", "drop", "edit")


@dataclass(frozen=True, slots=True)
class ReviewItem:
    """One row to review. `reasons` is empty for a control row, which is drawn from the unflagged rows."""

    row: Row
    reasons: tuple[str, ...]
    messages: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class ReviewDecision:
    """A reviewer's decision on a row; `row_sha256` is the hash of the row as reviewed, so that a stale decision is
    refused.
    """

    row_id: str
    decision: Literal["keep", "drop", "edit"]
    why: str
    reviewer: str
    row_sha256: str
    messages: tuple[Message, ...] = ()


@dataclass(frozen=True, slots=True)
class Applied:
    """The rows after review, and how many were kept, dropped and edited; `by_why` counts drops and edits by reason."""

    rows: tuple[Row, ...]
    kept: int
    dropped: int
    edited: int
    by_why: Mapping[str, int]
    decisions: tuple[ReviewDecision, ...] = ()


@dataclass(frozen=True, slots=True)
class Version:
    """One version of the data in a folder's lineage. `retired` is the reason why nobody may train on it any more."""

    sha256: str
    file: str
    rows: int | None
    parents: tuple[str, ...] = ()
    rejects: Mapping[str, int] = field(default_factory=dict)
    how: str = ""
    created: str = ""
    retired: str | None = None
    successor: str | None = None

    @property
    def short(self) -> str:
        return self.sha256[:12]


# ---------------------------------------------------------------- packs


def make_pack(
    rows: Sequence[Row], findings: Iterable[Finding], *, per_reason: int = 20, control: int = 10, seed: int = 0
) -> tuple[ReviewItem, ...]:
    """Suspicious rows to review: up to `per_reason` for each reason, over all sources, and `control` unflagged ones.

    The same rows, findings and seed give the same pack. Notes make no row suspicious.
    """
    texts: dict[str, dict[str, str]] = defaultdict(dict)
    for finding in findings:
        if finding.row_id is not None and finding.severity != "note":
            texts[finding.row_id].setdefault(finding.check, finding.message)
    by_id = {row.id: row for row in rows}
    reasons = sorted({reason for found in texts.values() for reason in found})
    chosen: set[str] = set()
    for reason in reasons:
        chosen |= set(_sample([by_id[i] for i in texts if reason in texts[i] and i in by_id], per_reason, seed, reason))
    calm = [row for row in rows if row.id not in texts]
    chosen |= set(_sample(calm, control, seed, "control"))
    return tuple(
        ReviewItem(row, tuple(texts.get(row.id, {})), tuple(texts.get(row.id, {}).values()))
        for row in rows
        if row.id in chosen
    )


def make_sample(
    rows: Sequence[Row], findings: Iterable[Finding], *, n: int = 50, seed: int = 0
) -> tuple[ReviewItem, ...]:
    """`n` rows that no check flags (notes ignored), drawn at random with the seed from all sources.

    A simple random sample: of n rows read, the share with a fault estimates the share among all unflagged rows.
    """
    flagged = {f.row_id for f in findings if f.row_id is not None and f.severity != "note"}
    calm = sorted((row for row in rows if row.id not in flagged), key=lambda row: row.id)
    drawn = {row.id for row in random.Random(f"{seed}\0unflagged").sample(calm, min(n, len(calm)))}
    return tuple(ReviewItem(row, (), ()) for row in rows if row.id in drawn)


def _sample(rows: Sequence[Row], n: int, seed: int, purpose: str) -> list[str]:
    """Ids of `n` rows, drawn in turn from each source (shuffled under the seed), so that no source is left out."""
    draw = random.Random(f"{seed}\0{purpose}")
    groups: dict[str, list[str]] = defaultdict(list)
    for row in sorted(rows, key=lambda r: r.id):
        groups[stratum_of(row, "source")].append(row.id)
    for name in sorted(groups):
        draw.shuffle(groups[name])
    order = sorted(groups)
    draw.shuffle(order)
    taken: list[str] = []
    while len(taken) < n and any(groups.values()):
        for name in order:
            if groups[name] and len(taken) < n:
                taken.append(groups[name].pop())
    return taken


def write_pack(items: Iterable[ReviewItem], path: str | Path) -> Path:
    """Write the pack as JSONL, one row per line, with empty fields `decision`, `why`, `reviewer` and `edited` for the
    reviewer.
    """
    lines = []
    for item in items:
        record = {
            "row_id": item.row.id,
            "row_sha256": row_sha256(item.row),
            "source": item.row.source,
            "line": item.row.line,
            "reasons": list(item.reasons),
            "found": list(item.messages),
            **item.row.to_chat(),
            "decision": None,
            "why": None,
            "reviewer": None,
            "edited": None,
        }
        lines.append(json.dumps(record, ensure_ascii=False) + "\n")
    write_text(Path(path), "".join(lines))
    return Path(path)


def row_sha256(row: Row) -> str:
    """Hash of a row's content: its id, turns and tools."""
    said = [row.id, row.messages, *([row.tools] if row.tools is not None else [])]
    return hashlib.sha256(dumps(said).encode("utf-8", "surrogatepass")).hexdigest()


# ---------------------------------------------------------------- decisions


def _edited(row: Row, messages: tuple[Message, ...]) -> Row:
    """The row with other turns; a column that held the answer, for rules to name, holds the new one."""
    before = row.messages[-1].content if row.messages else None
    meta = {k: messages[-1].content if messages and v == before else v for k, v in row.meta.items()}
    return replace(row, messages=messages, meta=meta)


def read_decisions(path: str | Path) -> tuple[ReviewDecision, ...]:
    """The decisions in a reviewed pack; undecided rows are left out. Raises DataError naming line and field."""
    decisions = []
    seen: dict[str, int] = {}
    try:
        lines = whole_lines(Path(path).read_bytes().decode("utf-8"), torn=True)
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{path} cannot be read: {error}.", fix="Save it as a JSONL file in UTF-8.") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        try:
            record = parse_json(line)
        except ValueError as error:
            raise DataError(f"{path}:{number}: broken JSON: {error}.", fix="Correct the line.") from None
        if not isinstance(record, dict):
            raise DataError(
                f"{path}:{number}: found {type(record).__name__}.", fix="Each line must be a row of the pack."
            )
        if record.get("decision") is None:
            continue
        decision = _decision(record, f"{path}:{number}")
        if decision.row_id in seen:
            raise DataError(
                f"{path}:{number}: {decision.row_id!r} was decided on line {seen[decision.row_id]} already.",
                fix="Keep one of the two lines.",
            )
        seen[decision.row_id] = number
        decisions.append(decision)
    return tuple(decisions)


def _decision(record: Mapping[str, Any], where: str) -> ReviewDecision:
    choice = record.get("decision")
    if choice not in DECISIONS:
        raise DataError(f"{where}: decision is {choice!r}.", fix=f"Expected {', '.join(DECISIONS)}, or null if open.")
    for name in ("row_id", "row_sha256", "reviewer", *(("why",) if choice != "keep" else ())):
        if not isinstance(record.get(name), str) or not record[name].strip():
            raise DataError(f"{where}: {choice} needs {name}, which is empty.", fix=f"Fill in {name}.")
    messages: tuple[Message, ...] = ()
    if choice == "edit":
        edited = record.get("edited")
        if not isinstance(edited, list) or not all(
            isinstance(m, dict) and isinstance(m.get("role"), str) and ("content" in m or "tool_calls" in m)
            for m in edited
        ):
            raise DataError(
                f"{where}: edit needs the edited messages, which are missing.",
                fix="Write the whole new list of messages in `edited`.",
            )
        try:
            messages = messages_from(edited, "edited")
        except Reject as bad:
            raise DataError(f"{where}: {bad.message}.", fix=f"Expected {bad.expected}.") from None
    why = str(record.get("why") or "")
    return ReviewDecision(record["row_id"], choice, why, record["reviewer"], record["row_sha256"], messages)


def apply_decisions(rows: Sequence[Row], decisions: Sequence[ReviewDecision]) -> Applied:
    """The next version's rows. Raises DataError for decisions on unknown rows, or on rows that have changed since."""
    by_id = {d.row_id: d for d in decisions}
    known = {row.id: row for row in rows}
    for decision in decisions:
        row = known.get(decision.row_id)
        if row is None:
            raise DataError(
                f"decision on {decision.row_id!r}, but this data has no such row.",
                fix="Use the review pack that was made from this data.",
            )
        if row_sha256(row) != decision.row_sha256:
            raise DataError(
                f"row {decision.row_id!r} has changed since it was reviewed.",
                fix="Make a new pack, and review the row again.",
            )
    after = []
    why: Counter[str] = Counter()
    for row in rows:
        made = by_id.get(row.id)
        if made is not None and made.decision != "keep":
            why[f"{made.decision}: {made.why}"] += 1
        if made is None or made.decision == "keep":
            after.append(row)
        elif made.decision == "edit":
            after.append(_edited(row, made.messages))
    edited = [row for row in after if row.id in by_id]
    if edited:
        require_clean(rows_from(edited, source="edited rows"))
    n = Counter(d.decision for d in decisions)
    return Applied(tuple(after), n["keep"], n["drop"], n["edit"], dict(sorted(why.items())), tuple(decisions))


# ---------------------------------------------------------------- versions


def write_version(
    rows: Sequence[Row],
    path: str | Path,
    *,
    parents: Sequence[str | Path],
    rejects: Mapping[str, int] | None = None,
    how: str = "",
) -> Version:
    """Write `rows` as JSONL and append the version to the lineage: parents by hash, counts, rejects by reason.

    The lineage comes first, the file appears after it. The same call may be given again after a kill, also when the
    file is there: the version that is recorded is handed back. Raises DataError when another file has that name.
    """
    target = Path(path)
    remove_left(target)
    known = {v.sha256: v for v in lineage(target.parent)}
    ledger = _lineage_of(target.parent)
    parent_sha = tuple(sha256_file(Path(parent)) for parent in parents)
    digest = hashlib.sha256()
    if target.exists():
        for row in rows:
            digest.update(_row_line(row).encode("utf-8"))
        version = known.get(digest.hexdigest())
        if version is None or version.file != target.name or sha256_file(target) != version.sha256:
            raise DataError(
                f"{target} already exists; a data version is never overwritten.", fix="Choose another file name."
            )
        return version
    with atomic(target) as stream:
        for row in rows:
            line = _row_line(row)
            digest.update(line.encode("utf-8"))
            stream.write(line)
        version = Version(digest.hexdigest(), target.name, len(rows), parent_sha, dict(rejects or {}), how, _now())
        for sha, parent in zip(parent_sha, parents):
            if sha not in known:
                ledger.append_once(_event(Version(sha, Path(parent).name, None, how="as it came")), _CREATED)
        ledger.append_once(_event(version), _CREATED)
    return next(v for v in lineage(target.parent) if v.sha256 == version.sha256)


_CREATED = ("created",)


def retire(
    path: str | Path,
    why: str,
    *,
    successor: str | Path | None = None,
    columns: Mapping[str, str] | None = None,
) -> Version:
    """Mark the version in `path` as one that nobody may train on any more. Raises DataError without a reason.

    Written to the folder's lineage and to `retired_list()`, with the hash of the file and, where rows can be read from
    it (`columns` as in `load_rows`), the hash of what they say.
    """
    if not why.strip():
        raise DataError(f"{path} cannot be retired without a reason.", fix="Say why.")
    file = Path(path)
    sha, other = sha256_file(file), sha256_file(Path(successor)) if successor else None
    record = {"event": "retired", "sha256": sha, "why": why, "successor": other, "created": _now()}
    record["rows_sha256"] = rows_hash(load_rows(file, columns=columns).rows)
    ledger = _lineage_of(file.parent)
    if all(v.sha256 != sha for v in lineage(file.parent)):
        ledger.append(_event(Version(sha, file.name, None, how="as it came")))
    after = str(Path(successor).resolve()) if successor else None
    _retire_in(ledger, record)
    _retire_in(Ledger(retired_list()), {**record, "file": str(file.resolve()), "after": after})
    return next(v for v in lineage(file.parent) if v.sha256 == sha)


def _retire_in(ledger: Ledger, record: Mapping[str, JsonValue]) -> None:
    """Append a retirement, unless the version's last one in this ledger says the same already."""
    before = [e for e in ledger.read() if e.get("event") == "retired" and e.get("sha256") == record["sha256"]]
    if not before or {**before[-1], "created": record["created"]} != {**before[-1], **record}:
        ledger.append(record)


def _lineage_of(folder: Path) -> Ledger:
    """A folder's lineage. No other record speaks of it, so its head is kept and a newest version cut off is missed."""
    return Ledger(folder / LEDGER, head=True)


def lineage(folder: str | Path) -> tuple[Version, ...]:
    """Every version in a folder's lineage, oldest first, with retirements applied.

    Raises FormatError or StaleError where the ledger is damaged or was edited, DataError where a line is no version.
    """
    file = Path(folder) / LEDGER
    versions: dict[str, Version] = {}
    for number, record in enumerate(_lineage_of(Path(folder)).read(), start=1):
        try:
            sha = record["sha256"]
            if record["event"] == "retired":
                versions[sha] = replace(versions[sha], retired=record["why"], successor=record["successor"])
                continue
            fields = {k: v for k, v in record.items() if k not in ("event", *CHAIN)}
            known = versions.get(sha)
            made = Version(**{**fields, "parents": tuple(fields["parents"])})
            versions[sha] = _copied(made, known) if known else made
        except (ValueError, KeyError, TypeError) as error:
            raise DataError(f"{file}:{number} is damaged: {error!r}.", fix="Restore the file from a copy.") from error
    return tuple(versions.values())


def _copied(made: Version, known: Version) -> Version:
    """The version under its new file name, retired as before; a copy of itself alone keeps where it came from."""
    made = replace(made, retired=known.retired, successor=known.successor)
    if set(made.parents) != {made.sha256}:
        return made
    return replace(made, parents=known.parents, rejects=known.rejects, how=known.how)


def rows_hash(rows: Sequence[Row]) -> str | None:
    """SHA-256 of the rows' content, role by role; ids, columns, order and file format do not matter. None without
    rows."""
    each = sorted(hashlib.sha256(json.dumps(_said(row)).encode()).digest() for row in rows)
    return hashlib.sha256(b"".join(each)).hexdigest() if each else None


def _said(row: Row) -> list[JsonLike]:
    """The turns as [role, content]; a turn that says more (calls, reasoning, a weight) whole; tools last."""
    turns = [[m.role, m.content] if m == Message(m.role, m.content) else m.to_chat() for m in row.messages]
    return [*turns, *([list(row.tools)] if row.tools is not None else [])]


def _weightless(row: Row) -> Row:
    """The row with loss on every answer: `train_on: last` makes no other data of it."""
    if all(m.weight is None for m in row.messages):
        return row
    return replace(row, messages=tuple(replace(m, weight=None) for m in row.messages))


def retired_list() -> Path:
    """The file that lists retirements of all folders: `$VERITUNE_RETIRED`, else in the user's data folder."""
    base = os.environ.get("XDG_DATA_HOME") or Path.home() / ".local" / "share"
    return Path(os.environ.get("VERITUNE_RETIRED") or Path(base) / "veritune" / "retired.jsonl")


def require_usable(path: str | Path, sha256: str | None = None, rows: Sequence[Row] | None = None) -> None:
    """Raises DataError if the data in `path` is a retired version, whatever its file is called and wherever it lies.

    Looked for in the lineage of the folder and in `retired_list()`: by the file's hash and, where `rows` are given,
    by the hash of what they say. The version that was named as the successor may say the same. A lineage that is
    damaged stops the data beside it; the user's list, which speaks of everybody's data, then only warns.
    """
    file = Path(path)
    folder = file if file.is_dir() else file.parent
    try:
        everywhere, problem = Ledger(retired_list()).salvage()
    except (OSError, RuntimeError) as error:  # a home that cannot be read, or that nobody knows
        everywhere, problem = [], f"The list of retired data cannot be read: {error}"
    if problem is not None:
        why = problem.rstrip(".")
        _LOG.warning("%s. Retirements that stood there may be missed: restore it from a copy, or remove it.", why)
    events = [*_retirements(_lineage_of(folder).read()), *_retirements(everywhere)]
    if not events:
        return
    sha = sha256 or sha256_file(file)
    said = {rows_hash(rows), rows_hash([_weightless(row) for row in rows])} if rows else set()
    for event in {e["sha256"]: e for e in events}.values():  # of one version the latest
        same_rows = event.get("rows_sha256") in said and event.get("successor") != sha
        if event["sha256"] != sha and not same_rows:
            continue
        known = {v.sha256: v.file for v in lineage(folder)}
        after = known.get(event.get("successor") or "") or event.get("after")
        what = "is" if event["sha256"] == sha else "has row for row the content of the retired"
        raise DataError(
            f"{file.name} {what} data version {event['sha256'][:12]}, retired: {event['why']}.",
            fix=f"Train on {after} instead."
            if after
            else (f"Make or choose another version (retirements: {retired_list()})."),
        )


def _retirements(entries: Sequence[Entry]) -> list[Entry]:
    """The retirements among a ledger's entries."""
    retired = (entry for entry in entries if entry.get("event") == "retired")
    return [entry for entry in retired if isinstance(entry.get("sha256"), str) and isinstance(entry.get("why"), str)]


def shown(text: str) -> str:
    """Untrusted text on one line, with invisible characters (control and format characters, lone surrogates) shown as
    U+FFFD.
    """
    return "".join("\ufffd" if unicodedata.category(c)[0] in "CZ" and c != " " else c for c in text)


def draw_lineage(versions: Sequence[Version]) -> str:
    """The lineage as a text tree, with each version under its first parent."""
    known = {v.sha256 for v in versions}
    children: dict[str | None, list[Version]] = defaultdict(list)
    for version in versions:
        parent = next((p for p in version.parents if p in known and p != version.sha256), None)
        children[parent].append(version)
    lines: list[str] = []
    seen: set[str] = set()

    def walk(version: Version, indent: str, last: bool, top: bool) -> None:
        if version.sha256 in seen:
            return
        seen.add(version.sha256)
        stem = "" if top else indent + ("└─ " if last else "├─ ")
        rows = "rows unknown" if version.rows is None else f"{grouped(version.rows, 'rows')}"
        rejects = ", ".join(f"{n:,} {why}" for why, n in version.rejects.items())
        gone = f"; without {rejects}" if rejects else ""
        retired = f"  RETIRED: {version.retired}" if version.retired else ""
        more = f"; also from {', '.join(p[:12] for p in version.parents[1:])}" if len(version.parents) > 1 else ""
        lines.append(stem + shown(f"{version.file} [{version.short}] {rows}{gone}{more}{retired}"))
        inside = children[version.sha256]
        for i, child in enumerate(inside):
            walk(child, "" if top else indent + ("   " if last else "│  "), i == len(inside) - 1, False)

    for root in (*children[None], *versions):  # a version that became its own parent's parent begins a tree too
        walk(root, "", True, True)
    return "\n".join(lines)


def _row_line(row: Row) -> str:
    """A row as JSON: id, messages, every other column as it came, and where it was read."""
    record: dict[str, Any] = {"id": row.id, **row.to_chat()}
    kept = {
        k: v for k, v in row.meta.items() if k not in TAKEN_OUT and not (k in LABEL_COLUMNS and isinstance(v, bool))
    }
    record.update((k, _jsonable(v)) for k, v in kept.items() if k not in record)
    return json.dumps(record, ensure_ascii=False, allow_nan=False) + "\n"


def _jsonable(value: Cell) -> JsonValue:
    """Plain JSON, with dates and other table values as their text."""
    try:
        plain: JsonValue = to_json(value)
        return plain
    except (TypeError, ValueError):
        if isinstance(value, Mapping):
            return {str(k): _jsonable(v) for k, v in value.items()}
        if isinstance(value, list | tuple):
            return [_jsonable(v) for v in value]
        return None if isinstance(value, float) else str(value)


def _event(version: Version) -> dict[str, JsonLike]:
    fields = {k: v for k, v in to_json(version).items() if k not in ("retired", "successor")}
    return {"event": "version", **fields, "created": version.created or _now()}


def _now() -> str:
    return datetime.now(UTC).isoformat(timespec="seconds")
