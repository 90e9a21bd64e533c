"""Families: which rows are rewrites of one original.

Three sources combine. A named column; equality of the canonical problem text (several accepted solutions of one
problem are one family); and near-duplicate clustering of what user and assistant say, by the idf²-weighted cosine of
word pairs with numbers masked. System prompts take no part. Boilerplate that most rows share weighs next to nothing,
texts with fewer than `min_features` word pairs are never compared by similarity, every accepted pair was verified, and
every member of a near-duplicate family is similar to the family's centre: chains are cut and reported.

What it does not see: free paraphrases; `embed` finds the milder ones. Where rows were rewritten by a model, keep the
original's name in a column. Measured precision, recall and speed: docs/families.md.
"""

from __future__ import annotations

import dataclasses
import functools
import re
from collections import Counter, defaultdict
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any, Literal, cast

import numpy as np
import numpy.typing as npt

from veritune.counting import many
from veritune.data.embed import embedding_edges, load_encoder
from veritune.data.near import Engine, Executor, TextBuffer, clusters, components, running, sketched
from veritune.data.near.arrays import F32, I64, U8, U64
from veritune.data.short_facts import apart_by_fact
from veritune.display import Tabular, short
from veritune.errors import DataError
from veritune.records import Membership, Message, Row

if TYPE_CHECKING:
    import polars as pl

    from veritune.data.embed import Encoder
    from veritune.data.near.sweep import Sweep

THRESHOLD = 0.38
SPLIT_SAFE_THRESHOLD = 0.32  # where a missed sibling costs more than a wrongly joined stranger

Evidence = Literal["column", "exact", "similarity", "singleton", "embedding", "gradient", "other", "decided"]
EVIDENCE: tuple[Evidence, ...] = (
    *("singleton", "column", "exact", "similarity"),
    *("embedding", "gradient", "other", "decided"),
)
SCORED = ("similarity", "embedding", "gradient", "other")  # evidence that carries a number
Edge = tuple[int, int, float | None, str]


@dataclass(frozen=True, slots=True)
class FamilyConfig:
    """How families are found.

    `threshold` is the idf²-weighted cosine from which two texts are siblings; `min_features` the distinct word pairs
    a text needs to be compared at all; `min_problem_tokens` what a problem without digits needs for its equality to
    count ("Continue." does not make a family). A member less similar than `radius * threshold` to its family's centre
    is cut off. Families larger than `report_size` rows are listed. `threads`: 0 takes all cores. `executor`: `ray`
    spreads the work over a Ray cluster (the one at `ray_address`, else a local one) with the same result, see
    `veritune.data.near.ray`.
    """

    column: bool = True
    exact: bool = True
    near: bool = True
    threshold: float = THRESHOLD
    min_features: int = 8
    min_problem_tokens: int = 4
    radius: float = 0.5
    report_size: int = 1000
    threads: int = 0
    executor: Executor = "local"
    ray_address: str | None = None

    def __post_init__(self) -> None:
        if not 0.0 < self.threshold <= 1.0:
            raise DataError(
                f"expected a similarity threshold in (0, 1], found {self.threshold}.",
                fix=f"The default is {THRESHOLD}, {SPLIT_SAFE_THRESHOLD} where a split must be safe.",
            )


