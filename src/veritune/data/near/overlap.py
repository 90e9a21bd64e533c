"""Overlap: two passes over the rows, the first counting the items' features, the second scoring items against rows.

An item's score in a row is the weight of its features that the row holds over the weight of all of them, for the row's
prompt and its target apart. Runs of `gram` tokens that row and item share are looked up beside it.

A bit filter rejects most features that no item has before a table is probed; it is filled without a jump per feature.

N rows · E entries · V distinct features · G runs of tokens · P pairs of row and entry · T tokens · K keys of one row
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np

from veritune.data.near.arrays import F64, I32, I64, U32, U64, Bool
from veritune.data.near.bytes import TextBuffer, chunks_by_bytes
from veritune.data.near.compiled import kernel, read_only, run_blocks
from veritune.data.near.index import CHUNK, SINGLE, Index, Scoring, build, faint, grams, sample, scoring
from veritune.data.near.sweep import HORNER, MIX_1, MIX_2, read_tokens

RUN = 24  # tokens at the beginning of a faint entry that are looked up in the rows

# Compiled in from sweep.py and index.py and repeated here, because numba's cache knows the text of this file alone.
if (MIX_1, MIX_2, SINGLE) != (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x632BE59BD9B4E019):
    raise RuntimeError("overlap.py must repeat the constants of sweep.py and index.py that its kernels compile in")
if HORNER != 0x9E3779B97F4A7C15:
    raise RuntimeError("overlap.py must repeat HORNER of sweep.py")
Words = tuple[U64, U64]  # table, bits
Runs = tuple[U64, I32, U64]  # keys, table of places in keys, bits
Rules = tuple[I64, I64, I64, I32, I64, Bool]  # the arrays of Scoring, in its order
_P, _M1, _M2, _SINGLE = np.uint64(HORNER), np.uint64(MIX_1), np.uint64(MIX_2), np.uint64(SINGLE)
_0, _1, _LOW = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFF)
_S29, _S32, _S6, _63 = np.uint64(29), np.uint64(32), np.uint64(6), np.uint64(63)


@dataclass(frozen=True, slots=True)
class Overlap:
    """P pairs of row and entry, with the score in the row's prompt and in its target, ordered by row, then entry.

    `hash_N_2` are the hashes of every row's canonical prompt and target.
    """

    row_P: I64
    entry_P: I64
    score_P_2: F64
    hash_N_2: U64


@dataclass(frozen=True, slots=True)
class RowsBesideEntries:
    """Rows beside entries: the index over the entries, which of them only exact matching can find, and the pairs."""

    index: Index
    faint_E: Bool
    overlap: Overlap


class OverlapRule(Protocol):
    """Which overlaps count: see `contamination.ContaminationConfig`."""

    @property
    def review(self) -> float: ...
    @property
    def ngram(self) -> int: ...
    @property
    def min_features(self) -> int: ...


@kernel
def _mix(left: np.uint64, right: np.uint64) -> np.uint64:
    z = (left * _M1) ^ (right + (left >> _S29))
    z = (z ^ (z >> _S32)) * _M2
    return z >> _S32


@kernel
def _fill_words(keys: U32, wanted: Bool, table: U64, bits: U64) -> None:
    mask, bit_mask = np.uint64(len(table) - 1), np.uint64(64 * len(bits) - 1)
    for i in range(len(keys)):
        if not wanted[i]:
            continue
        key = np.uint64(keys[i])
        slot = key & mask
        while table[slot]:
            slot = (slot + _1) & mask
        table[slot] = (key << _S32) | np.uint64(i + 1)
        bit = (key >> np.uint64(7)) & bit_mask
        bits[bit >> _S6] |= _1 << (bit & _63)


@kernel
def _fill_runs(keys: U64, table: I32, bits: U64) -> None:
    mask, bit_mask = np.uint64(len(table) - 1), np.uint64(64 * len(bits) - 1)
    for i in range(len(keys)):
        slot = keys[i] & mask
        while table[slot] >= 0:
            slot = (slot + _1) & mask
        table[slot] = i
        bit = (keys[i] >> np.uint64(7)) & bit_mask
        bits[bit >> _S6] |= _1 << (bit & _63)


@kernel
def _place(key: np.uint64, keys: U64, table: I32, bits: U64) -> int:
    """Where `key` stands in `keys`, -1 where it does not."""
    bit = (key >> np.uint64(7)) & np.uint64(64 * len(bits) - 1)
    if not (bits[bit >> _S6] >> (bit & _63)) & _1:
        return -1
    mask = np.uint64(len(table) - 1)
    slot = key & mask
    while table[slot] >= 0:
        if keys[table[slot]] == key:
            return int(table[slot])
        slot = (slot + _1) & mask
    return -1


@kernel
def _likely(token_T: U64, begin: int, end: int, bits: U64, key_K: U64) -> int:
    """Keys of tokens and pairs in [begin, end) that pass the bits, to `key_K`, without a jump per key."""
    bit_mask = np.uint64(64 * len(bits) - 1)
    count = 0
    left = _0
    for t in range(begin, end):
        token = token_T[t]
        key = _mix(_SINGLE, token)
        bit = (key >> np.uint64(7)) & bit_mask
        key_K[count] = key
        count += int((bits[bit >> _S6] >> (bit & _63)) & _1)
        key = _mix(left, token)
        bit = (key >> np.uint64(7)) & bit_mask
        key_K[count] = key
        count += int((bits[bit >> _S6] >> (bit & _63)) & _1) * (t > begin)
        left = token
    return count


@kernel
def _row_places(
    token_T: U64, borders: tuple[int, int, int], words: Words, stamp_V: I64, row: int, key_K: U64, out: I32
) -> int:
    """Distinct known features of a row to `out`; `stamp_V` becomes 4 * row + their parts. Returns how many."""
    table, bits = words
    mask = np.uint64(len(table) - 1)
    count = 0
    for part in range(2):
        begin, end = (borders[0], borders[1]) if part == 0 else (borders[1], borders[2])
        for k in range(_likely(token_T, begin, end, bits, key_K)):
            key = key_K[k]
            slot = key & mask
            entry = table[slot]
            while entry and entry >> _S32 != key:
                slot = (slot + _1) & mask
                entry = table[slot]
            if not entry:
                continue
            place = np.int64(entry & _LOW) - 1
            seen = stamp_V[place]
            fresh = seen >> 2 != row
            stamp_V[place] = (row << 2 if fresh else seen) | (1 + part)
            out[count] = place
            count += fresh
    return count


@kernel
def _row_grams(token_T: U64, borders: tuple[int, int, int], gram: int, runs: Runs, power: np.uint64, out: I32) -> int:
    """Known runs of `gram` tokens within one part, to `out`; returns how many."""
    keys, table, bits = runs
    count = 0
    for part in range(2):
        begin, end = (borders[0], borders[1]) if part == 0 else (borders[1], borders[2])
        h = _0
        for t in range(begin, end):
            h = h * _P + token_T[t]
            if t - begin >= gram:
                h -= token_T[t - gram] * power
            if t - begin >= gram - 1:
                place = _place(h, keys, table, bits)
                if place >= 0:
                    out[count] = place
                    count += 1
    return count


@kernel
def _longest(part_2N1: I64) -> int:
    """Tokens of the longest row."""
    longest = 0
    for i in range(len(part_2N1) // 2):
        longest = max(longest, part_2N1[2 * i + 2] - part_2N1[2 * i])
    return longest


@kernel
def _count_block(
    token_T: U64, part_2N1: I64, words: Words, runs: Runs, gram: int, power: np.uint64, df_V: I64, df_G: I64
) -> None:
    room = _longest(part_2N1) + 1
    key_K, out = np.empty(2 * room, np.uint64), np.empty(2 * room, np.int32)
    stamp_V = np.full(len(df_V), -1, np.int64)
    stamp_G = np.full(len(df_G), -1, np.int32)
    for i in range(len(part_2N1) // 2):
        borders = (part_2N1[2 * i], part_2N1[2 * i + 1], part_2N1[2 * i + 2])
        for k in range(_row_places(token_T, borders, words, stamp_V, i, key_K, out)):
            df_V[out[k]] += 1
        for k in range(_row_grams(token_T, borders, gram, runs, power, out)):
            if stamp_G[out[k]] != i:
                stamp_G[out[k]] = i
                df_G[out[k]] += 1


@kernel
def _move(pairs: I64, scores: F64, i: int, to_pairs: I64, to_scores: F64, j: int) -> None:
    """Copy one pair and its scores to another place."""
    for column in range(2):
        to_pairs[j, column] = pairs[i, column]
        to_scores[j, column] = scores[i, column]


@kernel
def _emit(pairs: I64, scores: F64, n: int, row: int, entry: int, first: float, second: float) -> tuple[I64, F64]:
    """Insert a pair, entries ascending within its row."""
    if n == len(pairs):
        more, more_scores = np.empty((2 * n, 2), np.int64), np.empty((2 * n, 2), np.float64)
        for i in range(n):
            _move(pairs, scores, i, more, more_scores, i)
        pairs, scores = more, more_scores
    while n > 0 and pairs[n - 1, 0] == row and pairs[n - 1, 1] > entry:
        _move(pairs, scores, n - 1, pairs, scores, n)
        n -= 1
    pairs[n, 0], pairs[n, 1] = row, entry
    scores[n, 0], scores[n, 1] = first, second
    return pairs, scores


@kernel
def _touch(entry: int, i: int, stamp_E: I32, weight_E: I64, touched: I32, n_touched: int) -> int:
    """Row i comes upon an entry, perhaps for the first time; returns how many entries it has come upon."""
    if stamp_E[entry] == i:
        return n_touched
    stamp_E[entry] = i
    weight_E[entry] = 0
    touched[n_touched] = entry
    return n_touched + 1


@kernel
def _score_block(
    token_T: U64,
    part_2N1: I64,
    words: Words,
    runs: Runs,
    gram: int,
    power: np.uint64,
    index: tuple[I32, I64, I32],
    rule: Rules,
    review: float,
) -> tuple[I64, F64]:
    """Pairs (row, entry) and their scores in prompt and target; only entries with enough listed weight are scored."""
    feature_F, offset_E1, gram_entry_G = index
    weight_V, total_E, needed_E, posting_P, posting_V1, gram_ok_G = rule
    room = _longest(part_2N1) + 1
    key_K, out, gram_out = np.empty(2 * room, np.uint64), np.empty(2 * room, np.int32), np.empty(room, np.int32)
    stamp_V = np.full(len(weight_V), -1, np.int64)
    stamp_E, gram_E = np.full(len(total_E), -1, np.int32), np.full(len(total_E), -1, np.int32)
    weight_E = np.zeros(len(total_E), np.int64)
    touched = np.empty(len(total_E), np.int32)
    pairs, scores, n_pairs = np.empty((256, 2), np.int64), np.empty((256, 2), np.float64), 0
    for i in range(len(part_2N1) // 2):
        borders = (part_2N1[2 * i], part_2N1[2 * i + 1], part_2N1[2 * i + 2])
        n_touched = 0
        for k in range(_row_places(token_T, borders, words, stamp_V, i, key_K, out)):
            place = out[k]
            for p in range(posting_V1[place], posting_V1[place + 1]):
                entry = posting_P[p]
                n_touched = _touch(entry, i, stamp_E, weight_E, touched, n_touched)
                weight_E[entry] += weight_V[place]
        for k in range(_row_grams(token_T, borders, gram, runs, power, gram_out)):
            if gram_ok_G[gram_out[k]]:
                entry = gram_entry_G[gram_out[k]]
                gram_E[entry] = i
                n_touched = _touch(entry, i, stamp_E, weight_E, touched, n_touched)
        for k in range(n_touched):
            entry = touched[k]
            if weight_E[entry] < needed_E[entry] and gram_E[entry] != i:
                continue
            first, second = np.int64(0), np.int64(0)
            for f in range(offset_E1[entry], offset_E1[entry + 1]):
                place = feature_F[f]
                if stamp_V[place] >> 2 == i:
                    first += weight_V[place] * (stamp_V[place] & 1)
                    second += weight_V[place] * ((stamp_V[place] >> 1) & 1)
            total = max(total_E[entry], 1)
            a, b = first / total, second / total
            if max(a, b) >= review or gram_E[entry] == i:
                pairs, scores = _emit(pairs, scores, n_pairs, i, entry, a, b)
                n_pairs += 1
    return pairs[:n_pairs], scores[:n_pairs]


def _words(keys: U32, wanted: Bool) -> Words:
    """An open-addressing table of `key << 32 | place + 1`, at most a third full, and the bits in front of it."""
    size = 1 << max(4, int(np.ceil(np.log2(3 * len(keys) + 1))))
    table, bits = np.zeros(size, np.uint64), np.zeros(max(1, size // 16), np.uint64)
    _fill_words(keys, wanted, table, bits)
    return table, bits


def _runs(keys: U64) -> Runs:
    """A table of places over 64-bit keys, at most a third full, and the bits in front of it."""
    size = 1 << max(4, int(np.ceil(np.log2(3 * len(keys) + 1))))
    table, bits = np.full(size, -1, np.int32), np.zeros(max(1, size // 16), np.uint64)
    _fill_runs(keys, table, bits)
    return keys, table, bits


def _tables(index: Index, wanted: Bool) -> tuple[Words, Runs, int, np.uint64]:
    """What both passes look up: features, runs, the length of a run, and HORNER to that power."""
    power = np.uint64(pow(HORNER, index.gram, 1 << 64))
    return _words(index.vocabulary_V, wanted), _runs(index.gram_G), index.gram, power


def count(rows: TextBuffer, index: Index, *, threads: int = 1) -> tuple[I64, I64]:
    """First pass, over a sample: in how many rows each feature and each run occurs, shapes [V] and [G]."""
    tables = _tables(index, np.ones(len(index.vocabulary_V), bool))

    def block(bounds: tuple[int, int]) -> tuple[I64, I64]:
        df_V, df_G = np.zeros(len(index.vocabulary_V), np.int64), np.zeros(len(index.gram_G), np.int64)
        tokens = read_tokens(rows, bounds)
        _count_block(tokens.token_T, tokens.part_2N1, *tables, df_V, df_G)
        return df_V, df_G

    df_V, df_G = np.zeros(len(index.vocabulary_V), np.int64), np.zeros(len(index.gram_G), np.int64)
    for more_V, more_G in run_blocks(block, chunks_by_bytes(rows.offset_N1, CHUNK), threads):
        df_V += more_V
        df_G += more_G
    return df_V, df_G


def score(rows: TextBuffer, index: Index, rule: Scoring, *, threads: int = 1) -> Overlap:
    """Second pass: every pair whose score in the row's prompt or target reaches `review`, or that shares a run."""
    tables = _tables(index, rule.weight_V > 0)
    lists = (index.feature_F, read_only(index.offset_E1), index.gram_entry_G)
    rules = (rule.weight_V, rule.total_E, rule.needed_E, rule.posting_P, read_only(rule.posting_V1), rule.gram_ok_G)

    def block(bounds: tuple[int, int]) -> Overlap:
        tokens = read_tokens(rows, bounds)
        pairs, scores = _score_block(tokens.token_T, tokens.part_2N1, *tables, lists, rules, rule.review)
        return Overlap(pairs[:, 0] + bounds[0], pairs[:, 1], scores, tokens.hash_N_2)

    return join_overlaps(run_blocks(block, chunks_by_bytes(rows.offset_N1, CHUNK), threads))


