"""The sentences of a verdict: the one that may be written, the ones that may not, and the grade of its evidence.

The one that may is plain and short: who, what, than whom, on what, both means, the gap with the interval that decided,
items and seeds. Method, p, denominators and scope stand in the estimates.

Numbers keep their denominators, p is never 0, "not significant" is never "equal", one seed speaks of an adapter and
several of a recipe. The grade follows a written rule from named evidence, never taste.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from veritune.config.fields import BASELINE, BENCHMARK
from veritune.config.thresholds import DEFAULTS, GradeThresholds
from veritune.counting import grouped, many, noun
from veritune.records import Estimate, JsonLike, Verdict

if TYPE_CHECKING:
    from veritune.config.claim import Claim
    from veritune.stats.paired import Comparison  # scipy: 60 MB and a second that a report does not need


def number(x: float) -> str:
    """Four decimals below 10, four significant digits above."""
    return f"{x:.4f}" if abs(x) < 10 else f"{x:.4g}"


def signed(x: float) -> str:
    """`number` with its sign."""
    return f"{x:+.4f}" if abs(x) < 10 else f"{x:+.4g}"


def p_text(p: float | None, floor: float | None = None) -> str:
    """`p = .0123`-like text; below 1e-4, or at a test's floor, an upper bound. Never 0."""
    if p is None:
        return "no p"
    if p < 1e-4:
        return "p < 1e-4"
    if floor is not None and p <= floor:
        return f"p < {floor:.1e}" if floor < 1e-3 else f"p ≤ {floor:.2g}"
    return f"p = {p:.2g}" if p >= 0.001 else f"p = {p:.1e}"


def rule_text(outcome: Mapping[str, Any], a: str, b: str) -> str:
    """A frozen rule and what it came to: `min_gap 0.01, every seed: no winner (gap +0.0053; seeds +0.01, -0.002)`."""
    frozen = outcome["rule"]
    terms = f"min_gap {frozen['min_gap']:g}" + (", every seed" if frozen.get("every_seed") else "")
    winner = {"a": f"{a} wins", "b": f"{b} wins"}.get(outcome["winner"], "no winner")
    seeds = outcome.get("per_seed") or []
    each = f"; by seed {', '.join(map(signed, seeds))}" if len(seeds) > 1 else ""
    why = f"; withheld: {outcome['withheld']}" if outcome.get("withheld") else ""
    return f"{terms}: {winner} (gap {signed(outcome['gap'])}{each}){why}"


def memorisation(zone_N: Sequence[str | None] | None, zone: str | None) -> str:
    """Why a comparison cannot distinguish learning from memorising; empty if its items can.

    `zone_N` are the zones of all items of the eval, `zone` the one that the comparison is about. Held-out strangers
    beside items of other zones do tell: a gain on them is not the memory of a trained family.
    """
    zones = sorted({z for z in zone_N or () if z})
    if zones == [BENCHMARK]:  # no trained row holds an item: the contamination gate has seen to it
        return ""
    if len(zones) < 2:
        return f"one zone ({zones[0]})" if zones else "no zones"
    if zone is None:
        return f"the zones {', '.join(zones)} were pooled"
    return "" if zone == "stranger" else f"one zone ({zone})"


def not_learned(name: str | None, untested: str) -> str:
    """The sentence that must not be written if memorisation was not tested."""
    return f"“{name} learned the style”, “the task”: whether it was learned or memorised was not tested: {untested}."


def interval_text(estimate: Estimate, margin: float | None = None) -> str:
    """`95 % interval [a, b]`, or why there is none. An end that clears 0 or the margin is printed so that it does."""
    if estimate.low is None or estimate.high is None:
        return "no interval: " + (estimate.warnings[-1] if estimate.warnings else "none can be given")
    places = max(4, _places(estimate, (0.0, margin or 0.0, -(margin or 0.0))))
    ends = f"[{_fixed(estimate.low, places, sign=True)}, {_fixed(estimate.high, places, sign=True)}]"
    return f"{100 * estimate.level:.4g} % interval {ends}"


