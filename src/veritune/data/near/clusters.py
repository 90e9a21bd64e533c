"""Clusters: connected components of similar rows, each cut to the members that are similar to its centre.

Chains (a like b, b like c, a unlike c) would otherwise glue strangers together. A component that must be cut is cut so
that its strongest pairs stay whole: a shared template may not take a row away from its own original.

N rows · U distinct texts · M rows that have company · G clusters · K members of one component · C centres
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
_ALL_PAIRS = 400  # members of a component up to which a cut looks at all pairs of them (80,000: .05 s)
_CLEARLY = 1.25  # a member moves to a centre that is this much more similar (bench/audit/run.py: 1 splits families)
_AT_ONCE = 500_000  # of them in one call
_MOST_PAIRS = 4_000_000  # pairs of member and centre that are compared in a larger component (2 s)


class Limits(Protocol):
    """Which similarity ends a cluster: see `families.FamilyConfig`."""

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
    """M rows that have near-duplicates: each with its cluster's centre (a row) and its similarity to it.

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
    """Clusters of near-duplicates; the sweep's features may be freed afterwards."""
    n_short = int(np.count_nonzero(sweep.length_N < limits.min_features))
    root_U = engine.near_components(sketch, limits.threshold)
    member_M, centre_M, score_M, n_recut, n_recut_rows = _around_centres(engine, sketch, root_U, limits)
    return Near(first_U[member_M], first_U[centre_M], score_M, n_short, n_recut, n_recut_rows)


def _around_centres(engine: Engine[S], sketch: S, root_U: I64, limits: Limits) -> tuple[I64, I64, F64, int, int]:
    """Every cluster as members around a centre; a component with members out of its centre's reach is cut.

    Returns members, their centres and similarities, how many clusters were cut and how many members were cut off.
    """
    member_M, group_M = _grouped(root_U)
    if not len(member_M):
        return member_M, member_M, np.zeros(0), 0, 0
    centre_M, score_M = _centres(engine, sketch, member_M, group_M)
    far_M = score_M < limits.radius * limits.threshold
    cut_M = np.isin(group_M, group_M[far_M])
    parts = [(member_M[~cut_M], centre_M[~cut_M], score_M[~cut_M])]
    cut_G = np.unique(group_M[cut_M])
    for begin, end in zip(np.searchsorted(group_M, cut_G), np.searchsorted(group_M, cut_G, side="right")):
        row_K = member_M[begin:end]
        cut = _strongest_first if len(row_K) <= _ALL_PAIRS else _by_rounds
        parts.append(cut(engine, sketch, row_K, limits))
    member, centre, score = (np.concatenate(columns) for columns in zip(*parts))
    return member, centre, score, len(np.unique(group_M[far_M])), int(np.count_nonzero(far_M))


def _strongest_first(engine: Engine[S], sketch: S, row_K: I64, limits: Limits) -> tuple[I64, I64, F64]:
    """A component cut by joining its pairs from the strongest down, so that a row goes with its closest sibling first.

    Two groups join when one member is similar to all of both (`radius * threshold`), or when they are so on average;
    a pair that only a template holds together is neither. Members that end alone are left out.
    """
    n = len(row_K)
    left, right = np.triu_indices(n, 1)
    score = engine.similarity(sketch, row_K[left], row_K[right])
    score_KK = np.eye(n)
    score_KK[left, right] = score_KK[right, left] = score
    strong = np.flatnonzero(score >= limits.threshold)
    strong = strong[np.argsort(-score[strong], kind="stable")]
    groups = {i: np.array([i]) for i in range(n)}
    group_of = list(range(n))
    refused: set[tuple[int, int]] = set()
    for i, j in zip(left[strong].tolist(), right[strong].tolist()):
        a, b = sorted((group_of[i], group_of[j]))
        if a == b or (a, b) in refused:
            continue
        if _apart(score_KK, groups[a], groups[b], limits):
            refused.add((a, b))
            continue
        moved = groups.pop(b)
        groups[a] = np.concatenate((groups[a], moved))
        for k in moved.tolist():
            group_of[k] = a
        refused = {pair for pair in refused if a not in pair and b not in pair}
    return _centred(score_KK, row_K, [np.sort(g) for g in groups.values() if len(g) > 1])


