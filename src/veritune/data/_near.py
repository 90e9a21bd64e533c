"""Near-duplicate clusters over distinct texts: the engine is chosen here, and chains are cut here."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from veritune.data import _join, _sweep_numpy
from veritune.data._join import Sketches, components
from veritune.data._sweep import Sweep
from veritune.data.text import I64
from veritune.errors import MachineError

if TYPE_CHECKING:
    from veritune.data.families import FamilyConfig

__all__ = ["Executor", "Near", "choose", "clusters", "components", "running", "sketched"]

Executor = Literal["local", "ray"]

_CENTRES = 4  # members tried as the centre of a cluster
_SAMPLE = 24  # members each of them is compared with


@dataclass(frozen=True, slots=True)
class Near:
    """M rows that have company: each with its cluster's centre (a row) and its similarity to it."""

    row_M: I64
    centre_M: I64
    similarity_M: npt.NDArray[np.float64]
    n_short: int
    n_recut: int
    n_recut_rows: int


class _Numpy:
    """Vectorised, nothing to compile."""

    sweep = staticmethod(_sweep_numpy.sweep)
    df_table = staticmethod(_join.df_table)
    sketches = staticmethod(_join.sketches)
    accepted = staticmethod(_join.accepted)
    near_components = staticmethod(_join.near_components)
    similarity = staticmethod(_join.similarity)


class _Numba:
    """Compiled loops on several threads; imported only when used."""

    def __init__(self, threads: int) -> None:
        from veritune.data import _join_numba, _sweep_numba

        self.sweep = partial(_sweep_numba.sweep, threads=threads)
        self.df_table = partial(_join_numba.df_table, threads=threads)
        self.sketches = partial(_join_numba.sketches, threads=threads)
        self.accepted = _join_numba.accepted
        self.near_components = partial(_join_numba.near_components, threads=threads)
        self.similarity = partial(_join_numba.similarity, threads=threads)


def single(kind: str) -> Any:
    """An engine on one thread."""
    return _Numpy() if kind == "numpy" else _Numba(1)


class EngineChoice(Protocol):
    """The settings that choose an engine."""

    @property
    def engine(self) -> str: ...
    @property
    def numba_from(self) -> int: ...
    @property
    def threads(self) -> int: ...


def choose(n_rows: int, config: EngineChoice, plain: Any, compiled: Callable[[int], Any]) -> Any:
    """`compiled(threads)` where it pays and numba is there, else `plain`.

    Asking for numba where it is not installed raises MachineError.
    """
    if config.engine == "numpy" or (config.engine == "auto" and n_rows < config.numba_from):
        return plain
    try:
        return compiled(config.threads or available_cores())
    except ImportError as error:
        if config.engine == "auto":
            return plain
        raise MachineError(
            "the numba engine was asked for and numba is not installed.", fix="pip install 'veritune[audit]'"
        ) from error


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


@contextmanager
def running(n_rows: int, config: FamilyConfig) -> Iterator[Any]:
    """The engine that finds near-duplicates: in this process, or on Ray while the block runs."""
    if config.executor == "ray":
        from veritune.data.scale import RayEngine

        with RayEngine.started(n_rows, config) as engine:
            yield engine
    else:
        yield choose(n_rows, config, _Numpy, _Numba)


def sketched(sweep: Sweep, engine: Any, config: FamilyConfig) -> tuple[I64, Sketches]:
    """The first row of every distinct text, and the sketches of these rows.

    Equal texts are looked at once, in the order of their hashes, never of the rows.
    """
    _, first_U = np.unique(sweep.hash_N, return_index=True)
    return first_U, engine.sketches(sweep, first_U, config.min_features)


def clusters(sweep: Sweep, first_U: I64, sketch: Sketches, engine: Any, config: FamilyConfig) -> Near:
    """Clusters of near-duplicates; the sweep's features are not needed any more."""
    n_short = int(np.count_nonzero(sweep.length_N < config.min_features))
    root_U = engine.near_components(sketch, config.threshold)
    member_M, centre_M, score_M, n_recut, n_recut_rows = _around_centres(engine, sketch, root_U, config)
    return Near(first_U[member_M], first_U[centre_M], score_M, n_short, n_recut, n_recut_rows)


def _around_centres(engine: Any, sketch: Sketches, root_U: I64, config: FamilyConfig) -> tuple[I64, I64, Any, int, int]:
    """Every cluster as members around a centre; members out of its reach are clustered again among themselves.

    Returns members, their centres and similarities, how many clusters were cut and how many members were cut off.
    """
    row_U = np.arange(len(root_U))
    kept: list[tuple[I64, I64, Any]] = []
    n_recut = n_recut_rows = 0
    while len(row_U):
        member_M, group_M = _grouped(root_U)
        if not len(member_M):
            break
        centre_M, score_M = _centres(engine, sketch, row_U[member_M], group_M)
        near = score_M >= config.radius * config.threshold
        kept.append((row_U[member_M[near]], centre_M[near], score_M[near]))
        n_recut += len(np.unique(group_M[~near]))
        n_recut_rows += int(np.count_nonzero(~near))
        row_U = np.sort(row_U[member_M[~near]])
        root_U = engine.near_components(sketch.take(row_U), config.threshold) if len(row_U) else row_U
    if not kept:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0), 0, 0
    member, centre, score = (np.concatenate([k[i] for k in kept]) for i in range(3))
    return member, centre, score, n_recut, n_recut_rows


def _grouped(root_U: I64) -> tuple[I64, I64]:
    """Members of components of two or more, group by group and ascending within; and their group's number."""
    order = np.argsort(root_U, kind="stable")
    size_U = np.bincount(root_U, minlength=len(root_U))[root_U[order]]
    member_M = order[size_U > 1]
    root_M = root_U[member_M]
    group_M = np.cumsum(np.append(True, root_M[1:] != root_M[:-1])) - 1 if len(member_M) else member_M
    return member_M, group_M


def _centres(engine: Any, sketch: Sketches, row_M: I64, group_M: I64) -> tuple[I64, Any]:
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