@dataclass(frozen=True, slots=True)
class FamilyColumns:
    """Rows as columns, for data too large for Python objects. `family` holds None for rows without a named original."""

    ids: Sequence[str]
    text: TextBuffer
    family: Sequence[str | None] | None = None

    @classmethod
    def of(cls, rows: Sequence[Row] | pl.DataFrame) -> FamilyColumns:
        """From rows, or from a polars frame."""
        if hasattr(rows, "get_column"):
            return cls.from_frame(cast("pl.DataFrame", rows))
        return cls.from_rows(rows)

    @classmethod
    def from_rows(cls, rows: Sequence[Row]) -> FamilyColumns:
        """Columns from rows: system prompts are left out, and the problem is everything before the last assistant
        turn."""
        text = TextBuffer.from_parts((said(row.prompt), row.target) for row in rows)
        family = [row.family for row in rows] if any(row.family is not None for row in rows) else None
        return cls([row.id for row in rows], text, family)

    @classmethod
    def from_frame(cls, frame: pl.DataFrame) -> FamilyColumns:
        """Columns from a frame's `problem` and `target` (or `text` alone), and its `id` and `family` if present."""
        import polars as pl

        if "problem" in frame.columns and "target" in frame.columns:
            head = frame["problem"].fill_null("")
            whole = frame.select(pl.concat_str(["problem", "target"], separator="\n\n", ignore_nulls=True).alias("t"))
            text = TextBuffer.from_series(whole["t"], head.str.len_bytes().cast(pl.Int64).to_numpy())
        elif "text" in frame.columns:
            text = TextBuffer.from_series(frame["text"])
        else:
            raise DataError(
                f"expected columns `problem` and `target`, or `text`; found {frame.columns}.", fix="Rename or map them."
            )
        ids = frame["id"].cast(pl.String).to_list() if "id" in frame.columns else [str(i) for i in range(len(frame))]
        family = frame["family"].cast(pl.String).to_list() if "family" in frame.columns else None
        return cls(ids, text, family)


def said(messages: Sequence[Message]) -> str:
    """The text of the conversation, without system prompts."""
    return "\n\n".join(m.said for m in messages if m.role not in ("system", "developer") and m.said)


