"""Both passes of `_overlap` over the rows as compiled loops, with the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from veritune.data import _overlap
from veritune.data._overlap import SINGLE, Index, Overlap, Scoring
from veritune.data._sweep import HORNER, MIX_1, MIX_2
from veritune.data._sweep_numba import _read_part, read_only, run_blocks
from veritune.data.text import BYTE_CLASS, BYTE_VALUE, DIGIT, I64, U64, TextBuffer, chunks_by_bytes

# numba's cache knows this file's text alone, so the numbers compiled into the kernels are repeated in it.
_RULES = (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x632BE59BD9B4E019)
if _RULES != (HORNER, MIX_1, MIX_2, SINGLE):
    raise RuntimeError("_overlap_numba._RULES must repeat the constants of _overlap and _sweep")
_BLOCK = 1 << 22
_P, _M1, _M2, _SINGLE = np.uint64(HORNER), np.uint64(MIX_1), np.uint64(MIX_2), np.uint64(SINGLE)
_0, _1 = np.uint64(0), np.uint64(1)
_S29, _S32, _S6, _63 = np.uint64(29), np.uint64(32), np.uint64(6), np.uint64(63)
_CLASS_WITH_DIGITS = BYTE_CLASS & np.uint8(255 - DIGIT)  # no byte is "one more digit": nothing is masked


@njit(nogil=True, cache=True)
def _mix(left, right):  # type: ignore[no-untyped-def]
    z = (left * _M1) ^ (right + (left >> _S29))
    z = (z ^ (z >> _S32)) * _M2
    return z >> _S32


@njit(nogil=True, cache=True)
def _read(data, at, cut, end, kind, values, token_T, found):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Tokens of both parts of a row, one after the other; `found`: both hashes. Returns tokens before the cut, all."""
    state = _read_part(data, at, cut, kind, values, token_T, (_0, _0, _0, _1, _0, 0, _0))
    _, seen, w, _, before, n, _ = state
    token_T[n] = w
    n += np.int64(before & _1)
    found[0] = seen
    head = n
    state = _read_part(data, cut, end, kind, values, token_T, (_0, _0, _0, _1, _0, n, _0))
    _, seen, w, _, before, n, _ = state
    token_T[n] = w
    n += np.int64(before & _1)
    found[1] = seen
    return head, n


@njit(nogil=True, cache=True)
def _fill_table(keys, table, bits):  # type: ignore[no-untyped-def]
    mask, bit_mask = np.uint64(len(table) - 1), np.uint64(64 * len(bits) - 1)
    for i in range(len(keys)):
        key = np.uint64(keys[i])
        slot = key & mask
        while table[slot] >= 0:
            slot = (slot + _1) & mask
        table[slot] = i
        bit = (key >> np.uint64(7)) & bit_mask
        bits[bit >> _S6] |= _1 << (bit & _63)


@njit(nogil=True, cache=True)
def _place(key, keys, table, bits):  # type: ignore[no-untyped-def]
    """Where `key` stands in `keys`, -1 where it does not; most strangers are sent away by the bits."""
    bit = (key >> np.uint64(7)) & np.uint64(64 * len(bits) - 1)
    if not (bits[bit >> _S6] >> (bit & _63)) & _1:
        return -1
    mask = np.uint64(len(table) - 1)
    slot = key & mask
    while table[slot] >= 0:
        if keys[table[slot]] == key:
            return table[slot]
        slot = (slot + _1) & mask
    return -1


