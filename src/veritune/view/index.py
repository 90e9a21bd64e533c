"""A score file by columns, with the place of every line, so that a page reads only the lines that it shows.

The JSONL stays the only copy of the outputs. The index is kept in the user's cache folder under the file's path, size
and time of change; a study folder is never written to, and deleting the cache loses nothing.
"""

from __future__ import annotations

import hashlib
import json
import mmap
import os
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from veritune.untrusted import parse_json

if TYPE_CHECKING:
    from typing import BinaryIO

    from veritune.records import JsonLike

VERSION = 2
CUT = "length"
"""How a recorded output ended at the token limit (`parts.ended`)."""


@dataclass(frozen=True)
class ScoreIndex:
    """Columns over the N lines of one score file. `value_N` is NaN if there is no score; offsets are in bytes.

    `unread` counts lines that are no record: a line that is still being written, or a damaged one.
    """

    path: Path
    items: tuple[str, ...]
    family_N: NDArray[np.str_]
    zone_N: NDArray[np.str_]
    reason_N: NDArray[np.str_]
    value_N: NDArray[np.float64]
    cut_N: NDArray[np.bool_]
    tokens_N: NDArray[np.int64]
    offset_N: NDArray[np.int64]
    rules: tuple[str, ...] = ()
    held_N_R: NDArray[np.int8] | None = None
    unread: int = 0

    def __len__(self) -> int:
        return len(self.items)

    @property
    def binary(self) -> bool:
        """Whether every score is 0 or 1, so that an item can flip."""
        known = self.value_N[~np.isnan(self.value_N)]
        return bool(known.size) and bool(np.isin(known, (0.0, 1.0)).all())

    def lines(self, places: Sequence[int]) -> list[Mapping[str, JsonLike]]:
        """The records on these lines, read from the file."""
        with self.path.open("rb") as stream:
            return [self._line(stream, int(self.offset_N[i])) for i in places]

    def places_with(self, text: str) -> list[int]:
        """Numbers of the lines that contain the text, as JSON writes it with and without escapes; case-sensitive."""
        forms = {json.dumps(text, ensure_ascii=flag)[1:-1].encode("utf-8", "surrogatepass") for flag in (True, False)}
        hits: set[int] = set()
        if not len(self) or not text or not self.path.stat().st_size:
            return []
        with self.path.open("rb") as stream, mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ) as whole:
            for form in forms:
                at = whole.find(form)
                while at >= 0:
                    place = int(np.searchsorted(self.offset_N, at, side="right")) - 1
                    hits.add(place)
                    at = whole.find(form, int(self.offset_N[place + 1]) if place + 1 < len(self) else len(whole))
        return sorted(hits)

    @staticmethod
    def _line(stream: BinaryIO, offset: int) -> Mapping[str, JsonLike]:
        stream.seek(offset)
        record = parse_json(stream.readline(), finite=False)
        return record if isinstance(record, dict) else {}