def join_overlaps(parts: list[Overlap]) -> Overlap:
    """The overlaps of consecutive blocks as one object."""
    if not parts:
        none = np.zeros(0, np.int64)
        return Overlap(none, none, np.zeros((0, 2)), np.zeros((0, 2), np.uint64))
    return Overlap(
        np.concatenate([f.row_P for f in parts]),
        np.concatenate([f.entry_P for f in parts]),
        np.concatenate([f.score_P_2 for f in parts]),
        np.concatenate([f.hash_N_2 for f in parts]),
    )


def compare(
    rows: TextBuffer,
    entries: TextBuffer,
    rule: OverlapRule,
    score_rows: Callable[[TextBuffer, Index, Scoring], Overlap],
    *,
    threads: int = 1,
) -> RowsBesideEntries:
    """Both passes; the second uses `score_rows`: `score` on this machine, or a cluster's replacement for it."""
    index = build(entries, rule.ngram)
    sampled, stride = sample(rows)
    df_V, df_G = (df * stride for df in count(sampled, index, threads=threads))
    weights = scoring(index, df_V, df_G, len(rows), rule.review, rule.min_features)
    return RowsBesideEntries(index, faint(index, weights.weight_V, rule.min_features), score_rows(rows, index, weights))


def standing(rows: TextBuffer, texts: list[str]) -> tuple[I64, I64, I64]:
    """Row, text and row part wherever a text's tokens (the first `RUN` of them) occur in the row consecutively."""
    wanted = read_tokens(TextBuffer.from_strings(texts), (0, len(texts)))
    size_E = np.minimum(np.diff(wanted.part_2N1)[::2], RUN)
    by_size: dict[int, dict[int, list[int]]] = {}
    for size in np.unique(size_E[size_E > 0]).tolist():
        gram, at = grams(wanted, size)
        entry_G = wanted.part_T[at] // 2
        _, first = np.unique(entry_G, return_index=True)
        table = by_size.setdefault(size, {})
        for entry, hashed in zip(entry_G[first].tolist(), gram[first].tolist()):
            if size_E[entry] == size:
                table.setdefault(hashed, []).append(entry)
    places = set()
    for a, b in chunks_by_bytes(rows.offset_N1, CHUNK):
        block = read_tokens(rows, (a, b))
        part_T = block.part_T
        for size, table in by_size.items():
            gram, at = grams(block, size)
            here = np.isin(gram, np.array(list(table), np.uint64))
            for hashed, part in zip(gram[here].tolist(), part_T[at[here]].tolist()):
                places |= {(a + part // 2, entry, part % 2) for entry in table[hashed]}
    triples = np.array(sorted(places), np.int64).reshape(-1, 3)
    return triples[:, 0], triples[:, 1], triples[:, 2]
