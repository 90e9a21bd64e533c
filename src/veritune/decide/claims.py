"""Declared claims, judged by their own rules, with the sentence that may be written and those that may not.

Gap is condition − against on the claim's eval and zone; CI95 stands for the interval at level 1 − alpha, CI90 for
that at 1 − 2·alpha; both come from the headline estimand (the recipe where seeds allow it).

    kind                       supported when                    refuted when
    improves                   CI95 above 0, p agrees            CI95 below 0; or CI90 inside ± a declared margin
    better_by                  CI95 above the margin             CI95 below the margin
    equivalent                 CI90 inside ± the margin          CI95 beyond ± the margin
    not_worse, no_regression   CI95 above − the margin           CI95 below − the margin
    differ                     CI95 beyond ± the margin (or 0)   CI90 inside ± the margin
    generalises                CI95 of the share carried over    the same below the declared share, or the seen gap
                               above the declared share          itself below 0
    probe                      CI95 of the recorded           CI95 fails it
                               quantity meets the threshold

    inconclusive  neither; or only a guess about missing scores would decide; or the seen gap of `generalises` holds 0;
                  or a probe's record holds no interval, or none at the level that decides
    untested      scores or a probe are missing, or the claim lacks what its rule needs; the reason says which

Confirmatory claims share alpha by Holm over all that were declared, tested or not; exploratory ones by
Benjamini–Hochberg. A claim's p is the least alpha at which its rule would settle it, in either direction. The alpha at
which the correction decides a claim is also that of the interval shown first: 1 − alpha, or 1 − 2·alpha where lying
inside the margin settled it. So the status and the interval cannot disagree; the uncorrected interval comes last. A
probe claim takes part like any other; an exact quantity (a count) is compared as it is and takes no share of alpha.
"""

from __future__ import annotations

import math
import operator
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
from scipy.optimize import brentq

from veritune.config.thresholds import DEFAULTS, GradeThresholds
from veritune.decide import wording
from veritune.decide.recorded import Recorded, as_recorded
from veritune.errors import ScoreError
from veritune.records import Estimate, Verdict
from veritune.stats import lost, multiplicity, power, rule, seeds
from veritune.stats.intervals import Spread, Student, Unknown, smallest_alpha
from veritune.stats.paired import Comparison, Options, compare_tables, paired_by_seed
from veritune.stats.reasons import unknown_reasons
from veritune.stats.table import Ints, Missing, Pair, ScoreTable, direction_of, pair

if TYPE_CHECKING:
    from veritune.config.claim import Claim  # judging reads a claim and makes none: compare has no use for its class

Status = Literal["supported", "refuted", "inconclusive", "untested"]
TableKey = tuple[str, str]


@dataclass(frozen=True, slots=True)
class Context:
    """What judging needs besides the tables.

    `probes` maps a probe's name to what was recorded: a quantity with its interval at any level, an Estimate (which
    decides at the levels that its own interval covers) or a bare number (which decides nothing). `scales` and
    `failure_values` are per eval.
    `evidence` maps a claim's name (or `*` for all) to named evidence: `contamination` (`clean`, `unchecked`,
    `found`), `replicated` (true, false, None). `grade` says what makes it good, weak or poor.
    """

    probes: Mapping[str, Recorded | Estimate | float] = field(default_factory=dict)
    scales: Mapping[str, tuple[float, float]] = field(default_factory=dict)
    failure_values: Mapping[str, float] = field(default_factory=dict)
    evidence: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    options: Options = field(default_factory=Options)
    grade: GradeThresholds = DEFAULTS.grade


@dataclass(frozen=True, slots=True)
class _Way:
    """One way to settle a claim: the least alpha at which it does, to what, and by which interval.

    `inside` marks the statement of two one-sided tests, which rests on the interval at 1 − 2·alpha.
    """

    p: float
    status: Status
    inside: bool = False
    reason: str = ""


