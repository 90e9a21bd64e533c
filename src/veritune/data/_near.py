"""Near-duplicate clusters over distinct texts: the engine is chosen here, and chains are cut here."""

from __future__ import annotations

import os
from dataclasses import dataclass
from functools import partial
from typing import TYPE_CHECKING, Any, cast

import numpy as np
import numpy.typing as npt

from veritune.data import _join, _sweep_numpy
from veritune.data._join import Sketches, components
from veritune.data._sweep import Sweep
from veritune.data.text import I64, TextBuffer
from veritune.errors import MachineError

if TYPE_CHECKING:
    from veritune.data.families import FamilyConfig

__all__ = ["Near", "clusters", "components", "sweep"]

_CENTRES = 8  # members tried as the centre of a cluster


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
    sketches = staticmethod(_join.sketches)
    near_components = staticmethod(_join.near_components)


class _Numba:
    """Compiled loops on several threads; imported only when used."""

    def __init__(self, threads: int) -> None:
        from veritune.data import _join_numba, _sweep_numba

        self.sweep = partial(_sweep_numba.sweep, threads=threads)
        self.sketches = partial(_join_numba.sketches, threads=threads)
        self.near_components = partial(_join_numba.near_components, threads=threads)


def _engine(n_rows: int, config: FamilyConfig) -> Any:
    """numba where it pays and is there; asking for it where it is not raises MachineError."""
    if config.engine == "numpy" or (config.engine == "auto" and n_rows < config.numba_from):
        return _Numpy
    try:
        return _Numba(config.threads or available_cores())
    except ImportError as error:
        if config.engine == "auto":
            return _Numpy
        raise MachineError(
            "the numba engine was asked for and numba is not installed.", fix="pip install 'veritune[audit]'"
        ) from error


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def sweep(text: TextBuffer, config: FamilyConfig) -> Sweep:
    """Hashes and digit-masked features of every row."""
    return cast(Sweep, _engine(len(text), config).sweep(text))


def clusters(sweep: Sweep, config: FamilyConfig) -> Near:
    """Clusters of near-duplicates. Equal texts are looked at once, in the order of their hashes, never of the rows."""
    _, first_U = np.unique(sweep.hash_N, return_index=True)
    engine = _engine(len(sweep.hash_N), config)
    sketch = engine.sketches(sweep, first_U, config.min_features)
    n_short = int(np.count_nonzero(sweep.length_N < config.min_features))
    root_U = engine.near_components(sketch, config.threshold)
    member_M, centre_M, score_M, recut = _around_centres(sketch, root_U, config)
    return Near(first_U[member_M], first_U[centre_M], score_M, n_short, recut[0], recut[1])


def _around_centres(sketch: Sketches, root_U: I64, config: FamilyConfig) -> tuple[I64, I64, Any, tuple[int, int]]:
    """Every cluster as members around a centre; members out of its reach are clustered again among themselves."""
    order = np.argsort(root_U, kind="stable")
    begins = np.flatnonzero(np.append(True, root_U[order][1:] != root_U[order][:-1])) if len(order) else order
    sizes = np.diff(np.append(begins, len(order)))
    members, centres, scores = [], [], []
    n_recut = n_recut_rows = 0
    for a, size in zip(begins[sizes > 1].tolist(), sizes[sizes > 1].tolist()):
        queue = [order[a : a + size]]
        cut = 0
        while queue:
            group = queue.pop()
            centre, score = _centre(sketch, group)
            near = score >= config.radius * config.threshold
            if np.count_nonzero(near) > 1:
                members.append(group[near])
                centres.append(np.full(np.count_nonzero(near), centre))
                scores.append(score[near])
            rest = group[~near]
            cut += len(rest)
            if len(rest) > 1:
                again = rest[_join.near_components(sketch.take(rest), config.threshold)]
                queue.extend(rest[again == r] for r in np.unique(again) if np.count_nonzero(again == r) > 1)
        n_recut += cut > 0
        n_recut_rows += cut
    if not members:
        none = np.zeros(0, np.int64)
        return none, none, np.zeros(0), (n_recut, n_recut_rows)
    return np.concatenate(members), np.concatenate(centres), np.concatenate(scores), (n_recut, n_recut_rows)


def _centre(sketch: Sketches, group: I64) -> tuple[int, npt.NDArray[np.float64]]:
    """The member most similar to all others among a few tried, and every member's similarity to it.

    The centre's own similarity is that of its nearest neighbour.
    """
    tried = group[np.unique(np.linspace(0, len(group) - 1, min(_CENTRES, len(group))).astype(np.int64))]
    best, best_score = int(tried[0]), np.full(len(group), -1.0)
    for candidate in tried.tolist():
        score = _join.similarity(sketch, np.full(len(group), candidate), group)
        if score.sum() > best_score.sum() + 1e-12:
            best, best_score = candidate, score
    own = group == best
    best_score[own] = best_score[~own].max(initial=0.0)
    return best, best_score
