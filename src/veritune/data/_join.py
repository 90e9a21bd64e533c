"""Sketches, join keys and verified pairs, in numpy; the rules here are those that `_join_numba` repeats in loops.

A sketch holds a row's `KEEP` rarest features that at least two rows share. An id is 27 bits of hash above 5 bits that
name a bucket of document frequency, so a feature's weight, idf squared, is a table look-up and all sums are integers:
both engines give the same numbers to the last bit. The hash's top nine bits set one of 512 bits; of two ids on one bit
the rarer stays, so the common bits of two rows bound what they share, and a bit's rank is its id's place in the row.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from veritune.data._sweep import MIX_1, MIX_2, Sweep
from veritune.data.text import I32, I64, U8, U32, U64

KEEP = 64
BUCKETS = 32
BIT_WORDS = 8
SPREAD = 0x9E3779B1  # odd: spreads the small hashes of sampled rows over all bits
_BIT_SHIFT = np.uint32(23)
PAD = np.uint32(0xFFFFFFFF)
RARE_DF = 16  # below it a shared feature is reason enough to compare two rows
RARE_KEYS, PAIR_FROM, MIN_KEYS = 8, 8, 4
KEYS_A_ROW = RARE_KEYS + PAIR_FROM * (PAIR_FROM - 1) // 2 + MIN_KEYS
ALL_PAIRS_UP_TO = 6
_PAIRS = 1 << 18  # pairs looked at at a time
_WEIGHT_SCALE = 256.0
_MIN_ROWS = 64  # idf is taken as if there were at least this many rows, so that two rows can be compared at all
_SLACK = 1.5  # df = N keeps a little weight, so that identical texts have a similarity

Bool = npt.NDArray[np.bool_]
F64 = npt.NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Weights:
    """Document-frequency buckets: `lut[df]` is the bucket, `weight[bucket]` its idf squared, scaled to an integer."""

    lut: U8
    weight: I64
    rare: int  # buckets below this one hold df < RARE_DF


@dataclass(frozen=True, slots=True)
class Sketches:
    """N sketches: ids ascending and padded with `PAD`, how many there are, the squared norm of the row, and its bits.

    `bits_N_B` holds a bit per id, eight words a row: what two rows can share at most is seen from them alone.
    """

    id_N_K: U32
    count_N: I32
    mass_N: I64
    bits_N_B: U64
    weights: Weights

    def take(self, row: I64) -> Sketches:
        """The sketches of some rows."""
        return Sketches(self.id_N_K[row], self.count_N[row], self.mass_N[row], self.bits_N_B[row], self.weights)


def weights_for(n_rows: int) -> Weights:
    """Buckets whose limits grow geometrically from 1 to the number of rows; weight ln²(N'/df), N' = 1.5 max(N, 64)."""
    n = max(n_rows, _MIN_ROWS)
    limit = np.array([1] + [max(2, math.ceil(n ** (j / BUCKETS))) for j in range(1, BUCKETS)], np.int64)
    lut = (np.searchsorted(limit, np.arange(n_rows + 1), side="right") - 1).clip(0).astype(np.uint8)
    weight = np.rint(_WEIGHT_SCALE * np.log(_SLACK * n / limit) ** 2).astype(np.int64)
    return Weights(lut, weight, int(np.searchsorted(limit, RARE_DF, side="left")))


def table_bits(n_rows: int) -> int:
    """log2 of the number of document-frequency counters."""
    return min(26, max(16, math.ceil(math.log2(max(4 * n_rows, 1)))))


def df_table(sweep: Sweep, row_N: I64, bits: int) -> U32:
    """In how many of some rows each feature occurs, counted in 2^bits counters by the feature's low bits."""
    length_N = sweep.length_N[row_N].astype(np.int64)
    slot_F = sweep.feature_F[_spans(sweep.start_N[row_N], length_N)] & np.uint32((1 << bits) - 1)
    return np.bincount(slot_F, minlength=1 << bits).astype(np.uint32)


def bucket_table(df_T: U32, weights: Weights) -> U8:
    """The bucket of every counter; two features on one counter can count more than every row."""
    return np.asarray(weights.lut[np.minimum(df_T, len(weights.lut) - 1)], np.uint8)


def _spans(start_N: I64, length_N: I64) -> I64:
    """start, start + 1, ... of every row, one after the other."""
    begin_N = np.cumsum(length_N) - length_N
    return np.asarray(np.repeat(start_N - begin_N, length_N) + np.arange(length_N.sum()), np.int64)


def sketches(sweep: Sweep, row_N: I64, min_features: int, *, given: tuple[Weights, U8] | None = None) -> Sketches:
    """Sketches of N rows of a sweep; a row with fewer than `min_features` features gets an empty one.

    `given`: weights and buckets that were counted over more rows than these.
    """
    n = len(row_N)
    weights, bucket_T = given or (weights_for(n), None)
    if bucket_T is None:
        bucket_T = bucket_table(df_table(sweep, row_N, table_bits(n)), weights)
    length_N = sweep.length_N[row_N].astype(np.int64)
    feature_F = sweep.feature_F[_spans(sweep.start_N[row_N], length_N)]
    bucket_F = bucket_T[feature_F & np.uint32(len(bucket_T) - 1)]
    row_F = np.repeat(np.arange(n), length_N)
    order = np.lexsort((bucket_F, row_F))
    order = order[(bucket_F[order] > 0) & (length_N[row_F[order]] >= min_features)]
    row_S = row_F[order]
    count_N = np.bincount(row_S, minlength=n)
    rank_S = np.arange(len(order)) - np.repeat(np.cumsum(count_N) - count_N, count_N)
    kept = rank_S < KEEP
    order, row_S, rank_S = order[kept], row_S[kept], rank_S[kept]
    id_N_K = np.full((n, KEEP), PAD, np.uint32)
    hash_S = (feature_F[order].astype(np.uint64) * np.uint64(SPREAD)).astype(np.uint32)
    id_S = (hash_S & np.uint32(0xFFFFFFE0)) | bucket_F[order]
    id_S[id_S == PAD] ^= np.uint32(32)
    id_N_K[row_S, rank_S] = id_S
    before_N = _mass(id_N_K, weights)
    id_N_K = _one_id_a_bit(id_N_K)
    count_N = (id_N_K != PAD).sum(axis=1)
    mass_N = _mass(id_N_K, weights)
    alone_N = np.bincount(row_F, weights=bucket_F == 0, minlength=n).astype(np.int64) * weights.weight[0]
    mass_N += alone_N * mass_N // np.maximum(before_N, 1)  # ids lost to a shared bit must not weigh for difference
    return Sketches(id_N_K, count_N.astype(np.int32), mass_N, _bits(id_N_K), weights)


def _mass(id_N_K: U32, weights: Weights) -> I64:
    bucket = np.where(id_N_K == PAD, BUCKETS, id_N_K & np.uint32(BUCKETS - 1))
    return np.asarray(np.append(weights.weight, 0)[bucket].sum(axis=1), np.int64)


def _one_id_a_bit(id_N_K: U32) -> U32:
    """Of the ids that fall on one bit the rarest stays, of equally rare ones the smallest; ascending, then padded."""
    by_rarity = ((id_N_K >> _BIT_SHIFT).astype(np.uint64) << np.uint64(37)) | (
        (id_N_K & np.uint32(BUCKETS - 1)).astype(np.uint64) << np.uint64(32)
    )
    packed = by_rarity | id_N_K
    packed.sort(axis=1)
    ids = (packed & np.uint64(0xFFFFFFFF)).astype(np.uint32)
    again = ids[:, 1:] >> _BIT_SHIFT == ids[:, :-1] >> _BIT_SHIFT
    ids[:, 1:][again] = PAD
    ids.sort(axis=1)
    return ids


def _bits(id_N_K: U32) -> U64:
    """512 bits a row, one set per id."""
    bits_N_B = np.zeros((len(id_N_K), BIT_WORDS), np.uint64)
    row, k = np.nonzero(id_N_K != PAD)
    bit = id_N_K[row, k] >> _BIT_SHIFT
    np.bitwise_or.at(bits_N_B, (row, bit >> np.uint32(6)), np.uint64(1) << (bit & np.uint32(63)).astype(np.uint64))
    return bits_N_B


def mix_ids(left: U64, right: U64, salt: int) -> U64:
    """32-bit join keys in the upper half of 64 bits."""
    z = left * np.uint64(MIX_1) + right * np.uint64(MIX_2) + np.uint64(salt)
    z = (z ^ (z >> np.uint64(31))) * np.uint64(MIX_2)
    return (z ^ (z >> np.uint64(29))) & np.uint64(0xFFFFFFFF00000000)


def join_keys(sketch: Sketches) -> U64:
    """All `key << 32 | row`, sorted: rare features, pairs of the rarest commoner ones, four minima."""
    n = len(sketch.count_N)
    row_N_1 = np.arange(n, dtype=np.uint64)[:, None]
    id_N_K = sketch.id_N_K
    live = id_N_K != PAD
    bucket = id_N_K & np.uint32(31)
    rare = live & (bucket < sketch.weights.rare)
    parts = []

    def add(chosen: Bool, left: U64, right: U64, salt: int) -> None:
        keys = mix_ids(left[chosen], right[chosen], salt)
        parts.append(keys | np.broadcast_to(row_N_1, chosen.shape)[chosen])

    wide = id_N_K.astype(np.uint64)
    zero = np.zeros_like(wide)
    add(rare & (np.cumsum(rare, axis=1) <= RARE_KEYS), wide, zero, 1)
    for b in range(MIN_KEYS):
        mine = live & ((id_N_K >> np.uint32(5)) & np.uint32(MIN_KEYS - 1) == b)
        add(mine & (np.cumsum(mine, axis=1) == 1), wide, zero, 2)
    common = np.where(live & ~rare, (bucket.astype(np.uint64) << np.uint64(32)) | wide, np.uint64(2**64 - 1))
    common.sort(axis=1)
    low = common[:, :PAIR_FROM]
    ids, ok = low & np.uint64(0xFFFFFFFF), low != np.uint64(2**64 - 1)
    for i in range(PAIR_FROM):
        for j in range(i + 1, PAIR_FROM):
            a, b = np.minimum(ids[:, i], ids[:, j]), np.maximum(ids[:, i], ids[:, j])
            add((ok[:, i] & ok[:, j])[:, None], a[:, None], b[:, None], 3)
    keys = np.concatenate(parts) if parts else np.zeros(0, np.uint64)
    keys.sort()
    return keys


def candidates(keys: U64) -> tuple[I64, I64]:
    """Distinct pairs of rows that share a key: all pairs of small buckets, first and previous in larger ones."""
    key, row = keys >> np.uint64(32), (keys & np.uint64(0xFFFFFFFF))
    if len(keys) < 2:
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    begins = np.flatnonzero(np.append(True, key[1:] != key[:-1]))
    size = np.diff(np.append(begins, len(key)))
    size_at, begin_at = np.repeat(size, size), np.repeat(begins, size)
    at = np.arange(len(key))
    found = []
    for d in range(1, ALL_PAIRS_UP_TO):
        later = at[(at - begin_at >= d) & ((size_at <= ALL_PAIRS_UP_TO) | (d == 1))]
        found.append((row[later - d] << np.uint64(32)) | row[later])
    big = at[(size_at > ALL_PAIRS_UP_TO) & (at - begin_at > 1)]
    found.append((row[begin_at[big]] << np.uint64(32)) | row[big])
    pair = np.unique(np.concatenate(found))
    left, right = (pair >> np.uint64(32)).astype(np.int64), (pair & np.uint64(0xFFFFFFFF)).astype(np.int64)
    distinct = left != right
    return left[distinct], right[distinct]


def shared_mass(sketch: Sketches, left_P: I64, right_P: I64) -> I64:
    """Σ idf² over the ids that both sketches of a pair hold, scaled to integers, shape [P]."""
    out = np.zeros(len(left_P), np.int64)
    step = 1 << 14
    weight = sketch.weights.weight
    for a in range(0, len(left_P), step):
        both = np.concatenate((sketch.id_N_K[left_P[a : a + step]], sketch.id_N_K[right_P[a : a + step]]), axis=1)
        both.sort(axis=1)
        same = (both[:, 1:] == both[:, :-1]) & (both[:, 1:] != PAD)
        out[a : a + step] = np.where(same, weight[both[:, 1:] & np.uint32(31)], 0).sum(axis=1)
    return out


def similarity(sketch: Sketches, left_P: I64, right_P: I64) -> F64:
    """IDF²-weighted cosine of pairs of rows in [0, 1], shape [P]."""
    return cosine(sketch, shared_mass(sketch, left_P, right_P), left_P, right_P)


def cosine(sketch: Sketches, shared_P: I64, left_P: I64, right_P: I64) -> F64:
    """Shared mass over the geometric mean of both rows' masses."""
    product = sketch.mass_N[left_P].astype(np.float64) * sketch.mass_N[right_P].astype(np.float64)
    return np.minimum(1.0, shared_P / np.sqrt(np.maximum(product, 1.0)))


def least_shared(sketch: Sketches, threshold: float) -> U8:
    """How many ids a row must share, at the least, to reach the threshold with a row no lighter than itself.

    Σ shared >= θ sqrt(m m') >= θ m where m <= m'; the row's heaviest ids reach that first.
    """
    bucket = np.where(sketch.id_N_K == PAD, BUCKETS, sketch.id_N_K & np.uint32(BUCKETS - 1))
    weight = np.append(sketch.weights.weight, 0)
    mass = np.cumsum(weight[np.sort(bucket, axis=1)], axis=1)
    short = mass < (threshold * sketch.mass_N.astype(np.float64))[:, None]
    least = np.minimum(short.sum(axis=1) + (sketch.mass_N > 0), sketch.count_N)
    return np.asarray(least, np.uint8)


def accepted(sketch: Sketches, left_P: I64, right_P: I64, threshold: float) -> Bool:
    """Which pairs are similar enough, decided on integers so that every engine decides alike.

    A pair whose bits show that it cannot share enough is not looked at further.
    """
    mass_N = sketch.mass_N.astype(np.float64)
    least_N = least_shared(sketch, threshold).astype(np.int64)
    verdict = np.zeros(len(left_P), bool)
    for a in range(0, len(left_P), _PAIRS):
        left, right = left_P[a : a + _PAIRS], right_P[a : a + _PAIRS]
        common = np.bitwise_count(sketch.bits_N_B[left] & sketch.bits_N_B[right]).sum(axis=1, dtype=np.int64)
        lighter = np.where(mass_N[left] <= mass_N[right], left, right)
        good = np.flatnonzero(common >= least_N[lighter])
        left, right = left[good], right[good]
        shared = shared_mass(sketch, left, right).astype(np.float64)
        needed = threshold * threshold * (mass_N[left] * mass_N[right])
        verdict[a + good] = (shared > 0) & (shared * shared >= needed)
    return verdict


def components(n: int, left: I64, right: I64) -> I64:
    """For each of n nodes the smallest node it is connected to."""
    root = np.arange(n)
    if not len(left):
        return root
    left, right = np.asarray(left, np.int64), np.asarray(right, np.int64)
    while True:  # hook the larger root below the smaller one, then flatten: O(log n) rounds
        a, b = root[left], root[right]
        apart = a != b
        if not apart.any():
            return root
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        while True:
            up = root[root]
            if np.array_equal(up, root):
                break
            root = up


def near_components(sketch: Sketches, threshold: float) -> I64:
    """Connected components of accepted candidate pairs, then again over one representative of each."""
    n = len(sketch.count_N)
    root = _one_pass(sketch, threshold)
    if np.array_equal(root, np.arange(n)):
        return root
    alone = np.unique(root)
    again = _one_pass(sketch.take(alone), threshold)
    return alone[again[np.searchsorted(alone, root)]]


def _one_pass(sketch: Sketches, threshold: float) -> I64:
    left, right = candidates(join_keys(sketch))
    good = accepted(sketch, left, right, threshold)
    return components(len(sketch.count_N), left[good], right[good])