@njit(nogil=True, cache=True)
def _row_places(token_T, head, n, words, stamp, parts, now, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Distinct known features of a row to `out`, and in `parts` where they stand; returns how many."""
    keys, table, bits = words
    count = 0
    for t in range(n):
        side = np.uint8(1 if t < head else 2)
        for pair in range(2):
            if pair and (t == 0 or t == head):
                continue
            key = _mix(token_T[t - 1] if pair else _SINGLE, token_T[t])
            place = _place(key, keys, table, bits)
            if place < 0:
                continue
            if stamp[place] != now:
                stamp[place] = now
                parts[place] = side
                out[count] = place
                count += 1
            else:
                parts[place] |= side
    return count


@njit(nogil=True, cache=True)
def _row_grams(token_T, head, n, gram, runs, power, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Known runs of `gram` tokens within one part, to `out`; returns how many."""
    keys, table, bits = runs
    count = 0
    for part in range(2):
        begin, end = (0, head) if part == 0 else (head, n)
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


@njit(nogil=True, cache=True)
def _longest(offset):  # type: ignore[no-untyped-def]
    longest = 0
    for i in range(len(offset) - 1):
        longest = max(longest, offset[i + 1] - offset[i])
    return longest


@njit(nogil=True, cache=True)
def _count_block(data, offset, cut, kind, values, words, runs, gram, power, df_V, df_G, hashes, counts):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    room = _longest(offset) + 3
    token_T, out = np.empty(room, np.uint64), np.empty(2 * room, np.int32)
    stamp, parts = np.full(len(df_V), -1, np.int32), np.zeros(len(df_V), np.uint8)
    stamp_G = np.full(len(df_G), -1, np.int32)
    for i in range(len(cut)):
        head, n = _read(data, offset[i], cut[i], offset[i + 1], kind, values, token_T, hashes[i])
        counts[i, 0], counts[i, 1] = head, n - head
        for k in range(_row_places(token_T, head, n, words, stamp, parts, i, out)):
            df_V[out[k]] += 1
        for k in range(_row_grams(token_T, head, n, gram, runs, power, out)):
            if stamp_G[out[k]] != i:
                stamp_G[out[k]] = i
                df_G[out[k]] += 1


@njit(nogil=True, cache=True)
def _emit(found, scores, n, row, entry, first, second):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Insert a pair, entries ascending within its row."""
    if n == len(found):
        more, more_scores = np.empty((2 * n, 2), np.int64), np.empty((2 * n, 2), np.float64)
        more[:n], more_scores[:n] = found, scores
        found, scores = more, more_scores
    while n > 0 and found[n - 1, 0] == row and found[n - 1, 1] > entry:
        found[n], scores[n] = found[n - 1], scores[n - 1]
        n -= 1
    found[n, 0], found[n, 1] = row, entry
    scores[n, 0], scores[n, 1] = first, second
    return found, scores


@njit(nogil=True, cache=True)
def _score_block(data, offset, cut, kind, values, words, runs, gram, power, index, rule, review):  # type: ignore[no-untyped-def]  # noqa: C901, PLR0913
    feature_F, offset_E1, gram_entry_G = index
    weight_V, total_E, needed_E, posting_P, posting_V1, gram_ok_G = rule
    room = _longest(offset) + 3
    token_T, out, gram_out = np.empty(room, np.uint64), np.empty(2 * room, np.int32), np.empty(room, np.int32)
    stamp, parts = np.full(len(weight_V), -1, np.int32), np.zeros(len(weight_V), np.uint8)
    stamp_E, gram_E = np.full(len(total_E), -1, np.int32), np.full(len(total_E), -1, np.int32)
    weight_E = np.zeros(len(total_E), np.int64)
    touched = np.empty(len(total_E), np.int32)
    found, scores, n_found = np.empty((256, 2), np.int64), np.empty((256, 2), np.float64), 0
    hashes = np.empty(2, np.uint64)
    for i in range(len(cut)):
        head, n = _read(data, offset[i], cut[i], offset[i + 1], kind, values, token_T, hashes)
        n_touched = 0
        for k in range(_row_places(token_T, head, n, words, stamp, parts, i, out)):
            place = out[k]
            for p in range(posting_V1[place], posting_V1[place + 1]):
                entry = posting_P[p]
                if stamp_E[entry] != i:
                    stamp_E[entry] = i
                    weight_E[entry] = 0
                    touched[n_touched] = entry
                    n_touched += 1
                weight_E[entry] += weight_V[place]
        for k in range(_row_grams(token_T, head, n, gram, runs, power, gram_out)):
            if gram_ok_G[gram_out[k]]:
                entry = gram_entry_G[gram_out[k]]
                gram_E[entry] = i
                if stamp_E[entry] != i:
                    stamp_E[entry] = i
                    weight_E[entry] = 0
                    touched[n_touched] = entry
                    n_touched += 1
        for k in range(n_touched):
            entry = touched[k]
            if weight_E[entry] < needed_E[entry] and gram_E[entry] != i:
                continue
            first, second = np.int64(0), np.int64(0)
            for f in range(offset_E1[entry], offset_E1[entry + 1]):
                place = feature_F[f]
                if stamp[place] == i:
                    first += weight_V[place] * (parts[place] & 1)
                    second += weight_V[place] * (parts[place] >> 1)
            total = max(total_E[entry], 1)
            a, b = first / total, second / total
            if max(a, b) >= review or gram_E[entry] == i:
                found, scores = _emit(found, scores, n_found, i, entry, a, b)
                n_found += 1
    return found[:n_found], scores[:n_found]


def _table(keys: Any) -> tuple[Any, Any, Any]:
    """An open-addressing table over `keys`, at most half full, and the bits in front of it."""
    size = 1 << max(4, int(np.ceil(np.log2(2 * len(keys) + 1))))
    table = np.full(size, -1, np.int32)
    bits = np.zeros(max(1, size // 8), np.uint64)
    wide = keys.astype(np.uint64)
    _fill_table(wide, table, bits)
    return wide, table, bits


def _common(index: Index) -> tuple[Any, ...]:
    power = np.uint64(pow(HORNER, index.gram, 1 << 64))
    values = (BYTE_VALUE, BYTE_VALUE)
    return (_CLASS_WITH_DIGITS, values, _table(index.vocabulary_V), _table(index.gram_G), index.gram, power)


def _columns(rows: TextBuffer, bounds: tuple[int, int]) -> list[Any]:
    part = rows.prepared(*bounds)
    return [read_only(x) for x in (part.data, part.offset_N1, part.cut_N)]


def count(rows: TextBuffer, index: Index, *, threads: int = 1) -> tuple[I64, I64, U64, I64]:
    """As `_overlap.count`."""
    common = _common(index)
    hash_N_2, token_N_2 = np.zeros((len(rows), 2), np.uint64), np.zeros((len(rows), 2), np.int64)

    def block(bounds: tuple[int, int]) -> tuple[I64, I64]:
        a, b = bounds
        df_V, df_G = np.zeros(len(index.vocabulary_V), np.int64), np.zeros(len(index.gram_G), np.int64)
        _count_block(*_columns(rows, bounds), *common, df_V, df_G, hash_N_2[a:b], token_N_2[a:b])
        return df_V, df_G

    df_V, df_G = np.zeros(len(index.vocabulary_V), np.int64), np.zeros(len(index.gram_G), np.int64)
    for more_V, more_G in run_blocks(block, chunks_by_bytes(rows.offset_N1, _BLOCK), threads):
        df_V += more_V
        df_G += more_G
    return df_V, df_G, hash_N_2.T, token_N_2.T


def score(rows: TextBuffer, index: Index, rule: Scoring, *, threads: int = 1) -> Overlap:
    """As `_overlap.score`."""
    common = _common(index)
    lists = (index.feature_F, read_only(index.offset_E1), index.gram_entry_G)
    rules = (rule.weight_V, rule.total_E, rule.needed_E, rule.posting_P, read_only(rule.posting_V1), rule.gram_ok_G)

    def block(bounds: tuple[int, int]) -> Overlap:
        found, scores = _score_block(*_columns(rows, bounds), *common, lists, rules, rule.review)
        return Overlap(found[:, 0] + bounds[0], found[:, 1], scores)

    return _overlap.join_overlaps(run_blocks(block, chunks_by_bytes(rows.offset_N1, _BLOCK), threads))
