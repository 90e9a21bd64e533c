"""The first sweep in numpy: no compiler needed, and no start-up cost on small data."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

from veritune.data._sweep import HORNER, MIX_1, MIX_2, ROW_CAP, Sweep, horner_inverse, join_sweeps, token_values
from veritune.data.text import (
    BYTE_CLASS,
    BYTE_VALUE,
    DIGIT,
    I32,
    I64,
    SPACE,
    U8,
    U32,
    U64,
    VISIBLE,
    WORD,
    TextBuffer,
    chunks_by_bytes,
)

Bool = npt.NDArray[np.bool_]
_CHUNK = 1 << 20


class _Powers:
    """Powers of the Horner base and of its inverse, grown as needed."""

    def __init__(self) -> None:
        self.up: U64 = np.ones(1, np.uint64)
        self.down: U64 = np.ones(1, np.uint64)

    def upto(self, n: int) -> tuple[U64, U64]:
        if len(self.up) <= n:
            self.up, self.down = _powers(HORNER, n + 1), _powers(horner_inverse(), n + 1)
        return self.up, self.down


def _powers(base: int, n: int) -> U64:
    factor = np.full(n, base & (2**64 - 1), np.uint64)
    factor[0] = 1
    return np.cumprod(factor, dtype=np.uint64)


_POWERS = _Powers()


def sweep(buffer: TextBuffer, *, mask_digits: bool = True) -> Sweep:
    """Hashes and features of every row; see `_sweep.Sweep`."""
    parts = [_sweep_chunk(buffer, a, b, mask_digits) for a, b in chunks_by_bytes(buffer.offset_N1, _CHUNK)]
    return join_sweeps(parts) if parts else _empty()


def _empty() -> Sweep:
    return Sweep(
        np.zeros(0, np.uint64),
        np.zeros(0, np.uint64),
        np.zeros(0, np.int32),
        np.zeros(0, np.uint8),
        np.zeros(0, np.uint32),
        np.zeros(0, np.int64),
        np.zeros(0, np.int32),
    )


def _sweep_chunk(buffer: TextBuffer, a: int, b: int, mask_digits: bool) -> Sweep:
    block = buffer.prepared(a, b)
    data, offset_N1, cut_N = block.data, block.offset_N1, block.cut_N
    kind = BYTE_CLASS[data]
    first = np.zeros(len(data) + 1, bool)
    first[offset_N1[:-1]] = True
    hash_N, problem_hash_N = canonical_hashes(data, kind, offset_N1, cut_N)
    token_T, token_at_T, digit_count = token_hashes(data, kind, first[:-1], mask_digits)
    row_T = np.searchsorted(offset_N1, token_at_T, side="right") - 1
    feature_F, start_N, length_N = _features(token_T, row_T, b - a)
    before_cut = np.searchsorted(token_at_T, cut_N) - np.searchsorted(token_at_T, offset_N1[:-1])
    digits = digit_count[cut_N] > digit_count[offset_N1[:-1]]
    return Sweep(
        hash_N,
        problem_hash_N,
        before_cut.astype(np.int32),
        digits.astype(np.uint8),
        feature_F,
        start_N,
        length_N,
    )


def canonical_hashes(data: U8, kind: U8, offset_N1: I64, cut_N: I64) -> tuple[U64, U64]:
    """Horner sums over the visible bytes and one blank per run of white space, ended at the last visible byte."""
    text = np.flatnonzero(kind & (VISIBLE | SPACE))
    space = (kind[text] & SPACE) != 0
    begins = np.searchsorted(text, offset_N1[:-1])
    after_space = np.empty(len(text), bool)
    after_space[1:] = space[:-1]
    after_space[begins[begins < len(text)]] = True
    emit = ~space | ~after_space
    at, space = text[emit], space[emit]
    up, down = _POWERS.upto(len(at) + 1)
    prefix = np.zeros(len(at) + 1, np.uint64)
    np.cumsum(BYTE_VALUE[data[at]] * down[: len(at)], out=prefix[1:])
    start_N = np.searchsorted(at, offset_N1[:-1])

    def ended_at(byte_N: I64) -> U64:
        end_N = np.searchsorted(at, byte_N)
        trailing = (end_N > start_N) & space[np.maximum(end_N - 1, 0)] if len(at) else np.zeros(len(end_N), bool)
        end_N = end_N - trailing
        sums = (prefix[end_N] - prefix[start_N]) * up[np.maximum(end_N - 1, 0)]
        return np.where(end_N > start_N, sums, np.uint64(0))

    return ended_at(offset_N1[1:]), ended_at(cut_N)


def token_hashes(data: U8, kind: U8, first: Bool, mask_digits: bool) -> tuple[U64, I64, I64]:
    """Hash and first byte of every token, and the running count of digits before each byte, shape [bytes + 1]."""
    word = (kind & WORD) != 0
    digit = (kind & DIGIT) != 0
    before = np.zeros(len(data), bool)
    before[1:] = word[:-1]
    begins = word & (~before | first)
    keep = word
    if mask_digits:
        before[1:] = digit[:-1]
        keep = word & ~(digit & before & ~first)
    at = np.flatnonzero(keep)
    up, down = _POWERS.upto(len(at) + 1)
    prefix = np.zeros(len(at) + 1, np.uint64)
    np.cumsum(token_values(mask_digits)[data[at]] * down[: len(at)], out=prefix[1:])
    begin_T = np.flatnonzero(begins)
    start_T = np.searchsorted(at, begin_T)
    end_T = np.append(start_T[1:], len(at))
    token_T = (prefix[end_T] - prefix[start_T]) * up[np.maximum(end_T - 1, 0)]
    digit_count = np.zeros(len(data) + 1, np.int64)
    np.cumsum(digit, out=digit_count[1:])
    return token_T, begin_T, digit_count


def mix_pairs(left: U64, right: U64) -> U32:
    """The 32-bit hash of neighbouring tokens."""
    z = (left * np.uint64(MIX_1)) ^ (right + (left >> np.uint64(29)))
    z = (z ^ (z >> np.uint64(32))) * np.uint64(MIX_2)
    return (z >> np.uint64(32)).astype(np.uint32)


def _features(token_T: U64, row_T: I64, n: int) -> tuple[U32, I64, I32]:
    """Distinct bigrams by row in order of first occurrence, sampled by hash where a row has more than `ROW_CAP`."""
    same = row_T[1:] == row_T[:-1]
    row_P = row_T[:-1][same]
    feature_P = mix_pairs(token_T[:-1][same], token_T[1:][same])
    key_P = (row_P.astype(np.uint64) << np.uint64(32)) | feature_P
    key_F, at_F = np.unique(key_P, return_index=True)
    row_F = (key_F >> np.uint64(32)).astype(np.int64)
    count_N = np.bincount(row_F, minlength=n)
    if count_N.size and count_N.max() > ROW_CAP:
        kept = _sample(key_F, row_F, count_N)
        at_F, row_F = at_F[kept], row_F[kept]
        count_N = np.bincount(row_F, minlength=n)
    feature_F = feature_P[np.sort(at_F)]
    return feature_F, np.cumsum(count_N) - count_N, count_N.astype(np.int32)


def _sample(key_F: U64, row_F: I64, count_N: I64) -> Bool:
    """Keep hashes below 2^(32 - s), with the smallest s that leaves at most `ROW_CAP` in the row."""
    low_F = (key_F & np.uint64(0xFFFFFFFF)).astype(np.int64)
    kept = np.ones(len(key_F), bool)
    start_N = np.searchsorted(row_F, np.arange(len(count_N)))
    for i in np.flatnonzero(count_N > ROW_CAP).tolist():
        a, b = int(start_N[i]), int(start_N[i] + count_N[i])
        shift = 0
        while np.count_nonzero(low_F[a:b] < (1 << (32 - shift))) > ROW_CAP:
            shift += 1
        kept[a:b] = low_F[a:b] < (1 << (32 - shift))
    return kept
