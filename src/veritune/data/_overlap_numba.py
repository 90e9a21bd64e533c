"""Both passes of `_overlap` over the rows as compiled loops, with the same numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
from numba import njit

from veritune.data import _overlap
from veritune.data._overlap import SINGLE, Index, Overlap, Scoring
from veritune.data._sweep import HORNER, MIX_1, MIX_2
from veritune.data._sweep_numba import _read_part, read_only, run_blocks
from veritune.data.text import BYTE_CLASS, BYTE_VALUE, DIGIT, I64, TextBuffer, chunks_by_bytes

# numba's cache knows this file's text alone, so the numbers compiled into the kernels are repeated in it.
_RULES = (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 0x632BE59BD9B4E019)
if _RULES != (HORNER, MIX_1, MIX_2, SINGLE):
    raise RuntimeError("_overlap_numba._RULES must repeat the constants of _overlap and _sweep")
_BLOCK = 1 << 22
_P, _M1, _M2, _SINGLE = np.uint64(HORNER), np.uint64(MIX_1), np.uint64(MIX_2), np.uint64(SINGLE)
_0, _1, _LOW = np.uint64(0), np.uint64(1), np.uint64(0xFFFFFFFF)
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
def _fill_words(keys, wanted, table, bits):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True)
def _fill_runs(keys, table, bits):  # type: ignore[no-untyped-def]
    mask, bit_mask = np.uint64(len(table) - 1), np.uint64(64 * len(bits) - 1)
    for i in range(len(keys)):
        slot = keys[i] & mask
        while table[slot] >= 0:
            slot = (slot + _1) & mask
        table[slot] = i
        bit = (keys[i] >> np.uint64(7)) & bit_mask
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
def _likely(token_T, begin, end, bits, key_K):  # type: ignore[no-untyped-def]
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


@njit(nogil=True, cache=True)
def _row_places(token_T, head, n, words, stamp, now, key_K, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Distinct known features of a row to `out`; `stamp` becomes 4 * now + their parts. Returns how many."""
    table, bits = words
    mask = np.uint64(len(table) - 1)
    count = 0
    for part in range(2):
        begin, end = (0, head) if part == 0 else (head, n)
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
            seen = stamp[place]
            fresh = seen >> 2 != now
            stamp[place] = (now << 2 if fresh else seen) | (1 + part)
            out[count] = place
            count += fresh
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
def _count_block(data, offset, cut, kind, values, words, runs, gram, power, df_V, df_G):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    room = _longest(offset) + 3
    token_T, key_K, out = np.empty(room, np.uint64), np.empty(2 * room, np.uint64), np.empty(2 * room, np.int32)
    stamp = np.full(len(df_V), -1, np.int64)
    stamp_G = np.full(len(df_G), -1, np.int32)
    hashes = np.empty(2, np.uint64)
    for i in range(len(cut)):
        head, n = _read(data, offset[i], cut[i], offset[i + 1], kind, values, token_T, hashes)
        for k in range(_row_places(token_T, head, n, words, stamp, i, key_K, out)):
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
def _score_block(data, offset, cut, kind, values, words, runs, gram, power, index, rule, review, hashes):  # type: ignore[no-untyped-def]  # noqa: C901, PLR0913
    feature_F, offset_E1, gram_entry_G = index
    weight_V, total_E, needed_E, posting_P, posting_V1, gram_ok_G = rule
    room = _longest(offset) + 3
    token_T, key_K = np.empty(room, np.uint64), np.empty(2 * room, np.uint64)
    out, gram_out = np.empty(2 * room, np.int32), np.empty(room, np.int32)
    stamp = np.full(len(weight_V), -1, np.int64)
    stamp_E, gram_E = np.full(len(total_E), -1, np.int32), np.full(len(total_E), -1, np.int32)
    weight_E = np.zeros(len(total_E), np.int64)
    touched = np.empty(len(total_E), np.int32)
    found, scores, n_found = np.empty((256, 2), np.int64), np.empty((256, 2), np.float64), 0
    for i in range(len(cut)):
        head, n = _read(data, offset[i], cut[i], offset[i + 1], kind, values, token_T, hashes[i])
        n_touched = 0
        for k in range(_row_places(token_T, head, n, words, stamp, i, key_K, out)):
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
                if stamp[place] >> 2 == i:
                    first += weight_V[place] * (stamp[place] & 1)
                    second += weight_V[place] * ((stamp[place] >> 1) & 1)
            total = max(total_E[entry], 1)
            a, b = first / total, second / total
            if max(a, b) >= review or gram_E[entry] == i:
                found, scores = _emit(found, scores, n_found, i, entry, a, b)
                n_found += 1
    return found[:n_found], scores[:n_found]