@dataclass(frozen=True, repr=False)
class FamilyResult(Tabular):
    """The family of each of N rows, with the evidence. Codes follow the order of first appearance; names are made from
    content.

    `evidence_N` indexes `EVIDENCE`; `similarity_N` is the similarity to the family's centre, NaN where evidence carries
    no number. `joins` are the pairs of rows by which passes that see more than words joined two families. `equal_N` are
    the groups that a column and equal text alone make; a family of several was joined by similarity.

    >>> from veritune.records import Message, Row
    >>> rows = [Row(i, (Message("user", "Name a colour."), Message("assistant", "Red."))) for i in ("a", "b")]
    >>> result = find_families(rows)
    >>> len(result), result.code_N.tolist()
    (2, [0, 0])
    """

    row_ids: Sequence[str]
    code_N: I64
    names: tuple[str, ...]
    evidence_N: U8
    similarity_N: F32
    config: FamilyConfig
    counts: Mapping[str, int]
    joins: tuple[Edge, ...] = ()
    equal_N: I64 | None = None

    def __len__(self) -> int:
        return len(self.code_N)

    def __repr__(self) -> str:
        return short(self, rows=len(self), families=len(self.names), largest=int(self.size_F.max(initial=0)))

    def _columns(self) -> dict[str, list[Any]]:
        found = self.memberships
        return {k: [getattr(m, k) for m in found] for k in ("row_id", "family", "evidence", "similarity")}

    @cached_property
    def sizes(self) -> Mapping[str, int]:
        """Rows per family."""
        return dict(zip(self.names, self.size_F.tolist()))

    @cached_property
    def size_F(self) -> I64:
        """Rows per family, in the order of `names`."""
        return np.bincount(self.code_N, minlength=len(self.names)).astype(np.int64)

    @cached_property
    def groups_F(self) -> I64:
        """Number of groups of equal text or equal column value in each family; a number above 1 means that similarity
        joined them.
        """
        if self.equal_N is None:
            return np.ones(len(self.names), np.int64)
        family, _ = np.unique(np.stack((self.code_N, self.equal_N)), axis=1)
        return np.bincount(family, minlength=len(self.names)).astype(np.int64)

    @cached_property
    def held_by(self) -> dict[str, dict[str, int]]:
        """Families of more than one row, and their rows, by what joins them: equal text (or a column), or
        similarity."""
        company, joined = self.size_F > 1, self.groups_F > 1
        return {
            what: {"families": int(np.count_nonzero(which)), "rows": int(self.size_F[which].sum())}
            for what, which in (("equality", company & ~joined), ("similarity", company & joined))
        }

    def family_of(self, i: int) -> str:
        """The family of row i."""
        return self.names[int(self.code_N[i])]

    @cached_property
    def families(self) -> list[str]:
        """The family of every row, in the order of the rows."""
        return [self.names[c] for c in self.code_N.tolist()]

    @cached_property
    def memberships(self) -> tuple[Membership, ...]:
        """One record per row, in the order of the rows."""
        return tuple(self._memberships())

    def _memberships(self) -> Iterator[Membership]:
        columns = zip(self.row_ids, self.code_N.tolist(), self.evidence_N.tolist(), self.similarity_N.tolist())
        for row_id, code, evidence, score in columns:
            kind = EVIDENCE[evidence]
            known = kind in SCORED and score == score  # an edge without a score leaves NaN
            yield Membership(row_id, self.names[code], kind, round(score, 4) if known else None)

    def largest(self, k: int = 10) -> list[tuple[str, int]]:
        """The k largest families with their sizes; ties are in the order of the rows."""
        order = np.argsort(-self.size_F, kind="stable")[:k]
        return [(self.names[f], int(self.size_F[f])) for f in order]

    @cached_property
    def summary(self) -> dict[str, Any]:
        """The numbers to quote. `variant_share` = (rows - families) / rows: the share of rows that add no new
        original."""
        n, families = len(self), len(self.names)
        size, how_many = np.unique(self.size_F, return_counts=True)
        kinds = np.bincount(self.evidence_N, minlength=len(EVIDENCE))
        return {
            "rows": n,
            "originals": families,
            "variants": n - families,
            "variant_share": (n - families) / n if n else None,
            "singletons": int(np.count_nonzero(self.size_F == 1)),
            "size_p50": float(np.median(self.size_F)) if families else None,
            "size_mean": n / families if families else None,
            "size_max": int(self.size_F.max()) if families else None,
            "sizes": {int(s): int(c) for s, c in zip(size, how_many)},
            "largest": self.largest(),
            "oversize": [(f, s) for f, s in self.largest(len(self.names)) if s > self.config.report_size],
            "held_by": self.held_by,
            "evidence": {name: int(c) for name, c in zip(EVIDENCE, kinds) if c or name in EVIDENCE[:4]},
            **({"joined_by": dict(Counter(edge[3] for edge in self.joins))} if self.joins else {}),
            "threshold": self.config.threshold if self.config.near else None,
            **self.counts,
        }


def find_families(
    rows: Sequence[Row] | FamilyColumns | pl.DataFrame,
    config: FamilyConfig | None = None,
    *,
    extra_edges: Iterable[Edge] = (),
    embed: str | Encoder | None = None,
    **settings: Any,
) -> FamilyResult:
    """Group rows into families, with the evidence for each.

    `settings` are fields of `FamilyConfig` (`column=`, `exact=`, `near=`, `threshold=`, ...). `extra_edges` are
    (row_i, row_j, score, evidence) from passes that see more than words (`gradient`, `embedding`, `other`): they join
    rows like any other evidence. `embed` names an encoder for paraphrases, see `veritune.data.embed`.
    The result does not depend on the order of the rows nor on threads, and is never switched off on small data.
    Raises DataError for unknown settings, a threshold outside (0, 1] or an edge that points outside the rows.
    Similarity is the Jaccard index of word shingles (Broder 1997); docs/families.md has the measured error rates.

    >>> from veritune.records import Message, Row
    >>> texts = ("How many legs have 3 cats?", "how many  legs have 3 cats?", "What is the capital of France?")
    >>> rows = [Row(f"r{i}", (Message("user", t), Message("assistant", "?"))) for i, t in enumerate(texts)]
    >>> result = find_families(rows)
    >>> result.code_N.tolist(), sorted(result.sizes.values())
    ([0, 0, 1], [1, 2])
    """
    config = configured(config, settings)
    columns = rows if isinstance(rows, FamilyColumns) else FamilyColumns.of(rows)
    with running(config) as engine:
        result = _by_words(columns, engine, config)
    result = merge_families(result, extra_edges, bounded=False)
    if embed is None:
        return result
    encoder = load_encoder(embed) if isinstance(embed, str) else embed
    return merge_families(result, embedding_edges(columns.text, encoder))