def _apart(score_KK: F64, left: I64, right: I64, limits: Limits) -> bool:
    """Whether two groups stay apart: no member is similar to all of both, and on average they are not similar."""
    low = limits.radius * limits.threshold
    if score_KK[np.ix_(left, right)].mean() >= low:
        return False
    both = np.concatenate((left, right))
    return bool(score_KK[np.ix_(both, both)].min(axis=1).max() < low)


def _centred(score_KK: F64, row_K: I64, groups: list[I64]) -> tuple[I64, I64, F64]:
    """Each group around the member to which the others are most similar in all."""
    member, centre, score = [row_K[:0]], [row_K[:0]], [np.zeros(0)]
    for group in groups:
        inside = score_KK[np.ix_(group, group)]
        covering = np.flatnonzero(inside.min(axis=1) == inside.min(axis=1).max())
        best = int(covering[np.argmax(inside[covering].sum(axis=1))])
        own = inside[best].copy()
        own[best] = np.delete(own, best).max()
        member.append(row_K[group])
        centre.append(np.full(len(group), row_K[group[best]]))
        score.append(own)
    return np.concatenate(member), np.concatenate(centre), np.concatenate(score)


def _by_rounds(engine: Engine[S], sketch: S, row_K: I64, limits: Limits) -> tuple[I64, I64, F64]:
    """A large component cut around a centre, the rest clustered again among itself, then each member to its closest."""
    row_U = row_K
    root_U = engine.near_components(sketch.take(row_U), limits.threshold)
    rounds: list[tuple[I64, I64, F64]] = [(row_U[:0], row_U[:0], np.zeros(0))]
    while len(row_U):
        member_M, group_M = _grouped(root_U)
        if not len(member_M):
            break
        centre_M, score_M = _centres(engine, sketch, row_U[member_M], group_M)
        near = score_M >= limits.radius * limits.threshold
        rounds.append((row_U[member_M[near]], centre_M[near], score_M[near]))
        row_U = np.sort(row_U[member_M[~near]])
        root_U = engine.near_components(sketch.take(row_U), limits.threshold) if len(row_U) else row_U
    member, centre, score = (np.concatenate(columns) for columns in zip(*rounds))
    return _to_closest(engine, sketch, (member, centre, score), np.setdiff1d(row_K, member), limits)


def _to_closest(
    engine: Engine[S], sketch: S, found: tuple[I64, I64, F64], alone: I64, limits: Limits
) -> tuple[I64, I64, F64]:
    """Members moved to the centre, or the row left alone, that they are most similar to; centres stay.

    Beyond `_MOST_PAIRS` the centres of the smallest clusters are not tried.
    """
    member, centre, score = found
    own, size = np.unique(centre, return_counts=True)
    tried = np.concatenate((own[np.argsort(-size, kind="stable")], alone))
    tried = tried[: max(1, _MOST_PAIRS // max(1, len(member)))]
    free = np.flatnonzero(~np.isin(member, own))
    best, best_score = centre.copy(), score.copy()
    at_once = max(1, _AT_ONCE // max(1, len(free)))
    for begin in range(0, len(tried), at_once):
        some_C = tried[begin : begin + at_once]
        pairs = engine.similarity(sketch, np.repeat(some_C, len(free)), np.tile(member[free], len(some_C)))
        score_CF = pairs.reshape(len(some_C), len(free))
        score_CF[np.isin(some_C, alone)[:, None] & (score_CF < limits.threshold)] = 0.0  # no edge of its own
        top = score_CF.argmax(axis=0) if len(free) else free
        better = score_CF[top, np.arange(len(free))] > _CLEARLY * best_score[free]
        best[free[better]] = some_C[top[better]]
        best_score[free[better]] = score_CF[top, np.arange(len(free))][better]
    joined = np.intersect1d(alone, best)
    nearest = [float(best_score[best == c].max()) for c in joined.tolist()]
    return (
        np.concatenate((member, joined)),
        np.concatenate((best, joined)),
        np.concatenate((best_score, np.array(nearest))),
    )


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
