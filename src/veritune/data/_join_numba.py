"""Sketches, join keys and verified pairs as compiled loops; the rules and their reasons are in `_join`.

Threads share one union-find without a lock. A write always points a node to a smaller one of its own component, so a
lost write loses a short cut, never a fact: every accepted pair is also listed, and the lists are joined at the end.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import njit, types
from numba.core import cgutils
from numba.extending import intrinsic

from veritune.data import _join
from veritune.data._join import (
    ALL_PAIRS_UP_TO,
    BIT_WORDS,
    F64,
    KEEP,
    KEYS_A_ROW,
    MIN_KEYS,
    PAIR_FROM,
    RARE_KEYS,
    SPREAD,
    Sketches,
)
from veritune.data._sweep import MIX_1, MIX_2, Sweep
from veritune.data._sweep_numba import run_blocks
from veritune.data.text import I64, U8, U32, U64

# numba's cache knows this file's text alone, so the numbers compiled into the kernels are repeated in it.
_RULES = (64, 8, 0x9E3779B1, 8, 8, 4, 6, 0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53)
if _RULES != (KEEP, BIT_WORDS, SPREAD, RARE_KEYS, PAIR_FROM, MIN_KEYS, ALL_PAIRS_UP_TO, MIX_1, MIX_2):
    raise RuntimeError("_join_numba._RULES must repeat the constants of _join and _sweep")
_ROWS = 1 << 14
_PARTITION_KEYS = 1 << 20  # keys sorted at a time: 8 MB
_KEYS_AT_ONCE = 1 << 26  # keys held at a time: 512 MB
_ROWS_AHEAD, _KEYS_AHEAD, _PAIRS_AHEAD = 6, 24, 6  # how far ahead memory is asked for
_PAD = np.uint32(0xFFFFFFFF)
_M1, _M2 = np.uint64(MIX_1), np.uint64(MIX_2)
_S29, _S31, _S32 = np.uint64(29), np.uint64(31), np.uint64(32)
_LOW = np.uint64(0xFFFFFFFF)
_HIGH = np.uint64(0xFFFFFFFF00000000)
_ONE = np.uint64(1)
_23, _31 = np.uint32(23), np.uint32(31)
_SPREAD = np.uint64(SPREAD)


@intrinsic
def _popcount(typing, word):  # type: ignore[no-untyped-def]
    """The machine's population count of a 64-bit word."""

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        function = builder.module.declare_intrinsic("llvm.ctpop", [ir.IntType(64)])
        return builder.call(function, args)

    return types.uint64(types.uint64), build


@intrinsic
def _fetch(typing, address):  # type: ignore[no-untyped-def]
    """Ask for the cache line at an address; what is asked for in time need not be waited for."""

    def build(context, builder, signature, args):  # type: ignore[no-untyped-def]
        i32, pointer = ir.IntType(32), ir.IntType(8).as_pointer()
        kind = ir.FunctionType(ir.VoidType(), [pointer, i32, i32, i32])
        function = cgutils.get_or_insert_function(builder.module, kind, "llvm.prefetch.p0")
        builder.call(function, [builder.inttoptr(args[0], pointer), i32(0), i32(3), i32(1)])
        return context.get_dummy_value()

    return types.void(types.uintp), build


@njit(nogil=True, cache=True)
def _fetch_row(address, n_bytes):  # type: ignore[no-untyped-def]
    for line in range(0, n_bytes, 64):
        _fetch(np.uintp(address + line))


