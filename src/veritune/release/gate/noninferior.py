"""Not worse than the base by more than a margin: the interval decides, and what the design cannot say stays open.

The decision is that of a `not_worse` claim (`decide.claims`): passed where the whole interval at 1 - alpha lies
above minus the margin, failed where it lies below, undecided otherwise, also where lost scores could turn it. A gate
must not pass on a comparison that could not have failed, so two brakes turn a pass into undecided:

    no headroom     the base scores so little that a loss of the margin cannot happen (and no gain is shown)
    nothing moved   no score differs and the outputs are not known to: perhaps the adapter was never loaded

Where lower scores are better the claim is made of the base against the candidate: a candidate is not worse by the
margin when the base's scores do not lie more than that below its own.

An open gate says whether these items could ever have passed it, the chance that they do at a true gap of 0, and how
many would settle it (`power`).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal

from veritune.errors import ScoreError
from veritune.stats.intervals import Unknown
from veritune.stats.table import GENERIC_METRICS, direction_of, scale_of

if TYPE_CHECKING:
    from veritune.records import JsonLike, Verdict
    from veritune.stats.paired import Comparison
    from veritune.stats.table import ScoreTable

Status = Literal["passed", "failed", "undecided"]
ROLES = ("candidate", "base")
"""What the arms are called in the claim, whatever their tables call them."""

_STATUS: Mapping[str, Status] = {"supported": "passed", "refuted": "failed"}


@dataclass(frozen=True, slots=True)
class Bar:
    """The margin in score units, the error rate, and whether any output differs between the arms (None: unknown)."""

    margin: float
    alpha: float = 0.05
    outputs_differ: bool | None = None
    scale: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Noninferior:
    """The result of one non-inferiority comparison."""

    status: Status
    message: str
    numbers: Mapping[str, Any]


def worst(statuses: list[Status]) -> Status:
    """The worst status: `failed` before `undecided` before `passed`; `undecided` for an empty list."""
    return next((s for s in ("failed", "undecided") if s in statuses), "passed") if statuses else "undecided"


def not_worse(candidate: ScoreTable, base: ScoreTable, bar: Bar) -> Noninferior:
    """Whether the candidate is not worse than the base on the same items. `undecided` for scores that cannot be
    compared, and for scores whose direction is unknown.
    """
    from veritune.config.claim import Claim
    from veritune.decide.claims import ClaimContext, judge
    from veritune.stats.paired import PairOptions, compare_tables

    name = candidate.eval or base.eval or "scores"
    try:
        up = _direction(candidate, base)
        ends, _ = scale_of(candidate, base, bar.scale)
    except ScoreError as exc:
        return Noninferior("undecided", str(exc), {})
    candidate, base = (replace(t, eval=t.eval or name, higher_is_better=up) for t in (candidate, base))
    first, second = ROLES if up else ROLES[::-1]
    claim = Claim(
        name="gate",
        kind="not_worse",
        condition=first,
        against=second,
        zone=None,
        margin=bar.margin,
        alpha=bar.alpha,
    )
    context = ClaimContext(scales={name: bar.scale} if bar.scale else {}, failure_values={} if up else {name: ends[1]})
    tables = {(arm, name): replace(t, higher_is_better=True) for arm, t in zip(ROLES, (candidate, base))}
    (verdict,) = judge([claim], tables, context)
    if verdict.status == "untested":
        return Noninferior("undecided", str(verdict.details.get("reason", "the scores cannot be compared")), {})
    comparison = compare_tables(candidate, base, PairOptions(scale=bar.scale))
    status: Status = _STATUS.get(verdict.status, "undecided")
    numbers = _numbers(verdict, comparison, bar, up)
    brake = _brake(comparison, bar) if status == "passed" else ""
    message = _message(numbers, bar)
    if brake:
        return Noninferior("undecided", f"{brake}; {message}", {**numbers, "brake": brake})
    if status == "undecided":
        message += f"; {_why_open(verdict, comparison, numbers, bar)}"
    return Noninferior(status, message, numbers)


def _direction(candidate: ScoreTable, base: ScoreTable) -> bool:
    """Whether higher is better. A name that says nothing (`score`) is taken as the suites' contract has it.

    Raises ScoreError for a metric of unknown direction: a gate that guesses can pass a regression.
    """
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


def _turned(ends: Mapping[str, Any]) -> dict[str, JsonLike]:
    """A gap and its interval of base − candidate as those of candidate − base; what else is there stays."""
    minus = {k: None if ends.get(k) is None else 0.0 - ends[k] for k in ("gap", "low", "high")}  # no -0.000 on a screen
    return {**ends, "gap": minus["gap"], "low": minus["high"], "high": minus["low"]}


def _numbers(verdict: Verdict, comparison: Comparison, bar: Bar, up: bool) -> dict[str, JsonLike]:
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
        "needed_items": verdict.details.get("needed_items"),
        "reachable": reachable(comparison, bar.margin, bar.alpha),
        "chance": chance_to_pass(comparison, bar.margin, bar.alpha),
        "warnings": list(estimate.warnings),
    }


def reachable(comparison: Comparison, margin: float, alpha: float) -> bool:
    """False if it is proved that these items cannot pass: not even identical outputs would."""
    from veritune.stats import power

    return power.can_show_equivalence(comparison, margin, alpha=alpha / 2)


def chance_to_pass(comparison: Comparison, margin: float, alpha: float) -> float | None:
    """The chance that another comparison of this design passes when the true gap is 0; None if unknown."""
    from veritune.stats import power

    return power.chance_again(comparison, margin, alpha=alpha)


def least_items(margin: float, alpha: float = 0.05, *, binary: bool = True, width: float = 1.0) -> int:
    """The number of independent items below which the gate cannot pass even if no item differs.

    Binary scores of one run a side: the least n with z²/(n + z²) < margin. Graded scores and several runs: the least
    with (1 − (alpha/2)^{1/n})·width < margin.
    """
    from veritune.stats.power import least_items_equal

    return least_items_equal(margin, alpha / 2, binary=binary, width=width)


def _why_open(verdict: Verdict, comparison: Comparison, numbers: Mapping[str, JsonLike], bar: Bar) -> str:
    edge = "minus the margin" if numbers["higher_is_better"] else "the margin"
    reason = str(verdict.details.get("reason") or f"the interval reaches across {edge}")
    if not numbers["reachable"]:
        return f"{reason}; {_too_few(comparison, bar)}"
    chance, needed = numbers["chance"], verdict.details.get("to_settle")
    likely = "" if chance is None else f"; at a true gap of 0 these items pass with a chance of {chance:.2f}"
    return reason + likely + (f"; to settle it: {needed}" if needed else "")


def _too_few(comparison: Comparison, bar: Bar) -> str:
    """Why not even identical outputs would pass."""
    pair, spread = comparison.pair, comparison.headline.spread
    if isinstance(spread, Unknown) and pair.n_families is not None:
        return f"this margin cannot be shown, whatever the outcome ({spread.reason})"
    width = pair.scale[1] - pair.scale[0]
    single = len(pair.score_a_S_N) == len(pair.score_b_S_N) == 1
    least = least_items(bar.margin, bar.alpha, binary=pair.is_binary and single, width=width)
    return f"under {least} items this margin cannot be shown, whatever the outcome"


def _message(numbers: Mapping[str, Any], bar: Bar) -> str:
    ends = "no interval can be given"
    if numbers["low"] is not None:
        ends = f"{100 * numbers['level']:g} % interval {numbers['low']:+.3f} to {numbers['high']:+.3f}"
    way = "" if numbers["higher_is_better"] else ", lower is better"
    text = f"{numbers['candidate']:.3f} against {numbers['base']:.3f} on {numbers['n']} items"
    lost = sum(numbers["missing"].values())
    text += f": gap {numbers['gap']:+.3f}, {ends}, margin {bar.margin:g}{way}"
    return text + (f", {lost} missing" if lost else "")
