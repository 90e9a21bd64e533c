"""Decisions of reviewers: one file a pack and reviewer, one line a decision, on disk before the answer is sent.

The last line of an item counts, and an undo is a line too, so nothing is overwritten and a killed server loses at most
a line that was never answered. A reviewer does not see another's decisions before the pack is done; agreement is
computed over the items that both decided.
"""

from __future__ import annotations

import fcntl
import json
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np

from veritune.data.family_decisions import contradiction, read_family_decisions
from veritune.errors import InputError, StaleError
from veritune.records import FamilyDecision, JsonLike, dumps
from veritune.stats.agreement import Agreement, krippendorff_alpha
from veritune.stats.intervals import t_quantile
from veritune.store import write_text
from veritune.untrusted import parse_json

REVIEWER = re.compile(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,39}")


@dataclass(frozen=True)
class Choice:
    """The present decision on an item; `number` counts all decisions on it, including undone ones."""

    item: str
    decision: str | None
    why: str
    edited: str | None
    number: int
    time: str


def folder_of(pack: Path) -> Path:
    """The folder with the decisions on a pack, beside the pack."""
    return pack.with_name(f"{pack.stem}.decisions")


def _file(pack: Path, reviewer: str) -> Path:
    if not REVIEWER.fullmatch(reviewer):
        raise InputError(
            f"{reviewer[:40]!r} cannot be used as a reviewer's name.",
            fix="Use letters, digits, dots, dashes and underscores.",
        )
    return folder_of(pack) / f"{reviewer}.jsonl"


def choices(pack: Path, reviewer: str) -> dict[str, Choice]:
    """The last decision of one reviewer on each item; an incomplete last line is ignored."""
    path = _file(pack, reviewer)
    found: dict[str, Choice] = {}
    for row in _rows(path):
        item = str(row["item"])
        number = found[item].number + 1 if item in found else 1
        found[item] = Choice(
            item, row.get("decision"), str(row.get("why") or ""), row.get("edited"), number, str(row.get("time"))
        )
    return found


def _rows(path: Path) -> Iterator[Mapping[str, Any]]:
    if not path.exists():
        return
    for line in path.read_bytes().split(b"\n"):
        try:
            row = parse_json(line, finite=False)
        except ValueError:
            continue
        if isinstance(row, dict) and "item" in row:
            yield row


def decide(pack: Path, reviewer: str, item: str, seen: int, **facts: str | None) -> Choice:
    """Append one decision and flush it to disk. `seen` is the number of the decision that the page showed.

    Raises StaleError where another tab has decided since, with what stands now.
    """
    path = _file(pack, reviewer)
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        now = choices(pack, reviewer).get(item)
        if (now.number if now else 0) != seen:
            kept = "nothing" if now is None or now.decision is None else f"{now.decision!r}"
            raise StaleError(
                f"{item} was decided elsewhere since this page was drawn: {kept}.",
                fix="Load the page again, and decide again.",
            )
        row = {"item": item, **facts, "time": datetime.now(UTC).isoformat(timespec="seconds")}
        start = b"\n" if stream.tell() and not _ends_whole(path) else b""
        stream.write(start + json.dumps(row, ensure_ascii=False).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())
    return choices(pack, reviewer)[item]


