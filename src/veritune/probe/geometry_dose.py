"""A cell of the geometry grid, and its step dose-response: one value for each condition and step, seeds pooled.

A run's value is the mean over its layers of a measure's change from the untouched model. The point is the mean over the
seeds with a t interval over them, and the least and the largest seed beside it; one seed has no interval. Beside a
reference condition the difference of the two runs of each shared seed is pooled the same way: runs of one seed share
the order of their data where the study says so (`shared_seeds`), and the pairing takes that part off.

Layers of a run move together, so they are averaged and never counted as repetitions.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np

from veritune.records import DosePoint, GridCell
from veritune.stats.intervals import Student

LEVEL = 0.95
RECORD = "probes/geometry/geometry.json"
"""Where a study that declares `probes.geometry` keeps its grid."""
Place = tuple[str, int | None, str, str]
"""Condition, step, method and measure."""


def dose_points(cells: Sequence[GridCell], reference: Mapping[str, str]) -> tuple[DosePoint, ...]:
    """Every (condition, step, method, measure) of a grid as one pooled point, in the order of the cells.

    `reference` names the condition that a condition is put beside; one that it lacks has no `beyond`.
    """
    found, layers = run_changes(cells), shared_layers(cells)
    made = []
    for place, by_seed in found.items():
        condition, step, method, measure = place
        beside = reference.get(condition)
        other = found.get((beside, step, method, measure), {}) if beside is not None else {}
        shared = [seed for seed in by_seed if seed in other]
        low, high = _interval(list(by_seed.values()))
        apart = [by_seed[seed] - other[seed] for seed in shared]
        ends = _interval(apart) if apart else (None, None)
        made.append(
            DosePoint(
                *place, tuple(by_seed), layers[method, measure], float(np.mean(list(by_seed.values()))), low, high,
                min(by_seed.values()), max(by_seed.values()), beside if apart else None,
                float(np.mean(apart)) if apart else None, *ends,
            )
        )  # fmt: skip
    return tuple(made)


def run_changes(cells: Sequence[GridCell]) -> dict[Place, dict[int | None, float]]:
    """The mean change over layers of each run and step: by place, then by seed. See `shared_layers`."""
    layers = shared_layers(cells)
    by_run: dict[tuple[Place, int | None], list[float]] = defaultdict(list)
    for c in cells:
        if c.layer in layers[c.method, c.measure]:
            by_run[(c.condition, c.step, c.method, c.measure), c.seed].append(c.change)
    made: dict[Place, dict[int | None, float]] = defaultdict(dict)
    for (place, seed), changes in by_run.items():
        made[place][seed] = float(np.mean(changes))
    return dict(made)


def shared_layers(cells: Sequence[GridCell]) -> dict[tuple[str, str], tuple[int, ...]]:
    """The layers that every run of a method and measure has: only they are averaged, so that values are comparable."""
    by_run: dict[tuple[str, str], dict[tuple[str, int | None, int | None], set[int]]] = defaultdict(dict)
    for c in cells:
        by_run[c.method, c.measure].setdefault((c.condition, c.seed, c.step), set()).add(c.layer)
    return {key: tuple(sorted(set.intersection(*runs.values()))) for key, runs in by_run.items()}


def _interval(value_S: Sequence[float]) -> tuple[float | None, float | None]:
    """The t interval of a mean over seeds; none for one seed, or for seeds that do not differ."""
    if len(value_S) < 2 or float(np.ptp(value_S)) == 0.0:
        return None, None
    se = float(np.std(value_S, ddof=1)) / math.sqrt(len(value_S))
    return Student(float(np.mean(value_S)), se, len(value_S) - 1.0).interval(LEVEL)
