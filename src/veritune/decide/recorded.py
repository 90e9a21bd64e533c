"""What decides a claim on a probe: a recorded quantity, with an interval at whatever level the correction leaves it.

    exact     a count or a setting (the share of trainable parameters): no uncertainty, no test, no share of alpha
    interval  at any level where the record holds what makes one: a standard error and degrees of freedom that
              reproduce the recorded ends, a function of the level, or the values of several runs
    at level  only the intervals that were recorded, at one level or several: one decides at an alpha of at least
              1 − its level (two-sided), never below
    number    no interval: whatever its value, a claim on it is inconclusive

Several runs: value = mean of the runs' values; the distance from it to either end joins two parts,

    seeds  t(S − 1) · sd of the S values / √S
    items  the mean of the runs' own distances (the runs share their items, so averaging runs does not shrink it)

as √(seeds² + items²) from three runs on and as the larger of the two with two runs (as `stats.seeds` for one arm; its
sd holds the noise of the items in each run, which is not subtracted). Both ends are taken by themselves (MOVER: Zou &
Donner 2008, Stat Med 27:1693). Quantities without items (a training loss, a weight norm) have the first part alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats.intervals import Spread, Student, t_quantile
from veritune.stats.seeds import ROUNDING

SINGLE = "a single recorded number: its uncertainty is not known"
LEVEL = 0.95
"""The level at which a quantity is shown before a claim asks for its own."""


# ---------------------------------------------------------------- shapes of uncertainty


@dataclass(frozen=True, slots=True)
class AtLevels(Spread):
    """An interval known at some levels only. Each one is valid for every lower level; above the highest level none is
    given.

    `rungs` are (level, low, high) by rising level, each inside the next.
    """

    rungs: tuple[tuple[float, float, float], ...]

    def end(self, alpha: float, side: int) -> float:
        enough = [rung for rung in self.rungs if _least_alpha(rung[0]) <= alpha]  # levels at least as high as asked for
        return (enough[0][2] if side > 0 else enough[0][1]) if enough else side * math.inf

    def tail(self, value: float, side: int) -> float:
        clear = [level for level, low, high in self.rungs if (low > value if side > 0 else high < value)]
        return _least_alpha(clear[-1]) if clear else 1.0

    @property
    def floor(self) -> float:
        return 2 * _least_alpha(self.rungs[-1][0])


def _least_alpha(level: float) -> float:
    """The one-sided error rate that a level leaves, less a rounding: 1 − 0.95 is not 0.05 in floating point."""
    return (1 - level) / 2 * (1 - 1e-9)


NESTED = (0.5, 0.8, 0.9, 0.95, 0.975, 0.99, 0.995, 0.999, 0.9999)
"""Levels whose ends a higher level must hold."""


@dataclass(frozen=True, slots=True)
class ByLevel(Spread):
    """An interval computed by a function of the level; `at` returns (low, high), infinite where there is no bound.

    It also holds the ends at the `NESTED` levels below it: correlated means joined by MOVER need not nest. Without a
    bound on one side it has none on the other: the interval that decides is the one that is shown.
    """

    at: Callable[[float], tuple[float, float]]

    def end(self, alpha: float, side: int) -> float:
        level = 1 - 2 * alpha
        ends = [self.at(level), *(self.at(lower) for lower in NESTED if lower < level)]
        if not all(math.isfinite(end) for pair in ends for end in pair):
            return side * math.inf
        return side * max(side * pair[side > 0] for pair in ends)


@dataclass(frozen=True, slots=True)
class Widened(Spread):
    """An interval recorded at one level, (level, low, high), whose ends move outwards by t·se at other levels: a t
    interval with an offset, or with a bound at an end.

    Below the recorded level the recorded ends stay: where a bound cut an end, nothing tells where it lay.
    """

    recorded: tuple[float, float, float]
    se: float
    df: float

    def end(self, alpha: float, side: int) -> float:
        level, low, high = self.recorded
        more = t_quantile(1 - alpha, self.df) - t_quantile(0.5 + level / 2, self.df)
        return (high if side > 0 else low) + side * max(0.0, more) * self.se


@dataclass(frozen=True, slots=True)
class OverRuns(Spread):
    """The mean of several runs' values. `items_S` are the runs' own intervals over items, None if there are no
    items."""

    value_S: tuple[float, ...]
    items_S: tuple[Spread, ...] | None

    def end(self, alpha: float, side: int) -> float:
        mean, runs = float(np.mean(self.value_S)), len(self.value_S)
        seeds = t_quantile(1 - alpha, runs - 1) * float(np.std(self.value_S, ddof=1)) / math.sqrt(runs)
        if self.items_S is None:
            return mean + side * seeds
        distances = [side * (spread.end(alpha, side) - v) for v, spread in zip(self.value_S, self.items_S)]
        items = max(0.0, float(np.mean(distances)))
        return mean + side * (max(seeds, items) if runs == 2 else math.hypot(seeds, items))


# ---------------------------------------------------------------- one recorded quantity


@dataclass(frozen=True, slots=True, eq=False)
class Recorded:
    """A recorded quantity. `spread` gives its interval at any level; if it is None, `lacks` says why there is none.

    `over_items`: the quantity is a statistic of rows, personas or other items, so that its interval must hold them;
    without, only several runs can give it one. `remedy` says what to run where an interval is missing or too low.
    """

    estimate: Estimate
    spread: Spread | None = None
    exact: bool = False
    over_items: bool = True
    lacks: str = ""
    remedy: str = ""


def number(name: str, value: float, *, exact: bool = False) -> Recorded:
    """A single number of one run, without items behind it: exact, or of unknown uncertainty."""
    method = "a count, not an estimate" if exact else "recorded number"
    estimate = Estimate(name, float(value), None, None, LEVEL, 1, method, warnings=() if exact else (SINGLE,))
    return Recorded(estimate, exact=exact, over_items=False, lacks="" if exact else SINGLE)


def missing(name: str, why: str) -> Recorded:
    """A quantity without a value; `why` says what is missing and which command makes it."""
    return Recorded(Estimate(name, None, None, None, LEVEL, 0, "not recorded", warnings=(why,)), lacks=why)


def from_estimate(estimate: Estimate, spread: Spread | None = None) -> Recorded:
    """The quantity in an estimate's record: `spread` if the caller knows it, else a t interval if se and df reproduce
    the recorded ends.

    Raises ScoreError for a damaged interval. An interval without width is no interval: identical values say nothing
    of the next one.
    """
    low, high = estimate.low, estimate.high
    if estimate.value is None or low is None or high is None:
        why = "; ".join(estimate.warnings) or SINGLE
        return Recorded(replace(estimate, low=None, high=None), lacks=why)
    finite = all(map(math.isfinite, (estimate.value, low, high)))
    if not (finite and low <= estimate.value <= high and 0 < estimate.level < 1):
        raise ScoreError(
            f"{estimate.name}: expected an interval around the value at a level between 0 and 1, found [{low}, "
            f"{high}] around {estimate.value} at {estimate.level}.",
            fix="Make the record again with the probe's own command.",
        )
    if low == high:
        why = "the recorded interval has no width: values that do not differ say nothing of the next one"
        return Recorded(replace(estimate, low=None, high=None, warnings=(*estimate.warnings, why)), lacks=why)
    own = AtLevels(((estimate.level, low, high),))
    return Recorded(estimate, spread or _ladder(estimate) or student_of(estimate) or own)


def _ladder(estimate: Estimate) -> AtLevels | None:
    """The intervals at several levels that the record holds (`details.intervals`); None where it holds none.

    They come before t: ends that se and df give at one level need not be theirs at another. A higher level takes the
    wider ends of those below it: two correlated means joined by MOVER need not give nested intervals.
    """
    more = estimate.details.get("intervals") or {}
    if not more:
        return None
    bounds = {float(level): (float(low), float(high)) for level, (low, high) in more.items()}
    outside = [level for level in bounds if not 0 < level < 1]
    if outside:
        raise ScoreError(
            f"{estimate.name}: expected intervals at levels between 0 and 1, found one at {outside[0]:g}.",
            fix="Make the record again with the probe's own command.",
        )
    bounds[estimate.level] = (float(estimate.low or 0.0), float(estimate.high or 0.0))
    low, high, rungs = math.inf, -math.inf, []
    for level in sorted(bounds):
        low, high = min(low, bounds[level][0]), max(high, bounds[level][1])
        rungs.append((level, low, high))
    return AtLevels(tuple(rungs))


def student_of(estimate: Estimate) -> Student | None:
    """The t interval that has the recorded ends at the recorded level; None if se and df do not reproduce them."""
    value, low, high, se, df = estimate.value, estimate.low, estimate.high, estimate.se, estimate.df
    if value is None or low is None or high is None or not se or not df or se < 0 or df < 0:
        return None
    half = t_quantile(0.5 + estimate.level / 2, df) * se
    near = max(abs(value - half - low), abs(value + half - high)) <= 1e-6 * half
    return Student(value, se, df) if near else None


def log_student_of(estimate: Estimate) -> Spread | None:
    """The same as `student_of` on a log scale: value·exp(± t·se)."""
    value, low, high = estimate.value, estimate.low, estimate.high
    if value is None or low is None or high is None or min(value, low, high) <= 0:
        return None
    logs = replace(estimate, value=math.log(value), low=math.log(low), high=math.log(high))
    student = student_of(logs)
    if student is None:
        return None
    return ByLevel(lambda level: tuple(map(_exp, student.interval(level))))  # type: ignore[arg-type,return-value]


def _exp(x: float) -> float:
    return math.exp(x) if x < 700 else math.inf


def as_recorded(name: str, quantity: Recorded | Estimate | float) -> Recorded:
    """A probe's value, in any accepted form, as a recorded quantity. Raises ScoreError if it has no value."""
    if isinstance(quantity, Estimate):
        quantity = from_estimate(quantity)
    elif not isinstance(quantity, Recorded):
        quantity = number(name, float(quantity))
    value = quantity.estimate.value
    if value is None:
        raise ScoreError(
            f"{name} has no value: {quantity.lacks or '; '.join(quantity.estimate.warnings) or 'no reason given'}."
        )
    if not math.isfinite(value):
        raise ScoreError(
            f"{name} is {value}.", fix="The run diverged, so it has no such value; use another checkpoint."
        )
    return quantity


