"""The first sweep as compiled loops: one pass over the bytes, no jump that depends on them.

Repeats `_sweep_numpy` number for number. Rows are cut into blocks; each thread takes blocks and holds no lock.
"""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
from numba import njit

from veritune.data._sweep import HORNER, MIX_1, MIX_2, ROW_CAP, Sweep, token_values
from veritune.data.text import BYTE_CLASS, BYTE_VALUE, I64, TextBuffer, chunks_by_bytes

# numba's cache knows this file's text alone, so the numbers compiled into the kernels are repeated in it.
_RULES = (0x9E3779B97F4A7C15, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53, 256)
if _RULES != (HORNER, MIX_1, MIX_2, ROW_CAP):
    raise RuntimeError("_sweep_numba._RULES must repeat the constants of _sweep")
_BLOCK = 1 << 22
_TABLE = 2048  # slots of the per-row set of features; four times the cap
_P = np.uint64(HORNER)
_M1 = np.uint64(MIX_1)
_M2 = np.uint64(MIX_2)
_S29, _S32 = np.uint64(29), np.uint64(32)
_0, _1, _2, _3 = np.uint64(0), np.uint64(1), np.uint64(2), np.uint64(3)


@njit(nogil=True, cache=True, inline="always")
def _read_part(data, at, stop, kind, values, token_T, state):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Bytes [at, stop) of a row. Conditions are masks (all ones or zero): a jump per byte costs four times this."""
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


@njit(nogil=True, cache=True)
def _read_row(data, at, cut, end, kind, values, token_T, found):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    """Tokens of one row into `token_T`; `found` receives both hashes, tokens before the cut and a digit flag."""
    state = (_0, _0, _0, _1, _0, 0, _0)
    state = _read_part(data, at, cut, kind, values, token_T, state)
    _, seen, _, _, before, n, digits = state
    found[1] = seen
    found[2] = np.uint64(n) + (before & _1)
    found[3] = digits >> _1
    state = _read_part(data, cut, end, kind, values, token_T, state)
    _, seen, w, _, before, n, _ = state
    found[0] = seen
    token_T[n] = w
    return n + np.int64(before & _1)


@njit(nogil=True, cache=True)
def _distinct_pairs(token_T, n, out, start, table, epoch):  # type: ignore[no-untyped-def]
    """Distinct bigrams in order of first occurrence to `out[start:]`; returns how many, and the next epoch."""
    count = 0
    shift = np.uint64(0)
    epoch += 1
    slots = np.uint64(_TABLE - 1)
    for t in range(1, n):
        left = token_T[t - 1]
        z = (left * _M1) ^ (token_T[t] + (left >> _S29))
        z = (z ^ (z >> _S32)) * _M2
        feature = z >> _S32
        if feature >> (_S32 - shift) != 0:
            continue
        entry = (np.uint64(epoch) << _S32) | feature
        slot = feature & slots
        while table[slot] >> _S32 == np.uint64(epoch) and table[slot] != entry:
            slot = (slot + np.uint64(1)) & slots
        if table[slot] == entry:
            continue
        table[slot] = entry
        out[start + count] = feature
        count += 1
        while count > ROW_CAP:
            shift += np.uint64(1)
            epoch += 1
            kept = 0
            for i in range(count):
                feature = np.uint64(out[start + i])
                if feature >> (_S32 - shift) == 0:
                    out[start + kept] = feature
                    kept += 1
                    slot = feature & slots
                    while table[slot] >> _S32 == np.uint64(epoch):
                        slot = (slot + np.uint64(1)) & slots
                    table[slot] = (np.uint64(epoch) << _S32) | feature
            count = kept
    return count, epoch


@njit(nogil=True, cache=True)
def _sweep_block(data, offset, cut, a, classes, values, out, hashes, feature_F, start, starts, lengths):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    longest = 0
    for r in range(len(cut)):
        longest = max(longest, offset[r + 1] - offset[r])
    token_T = np.empty(longest // 2 + 2, np.uint64)
    table = np.zeros(_TABLE, np.uint64)
    found = np.zeros(4, np.uint64)
    epoch = 0
    for i in range(len(cut)):
        n = _read_row(data, offset[i], cut[i], offset[i + 1], classes, values, token_T, found)
        r = a + i
        hashes[0, r] = found[0]
        hashes[1, r] = found[1]
        out[0, r] = found[2]
        out[1, r] = found[3]
        count, epoch = _distinct_pairs(token_T, n, feature_F, start, table, epoch)
        starts[r] = start
        lengths[r] = count
        start += count


def sweep(buffer: TextBuffer, *, mask_digits: bool = True, threads: int = 1) -> Sweep:
    """Hashes and features of every row; see `_sweep.Sweep`."""
    n = len(buffer)
    hash_2_N = np.zeros((2, n), np.uint64)
    counted_2_N = np.zeros((2, n), np.int32)
    start_N, length_N = np.zeros(n, np.int64), np.zeros(n, np.int32)
    room_N1 = _room(buffer.offset_N1)
    feature_F = np.empty(int(room_N1[-1]), np.uint32)  # pages never written are never held
    values = (BYTE_VALUE, token_values(mask_digits))

    def block(bounds: tuple[int, int]) -> None:
        part = buffer.prepared(*bounds)
        a = bounds[0]
        columns = [read_only(x) for x in (part.data, part.offset_N1, part.cut_N)]
        _sweep_block(
            *columns, a, BYTE_CLASS, values, counted_2_N, hash_2_N, feature_F, int(room_N1[a]), start_N, length_N
        )

    run_blocks(block, chunks_by_bytes(buffer.offset_N1, _BLOCK), threads)
    return Sweep(
        hash_2_N[0], hash_2_N[1], counted_2_N[0], counted_2_N[1].astype(np.uint8), feature_F, start_N, length_N
    )


def _room(offset_N1: I64) -> I64:
    """Where each row's features may begin; a byte never makes more than two features (U+FDFA: 3 bytes, 4 words)."""
    room_N1 = np.zeros(len(offset_N1), np.int64)
    np.cumsum(np.minimum(np.diff(offset_N1) * 2, ROW_CAP) + 2, out=room_N1[1:])
    return room_N1


def read_only(array: Any) -> Any:
    """A view that cannot be written to: numba compiles once, whether the buffer came from arrow or from numpy."""
    view = np.ascontiguousarray(array).view()
    view.flags.writeable = False
    return view


def run_blocks(work: Any, blocks: list[Any], threads: int) -> list[Any]:
    """`work` over blocks, in order; on several threads when asked (the kernels release the GIL)."""
    if threads <= 1 or len(blocks) <= 1:
        return [work(b) for b in blocks]
    with ThreadPoolExecutor(threads) as pool:
        return list(pool.map(work, blocks))
