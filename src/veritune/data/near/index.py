"""Index: what is searched for in the rows, the words and word pairs of eval items, their weights, their runs of words.

Features are single tokens and pairs of neighbours, digits kept, as 32-bit hashes. A feature weighs ln²(N'/df), df taken
over rows and items together, so an instruction that everything shares weighs next to nothing.

E entries (an item's prompt or answer) · E1 borders (E + 1) · V distinct features · F features, entry after entry
G runs of tokens · T tokens, entry after entry · P postings, feature after feature · N rows
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass

import numpy as np

from veritune.data.near.arrays import I32, I64, U32, U64, Bool
from veritune.data.near.bytes import TextBuffer, chunks_by_bytes
from veritune.data.near.sweep import HORNER, Tokens, pair_hashes, read_tokens

SINGLE = 0x632BE59BD9B4E019  # stands for the left neighbour of a single token
COVERED = 0.85  # share of an item's weight that can bring it up as a candidate
SAMPLED = 25_000
NEGLIGIBLE = 0.1  # of the heaviest weight: lighter features are left out, rows are full of them
CHUNK = 1 << 20  # bytes read at a time
_SCALE = 256.0
_MIN_TEXTS = 64
_SLACK = 1.5


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
    """What the second pass reads: weights, each entry's total, and for each feature the entries that it makes
    candidates.
    """

    weight_V: I64
    total_E: I64
    needed_E: I64  # candidate weight from which an entry is scored in full
    posting_P: I32
    posting_V1: I64
    review: float
    gram_ok_G: Bool


def features(block: Tokens) -> tuple[U32, I64]:
    """Single tokens, then pairs within one part of one row: feature, and 2 * row + part."""
    token_T, part_T = block.token_T, block.part_T
    single = pair_hashes(np.full(len(token_T), SINGLE, np.uint64), token_T)
    same = part_T[1:] == part_T[:-1]
    pair = pair_hashes(token_T[:-1][same], token_T[1:][same])
    return np.concatenate((single, pair)), np.concatenate((part_T, part_T[1:][same]))


def grams(block: Tokens, n: int) -> tuple[U64, I64]:
    """Hashes of every run of n tokens within one part of one row, and the position of its first token in the block."""
    token_T, part_T = block.token_T, block.part_T
    if len(token_T) < n:
        return np.zeros(0, np.uint64), np.zeros(0, np.int64)
    total = np.zeros(len(token_T) - n + 1, np.uint64)
    for i in range(n):
        total = total * np.uint64(HORNER) + token_T[i : len(total) + i]
    whole = part_T[: len(total)] == part_T[n - 1 :]
    return total[whole], np.flatnonzero(whole)


def build(entries: TextBuffer, gram: int) -> Index:
    """The index over all entries; each entry is one text, not divided into prompt and answer."""
    blocks = [(a, read_tokens(entries, (a, b))) for a, b in chunks_by_bytes(entries.offset_N1, CHUNK)]
    pairs = [(feature, part // 2 + a) for a, block in blocks for feature, part in [features(block)]]
    none = np.zeros(0, np.int64)
    feature = np.concatenate([f for f, _ in pairs] or [np.zeros(0, np.uint32)])
    entry = np.concatenate([e for _, e in pairs] or [none])
    vocabulary_V, at = np.unique(feature, return_inverse=True)
    size = max(len(vocabulary_V), 1)
    key = np.unique(entry * size + at)
    feature_F = (key % size).astype(np.int32)
    gram_G, gram_entry_G, gram_at_G = _own_grams(blocks, gram)
    return Index(
        vocabulary_V,
        feature_F,
        offset_E1=np.searchsorted(key // size, np.arange(len(entries) + 1)),
        df_V=np.bincount(feature_F, minlength=len(vocabulary_V)),
        gram_G=gram_G,
        gram_entry_G=gram_entry_G,
        gram_at_G=gram_at_G,
        pair_T=np.concatenate([_pair_places(block, vocabulary_V) for _, block in blocks] or [none]),
        gram=gram,
        hash_E=np.concatenate([b.hash_N_2[:, 0] for _, b in blocks] or [np.zeros(0, np.uint64)]),
        token_E=np.concatenate([np.diff(b.part_2N1)[::2] for _, b in blocks] or [none]).astype(np.int32),
    )


def _own_grams(blocks: list[tuple[int, Tokens]], n: int) -> tuple[U64, I32, I64]:
    """Runs that belong to one entry only, that entry, and the first token; what several share is an instruction."""
    runs: list[tuple[U64, I64, I64]] = []
    base = 0
    for a, block in blocks:
        gram, at = grams(block, n)
        runs.append((gram, block.part_T[at] // 2 + a, at + base))
        base += len(block.token_T)
    if not sum(len(g) for g, _, _ in runs):
        return np.zeros(0, np.uint64), np.zeros(0, np.int32), np.zeros(0, np.int64)
    gram, entry, at = (np.concatenate(columns) for columns in zip(*runs))
    order = np.lexsort((at, entry, gram))
    gram, entry, at = gram[order], entry[order], at[order]
    begins = np.flatnonzero(np.append(True, gram[1:] != gram[:-1]))
    low, high = np.minimum.reduceat(entry, begins), np.maximum.reduceat(entry, begins)
    own = low == high
    return gram[begins][own], low[own].astype(np.int32), at[begins][own]


def _pair_places(block: Tokens, vocabulary_V: U32) -> I64:
    token_T, part_T = block.token_T, block.part_T
    place_T = np.full(len(token_T), -1, np.int64)
    same = part_T[1:] == part_T[:-1]
    pair = pair_hashes(token_T[:-1][same], token_T[1:][same])
    place_T[1:][same] = np.searchsorted(vocabulary_V, pair)  # every pair of an entry is in the vocabulary
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
    """A sample of about `SAMPLED` rows in which features are counted, and how many rows each sampled row stands for.

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
    again = order[tied]  # what five spots do not distinguish is told apart by all of its bytes
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


def scoring(index: Index, df_V: I64, df_G: I64, n_rows: int, review: float, min_features: int) -> Scoring:
    """Weights and candidate lists.

    An entry with fewer than `min_features` features, or fewer than half as many that are not in about every row (a
    template's items, distinguished by a number), is left to exact matching.
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
    """Whether an entry has at least `min_features` features but fewer than half of them have a weight above 0, shape
    [E].

    Their words are in about every row: a template's items, distinguished by a number, or an item that many rows hold.
    """
    size_E = np.diff(index.offset_E1)
    entry_F = np.repeat(np.arange(len(index)), size_E)
    weighing_E = np.bincount(entry_F[weight_V[index.feature_F] > 0], minlength=len(index))
    return np.asarray((size_E >= min_features) & (2 * weighing_E < min_features))