def _by_words(columns: FamilyColumns, engine: Engine[Any], config: FamilyConfig) -> FamilyResult:
    """Families by column, equality and similarity."""
    sweep = engine.sweep(columns.text)
    edges = _Edges(len(columns.text))
    counts: dict[str, int] = {"empty_rows": int(np.count_nonzero(sweep.hash_N == 0))}
    if config.column and columns.family is not None:
        counts["bridged_column_families"] = 0
        edges.add_keys(_column_codes(columns.family), "column")
    if config.exact:
        edges.add_keys(_problem_keys(sweep, config), "exact")
    if config.exact or config.near:
        edges.add_keys(_text_keys(sweep.hash_N), "exact")
    equal_N = edges.roots()
    if config.near:
        first_U, sketch = sketched(sweep, engine, config)
        sweep = dataclasses.replace(sweep, feature_F=sweep.feature_F[:0].copy())  # as much memory as join keys need
        near = clusters(sweep, first_U, sketch, engine, config)
        if isinstance(columns.text, TextBuffer):  # texts that lie in a cluster's workers are not read here
            near = apart_by_fact(near, columns.text, _similar(engine, sketch, first_U), config.threshold)
        edges.add_pairs(near.row_M, near.centre_M)
        edges.mark_similar(near.row_M, near.similarity_M)
        counts.update(too_short_rows=near.n_short, recut_clusters=near.n_recut, recut_rows=near.n_recut_rows)
    return _result(columns, sweep, edges, config, counts, equal_N)


def _similar(engine: Engine[Any], sketch: Any, first_U: I64) -> Callable[[I64, I64], npt.NDArray[Any]]:
    """Similarity of pairs of rows that are the first of their texts."""

    @functools.cache
    def order_U() -> I64:
        return np.argsort(first_U, kind="stable")

    def place(row: I64) -> I64:
        return order_U()[np.searchsorted(first_U, row, sorter=order_U())]

    def similar(left: I64, right: I64) -> npt.NDArray[Any]:
        return engine.similarity(sketch, place(left), place(right))

    return similar


def merge_families(result: FamilyResult, edges: Iterable[Edge], *, bounded: bool = True) -> FamilyResult:
    """`result` after joining the families that `edges` (row_i, row_j, score, evidence) connect.

    `bounded`: every joined family has an edge of its own to one central family, the one with most edges, so that
    chains glue nothing together (star clusters, Aslam et al. 2004); otherwise whatever is connected is joined.
    A row that had no company takes its evidence from the edge. Raises DataError for an edge that points outside the
    rows or names unknown evidence.
    """
    best = _family_edges(result, edges)
    if not best:
        return result
    joined = _stars(result, best) if bounded else sorted(best)
    root_F = components(len(result.names), np.array([a for a, _ in joined]), np.array([b for _, b in joined]))
    evidence_N, similarity_N = result.evidence_N.copy(), result.similarity_N.copy()
    joins = tuple(best[pair] for pair in joined)
    for i, j, score, evidence in sorted(joins, key=lambda edge: -(edge[2] or 0.0)):
        for row in (i, j):
            if evidence_N[row] == 0:
                evidence_N[row] = EVIDENCE.index(cast(Evidence, evidence))
                similarity_N[row] = np.nan if score is None else min(1.0, max(0.0, score))
    names: dict[int, str] = {}
    bridged: set[int] = set()
    for name, root in zip(result.names, root_F.tolist()):
        bridged |= {root} if _is_given(name) and _is_given(names.get(root, "f-" + 16 * "0")) else set()
        names[root] = min(names.get(root, name), name, key=lambda n: (not _is_given(n), n))
    counts = dict(result.counts)
    if "bridged_column_families" in counts:
        counts["bridged_column_families"] += len(bridged)
    root, code_N = np.unique(root_F[result.code_N], return_inverse=True)
    return dataclasses.replace(
        result,
        code_N=code_N.astype(np.int64),
        names=tuple(names[r] for r in root.tolist()),
        evidence_N=evidence_N,
        similarity_N=similarity_N,
        counts=counts,
        joins=(*result.joins, *joins),
    )