def equivalence_text(details: Mapping[str, Any], first: Estimate, margin: float) -> str:
    """The interval that decides equivalence, at 1 − 2 alpha: `90 % interval [a, b]`."""
    inside = details["equivalence_interval"]
    return interval_text(replace(first, low=inside["low"], high=inside["high"], level=inside["level"]), margin)


def rate_text(arm: Mapping[str, Any], *, binary: bool) -> str:
    """A mean with its denominator; missing scores are counted in it and beside it."""
    runs, n = len(arm["runs"]), arm["n"]
    missing = runs * n - arm["scored"]
    tail = f", {missing} missing" if missing else ""
    over = f" over {runs} runs" if runs > 1 else ""
    if binary:
        return f"{number(arm['mean'])} ({arm['total']:.0f}/{runs * n}{over}{tail})"
    return f"{number(arm['mean'])} (mean of {runs * n}{over}{tail})"


# ---------------------------------------------------------------- the sentence that may be written


_VERBS: Mapping[tuple[str, str], str] = {
    ("improves", "supported"): "scores higher than",
    ("improves", "refuted"): "does not improve on",
    ("better_by", "supported"): "is better by more than {margin} than",
    ("better_by", "refuted"): "is not better by {margin} than",
    ("equivalent", "supported"): "is equivalent within ± {margin} to",
    ("equivalent", "refuted"): "differs by more than {margin} from",
    ("not_worse", "supported"): "is not worse by {margin} or more than",
    ("not_worse", "refuted"): "is worse by more than {margin} than",
    ("no_regression", "supported"): "shows no regression of {margin} or more against",
    ("no_regression", "refuted"): "regresses by more than {margin} against",
    ("differ", "supported"): "differs {by_margin}from",
    ("differ", "refuted"): "differs by less than {margin} from",
}

_QUESTION: Mapping[str, str] = {
    "improves": "scores higher than",
    "better_by": "is better by {margin} than",
    "equivalent": "is equivalent within ± {margin} to",
    "not_worse": "stays within {margin} below",
    "no_regression": "regresses by {margin} or more against",
    "differ": "differs {by_margin}from",
}


def sentence(claim: Claim, verdict: Verdict, comparison: Comparison | None, reason: str) -> str:
    """The sentence for a verdict: one plain sentence with its numbers."""
    if verdict.status == "untested":
        return f"The claim {claim.name!r} was not tested: {reason}"
    if claim.kind == "probe":
        return _probe_sentence(claim, verdict, reason)
    assert comparison is not None
    if claim.kind == "generalises":
        return _share_sentence(claim, verdict, comparison, reason)
    if claim.kind == "keeps":
        return _keeps_sentence(claim, verdict, comparison, reason)
    margin = None if claim.margin is None else f"{claim.margin:g}"
    words = {"margin": margin, "by_margin": f"by more than {margin} " if margin else ""}
    where, facts = _where(comparison, claim.zone), _facts(claim, verdict, comparison)
    if verdict.status == "inconclusive":
        question = _QUESTION[claim.kind].format(**words)
        runs = f", {seed_counts(comparison)}" if comparison.headline.estimand == "recipe" else ""
        who = str(claim.condition) if runs else subject(comparison, claim)
        why = f" ({reason})" if reason else ""
        text = f"Whether {who} {question} {other_side(claim)} on {where} stays open{why}: {facts}{runs}"
        return f"{text}{_outlook(verdict)}.{_needed(claim, verdict)}"
    verb = _VERBS[claim.kind, verdict.status].format(**words)
    who = subject(comparison, claim)
    return f"{who[0].upper()}{who[1:]} {verb} {other_side(claim)} on {where}: {facts}.{_needed(claim, verdict)}"