@dataclass(frozen=True, slots=True)
class _Shown:
    """A tested claim at the alpha that decides it: estimates, the deciding one first, and what else bears on it."""

    estimates: tuple[Estimate, ...]
    reason: str = ""
    details: Mapping[str, Any] = field(default_factory=dict)
    fragile: str = ""


@dataclass(frozen=True, slots=True, eq=False)
class _Tested:
    """A claim's evidence before correction: the ways to settle it, or its status where no p belongs to it.

    `exact`: an exact quantity was compared, which is no test and takes no share of alpha.
    """

    claim: Claim
    ways: tuple[_Way, ...] = ()
    show: Callable[[float, _Way | None], _Shown] = lambda alpha, way: _Shown(())
    status: Status = "inconclusive"
    comparison: Comparison | None = None
    reason: str = ""
    warnings: tuple[str, ...] = ()
    exact: bool = False
    memorisation: str = ""

    @property
    def p(self) -> float | None:
        """The least alpha at which the claim is settled either way; None where it is no test."""
        return min(way.p for way in self.ways) if self.ways else None

    def way(self, alpha: float) -> _Way | None:
        """What settles the claim at `alpha`, supporting ways first."""
        return next((way for way in self.ways if way.p <= alpha), None)


@dataclass(frozen=True, slots=True)
class _Share:
    """What a correction leaves a claim: the alpha that decides it, its corrected p and the number of claims."""

    alpha: float
    p: float | None = None
    claims: int = 0


def judge(
    claims: Sequence[Claim], tables: Mapping[TableKey, ScoreTable], context: Context | None = None
) -> list[Verdict]:
    """One verdict per claim, in order. A claim that cannot be tested says why; nothing is raised for one claim's
    scores. Raises ScoreError when two claims share a name."""
    context = context or Context()
    names = [c.name for c in claims]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ScoreError(f"expected each claim to have its own name, found {', '.join(map(repr, twice))} twice.")
    tested = [_test(claim, tables, context) for claim in claims]
    return [_verdict(t, share, context) for t, share in zip(tested, _adjust(tested))]


def _adjust(tested: Sequence[_Tested]) -> list[_Share]:
    """What each claim's correction leaves it. Exact quantities stand outside."""
    out = [_Share(t.claim.alpha) for t in tested]
    for family in ("confirmatory", "exploratory"):
        members = [i for i, t in enumerate(tested) if t.claim.correction == family and not t.exact]
        with_p = [i for i in members if tested[i].p is not None]
        p, k = [tested[i].p or 0.0 for i in with_p], len(members)
        if not p:
            continue
        holm = family == "confirmatory"
        corrected = multiplicity.holm(p, k) if holm else multiplicity.benjamini_hochberg(p)
        for place, i in enumerate(with_p):
            alpha = tested[i].claim.alpha
            shares = multiplicity.holm_share(p, alpha, k) if holm else multiplicity.benjamini_hochberg_share(p, alpha)
            out[i] = _Share(shares[place], corrected[place], k)
    return out


# ---------------------------------------------------------------- testing one claim


def _test(claim: Claim, tables: Mapping[TableKey, ScoreTable], context: Context) -> _Tested:
    try:
        if claim.kind in ("probe", "generalises"):
            _no_rule(claim)
        if claim.kind == "probe":
            return _test_probe(claim, context)
        evals = sorted({name for _, name in tables})
        eval_name = claim.eval or (evals[0] if len(evals) == 1 else None)
        a, b = (_table(tables, name, eval_name) for name in (claim.condition, claim.against))
        zones = (claim.to_zone, claim.from_zone) if claim.kind == "generalises" else ()
        untested = wording.memorisation(a.zone_N, claim.zone) if claim.kind in _ABOUT_A_GAIN else ""
        if not zones:
            a, b = a.in_zone(claim.zone), b.in_zone(claim.zone)
        _check_direction(claim, a, b)
        tested = _guarded(_test_scores(claim, a, b, context), (a, b), zones, context)
        return replace(tested, memorisation=untested, warnings=(*tested.warnings, *_unknown(a, b)))
    except ScoreError as error:
        return _Tested(claim, status="untested", reason=str(error))