# ---------------------------------------------------------------- several runs


def over_runs(name: str, parts: Mapping[str, Recorded], scope: str) -> Recorded:
    """One quantity from several runs, by run id: exact if all values are exact and equal, otherwise a mean with its
    interval.

    A run without a value, or without the interval that its items owe, takes the value or the interval from all.
    """
    runs = list(parts.values())
    first = runs[0]
    void = next((run_id for run_id, part in parts.items() if part.estimate.value is None), None)
    if void is not None:
        return missing(name, f"run {void}: {parts[void].lacks}")
    values = tuple(float(part.estimate.value or 0.0) for part in runs)
    if len(runs) == 1 or (all(part.exact for part in runs) and len(set(values)) == 1):
        return replace(first, estimate=replace(first.estimate, name=name, n_seeds=len(runs), scope=scope))
    spread, lacks = _joined(parts, values)
    low, high = spread.interval(LEVEL) if spread is not None else (None, None)
    bare = low is None or high is None or not (math.isfinite(low) and math.isfinite(high))
    own = [part.estimate for part in runs]
    notes = (w for e in own for w in e.warnings if w != SINGLE)
    estimate = Estimate(
        name=name,
        value=float(np.mean(values)),
        low=None if bare else low,
        high=None if bare else high,
        level=LEVEL,
        n=min(e.n for e in own),
        method="mean of runs, t over seeds" + (f", joined with {own[0].method}" if first.over_items else ""),
        scope=scope,
        n_clusters=min((e.n_clusters for e in own if e.n_clusters is not None), default=None),
        n_seeds=len(runs),
        warnings=tuple(dict.fromkeys([*notes, *([lacks] if lacks else [])])),
        details={"by_run": dict(zip(parts, values))},
    )
    remedy = next((part.remedy for part in runs if part.remedy), "")
    return Recorded(estimate, spread, over_items=first.over_items, lacks=lacks, remedy=remedy)


def _joined(parts: Mapping[str, Recorded], values: Sequence[float]) -> tuple[Spread | None, str]:
    """The interval of several runs, or why there is none."""
    if not next(iter(parts.values())).over_items:
        if max(values) - min(values) <= ROUNDING * max(map(abs, values)):
            return None, f"its {len(values)} runs gave the same value: there is no spread to learn from"
        return OverRuns(tuple(values), None), ""
    without = [(run_id, part.lacks) for run_id, part in parts.items() if part.spread is None]
    if without:
        run_id, why = without[0]
        return None, f"{len(without)} of {len(parts)} runs have no interval over their items (run {run_id}: {why})"
    return OverRuns(tuple(values), tuple(part.spread for part in parts.values() if part.spread is not None)), ""
