"""The engine on this machine's cores.

N rows · P pairs of rows
"""

from __future__ import annotations

from functools import partial

from veritune.data.near import join, overlap
from veritune.data.near.arrays import F64, I64
from veritune.data.near.bytes import TextBuffer
from veritune.data.near.join import Sketches
from veritune.data.near.overlap import OverlapRule, RowsBesideEntries
from veritune.data.near.sweep import Sweep, sweep


class LocalEngine:
    """`Engine` with the kernels on some threads."""

    def __init__(self, threads: int) -> None:
        self.threads = threads

    def sweep(self, text: TextBuffer) -> Sweep:
        """As `sweep.sweep`."""
        return sweep(text, threads=self.threads)

    def sketches(self, sweep: Sweep, row_N: I64, min_features: int) -> Sketches:
        """As `join.sketches`."""
        return join.sketches(sweep, row_N, min_features, threads=self.threads)

    def near_components(self, sketch: Sketches, threshold: float) -> I64:
        """As `join.near_components`."""
        return join.near_components(sketch, threshold, threads=self.threads)

    def similarity(self, sketch: Sketches, left_P: I64, right_P: I64) -> F64:
        """As `join.similarity`."""
        return join.similarity(sketch, left_P, right_P, threads=self.threads)

    def compare(self, rows: TextBuffer, entries: TextBuffer, rule: OverlapRule) -> RowsBesideEntries:
        """As `overlap.compare`."""
        score = partial(overlap.score, threads=self.threads)
        return overlap.compare(rows, entries, rule, score, threads=self.threads)

    def standing(self, rows: TextBuffer, texts: list[str]) -> tuple[I64, I64, I64]:
        """As `overlap.standing`."""
        return overlap.standing(rows, texts)