def _no_rule(claim: Claim) -> None:
    """Raises ScoreError for a frozen rule on a claim that has no gap of its own: it would be ignored silently."""
    if claim.rule is not None:
        raise ScoreError(
            f"a frozen rule looks at the gap between two arms; a claim of kind {claim.kind!r} has none of its own.",
            fix="Put the rule on a claim about a gap, such as improves.",
        )


def _test_scores(claim: Claim, a: ScoreTable, b: ScoreTable, context: Context) -> _Tested:
    return (_test_generalises if claim.kind == "generalises" else _test_gap)(claim, a, b, context)


_ABOUT_A_GAIN = frozenset({"improves", "better_by"})


def _unknown(a: ScoreTable, b: ScoreTable) -> list[str]:
    """A warning for each reason of a missing score that is not known."""
    found = unknown_reasons([*a.missing, *b.missing])
    return [f"missing for {reason!r}: a reason that is not known, so it counts as the machine's" for reason in found]


_EITHER_DIRECTION = frozenset({"equivalent", "differ"})


def _check_direction(claim: Claim, a: ScoreTable, b: ScoreTable) -> None:
    """Raises ScoreError for a claim about better or worse on scores that are not higher-is-better, as a study's are."""
    up = direction_of(a, b)
    if up or claim.kind in _EITHER_DIRECTION:
        return
    raise ScoreError(
        f"a claim of kind {claim.kind!r} reads higher scores as better; in {a.metric or a.eval or 'these scores'} "
        + ("lower is better." if up is False else "the direction is not known."),
        fix="State the direction of the scores, or swap the arms where lower is better.",
    )


def _guarded(tested: _Tested, arms: tuple[ScoreTable, ScoreTable], zones: Sequence[str], context: Context) -> _Tested:
    """The test, withheld at an alpha at which a score that the machine lost could change its status (`stats.lost`)."""
    claim, options = tested.claim, _options(arms[0].eval, context)
    fillings = lost.fillings(*arms, scale=options.scale, missing=options.missing, zones=zones)
    if not fillings:
        return tested
    others = [(f.name, _test_scores(claim, f.a, f.b, context)) for f in fillings]

    def show(alpha: float, way: _Way | None) -> _Shown:
        shown = tested.show(alpha, way)
        under = {name: _status(other, alpha) for name, other in others}
        why = lost.could_change(*arms, way.status, under.values()) if way else ""
        return replace(shown, fragile=why, details={**shown.details, "lost_bounds": under})

    return replace(tested, show=show)


def _status(tested: _Tested, alpha: float) -> Status:
    way = tested.way(alpha)
    return way.status if way else tested.status


def _table(tables: Mapping[TableKey, ScoreTable], condition: str | None, eval_name: str | None) -> ScoreTable:
    if not condition or not eval_name:
        raise ScoreError("the claim names no condition or no eval.")
    if (condition, eval_name) not in tables:
        raise ScoreError(f"no scores of {condition!r} on {eval_name!r}.", fix="Run and score it, then decide again.")
    return tables[condition, eval_name]


def _options(name: str, context: Context, policy: str = "fail") -> Options:
    value = context.failure_values.get(name)
    return replace(context.options, scale=context.scales.get(name), missing=Missing(policy, value))


_NEEDS_MARGIN = frozenset({"better_by", "equivalent", "not_worse", "no_regression"})


