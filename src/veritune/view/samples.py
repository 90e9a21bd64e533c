"""Outputs of two or more runs on the same items: filters, counts, pages, export.

The items are those of the first run, in its order. A filter chooses items after the scores are known: what it shows of
the two arms is described, never tested, and says so.
"""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import Any, NamedTuple
from urllib.parse import urlencode

import numpy as np
from numpy.typing import NDArray

from veritune.records import JsonLike, JsonValue
from veritune.view.diff import Piece, differences
from veritune.view.index import ScoreIndex, dict_at, number_of

PAGE = 20
SHOWS = ("all", "a", "b", "same", "failed", "cut", "missing")
Bools = NDArray[np.bool_]


@dataclass(frozen=True)
class Query:
    """What a page asks for: the runs to show (the first two are A and B), and which items."""

    runs: tuple[str, ...] = ()
    eval: str = ""
    zone: str = ""
    family: str = ""
    rule: str = ""
    text: str = ""
    show: str = "all"
    item: str = ""
    page: int = 1

    @classmethod
    def of(cls, pairs: Sequence[tuple[str, str]]) -> Query:
        """A query from the parameters of an address; unknown ones are ignored, and an invalid page number means the
        first.
        """
        last = dict(pairs)
        number = last.get("page", "1")
        return cls(
            runs=tuple(dict.fromkeys(v for k, v in pairs if k == "run" and v)),
            show=last["show"] if last.get("show") in SHOWS else "all",
            page=max(1, int(number)) if number.isdecimal() and len(number) < 9 else 1,
            **{k: last.get(k, "") for k in ("eval", "zone", "family", "rule", "text", "item")},
        )

    def address(self, **changes: Any) -> str:
        """The query part of an address for this query, with some values changed."""
        asked = replace(self, **changes)
        pairs = [("run", run) for run in asked.runs]
        pairs += [
            (k, getattr(asked, k)) for k in ("eval", "zone", "family", "rule", "text", "item") if getattr(asked, k)
        ]
        pairs += [("show", asked.show)] if asked.show != "all" else []
        pairs += [("page", str(asked.page))] if asked.page > 1 else []
        return "?" + urlencode(pairs)

    @property
    def chooses(self) -> bool:
        """Whether a filter is active that depends on results or on a reader's choice of items."""
        return bool(self.family or self.rule or self.text or self.item) or self.show != "all"


@dataclass(frozen=True)
class Joined:
    """Runs aligned by item. `place_S_N` is the line of each item in each run's file, -1 if the run lacks it."""

    runs: tuple[str, ...]
    indexes: tuple[ScoreIndex, ...]
    place_S_N: NDArray[np.int64]
    value_S_N: NDArray[np.float64]

    @property
    def first(self) -> ScoreIndex:
        return self.indexes[0]

    def column(self, run: int, name: str) -> NDArray[Any]:
        """A column of one run's index, in the order of the first run's items; False or empty if the run lacks the
        item."""
        values = getattr(self.indexes[run], name)
        place_N = self.place_S_N[run]
        found = values[np.maximum(place_N, 0)] if len(values) else np.zeros(place_N.size, values.dtype)
        return np.where(place_N >= 0, found, np.zeros(1, found.dtype))


def join(runs: Sequence[tuple[str, ScoreIndex]]) -> Joined:
    """Align runs by item id; if an id occurs several times in a file, by its occurrence number too."""
    return _join(tuple(name for name, _ in runs), tuple(_Held(index) for _, index in runs))


@dataclass(frozen=True)
class _Held:
    index: ScoreIndex

    def __hash__(self) -> int:
        return id(self.index)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, _Held) and other.index is self.index


@lru_cache(maxsize=32)
def _join(names: tuple[str, ...], held: tuple[_Held, ...]) -> Joined:
    indexes = tuple(h.index for h in held)
    keys = _counted(indexes[0].items)
    place_S_N = np.full((len(indexes), len(keys)), -1, np.int64)
    value_S_N = np.full(place_S_N.shape, np.nan)
    for s, index in enumerate(indexes):
        if index.items == indexes[0].items:
            place_S_N[s] = np.arange(len(keys))
        else:
            where = {key: n for n, key in enumerate(_counted(index.items))}
            place_S_N[s] = [where.get(key, -1) for key in keys]
        there_N = place_S_N[s] >= 0
        value_S_N[s, there_N] = index.value_N[place_S_N[s, there_N]]
    return Joined(names, indexes, place_S_N, value_S_N)


def _counted(items: Sequence[str]) -> list[tuple[str, int]]:
    seen: dict[str, int] = {}
    keys = []
    for item in items:
        seen[item] = seen.get(item, 0) + 1
        keys.append((item, seen[item]))
    return keys


# ---------------------------------------------------------------- which items