@njit(nogil=True, cache=True)
def _count_df(feature_F, start, length, row_N, a, b, df):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    mask = np.uint32(len(df) - 1)
    base, counters = feature_F.ctypes.data, df.ctypes.data
    for u in range(a, b):
        if u + _ROWS_AHEAD < b:
            r = row_N[u + _ROWS_AHEAD]
            _fetch_row(base + 4 * start[r], 4 * length[r])
            r = row_N[u + _ROWS_AHEAD // 3]
            for i in range(start[r], start[r] + length[r]):
                _fetch(np.uintp(counters + 4 * np.int64(feature_F[i] & mask)))
        r = row_N[u]
        for i in range(start[r], start[r] + length[r]):
            df[feature_F[i] & mask] += 1


@njit(nogil=True, cache=True)
def _to_buckets(df, lut, bucket):  # type: ignore[no-untyped-def]
    last = len(lut) - 1  # two features on one counter can count more than every row
    for i in range(len(df)):
        bucket[i] = lut[min(np.int64(df[i]), last)]


@njit(nogil=True, cache=True)
def _sketch_rows(feature_F, start, length, row_N, bounds, bucket_of, weight, id_N_K, count_N, mass_N):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    a, b, least = bounds
    mask = np.uint32(len(bucket_of) - 1)
    bucket = np.empty(1 << 12, np.uint8)
    size = np.empty(32, np.int64)
    base, buckets = feature_F.ctypes.data, bucket_of.ctypes.data
    for u in range(a, b):
        if u + _ROWS_AHEAD < b:
            r = row_N[u + _ROWS_AHEAD]
            _fetch_row(base + 4 * start[r], 4 * length[r])
            r = row_N[u + _ROWS_AHEAD // 3]
            for i in range(start[r], start[r] + length[r]):
                _fetch(np.uintp(buckets + np.int64(feature_F[i] & mask)))
        r = row_N[u]
        n = length[r]
        if n < least:
            continue
        size[:] = 0
        at = start[r]
        for i in range(n):
            k = bucket_of[feature_F[at + i] & mask]
            bucket[i] = k
            size[k] += 1
        limit, room = 1, KEEP
        while limit < 32 and size[limit] <= room:
            room -= size[limit]
            limit += 1
        kept = 0
        for i in range(n):
            k = bucket[i]
            tie = k == limit and room > 0
            if (k > 0 and k < limit) or tie:
                hashed = np.uint32(feature_F[at + i] * _SPREAD) & np.uint32(0xFFFFFFE0)
                new = hashed | np.uint32(k)
                id_N_K[u, kept] = new if new != _PAD else new ^ np.uint32(32)
                kept += 1
                room -= tie
        count_N[u] = kept
        mass_N[u] = size[0] * weight[0]


@njit(nogil=True, cache=True)
def _one_id_a_bit(id_N_K, count_N, mass_N, weight, a, b, bits_N_B):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    for u in range(a, b):
        kept = 0
        mass = np.int64(0)
        lost = np.int64(0)
        for i in range(count_N[u]):
            new = id_N_K[u, i]
            if kept and id_N_K[u, kept - 1] >> _23 == new >> _23:
                old = id_N_K[u, kept - 1]
                rarer = old if old & _31 <= new & _31 else new
                mass += weight[rarer & _31] - weight[old & _31]
                lost += weight[(old if rarer == new else new) & _31]
                id_N_K[u, kept - 1] = rarer
                continue
            id_N_K[u, kept] = new
            kept += 1
            mass += weight[new & _31]
            bit = np.uint64(new >> _23)
            bits_N_B[u, bit >> np.uint64(6)] |= _ONE << (bit & np.uint64(63))
        id_N_K[u, kept : count_N[u]] = _PAD
        count_N[u] = kept
        mass_N[u] = mass + mass_N[u] * mass // max(mass + lost, 1)


def df_table(sweep: Sweep, row_N: I64, bits: int, *, threads: int = 1) -> U32:
    """As `_join.df_table`."""
    n = len(row_N)
    columns = (sweep.feature_F, sweep.start_N, sweep.length_N, row_N)
    parts = max(1, min(threads, n // _ROWS))
    tables = [np.zeros(1 << bits, np.uint32) for _ in range(parts)]
    edges = np.linspace(0, n, parts + 1).astype(np.int64)
    run_blocks(lambda i: _count_df(*columns, edges[i], edges[i + 1], tables[i]), list(range(parts)), threads)
    for other in tables[1:]:
        tables[0] += other
    return tables[0]


def sketches(
    sweep: Sweep, row_N: I64, min_features: int, *, threads: int = 1, given: tuple[_join.Weights, U8] | None = None
) -> Sketches:
    """Sketches of some rows of a sweep; as `_join.sketches`."""
    n = len(row_N)
    weights, bucket_of = given or (_join.weights_for(n), None)
    if bucket_of is None:
        bucket_of = np.empty(1 << _join.table_bits(n), np.uint8)
        _to_buckets(df_table(sweep, row_N, _join.table_bits(n), threads=threads), weights.lut, bucket_of)
    blocks = [(a, min(a + _ROWS, n)) for a in range(0, n, _ROWS)]
    columns = (sweep.feature_F, sweep.start_N, sweep.length_N, row_N)
    id_N_K = np.full((n, KEEP), _PAD, np.uint32)
    count_N, mass_N = np.zeros(n, np.int32), np.zeros(n, np.int64)
    bits_N_B = np.zeros((n, BIT_WORDS), np.uint64)

    def block(bounds: tuple[int, int]) -> None:
        a, b = bounds
        _sketch_rows(*columns, (a, b, min_features), bucket_of, weights.weight, id_N_K, count_N, mass_N)
        id_N_K[a:b].sort(axis=1)
        _one_id_a_bit(id_N_K, count_N, mass_N, weights.weight, a, b, bits_N_B)

    run_blocks(block, blocks, threads)
    return Sketches(id_N_K, count_N, mass_N, bits_N_B, weights)


@njit(nogil=True, cache=True)
def _mix(left, right, salt):  # type: ignore[no-untyped-def]
    z = left * _M1 + right * _M2 + salt
    z = (z ^ (z >> _S31)) * _M2
    return (z ^ (z >> _S29)) & _HIGH


@njit(nogil=True, cache=True)
def _row_keys(ids, count, rare_below, low, out):  # type: ignore[no-untyped-def]
    """The join keys of one sketch to `out`; returns how many."""
    n = 0
    n_rare = 0
    n_low = 0
    seen = 0
    zero = np.uint64(0)
    for i in range(count):
        wide = np.uint64(ids[i])
        bucket = wide & np.uint64(31)
        if bucket < rare_below:
            if n_rare < RARE_KEYS:
                out[n] = _mix(wide, zero, np.uint64(1))
                n += 1
                n_rare += 1
        else:
            entry = (bucket << _S32) | wide
            if n_low < PAIR_FROM or entry < low[PAIR_FROM - 1]:
                j = min(n_low, PAIR_FROM - 1)
                while j > 0 and low[j - 1] > entry:
                    low[j] = low[j - 1]
                    j -= 1
                low[j] = entry
                n_low = min(n_low + 1, PAIR_FROM)
        part = 1 << ((ids[i] >> np.uint32(5)) & np.uint32(MIN_KEYS - 1))
        if not seen & part:
            seen |= part
            out[n] = _mix(wide, zero, np.uint64(2))
            n += 1
    for i in range(n_low):
        for j in range(i + 1, n_low):
            x, y = low[i] & _LOW, low[j] & _LOW
            out[n] = _mix(min(x, y), max(x, y), np.uint64(3))
            n += 1
    return n


@njit(nogil=True, cache=True)
def _block_keys(id_N_K, count_N, rare_below, a, b, wanted):  # type: ignore[no-untyped-def]
    """The keys of rows [a, b) that fall into the wanted partitions, partition by partition.

    `wanted`: the first of them, how many, out of how many. Returns the keys and where each partition begins and ends.
    """
    first, inner, parts = wanted
    out = np.empty(128, np.uint64)
    low = np.empty(PAIR_FROM, np.uint64)
    n_parts = np.uint64(parts)
    keys = np.empty((b - a) * (RARE_KEYS + PAIR_FROM * (PAIR_FROM - 1) // 2 + MIN_KEYS), np.uint64)
    sizes = np.zeros(inner, np.int64)
    found = 0
    for u in range(a, b):
        for i in range(_row_keys(id_N_K[u], count_N[u], rare_below, low, out)):
            part = np.int64(((out[i] >> _S32) * n_parts) >> _S32) - first
            if part >= 0 and part < inner:
                sizes[part] += 1
                keys[found] = out[i] | np.uint64(u)
                found += 1
    cuts = np.zeros(inner + 1, np.int64)
    for part in range(inner):
        cuts[part + 1] = cuts[part] + sizes[part]
    at = cuts[:-1].copy()
    sorted_keys = np.empty(found, np.uint64)
    for i in range(found):
        part = np.int64(((keys[i] >> _S32) * n_parts) >> _S32) - first
        sorted_keys[at[part]] = keys[i]
        at[part] += 1
    return sorted_keys, cuts


@njit(nogil=True, cache=True)
def _root(parent, x):  # type: ignore[no-untyped-def]
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@njit(nogil=True, cache=True)
def _shared(x, y, id_N_K, bits_N_B, weight):  # type: ignore[no-untyped-def]
    """Of each common bit the ranks in both rows name the two ids; they count where they are equal."""
    shared = np.int64(0)
    at_x, at_y = np.uint64(0), np.uint64(0)
    for w in range(BIT_WORDS):
        bits_x, bits_y = bits_N_B[x, w], bits_N_B[y, w]
        common = bits_x & bits_y
        while common:
            below = (common & (~common + _ONE)) - _ONE
            p = id_N_K[x, at_x + _popcount(bits_x & below)]
            q = id_N_K[y, at_y + _popcount(bits_y & below)]
            shared += weight[p & _31] if p == q else 0
            common &= common - _ONE
        at_x += _popcount(bits_x)
        at_y += _popcount(bits_y)
    return shared


@njit(nogil=True, cache=True)
def _shared_pairs(left_P, right_P, a, b, id_N_K, bits_N_B, weight, out):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    ids, bits = id_N_K.ctypes.data, bits_N_B.ctypes.data
    for i in range(a, b):
        if i + _PAIRS_AHEAD < b:
            for x in (left_P[i + _PAIRS_AHEAD], right_P[i + _PAIRS_AHEAD]):
                _fetch(np.uintp(bits + 64 * x))
                _fetch_row(ids + 256 * x, 256)
        out[i] = _shared(left_P[i], right_P[i], id_N_K, bits_N_B, weight)


@njit(nogil=True, cache=True)
def _similar(x, y, sketch, square):  # type: ignore[no-untyped-def]
    id_N_K, mass_N, least_N, bits_N_B, weight = sketch
    common = np.uint64(0)
    for w in range(BIT_WORDS):
        common += _popcount(bits_N_B[x, w] & bits_N_B[y, w])
    lighter = x if mass_N[x] <= mass_N[y] else y
    if np.int64(common) < np.int64(least_N[lighter]):
        return False
    needed = square * (np.float64(mass_N[x]) * np.float64(mass_N[y]))
    shared = _shared(x, y, id_N_K, bits_N_B, weight)
    total = np.float64(shared)
    return shared > 0 and total * total >= needed


@njit(nogil=True, cache=True)
def _union(parent, edges, n_edges, x, y, root_x, root_y):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    if n_edges == len(edges):
        grown = np.empty((2 * n_edges, 2), np.int32)
        grown[:n_edges] = edges
        edges = grown
    edges[n_edges, 0] = x
    edges[n_edges, 1] = y
    parent[max(root_x, root_y)] = min(root_x, root_y)
    return edges


@njit(nogil=True, cache=True)
def _scan(keys, sketch, square, parent):  # type: ignore[no-untyped-def]  # noqa: C901
    """Verify the candidate pairs of sorted keys; returns the edges."""
    a, b = 0, len(keys)
    edges = np.empty((1 << 12, 2), np.int32)
    root = np.empty(ALL_PAIRS_UP_TO, np.int64)
    n_edges = 0
    at = a
    parents, bits = parent.ctypes.data, sketch[3].ctypes.data
    masses, least = sketch[1].ctypes.data, sketch[2].ctypes.data
    asked = a
    while at < b:
        while asked < min(at + _KEYS_AHEAD, b - 1):  # rows that share a key, soon to be compared
            if keys[asked] >> _S32 == keys[asked + 1] >> _S32:
                x = np.int64(keys[asked] & _LOW)
                _fetch(np.uintp(parents + 4 * x))
                _fetch(np.uintp(bits + 64 * x))
                _fetch(np.uintp(masses + 8 * x))
                _fetch(np.uintp(least + x))
            asked += 1
        key = keys[at] >> _S32
        end = at + 1
        while end < b and keys[end] >> _S32 == key:
            end += 1
        if end - at > ALL_PAIRS_UP_TO:
            first = np.int64(keys[at] & _LOW)
            before = first
            for i in range(at + 1, end):
                x = np.int64(keys[i] & _LOW)
                for y in (before, first):
                    root_x, root_y = _root(parent, x), _root(parent, y)
                    if root_x != root_y and _similar(y, x, sketch, square):
                        edges = _union(parent, edges, n_edges, x, y, root_x, root_y)
                        n_edges += 1
                    if before == first:
                        break
                before = x
        elif end - at > 1:
            for i in range(end - at):
                x = np.int64(keys[at + i] & _LOW)
                root[i] = _root(parent, x)
                for j in range(i - 1, -1, -1):
                    if root[i] == root[j]:
                        continue
                    y = np.int64(keys[at + j] & _LOW)
                    if _similar(y, x, sketch, square):
                        edges = _union(parent, edges, n_edges, x, y, root[i], root[j])
                        n_edges += 1
                        low, high = min(root[i], root[j]), max(root[i], root[j])
                        for k in range(i + 1):
                            root[k] = low if root[k] == high else root[k]
        at = end
    return edges[:n_edges]


@njit(nogil=True, cache=True)
def _least_shared(id_N_K, count_N, mass_N, weight, threshold, a, b, least_N):  # type: ignore[no-untyped-def]  # noqa: PLR0913
    size = np.empty(32, np.int64)
    for u in range(a, b):
        size[:] = 0
        for i in range(count_N[u]):
            size[id_N_K[u, i] & np.uint32(31)] += 1
        needed = threshold * np.float64(mass_N[u])
        least = 0
        for bucket in range(32):
            for _ in range(size[bucket]):
                if needed <= 0:
                    break
                needed -= np.float64(weight[bucket])
                least += 1
        least_N[u] = least


def least_shared(sketch: Sketches, threshold: float, threads: int) -> U8:
    """As `_join.least_shared`."""
    n = len(sketch.count_N)
    least_N = np.zeros(n, np.uint8)
    columns = (sketch.id_N_K, sketch.count_N, sketch.mass_N, sketch.weights.weight, threshold)
    blocks = [(a, min(a + _ROWS, n)) for a in range(0, n, _ROWS)]
    run_blocks(lambda block: _least_shared(*columns, *block, least_N), blocks, threads)
    return least_N


def similarity(sketch: Sketches, left_P: I64, right_P: I64, *, threads: int = 1) -> F64:
    """As `_join.similarity`."""
    shared_P = np.zeros(len(left_P), np.int64)
    columns = (sketch.id_N_K, sketch.bits_N_B, sketch.weights.weight, shared_P)
    blocks = [(a, min(a + _ROWS, len(left_P))) for a in range(0, len(left_P), _ROWS)]
    run_blocks(lambda block: _shared_pairs(left_P, right_P, *block, *columns), blocks, threads)
    return _join.cosine(sketch, shared_P, left_P, right_P)


@njit(nogil=True, cache=True)
def _accepted(left_P, right_P, sketch, square, good):  # type: ignore[no-untyped-def]
    for i in range(len(left_P)):
        good[i] = _similar(left_P[i], right_P[i], sketch, square)


def accepted(sketch: Sketches, left_P: I64, right_P: I64, threshold: float) -> Any:
    """As `_join.accepted`."""
    good = np.zeros(len(left_P), np.bool_)
    least_N = least_shared(sketch, threshold, 1)
    columns = (sketch.id_N_K, sketch.mass_N, least_N, sketch.bits_N_B, sketch.weights.weight)
    _accepted(left_P, right_P, columns, threshold * threshold, good)
    return good


def near_components(sketch: Sketches, threshold: float, *, threads: int = 1) -> I64:
    """As `_join.near_components`."""
    n = len(sketch.count_N)
    root = _one_pass(sketch, threshold, threads)
    alone = np.flatnonzero(root == np.arange(n))
    if len(alone) == n:
        return root
    again = _one_pass(sketch.take(alone), threshold, threads)
    return alone[again[np.searchsorted(alone, root)]]


def _one_pass(sketch: Sketches, threshold: float, threads: int) -> I64:
    """Keys a partition of key space at a time: gathered, sorted and scanned while they are in the cache."""
    n = len(sketch.count_N)
    parent = np.arange(n, dtype=np.int32)
    least_N = least_shared(sketch, threshold, threads)
    columns = (sketch.id_N_K, sketch.mass_N, least_N, sketch.bits_N_B, sketch.weights.weight)
    found: list[Any] = []
    for parts, made in _keys_by_round(sketch, threads):

        def scan(part: int, made: list[tuple[U64, I64]] = made) -> Any:
            return _scan(_gathered(made, part), columns, threshold * threshold, parent)

        found.extend(run_blocks(scan, list(range(parts)), threads))
    edge = np.concatenate(found) if found else np.zeros((0, 2), np.int32)
    return _join.components(n, edge[:, 0].astype(np.int64), edge[:, 1].astype(np.int64))


def _keys_by_round(sketch: Sketches, threads: int) -> Iterator[tuple[int, list[tuple[U64, I64]]]]:
    """How many partitions a round has, and the keys of every block of rows, partition by partition.

    One round up to `_KEYS_AT_ONCE` keys, beyond it several, so that memory is bounded.
    """
    n = len(sketch.count_N)
    blocks = [(a, min(a + _ROWS, n)) for a in range(0, n, _ROWS)]
    rounds = max(1, -(-n * KEYS_A_ROW // _KEYS_AT_ONCE))
    parts = max(1, -(-n * KEYS_A_ROW // (rounds * _PARTITION_KEYS)))
    columns = (sketch.id_N_K, sketch.count_N, np.uint64(sketch.weights.rare))
    for first in range(0, rounds * parts if n else 0, parts):

        def make(bounds: tuple[int, int], first: int = first) -> Any:
            return _block_keys(*columns, *bounds, (first, parts, rounds * parts))

        yield parts, run_blocks(make, blocks, threads)


def _gathered(made: list[tuple[U64, I64]], part: int) -> U64:
    keys = np.concatenate([keys[cuts[part] : cuts[part + 1]] for keys, cuts in made])
    keys.sort()
    return keys