def _test_gap(claim: Claim, a: ScoreTable, b: ScoreTable, context: Context) -> _Tested:
    if claim.margin is None and claim.kind in _NEEDS_MARGIN:
        raise ScoreError(f"a claim of kind {claim.kind!r} needs a margin, declared before training.")
    comparison = compare_tables(a, b, _options(a.eval, context))
    rule.check_margin(claim.margin, comparison.pair.scale)
    ways = _ways(claim, comparison)
    frozen: dict[str, Any] = {}
    if claim.rule:
        outcome = rule.frozen_rule_tables(a, b, _options(a.eval, context), claim.rule, comparison)
        frozen = {"frozen_rule": outcome | {"a": claim.condition, "b": claim.against}}

    def show(alpha: float, way: _Way | None) -> _Shown:
        details = dict(frozen)
        if a.n_missing or b.n_missing:
            bounds = {policy: compare_tables(a, b, _options(a.eval, context, policy)) for policy in ("worst", "best")}
            details["missing_bounds"] = {policy: _bound(claim, c, alpha) for policy, c in bounds.items()}
        reason = "" if way else _disagreement(claim, comparison, alpha)
        return _Shown(_estimates(claim, comparison, alpha, way), reason, details)

    return _Tested(claim, ways, show, comparison=comparison)


def _level(alpha: float, way: _Way | None) -> float:
    """The level of the interval that decides."""
    return 1 - (2 if way and way.inside else 1) * alpha


def _estimates(claim: Claim, comparison: Comparison, alpha: float, way: _Way | None) -> tuple[Estimate, ...]:
    """The headline at the level that decided, the other estimands, last the headline at 1 − alpha if that differs."""
    first, level, plain = comparison.headline.estimand, _level(alpha, way), 1 - claim.alpha
    others = [comparison.estimate(plain, e) for e in comparison.results if e != first]
    last = [] if level == plain else [comparison.estimate(plain)]
    return (comparison.estimate(level), *others, *last)


def _disagreement(claim: Claim, comparison: Comparison, alpha: float) -> str:
    """Why a claim about 0 stays open although its interval excludes 0."""
    low, high = comparison.headline.spread.interval(1 - alpha)
    if claim.kind not in ("improves", "differ") or (claim.kind == "differ" and claim.margin) or low <= 0 <= high:
        return ""
    return f"the interval excludes 0 but a test beside it does not (p = {comparison.headline.spread.p():.2g})"


def _bound(claim: Claim, comparison: Comparison, alpha: float) -> dict[str, Any]:
    way = _Tested(claim, _ways(claim, comparison)).way(alpha)
    estimate = comparison.estimate(_level(alpha, way))
    status = way.status if way else "inconclusive"
    return {"gap": estimate.value, "low": estimate.low, "high": estimate.high, "status": status}


def _ways(claim: Claim, comparison: Comparison) -> tuple[_Way, ...]:
    """The ways to settle a claim on a gap, supporting ones first. Rules: see the module's table."""
    spread, m = comparison.headline.spread, claim.margin or 0.0
    agree = spread.p()

    def beyond(edge: float, side: int, status: Status) -> _Way:
        found = smallest_alpha(spread, edge, side=side)
        return _Way(max(found, agree) if edge == 0 else found, status)

    def inside(status: Status) -> _Way:
        ends = (smallest_alpha(spread, -m, side=1, sides=1), smallest_alpha(spread, m, side=-1, sides=1))
        return _Way(max(ends) if m > 0 else 1.0, status, inside=True)

    yes: Status = "supported"
    no: Status = "refuted"
    table: dict[str, Callable[[], tuple[_Way, ...]]] = {
        "improves": lambda: (beyond(0, 1, yes), beyond(0, -1, no), inside(no)),
        "better_by": lambda: (beyond(m, 1, yes), beyond(m, -1, no)),
        "equivalent": lambda: (inside(yes), beyond(m, 1, no), beyond(-m, -1, no)),
        "not_worse": lambda: (beyond(-m, 1, yes), beyond(-m, -1, no)),
        "no_regression": lambda: (beyond(-m, 1, yes), beyond(-m, -1, no)),
        "differ": lambda: (beyond(m, 1, yes), beyond(-m, -1, yes), inside(no)),
    }
    if claim.kind not in table:
        raise ScoreError(f"expected a claim kind of {', '.join(table)}, generalises or probe; found {claim.kind!r}.")
    return table[claim.kind]()


