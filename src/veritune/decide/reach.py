"""What a declared design can say, claim by claim, before anything is spent: the smallest difference it detects, whether
it can ever show equivalence, and what would resolve the declared margin.

Two things are not known before training and are assumed: on how large a share of items two runs differ, and how far
runs spread between seeds. Two more are bounded instead of assumed, and every number is given as a range over them:
whether seeds flip the same items or others, and whether the items of one family are independent or one item written
several ways. The alpha is the claim's own over the number of confirmatory claims (Bonferroni, the first step of Holm).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from veritune.probe.names import arm_of, pattern_of
from veritune.stats.power import Design, Plan, plan
from veritune.study import BASELINE, Claim, Study

EQUIVALENCE = ("equivalent", "differ")
"""Kinds of claim that a difference inside the margin can settle."""


@dataclass(frozen=True, slots=True)
class Assumed:
    """What is assumed before training. `discordance`: the share of items on which two runs differ (graded scores: the
    variance of their difference); `seed_sd`: standard deviation of a run's mean score between seeds, in score units."""

    discordance: float = 0.1
    seed_sd: float = 0.015
    power: float = 0.8


def resolution(
    study: Study, items: Mapping[str, Sequence[tuple[str, str]]], assumed: Assumed | None = None
) -> list[dict[str, Any]]:
    """One record a claim. `items` are (zone, family) of each item, by eval.

    `detectable` is (least, most) in score units over what is not known; an end is None where no gap is ever detected.
    """
    assumed = assumed or Assumed()
    confirmatory = sum(c.correction == "confirmatory" and not _is_count(study, c) for c in study.claims)
    return [_claim(study, claim, items, assumed, max(1, confirmatory)) for claim in study.claims]


def _claim(
    study: Study,
    claim: Claim,
    items: Mapping[str, Sequence[tuple[str, str]]],
    assumed: Assumed,
    confirmatory: int,
) -> dict[str, Any]:
    blank: dict[str, Any] = {"claim": claim.name, "kind": claim.kind, "margin": claim.margin, "design": None}
    if claim.kind == "probe":
        return {**blank, "sentence": _probe_sentence(study, claim, confirmatory)}
    zone = claim.to_zone if claim.kind == "generalises" else claim.zone
    here = [family for z, family in items[study.eval_of(claim)] if zone is None or z == zone]
    alpha = claim.alpha / (confirmatory if claim.correction == "confirmatory" else 1)
    if len(here) < 2:
        return {**blank, "sentence": f"{len(here)} items: nothing can be said"}
    plans = [p for design in _designs(study, claim, here, assumed, alpha) for p in plan(design)]
    design = plans[0].design
    found = {
        **blank,
        "zone": zone,
        "items": len(here),
        "families": len(set(here)),
        "seeds": [design.seeds_a, design.seeds_b],
        "alpha": alpha,
        "design": {"discordance": assumed.discordance, "seed_sd": assumed.seed_sd, "power": assumed.power},
        "detectable": _range([_on_scale(p.detectable) for p in plans]),
        "can_say_equivalent": _either(plans) if claim.kind in EQUIVALENCE and claim.margin else None,
        "items_for_margin": _range([_items(p, claim) for p in plans]) if claim.margin else None,
        "seeds_for_margin": _range([p.seeds_for_margin for p in plans]) if claim.margin else None,
    }
    return {**found, "sentence": _sentence(found)}


def _is_count(study: Study, claim: Claim) -> bool:
    """Whether a claim is on an exact quantity, which takes no share of the error rate."""
    pattern = pattern_of(claim.probe, study) if claim.probe is not None else None
    return pattern is not None and pattern.uncertainty == "exact"


