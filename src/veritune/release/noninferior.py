"""Not worse than the base by more than a margin: the interval decides, and what the design cannot say stays open.

The decision is that of a `not_worse` claim (`decide.claims`): passed where the whole interval at 1 - alpha lies
above minus the margin, failed where it lies below, undecided otherwise, also where lost scores could turn it. A gate
must not pass on a comparison that could not have failed, so two brakes turn a pass into undecided:

    no headroom     the base scores so little that a loss of the margin cannot happen (and no gain is shown)
    nothing moved   no score differs and the outputs are not known to: perhaps the adapter was never loaded

Where lower scores are better the claim is made of the base against the candidate: a candidate is not worse by the
margin when the base's scores do not lie more than that below its own.

An open gate says whether these items could ever have passed it (`power`), and how many would settle it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from veritune.errors import ScoreError

if TYPE_CHECKING:
    from veritune.records import Verdict
    from veritune.stats.paired import Comparison
    from veritune.stats.table import ScoreTable

Status = Literal["passed", "failed", "undecided"]
_STATUS: Mapping[str, Status] = {"supported": "passed", "refuted": "failed"}


@dataclass(frozen=True, slots=True)
class Bar:
    """The margin in score units, the error rate, and whether any output differs between the arms (None: unknown)."""

    margin: float
    alpha: float = 0.05
    outputs_differ: bool | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Found:
    """What one comparison came to."""

    status: Status
    message: str
    numbers: Mapping[str, Any]


def worst(statuses: list[Status]) -> Status:
    """`failed` before `undecided` before `passed`; nothing at all is `undecided`."""
    return next((s for s in ("failed", "undecided") if s in statuses), "passed") if statuses else "undecided"


def not_worse(candidate: ScoreTable, base: ScoreTable, bar: Bar) -> Found:
    """Candidate against base on the same items. Scores that cannot be compared are `undecided`, and scores of which
    nothing says whether higher is better."""
    from veritune.decide.claims import ClaimSpec, Context, judge
    from veritune.stats.paired import Options, compare_tables
    from veritune.stats.table import scale_of

    name = candidate.eval or base.eval or "scores"
    arms = (candidate.condition or "candidate", base.condition or "base")
    try:
        up = _direction(candidate, base)
        ends = scale_of(candidate, base, bar.scale)
    except ScoreError as exc:
        return Found("undecided", str(exc), {})
    candidate, base = (replace(t, eval=t.eval or name, higher_is_better=up) for t in (candidate, base))
    first, second = arms if up else arms[::-1]
    claim = ClaimSpec("gate", "not_worse", name, first, second, None, bar.margin, bar.alpha)
    context = Context(scales={name: bar.scale} if bar.scale else {}, failure_values={} if up else {name: ends[1]})
    tables = {(arm, name): replace(t, higher_is_better=True) for arm, t in zip(arms, (candidate, base))}
    (verdict,) = judge([claim], tables, context)
    if verdict.status == "untested":
        return Found("undecided", str(verdict.details.get("reason", "the scores cannot be compared")), {})
    comparison = compare_tables(candidate, base, Options(scale=bar.scale))
    status: Status = _STATUS.get(verdict.status, "undecided")
    numbers = _numbers(verdict, comparison, bar, up)
    brake = _brake(comparison, bar) if status == "passed" else ""
    message = _message(numbers, bar)
    if brake:
        return Found("undecided", f"{brake}; {message}", {**numbers, "brake": brake})
    if status == "undecided":
        message += f"; {_why_open(verdict, numbers, bar)}"
    return Found(status, message, numbers)


def _direction(candidate: ScoreTable, base: ScoreTable) -> bool:
    """Whether higher is better. A name that says nothing (`score`) is taken as the suites' contract has it.

    Raises ScoreError for a metric of unknown direction: a gate that guesses can pass a regression.
    """
    from veritune.stats.table import GENERIC_METRICS, direction_of

    up = direction_of(candidate, base)
    metric = candidate.metric if candidate.metric not in GENERIC_METRICS else base.metric
    if up is None and metric not in GENERIC_METRICS:
        raise ScoreError(f"nothing says whether higher {metric} is better.", fix="Set `higher_is_better` in the suite.")
    return up is not False


def _brake(comparison: Comparison, bar: Bar) -> str:
    """Why a pass would mean nothing; empty when it means something."""
    mean, (low, high) = float(comparison.details["b"]["mean"]), comparison.pair.scale
    ends, up = comparison.headline.spread.interval(1 - bar.alpha), comparison.pair.higher_is_better is not False
    gained = ends[0] > 0 if up else ends[1] < 0
    if (mean - low if up else high - mean) <= bar.margin and not gained:
        return f"the base scores {'only ' if up else ''}{mean:.3g}: a loss of {bar.margin:g} could hardly show here"
    if not comparison.pair.diff_N.any() and not bar.outputs_differ:
        what = "no output differs" if bar.outputs_differ is False else "no score differs and the outputs are not known"
        return f"{what}: was the adapter loaded?"
    return ""


def _turned(ends: Mapping[str, Any]) -> dict[str, Any]:
    """A gap and its interval of base − candidate as those of candidate − base; what else is there stays."""
    minus = {k: None if ends.get(k) is None else -ends[k] for k in ("gap", "low", "high")}
    return {**ends, "gap": minus["gap"], "low": minus["high"], "high": minus["low"]}


def _numbers(verdict: Verdict, comparison: Comparison, bar: Bar, up: bool) -> dict[str, Any]:
    """What the gate looked at; gaps are candidate − base in the scores' own units."""
    estimate, bounds = verdict.estimates[0], verdict.details.get("missing_bounds")
    ends: dict[str, Any] = {"gap": estimate.value, "low": estimate.low, "high": estimate.high}
    if not up:
        ends, bounds = _turned(ends), bounds and {policy: _turned(bound) for policy, bound in bounds.items()}
    sides = {side: comparison.details[key] for side, key in (("candidate", "a"), ("base", "b"))}
    missing = {side: sum(sum(m.values()) for m in found["missing"]) for side, found in sides.items()}
    return {
        **ends,
        "higher_is_better": up,
        "level": estimate.level,
        "n": estimate.n,
        "method": estimate.method,
        "families": estimate.n_clusters,
        "candidate": sides["candidate"]["mean"],
        "base": sides["base"]["mean"],
        "missing": missing,
        "missing_bounds": bounds,
        "differing": int((comparison.pair.diff_N != 0).sum()),
        "detectable": verdict.detectable,
        "needed_n": verdict.needed_n,
        "reachable": reachable(comparison, bar.margin, bar.alpha),
        "warnings": list(estimate.warnings),
    }