# ---------------------------------------------------------------- generalises


@dataclass(frozen=True, slots=True)
class _Difference(Spread):
    """Δ_to − ρ·Δ_from from valid intervals of both: distances squared and added, and never below the contrast's own t.

    Source of the first: Zou & Donner 2008, Stat Med 27:1693 (MOVER). It supposes that the zones' errors do not cancel;
    the t of the contrast, with families as clusters over both zones, stands guard where they do.
    """

    to: Spread
    base: Spread
    gap_K: tuple[float, float]
    share: float
    guard: Student

    def end(self, alpha: float, side: int) -> float:
        to, base = self.gap_K
        sign = side if self.share >= 0 else -side
        out = max(0.0, side * (self.to.end(alpha, side) - to))
        back = self.share * (self.base.end(alpha, -sign) - base)
        center = to - self.share * base
        return side * max(side * center + math.hypot(out, back), side * self.guard.end(alpha, side))


@dataclass(frozen=True, slots=True, eq=False)
class Carried:
    """How much of a gap on one zone carries to another: ρ = Δ_to/Δ_from, by inverting L(ρ) = Δ_to − ρ·Δ_from.

    `items` are the two zones' intervals over new items (to, from). Seeds are shared by the zones, so their part of L(ρ)
    is one contrast of the crossed model. Source: Fieller 1954, J R Stat Soc B 16:175. Without a Δ_from clear of 0 the
    share is unbounded.
    """

    parts: seeds.Crossed
    items: tuple[Spread, Spread]
    base: Spread
    recipe: bool
    equal: bool = False

    def contrast(self, share: float) -> Spread:
        """L(share) and its uncertainty. Strata: 0 is `to`, 1 is `from`."""
        if any(isinstance(x, Unknown) for x in self.items):
            return next(x for x in self.items if isinstance(x, Unknown))
        weight_K = np.array([1.0, -share])
        value, df = self.parts.item_variance(weight_K)
        center = float(weight_K @ self.parts.gap_K)
        gaps = (float(self.parts.gap_K[0]), float(self.parts.gap_K[1]))
        spread: Spread = _Difference(*self.items, gaps, share, Student(center, math.sqrt(value), df))
        added = seeds.seed_spread(self.parts, weight_K, equal=self.equal) if self.recipe else None
        return seeds.Combined(center, spread, added) if added else spread

    def interval(self, level: float) -> tuple[float, float]:
        """Bounds on ρ at `level`; infinite when Δ_from's own interval holds 0."""
        low, high = self.base.interval(level)
        if low <= 0 <= high:
            return -math.inf, math.inf
        return self._edge(level, -1), self._edge(level, 1)

    def _edge(self, level: float, side: int) -> float:
        def beyond(share: float) -> float:
            low, high = self.contrast(share).interval(level)
            return max(low, -high)

        center = float(self.parts.gap_K[0] / self.parts.gap_K[1])
        step = 1e-3
        while beyond(center + side * step) <= 0:
            step *= 2
            if step > 1e6:
                return side * math.inf
        inner = center if step == 1e-3 else center + side * step / 2
        return float(brentq(beyond, inner, center + side * step, xtol=2e-12)) if beyond(inner) < 0 else center


def _carried(matched: Pair, z_N: Ints, comparisons: Sequence[Comparison], options: Options) -> Carried:
    """From the pair of both zones, each item's zone (0 `to`, 1 `from`) and the comparisons of the two zones."""
    to, base = comparisons
    return Carried(
        parts=seeds.crossed(matched, z_N, shared=options.shared_seeds and not (matched.a.fixed or matched.b.fixed)),
        items=(to.results["checkpoints"].spread, base.results["checkpoints"].spread),
        base=base.headline.spread,
        recipe="recipe" in base.results,
        equal=options.equal_seed_spread,
    )


