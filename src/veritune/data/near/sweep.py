"""One pass over the bytes: tokens, hashes of whole texts, and the distinct word pairs of every row.

A token is a run of letters and digits (a run of digits is one `0` when digits are masked), a feature a pair of
neighbouring tokens as a 32-bit hash, distinct within its row. Hashes of tokens and of texts are Horner sums
h = h * HORNER + value[byte] mod 2^64. In the loop over bytes conditions are masks of ones or zeros: one jump per byte
that depends on the data makes it four times slower.

N rows · N1 row borders (N + 1) · 2N1 borders of row parts (problem, target) · T tokens · F features, row after row
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass

import numpy as np

from veritune.data.near.arrays import I32, I64, U8, U32, U64, Int
from veritune.data.near.bytes import BYTE_CLASS, BYTE_VALUE, DIGIT, MASKED_VALUE, TextBuffer, chunks_by_bytes
from veritune.data.near.compiled import kernel, read_only, run_blocks

HORNER = 0x9E3779B97F4A7C15  # 2^64 / golden ratio, odd (Knuth 6.4)
MIX_1, MIX_2 = 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53  # MurmurHash3's 64-bit finaliser (Appleby)
ROW_CAP = 256  # distinct features kept of one row; longer rows keep those with the smallest hashes
_BLOCK = 1 << 22  # bytes that a thread reads at a time
_TABLE = 2048  # slots of the set of a row's features: eight times the cap
_CLASS_WITH_DIGITS = BYTE_CLASS & np.uint8(255 - DIGIT)  # no byte is a digit, so no run of digits is masked

Text = tuple[U8, I64, I64]  # bytes, row borders, cuts
Values = tuple[U64, U64]  # of bytes in texts, of bytes in tokens
State = tuple[np.uint64, np.uint64, np.uint64, np.uint64, np.uint64, Int, np.uint64]  # see _read_part

_P, _M1, _M2 = np.uint64(HORNER), np.uint64(MIX_1), np.uint64(MIX_2)
_S29, _S32 = np.uint64(29), np.uint64(32)
_0, _1, _2, _3 = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)


@dataclass(frozen=True, slots=True)
class Sweep:
    """One pass over N texts. Row i's features are `feature_F[start_N[i]:start_N[i] + length_N[i]]`, in the order of
    their first occurrence in the row; between rows there may be room that nothing was written to.

    `hash_N` is of the whole canonical text, `problem_hash_N` of its part before the cut, 0 where that is empty.
    """

    hash_N: U64
    problem_hash_N: U64
    problem_token_N: I32
    problem_digit_N: U8
    feature_F: U32
    start_N: I64
    length_N: I32


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of N rows, digits kept, problem and target apart.

    Part p of row i is `token_T[part_2N1[2 * i + p]:part_2N1[2 * i + p + 1]]`; `hash_N_2` are its canonical text's.
    """

    token_T: U64
    part_2N1: I64
    hash_N_2: U64

    @property
    def part_T(self) -> I64:
        """2 * row + part of every token."""
        return np.repeat(np.arange(len(self.part_2N1) - 1), np.diff(self.part_2N1))


@kernel
def _read_part(data: U8, at: int, stop: int, kind: U8, values: Values, token_T: U64, state: State) -> State:
    """Bytes [at, stop) of a row: whole tokens to `token_T`, the rest to the state that is returned."""
    h, seen, w, after_space, before, n, digits = state
    value, masked = values
    for i in range(at, stop):
        byte = data[i]
        k = np.uint64(kind[byte])
        visible = (k >> _3) & _1
        space = (k >> _2) & _1
        emit = _0 - (visible | (space & ~after_space))
        h = h * ((_P & emit) | (_1 & ~emit)) + (value[byte] & emit)
        after_space = space | (after_space & ~visible)
        shown = _0 - visible
        seen = (h & shown) | (seen & ~shown)
        token_T[n] = w
        n += np.int64(before & ~k & _1)
        keep = _0 - (k & _1 & ~((k & before) >> _1))
        w &= _0 - (before & _1)
        w = w * ((_P & keep) | (_1 & ~keep)) + (masked[byte] & keep)
        before = k
        digits |= k & _2
    return h, seen, w, after_space, before, n, digits


