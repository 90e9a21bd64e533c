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
    keeps                      CI95 of the share given up     CI of the share above it, or what is kept is not (each
                               below the declared one, and    at a third of alpha), or the reference lost
                               the kept thing is kept

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

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from veritune.decide import wording
from veritune.decide.evidence import (
    ClaimContext,
    Presented,
    Status,
    TableKey,
    Tested,
    Way,
    asked_otherwise,
    options_of,
    table_of,
)
from veritune.decide.keeps import judge_keeps
from veritune.decide.quantities import judge_probe
from veritune.decide.shares import judge_share
from veritune.errors import ScoreError
from veritune.records import Estimate, JsonLike, Verdict
from veritune.stats import lost, multiplicity, power, rule
from veritune.stats.intervals import Unknown, smallest_alpha
from veritune.stats.paired import Comparison, compare_tables
from veritune.stats.reasons import unknown_reasons
from veritune.stats.table import ScoreTable, direction_of

if TYPE_CHECKING:
    from veritune.config.claim import Claim  # judging reads a claim and makes none: compare has no use for its class

__all__ = ["ClaimContext", "judge"]


@dataclass(frozen=True, slots=True)
class _Share:
    """What a correction leaves a claim: the alpha that decides it, its corrected p and the number of claims."""

    alpha: float
    p: float | None = None
    claims: int = 0


def judge(
    claims: Sequence[Claim], tables: Mapping[TableKey, ScoreTable], context: ClaimContext | None = None
) -> list[Verdict]:
    """One verdict per claim, in order. A claim that cannot be tested gets a verdict with the reason instead of an
    error. Raises ScoreError when two claims share a name. A key of `tables` is (condition, eval).

    >>> from veritune.config.claim import Claim
    >>> claim = Claim(name="better", kind="improves", condition="tuned")
    >>> judge([claim], {})[0].status
    'untested'
    """
    context = context or ClaimContext()
    names = [c.name for c in claims]
    if len(set(names)) < len(names):
        twice = sorted({n for n in names if names.count(n) > 1})
        raise ScoreError(f"expected each claim to have its own name, found {', '.join(map(repr, twice))} twice.")
    tested = [_test(claim, tables, context) for claim in claims]
    return [_verdict(t, share, context) for t, share in zip(tested, _adjust(tested))]


def _adjust(tested: Sequence[Tested]) -> list[_Share]:
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


def _test(claim: Claim, tables: Mapping[TableKey, ScoreTable], context: ClaimContext) -> Tested:
    try:
        if claim.kind in _WITHOUT_A_GAP:
            _no_rule(claim)
        if claim.kind == "probe":
            return judge_probe(claim, context)
        evals = sorted({name for _, name in tables})
        eval_name = claim.eval or (evals[0] if len(evals) == 1 else None)
        if claim.kind == "keeps":
            return _test_keeps(claim, eval_name, tables, context)
        a = table_of(tables, claim.condition, eval_name)
        b = table_of(tables, claim.against, claim.against_eval or eval_name)
        if claim.against_eval is not None and eval_name is not None:
            b = asked_otherwise(b, eval_name, claim)
        zones = (claim.to_zone, claim.from_zone) if claim.kind == "generalises" else ()
        untested = wording.memorisation(a.zone_N, claim.zone) if claim.kind in _ABOUT_A_GAIN else ""
        if not zones:
            a, b = a.in_zone(claim.zone), b.in_zone(claim.zone)
        _check_direction(claim, a, b)
        tested = _guarded(_test_scores(claim, a, b, context), (a, b), zones, context)
        return replace(tested, memorisation=untested, warnings=(*tested.warnings, *_unknown(a, b)))
    except ScoreError as error:
        return Tested(claim, status="untested", reason=str(error))