def _words(keys: Any, wanted: Any) -> tuple[Any, Any]:
    """An open-addressing table of `key << 32 | place + 1`, at most a third full, and the bits in front of it."""
    size = 1 << max(4, int(np.ceil(np.log2(3 * len(keys) + 1))))
    table, bits = np.zeros(size, np.uint64), np.zeros(max(1, size // 16), np.uint64)
    _fill_words(keys, wanted, table, bits)
    return table, bits


def _runs(keys: Any) -> tuple[Any, Any, Any]:
    """A table of places over 64-bit keys, at most a third full, and the bits in front of it."""
    size = 1 << max(4, int(np.ceil(np.log2(3 * len(keys) + 1))))
    table, bits = np.full(size, -1, np.int32), np.zeros(max(1, size // 16), np.uint64)
    _fill_runs(keys, table, bits)
    return keys, table, bits


def _common(index: Index, wanted: Any) -> tuple[Any, ...]:
    power = np.uint64(pow(HORNER, index.gram, 1 << 64))
    values = (BYTE_VALUE, BYTE_VALUE)
    return (_CLASS_WITH_DIGITS, values, _words(index.vocabulary_V, wanted), _runs(index.gram_G), index.gram, power)


def _columns(rows: TextBuffer, bounds: tuple[int, int]) -> list[Any]:
    part = rows.prepared(*bounds)
    return [read_only(x) for x in (part.data, part.offset_N1, part.cut_N)]


def count(rows: TextBuffer, index: Index, *, threads: int = 1) -> tuple[I64, I64]:
    """As `_overlap.count`."""
    common = _common(index, np.ones(len(index.vocabulary_V), bool))

    def block(bounds: tuple[int, int]) -> tuple[I64, I64]:
        df_V, df_G = np.zeros(len(index.vocabulary_V), np.int64), np.zeros(len(index.gram_G), np.int64)
        _count_block(*_columns(rows, bounds), *common, df_V, df_G)
        return df_V, df_G

    df_V, df_G = np.zeros(len(index.vocabulary_V), np.int64), np.zeros(len(index.gram_G), np.int64)
    for more_V, more_G in run_blocks(block, chunks_by_bytes(rows.offset_N1, _BLOCK), threads):
        df_V += more_V
        df_G += more_G
    return df_V, df_G


def score(rows: TextBuffer, index: Index, rule: Scoring, *, threads: int = 1) -> Overlap:
    """As `_overlap.score`."""
    common = _common(index, rule.weight_V > 0)
    lists = (index.feature_F, read_only(index.offset_E1), index.gram_entry_G)
    rules = (rule.weight_V, rule.total_E, rule.needed_E, rule.posting_P, read_only(rule.posting_V1), rule.gram_ok_G)

    def block(bounds: tuple[int, int]) -> Overlap:
        hash_N_2 = np.zeros((bounds[1] - bounds[0], 2), np.uint64)
        found, scores = _score_block(*_columns(rows, bounds), *common, lists, rules, rule.review, hash_N_2)
        return Overlap(found[:, 0] + bounds[0], found[:, 1], scores, hash_N_2)

    return _overlap.join_overlaps(run_blocks(block, chunks_by_bytes(rows.offset_N1, _BLOCK), threads))