@kernel
def _read_row(data: U8, at: int, cut: int, end: int, kind: U8, values: Values, token_T: U64, facts: U64) -> Int:
    """Tokens of a row, those across the cut as one; `facts`: both hashes, tokens before the cut, a digit flag."""
    state = _read_part(data, at, cut, kind, values, token_T, (_0, _0, _0, _1, _0, 0, _0))
    _, seen, _, _, before, n, digits = state
    facts[1] = seen
    facts[2] = np.uint64(n) + (before & _1)
    facts[3] = digits >> _1
    state = _read_part(data, cut, end, kind, values, token_T, state)
    _, seen, w, _, before, n, _ = state
    facts[0] = seen
    token_T[n] = w
    return n + np.int64(before & _1)


@kernel
def _pair_hash(left: np.uint64, right: np.uint64) -> np.uint64:
    """The 32-bit hash of two neighbouring tokens, in 64 bits."""
    z = (left * _M1) ^ (right + (left >> _S29))
    z = (z ^ (z >> _S32)) * _M2
    return z >> _S32


@kernel
def _distinct_pairs(token_T: U64, n: Int, out_F: U32, start: int, table: U64, epoch: int) -> tuple[int, int]:
    """Distinct pairs in the order of first occurrence to `out_F[start:]`; returns how many, and the last epoch.

    `table` is a set by open addressing; an entry of an earlier epoch counts as empty, so it is never cleared.
    A row with more than `ROW_CAP` pairs keeps hashes below 2^(32 - shift), with the smallest shift that fits.
    """
    count = 0
    shift = np.uint64(0)
    epoch += 1
    slots = np.uint64(_TABLE - 1)
    for t in range(1, n):
        feature = _pair_hash(token_T[t - 1], token_T[t])
        if feature >> (_S32 - shift) != 0:
            continue
        entry = (np.uint64(epoch) << _S32) | feature
        slot = feature & slots
        while table[slot] >> _S32 == np.uint64(epoch) and table[slot] != entry:
            slot = (slot + _1) & slots
        if table[slot] == entry:
            continue
        table[slot] = entry
        out_F[start + count] = feature
        count += 1
        while count > ROW_CAP:
            shift += _1
            epoch += 1
            n_kept = 0
            for i in range(count):
                feature = np.uint64(out_F[start + i])
                if feature >> (_S32 - shift) == 0:
                    out_F[start + n_kept] = feature
                    n_kept += 1
                    slot = feature & slots
                    while table[slot] >> _S32 == np.uint64(epoch):
                        slot = (slot + _1) & slots
                    table[slot] = (np.uint64(epoch) << _S32) | feature
            count = n_kept
    return count, epoch