@dataclass(frozen=True)
class FilteredItems:
    """The items that match a query, by index in the first run, with the counts that the filter chips show."""

    places: NDArray[np.int64]
    counts: Mapping[str, int]
    means: tuple[tuple[float | None, int], ...]
    zones: Mapping[str, int]
    cut_text: bool = False


def select(joined: Joined, query: Query, prompts: Mapping[str, str] | None = None) -> FilteredItems:
    """The items that match a query. A chip's count applies all filters except the chip itself."""
    zone_N = joined.first.zone_N
    keep_N: Bools = np.ones(len(joined.first), dtype=np.bool_)
    if query.zone:
        keep_N &= zone_N == query.zone
    if query.family:
        keep_N &= joined.first.family_N == query.family
    if query.item:
        keep_N &= np.array([item == query.item for item in joined.first.items], dtype=np.bool_)
    if query.rule:
        keep_N &= _broken(joined, query.rule)
    if query.text:
        keep_N &= _holding(joined, query.text, prompts or {})
    chips = _chips(joined)
    shown_N = keep_N & chips[query.show]
    means = tuple(_mean(value_N[shown_N]) for value_N in joined.value_S_N)
    zones = {str(z): int((keep_N & (zone_N == z)).sum()) for z in np.unique(zone_N)} if len(zone_N) else {}
    return FilteredItems(np.flatnonzero(shown_N), {k: int((keep_N & m).sum()) for k, m in chips.items()}, means, zones)


def _chips(joined: Joined) -> dict[str, Bools]:
    """One mask a chip. A missing score on either side is in no comparison."""
    everything = np.ones(len(joined.first), dtype=np.bool_)
    a_N = joined.value_S_N[0]
    b_N = joined.value_S_N[1] if len(joined.runs) > 1 else np.full(a_N.shape, np.nan)
    reasons = [joined.column(s, "reason_N") for s in range(len(joined.runs))]
    there = [joined.place_S_N[s] >= 0 for s in range(len(joined.runs))]
    with np.errstate(invalid="ignore"):
        return {
            "all": everything,
            "a": a_N > b_N,
            "b": b_N > a_N,
            "same": a_N == b_N,
            "failed": np.any([reason_N == "extraction_failed" for reason_N in reasons], axis=0),
            "cut": np.any([joined.column(s, "cut_N") for s in range(len(joined.runs))], axis=0),
            "missing": np.any([np.isnan(v) | ~t for v, t in zip(joined.value_S_N, there, strict=True)], axis=0),
        }


def _mean(value_N: NDArray[np.float64]) -> tuple[float | None, int]:
    known = value_N[~np.isnan(value_N)]
    return (float(known.mean()) if known.size else None), int(known.size)


def _broken(joined: Joined, rule: str) -> Bools:
    """Items on which the rule does not hold in at least one of the runs."""
    masks = []
    for s, index in enumerate(joined.indexes):
        if rule in index.rules and index.held_N_R is not None:
            column = index.held_N_R[:, index.rules.index(rule)][np.maximum(joined.place_S_N[s], 0)]
            masks.append((column == 0) & (joined.place_S_N[s] >= 0))
    return np.any(masks, axis=0) if masks else np.zeros(len(joined.first), dtype=np.bool_)


def _holding(joined: Joined, text: str, prompts: Mapping[str, str]) -> Bools:
    """Items whose record holds the text in any of the runs, or whose prompt does; case is kept."""
    found_N = np.array([text in prompts.get(item, "") for item in joined.first.items], dtype=np.bool_)
    for s, index in enumerate(joined.indexes):
        place_N = joined.place_S_N[s]
        found_N |= (place_N >= 0) & np.isin(place_N, index.places_with(text))
    return found_N


# ---------------------------------------------------------------- what a page shows


BINS = (0.1, 0.5, 1.0, 2.0, 4.0)
"""Nats from which a token has the next deeper ground; 0.1 is a probability of 90 %, 4 one of 2 %."""


class TokenLoss(NamedTuple):
    """A token of an answer with its loss in nats, and which of the six background colours it gets."""

    text: str
    nats: float
    ground: int


def token_losses(parts: Mapping[str, JsonLike]) -> tuple[TokenLoss, ...]:
    """The recorded loss of every token; empty if none is recorded, or not in this form."""
    found = parts.get("token_losses")
    pairs = [p for p in found if isinstance(p, list) and len(p) == 2] if isinstance(found, list) else []
    good = [(str(t), float(v)) for t, v in pairs if isinstance(v, int | float) and not isinstance(v, bool)]
    if not isinstance(found, list) or len(good) < len(found):
        return ()
    return tuple(TokenLoss(text, nats, int(np.searchsorted(BINS, nats, side="right"))) for text, nats in good)


@dataclass(frozen=True)
class ShownAnswer:
    """One run's answer to an item: `pieces` mark the words that the other of A and B lacks; None: too long to mark."""

    run: str
    letter: str
    value: float | None
    reason: str | None
    output: str | None
    pieces: tuple[Piece, ...] | None
    rules: tuple[tuple[str, bool], ...]
    extracted: str | None
    tokens: int | None
    cut: bool
    line: int
    token_losses: tuple[TokenLoss, ...] = ()