def _family_edges(result: FamilyResult, edges: Iterable[Edge]) -> dict[tuple[int, int], Edge]:
    """The strongest edge between every two families that have one; families by number, the smaller first."""
    n = len(result)
    best: dict[tuple[int, int], Edge] = {}
    for i, j, score, evidence in edges:
        if not (0 <= i < n and 0 <= j < n):
            raise DataError(f"an extra edge joins rows {i} and {j}, but there are {many(n, 'rows')} (0-based).")
        if evidence not in (*SCORED, "decided"):
            raise DataError(f"unknown evidence {evidence!r} in an extra edge.", fix=f"Known: {', '.join(SCORED)}.")
        a, b = sorted((int(result.code_N[i]), int(result.code_N[j])))
        known = best.get((a, b))
        if a != b and (known is None or (score or 0.0) > (known[2] or 0.0)):
            best[a, b] = (i, j, score, evidence)
    return best


def _stars(result: FamilyResult, best: Mapping[tuple[int, int], Edge]) -> list[tuple[int, int]]:
    """Pairs of families to join: from the family with most edges on, each takes those neighbours that are still free.

    Ties go by the sum of the scores, then by name, so that the order of the rows does not matter.
    """
    around: dict[int, dict[int, float]] = defaultdict(dict)
    for (a, b), edge in best.items():
        around[a][b] = around[b][a] = edge[2] or 0.0
    order = sorted(around, key=lambda f: (-len(around[f]), -round(sum(around[f].values()), 5), result.names[f]))
    free, joined = set(order), []
    for centre in order:
        if centre in free:
            mine = [f for f in around[centre] if f in free]
            free -= {centre, *mine}
            joined += [(min(centre, f), max(centre, f)) for f in mine]
    return sorted(joined)


def _is_given(name: str) -> bool:
    """Whether a family's name came from a column; the others are made from a hash."""
    return re.fullmatch(r"f-[0-9a-f]{16}(\..*)?", name, re.DOTALL) is None


def configured(config: FamilyConfig | None, settings: Mapping[str, Any]) -> FamilyConfig:
    """`config`, or the default one, with some fields set. Raises DataError for an unknown name."""
    known = {f.name for f in dataclasses.fields(FamilyConfig)}
    unknown = sorted(set(settings) - known)
    if unknown:
        raise DataError(f"unknown setting {unknown[0]!r} for families.", fix=f"Known: {', '.join(sorted(known))}.")
    return dataclasses.replace(config or FamilyConfig(), **settings)


class _Edges:
    """Joins found so far: pairs of rows, and for each row the strongest evidence that put it where it is."""

    def __init__(self, n: int) -> None:
        self.left: list[I64] = []
        self.right: list[I64] = []
        self.evidence_N = np.zeros(n, np.uint8)
        self.similarity_N = np.full(n, np.nan, np.float32)

    def add_keys(self, key_N: I64, evidence: Evidence) -> None:
        """Join rows with equal keys; rows with key -1 are not joined."""
        row = np.flatnonzero(key_N >= 0)
        order = row[np.argsort(key_N[row], kind="stable")]
        same = key_N[order[1:]] == key_N[order[:-1]]
        self.add_pairs(order[:-1][same], order[1:][same])
        self._mark(np.concatenate((order[:-1][same], order[1:][same])), evidence)

    def add_pairs(self, left: I64, right: I64) -> None:
        self.left.append(left)
        self.right.append(right)

    def mark_similar(self, row: I64, score: npt.NDArray[Any]) -> None:
        fresh = self.evidence_N[row] == 0
        self.evidence_N[row[fresh]] = EVIDENCE.index("similarity")
        self.similarity_N[row[fresh]] = score[fresh]

    def _mark(self, row: I64, evidence: Evidence) -> None:
        fresh = row[self.evidence_N[row] == 0]
        self.evidence_N[fresh] = EVIDENCE.index(evidence)

    def roots(self) -> I64:
        if not self.left:
            return np.arange(len(self.evidence_N))
        left, right = np.concatenate(self.left), np.concatenate(self.right)
        return components(len(self.evidence_N), left, right)


