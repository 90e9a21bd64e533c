"""How several samples of an item become one score: Inspect's reducers, for every format that holds samples.

    mean, median, max       of the samples' values
    mode                    the commonest value; of equally common ones the first
    majority                the value of more than half of the samples, else none
    at_least_K              1 where at least K samples reach 1, else 0
    pass_at_K               chance that one of K drawn samples reaches 1: 1 - C(n-c, K) / C(n, K) (Chen et al. 2021)
    pass_k_K                chance that all of K drawn samples reach 1: C(c, K) / C(n, K) (Yao et al. 2024)

`mean` leaves the samples as they are, so that their spread is known. A sample that the model failed counts as the bad
end of the scale. A sample that the machine lost may be anything: the item has a score only where every value of it
gives the same one.
"""

from __future__ import annotations

import math
import re
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace

from veritune.counting import many
from veritune.errors import ScoreError
from veritune.stats.reasons import is_models
from veritune.stats.table import Columns

REDUCERS = ("mean", "median", "mode", "majority", "max", "at_least_K", "pass_at_K", "pass_k_K")

_WITH_K = re.compile(r"(at_least|pass_at|pass_k|pass@|pass\^)_?([1-9]\d{0,3})")
_SPELLED = {"pass@": "pass_at", "pass^": "pass_k"}

Reduce = Callable[[Sequence[float]], float | None]


def reducer(name: str) -> tuple[Reduce, int]:
    """The function for a reducer's name, and how many samples of an item it needs. Raises ScoreError for an unknown
    name.

    >>> reducer("pass_at_2")[0]([1.0, 0.0, 0.0])
    0.6666666666666667
    """
    plain: Mapping[str, Reduce] = {
        "mean": statistics.fmean,
        "median": statistics.median,
        "max": max,
        "mode": lambda values: Counter(values).most_common(1)[0][0],
        "majority": _majority,
    }
    if name in plain:
        return plain[name], 1
    match = _WITH_K.fullmatch(name)
    if match is None:
        raise ScoreError(f"expected a reducer of {', '.join(REDUCERS)}; found {name!r}.", fix="--reducer at_least_2")
    k = int(match[2])
    counted: Mapping[str, Reduce] = {
        "at_least": lambda values: float(_right(values) >= k),
        "pass_at": lambda values: 1 - math.comb(len(values) - _right(values), k) / math.comb(len(values), k),
        "pass_k": lambda values: math.comb(_right(values), k) / math.comb(len(values), k),
    }
    return counted[_SPELLED.get(match[1], match[1])], k


def _right(values: Sequence[float]) -> int:
    return sum(v >= 1 for v in values)


def _majority(values: Sequence[float]) -> float | None:
    value, times = Counter(values).most_common(1)[0]
    return value if 2 * times > len(values) else None


def reduce_samples(columns: Columns, name: str, stated: Mapping[str, float] | None = None) -> Columns:
    """One score per run and item. `stated` holds the log's own reduced values, which are used if no sample is missing.

    Raises ScoreError for an unknown reducer, for scores without several samples, and for items with too few.
    """
    function, k = reducer(name)
    groups: dict[tuple[str, str], list[int]] = {}
    for i, key in enumerate(zip(columns.run, columns.item)):
        groups.setdefault(key, []).append(i)
    if not (len(columns.sample) or len(columns.rater)) or len(groups) == len(columns.item):
        raise ScoreError(
            f"--reducer {name!r}: expected several samples of an item, found one each.", fix="Leave out --reducer."
        )
    if name == "mean":
        return columns
    few = next(((key, at) for key, at in groups.items() if len(at) < k), None)
    if few is not None:
        raise ScoreError(f"--reducer {name!r} needs {many(k, 'samples')} of an item; {few[0][1]!r} has {len(few[1])}.")
    present = [v for v in columns.value if v is not None]
    low, high = (0.0, 1.0) if all(0 <= v <= 1 for v in present) else (min(present), max(present))
    ends = (high, low) if columns.higher_is_better is False else (low, high)
    kept = [at[0] for at in groups.values()]
    reduced = [_reduced(columns, at, function, ends) for at in groups.values()]
    if stated:
        whole = [all(columns.value[i] is not None for i in at) for at in groups.values()]
        reduced = [
            (stated.get(key[1], found[0]), None) if sure and found[0] is not None else found
            for key, sure, found in zip(groups, whole, reduced)
        ]

    def part(column: Sequence[str | None]) -> Sequence[str | None]:
        return [column[i] for i in kept] if len(column) else ()

    return replace(
        columns,
        run=[columns.run[i] for i in kept],
        item=[columns.item[i] for i in kept],
        value=[value for value, _ in reduced],
        reason=[reason for _, reason in reduced],
        family=part(columns.family),
        zone=part(columns.zone),
        content=part(columns.content),
        sample=(),
        rater=(),
        notes=(*columns.notes, f"reducer {name}"),
    )


def _reduced(
    columns: Columns, at: Sequence[int], function: Reduce, ends: tuple[float, float]
) -> tuple[float | None, str | None]:
    """The reduced score of the samples at these places, or None and why there is none."""
    reasons = [columns.reason[i] if len(columns.reason) else None for i in at]
    values = [columns.value[i] for i in at]
    gone = [(v, r) for v, r in zip(values, reasons) if v is None]
    if len(gone) == len(at) and len({r for _, r in gone}) == 1:
        return None, gone[0][1]
    lost = next((r for _, r in gone if not is_models(r)), None)
    bad = ends[0]
    filled = [
        function([end if v is None and not is_models(r) else bad if v is None else v for v, r in zip(values, reasons)])
        for end in ends
    ]
    if filled[0] is None or filled[1] is None:
        return None, lost or "no_majority"
    if filled[0] != filled[1]:
        return None, lost
    return filled[0], None