def other_side(claim: Claim) -> str:
    """The arm that the claim compares with, and how it was asked if that differs."""
    return claim.against if claim.against_eval is None else f"{claim.against} asked as {claim.against_eval}"


def _needed(claim: Claim, verdict: Verdict) -> str:
    """Whether tuning was needed at all, from a claim of a trained arm against the base asked in another way."""
    asked = claim.against_eval is not None and claim.against == BASELINE != claim.condition
    if not asked or claim.kind not in ("improves", "better_by"):
        return ""
    by = f" by {claim.margin:g} or more" if claim.margin is not None and claim.kind == "better_by" else ""
    said = {
        "supported": f"Tuning was needed: {other_side(claim)} falls short of it{by}",
        "refuted": f"Tuning was not needed: {other_side(claim)} does not fall short of it{by}",
    }
    return f" {said.get(verdict.status, 'Whether tuning was needed at all stays open')}."


def subject(comparison: Comparison, claim: Claim | None = None, *, adapter: bool = False) -> str:
    """The subject of the sentence: a recipe (`With 3 seeds, NAME`), or the measured adapters (`this adapter of NAME`).

    Without a claim, only the noun: `this recipe`, and of one run or several `this system`, `this set of systems`; only
    a study, or a caller that says `adapter`, knows that they are adapters.
    """
    many = comparison.pair.score_a_S_N.shape[0] > 1
    if comparison.headline.estimand == "recipe":
        return "this recipe" if claim is None else f"With {seed_counts(comparison)}, {claim.condition}"
    what = "adapter" if adapter or claim is not None else "system"
    if claim is not None and claim.condition == BASELINE:
        return f"the untouched {BASELINE}"
    noun = f"this set of {what}s" if many else f"this {what}"
    return noun if claim is None else f"{noun} of {claim.condition}"


def seed_counts(comparison: Comparison) -> str:
    """`2 seeds`, or both counts where the arms differ; with what was declared of their spread."""
    sides = [s for s in (comparison.details["a"], comparison.details["b"]) if not s["fixed"]]
    counts = dict.fromkeys(len(s["runs"]) for s in sides)
    declared = ""
    if len(sides) == 2 and comparison.options.equal_seed_spread:
        declared = " of a spread declared equal"
    elif len(sides) == 2 and comparison.options.shared_seeds:
        declared = " shared by both arms"
    return " against ".join(map(str, counts)) + f" seeds{declared}"


def _where(comparison: Comparison, zone: str | None) -> str:
    name = comparison.pair.a.eval or "this eval"
    return f"{zone} items of {name}" if zone else name


def _facts(claim: Claim, verdict: Verdict, comparison: Comparison) -> str:
    """Both means, the gap with the interval that decided, the items; what is missing where something is."""
    estimate = verdict.estimates[0]
    places = _places(estimate, (0.0, claim.margin or 0.0, -(claim.margin or 0.0)))
    a, b = (_fixed(comparison.details[side]["mean"], places) for side in ("a", "b"))
    gap = _fixed(estimate.value or 0.0, places, sign=True)
    return f"{a} against {b}, gap {gap}, {_interval(estimate, verdict, places)} ({_units(comparison)})"


def _places(estimate: Estimate, edges: tuple[float, ...]) -> int:
    """Decimals: 3, or as many more as it takes that no printed end crosses or touches an edge that it does not."""
    ends = [x for x in (estimate.low, estimate.high) if x is not None]
    for places in range(3, 8):
        if all((round(x, places) > edge) == (x > edge) and (round(x, places) < edge) == (x < edge)
               for x in ends for edge in edges):  # fmt: skip
            return places
    return 8


def _fixed(x: float, places: int, *, sign: bool = False) -> str:
    text = f"{x:{'+' if sign else ''}.{places}f}" if abs(x) < 10 else f"{x:{'+' if sign else ''}.4g}"
    return text.replace("-0." + "0" * places, "0." + "0" * places) if float(text) == 0 else text