def decide_family(path: Path, decision: FamilyDecision, seen: bool | None) -> None:
    """Append a decision on two rows and flush it to disk. `seen` is the decision on them that the page showed.

    Raises StaleError where it is another one now, and InputError where decisions would contradict each other. A line
    that a killed server left half written was never answered: it is cut off.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("a+b") as stream:
        fcntl.flock(stream, fcntl.LOCK_EX)
        standing = read_family_decisions(path).decisions
        word = next((d.same for d in standing if d.pair == decision.pair), None)
        if word is not seen:
            raise StaleError(
                f"{decision.a} and {decision.b} were decided elsewhere since this page was drawn.", fix="Look again."
            )
        others = [d for d in standing if d.pair != decision.pair]
        if (text := contradiction([*others, decision])) is not None:
            raise InputError(f"The {text}.", fix="Undo one of these decisions first.")
        stream.seek(0)
        stream.truncate(stream.read().rfind(b"\n") + 1)
        stream.write(dumps(decision).encode() + b"\n")
        stream.flush()
        os.fsync(stream.fileno())


def _ends_whole(path: Path) -> bool:
    with path.open("rb") as stream:
        stream.seek(-1, os.SEEK_END)
        return stream.read(1) == b"\n"


def reviewers(pack: Path) -> list[str]:
    """Names of all reviewers with decisions on this pack."""
    return sorted(path.stem for path in folder_of(pack).glob("*.jsonl"))


def merged(pack: Path) -> Path:
    """Write the pack with its decisions filled in, as `veritune review` reads it; returns the file's path.

    A row that reviewers decided differently stays open, and so does one that nobody decided.
    """
    found = {name: choices(pack, name) for name in reviewers(pack)}
    lines = []
    for row in rows_of(pack):
        item = str(row["row_id"])
        made = [(name, by[item]) for name, by in found.items() if item in by and by[item].decision is not None]
        agreed = made and len({(c.decision, c.edited) for _, c in made}) == 1
        lines.append(json.dumps({**row, **(_filled(row, *made[-1]) if agreed else {})}, ensure_ascii=False))
    out = pack.with_name(f"{pack.stem}.reviewed.jsonl")
    write_text(out, "".join(line + "\n" for line in lines))
    return out


def _filled(row: Mapping[str, Any], reviewer: str, choice: Choice) -> dict[str, JsonLike]:
    facts: dict[str, Any] = {
        "decision": choice.decision,
        "why": choice.why or None,
        "reviewer": reviewer,
        "edited": None,
    }
    if choice.decision == "edit":
        turns = list(row.get("messages") or ())
        facts["edited"] = [*turns[:-1], {**turns[-1], "content": choice.edited}] if turns else []
    return facts


def rows_of(pack: Path) -> list[Mapping[str, Any]]:
    """The rows of a pack in order; lines that are not rows are left out."""
    found: list[Mapping[str, Any]] = []
    for line in pack.read_bytes().split(b"\n"):
        try:
            row = parse_json(line, finite=False)
        except ValueError:
            continue
        if isinstance(row, dict) and row.get("row_id") is not None:
            found.append({"source": "", "line": None, "found": [], "messages": [], **row})
    return found


@dataclass(frozen=True)
class Agreed:
    """Krippendorff's alpha over items that at least two reviewers decided, with a jackknife interval over items."""

    agreement: Agreement
    low: float | None
    high: float | None


def agreement(pack: Path, kinds: Sequence[str]) -> Agreed | None:
    """How far the reviewers agree on the kind of decision; None with fewer than two reviewers."""
    names = reviewers(pack)
    if len(names) < 2:
        return None
    by_reviewer = [choices(pack, name) for name in names]
    items = sorted({item for found in by_reviewer for item in found})
    value_R_N = np.full((len(names), len(items)), np.nan)
    for r, found in enumerate(by_reviewer):
        for n, item in enumerate(items):
            if item in found and found[item].decision in kinds:
                value_R_N[r, n] = kinds.index(str(found[item].decision))
    return _with_interval(value_R_N)


def _with_interval(value_R_N: np.ndarray[Any, np.dtype[np.float64]]) -> Agreed:
    """Delete-one-item jackknife with a t quantile over the items that two rated, cut at 1."""
    whole = krippendorff_alpha(value_R_N, "nominal")
    rated = np.flatnonzero((~np.isnan(value_R_N)).sum(axis=0) >= 2)
    if whole.alpha is None or rated.size < 3:
        return Agreed(whole, None, None)
    left = [krippendorff_alpha(np.delete(value_R_N, n, axis=1), "nominal").alpha for n in rated]
    if any(alpha is None for alpha in left):
        return Agreed(whole, None, None)
    alpha_N = np.array(left, dtype=np.float64)
    n = alpha_N.size
    half = t_quantile(0.975, n - 1) * float(np.sqrt((n - 1) / n * ((alpha_N - alpha_N.mean()) ** 2).sum()))
    return Agreed(whole, max(-1.0, whole.alpha - half), min(1.0, whole.alpha + half))