def _column_codes(family: Sequence[str | None]) -> I64:
    codes: dict[str, int] = {}
    return np.array([-1 if f is None or f == "" else codes.setdefault(f, len(codes)) for f in family], np.int64)


def _text_keys(hash_N: U64) -> I64:
    """Dense codes of equal hashes; an empty text equals nothing."""
    _, code_N = np.unique(hash_N, return_inverse=True)
    return np.where(hash_N == 0, -1, code_N.astype(np.int64))


def _problem_keys(sweep: Sweep, config: FamilyConfig) -> I64:
    """Codes of equal problems; one too short to name a problem ("Continue.") joins nothing by itself."""
    names_a_problem = (sweep.problem_token_N >= config.min_problem_tokens) | (sweep.problem_digit_N > 0)
    return np.where(names_a_problem, _text_keys(sweep.problem_hash_N), -1)


def _result(
    columns: FamilyColumns,
    sweep: Sweep,
    edges: _Edges,
    config: FamilyConfig,
    counts: dict[str, int],
    equal_N: I64,
) -> FamilyResult:
    root_N = edges.roots()
    first_root, code_N = _dense_in_order(root_N)
    group_of, equal_N = np.unique(equal_N, return_inverse=True)
    counts["equal_groups"] = len(group_of)
    names, bridged = _names(columns, sweep, code_N, len(first_root), config)
    if "bridged_column_families" in counts:
        counts["bridged_column_families"] = bridged
    return FamilyResult(
        columns.ids, code_N, names, edges.evidence_N, edges.similarity_N, config, counts, (), equal_N.astype(np.int64)
    )


def _dense_in_order(root_N: I64) -> tuple[I64, I64]:
    unique, code_N = np.unique(root_N, return_inverse=True)  # a root is the family's first row, so this is row order
    return unique, code_N.astype(np.int64)


def _names(
    columns: FamilyColumns, sweep: Sweep, code_N: I64, n: int, config: FamilyConfig
) -> tuple[tuple[str, ...], int]:
    """The column's name where there is one (the smallest of several), else made from the members' smallest hash."""
    low_F = np.full(n, 2**64 - 1, np.uint64)
    np.minimum.at(low_F, code_N, sweep.hash_N)
    names = [f"f-{h:016x}" for h in low_F.tolist()]
    bridged: set[int] = set()
    if config.column and columns.family is not None:
        named: dict[int, str] = {}
        for code, family in zip(code_N.tolist(), columns.family):
            if family is None or family == "":
                continue
            if code in named and named[code] != family:
                bridged.add(code)
            named[code] = min(named.get(code, family), family)
        for code, family in named.items():
            names[code] = family
    return _distinct(names, columns, code_N), len(bridged)


def _distinct(names: list[str], columns: FamilyColumns, code_N: I64) -> tuple[str, ...]:
    """Equal texts in different families (exact=False, empty rows) get the first row's id behind the name."""
    if len(set(names)) == len(names):
        return tuple(names)
    seen: set[str] = set()
    _, first = np.unique(code_N, return_index=True)
    for code, name in enumerate(names):
        if name in seen:
            names[code] = f"{name}.{columns.ids[int(first[code])]}"
        seen.add(name)
    return tuple(names)
