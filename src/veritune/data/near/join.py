"""Join: sketches of rows, the keys under which similar rows meet, and the pairs that are similar enough.

A sketch holds a row's `KEEP` rarest features that at least two rows share. An id is 27 bits of hash above 5 bits that
name a bucket of document frequency, so a feature's weight, idf squared, is a table look-up and all sums are integers:
neither threads nor machines change a bit. The hash's top nine bits set one of 512 bits; of two ids on one bit the rarer
stays, so the common bits of two rows bound what they share, and a bit's rank is its id's place in the row.

Similarity of two rows: sum of idf² over the ids both hold / sqrt(mass · mass'), mass the sum over all ids of a row.

Two rows meet where they share a key: one of 8 rare ids, a pair of the 8 rarest commoner ids (without pairs, recall on
a narrow corpus of a million rows falls from .98 to .64), or one of 4 smallest hashes. Keys are sorted; rows of a small
bucket all meet, in a larger one each row meets the first and the previous one. A second pass over one row per component
repairs what that leaves apart.

Threads share one union-find without a lock. A write always points a node to a smaller one of its own component, so a
lost write loses a short cut, never a fact: every accepted pair is also listed, and the lists are joined at the end.

N rows · K ids of a sketch · B 64-bit words of its bits · C counters · P pairs of rows · J join keys
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from llvmlite import ir  # type: ignore[import-untyped]
from numba import types
from numba.core import cgutils
from numba.extending import intrinsic

from veritune.data.near.arrays import F64, I32, I64, U8, U32, U64, Bool, Int
from veritune.data.near.clusters import components
from veritune.data.near.compiled import kernel, row_blocks, run_blocks
from veritune.data.near.sweep import MIX_1, MIX_2, Sweep

KEEP = 64
BUCKETS = 32
BIT_WORDS = 8
SPREAD = 0x9E3779B1  # 2^32 / golden ratio, odd: spreads the small hashes of sampled rows over all bits
PAD = np.uint32(0xFFFFFFFF)
RARE_DF = 16  # below it a shared feature is reason enough to compare two rows
RARE_KEYS, PAIR_FROM, MIN_KEYS = 8, 8, 4
KEYS_A_ROW = RARE_KEYS + PAIR_FROM * (PAIR_FROM - 1) // 2 + MIN_KEYS
ALL_PAIRS_UP_TO = 6  # rows of a bucket that all meet each other
_WEIGHT_SCALE = 256.0
_MIN_ROWS = 64  # idf is taken as if there were at least this many rows, so that two rows can be compared at all
_SLACK = 1.5  # df = N keeps a little weight, so that identical texts have a similarity
_ROWS = 1 << 14
_PARTITION_KEYS = 1 << 20  # keys sorted at a time: 8 MB
_KEYS_AT_ONCE = 1 << 26  # keys held at a time: 512 MB
_ROWS_AHEAD, _KEYS_AHEAD, _PAIRS_AHEAD = 6, 24, 6  # how far ahead memory is asked for

# Compiled in from sweep.py and repeated here, because numba's cache knows the text of this file alone.
if (MIX_1, MIX_2) != (0xFF51AFD7ED558CCD, 0xC4CEB9FE1A85EC53):
    raise RuntimeError("join.py must repeat the constants of sweep.py that its kernels compile in")
Verifying = tuple[U32, I64, U8, U64, I64]  # ids, masses, least shared ids, bits, weights
_M1, _M2 = np.uint64(MIX_1), np.uint64(MIX_2)
_S29, _S31, _S32 = np.uint64(29), np.uint64(31), np.uint64(32)
_LOW, _HIGH = np.uint64(0xFFFFFFFF), np.uint64(0xFFFFFFFF00000000)
_1 = np.uint64(1)
_U5, _U23, _U31, _U32 = np.uint32(5), np.uint32(23), np.uint32(31), np.uint32(32)
_ID_HASH = np.uint32(0xFFFFFFE0)
_SPREAD = np.uint64(SPREAD)


@dataclass(frozen=True, slots=True)
class BucketWeights:
    """Document-frequency buckets: `lut[df]` is the bucket, `weight[bucket]` its idf squared, scaled to an integer."""

    lut: U8
    weight: I64
    rare: int  # buckets below this one hold df < RARE_DF


@dataclass(frozen=True, slots=True)
class Sketches:
    """N sketches: ids ascending and padded with `PAD`, how many there are, the row's squared norm, and its bits."""

    id_N_K: U32
    count_N: I32
    mass_N: I64
    bits_N_B: U64
    weights: BucketWeights

    def take(self, row: I64) -> Sketches:
        """The sketches of some rows."""
        return Sketches(self.id_N_K[row], self.count_N[row], self.mass_N[row], self.bits_N_B[row], self.weights)


