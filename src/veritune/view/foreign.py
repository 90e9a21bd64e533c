"""Score files of other tools as an index: read by the reader of `compare`, so that both say the same."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from veritune.untrusted import parse_json, read_bytes
from veritune.view.index import ScoreIndex, index_of

if TYPE_CHECKING:
    from veritune.records import JsonLike

PROMPTS = ("prompt", "question", "input", "query", "problem", "instruction")
OUTPUTS = ("output", "response", "completion", "generation", "prediction", "answer_text", "filtered_resps", "resps")


class ForeignIndex(ScoreIndex):
    """An index of another tool's file, with all records in memory because positions in its format are unknown."""

    records: Sequence[Mapping[str, Any]] = ()

    def lines(self, places: Sequence[int]) -> list[Mapping[str, JsonLike]]:
        """The records with these numbers, in the form of our own."""
        return [self.records[i] for i in places]

    def places_with(self, text: str) -> list[int]:
        """Numbers of the records whose output or prompt contains the text."""
        return [i for i, r in enumerate(self.records) if text in f"{r.get('prompt') or ''}\n{r.get('output') or ''}"]


def index_any(path: Path, *, own: bool) -> ScoreIndex:
    """The index of any score file. Raises ScoreError, as `veritune compare` does, for a file that it cannot read."""
    if own or _is_own(path):
        return index_of(path)
    stat = path.stat()
    return _foreign(path, stat.st_size, stat.st_mtime_ns)


def _is_own(path: Path) -> bool:
    if path.suffix != ".jsonl":
        return False
    with path.open("rb") as stream:
        try:
            first = parse_json(stream.readline(), finite=False)
        except ValueError:
            return False
    return isinstance(first, dict) and {"run_id", "item_id", "value", "eval"} <= first.keys()


@lru_cache(maxsize=64)
def _foreign(path: Path, _size: int, _changed: int) -> ScoreIndex:
    from veritune.evaluate.logs import read

    found = read(path)
    n = len(found.item)
    raw = _raw(path)
    bodies = raw if len(raw) == n else [{}] * n

    def column(values: Sequence[JsonLike]) -> list[str]:
        return ["" if v is None else str(v) for v in values] if len(values) == n else [""] * n

    reasons = column(found.reason)
    records = [
        {
            "item_id": str(found.item[i]),
            "value": found.value[i],
            "reason": reasons[i] or None,
            "output": _text(bodies[i], OUTPUTS),
            "prompt": _text(bodies[i], PROMPTS) or _text(bodies[i].get("doc"), PROMPTS),
            "parts": {"expected": _text(bodies[i], ("target", "expected", "gold"))},
        }
        for i in range(n)
    ]
    index = ForeignIndex(
        path=path,
        items=tuple(str(item) for item in found.item),
        family_N=np.array(column(found.family), dtype=np.str_),
        zone_N=np.array(column(found.zone), dtype=np.str_),
        reason_N=np.array(reasons, dtype=np.str_),
        value_N=np.array([np.nan if v is None else v for v in found.value], dtype=np.float64),
        cut_N=np.zeros(n, np.bool_),
        tokens_N=np.full(n, -1, np.int64),
        offset_N=np.arange(n, dtype=np.int64),
    )
    object.__setattr__(index, "records", records)
    return index


def _raw(path: Path) -> list[Mapping[str, JsonLike]]:
    """The file's own records in their order, where it is of a kind that has one a score; else none."""
    try:
        if path.suffix == ".jsonl":
            with path.open(encoding="utf-8") as stream:
                return [
                    row for line in stream if line.strip() and isinstance(row := parse_json(line, finite=False), dict)
                ]
        if path.suffix in (".csv", ".tsv"):
            with path.open(encoding="utf-8", newline="") as stream:
                return list(csv.DictReader(stream, delimiter="\t" if path.suffix == ".tsv" else ","))
        if path.suffix == ".json":
            document = parse_json(read_bytes(path), finite=False)
            rows = document.get("samples") if isinstance(document, dict) else document
            return [row for row in rows if isinstance(row, dict)] if isinstance(rows, list) else []
    except (OSError, ValueError):
        return []
    return []


def _text(record: JsonLike, names: Sequence[str]) -> str | None:
    if not isinstance(record, Mapping):
        return None
    for name in names:
        value = record.get(name)
        while isinstance(value, list) and value:
            value = value[0]
        if isinstance(value, Mapping):
            value = value.get("completion") or value.get("content")
        if isinstance(value, str) and value:
            return value
    return None