def _test_keeps(
    claim: Claim, eval_name: str | None, tables: Mapping[TableKey, ScoreTable], context: ClaimContext
) -> Tested:
    """The three arms of the claim, and what is kept judged as a claim of its own kind."""
    if claim.share is None or not 0 < claim.share < 1:
        raise ScoreError("a claim of kind 'keeps' needs a share below 1: how much of the gain may be given up.")
    whole = [table_of(tables, name, eval_name) for name in (claim.condition, claim.reference, claim.against)]
    c, r, b = (table.in_zone(claim.zone) for table in whole)
    for other in (r, b):
        _check_direction(claim, c, other)
    kept: dict[str, Any] = {"kind": "probe"}
    if claim.probe is None:
        kept = {"kind": "not_worse", "eval": claim.kept_eval, "zone": claim.kept_zone}
    tested = judge_keeps(claim, (c, r, b), _test(claim.model_copy(update=kept), tables, context), context)
    untested = wording.memorisation(whole[0].zone_N, claim.zone)
    return replace(tested, memorisation=untested, warnings=(*tested.warnings, *_unknown(c, r, b)))


def _no_rule(claim: Claim) -> None:
    """Raises ScoreError for a frozen rule on a claim that has no gap of its own: it would be ignored silently."""
    if claim.rule is not None:
        raise ScoreError(
            f"a frozen rule looks at the gap between two arms; a claim of kind {claim.kind!r} has none of its own.",
            fix="Put the rule on a claim about a gap, such as improves.",
        )


def _test_scores(claim: Claim, a: ScoreTable, b: ScoreTable, context: ClaimContext) -> Tested:
    return (judge_share if claim.kind == "generalises" else _test_gap)(claim, a, b, context)


_ABOUT_A_GAIN = frozenset({"improves", "better_by"})
_WITHOUT_A_GAP = frozenset({"probe", "generalises", "keeps"})


def _unknown(*tables: ScoreTable) -> list[str]:
    """A warning for each reason of a missing score that is not known."""
    unknown = unknown_reasons([count for table in tables for count in table.missing])
    return [f"missing for {reason!r}: a reason that is not known, so it counts as the machine's" for reason in unknown]


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


def _guarded(
    tested: Tested, arms: tuple[ScoreTable, ScoreTable], zones: Sequence[str], context: ClaimContext
) -> Tested:
    """The test, withheld at an alpha at which a score that the machine lost could change its status (`stats.lost`)."""
    claim, options = tested.claim, options_of(arms[0].eval, context)
    fillings = lost.fillings(*arms, scale=options.scale, missing=options.missing, zones=zones)
    if not fillings:
        return tested
    others = [(f.name, _test_scores(claim, f.a, f.b, context)) for f in fillings]

    def show(alpha: float, way: Way | None) -> Presented:
        shown = tested.show(alpha, way)
        under = {name: _status(other, alpha) for name, other in others}
        why = lost.could_change(*arms, way.status, under.values()) if way else ""
        return replace(shown, fragile=why, details={**shown.details, "lost_bounds": under})

    return replace(tested, show=show)


def _status(tested: Tested, alpha: float) -> Status:
    way = tested.way(alpha)
    return way.status if way else tested.status


_NEEDS_MARGIN = frozenset({"better_by", "equivalent", "not_worse", "no_regression"})


def _test_gap(claim: Claim, a: ScoreTable, b: ScoreTable, context: ClaimContext) -> Tested:
    if claim.margin is None and claim.kind in _NEEDS_MARGIN:
        raise ScoreError(f"a claim of kind {claim.kind!r} needs a margin, declared before training.")
    comparison = compare_tables(a, b, options_of(a.eval, context))
    rule.check_margin(claim.margin, comparison.pair.scale)
    ways = _ways(claim, comparison)
    frozen: dict[str, Any] = {}
    if claim.rule:
        outcome = rule.frozen_rule_tables(a, b, options_of(a.eval, context), claim.rule, comparison)
        frozen = {"frozen_rule": outcome | {"a": claim.condition, "b": wording.other_side(claim)}}

    def show(alpha: float, way: Way | None) -> Presented:
        details = dict(frozen)
        if a.n_missing or b.n_missing:
            bounds = {policy: compare_tables(a, b, options_of(a.eval, context, policy)) for policy in ("worst", "best")}
            details["missing_bounds"] = {policy: _bound(claim, c, alpha) for policy, c in bounds.items()}
        reason = "" if way else _disagreement(claim, comparison, alpha)
        return Presented(_estimates(claim, comparison, alpha, way), reason, details)

    return Tested(claim, ways, show, comparison=comparison)