def weights_for(n_rows: int) -> BucketWeights:
    """Buckets whose limits grow geometrically from 1 to the number of rows; weight ln²(N'/df), N' = 1.5 max(N, 64)."""
    n = max(n_rows, _MIN_ROWS)
    limit = np.array([1] + [max(2, math.ceil(n ** (j / BUCKETS))) for j in range(1, BUCKETS)], np.int64)
    lut = (np.searchsorted(limit, np.arange(n_rows + 1), side="right") - 1).clip(0).astype(np.uint8)
    weight = np.rint(_WEIGHT_SCALE * np.log(_SLACK * n / limit) ** 2).astype(np.int64)
    return BucketWeights(lut, weight, int(np.searchsorted(limit, RARE_DF, side="left")))


def table_bits(n_rows: int) -> int:
    """log2 of the number of document-frequency counters."""
    return min(26, max(16, math.ceil(math.log2(max(4 * n_rows, 1)))))


def bucket_table(df_C: U32, weights: BucketWeights) -> U8:
    """The bucket of every counter; two features on one counter can count more than every row."""
    return np.asarray(weights.lut[np.minimum(df_C, len(weights.lut) - 1)], np.uint8)


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


@kernel
def _fetch_row(address: int, n_bytes: int) -> None:
    for line in range(0, n_bytes, 64):
        _fetch(np.uintp(address + line))