def _test_generalises(claim: Claim, a: ScoreTable, b: ScoreTable, context: Context) -> _Tested:
    share = claim.share
    if share is None or not math.isfinite(share):
        raise ScoreError("a claim of kind 'generalises' needs a share: the least part of the gap that must carry over.")
    options = _options(a.eval, context)
    zones = (claim.to_zone, claim.from_zone)
    comparisons = [compare_tables(a.in_zone(z), b.in_zone(z), options) for z in zones]
    matched = pair(*(_two_zones(t, zones) for t in (a, b)), scale=options.scale, missing=options.missing)
    z_N = np.array([zones.index(z) for z in matched.a.zone_N or ()])
    if options.shared_seeds:
        matched = paired_by_seed(matched)
    carried = _carried(matched, z_N, comparisons, options)
    base, contrast = carried.base, carried.contrast(share)
    gained = smallest_alpha(base, 0, side=1)
    ways = (
        _Way(max(gained, smallest_alpha(contrast, 0, side=1)), "supported"),
        _Way(max(gained, smallest_alpha(contrast, 0, side=-1)), "refuted"),
        _Way(smallest_alpha(base, 0, side=-1), "refuted", reason="there is no gain to carry over"),
    )

    def show(alpha: float, way: _Way | None) -> _Shown:
        bounded = gained <= alpha
        first = _share_estimate(claim, comparisons, carried, matched, alpha if bounded else None)
        reason = "" if bounded or way else f"the gap on {claim.from_zone} itself is not clear of 0"
        estimates = (first, *(c.estimate(1 - claim.alpha) for c in comparisons))
        if alpha != claim.alpha:
            plain = claim.alpha if gained <= claim.alpha else None
            estimates += (_share_estimate(claim, comparisons, carried, matched, plain),)
        return _Shown((replace(first, level=1 - alpha), *estimates[1:]), reason, {"share_declared": share})

    return _Tested(claim, ways, show, comparison=comparisons[0])


def _two_zones(table: ScoreTable, zones: tuple[str, str]) -> ScoreTable:
    keep = [i for i, z in enumerate(table.zone_N or ()) if z in zones]
    return table.take(np.array(keep, dtype=np.int64))


def _share_estimate(
    claim: Claim, comparisons: Sequence[Comparison], carried: Carried, matched: Pair, alpha: float | None
) -> Estimate:
    """The share carried over with its interval at 1 − alpha; unbounded when alpha is None."""
    low, high = carried.interval(1 - alpha) if alpha is not None else (-math.inf, math.inf)
    bounded = math.isfinite(low) and math.isfinite(high)
    base = float(carried.parts.gap_K[1])
    warning = f"unbounded: the gap on {claim.from_zone} is not clear of 0"
    return Estimate(
        name=f"share of the {claim.from_zone} gap carried to {claim.to_zone}",
        value=float(carried.parts.gap_K[0] / base) if base else None,
        low=low if bounded else None,
        high=high if bounded else None,
        level=1 - (claim.alpha if alpha is None else alpha),
        n=matched.n,
        method="Fieller-type inversion of the gap contrast, seeds × items",
        scope=comparisons[0].scope + f", relative to {comparisons[1].pair.n} items of zone {claim.from_zone}",
        n_clusters=matched.n_families,
        n_seeds=max(matched.score_a_S_N.shape[0], matched.score_b_S_N.shape[0]),
        warnings=() if bounded else (warning,),
    )


# ---------------------------------------------------------------- probes


_OPS: Mapping[str, Callable[[float, float], bool]] = {
    ">": operator.gt,
    ">=": operator.ge,
    "<": operator.lt,
    "<=": operator.le,
}


