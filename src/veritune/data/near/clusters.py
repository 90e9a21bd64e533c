"""Clusters: connected components of similar rows, each cut to the members that are similar to its centre.

Chains (a like b, b like c, a unlike c) would otherwise glue strangers together.

N rows · U distinct texts · M rows that have company · G clusters
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

import numpy as np

from veritune.data.near.arrays import F64, I64

if TYPE_CHECKING:
    from veritune.data.near.engine import Engine
    from veritune.data.near.sweep import Sweep

_CENTRES = 4  # members tried as the centre of a cluster
_SAMPLE = 24  # members each of them is compared with


class Limits(Protocol):
    """Where a cluster ends: see `families.FamilyConfig`."""

    @property
    def threshold(self) -> float: ...
    @property
    def radius(self) -> float: ...
    @property
    def min_features(self) -> int: ...


class RowSketches(Protocol):
    """Sketches of rows, on this machine or on a cluster."""

    def take(self, row: I64) -> Any:
        """The sketches of some rows."""


S = TypeVar("S", bound=RowSketches)


@dataclass(frozen=True, slots=True)
class Near:
    """M rows that have company: each with its cluster's centre (a row) and its similarity to it.

    `n_short` rows had too few features to be compared; `n_recut` clusters lost `n_recut_rows` members.
    """

    row_M: I64
    centre_M: I64
    similarity_M: F64
    n_short: int
    n_recut: int
    n_recut_rows: int


def components(n: int, left: I64, right: I64) -> I64:
    """For each of n nodes the smallest node it is connected to.

    Hooks the larger root below the smaller one, then flattens: O(log n) rounds. scipy's connected components would
    import scipy, a quarter of a second, for these lines.
    """
    root = np.arange(n)
    left, right = np.asarray(left, np.int64), np.asarray(right, np.int64)
    while len(left):
        a, b = root[left], root[right]
        apart = a != b
        left, right, a, b = left[apart], right[apart], a[apart], b[apart]
        np.minimum.at(root, np.maximum(a, b), np.minimum(a, b))
        up = root[root]
        while not np.array_equal(up, root):
            root, up = up, up[up]
    return root


def sketched(sweep: Sweep, engine: Engine[S], limits: Limits) -> tuple[I64, S]:
    """The first row of every distinct text, and the sketches of these rows.

    Equal texts are looked at once, in the order of their hashes, never of the rows.
    """
    _, first_U = np.unique(sweep.hash_N, return_index=True)
    return first_U, engine.sketches(sweep, first_U, limits.min_features)


def clusters(sweep: Sweep, first_U: I64, sketch: S, engine: Engine[S], limits: Limits) -> Near:
    """Clusters of near-duplicates; the sweep's features are not needed any more."""
    n_short = int(np.count_nonzero(sweep.length_N < limits.min_features))
    root_U = engine.near_components(sketch, limits.threshold)
    member_M, centre_M, score_M, n_recut, n_recut_rows = _around_centres(engine, sketch, root_U, limits)
    return Near(first_U[member_M], first_U[centre_M], score_M, n_short, n_recut, n_recut_rows)


def _around_centres(engine: Engine[S], sketch: S, root_U: I64, limits: Limits) -> tuple[I64, I64, F64, int, int]:
    """Every cluster as members around a centre; members out of its reach are clustered again among themselves.

    Returns members, their centres and similarities, how many clusters were cut and how many members were cut off.
    """
    row_U = np.arange(len(root_U))
    rounds: list[tuple[I64, I64, F64]] = [(row_U[:0], row_U[:0], np.zeros(0))]
    n_recut = n_recut_rows = 0
    while len(row_U):
        member_M, group_M = _grouped(root_U)
        if not len(member_M):
            break
        centre_M, score_M = _centres(engine, sketch, row_U[member_M], group_M)
        near = score_M >= limits.radius * limits.threshold
        rounds.append((row_U[member_M[near]], centre_M[near], score_M[near]))
        n_recut += len(np.unique(group_M[~near]))
        n_recut_rows += int(np.count_nonzero(~near))
        row_U = np.sort(row_U[member_M[~near]])
        root_U = engine.near_components(sketch.take(row_U), limits.threshold) if len(row_U) else row_U
    member, centre, score = (np.concatenate(columns) for columns in zip(*rounds))
    return member, centre, score, n_recut, n_recut_rows


def _grouped(root_U: I64) -> tuple[I64, I64]:
    """Members of components of two or more, group by group and ascending within; and their group's number."""
    order = np.argsort(root_U, kind="stable")
    size_U = np.bincount(root_U, minlength=len(root_U))[root_U[order]]
    member_M = order[size_U > 1]
    root_M = root_U[member_M]
    group_M = np.cumsum(np.append(True, root_M[1:] != root_M[:-1])) - 1 if len(member_M) else member_M
    return member_M, group_M


def _centres(engine: Engine[S], sketch: S, row_M: I64, group_M: I64) -> tuple[I64, F64]:
    """Of a few members spread over the group, the one most similar to a sample of the others is its centre.

    Returns each member's centre and its similarity to it; the centre's own is that of its nearest neighbour.
    """
    begin_G = np.flatnonzero(np.append(True, group_M[1:] != group_M[:-1]))
    size_G = np.diff(np.append(begin_G, len(group_M)))
    best_G, best_sum_G = begin_G.copy(), np.full(len(begin_G), -1.0)
    sampled_M = _spread(size_G, begin_G, _SAMPLE)
    for c in range(_CENTRES):
        tried_G = begin_G + (c * (size_G - 1)) // (_CENTRES - 1)
        open_G = (size_G > 2) & ((c == 0) | (tried_G > best_G))
        at = sampled_M[open_G[group_M[sampled_M]]]
        score = engine.similarity(sketch, row_M[tried_G[group_M[at]]], row_M[at])
        sum_G = np.bincount(group_M[at], weights=score, minlength=len(begin_G))
        better = open_G & (sum_G > best_sum_G)
        best_G[better], best_sum_G[better] = tried_G[better], sum_G[better]
    centre_M = row_M[best_G[group_M]]
    score_M = engine.similarity(sketch, centre_M, row_M)
    other_M = np.where(centre_M == row_M, 0.0, score_M)
    nearest_G = np.maximum.reduceat(other_M, begin_G)
    return centre_M, np.where(centre_M == row_M, nearest_G[group_M], score_M)


def _spread(size_G: I64, begin_G: I64, most: int) -> I64:
    """Positions of at most `most` members per group, evenly spread."""
    count_G = np.minimum(size_G, most)
    rank = np.arange(count_G.sum()) - np.repeat(np.cumsum(count_G) - count_G, count_G)
    step = rank * np.repeat(size_G, count_G) // np.repeat(count_G, count_G)
    return np.asarray(np.repeat(begin_G, count_G) + step, np.int64)