@kernel
def _count_df(feature_F: U32, start: I64, length: I32, row_N: I64, a: int, b: int, df_C: U32) -> None:
    mask = np.uint32(len(df_C) - 1)
    base, counters = feature_F.ctypes.data, df_C.ctypes.data
    for u in range(a, b):
        if u + _ROWS_AHEAD < b:
            r = row_N[u + _ROWS_AHEAD]
            _fetch_row(base + 4 * start[r], 4 * length[r])
            r = row_N[u + _ROWS_AHEAD // 3]
            for i in range(start[r], start[r] + length[r]):
                _fetch(np.uintp(counters + 4 * np.int64(feature_F[i] & mask)))
        r = row_N[u]
        for i in range(start[r], start[r] + length[r]):
            df_C[feature_F[i] & mask] += 1


def df_table(sweep: Sweep, row_N: I64, bits: int, *, threads: int = 1) -> U32:
    """In how many of some rows each feature occurs, counted in 2^bits counters by the feature's low bits, shape [C]."""
    n = len(row_N)
    columns = (sweep.feature_F, sweep.start_N, sweep.length_N, row_N)
    parts = max(1, min(threads, n // _ROWS))
    tables = [np.zeros(1 << bits, np.uint32) for _ in range(parts)]
    edges = np.linspace(0, n, parts + 1).astype(np.int64)
    run_blocks(lambda i: _count_df(*columns, edges[i], edges[i + 1], tables[i]), range(parts), threads)
    for other in tables[1:]:
        tables[0] += other
    return tables[0]


@kernel
def _sketch_rows(
    feature_F: U32,
    start: I64,
    length: I32,
    row_N: I64,
    bounds: tuple[int, int, int],
    bucket_C: U8,
    weight: I64,
    id_N_K: U32,
    count_N: I32,
    mass_N: I64,
) -> None:
    """The rarest ids of rows [a, b), unsorted; `mass_N` receives the weight of features that one row alone holds."""
    a, b, least = bounds
    mask = np.uint32(len(bucket_C) - 1)
    bucket = np.empty(1 << 12, np.uint8)
    size = np.empty(BUCKETS, np.int64)
    base, buckets = feature_F.ctypes.data, bucket_C.ctypes.data
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
        for j in range(BUCKETS):
            size[j] = 0
        at = start[r]
        for i in range(n):
            k = bucket_C[feature_F[at + i] & mask]
            bucket[i] = k
            size[k] += 1
        limit, room = 1, KEEP
        while limit < BUCKETS and size[limit] <= room:
            room -= size[limit]
            limit += 1
        n_kept = 0
        for i in range(n):
            k = bucket[i]
            tie = k == limit and room > 0
            if (k > 0 and k < limit) or tie:
                new = (np.uint32(feature_F[at + i] * _SPREAD) & _ID_HASH) | np.uint32(k)
                id_N_K[u, n_kept] = new if new != PAD else new ^ _U32
                n_kept += 1
                room -= tie
        count_N[u] = n_kept
        mass_N[u] = size[0] * weight[0]


@kernel
def _one_id_a_bit(id_N_K: U32, count_N: I32, mass_N: I64, weight: I64, bounds: tuple[int, int], bits_N_B: U64) -> None:
    """Of the sorted ids that fall on one bit the rarest stays; what is lost must not weigh as difference."""
    for u in range(bounds[0], bounds[1]):
        n_kept = 0
        mass = np.int64(0)
        lost = np.int64(0)
        for i in range(count_N[u]):
            new = id_N_K[u, i]
            if n_kept and id_N_K[u, n_kept - 1] >> _U23 == new >> _U23:
                old = id_N_K[u, n_kept - 1]
                rarer = old if old & _U31 <= new & _U31 else new
                mass += weight[rarer & _U31] - weight[old & _U31]
                lost += weight[(old if rarer == new else new) & _U31]
                id_N_K[u, n_kept - 1] = rarer
                continue
            id_N_K[u, n_kept] = new
            n_kept += 1
            mass += weight[new & _U31]
            bit = np.uint64(new >> _U23)
            bits_N_B[u, bit >> np.uint64(6)] |= _1 << (bit & np.uint64(63))
        for i in range(n_kept, count_N[u]):
            id_N_K[u, i] = PAD
        count_N[u] = n_kept
        mass_N[u] = mass + mass_N[u] * mass // max(mass + lost, 1)


def sketches(
    sweep: Sweep, row_N: I64, min_features: int, *, threads: int = 1, given: tuple[BucketWeights, U8] | None = None
) -> Sketches:
    """Sketches of N rows of a sweep; a row with fewer than `min_features` features gets an empty one.

    `given`: weights and buckets that were counted over more rows than these.
    """
    n = len(row_N)
    if given is None:
        weights = weights_for(n)
        bucket_C = bucket_table(df_table(sweep, row_N, table_bits(n), threads=threads), weights)
    else:
        weights, bucket_C = given
    columns = (sweep.feature_F, sweep.start_N, sweep.length_N, row_N)
    id_N_K = np.full((n, KEEP), PAD, np.uint32)
    count_N, mass_N = np.zeros(n, np.int32), np.zeros(n, np.int64)
    bits_N_B = np.zeros((n, BIT_WORDS), np.uint64)

    def block(bounds: tuple[int, int]) -> None:
        a, b = bounds
        _sketch_rows(*columns, (a, b, min_features), bucket_C, weights.weight, id_N_K, count_N, mass_N)
        id_N_K[a:b].sort(axis=1)
        _one_id_a_bit(id_N_K, count_N, mass_N, weights.weight, bounds, bits_N_B)

    run_blocks(block, row_blocks(n, _ROWS), threads)
    return Sketches(id_N_K, count_N, mass_N, bits_N_B, weights)


@kernel
def _mix(left: np.uint64, right: np.uint64, salt: np.uint64) -> np.uint64:
    """A 32-bit join key in the upper half of 64 bits."""
    z = left * _M1 + right * _M2 + salt
    z = (z ^ (z >> _S31)) * _M2
    return (z ^ (z >> _S29)) & _HIGH


@kernel
def _row_keys(ids: U32, count: int, rare_below: np.uint64, low: U64, out: U64) -> int:
    """The join keys of one sketch to `out`; returns how many. `low`: room for the rarest of the commoner ids."""
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
        part = 1 << ((ids[i] >> _U5) & np.uint32(MIN_KEYS - 1))
        if not seen & part:  # ids ascend: the first of a part is its smallest hash
            seen |= part
            out[n] = _mix(wide, zero, np.uint64(2))
            n += 1
    for i in range(n_low):
        for j in range(i + 1, n_low):
            x, y = low[i] & _LOW, low[j] & _LOW
            out[n] = _mix(min(x, y), max(x, y), np.uint64(3))
            n += 1
    return n


@kernel
def _block_keys(
    id_N_K: U32, count_N: I32, rare_below: np.uint64, bounds: tuple[int, int], window: tuple[int, int, int]
) -> tuple[U64, I64]:
    """`key << 32 | row` of rows [a, b) that fall into some partitions of key space, partition by partition.

    `window`: the first of them, how many, out of how many. Returns the keys and where each partition begins and ends.
    """
    a, b = bounds
    first, inner, parts = window
    out = np.empty(128, np.uint64)
    low = np.empty(PAIR_FROM, np.uint64)
    n_parts = np.uint64(parts)
    key_J = np.empty((b - a) * KEYS_A_ROW, np.uint64)
    sizes = np.zeros(inner, np.int64)
    n = 0
    for u in range(a, b):
        for i in range(_row_keys(id_N_K[u], count_N[u], rare_below, low, out)):
            part = np.int64(((out[i] >> _S32) * n_parts) >> _S32) - first
            if part >= 0 and part < inner:
                sizes[part] += 1
                key_J[n] = out[i] | np.uint64(u)
                n += 1
    cuts = np.zeros(inner + 1, np.int64)
    for p in range(inner):
        cuts[p + 1] = cuts[p] + sizes[p]
    at = cuts[:-1].copy()
    by_part_J = np.empty(n, np.uint64)
    for i in range(n):
        part = np.int64(((key_J[i] >> _S32) * n_parts) >> _S32) - first
        by_part_J[at[part]] = key_J[i]
        at[part] += 1
    return by_part_J, cuts


def keys_by_range(sketch: Sketches, ranges: int) -> tuple[U64, I64]:
    """All `key << 32 | row`, and where each of several equal ranges of the key space begins and ends among them."""
    bounds = (0, len(sketch.count_N))
    rare_below = np.uint64(sketch.weights.rare)
    return _block_keys(sketch.id_N_K, sketch.count_N, rare_below, bounds, (0, ranges, ranges))


@kernel
def _root(parent: I32, x: Int) -> Int:
    while parent[x] != x:
        parent[x] = parent[parent[x]]
        x = parent[x]
    return x


@kernel
def _shared(x: Int, y: Int, id_N_K: U32, bits_N_B: U64, weight: I64) -> Int:
    """Sum of idf² over the ids that two rows share.

    Of each common bit the ranks in both rows name the two ids; they count where they are equal.
    """
    shared = np.int64(0)
    at_x, at_y = np.uint64(0), np.uint64(0)
    for w in range(BIT_WORDS):
        bits_x, bits_y = bits_N_B[x, w], bits_N_B[y, w]
        common = bits_x & bits_y
        while common:
            below = (common & (~common + _1)) - _1
            p = id_N_K[x, at_x + _popcount(bits_x & below)]
            q = id_N_K[y, at_y + _popcount(bits_y & below)]
            shared += weight[p & _U31] if p == q else 0
            common &= common - _1
        at_x += _popcount(bits_x)
        at_y += _popcount(bits_y)
    return shared


@kernel
def _shared_pairs(
    left_P: I64, right_P: I64, bounds: tuple[int, int], id_N_K: U32, bits_N_B: U64, weight: I64, out_P: I64
) -> None:
    a, b = bounds
    ids, bits = id_N_K.ctypes.data, bits_N_B.ctypes.data
    for i in range(a, b):
        if i + _PAIRS_AHEAD < b:
            for x in (left_P[i + _PAIRS_AHEAD], right_P[i + _PAIRS_AHEAD]):
                _fetch(np.uintp(bits + 64 * x))
                _fetch_row(ids + 256 * x, 256)
        out_P[i] = _shared(left_P[i], right_P[i], id_N_K, bits_N_B, weight)


def similarity(sketch: Sketches, left_P: I64, right_P: I64, *, threads: int = 1) -> F64:
    """idf²-weighted cosine of pairs of rows in [0, 1], shape [P]."""
    shared_P = np.zeros(len(left_P), np.int64)
    columns = (sketch.id_N_K, sketch.bits_N_B, sketch.weights.weight, shared_P)
    run_blocks(lambda bounds: _shared_pairs(left_P, right_P, bounds, *columns), row_blocks(len(left_P), _ROWS), threads)
    product_P = sketch.mass_N[left_P].astype(np.float64) * sketch.mass_N[right_P].astype(np.float64)
    return np.minimum(1.0, shared_P / np.sqrt(np.maximum(product_P, 1.0)))


@kernel
def _similar(x: Int, y: Int, sketch: Verifying, square: float) -> bool:
    """Whether a pair reaches the threshold: (sum shared)² >= threshold² · mass · mass', after a look at its bits."""
    id_N_K, mass_N, least_N, bits_N_B, weight = sketch
    common = np.uint64(0)
    for w in range(BIT_WORDS):
        common += _popcount(bits_N_B[x, w] & bits_N_B[y, w])
    lighter = x if mass_N[x] <= mass_N[y] else y
    if np.int64(common) < np.int64(least_N[lighter]):
        return False
    needed = square * (np.float64(mass_N[x]) * np.float64(mass_N[y]))
    total = np.float64(_shared(x, y, id_N_K, bits_N_B, weight))
    return bool(total > 0 and total * total >= needed)


@kernel
def _least_shared(
    id_N_K: U32, count_N: I32, mass_N: I64, weight: I64, threshold: float, bounds: tuple[int, int], least_N: U8
) -> None:
    size = np.empty(BUCKETS, np.int64)
    for u in range(bounds[0], bounds[1]):
        for j in range(BUCKETS):
            size[j] = 0
        for i in range(count_N[u]):
            size[id_N_K[u, i] & _U31] += 1
        needed = threshold * np.float64(mass_N[u])
        least = 0
        for bucket in range(BUCKETS):
            for _ in range(size[bucket]):
                if needed <= 0:
                    break
                needed -= np.float64(weight[bucket])
                least += 1
        least_N[u] = least


def least_shared(sketch: Sketches, threshold: float, *, threads: int = 1) -> U8:
    """The least number of ids that a row must share to reach the threshold with a row of at least its own norm, shape
    [N].

    Sum shared >= threshold · sqrt(m m') >= threshold · m where m <= m'; the row's heaviest ids reach that first.
    """
    least_N = np.zeros(len(sketch.count_N), np.uint8)
    columns = (sketch.id_N_K, sketch.count_N, sketch.mass_N, sketch.weights.weight, threshold)
    run_blocks(lambda bounds: _least_shared(*columns, bounds, least_N), row_blocks(len(least_N), _ROWS), threads)
    return least_N


def _verifying(sketch: Sketches, threshold: float, threads: int) -> Verifying:
    """The columns that `_similar` reads."""
    least_N = least_shared(sketch, threshold, threads=threads)
    return sketch.id_N_K, sketch.mass_N, least_N, sketch.bits_N_B, sketch.weights.weight


@kernel
def _accepted(left_P: I64, right_P: I64, sketch: Verifying, square: float, good_P: Bool) -> None:
    for i in range(len(left_P)):
        good_P[i] = _similar(left_P[i], right_P[i], sketch, square)


def accepted(sketch: Sketches, left_P: I64, right_P: I64, threshold: float) -> Bool:
    """Which pairs are similar enough, decided on integers, shape [P]."""
    good_P = np.zeros(len(left_P), np.bool_)
    _accepted(left_P, right_P, _verifying(sketch, threshold, 1), threshold * threshold, good_P)
    return good_P


@kernel
def _union(parent: I32, edges: I32, n_edges: int, pair: tuple[Int, Int], roots: tuple[Int, Int]) -> I32:
    """Note an accepted pair and join the components of its rows."""
    if n_edges == len(edges):
        grown = np.empty((2 * n_edges, 2), np.int32)
        for i in range(n_edges):
            grown[i, 0] = edges[i, 0]
            grown[i, 1] = edges[i, 1]
        edges = grown
    edges[n_edges, 0] = pair[0]
    edges[n_edges, 1] = pair[1]
    parent[max(roots[0], roots[1])] = min(roots[0], roots[1])
    return edges


@kernel
def _scan(keys: U64, sketch: Verifying, square: float, parent: I32) -> I32:
    """Verify the pairs that meet in sorted keys, except those already in one component; returns the accepted ones."""
    edges = np.empty((1 << 12, 2), np.int32)
    root = np.empty(ALL_PAIRS_UP_TO, np.int64)
    n_edges = 0
    at, b = 0, len(keys)
    parents, bits = parent.ctypes.data, sketch[3].ctypes.data
    masses, least = sketch[1].ctypes.data, sketch[2].ctypes.data
    ahead = 0
    while at < b:
        while ahead < min(at + _KEYS_AHEAD, b - 1):  # rows that share a key, soon to be compared
            if keys[ahead] >> _S32 == keys[ahead + 1] >> _S32:
                x = np.int64(keys[ahead] & _LOW)
                _fetch(np.uintp(parents + 4 * x))
                _fetch(np.uintp(bits + 64 * x))
                _fetch(np.uintp(masses + 8 * x))
                _fetch(np.uintp(least + x))
            ahead += 1
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
                        edges = _union(parent, edges, n_edges, (x, y), (root_x, root_y))
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
                        edges = _union(parent, edges, n_edges, (x, y), (root[i], root[j]))
                        n_edges += 1
                        low, high = min(root[i], root[j]), max(root[i], root[j])
                        for k in range(i + 1):
                            root[k] = low if root[k] == high else root[k]
        at = end
    return edges[:n_edges]


def near_components(sketch: Sketches, threshold: float, *, threads: int = 1) -> I64:
    """For each row the smallest row of its component, found in two passes: over all rows, then over one row of each
    component.
    """
    n = len(sketch.count_N)
    root_N = _one_pass(sketch, threshold, threads)
    alone = np.flatnonzero(root_N == np.arange(n))
    if len(alone) == n:
        return root_N
    again = _one_pass(sketch.take(alone), threshold, threads)
    return alone[again[np.searchsorted(alone, root_N)]]


def _one_pass(sketch: Sketches, threshold: float, threads: int) -> I64:
    """Keys a partition of key space at a time: gathered, sorted and scanned while they are in the cache."""
    n = len(sketch.count_N)
    parent = np.arange(n, dtype=np.int32)
    columns = _verifying(sketch, threshold, threads)
    edges: list[I32] = [np.zeros((0, 2), np.int32)]
    for parts, keys_of_block in _keys_by_round(sketch, threads):

        def scan(part: int, keys_of_block: list[tuple[U64, I64]] = keys_of_block) -> I32:
            return _scan(_gathered(keys_of_block, part), columns, threshold * threshold, parent)

        edges.extend(run_blocks(scan, range(parts), threads))
    edge = np.concatenate(edges)
    return components(n, edge[:, 0].astype(np.int64), edge[:, 1].astype(np.int64))


def _keys_by_round(sketch: Sketches, threads: int) -> Iterator[tuple[int, list[tuple[U64, I64]]]]:
    """How many partitions a round has, and the keys of every block of rows, partition by partition.

    One round up to `_KEYS_AT_ONCE` keys, beyond it several, so that memory is bounded.
    """
    n = len(sketch.count_N)
    rounds = max(1, -(-n * KEYS_A_ROW // _KEYS_AT_ONCE))
    parts = max(1, -(-n * KEYS_A_ROW // (rounds * _PARTITION_KEYS)))
    columns = (sketch.id_N_K, sketch.count_N, np.uint64(sketch.weights.rare))
    for first in range(0, rounds * parts if n else 0, parts):

        def keys_of(bounds: tuple[int, int], first: int = first) -> tuple[U64, I64]:
            return _block_keys(*columns, bounds, (first, parts, rounds * parts))

        yield parts, run_blocks(keys_of, row_blocks(n, _ROWS), threads)


def _gathered(keys_of_block: list[tuple[U64, I64]], part: int) -> U64:
    keys = np.concatenate([keys[cuts[part] : cuts[part + 1]] for keys, cuts in keys_of_block])
    keys.sort()
    return keys