def _interval(estimate: Estimate, verdict: Verdict, places: int) -> str:
    """`98.3 % interval [a, b]` at the level that decided; the number of claims where a correction widened it."""
    if estimate.low is None or estimate.high is None:
        return "no interval: " + (estimate.warnings[-1] if estimate.warnings else "none can be given")
    ends = f"[{_fixed(estimate.low, places)}, {_fixed(estimate.high, places)}]"
    return f"{level_text(estimate.level)} interval {ends}{_correction(verdict)}"


def level_text(level: float) -> str:
    """`95 %`, `98.3 %`: three digits."""
    return f"{100 * level:.3g} %" if level < 0.9995 else f"{100 * level:.5g} %"


def _correction(verdict: Verdict) -> str:
    """`, Holm over 3 claims` where the level is not the plain one."""
    if verdict.details.get("decided_at_alpha", verdict.alpha) == verdict.alpha:
        return ""
    name = "Holm" if verdict.details["correction"] == "confirmatory" else "Benjamini–Hochberg"
    return f", {name} over {verdict.details['claims_in_family']} claims"


def _units(comparison: Comparison) -> str:
    families = comparison.pair.n_families
    text = grouped(comparison.pair.n, "items") + (f" in {many(families, 'families')}" if families is not None else "")
    sides = [comparison.details[s] for s in ("a", "b")]
    expected = sum(len(s["runs"]) * s["n"] for s in sides)
    missing = expected - sum(s["scored"] for s in sides)
    return text + (f", {missing} of {expected:,} scores missing" if missing else "")


def _outlook(verdict: Verdict) -> str:
    return "" if verdict.detectable is None else f"; this design detects {verdict.detectable:.3g} or more"


def _probe_sentence(claim: Claim, verdict: Verdict, reason: str) -> str:
    """The value, the interval that decided, n and the correction; what is not known where something is not."""
    estimate = verdict.estimates[0]
    places = _places(estimate, (claim.threshold or 0.0,))
    asks = f"the declared threshold {claim.op} {claim.threshold:g}"
    verb = "meets" if verdict.status == "supported" else "does not meet"
    if verdict.details.get("exact"):
        return f"{claim.probe} is {estimate.value:.6g}, a count, not an estimate, and {verb} {asks}."
    who = f" of {estimate.scope}" if estimate.scope else ""
    value = f"{estimate.value:.6g}"
    if estimate.low is not None:
        decided = math.isclose(estimate.level, 1 - verdict.details.get("decided_at_alpha", verdict.alpha), abs_tol=1e-9)
        corrected = verdict if decided else replace(verdict, details={})
        value = f"{_fixed(estimate.value or 0.0, places)}, {_interval(estimate, corrected, places)}"
    facts = f"{claim.probe}{who} is {value} ({_probe_units(estimate)})"
    if verdict.status == "inconclusive":
        why = f": {reason}" if reason else ", its interval holds the threshold"
        return f"{facts}; whether it meets {asks} stays open{why}."
    return f"{facts} and {verb} {asks}."


def _probe_units(estimate: Estimate) -> str:
    alone = estimate.n == 1 and estimate.n_seeds is not None  # a number a run: its runs are all there is to count
    parts = [] if alone else [f"n = {estimate.n:,}"]
    parts += [many(estimate.n_clusters, "families")] if estimate.n_clusters is not None else []
    parts += [many(estimate.n_seeds, "seeds")] if estimate.n_seeds is not None else []
    return ", ".join(parts)


