"""What a running cell has written since the last look: lines of `metrics.jsonl` after a byte offset."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.untrusted import parse_json

if TYPE_CHECKING:
    from veritune.records import JsonLike

MOST = 1_000_000
"""Bytes read in one look; a page that is far behind catches up over several."""


@dataclass(frozen=True)
class Tail:
    """The complete lines after `start`, as records, and the byte from which to read next."""

    rows: tuple[dict[str, Any], ...]
    next: int


def tail(path: Path, start: int) -> Tail:
    """The records after byte `start`. A file that became shorter is read from its beginning."""
    if not path.exists():
        return Tail((), 0)
    with path.open("rb") as stream:
        size = stream.seek(0, 2)
        start = start if 0 <= start <= size else 0
        stream.seek(start)
        block = stream.read(MOST)
    whole = block[: block.rfind(b"\n") + 1]
    rows = []
    for line in whole.splitlines():
        try:
            row = parse_json(line, finite=False)
        except ValueError:
            continue
        if isinstance(row, dict):
            rows.append(row)
    return Tail(tuple(rows), start + len(whole))


def whole(path: Path) -> tuple[dict[str, JsonLike], ...]:
    """Every record of the file."""
    rows: list[dict[str, Any]] = []
    start = 0
    while (found := tail(path, start)).next > start:
        rows += found.rows
        start = found.next
    return tuple(rows)


def gradient_shares(rows: tuple[dict[str, Any], ...]) -> dict[str, list[tuple[int, float]]]:
    """Step and share of the squared gradient norm by kind of module; a step without a share is left out."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        by_type = row["share"].get("type") if isinstance(row.get("share"), dict) else None
        for name, value in by_type.items() if isinstance(by_type, dict) else ():
            if isinstance(row.get("step"), int) and isinstance(value, int | float):
                found.setdefault(str(name), []).append((row["step"], float(value)))
    return found


def points(rows: tuple[dict[str, Any], ...]) -> dict[str, list[tuple[int, float]]]:
    """Step and value by curve: loss on trained rows, loss on validation rows, named metrics."""
    found: dict[str, list[tuple[int, float]]] = {}
    for row in rows:
        step, split, metric = row.get("step"), row.get("split"), row.get("metric")
        if not isinstance(step, int):
            continue
        if isinstance(row.get("loss"), int | float):
            name = "validation" if split == "validation" else "loss"
            found.setdefault(name, []).append((step, float(row["loss"])))
        if isinstance(metric, dict) and isinstance(metric.get("value"), int | float):
            found.setdefault(str(metric.get("name")), []).append((step, float(metric["value"])))
    return found