@dataclass(frozen=True)
class Item:
    """One item with the answers of all runs."""

    id: str
    family: str
    zone: str
    number: int
    prompt: Sequence[Mapping[str, Any]]
    expected: str | None
    answers: tuple[ShownAnswer, ...] = field(default=())


def shown(joined: Joined, places: Sequence[int], start: int, rows: Mapping[str, Mapping[str, JsonValue]]) -> list[Item]:
    """The items at these indices, with outputs read from the files; `start` is the number of the first."""
    records = []
    for s, index in enumerate(joined.indexes):
        lines = [int(joined.place_S_N[s, n]) for n in places]
        read = dict(zip((x for x in lines if x >= 0), index.lines([x for x in lines if x >= 0]), strict=True))
        records.append([(line, read.get(line, {})) for line in lines])
    found = []
    for k, n in enumerate(places):
        pairs = [(joined.runs[s], *records[s][k]) for s in range(len(joined.runs))]
        item = joined.first.items[n]
        prompt, expected = _question(rows.get(item), pairs[0][2])
        answers = _answers(pairs)
        family, zone = str(joined.first.family_N[n]), str(joined.first.zone_N[n])
        found.append(Item(item, family, zone, start + k, prompt, expected, answers))
    return found


def _question(
    row: Mapping[str, Any] | None, record: Mapping[str, Any]
) -> tuple[Sequence[Mapping[str, Any]], str | None]:
    """Prompt turns and the target, from the data row, else from what a score record carries of them."""
    parts = dict_at(record, "parts")
    if row is None:
        prompt = record.get("prompt") or parts.get("prompt")
        return ([{"role": "user", "content": str(prompt)}] if prompt else []), parts.get("expected")
    turns = [dict(turn) for turn in row.get("messages") or ()]
    if turns and turns[-1].get("role") == "assistant":
        return turns[:-1], str(turns[-1].get("content"))
    return turns, parts.get("expected")


def _answers(pairs: Sequence[tuple[str, int, Mapping[str, Any]]]) -> tuple[ShownAnswer, ...]:
    outputs = [record.get("output") for _, _, record in pairs]
    marked: tuple[tuple[Piece, ...], tuple[Piece, ...]] | None = None
    if len(pairs) > 1 and isinstance(outputs[0], str) and isinstance(outputs[1], str):
        marked = differences(outputs[0], outputs[1])
    found = []
    for s, (run, line, record) in enumerate(pairs):
        parts = dict_at(record, "parts")
        rules = dict_at(parts, "rules")
        value, tokens, output = record.get("value"), parts.get("n_tokens"), outputs[s]
        found.append(
            ShownAnswer(
                run=run,
                letter=chr(ord("A") + s) if s < 26 else "",
                value=number_of(value),
                reason=record.get("reason") if line >= 0 else "not asked of this run",
                output=output if isinstance(output, str) else None,
                pieces=marked[s] if marked and s < 2 else None,
                rules=tuple((str(name), bool(ok)) for name, ok in sorted(rules.items())),
                extracted=None if parts.get("extracted") is None else str(parts["extracted"]),
                tokens=tokens if isinstance(tokens, int) else None,
                cut=parts.get("ended") == "length",
                line=line + 1,
                token_losses=token_losses(parts),
            )
        )
    return tuple(found)


# ---------------------------------------------------------------- export


def export(joined: Joined, places: Sequence[int], form: str, block: int = 200) -> Iterator[str]:
    """The chosen items as JSONL or CSV, one line per item and run, in pieces. CSV cells never start a formula."""
    head = ("item_id", "family", "zone", "run", "value", "reason", "output")
    if form == "csv":
        yield ",".join(head) + "\r\n"
    for start in range(0, len(places), block):
        out = io.StringIO()
        writer = csv.writer(out)
        for n in places[start : start + block]:
            for s, index in enumerate(joined.indexes):
                place = int(joined.place_S_N[s, n])
                record = index.lines([place])[0] if place >= 0 else {}
                known = (joined.first.items[n], str(joined.first.family_N[n]), str(joined.first.zone_N[n]))
                row = (
                    *known,
                    joined.runs[s],
                    number_of(record.get("value")),
                    record.get("reason"),
                    record.get("output"),
                )
                if form == "csv":
                    writer.writerow([_cell(value) for value in row])
                else:
                    out.write(json.dumps(dict(zip(head, row, strict=True)), ensure_ascii=False) + "\n")
        yield out.getvalue()


def _cell(value: Any) -> Any:
    """A cell as a spreadsheet may open it: text that begins like a formula gets an apostrophe."""
    return "'" + value if isinstance(value, str) and value[:1] in ("=", "+", "-", "@", "\t", "\r") else value