def _share_sentence(claim: Claim, verdict: Verdict, comparison: Comparison, reason: str) -> str:
    share, to, base = verdict.estimates[:3]
    places = _places(share, (claim.share or 0.0,))
    value = "not defined" if share.value is None else _fixed(share.value, places)
    bounds = _interval(share, verdict, places)
    gaps = f"gap {_fixed(to.value or 0.0, 3, sign=True)} on {to.n} {claim.to_zone} {noun(to.n, 'items')}, "
    gaps += f"{_fixed(base.value or 0.0, 3, sign=True)} on {base.n} {claim.from_zone} {noun(base.n, 'items')}"
    way = f"to {_where(comparison, claim.to_zone)}"
    what = f"at least {claim.share:g} of its {claim.from_zone} gain over {claim.against}"
    numbers = f"share {value}, {bounds}; {gaps}"
    return _of_a_share(claim, verdict, comparison, reason, ("carries", "does not carry"), (f"{what} {way}", numbers))


def _keeps_sentence(claim: Claim, verdict: Verdict, comparison: Comparison, reason: str) -> str:
    """What is kept and at what share of the gain, both gains, the deciding interval."""
    share, own, whole = verdict.estimates[:3]
    value = (
        "not defined" if share.value is None else _fixed(share.value, places := _places(share, (claim.share or 0.0,)))
    )
    bounds = _interval(share, verdict, places if share.value is not None else 3)
    gains = f"gain {_fixed(own.value or 0.0, 3, sign=True)} against {_fixed(whole.value or 0.0, 3, sign=True)}"
    numbers = f"share given up {value}, {bounds}; {gains} on {_where(comparison, claim.zone)} ({_units(comparison)})"
    beside = f"{verdict.details['kept']}{_kept_numbers(verdict)}"
    price = f"{claim.share:g} of the gain of {claim.reference} over {claim.against}"
    what = f"{beside} for at most {price}"
    return _of_a_share(claim, verdict, comparison, reason, ("keeps", "does not keep"), (what, numbers))


def _of_a_share(
    claim: Claim,
    verdict: Verdict,
    comparison: Comparison,
    reason: str,
    verbs: tuple[str, str],
    parts: tuple[str, str],
) -> str:
    """Who does what the claim says or does not, or that it stays open; `parts` are what, and the numbers."""
    (what, numbers), why = parts, f" ({reason})" if reason else ""
    if verdict.status == "inconclusive":
        recipe = comparison.headline.estimand == "recipe"
        who = str(claim.condition) if recipe else subject(comparison, claim)
        seeds = f", {seed_counts(comparison)}" if recipe else ""
        return f"Whether {who} {verbs[0]} {what} stays open{why}: {numbers}{seeds}."
    who = subject(comparison, claim)
    verb = verbs[0] if verdict.status == "supported" else verbs[1]
    return f"{who[0].upper()}{who[1:]} {verb} {what}{why}: {numbers}."


def kept_text(claim: Claim) -> str:
    """What the arm must keep, as declared."""
    if claim.probe is not None:
        return f"{claim.probe} {claim.op} {claim.threshold:g}"
    where = f"{claim.kept_zone} items of {claim.kept_eval}" if claim.kept_zone else str(claim.kept_eval)
    return f"{where} within {claim.margin:g} below {claim.against}"


def _kept_numbers(verdict: Verdict) -> str:
    """` (0.0120 [-0.0100, 0.0400])`: the kept quantity as measured."""
    kept = next(iter(verdict.estimates[3:4]), None)
    if kept is None or kept.value is None:
        return ""
    ends = "" if kept.low is None or kept.high is None else f" [{number(kept.low)}, {number(kept.high)}]"
    return f" ({number(kept.value)}{ends})"


# ---------------------------------------------------------------- the sentences that may not