def _probe_sentence(study: Study, claim: Claim, confirmatory: int) -> str:
    """What decides a claim on a probe, and what can be known before the run to leave it open."""
    pattern = pattern_of(claim.probe or "", study)
    if pattern is None:
        return "no probe of this study records it"
    if pattern.uncertainty == "exact":
        return "a count: compared as it is, without a share of the error rate"
    shared = confirmatory if claim.correction == "confirmatory" else 1
    over = "its interval" if shared == 1 else f"its interval at {100 * (1 - claim.alpha / shared):.4g} %"
    one_run = pattern.made_by == "leak" or arm_of(claim.probe or "") == BASELINE
    seeds = 1 if one_run else len(study.seeds)
    if pattern.uncertainty == "items":
        return f"decided by {over}, over the probe's own items and {seeds} seed{'s' * (seeds != 1)}: no items to plan"
    if seeds < 2:
        return "one number a run and one seed: it has no interval, so this claim can only stay open; declare more seeds"
    few = "; with two its ends lie 13 standard errors away or more" if seeds == 2 else ""
    return f"one number a run: decided by {over}, a t over {seeds} seeds{few}"


def _designs(study: Study, claim: Claim, here: Sequence[str], assumed: Assumed, alpha: float) -> list[Design]:
    """The design with the items of a family independent, and with them as alike as one item."""
    families, seeds = len(set(here)), len(study.seeds)
    spec = study.evals[study.eval_of(claim)]
    sizes = [here.count(family) for family in set(here)]
    alike = sum(size**2 for size in sizes) / len(here)  # Kish 1965: 1 + (size - 1)·ICC at ICC 1, sizes as they are
    one = claim.against == BASELINE or claim.condition == BASELINE
    shared: dict[str, Any] = {
        "items": len(here),
        "discordance": assumed.discordance,
        "seeds_a": seeds,
        "seeds_b": 0 if one else seeds,
        "seed_sd": assumed.seed_sd,
        "families": families if families < len(here) else None,
        "margin": claim.margin,
        "alpha": alpha,
        "power": assumed.power,
        "binary": spec.kind == "match" or spec.score == "all",
    }
    return [Design(**shared, design_effect=effect) for effect in sorted({1.0, alike})]


def _items(plan_: Plan, claim: Claim) -> int | None:
    return plan_.items_for_equivalence if claim.kind == "equivalent" else plan_.items_for_margin


def _on_scale(gap: float | None) -> float | None:
    """Scores lie in [0, 1]: a design that needs a larger gap than 1 detects none."""
    return gap if gap is not None and gap <= 1 else None


def _range(values: Sequence[Any]) -> list[Any]:
    """The least and the most; the most is None where one of them is."""
    known = [v for v in values if v is not None]
    return [min(known) if known else None, max(known) if len(known) == len(values) else None]


def _either(plans: Sequence[Plan]) -> bool | None:
    """True or False where all agree, None where it hangs on what is not known."""
    said = {p.can_say_equivalent for p in plans}
    return said.pop() if len(said) == 1 else None


def _sentence(found: Mapping[str, Any]) -> str:
    low, high = found["detectable"]
    seeds = found["seeds"][0]
    where = f"{found['items']} items of {found['families']} families, {seeds} seed{'s' if seeds > 1 else ''}"
    if low is None:
        return f"{where}: no difference is ever detected; more families or seeds are needed"
    span = f"{low:.3f} at best, in the worst case none"
    if high is not None:
        span = f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
    parts = [f"{where}: the smallest difference it detects is {span}"]
    if found["margin"] is not None:
        resolves = high is not None and high <= found["margin"]
        parts.append(f"the margin {found['margin']:g} {'is' if resolves else 'is not'} resolved in every case")
        if not resolves:
            parts.append(_takes(found))
        if found["can_say_equivalent"] is False:
            parts.append("this design can never say `equivalent`")
        elif found["can_say_equivalent"] is None and found["kind"] in EQUIVALENCE:
            parts.append("whether it can say `equivalent` hangs on what is not known")
    return "; ".join(parts)


def _takes(found: Mapping[str, Any]) -> str:
    """What would resolve the margin. None at the far end means that in the worst case nothing of the kind would."""
    low, high = found["items_for_margin"]
    few, many = found["seeds_for_margin"]
    items = "with these seeds no number of items resolves it"
    if low is not None:
        items = f"with these seeds it takes {_span(low, high)} items"
    seeds = "" if few is None else f", with these items {_span(few, many)} seeds an arm"
    return f"{items}{seeds}"


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} at best, and in the worst case no number of"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
