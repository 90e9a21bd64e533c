"""Contamination: which training rows hold what the evals will ask.

Five kinds. `identical`: equal after canonical normalisation. `contained`: the item stands word for word in a longer
text. `near`: enough of the item's idf²-weighted words and word pairs, numbers kept, stand in the row. `ngram`: row and
item share a run of `ngram` words that no other item holds. `canned`: an answer that stands under several different
prompts (a refusal, a greeting) is the item's answer too, which says nothing about the item. Items' prompts and answers
are looked for apart, in the rows' prompts and in their targets apart. Instructions that many texts share weigh next to
nothing.

It is a gate: exact overlap (identical, contained) fails. From `confirmed` on a row is a near-copy; between `review` and
`confirmed` a person decides, as where a row has the item's words with other operators between them. Measured precision,
recall and speed: docs/contamination.md. Free paraphrases are out of reach of any comparison of words.
"""

from __future__ import annotations

import dataclasses
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from veritune.counting import many
from veritune.data.families import FamilyColumns, said
from veritune.data.near import Executor, TextBuffer, running
from veritune.data.near.arrays import I64
from veritune.data.operators import different_operators
from veritune.data.text import canonical, tokens, written
from veritune.errors import DataError
from veritune.records import Finding, GateResult, Row

if TYPE_CHECKING:
    import polars as pl

    from veritune.data.near.index import Index
    from veritune.data.near.overlap import Overlap, RowsBesideEntries

CONFIRMED = 0.45
REVIEW = 0.30

Standing = Callable[[TextBuffer, list[str]], tuple[I64, I64, I64]]
Kind = Literal["identical", "contained", "near", "ngram", "canned"]
Status = Literal["exact", "confirmed", "review"]
Level = Literal["exact", "confirmed", "review"]
_KINDS: tuple[Kind, ...] = ("identical", "contained", "near", "ngram", "canned")
_CANNED = _KINDS.index("canned")
CANNED_PROMPTS = 3  # different prompts under which an answer is canned: two may be a question and its paraphrase
_STATUS: tuple[Status, ...] = ("exact", "confirmed", "review")
_PARTS = ("prompt", "target")


@dataclass(frozen=True, slots=True)
class ContaminationConfig:
    """Which overlap counts as contamination, and how strong it must be.

    `confirmed` and `review`: shares of an item's idf² weight found in a row. `ngram`: words in a run that counts.
    `min_features`: distinct words and word pairs an item needs for `near`; shorter items must match exactly.
    `min_tokens`: words an item needs for `contained`, and for `identical` where it holds no digit. `fail_on`: the
    weakest status that fails the gate. `threads`: 0 takes all cores. `executor`: `ray` spreads
    the rows over a Ray cluster with the same result.
    """

    confirmed: float = CONFIRMED
    review: float = REVIEW
    ngram: int = 13
    min_features: int = 16
    min_tokens: int = 4
    answers: bool = True
    fail_on: Level = "exact"
    threads: int = 0
    executor: Executor = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if not 0.15 < self.review <= self.confirmed <= 1.0:
            raise DataError(
                f"expected 0.15 < review <= confirmed <= 1, found review={self.review}, confirmed={self.confirmed}.",
                fix=f"The defaults are {REVIEW} and {CONFIRMED}.",
            )


@dataclass(frozen=True, slots=True)
class Hit:
    """One row that holds an eval item or part of it: the closest item for every row, and the best row for every item.

    `score` is the share of the item's weight found in `row_part`, 1.0 for exact kinds. `span` is the longest run of
    words that both share, as the row writes it. `others`: further items of that eval which the row also comes near to.
    `operators`: what the item and the row have between the same operands, where that differs.
    """

    row: int
    row_id: str
    eval: str
    item: int
    item_id: str
    item_part: Literal["prompt", "answer"]
    row_part: Literal["prompt", "target"]
    kind: Kind
    status: Status
    score: float
    span: str
    others: int = 0
    operators: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True)