@kernel
def _sweep_block(
    text: Text, first: int, classes: U8, values: Values, columns: tuple[U64, I32, I64, I32], feature_F: U32, room: int
) -> None:
    """Rows of a block, the first of which is row `first`; `room` is where its features may begin."""
    data, offset, cut = text
    hash_2_N, count_2_N, start_N, length_N = columns
    longest = 0
    for r in range(len(cut)):
        longest = max(longest, offset[r + 1] - offset[r])
    token_T = np.empty(longest // 2 + 2, np.uint64)
    table = np.zeros(_TABLE, np.uint64)
    facts = np.zeros(4, np.uint64)
    epoch = 0
    for i in range(len(cut)):
        n = _read_row(data, offset[i], cut[i], offset[i + 1], classes, values, token_T, facts)
        r = first + i
        hash_2_N[0, r] = facts[0]
        hash_2_N[1, r] = facts[1]
        count_2_N[0, r] = facts[2]
        count_2_N[1, r] = facts[3]
        count, epoch = _distinct_pairs(token_T, n, feature_F, room, table, epoch)
        start_N[r] = room
        length_N[r] = count
        room += count


def sweep(buffer: TextBuffer, *, threads: int = 1) -> Sweep:
    """Hashes and features of every row, numbers masked."""
    n = len(buffer)
    hash_2_N = np.zeros((2, n), np.uint64)
    count_2_N = np.zeros((2, n), np.int32)
    start_N, length_N = np.zeros(n, np.int64), np.zeros(n, np.int32)
    room_N1 = _room(buffer.offset_N1)
    feature_F = np.empty(int(room_N1[-1]), np.uint32)  # pages never written are never held
    values = (BYTE_VALUE, MASKED_VALUE)
    columns = (hash_2_N, count_2_N, start_N, length_N)

    def block(bounds: tuple[int, int]) -> None:
        first = bounds[0]
        _sweep_block(_text(buffer, bounds), first, BYTE_CLASS, values, columns, feature_F, int(room_N1[first]))

    run_blocks(block, chunks_by_bytes(buffer.offset_N1, _BLOCK), threads)
    return Sweep(hash_2_N[0], hash_2_N[1], count_2_N[0], count_2_N[1].astype(np.uint8), feature_F, start_N, length_N)


def _text(buffer: TextBuffer, bounds: tuple[int, int]) -> Text:
    block = buffer.prepared(*bounds)
    return read_only(block.data), read_only(block.offset_N1), read_only(block.cut_N)


def _room(offset_N1: I64) -> I64:
    """Where each row's features may begin; a byte never makes more than two features (U+FDFA: 3 bytes, 4 words)."""
    room_N1 = np.zeros(len(offset_N1), np.int64)
    np.cumsum(np.minimum(np.diff(offset_N1) * 2, ROW_CAP) + 2, out=room_N1[1:])
    return room_N1


def join_sweeps(parts: list[Sweep]) -> Sweep:
    """Sweeps of consecutive row ranges as one."""
    if len(parts) == 1:
        return parts[0]
    shift = np.cumsum([0] + [len(p.feature_F) for p in parts[:-1]])
    moved = [dataclasses.replace(p, start_N=p.start_N + s) for p, s in zip(parts, shift)]
    return Sweep(*(np.concatenate([getattr(p, f.name) for p in moved]) for f in dataclasses.fields(Sweep)))


@kernel
def _read_parts(text: Text, classes: U8, values: Values, token_T: U64, part_2N1: I64, hash_N_2: U64) -> None:
    """Tokens of both parts of every row; a token ends where the problem ends."""
    data, offset, cut = text
    n: Int = 0
    for i in range(len(cut)):
        for part in range(2):
            begin, end = (offset[i], cut[i]) if part == 0 else (cut[i], offset[i + 1])
            state = _read_part(data, begin, end, classes, values, token_T, (_0, _0, _0, _1, _0, n, _0))
            _, seen, w, _, before, n, _ = state
            token_T[n] = w
            n += np.int64(before & _1)
            hash_N_2[i, part] = seen
            part_2N1[2 * i + part + 1] = n


def read_tokens(buffer: TextBuffer, bounds: tuple[int, int]) -> Tokens:
    """Tokens of rows [a, b), digits kept."""
    text = _text(buffer, bounds)
    n = len(text[2])
    token_T = np.empty(len(text[0]) // 2 + 2 * n + 1, np.uint64)  # the token after the last one is written to, too
    part_2N1, hash_N_2 = np.zeros(2 * n + 1, np.int64), np.zeros((n, 2), np.uint64)
    _read_parts(text, _CLASS_WITH_DIGITS, (BYTE_VALUE, BYTE_VALUE), token_T, part_2N1, hash_N_2)
    return Tokens(token_T[: part_2N1[-1]], part_2N1, hash_N_2)


@kernel
def _pair_hashes(left_T: U64, right_T: U64, out_T: U32) -> None:
    for t in range(len(out_T)):
        out_T[t] = _pair_hash(left_T[t], right_T[t])


def pair_hashes(left_T: U64, right_T: U64) -> U32:
    """The features of neighbouring tokens, shape [T]."""
    out_T = np.empty(len(left_T), np.uint32)
    _pair_hashes(left_T, right_T, out_T)
    return out_T
