"""Which machine does the work: this one's cores, or a Ray cluster. The only file that imports compiled code.

numba takes .4 s to import and ray 1 s, so each is imported when an engine starts and not before.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, Protocol, TypeVar

from veritune.data.near.clusters import RowSketches
from veritune.errors import MachineError, first_line

if TYPE_CHECKING:
    from veritune.data.near.arrays import F64, I64
    from veritune.data.near.bytes import TextBuffer
    from veritune.data.near.overlap import OverlapRule, RowsBesideEntries
    from veritune.data.near.sweep import Sweep

Executor = Literal["local", "ray"]
S = TypeVar("S", bound=RowSketches)


class EnginePlace(Protocol):
    """Where to compute: `threads` 0 means all cores; `ray_address` None means a local cluster."""

    @property
    def threads(self) -> int: ...
    @property
    def executor(self) -> Executor: ...
    @property
    def ray_address(self) -> str | None: ...


class Engine(Protocol[S]):
    """The steps of both searches. Every engine gives bit-identical numbers."""

    def sweep(self, text: TextBuffer) -> Sweep:
        """Hashes and features of every row: `sweep.sweep`."""

    def sketches(self, sweep: Sweep, row_N: I64, min_features: int) -> S:
        """The rarest features of some rows: `join.sketches`."""

    def near_components(self, sketch: S, threshold: float) -> I64:
        """For each row the smallest row it is connected to: `join.near_components`."""

    def similarity(self, sketch: S, left_P: I64, right_P: I64) -> F64:
        """Similarity of pairs of rows: `join.similarity`."""

    def compare(self, rows: TextBuffer, entries: TextBuffer, rule: OverlapRule) -> RowsBesideEntries:
        """How much of each entry every row holds: `overlap.compare`."""

    def standing(self, rows: TextBuffer, texts: list[str]) -> tuple[I64, I64, I64]:
        """Where texts occur in rows word for word: `overlap.standing`."""


@contextmanager
def running(place: EnginePlace) -> Iterator[Engine[Any]]:
    """The engine, open until the block ends.

    Raises MachineError where numba cannot be imported: no slower engine takes its place.
    """
    _require_numba()
    if place.executor == "ray":
        from veritune.data.near.ray import RayEngine

        with RayEngine.started(place.ray_address) as engine:
            yield engine
    else:
        from veritune.data.near.local import LocalEngine

        yield LocalEngine(place.threads or available_cores())


def _require_numba() -> None:
    try:
        import_module("numba")
    except (ImportError, OSError) as error:  # absent, or refuses this numpy, or its library cannot be loaded
        reason = first_line(error)
        raise MachineError(
            f"families and contamination need numba, which cannot be imported: {reason}.",
            fix="pip install 'numba>=0.65'",
        ) from error


def available_cores() -> int:
    """Cores this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