def _test_probe(claim: Claim, context: Context) -> _Tested:
    if claim.probe is None or claim.threshold is None or claim.op is None or claim.op not in _OPS:
        raise ScoreError(f"a probe claim needs a probe, a threshold and an op of {', '.join(_OPS)}.")
    if not math.isfinite(claim.threshold):
        raise ScoreError(f"expected a finite threshold, found {claim.threshold}.")
    if claim.probe not in context.probes:
        raise ScoreError(f"no record of the probe {claim.probe!r}.", fix="Run the probe, then decide again.")
    found = as_recorded(claim.probe, context.probes[claim.probe])
    facts = {"probe": claim.probe, "scope": found.estimate.scope, "exact": found.exact}
    if found.exact:
        status: Status = "supported" if _OPS[claim.op](found.estimate.value or 0.0, claim.threshold) else "refuted"
        return _Tested(claim, (), lambda alpha, way: _Shown((found.estimate,), details=facts), status, exact=True)
    ways = _probe_ways(claim, found)

    def show(alpha: float, way: _Way | None) -> _Shown:
        estimates = tuple(_probe_estimate(found, level) for level in dict.fromkeys((1 - alpha, 1 - claim.alpha)))
        reason = "" if way else _probe_reason(found, estimates[0], 1 - alpha)
        return _Shown(estimates, reason, facts)

    lacks = (found.lacks,) if found.spread is None else ()
    return _Tested(claim, ways, show, warnings=tuple(dict.fromkeys((*lacks, *found.estimate.warnings))))


def _probe_ways(claim: Claim, found: Recorded) -> tuple[_Way, ...]:
    """Supported where the whole interval meets the threshold, refuted where no part of it does."""
    if found.spread is None or claim.threshold is None or claim.op is None:
        return ()
    side = 1 if claim.op.startswith(">") else -1
    # An end that touches the threshold meets `>=` and `<=` and fails `>` and `<`: the edge moves by one float for it.
    beside = math.nextafter(claim.threshold, -side * math.inf)
    beyond = math.nextafter(claim.threshold, side * math.inf)
    meets, fails = (beside, claim.threshold) if claim.op.endswith("=") else (claim.threshold, beyond)
    return (
        _Way(smallest_alpha(found.spread, meets, side=side), "supported"),
        _Way(smallest_alpha(found.spread, fails, side=-side), "refuted"),
    )


def _probe_estimate(found: Recorded, level: float) -> Estimate:
    """The quantity with its interval at `level`, or as it was recorded where it has none there."""
    if found.spread is None:
        return found.estimate
    low, high = found.spread.interval(level)
    if not (math.isfinite(low) and math.isfinite(high)):
        return found.estimate
    return replace(found.estimate, low=low, high=high, level=level)


def _probe_reason(found: Recorded, shown: Estimate, level: float) -> str:
    """Why an open claim has no interval that could have settled it; empty where it has one."""
    if found.spread is None:
        return f"{found.lacks}; {found.remedy}" if found.remedy else found.lacks
    if shown.level >= level - 1e-9:
        return ""
    remedy = found.remedy or f"record its interval at {100 * level:.4g} %, or its standard error and degrees of freedom"
    return (
        f"it has an interval at {100 * shown.level:.4g} % and none at {100 * level:.4g} % (two-sided), where this "
        f"claim is decided; {remedy}"
    )


# ---------------------------------------------------------------- the verdict


def _needed(claim: Claim, comparison: Comparison, alpha: float) -> power.Settling | None:
    """Items, and seeds per arm, that settle the margin of an open claim with 80 % power, each as a range.

    Where the claim's edge is the margin also enough to tell the gap as observed from that edge.
    """
    margin, gap = claim.margin or 0.0, comparison.gap
    edges = {
        "better_by": abs(gap - margin),
        "equivalent": abs(abs(gap) - margin),
        "not_worse": abs(gap + margin),
        "no_regression": abs(gap + margin),
    }
    distances = [(margin, claim.kind == "equivalent")]
    if edges.get(claim.kind, 0.0) > 0:
        distances.append((edges[claim.kind], False))
    return power.to_settle(comparison, distances, alpha=alpha)


