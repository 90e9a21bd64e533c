"""How much of an eval item a row holds: the index over the items and the two passes over the rows, in numpy.

Features are single tokens and pairs of neighbours, digits kept, as 32-bit hashes. A feature weighs ln²(N'/df), df taken
over rows and items together, so an instruction that everything shares weighs next to nothing. An item's score in a row
is the weight of its features found there over the weight of all of them, for the row's prompt and its target apart.
Runs of `gram` tokens that row and item share are looked up beside it. `_overlap_numba` repeats this in loops.
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veritune.data._sweep import HORNER
from veritune.data._sweep_numpy import canonical_hashes, mix_pairs, token_hashes
from veritune.data.text import BYTE_CLASS, I32, I64, U32, U64, TextBuffer, chunks_by_bytes

Bool = npt.NDArray[np.bool_]
SINGLE = 0x632BE59BD9B4E019  # stands for the left neighbour of a single token
COVERED = 0.85  # share of an item's weight that can bring it up as a candidate
_SCALE = 256.0
_MIN_TEXTS = 64
_SLACK = 1.5
_CHUNK = 1 << 20
SAMPLED = 25_000
RUN = 24  # tokens at the beginning of a faint entry that are looked up in the rows
NEGLIGIBLE = 0.1  # of the heaviest weight: lighter features are left out, rows are full of them


@dataclass(frozen=True, slots=True)
class Index:
    """E entries (an item's prompt or answer) over V distinct features and G distinct runs of tokens.

    `feature_F[offset_E1[e]:offset_E1[e + 1]]` are entry e's features as places in `vocabulary_V`, ascending.
    `gram_entry_G` is the entry a run belongs to; runs that several entries share (instructions) are not in the index.
    `pair_T[t]` is the place of the pair of tokens t - 1 and t of all entries in a row, -1 across a border, and
    `gram_at_G` the first token of a run.
    """

    vocabulary_V: U32
    feature_F: I32
    offset_E1: I64
    df_V: I64
    gram_G: U64
    gram_entry_G: I32
    gram_at_G: I64
    pair_T: I64
    gram: int
    hash_E: U64
    token_E: I32

    def __len__(self) -> int:
        return len(self.hash_E)


@dataclass(frozen=True, slots=True)
class Scoring:
    """What the second pass reads: weights, each entry's total, and for each feature the entries it may bring up."""

    weight_V: I64
    total_E: I64
    needed_E: I64  # candidate weight from which an entry is scored in full
    posting_P: I32
    posting_V1: I64
    review: float
    gram_ok_G: Bool


@dataclass(frozen=True, slots=True)
class Overlap:
    """P pairs of row and entry, with the score in the row's prompt and in its target, ordered by row, then entry.

    `hash_N_2` are the hashes of every row's canonical prompt and target.
    """

    row_P: I64
    entry_P: I64
    score_P_2: npt.NDArray[np.float64]
    hash_N_2: U64


@dataclass(frozen=True, slots=True)
class Block:
    """Rows [a, b): their tokens, where each begins, its row, and whether it is past the cut; both parts' hashes."""

    token_T: U64
    row_T: I64
    part_T: I64
    hash_N_2: U64
    token_N_2: I64


def read(buffer: TextBuffer, a: int, b: int) -> Block:
    """Tokens of rows [a, b), digits kept."""
    block = buffer.prepared(a, b)
    kind = BYTE_CLASS[block.data]
    first = np.zeros(len(block.data) + 1, bool)
    first[block.offset_N1[:-1]] = True
    first[block.cut_N] = True
    token_T, at_T, _ = token_hashes(block.data, kind, first[:-1], mask_digits=False)
    row_T = np.searchsorted(block.offset_N1, at_T, side="right") - 1
    part_T = (at_T >= block.cut_N[row_T]).astype(np.int64) if len(at_T) else row_T
    offset_2N1 = np.empty(2 * (b - a) + 1, np.int64)
    offset_2N1[:-1:2], offset_2N1[1::2], offset_2N1[-1] = block.offset_N1[:-1], block.cut_N, block.offset_N1[-1]
    hash_2N, _ = canonical_hashes(block.data, kind, offset_2N1, offset_2N1[1:])
    token_2N = np.bincount(2 * row_T + part_T, minlength=2 * (b - a))
    return Block(token_T, row_T, part_T, hash_2N.reshape(-1, 2), token_2N.reshape(-1, 2))


def features(block: Block) -> tuple[U32, I64, I64]:
    """Single tokens, then pairs within one part of one row: feature, row, part."""
    single = mix_pairs(np.full(len(block.token_T), SINGLE, np.uint64), block.token_T)
    same = (block.row_T[1:] == block.row_T[:-1]) & (block.part_T[1:] == block.part_T[:-1])
    pair = mix_pairs(block.token_T[:-1][same], block.token_T[1:][same])
    return (
        np.concatenate((single, pair)),
        np.concatenate((block.row_T, block.row_T[1:][same])),
        np.concatenate((block.part_T, block.part_T[1:][same])),
    )


def grams(block: Block, n: int) -> tuple[U64, I64]:
    """Hashes of every run of n tokens within one part of one row, and the place of its first token in the block."""
    if len(block.token_T) < n:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    total = np.zeros(len(block.token_T) - n + 1, np.uint64)
    for i in range(n):
        total = total * np.uint64(HORNER) + block.token_T[i : len(total) + i]
    last = len(total)
    whole = (block.row_T[:last] == block.row_T[n - 1 :]) & (block.part_T[:last] == block.part_T[n - 1 :])
    return total[whole], np.flatnonzero(whole)


def build(entries: TextBuffer, gram: int) -> Index:
    """The index over all entries."""
    n = len(entries)
    parts = [(a, read(entries, a, b)) for a, b in chunks_by_bytes(entries.offset_N1, _CHUNK)]
    found = [(f, r + a) for a, block in parts for f, r, _ in [features(block)]]
    none_f, none_r = np.zeros(0, np.uint32), np.zeros(0, np.int64)
    feature = np.concatenate([f for f, _ in found] or [none_f])
    row = np.concatenate([r for _, r in found] or [none_r])
    vocabulary_V, at = np.unique(feature, return_inverse=True)
    key = np.unique(row * max(len(vocabulary_V), 1) + at)
    feature_F = (key % max(len(vocabulary_V), 1)).astype(np.int32)
    offset_E1 = np.searchsorted(key // max(len(vocabulary_V), 1), np.arange(n + 1))
    df_V = np.bincount(feature_F, minlength=len(vocabulary_V))
    gram_G, gram_entry_G, gram_at_G = _own_grams(parts, gram)
    pair_T = np.concatenate([_pair_places(block, vocabulary_V) for _, block in parts] or [none_r])
    hash_E = np.concatenate([b.hash_N_2[:, 0] for _, b in parts] or [np.zeros(0, np.uint64)])
    token_E = np.concatenate([b.token_N_2[:, 0] for _, b in parts] or [none_r]).astype(np.int32)
    return Index(
        vocabulary_V, feature_F, offset_E1, df_V, gram_G, gram_entry_G, gram_at_G, pair_T, gram, hash_E, token_E
    )


def _own_grams(parts: list[tuple[int, Block]], n: int) -> tuple[U64, I32, I64]:
    """Runs that belong to one entry only, that entry, and the first token; what several share is an instruction."""
    found: list[tuple[U64, I64, I64]] = []
    base = 0
    for a, block in parts:
        gram, at = grams(block, n)
        found.append((gram, block.row_T[at] + a, at + base))
        base += len(block.token_T)
    if not sum(len(g) for g, _, _ in found):
        return np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int64)
    gram, entry, at = (np.concatenate([f[i] for f in found]) for i in range(3))
    order = np.lexsort((at, entry, gram))
    gram, entry, at = gram[order], entry[order], at[order]
    begins = np.flatnonzero(np.append(True, gram[1:] != gram[:-1]))
    low, high = np.minimum.reduceat(entry, begins), np.maximum.reduceat(entry, begins)
    own = low == high
    return gram[begins][own], low[own].astype(np.int32), at[begins][own]


def _pair_places(block: Block, vocabulary_V: U32) -> I64:
    place_T = np.full(len(block.token_T), -1, np.int64)
    same = (block.row_T[1:] == block.row_T[:-1]) & (block.part_T[1:] == block.part_T[:-1])
    place, _ = _look_up(vocabulary_V, mix_pairs(block.token_T[:-1][same], block.token_T[1:][same]))
    place_T[1:][same] = place
    return place_T


def _weighs(index: Index, weight_V: I64, heaviest: float) -> Bool:
    """Which runs are more than an instruction with a word of the item at its end: a quarter of a rare run."""
    if not len(index.gram_G):
        return np.zeros(0, bool)
    weight_T = np.where(index.pair_T >= 0, weight_V[index.pair_T], 0)
    total_T1 = np.append(0, np.cumsum(weight_T))
    held_G = total_T1[index.gram_at_G + index.gram] - total_T1[index.gram_at_G + 1]
    return np.asarray(held_G >= 0.25 * _SCALE * heaviest * (index.gram - 1), bool)


def sample(rows: TextBuffer) -> tuple[TextBuffer, int]:
    """About `SAMPLED` rows in which features are counted, and how many rows each of them stands for.

    Every stride-th row in the order of hashes of the text: the choice does not depend on the order of the rows, and
    rows that are alike, or that differ in one number, are drawn in proportion.
    """
    stride = max(1, len(rows) // SAMPLED)
    if stride == 1:
        return rows, 1
    key_N = _spots(rows)
    order = np.argsort(key_N, kind="stable")
    tied = np.append(False, key_N[order][1:] == key_N[order][:-1])
    tied[:-1] |= tied[1:]
    again = order[tied]  # what five spots do not tell apart is told apart by all of its bytes
    whole_N = np.zeros(len(rows), np.uint64)
    whole_N[again] = [_whole(rows, i) for i in again.tolist()]
    order[tied] = again[np.lexsort((whole_N[again], key_N[again]))]
    return rows.take(np.sort(order[stride // 2 :: stride])), stride


def _spots(rows: TextBuffer) -> U64:
    """A hash of every row's length and of eight bytes at five places; 0 for a row shorter than that."""
    begin_N, size_N = rows.offset_N1[:-1], np.diff(rows.offset_N1)
    key_N = size_N.astype(np.uint64)
    long = size_N >= 8
    if not long.any():
        return np.zeros(len(rows), np.uint64)
    eight = np.ndarray(len(rows.data) - 7, "<u8", np.ascontiguousarray(rows.data), strides=(1,))
    for i in range(5):
        at_N = np.where(long, begin_N + (size_N - 8) * i // 4, 0)
        key_N = (key_N ^ eight[at_N]) * np.uint64(HORNER)
        key_N ^= key_N >> np.uint64(29)
    return np.where(long, key_N, np.uint64(0))


def _whole(rows: TextBuffer, i: int) -> int:
    data = rows.data[int(rows.offset_N1[i]) : int(rows.offset_N1[i + 1])]
    return int.from_bytes(hashlib.blake2b(data.tobytes(), digest_size=8).digest(), "little")


def count(rows: TextBuffer, index: Index) -> tuple[I64, I64]:
    """First pass, over a sample: in how many rows each feature and each run occurs."""
    df_V = np.zeros(len(index.vocabulary_V), np.int64)
    df_G = np.zeros(len(index.gram_G), np.int64)
    for a, b in chunks_by_bytes(rows.offset_N1, _CHUNK):
        block = read(rows, a, b)
        place, row, _ = _known(block, index)
        pair = np.unique(row * max(len(df_V), 1) + place)
        df_V += np.bincount(pair % max(len(df_V), 1), minlength=len(df_V))
        gram_place, gram_row = _known_grams(block, index)
        pair = np.unique(gram_row * max(len(df_G), 1) + gram_place)
        df_G += np.bincount(pair % max(len(df_G), 1), minlength=len(df_G))
    return df_V, df_G


def _known(block: Block, index: Index) -> tuple[I64, I64, I64]:
    feature, row, part = features(block)
    place, known = _look_up(index.vocabulary_V, feature)
    return place[known], row[known], part[known]


def _known_grams(block: Block, index: Index) -> tuple[I64, I64]:
    gram, at = grams(block, index.gram)
    place, known = _look_up(index.gram_G, gram)
    return place[known], block.row_T[at[known]]


def _look_up(table: U32 | U64, wanted: U32 | U64) -> tuple[I64, Bool]:
    if not len(table):
        return np.zeros(len(wanted), np.int64), np.zeros(len(wanted), bool)
    place = np.searchsorted(table, wanted)
    place[place == len(table)] = 0
    return place, table[place] == wanted


def scoring(index: Index, df_V: I64, df_G: I64, n_rows: int, review: float, min_features: int) -> Scoring:
    """Weights and candidate lists.

    An entry with fewer than `min_features` features, or fewer than half as many that are not in about every row (a
    template's items, told apart by a number), is left to exact matching.
    Per entry the heaviest features up to `COVERED` of its weight are listed; a row that reaches `review` must then
    hold listed features of at least `review - (1 - COVERED)`, so no pair is lost by looking only at those.
    """
    n = max(n_rows + len(index), _MIN_TEXTS)
    weight_V = np.rint(_SCALE * np.log(_SLACK * n / np.maximum(df_V + index.df_V, 1)) ** 2).astype(np.int64)
    weight_V[weight_V < NEGLIGIBLE * _SCALE * math.log(_SLACK * n) ** 2] = 0
    size_E = np.diff(index.offset_E1)
    entry_F = np.repeat(np.arange(len(index)), size_E)
    weight_F = weight_V[index.feature_F]
    total_E = np.bincount(entry_F, weights=weight_F, minlength=len(index)).astype(np.int64)
    able_E = (size_E >= min_features) & ~faint(index, weight_V, min_features)
    order = np.lexsort((index.feature_F, -weight_F, entry_F))
    before = np.cumsum(weight_F[order]) - weight_F[order]
    before -= np.repeat(before[index.offset_E1[:-1][size_E > 0]], size_E[size_E > 0])
    listed = (before < COVERED * total_E[entry_F]) & able_E[entry_F]
    place, entry = index.feature_F[order][listed], entry_F[order][listed]
    by_place = np.lexsort((entry, place))
    posting_V1 = np.searchsorted(place[by_place], np.arange(len(weight_V) + 1))
    needed_E = np.maximum(1, np.floor((review - (1 - COVERED)) * total_E)).astype(np.int64)
    gram_ok_G = (df_G <= max(20, math.ceil(0.01 * n_rows))) & _weighs(index, weight_V, math.log(_SLACK * n) ** 2)
    return Scoring(weight_V, total_E, needed_E, entry[by_place].astype(np.int32), posting_V1, review, gram_ok_G)


def faint(index: Index, weight_V: I64, min_features: int) -> Bool:
    """Entries of `min_features` features or more of which not half as many weigh anything, shape [E].

    Their words are in about every row: a template's items, told apart by a number, or an item that many rows hold.
    """
    size_E = np.diff(index.offset_E1)
    entry_F = np.repeat(np.arange(len(index)), size_E)
    weighing_E = np.bincount(entry_F[weight_V[index.feature_F] > 0], minlength=len(index))
    return np.asarray((size_E >= min_features) & (2 * weighing_E < min_features))


def standing(rows: TextBuffer, texts: list[str]) -> tuple[I64, I64, I64]:
    """Rows, texts and row parts where a text's tokens (the first `RUN` of them) stand in the row one after another."""
    wanted = read(TextBuffer.from_strings(texts), 0, len(texts))
    size_E = np.minimum(wanted.token_N_2[:, 0], RUN)
    by_size: dict[int, dict[int, list[int]]] = {}
    for size in np.unique(size_E[size_E > 0]).tolist():
        gram, at = grams(wanted, size)
        _, first = np.unique(wanted.row_T[at], return_index=True)
        table = by_size.setdefault(size, {})
        for entry, hashed in zip(wanted.row_T[at][first].tolist(), gram[first].tolist()):
            if size_E[entry] == size:
                table.setdefault(hashed, []).append(entry)
    found = set()
    for a, b in chunks_by_bytes(rows.offset_N1, _CHUNK):
        block = read(rows, a, b)
        for size, table in by_size.items():
            gram, at = grams(block, size)
            here = np.isin(gram, np.array(list(table), np.uint64))
            for hashed, t in zip(gram[here].tolist(), at[here].tolist()):
                found |= {(a + int(block.row_T[t]), entry, int(block.part_T[t])) for entry in table[hashed]}
    triples = np.array(sorted(found), np.int64).reshape(-1, 3)
    return triples[:, 0], triples[:, 1], triples[:, 2]


def score(rows: TextBuffer, index: Index, rule: Scoring) -> Overlap:
    """Second pass: every pair whose score in the row's prompt or target reaches `review`, or that shares a run."""
    found = [_score_block(read(rows, a, b), a, index, rule) for a, b in chunks_by_bytes(rows.offset_N1, _CHUNK)]
    return join_overlaps(found)


def join_overlaps(found: list[Overlap]) -> Overlap:
    """Overlaps of consecutive blocks as one."""
    if not found:
        none = np.zeros(0, np.int64)
        return Overlap(none, none, np.zeros((0, 2)), np.zeros((0, 2), np.uint64))
    return Overlap(
        np.concatenate([f.row_P for f in found]),
        np.concatenate([f.entry_P for f in found]),
        np.concatenate([f.score_P_2 for f in found]),
        np.concatenate([f.hash_N_2 for f in found]),
    )


def _score_block(block: Block, a: int, index: Index, rule: Scoring) -> Overlap:
    place, row, part = _known(block, index)
    v = max(len(index.vocabulary_V), 1)
    key, where = np.unique(row * v + place, return_inverse=True)
    parts = np.zeros(len(key), np.int64)
    np.bitwise_or.at(parts, where, 1 << part)
    row, place = key // v, key % v
    pairs = _candidates(row, place, index, rule)
    gram_place, gram_row = _known_grams(block, index)
    ok = rule.gram_ok_G[gram_place]
    gram_pair = np.unique(gram_row[ok] * len(index) + index.gram_entry_G[gram_place[ok]])
    pairs = np.union1d(pairs, gram_pair)
    pair_row, entry = pairs // max(len(index), 1), pairs % max(len(index), 1)
    score_P_2 = np.zeros((len(pairs), 2))
    for i, (r, e) in enumerate(zip(pair_row.tolist(), entry.tolist())):
        wanted = index.feature_F[index.offset_E1[e] : index.offset_E1[e + 1]]
        at, known = _look_up(key, r * v + wanted.astype(np.int64))
        weight = rule.weight_V[wanted] * known
        for p in range(2):
            score_P_2[i, p] = int(weight[(parts[at] >> p) & 1 == 1].sum()) / max(int(rule.total_E[e]), 1)
    keep = (score_P_2.max(axis=1, initial=0.0) >= rule.review) | np.isin(pairs, gram_pair)
    return Overlap(pair_row[keep] + a, entry[keep], score_P_2[keep], block.hash_N_2)


def _candidates(row: I64, place: I64, index: Index, rule: Scoring) -> I64:
    """Pairs `row * E + entry` whose listed features in the row weigh enough."""
    size = rule.posting_V1[place + 1] - rule.posting_V1[place]
    at = np.repeat(rule.posting_V1[place] - (np.cumsum(size) - size), size) + np.arange(size.sum())
    entry = rule.posting_P[at].astype(np.int64)
    key, where = np.unique(np.repeat(row, size) * max(len(index), 1) + entry, return_inverse=True)
    weight = np.bincount(where, weights=np.repeat(rule.weight_V[place], size), minlength=len(key))
    return key[weight >= rule.needed_E[key % max(len(index), 1)]] if len(key) else key