def reachable(comparison: Comparison, margin: float, alpha: float) -> bool | None:
    """Whether a design like this one can pass with a true gap of 0: half its expected interval is under the margin.

    `power.plan` at alpha/2, whose two one-sided tests use the interval at 1 - alpha. Where no item differs the best
    case is the score interval of an empty table, ±z²/(n + z²). None where the spread is unknown.
    """
    from veritune.stats import power
    from veritune.stats.intervals import Unknown

    if isinstance(comparison.headline.spread, Unknown):
        return None
    try:
        design = power.design_from(comparison, margin=margin, alpha=alpha / 2)
    except ScoreError:
        return comparison.headline.spread.interval(1 - alpha)[1] < margin
    return power.plan(design)[0].can_say_equivalent


def least_items(margin: float, alpha: float = 0.05) -> int:
    """Binary items below which the gate cannot pass even if no item differs: the least n with z²/(n + z²) < margin."""
    from veritune.stats.intervals import normal_quantile

    z = normal_quantile(1 - alpha / 2)
    return math.floor(z * z * (1 - margin) / margin) + 1


def _why_open(verdict: Verdict, numbers: Mapping[str, Any], bar: Bar) -> str:
    reason = str(verdict.details.get("reason") or "the interval reaches across minus the margin")
    least = least_items(bar.margin, bar.alpha)
    if numbers["n"] < least:
        return f"{reason}; under {least} items this margin cannot be shown, whatever comes out"
    if numbers["reachable"] is False:
        return f"{reason}; with these items the margin is out of reach"
    return reason + (f"; about {verdict.needed_n:,} items would settle it" if verdict.needed_n else "")


def _message(numbers: Mapping[str, Any], bar: Bar) -> str:
    ends = "no interval can be given"
    if numbers["low"] is not None:
        ends = f"{100 * numbers['level']:g} % interval {numbers['low']:+.3f} to {numbers['high']:+.3f}"
    way = "" if numbers["higher_is_better"] else ", lower is better"
    text = f"{numbers['candidate']:.3f} against {numbers['base']:.3f} on {numbers['n']} items"
    lost = sum(numbers["missing"].values())
    text += f": gap {numbers['gap']:+.3f}, {ends}, margin {bar.margin:g}{way}"
    return text + (f", {lost} missing" if lost else "")