def may_not(claim: Claim, verdict: Verdict, comparison: Comparison | None) -> tuple[str, ...]:
    """What must not be claimed from these records, each with the reason."""
    a, b = claim.condition, claim.against
    if claim.kind == "probe":
        return _probe_may_not(claim, verdict)
    out = [
        f"“{a} is better (or worse) than {b} in general”: one model and one eval were measured.",
        f"“{a} works because …”: an NLL or a score difference names no mechanism.",
    ]
    if comparison is None or comparison.headline.estimand != "recipe":
        out.append(f"“the recipe {a} …”: without several seeds on each trained side the numbers speak of adapters.")
    if verdict.status in ("inconclusive", "untested") and verdict.decision != "equivalent":
        shown = "no equivalence within a margin was shown"
        out.append(f"“{a} and {b} are equal”, “no difference”, “no effect”: a high p is not equality, {shown}.")
    if verdict.details.get("memorisation"):
        out.append(not_learned(a, str(verdict.details["memorisation"])))
    if verdict.status == "inconclusive":
        out.append(f"“{a} tends to be better”, “a trend”: the interval decides, not the point estimate.")
    if claim.kind in ("improves", "differ") and verdict.status == "supported" and claim.margin is None:
        out.append("“by a relevant amount”: no margin was declared, so the size is unresolved.")
    if claim.against_eval is not None:
        out.append("“prompting cannot do it”: one wording of the prompt was tried, and another may do better.")
    if claim.kind == "generalises":
        out.append(f"“{a} generalises” without the zones: the share speaks of {claim.from_zone} and {claim.to_zone}.")
    if claim.kind == "keeps":
        out.append(
            f"“{a} prevents it”, “{claim.reference} loses it”: that {claim.reference} loses it is another claim."
        )
        out.append(
            f"“free”, “at no cost”: up to {claim.share:g} of the gain may be gone, and other costs were not asked."
        )
    if verdict.exploratory:
        out.append("“as predicted”, “confirmed”: the claim is exploratory.")
    return tuple(out)


def _probe_may_not(claim: Claim, verdict: Verdict) -> tuple[str, ...]:
    name, estimate = claim.probe, next(iter(verdict.estimates), None)
    out = [f"“{name} caused the result”: a probe explains at most; only an intervention shows a cause."]
    exact = bool(verdict.details.get("exact"))
    if not exact and (estimate is None or (estimate.n_seeds or 1) < 2):
        out.append("“the recipe …”: one run was measured, another seed may read differently.")
    if verdict.status == "inconclusive":
        out.append(
            f"“{name} {claim.op} {claim.threshold:g}”, “about there”, “a trend”: the interval decides, not the value."
        )
    if verdict.exploratory:
        out.append("“as predicted”, “confirmed”: the claim is exploratory.")
    return tuple(out)


# ---------------------------------------------------------------- confidence


def confidence(
    verdict: Verdict,
    comparison: Comparison | None,
    evidence: Mapping[str, JsonLike],
    limits: GradeThresholds = DEFAULTS.grade,
    beside: Sequence[Comparison] = (),
) -> dict[str, JsonLike]:
    """The grade of a settled verdict and the named evidence behind it, each `good`, `weak` or `poor` with why.

    high: every item of evidence is good; moderate: none is poor and at most two are weak; low: otherwise; none: the
    claim is not settled.

    seeds        good from `limits.seeds_good` runs on every trained arm, weak from `seeds_weak`, poor below
    units        independent families (else items): good from `units_good`, weak from `units_weak`, poor below
    power        smallest detectable gap: good up to the margin, weak up to `power_weak` margins, poor above; for kinds
                 that need no margin and declare none: good when the interval decided, weak when it did not
    missing      good when nothing is missing, weak up to the share `missing_weak` of scores, poor above; `beside` too
    contamination  good when checked and clean, weak when unchecked, poor when found
    replication  good when repeated on another model or eval, weak when not tried, poor when it failed
    """
    named: dict[str, dict[str, str]] = {}
    if comparison is not None:
        named["seeds"] = _seed_evidence(comparison, limits)
        named["units"] = _unit_evidence(comparison, limits)
        named["power"] = _power_evidence(verdict, limits)
        named["missing"] = _missing_evidence((comparison, *beside), limits)
    elif verdict.kind == "probe" and verdict.estimates and not verdict.details.get("exact"):
        named |= _probe_evidence(verdict.estimates[0], limits)
    state = str(evidence.get("contamination") or "unchecked")
    grade = {"clean": "good", "found": "poor"}.get(state, "weak")
    named["contamination"] = {"state": grade, "why": f"eval contamination: {state}"}
    again = evidence.get("replicated")
    grade, why = "weak", "not repeated on another model or eval"
    if again is not None:
        grade, why = ("good", "repeated on another model or eval") if again else ("poor", "a replication failed")
    named["replication"] = {"state": grade, "why": why}
    states = [x["state"] for x in named.values()]
    if verdict.status in ("inconclusive", "untested"):
        overall = "none"
    elif "poor" in states or states.count("weak") > limits.most_weak:
        overall = "low"
    else:
        overall = "moderate" if "weak" in states else "high"
    return {"grade": overall, "evidence": named, "thresholds": limits.model_dump()}