def _chance_again(claim: Claim, comparison: Comparison, way: _Way, alpha: float) -> float | None:
    """The chance that another study of this design settles the claim as this one did, at the gap as observed."""
    margin, gap = claim.margin or 0.0, comparison.gap
    if way.inside:
        return power.chance_again(comparison, margin, alpha=alpha, equivalence=True)
    edge = {"better_by": margin, "not_worse": -margin, "no_regression": -margin}.get(claim.kind, 0.0)
    distance = abs(gap) - margin if claim.kind in ("equivalent", "differ") else abs(gap - edge)
    return power.chance_again(comparison, distance, alpha=alpha)


def _verdict(t: _Tested, share: _Share, context: Context) -> Verdict:
    claim, comparison = t.claim, t.comparison
    way = t.way(share.alpha)
    shown = t.show(share.alpha, way)
    status = way.status if way else t.status
    reason = (way.reason if way else "") or shown.reason or t.reason or _withheld(comparison)
    if shown.fragile:
        status, reason = "inconclusive", shown.fragile
    details = dict(shown.details) | _correction(t, share)
    warnings = t.warnings + ((shown.fragile,) if shown.fragile else ())
    if t.memorisation:
        details["memorisation"] = t.memorisation
        warnings += (f"whether {claim.condition} learned or memorised was not tested: {t.memorisation}",)
    detectable = needed = decision = None
    if comparison is not None:
        details["scope"] = shown.estimates[0].scope
    if comparison is not None and claim.kind != "generalises":
        detectable = power.detectable_in(comparison, alpha=share.alpha)
        decision = rule.decide(comparison, claim.margin, share.alpha).word
        if claim.margin and status == "inconclusive":
            settling = _needed(claim, comparison, share.alpha)
            if settling is not None:
                needed = settling.items.high
                details |= _settling(settling)
        if way is not None and status != "inconclusive":
            details["chance_again"] = _chance_again(claim, comparison, way, share.alpha)
    evidence = {**context.evidence.get("*", {}), **context.evidence.get(claim.name, {})}
    draft = Verdict(
        claim=claim.name,
        kind=claim.kind,
        status=status,
        sentence="",
        estimates=shown.estimates,
        margin=claim.margin,
        alpha=claim.alpha,
        decision=decision,
        detectable=detectable,
        needed_n=needed,
        exploratory=claim.correction == "exploratory",
        warnings=warnings,
        details={**details, **({"reason": reason} if reason else {})},
    )
    return replace(
        draft,
        sentence=wording.sentence(claim, draft, comparison, reason),
        may_not=wording.may_not(claim, draft, comparison),
        confidence=wording.confidence(draft, comparison, evidence, context.grade),
    )


def _settling(found: power.Settling) -> dict[str, Any]:
    """Counts as [at the lower end, at the upper end] of the seed spread's 80 % range; None where none is enough."""
    out: dict[str, Any] = {"to_settle": found.text, "needed_items": [found.items.low, found.items.high]}
    return out if found.seeds is None else {**out, "needed_seeds": [found.seeds.low, found.seeds.high]}


def _withheld(comparison: Comparison | None) -> str:
    """Why no interval can be given at all."""
    spread = None if comparison is None else comparison.headline.spread
    return spread.reason if isinstance(spread, Unknown) else ""


def _correction(t: _Tested, share: _Share) -> dict[str, Any]:
    """How the claim's p was corrected, and the alpha at which it was decided."""
    if share.p is None:
        return {}
    return {
        "p_before_correction": t.p,
        "p_corrected": share.p,
        "claims_in_family": share.claims,
        "correction": t.claim.correction,
        "decided_at_alpha": share.alpha,
    }
