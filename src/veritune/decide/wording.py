"""The sentences of a verdict: the one that may be written, the ones that may not, and the grade of its evidence.

Numbers keep their denominators, p is never 0, "not significant" is never "equal", one seed speaks of an adapter and
several of a recipe. The grade follows a written rule from named evidence, never taste.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from veritune.decide.paired import FEW_FAMILIES, Comparison
from veritune.records import Estimate, Verdict

if TYPE_CHECKING:
    from veritune.decide.claims import ClaimLike


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


def interval_text(estimate: Estimate) -> str:
    """`95 % interval [a, b]`, or why there is none."""
    if estimate.low is None or estimate.high is None:
        return "no interval: " + (estimate.warnings[-1] if estimate.warnings else "none can be given")
    return f"{100 * estimate.level:.4g} % interval [{signed(estimate.low)}, {signed(estimate.high)}]"


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


def sentence(claim: ClaimLike, verdict: Verdict, comparison: Comparison | None, reason: str) -> str:
    """The sentence for a verdict, with numbers and scope."""
    if verdict.status == "untested":
        return f"The claim {claim.name!r} was not tested: {reason}"
    if claim.kind == "probe":
        return _probe_sentence(claim, verdict)
    if claim.kind == "generalises":
        return _share_sentence(claim, verdict, reason)
    assert comparison is not None
    margin = None if claim.margin is None else f"{claim.margin:g}"
    words = {"margin": margin, "by_margin": f"by more than {margin} " if margin else ""}
    who, whom = f"{subject(comparison)} {claim.condition}", str(claim.against)
    where = f"on {claim.eval}" + (f", zone {claim.zone}" if claim.zone else "")
    facts = _facts(comparison, verdict.estimates[0])
    if verdict.status == "inconclusive":
        question = _QUESTION[claim.kind].format(**words)
        why = f" ({reason})" if reason else ""
        return (
            f"Whether {who} {question} {whom} {where} stays open{why}: {facts}.{_outlook(verdict, comparison.pair.n)}"
        )
    verb = _VERBS[claim.kind, verdict.status].format(**words)
    return f"{who[0].upper()}{who[1:]} {verb} {whom} {where}: {facts}."


def subject(comparison: Comparison) -> str:
    """`this recipe` when seeds were replicated on every trained arm and that estimand is used, else `this adapter`."""
    if comparison.headline.estimand == "recipe":
        return "this recipe"
    many = comparison.pair.score_a_S_N.shape[0] > 1
    return "these adapters" if many else "this adapter"


def _facts(comparison: Comparison, estimate: Estimate) -> str:
    binary = comparison.pair.is_binary
    a, b = (rate_text(comparison.details[side], binary=binary) for side in ("a", "b"))
    p = p_text(estimate.p, estimate.p_floor)
    gap = signed(estimate.value or 0.0)
    return f"{a} against {b}, gap {gap}, {interval_text(estimate)}, {p} ({estimate.method}); {estimate.scope}"


def _outlook(verdict: Verdict, n: int) -> str:
    parts = []
    if verdict.detectable is not None:
        parts.append(f" The smallest gap this design detects with 80 % power is {number(verdict.detectable)}.")
    if verdict.needed_n is not None and verdict.needed_n > n and verdict.margin is not None:
        parts.append(f" Settling {verdict.margin:g} takes about {verdict.needed_n:,} items.")
    return "".join(parts)


def _probe_sentence(claim: ClaimLike, verdict: Verdict) -> str:
    estimate = verdict.estimates[0]
    bounds = f", {interval_text(estimate)}" if estimate.low is not None else ""
    value = f"{estimate.value:.6g}{bounds} (n = {estimate.n})"
    verb = {"supported": "meets", "refuted": "does not meet", "inconclusive": "is not clear of"}[verdict.status]
    return f"{claim.probe} is {value} and {verb} the declared threshold {claim.op} {claim.threshold:g}."


def _share_sentence(claim: ClaimLike, verdict: Verdict, reason: str) -> str:
    share, to, base = verdict.estimates[:3]
    value = "not defined" if share.value is None else f"{share.value:.3f}"
    bounds = (
        f"{100 * share.level:.4g} % interval [{share.low:.3f}, {share.high:.3f}]"
        if share.low is not None and share.high is not None
        else f"no bounded interval ({share.warnings[-1]})"
    )
    gaps = (
        f"gap {signed(to.value or 0.0)} on {claim.to_zone} ({to.n} items) against "
        f"{signed(base.value or 0.0)} on {claim.from_zone} ({base.n} items), {interval_text(base)}"
    )
    verb = {
        "supported": f"carries at least the declared share {claim.share:g} of its gain",
        "refuted": f"does not carry the declared share {claim.share:g} of its gain",
        "inconclusive": f"leaves open whether the declared share {claim.share:g} of its gain carries",
    }[verdict.status]
    why = f" ({reason})" if reason else ""
    return (
        f"{claim.condition} {verb} over {claim.against} from {claim.from_zone} to {claim.to_zone} items of "
        f"{claim.eval}{why}: share {value}, {bounds}; {gaps}; {share.scope}."
    )


# ---------------------------------------------------------------- the sentences that may not


def may_not(claim: ClaimLike, verdict: Verdict, comparison: Comparison | None) -> tuple[str, ...]:
    """What these records do not carry, each with the reason."""
    a, b = claim.condition, claim.against
    if claim.kind == "probe":
        return (f"“{claim.probe} caused the result”: a probe explains at most; only an intervention shows a cause.",)
    out = [
        f"“{a} is better (or worse) than {b} in general”: one model and one eval were measured.",
        f"“{a} works because …”: an NLL or a score difference names no mechanism.",
    ]
    if comparison is None or comparison.headline.estimand != "recipe":
        out.append(f"“the recipe {a} …”: without several seeds on each trained side the numbers speak of adapters.")
    if verdict.status in ("inconclusive", "untested") and verdict.decision != "equivalent":
        shown = "no equivalence within a margin was shown"
        out.append(f"“{a} and {b} are equal”, “no difference”, “no effect”: a high p is not equality, {shown}.")
    if verdict.status == "inconclusive":
        out.append(f"“{a} tends to be better”, “a trend”: the interval decides, not the point estimate.")
    if claim.kind in ("improves", "differ") and verdict.status == "supported" and claim.margin is None:
        out.append("“by a relevant amount”: no margin was declared, so the size is unresolved.")
    if claim.kind == "generalises":
        out.append(f"“{a} generalises” without the zones: the share speaks of {claim.from_zone} and {claim.to_zone}.")
    if verdict.exploratory:
        out.append("“as predicted”, “confirmed”: the claim was not declared before the freeze.")
    return tuple(out)


# ---------------------------------------------------------------- confidence


GRADES = """high: every item of evidence is good; moderate: none is poor and at most two are weak; low: otherwise;
none: the claim is not settled."""


def confidence(verdict: Verdict, comparison: Comparison | None, evidence: Mapping[str, Any]) -> dict[str, Any]:
    """The grade of a settled verdict and the named evidence behind it, each `good`, `weak` or `poor` with why.

    seeds        good from 3 runs on every trained arm, weak at 2, poor at 1
    units        independent families (else items): good from 100, weak from 20, poor below
    power        smallest detectable gap: good up to the margin, weak up to twice it or without a margin, poor above
    missing      good when nothing is missing, weak up to 1 % of scores, poor above
    contamination  good when checked and clean, weak when unchecked, poor when found
    replication  good when repeated on another model or eval, weak when not tried, poor when it failed
    """
    named: dict[str, dict[str, str]] = {}
    if comparison is not None:
        named["seeds"] = _seed_evidence(comparison)
        named["units"] = _unit_evidence(comparison)
        named["power"] = _power_evidence(verdict)
        named["missing"] = _missing_evidence(comparison)
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
    elif "poor" in states or states.count("weak") > 2:
        overall = "low"
    else:
        overall = "moderate" if "weak" in states else "high"
    return {"grade": overall, "evidence": named}


def _seed_evidence(comparison: Comparison) -> dict[str, str]:
    sides = [comparison.details[s] for s in ("a", "b")]
    least = min((len(s["runs"]) for s in sides if not s["fixed"]), default=1)
    state = "good" if least >= 3 else "weak" if least == 2 else "poor"
    return {"state": state, "why": f"{least} seed{'s' if least > 1 else ''} on the arm with the fewest"}


def _unit_evidence(comparison: Comparison) -> dict[str, str]:
    families = comparison.pair.n_families
    units, noun = (families, "families") if families is not None else (comparison.pair.n, "independent items")
    state = "good" if units >= 100 else "weak" if units >= FEW_FAMILIES else "poor"
    return {"state": state, "why": f"{units} {noun}"}


def _power_evidence(verdict: Verdict) -> dict[str, str]:
    gap, margin = verdict.detectable, verdict.margin
    if gap is None or margin is None:
        return {"state": "weak", "why": "no margin was declared" if margin is None else "detectable gap unknown"}
    state = "good" if gap <= margin else "weak" if gap <= 2 * margin else "poor"
    return {"state": state, "why": f"smallest detectable gap {number(gap)}, margin {margin:g}"}


def _missing_evidence(comparison: Comparison) -> dict[str, str]:
    sides = [comparison.details[s] for s in ("a", "b")]
    total = sum(len(s["runs"]) * s["n"] for s in sides)
    gone = total - sum(s["scored"] for s in sides)
    state = "good" if gone == 0 else "weak" if gone <= 0.01 * total else "poor"
    return {"state": state, "why": f"{gone} of {total} scores missing"}