def _seed_evidence(comparison: Comparison, limits: GradeThresholds) -> dict[str, str]:
    sides = [comparison.details[s] for s in ("a", "b")]
    least = min((len(s["runs"]) for s in sides if not s["fixed"]), default=1)
    state = _grade(least, limits.seeds_good, limits.seeds_weak)
    return {"state": state, "why": f"{many(least, 'seeds')} on the arm with the fewest"}


def _probe_evidence(estimate: Estimate, limits: GradeThresholds) -> dict[str, dict[str, str]]:
    """Seeds and independent units of a recorded quantity; a quantity without items has its runs alone."""
    seeds = estimate.n_seeds or 1
    state = _grade(seeds, limits.seeds_good, limits.seeds_weak)
    named = {"seeds": {"state": state, "why": many(seeds, "runs")}}
    units = estimate.n if estimate.n_clusters is None else estimate.n_clusters
    if units > 1:
        named["units"] = {
            "state": _grade(units, limits.units_good, limits.units_weak),
            "why": f"{units} independent units",
        }
    return named


def _unit_evidence(comparison: Comparison, limits: GradeThresholds) -> dict[str, str]:
    """Independent units: effective families where items come in families, so that one large family is not many."""
    effective = comparison.details.get("effective_families")
    units = comparison.pair.n if effective is None else effective
    why = many(units, "independent items")
    if effective is not None:
        why = f"{many(comparison.pair.n_families or 0, 'families')}, worth {effective:.3g}"
    return {"state": _grade(units, limits.units_good, limits.units_weak), "why": why}


def _grade(number: float, good: float, weak: float) -> str:
    return "good" if number >= good else "weak" if number >= weak else "poor"


def _power_evidence(verdict: Verdict, limits: GradeThresholds) -> dict[str, str]:
    gap, margin = verdict.detectable, verdict.margin
    if margin is None or verdict.kind == "keeps":  # its margin is that of the kept eval
        decided = verdict.status in ("supported", "refuted")
        why = "the interval decided the claim" if decided else "the interval did not decide the claim"
        return {"state": "good" if decided else "weak", "why": why}
    if gap is None:
        return {"state": "weak", "why": "detectable gap unknown"}
    state = "good" if gap <= margin else "weak" if gap <= limits.power_weak * margin else "poor"
    return {"state": state, "why": f"smallest detectable gap {number(gap)}, margin {margin:g}"}


def _missing_evidence(comparisons: Sequence[Comparison], limits: GradeThresholds) -> dict[str, str]:
    sides = [comparison.details[s] for comparison in comparisons for s in ("a", "b")]
    total = sum(len(s["runs"]) * s["n"] for s in sides)
    gone = total - sum(s["scored"] for s in sides)
    state = "good" if gone == 0 else "weak" if gone <= limits.missing_weak * total else "poor"
    return {"state": state, "why": f"{gone} of {total} scores missing"}