def _level(alpha: float, way: Way | None) -> float:
    """The level of the interval that decides."""
    return 1 - (2 if way and way.inside else 1) * alpha


def _estimates(claim: Claim, comparison: Comparison, alpha: float, way: Way | None) -> tuple[Estimate, ...]:
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


def _bound(claim: Claim, comparison: Comparison, alpha: float) -> dict[str, JsonLike]:
    way = Tested(claim, _ways(claim, comparison)).way(alpha)
    estimate = comparison.estimate(_level(alpha, way))
    status = way.status if way else "inconclusive"
    return {"gap": estimate.value, "low": estimate.low, "high": estimate.high, "status": status}


def _ways(claim: Claim, comparison: Comparison) -> tuple[Way, ...]:
    """The ways to settle a claim on a gap, supporting ones first. Rules: see the module's table."""
    spread, m = comparison.headline.spread, claim.margin or 0.0
    agree = spread.p()

    def beyond(edge: float, side: int, status: Status) -> Way:
        least = smallest_alpha(spread, edge, side=side)
        return Way(max(least, agree) if edge == 0 else least, status)

    def inside(status: Status) -> Way:
        ends = (smallest_alpha(spread, -m, side=1, sides=1), smallest_alpha(spread, m, side=-1, sides=1))
        return Way(max(ends) if m > 0 else 1.0, status, inside=True)

    yes: Status = "supported"
    no: Status = "refuted"
    table: dict[str, Callable[[], tuple[Way, ...]]] = {
        "improves": lambda: (beyond(0, 1, yes), beyond(0, -1, no), inside(no)),
        "better_by": lambda: (beyond(m, 1, yes), beyond(m, -1, no)),
        "equivalent": lambda: (inside(yes), beyond(m, 1, no), beyond(-m, -1, no)),
        "not_worse": lambda: (beyond(-m, 1, yes), beyond(-m, -1, no)),
        "no_regression": lambda: (beyond(-m, 1, yes), beyond(-m, -1, no)),
        "differ": lambda: (beyond(m, 1, yes), beyond(-m, -1, yes), inside(no)),
    }
    if claim.kind not in table:
        raise ScoreError(
            f"expected a claim kind of {', '.join(table)}, generalises, keeps or probe; found {claim.kind!r}."
        )
    return table[claim.kind]()


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


def _chance_again(claim: Claim, comparison: Comparison, way: Way, alpha: float) -> float | None:
    """The chance that another study of this design settles the claim as this one did, at the gap as observed."""
    margin, gap = claim.margin or 0.0, comparison.gap
    if way.inside:
        return power.chance_again(comparison, margin, alpha=alpha, equivalence=True)
    edge = {"better_by": margin, "not_worse": -margin, "no_regression": -margin}.get(claim.kind, 0.0)
    distance = abs(gap) - margin if claim.kind in ("equivalent", "differ") else abs(gap - edge)
    return power.chance_again(comparison, distance, alpha=alpha)


def _verdict(t: Tested, share: _Share, context: ClaimContext) -> Verdict:
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
    if comparison is not None and claim.kind not in _WITHOUT_A_GAP:
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
        confidence=wording.confidence(draft, comparison, evidence, context.grade, t.beside),
    )


def _settling(settling: power.Settling) -> dict[str, JsonLike]:
    """Counts as [at the lower end, at the upper end] of the seed spread's 80 % range; None where none is enough."""
    out: dict[str, Any] = {"to_settle": settling.text, "needed_items": [settling.items.low, settling.items.high]}
    return out if settling.seeds is None else {**out, "needed_seeds": [settling.seeds.low, settling.seeds.high]}


def _withheld(comparison: Comparison | None) -> str:
    """Why no interval can be given at all."""
    spread = None if comparison is None else comparison.headline.spread
    return spread.reason if isinstance(spread, Unknown) else ""


def _correction(t: Tested, share: _Share) -> dict[str, JsonLike]:
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
