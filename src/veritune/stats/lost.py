"""What the scores that the machine lost could hide. One rule for claims and for `compare`.

A score that crashed, timed out or was never taken may have been anything. An answer stands only if it is the same with
every lost score at its worst for A, at its best for A, and with every second one at either end. The last filling has
the largest spread, which can widen an interval that both others leave narrow. The model's own failures keep their
failure value throughout.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from veritune.stats.reasons import is_models, lost_text
from veritune.stats.table import Floats, Missing, ScoreTable, direction_of, scale_of

FILLINGS = ("worst", "best", "mixed")


def lost_items(*tables: ScoreTable) -> frozenset[str]:
    """Items for which the machine, not the model, caused a missing score on any side."""
    gone: set[str] = set()
    for table in tables:
        if table.machine_missing_S_N is not None:
            gone |= {table.items[i] for i in np.flatnonzero(table.machine_missing_S_N.any(axis=0))}
    return frozenset(gone)


@dataclass(frozen=True, slots=True, eq=False)
class Filling:
    """Both arms with every lost score filled in. `name` says how: `worst` or `best` for A, or `mixed`."""

    name: str
    a: ScoreTable
    b: ScoreTable


def n_lost(*tables: ScoreTable) -> int:
    """The number of table cells in which the machine lost a score, or one of several samples."""
    return sum(int(t.machine_missing_S_N.sum()) for t in tables if t.machine_missing_S_N is not None)


def fillings(
    a: ScoreTable,
    b: ScoreTable,
    *,
    scale: tuple[float, float] | None = None,
    missing: Missing | None = None,
    zones: Sequence[str] = (),
) -> list[Filling]:
    """Both arms under each filling of the lost scores; empty if the machine lost nothing.

    `scale` is the declared range of scores. With `zones` each zone is filled in its own way, so a contrast between
    zones meets its extremes as well. Where neither the direction of the metric nor a failure value is known, the
    model's failures have no value either and are filled too. Raises ScoreError as `scale_of` does.
    """
    up = direction_of(a, b)
    a, b = (replace(_marked(t), higher_is_better=up) for t in (a, b))
    if up is None and (missing is None or missing.value is None):
        a, b = _all_lost(a), _all_lost(b)
    if not n_lost(a, b):
        return []
    (low, high), _ = scale_of(a, b, scale)
    worst, best = (high, low) if up is False else (low, high)
    found = []
    for ways in itertools.product(FILLINGS, repeat=max(1, len(zones))):
        a_N = _values(a, dict(zip(zones, ways)), ways[0], (worst, best))
        b_N = _values(b, dict(zip(zones, ways)), ways[0], (best, worst))
        found.append(Filling("/".join(ways), fill(a, a_N), fill(b, b_N)))
    return found


def corners(table: ScoreTable, scale: tuple[float, float]) -> list[tuple[str, ScoreTable]]:
    """The table with its lost scores at the low end of the scale, at the high end, and alternating, by name; the table
    alone if the machine lost nothing.
    """
    table = _marked(table)
    if not n_lost(table):
        return [("as it is", table)]
    ends = {"low": (scale[0],) * 2, "high": (scale[1],) * 2, "mixed": scale}
    gone = table.machine_missing_S_N
    assert gone is not None
    turn_N = np.cumsum(gone.any(axis=0)) % 2
    return [(name, fill(table, np.where(turn_N == 0, *two))) for name, two in ends.items()]


def _values(table: ScoreTable, by_zone: Mapping[str, str], default: str, ends: tuple[float, float]) -> Floats:
    """The filling value of each item; `mixed` alternates over the items that lost a score."""
    gone_N: NDArray[np.bool_] = np.zeros(len(table.items), dtype=np.bool_)
    if table.machine_missing_S_N is not None:
        gone_N = np.asarray(table.machine_missing_S_N.any(axis=0))
    turn_N = np.cumsum(gone_N) % 2
    zone_N = table.zone_N or (None,) * len(table.items)
    way_N = [by_zone.get(z or "", default) for z in zone_N]
    index = {"worst": 0, "best": 1}
    return np.array([ends[index.get(way, int(turn))] for way, turn in zip(way_N, turn_N)])


def fill(table: ScoreTable, value_N: Floats) -> ScoreTable:
    """The table with every score that the machine lost replaced by its item's value. Scored samples keep their
    weight in an item's mean."""
    gone_S_N = table.machine_missing_S_N
    if gone_S_N is None or not gone_S_N.any():
        return table
    value_S_N = np.broadcast_to(value_N, table.score_S_N.shape)
    missing = tuple({r: n for r, n in count.items() if is_models(r)} for count in table.missing)
    kept = table.samples
    if kept is None:
        score_S_N = np.where(gone_S_N & np.isnan(table.score_S_N), value_S_N, table.score_S_N)
        return replace(table, score_S_N=score_S_N, machine_missing_S_N=None, missing=missing, missing_at=())
    lost_S_N = kept.lost_S_N
    count_S_N = kept.count_S_N + lost_S_N
    total_S_N = np.nan_to_num(table.score_S_N) * kept.count_S_N + value_S_N * lost_S_N
    with np.errstate(invalid="ignore", divide="ignore"):
        score_S_N = np.where(lost_S_N > 0, total_S_N / count_S_N, table.score_S_N)
    samples = replace(
        kept, count_S_N=count_S_N, failed_S_N=kept.failed_S_N - lost_S_N, lost_S_N=np.zeros_like(lost_S_N)
    )
    return replace(
        table, score_S_N=score_S_N, samples=samples, machine_missing_S_N=None, missing=missing, missing_at=()
    )


def _marked(table: ScoreTable) -> ScoreTable:
    """The table with its lost scores marked. One made by hand without marks has lost what its reasons do not cover."""
    if table.machine_missing_S_N is not None or not table.n_missing:
        return table
    models = sum(n for count in table.missing for reason, n in count.items() if is_models(reason))
    return _all_lost(table) if models < table.n_missing else table


def _all_lost(table: ScoreTable) -> ScoreTable:
    """The table with every missing score treated as lost."""
    gone_S_N: NDArray[np.bool_] = np.isnan(table.score_S_N)
    if table.samples is not None:
        gone_S_N = table.samples.failed_S_N > 0
        kept = replace(table.samples, lost_S_N=table.samples.failed_S_N)
        return replace(table, samples=kept, machine_missing_S_N=gone_S_N)
    return replace(table, machine_missing_S_N=gone_S_N) if gone_S_N.any() else table


def could_change(a: ScoreTable, b: ScoreTable, answer: str, under: Iterable[str]) -> str:
    """Why `answer` may not hold; empty if every filling of the lost scores gives the same one."""
    return could_change_any((a, b), answer, under)


def could_change_any(tables: Sequence[ScoreTable], answer: str, under: Iterable[str]) -> str:
    """The same as `could_change`, for any number of arms."""
    if all(other == answer for other in under):
        return ""
    named = lost_text([count for table in tables for count in table.missing])
    if not named:
        return "scores are missing, and which end of the scale a failure is worth is not known"
    return (
        f"{n_lost(*tables)} scores are missing for reasons that are not the model's ({named}), and could change the "
        "answer"
    )