def index_of(path: Path) -> ScoreIndex:
    """The index of a score file: from memory, else from the cache, else built from the file."""
    stat = path.stat()
    return _index(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _index(path: Path, size: int, mtime_ns: int) -> ScoreIndex:
    kept = _cache_file(path, size, mtime_ns)
    if (found := _load(path, kept)) is not None:
        return found
    made = _read(path)
    if size > 1_000_000:
        _save(made, kept)
    return made


def _read(path: Path) -> ScoreIndex:
    """Read the whole file once. A line that is no object is counted and left out."""
    columns: dict[str, list[Any]] = {k: [] for k in ("item", "family", "zone", "reason", "value", "cut", "n", "at")}
    rules: dict[str, int] = {}
    held: list[dict[int, bool]] = []
    at = unread = 0
    with path.open("rb") as stream:
        for line in stream:
            start, at = at, at + len(line)
            row = _record(line)
            if row is None:
                unread += bool(line.strip())
                continue
            parts = dict_at(row, "parts")
            value = row.get("value")
            columns["item"].append(str(row.get("item_id")))
            columns["family"].append(_text(row.get("family")))
            columns["zone"].append(_text(row.get("zone")))
            columns["reason"].append(_text(row.get("reason")))
            columns["value"].append(np.nan if (known := number_of(value)) is None else known)
            columns["cut"].append(parts.get("ended") == CUT)
            columns["n"].append(int(parts["n_tokens"]) if isinstance(parts.get("n_tokens"), int) else -1)
            columns["at"].append(start)
            marks = dict_at(parts, "rules")
            held.append({rules.setdefault(str(name), len(rules)): bool(ok) for name, ok in marks.items()})
    return replace(_columns(path, columns, tuple(rules), held), unread=unread)


def _record(line: bytes) -> Mapping[str, Any] | None:
    try:
        row = parse_json(line, finite=False)
    except ValueError:
        return None
    return row if isinstance(row, dict) else None


def _columns(
    path: Path, columns: Mapping[str, list[Any]], rules: tuple[str, ...], held: Sequence[Mapping[int, bool]]
) -> ScoreIndex:
    held_N_R = np.full((len(held), len(rules)), -1, np.int8) if rules else None
    if held_N_R is not None:
        for n, marks in enumerate(held):
            for r, ok in marks.items():
                held_N_R[n, r] = ok
    return ScoreIndex(
        path=path,
        items=tuple(columns["item"]),
        family_N=np.array(columns["family"], dtype=np.str_),
        zone_N=np.array(columns["zone"], dtype=np.str_),
        reason_N=np.array(columns["reason"], dtype=np.str_),
        value_N=np.array(columns["value"], dtype=np.float64),
        cut_N=np.array(columns["cut"], dtype=np.bool_),
        tokens_N=np.array(columns["n"], dtype=np.int64),
        offset_N=np.array(columns["at"], dtype=np.int64),
        rules=rules,
        held_N_R=held_N_R,
    )


def dict_at(record: Mapping[str, JsonLike], name: str) -> Mapping[str, Any]:
    """An object inside a record; an empty one if there is none."""
    found = record.get(name)
    return found if isinstance(found, dict) else {}


def number_of(value: JsonLike) -> float | None:
    """A score as a number; None if it is not one, also for NaN and infinity."""
    return float(value) if isinstance(value, int | float) and abs(value) <= sys.float_info.max else None


def _text(value: JsonLike) -> str:
    return "" if value is None else str(value)


# ---------------------------------------------------------------- the cache


def cache_folder() -> Path:
    """The folder for cached indexes: XDG's cache folder."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "veritune" / "view"


def _cache_file(path: Path, size: int, mtime_ns: int) -> Path:
    key = hashlib.sha256(f"{VERSION}\0{path.resolve()}\0{size}\0{mtime_ns}".encode()).hexdigest()[:32]
    return cache_folder() / f"{key}.npz"


def _save(index: ScoreIndex, kept: Path) -> None:
    """Best effort: a cache that cannot be written costs time, not truth."""
    names = np.frombuffer(json.dumps([index.items, index.rules, index.unread]).encode(), dtype=np.uint8)
    arrays = {k: getattr(index, k) for k in ("value_N", "cut_N", "tokens_N", "offset_N")}
    arrays |= {k: getattr(index, k) for k in ("family_N", "zone_N", "reason_N")}
    if index.held_N_R is not None:
        arrays["held_N_R"] = index.held_N_R
    try:
        kept.parent.mkdir(parents=True, exist_ok=True)
        fresh = kept.with_name(f".{kept.stem}.{os.getpid()}.npz")
        np.savez(fresh, names=names, **arrays)
        fresh.replace(kept)
    except OSError:
        return


def _load(path: Path, kept: Path) -> ScoreIndex | None:
    try:
        with np.load(kept, allow_pickle=False) as found:
            items, rules, unread = json.loads(found["names"].tobytes())
            arrays = {k: found[k] for k in found.files if k != "names"}
    except (OSError, ValueError, KeyError, EOFError):
        return None
    return ScoreIndex(path=path, items=tuple(items), rules=tuple(rules), unread=unread, **arrays)