class Entries:
    """The texts to look for: E texts, each the prompt or the answer of an item, with its eval and item."""

    texts: tuple[str, ...]
    eval_E: I64
    item_E: I64
    answer_E: npt.NDArray[np.bool_]
    evals: tuple[str, ...]
    item_ids: tuple[tuple[str, ...], ...]


@dataclass(frozen=True)
class ContaminationResult:
    """All pairs of row and item that were found, by row. Equal items of one eval are one entry; equal rows are one pair
    each.

    `exact_only` prompts of items have too few words of their own to look for near-copies of them.
    """

    columns: FamilyColumns
    entries: Entries
    row_P: I64
    entry_P: I64
    part_P: I64
    kind_P: I64
    status_P: I64
    score_P: npt.NDArray[np.float64]
    config: ContaminationConfig
    exact_only: int = 0

    def __len__(self) -> int:
        return len(self.row_P)

    @cached_property
    def hits(self) -> tuple[Hit, ...]:
        """The closest item per row, eval and item part, and the best row of every item, in the order of the rows."""
        if not len(self):
            return ()
        entry_P = self.entry_P
        part_P = self.entries.eval_E[entry_P] * 2 + self.entries.answer_E[entry_P]
        group_P = self.row_P * (2 * len(self.entries.evals)) + part_P
        order = np.lexsort((entry_P, -self.score_P, self.kind_P, group_P))
        _, first, size = np.unique(group_P[order], return_index=True, return_counts=True)
        others = dict(zip(order[first].tolist(), (size - 1).tolist()))
        named = {*others, *(self._best_of_items.values())}
        return tuple(self._hit(p, others.get(p, 0)) for p in sorted(named))

    @cached_property
    def _best_of_items(self) -> dict[tuple[int, int], int]:
        """For every item (eval, number) its strongest pair: by status, kind and score, then the first row."""
        eval_P, item_P = self.entries.eval_E[self.entry_P], self.entries.item_E[self.entry_P]
        order = np.lexsort((self.row_P, -self.score_P, self.kind_P, self.status_P, item_P, eval_P))
        best: dict[tuple[int, int], int] = {}
        for p in order.tolist():
            best.setdefault((int(eval_P[p]), int(item_P[p])), p)
        return best

    @cached_property
    def items(self) -> tuple[Hit, ...]:
        """Every item found in a row or close to one, once, with its best row; strongest first."""
        best = [self._hit(p, 0) for p in self._best_of_items.values()]
        return tuple(sorted(best, key=lambda hit: (_STATUS.index(hit.status), -hit.score)))

    def _hit(self, p: int, others: int) -> Hit:
        row, e = int(self.row_P[p]), int(self.entry_P[p])
        eval_number, item = int(self.entries.eval_E[e]), int(self.entries.item_E[e])
        held = _part_text(self.columns.text, row, int(self.part_P[p]))
        near = _KINDS[int(self.kind_P[p])] == "near"
        return Hit(
            row=row,
            row_id=self.columns.ids[row],
            eval=self.entries.evals[eval_number],
            item=item,
            item_id=self.entries.item_ids[eval_number][item],
            item_part="answer" if self.entries.answer_E[e] else "prompt",
            row_part=cast(Any, _PARTS[int(self.part_P[p])]),
            kind=_KINDS[int(self.kind_P[p])],
            status=_STATUS[int(self.status_P[p])],
            score=round(float(self.score_P[p]), 4),
            span=common_run(self.entries.texts[e], held),
            others=others,
            operators=different_operators(self.entries.texts[e], held) if near else None,
        )

    @cached_property
    def by_eval(self) -> dict[str, dict[str, int]]:
        """Per eval: its number of items, and of items and rows hit by status (each counted once, at its strongest);
        canned answers apart.
        """
        out: dict[str, dict[str, int]] = {}
        eval_P = self.entries.eval_E[self.entry_P]
        for number, name in enumerate(self.entries.evals):
            canned = (eval_P == number) & (self.kind_P == _CANNED)
            mine = (eval_P == number) & (self.kind_P != _CANNED)
            item_status = _strongest(self.entries.item_E[self.entry_P[mine]], self.status_P[mine])
            row_status = _strongest(self.row_P[mine], self.status_P[mine])
            counts = {"items": len(self.entries.item_ids[number])}
            for i, status in enumerate(_STATUS):
                counts[f"items_{status}"] = int(np.count_nonzero(item_status == i))
                counts[f"rows_{status}"] = int(np.count_nonzero(row_status == i))
            counts["items_canned"] = len(np.unique(self.entries.item_E[self.entry_P[canned]]))
            counts["rows_canned"] = len(np.unique(self.row_P[canned]))
            out[name] = counts
        return out

    @cached_property
    def item_status(self) -> dict[str, dict[int, int]]:
        """Per eval: the strongest status (0 exact, 1 confirmed, 2 review) of each item found in some row, by the item's
        number; without canned answers.
        """
        eval_P, item_P = self.entries.eval_E[self.entry_P], self.entries.item_E[self.entry_P]
        found: dict[str, dict[int, int]] = {}
        for number, name in enumerate(self.entries.evals):
            mine = (eval_P == number) & (self.kind_P != _CANNED)
            items = np.unique(item_P[mine]).tolist()
            found[name] = dict(zip(items, _strongest(item_P[mine], self.status_P[mine]).tolist()))
        return found

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The numbers to quote. Every rate has its denominator."""
        real_P = self.kind_P != _CANNED
        row_status = _strongest(self.row_P[real_P], self.status_P[real_P])
        return {
            "rows": len(self.columns.text),
            **{f"rows_{name}": int(np.count_nonzero(row_status == i)) for i, name in enumerate(_STATUS)},
            "rows_canned": len(np.unique(self.row_P[~real_P])),
            "pairs": len(self),
            "by_kind": {name: int(np.count_nonzero(self.kind_P == i)) for i, name in enumerate(_KINDS)},
            "evals": self.by_eval,
            "prompts_exact_only": self.exact_only,
            "thresholds": {
                "confirmed": self.config.confirmed,
                "review": self.config.review,
                "ngram": self.config.ngram,
            },
        }

    def gate(self) -> GateResult:
        """Failed if a pair of status `fail_on` or stronger was found; undecided if there was nothing to look for."""
        weakest = _STATUS.index(self.config.fail_on)
        bad = (self.status_P <= weakest) & (self.kind_P != _CANNED)
        n_rows = len(np.unique(self.row_P[bad]))
        n_items = len(np.unique(self.entry_P[bad]))
        numbers = self.summary
        if not self.entries.texts:
            empty = ", ".join(self.entries.evals)
            why = f"no item of {empty} has any text" if empty else "no eval items were given"
            return GateResult("contamination", "undecided", f"{why}, so nothing was checked.", numbers)
        if n_rows:
            evidence = tuple(f"{h.row_id}: {h.eval}/{h.item_id} {h.kind}: {h.span[:120]}" for h in self._first(bad, 5))
            message = f"{n_rows} of {len(self.columns.text)} rows hold {n_items} eval texts ({self.config.fail_on})"
            more = numbers["rows_confirmed"] if self.config.fail_on == "exact" else 0
            if more or numbers["rows_review"]:
                message += f"; further rows: {many(more, 'near-copies')}, {numbers['rows_review']} to review"
            message += "."
            return GateResult("contamination", "failed", message, numbers, evidence, "drop these rows, or the evals")
        near = numbers["rows_confirmed"]
        message = (
            f"no {self.config.fail_on} overlap of {len(self.columns.text)} rows with "
            f"{many(len(self.entries.texts), 'texts')}"
        )
        message += f"; {near} near-copies, {numbers['rows_review']} to review"
        if numbers["rows_canned"]:
            message += f"; {numbers['rows_canned']} rows give a canned answer that eval items give too"
        if self.exact_only:
            message += f"; {self.exact_only} prompts have too few words of their own to look for near-copies of them"
        return GateResult("contamination", "passed", f"{message}.", numbers)

    def _first(self, wanted: npt.NDArray[np.bool_], k: int) -> list[Hit]:
        return [self._hit(int(p), 0) for p in np.flatnonzero(wanted)[:k]]

    def findings(self) -> list[Finding]:
        """One finding per hit: exact ones are errors, confirmed and canned ones warnings, the rest notes."""
        severity: dict[str, Any] = {"exact": "error", "confirmed": "warning", "review": "note"}
        return [
            Finding(
                "contamination",
                "warning" if h.kind == "canned" else severity[h.status],
                f"{h.row_part} {_VERB[h.kind]} the {h.item_part} of {h.eval}/{h.item_id}{operators_text(h)}",
                row_id=h.row_id,
                evidence={k: v for k, v in dataclasses.asdict(h).items() if k not in ("row", "row_id")},
            )
            for h in self.hits
        ]

    def drop(self, level: Level = "confirmed") -> DropResult:
        """Which rows stay if everything of status `level` or stronger is removed, and the reason for each removed
        row."""
        weakest = _STATUS.index(level)
        reasons: dict[int, str] = {}
        for p in np.flatnonzero((self.status_P <= weakest) & (self.kind_P != _CANNED)).tolist():
            row, e = int(self.row_P[p]), int(self.entry_P[p])
            name = self.entries.evals[int(self.entries.eval_E[e])]
            item = self.entries.item_ids[int(self.entries.eval_E[e])][int(self.entries.item_E[e])]
            reasons.setdefault(row, f"contamination: {_KINDS[int(self.kind_P[p])]} {name}/{item}")
        ids = self.columns.ids
        kept = tuple(ids[i] for i in range(len(self.columns.text)) if i not in reasons)
        return DropResult(kept, {ids[i]: why for i, why in sorted(reasons.items())}, tuple(sorted(reasons)))


_VERB = {
    "identical": "is",
    "contained": "contains",
    "near": "nearly repeats",
    "ngram": "shares a long run of words with",
    "canned": "gives a canned answer, which is also",
}


def operators_text(hit: Hit) -> str:
    """How the operators of an item and of a row differ, as the end of a sentence; "" if they do not."""
    return f", with {hit.operators[1]!r} where the item has {hit.operators[0]!r}" if hit.operators else ""


@dataclass(frozen=True, slots=True)
class DropResult:
    """The rows that stay, and a reason for each dropped row; `dropped_rows` are 0-based positions."""

    kept_ids: tuple[str, ...]
    reasons: Mapping[str, str]
    dropped_rows: tuple[int, ...]

    @property
    def by_reason(self) -> dict[str, int]:
        """Dropped rows by kind of overlap and eval."""
        return dict(Counter(why.rsplit("/", 1)[0] for why in self.reasons.values()))


def check_contamination(
    rows: Sequence[Row] | FamilyColumns | pl.DataFrame,
    evals: Mapping[str, Sequence[Row] | Sequence[str]],
    config: ContaminationConfig | None = None,
    **settings: Any,
) -> ContaminationResult:
    """Search the rows for the items of every eval.

    `evals` maps a name to items, as rows (prompt and answer) or as texts (prompts). System prompts take no part.
    `settings` are fields of `ContaminationConfig`. Raises DataError for unknown settings or thresholds out of order.

    >>> from veritune.records import Message, Row
    >>> text = "How many seconds have three and a half hours, if one hour has 3600?"
    >>> row = Row("r1", (Message("user", text), Message("assistant", "12600")))
    >>> [(hit.row_id, hit.eval) for hit in check_contamination([row], {"exam": [text]}).hits]
    [('r1', 'exam')]
    """
    config = _configured(config, settings)
    columns = rows if isinstance(rows, FamilyColumns) else FamilyColumns.of(rows)
    entries = gather(evals, config.answers)
    with running(config) as engine:
        near = engine.compare(columns.text, TextBuffer.from_strings(entries.texts), config)
        return judge_compared(columns, entries, near, engine.standing, config)


def judge_compared(
    columns: FamilyColumns, entries: Entries, near: RowsBesideEntries, standing: Standing, config: ContaminationConfig
) -> ContaminationResult:
    """The contamination of rows that were already compared with the entries; `standing` is the engine's function of
    that name.
    """
    usable_E = _usable(near.index, entries, config)
    held = _standing(standing, columns, entries, usable_E & near.faint_E)
    same = _identical(near.index, usable_E, near.overlap.hash_N_2)
    few_E = near.faint_E | (np.diff(near.index.offset_E1) < config.min_features)
    result = _judge(columns, entries, near.overlap, (same, held), config)
    return dataclasses.replace(result, exact_only=int(np.count_nonzero(few_E & ~entries.answer_E)))


def _configured(config: ContaminationConfig | None, settings: Mapping[str, Any]) -> ContaminationConfig:
    known = {f.name for f in dataclasses.fields(ContaminationConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise DataError(f"unknown setting {unknown[0]!r} for contamination.", fix=f"Known: {', '.join(sorted(known))}.")
    return dataclasses.replace(config or ContaminationConfig(), **settings)


def gather(evals: Mapping[str, Sequence[Row] | Sequence[str]], answers: bool = True) -> Entries:
    """The distinct prompts and answers of all evals; equal texts in one eval are named after the first item."""
    texts: list[str] = []
    eval_E: list[int] = []
    item_E: list[int] = []
    answer_E: list[bool] = []
    ids: list[tuple[str, ...]] = []
    for number, (_, items) in enumerate(evals.items()):
        seen: set[tuple[bool, str]] = set()
        ids.append(tuple(item.id if isinstance(item, Row) else str(i) for i, item in enumerate(items)))
        for i, item in enumerate(cast("Sequence[Row | str]", items)):
            pair = _prompt_and_answer(item, answers)
            for is_answer, text in enumerate(pair):
                if not text or (bool(is_answer), text) in seen:
                    continue
                seen.add((bool(is_answer), text))
                texts.append(text)
                eval_E.append(number)
                item_E.append(i)
                answer_E.append(bool(is_answer))
    return Entries(
        tuple(texts),
        np.array(eval_E, np.int64),
        np.array(item_E, np.int64),
        np.array(answer_E, bool),
        tuple(evals),
        tuple(ids),
    )


def _prompt_and_answer(item: Row | str, answers: bool) -> tuple[str | None, str | None]:
    if isinstance(item, Row):
        return said(item.prompt), item.target if answers else None
    return item, None


def _usable(index: Index, entries: Entries, config: ContaminationConfig) -> npt.NDArray[np.bool_]:
    """Entries whose equality means something, shape [E]: too short a text without digits equals nothing.

    An answer counts only with enough features to be told from any other.
    """
    feature_E = np.diff(index.offset_E1)
    digit_E = np.array([any(c.isdigit() for c in t) for t in entries.texts], bool)
    short = (index.token_E < config.min_tokens) & ~digit_E
    usable = ~short & (~entries.answer_E | (feature_E >= config.min_features)) & (index.hash_E != 0)
    return np.asarray(usable, bool)


def _identical(index: Index, usable_E: npt.NDArray[np.bool_], hash_N_2: npt.NDArray[np.uint64]) -> tuple[I64, I64, I64]:
    """Pairs (row, entry, row part) of equal canonical texts; a prompt may stand in either part of a row."""
    entry = np.flatnonzero(usable_E)
    order = entry[np.argsort(index.hash_E[entry], kind="stable")]
    hashes = index.hash_E[order]
    rows, found, parts = [], [], []
    for part in range(2):
        hash_N = np.ascontiguousarray(hash_N_2[:, part])
        low = np.searchsorted(hashes, hash_N, side="left")
        size = np.searchsorted(hashes, hash_N, side="right") - low
        at = np.repeat(low - (np.cumsum(size) - size), size) + np.arange(size.sum())
        rows.append(np.repeat(np.arange(len(size)), size))
        found.append(order[at])
        parts.append(np.full(len(at), part))
    return np.concatenate(rows), np.concatenate(found).astype(np.int64), np.concatenate(parts)


def _standing(
    standing: Standing, columns: FamilyColumns, entries: Entries, faint_E: npt.NDArray[np.bool_]
) -> tuple[I64, I64, I64]:
    """Pairs (row, entry, row part) where an entry whose words weigh nothing stands word for word."""
    entry = np.flatnonzero(faint_E)
    if not len(entry):
        none = np.zeros(0, np.int64)
        return none, none, none
    row_P, which_P, part_P = standing(columns.text, [entries.texts[e] for e in entry.tolist()])
    needle = [canonical(entries.texts[e]) for e in entry.tolist()]
    held: dict[tuple[int, int], str] = {}
    good = np.zeros(len(row_P), bool)
    for p, (row, which, part) in enumerate(zip(row_P.tolist(), which_P.tolist(), part_P.tolist())):
        if (row, part) not in held:
            held = {(row, part): canonical(_part_text(columns.text, row, part))}  # rows ascend: one is enough
        good[p] = stands_in(needle[which], held[row, part])
    return row_P[good], entry[which_P[good]], part_P[good]


def _judge(
    columns: FamilyColumns,
    entries: Entries,
    overlap: Overlap,
    exact: tuple[tuple[I64, I64, I64], tuple[I64, I64, I64]],
    config: ContaminationConfig,
) -> ContaminationResult:
    """Every pair with its kind, status, part and score; the strongest evidence for a pair is the one it carries.

    `exact`: pairs that are identical, and pairs where an entry is contained and was not scored.
    """
    same, held = exact
    best = overlap.score_P_2.max(axis=1, initial=0.0)
    part = overlap.score_P_2.argmax(axis=1) if len(best) else np.zeros(0, np.int64)
    kind = np.where(best >= config.review, 2, 3)
    status = np.where(best >= config.confirmed, 1, 2)
    inside = _contained(columns, entries, overlap, config)
    kind[inside], status[inside], best[inside] = 1, 0, 1.0
    n_exact = len(same[0]) + len(held[0])
    row = np.concatenate((same[0], held[0], overlap.row_P))
    entry = np.concatenate((same[1], held[1], overlap.entry_P))
    part = np.concatenate((same[2], held[2], part))
    kind = np.concatenate((np.zeros(len(same[0]), np.int64), np.ones(len(held[0]), np.int64), kind))
    status = np.concatenate((np.zeros(n_exact, np.int64), status))
    best = np.concatenate((np.ones(n_exact), best))
    order = np.lexsort((part, kind, entry, row))
    row, entry = row[order], entry[order]
    first = np.append(True, (row[1:] != row[:-1]) | (entry[1:] != entry[:-1]))[: len(row)]
    keep = order[first]
    found = ContaminationResult(
        columns, entries, row[first], entry[first], part[keep], kind[keep], status[keep], best[keep], config
    )
    _other_exercises(found)
    _canned(found)
    return found


def _other_exercises(found: ContaminationResult) -> None:
    """Near-copies with another operator between the same operands are another exercise: for review, at most."""
    maths_E = np.array([_MATHS.search(text) is not None for text in found.entries.texts], bool)
    near_P = (found.kind_P == _KINDS.index("near")) & (found.status_P == _STATUS.index("confirmed"))
    for p in np.flatnonzero(near_P & maths_E[found.entry_P]).tolist():
        held = _part_text(found.columns.text, int(found.row_P[p]), int(found.part_P[p]))
        if different_operators(found.entries.texts[int(found.entry_P[p])], held) is not None:
            found.status_P[p] = _STATUS.index("review")
            found.score_P[p] = min(found.score_P[p], 0.99)  # all words, and not the same text


_MATHS = re.compile(r"[-+*/^=<>×÷−–±√≤≥≠%]|\\[a-z]")


def _canned(found: ContaminationResult) -> None:
    """Answers that are exact in a row whose prompt is another, and that stand under several prompts, become `canned`.

    A row whose prompt also comes near to the item's keeps its finding: it holds the item.
    """
    entries = found.entries
    exact_P = (found.status_P == 0) & entries.answer_E[found.entry_P] & (found.part_P == 1)
    if not exact_P.any():
        return
    prompt_of = {
        (int(entries.eval_E[e]), int(entries.item_E[e])): entries.texts[e] for e in np.flatnonzero(~entries.answer_E)
    }
    with_prompt = {
        (int(row), int(entries.eval_E[e]), int(entries.item_E[e]))
        for row, e in zip(found.row_P.tolist(), found.entry_P.tolist())
        if not entries.answer_E[e]
    }
    prompts: dict[str, set[str]] = {}
    of_answer: dict[int, str] = {}
    for e in np.unique(found.entry_P[exact_P]).tolist():
        of_answer[e] = canonical(entries.texts[e])
    for e in np.flatnonzero(entries.answer_E).tolist():
        if (text := canonical(entries.texts[e])) in of_answer.values():
            asked = prompt_of.get((int(entries.eval_E[e]), int(entries.item_E[e])), "")
            prompts.setdefault(text, set()).add(canonical(asked))
    for p in np.flatnonzero(exact_P).tolist():
        asked = canonical(_part_text(found.columns.text, int(found.row_P[p]), 0))
        prompts.setdefault(of_answer[int(found.entry_P[p])], set()).add(asked)
    for p in np.flatnonzero(exact_P).tolist():
        e = int(found.entry_P[p])
        same_item = (int(found.row_P[p]), int(entries.eval_E[e]), int(entries.item_E[e])) in with_prompt
        if len(prompts[of_answer[e]]) >= CANNED_PROMPTS and not same_item:
            found.kind_P[p], found.status_P[p] = _CANNED, _STATUS.index("review")


def _contained(
    columns: FamilyColumns, entries: Entries, overlap: Overlap, config: ContaminationConfig
) -> npt.NDArray[np.bool_]:
    """Which pairs hold the whole item word for word: only pairs with nearly all of its weight are read."""
    out = np.zeros(len(overlap.row_P), bool)
    needle: dict[int, str] = {}
    for p in np.flatnonzero(overlap.score_P_2.max(axis=1, initial=0.0) >= 0.9).tolist():
        e = int(overlap.entry_P[p])
        wanted = needle.setdefault(e, canonical(entries.texts[e]))
        for part in np.flatnonzero(overlap.score_P_2[p] >= 0.9).tolist():
            held = canonical(_part_text(columns.text, int(overlap.row_P[p]), part))
            out[p] |= stands_in(wanted, held)
    return out


def stands_in(wanted: str, held: str) -> bool:
    """Whether `wanted` occurs in `held` between word boundaries."""
    at = held.find(wanted)
    while at >= 0:
        end = at + len(wanted)
        left = at == 0 or not (held[at - 1].isalnum() and wanted[0].isalnum())
        right = end == len(held) or not (held[end].isalnum() and wanted[-1].isalnum())
        if left and right:
            return True
        at = held.find(wanted, at + 1)
    return False


def _part_text(text: TextBuffer, row: int, part: int) -> str:
    begin, cut, end = (int(x) for x in (text.offset_N1[row], text.cut_N[row], text.offset_N1[row + 1]))
    bounds = (begin, cut) if part == 0 else (cut, end)
    return bytes(text.data[bounds[0] : bounds[1]]).decode("utf-8", "replace")


def common_run(left: str, right: str) -> str:
    """The longest run of tokens that both texts share, written as in the right one; "" if there is none.

    By bisection on its length: a run of n tokens holds one of n - 1.
    """
    a, b = tokens(left), tokens(right)
    low, high = 0, min(len(a), len(b))
    place = 0
    while low < high:
        n = (low + high + 1) // 2
        known = {tuple(a[i : i + n]) for i in range(len(a) - n + 1)}
        match = next((i for i in range(len(b) - n + 1) if tuple(b[i : i + n]) in known), None)
        if match is None:
            high = n - 1
        else:
            low, place = n, match
    return written(right, place, low)


def _strongest(key: I64, status: I64) -> I64:
    """The strongest status of every distinct key."""
    if not len(key):
        return np.zeros(0, np.int64)
    order = np.lexsort((status, key))
    first = np.append(True, key[order][1:] != key[order][:-1])
    return np.asarray(status[order][first], np.int64)
