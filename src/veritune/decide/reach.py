"""What a declared design can say, claim by claim, before anything is spent: the smallest difference it detects, what
would resolve the declared margin, and what can never be decided (too few families, too few items for equivalence).

Two things are not known before training and are assumed: on how large a share of items two runs differ, and how far
runs spread between seeds. Two more are bounded instead of assumed, and every number is given as a range over them:
whether seeds flip the same items or others, and whether the items of one family are independent or one item written
several ways. The alpha is the claim's own over the number of confirmatory claims (Bonferroni, the first step of Holm).

A claim of kind `keeps` compares an arm with a mixture of two others. The mixture differs from the arm on no more items,
and spreads no further between seeds, than the reference does, so the plain comparison of the two is the worst case.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from veritune.config.claim import Claim
from veritune.config.fields import BASELINE
from veritune.config.study import Study
from veritune.counting import many
from veritune.probe.names import arm_of, averaged_zones, pattern_of
from veritune.records import Assumed, ClaimReach
from veritune.stats.power import Design, Needed, best_half, best_low, least_items_equal, plan

N = TypeVar("N", int, float)


def resolution(
    study: Study,
    items: Mapping[str, Sequence[tuple[str, str]]],
    assumed: Assumed | None = None,
    *,
    families: Mapping[str, int] | None = None,
) -> list[ClaimReach]:
    """What the design can resolve, one record per claim. `items` are (zone, family) of each item, by eval; `families`
    counts those of each zone's rows.
    """
    assumed = assumed or Assumed()
    confirmatory = max(1, sum(c.correction == "confirmatory" and not _is_count(study, c) for c in study.claims))
    found = []
    for claim in study.claims:
        never = _probe_never(study, claim, families) if claim.kind == "probe" else ""
        reach = _claim(study, claim, items, assumed, confirmatory)
        found.append(replace(reach, sentence=never, undecidable=never) if never else reach)
    return found


def limits(
    study: Study, items: Mapping[str, Sequence[tuple[str, str]]], families: Mapping[str, int] | None = None
) -> list[str]:
    """What the declared design can never decide, one line per claim, at the claim's own alpha and without any
    assumption.
    """
    lines = []
    for claim in study.claims:
        if claim.kind == "probe" and (never := _probe_never(study, claim, families)):
            lines.append(f"{claim.name}: {never}")
        here = _items_of(study, claim, items)
        if claim.kind != "probe" and len(here) > 1:
            never = _never(claim, _designs(study, claim, here, Assumed(), claim.alpha)[0])
            lines += [f"{claim.name}: {never}"] if never else []
    return lines


def _never(claim: Claim, design: Design) -> str:
    """Why the claim can never be supported by this design, whatever comes out; empty where that is not proved."""
    rule, margin = design.family_rule(), claim.margin or 0.0
    if rule is not None and rule.method == "withheld":
        return f"no verdict is possible: {rule.reason}"
    if claim.kind == "equivalent" and best_half(design) >= margin > 0:
        table = design.single and design.binary
        needed = least_items_equal(margin, claim.alpha, binary=table, width=design.width)
        return f"can never be `equivalent`: not even identical outputs on under {many(needed, 'items')} would be enough"
    edge = {"improves": 0.0, "keeps": 0.0, "better_by": margin, "not_worse": -margin, "no_regression": -margin}.get(
        claim.kind
    )
    if edge is not None and best_low(design) <= edge:
        return f"can never be supported: not even a win on all {design.items} items would be enough"
    return ""


def _items_of(study: Study, claim: Claim, items: Mapping[str, Sequence[tuple[str, str]]]) -> list[str]:
    """The families of the items that a claim is about, one entry an item."""
    zone = claim.to_zone if claim.kind == "generalises" else claim.zone
    return [] if claim.kind == "probe" else [f for z, f in items[study.eval_of(claim)] if zone is None or z == zone]


def _claim(
    study: Study,
    claim: Claim,
    items: Mapping[str, Sequence[tuple[str, str]]],
    assumed: Assumed,
    confirmatory: int,
) -> ClaimReach:
    if claim.kind == "probe":
        return ClaimReach(claim.name, claim.kind, claim.margin, _probe_sentence(study, claim, confirmatory))
    here = _items_of(study, claim, items)
    alpha = claim.alpha / (confirmatory if claim.correction == "confirmatory" else 1)
    if len(here) < 2:
        return ClaimReach(claim.name, claim.kind, claim.margin, f"{many(len(here), 'items')}: nothing can be said")
    plans = [p for design in _designs(study, claim, here, assumed, alpha) for p in plan(design)]
    design = plans[0].design
    equal, keeps = claim.kind == "equivalent", claim.kind == "keeps"
    reach = ClaimReach(
        claim=claim.name,
        kind=claim.kind,
        margin=claim.margin,
        sentence="",
        design=assumed,
        zone=claim.to_zone if claim.kind == "generalises" else claim.zone,
        items=len(here),
        families=len(set(here)),
        seeds=(design.seeds_a, design.seeds_b),
        alpha=alpha,
        undecidable=_never(claim, replace(design, alpha=claim.alpha)),
        detectable=_range([p.detectable for p in plans]),
        chance=_range([p.chance_of_equivalence if equal else p.chance_at_margin for p in plans]),
        items_for_margin=_counts([p.items_for_equivalence if equal else p.items_for_margin for p in plans]),
        seeds_for_margin=_counts([p.seeds_for_equivalence if equal else p.seeds_for_margin for p in plans]),
    )
    return replace(reach, sentence=_keeps_sentence(reach, claim) if keeps else _sentence(reach))


def _keeps_sentence(reach: ClaimReach, claim: Claim) -> str:
    """What gain the reference needs, so that the claim can be supported: a share of a small gain is not resolved."""
    plain = _sentence(replace(reach, margin=None))
    _, high = reach.detectable or (None, None)
    kept = "a recorded quantity" if claim.probe is not None else f"{claim.kept_eval}, planned as a claim of its own"
    beside = f"what is kept ({kept}) must be shown as well"
    if reach.undecidable or high is None or claim.share is None:
        return f"{plain}; {beside}"
    least = high / claim.share
    if least >= 1:
        gain = f"no gain on the score scale is large enough to show that at most {claim.share:g} of it was given up"
    else:
        gain = f"even an arm that gives up nothing is supported only where {claim.reference} gains {least:.2f} or more"
    return f"{plain}; {gain}; {beside}"


def _is_count(study: Study, claim: Claim) -> bool:
    """Whether a claim is on an exact quantity, which takes no share of the error rate."""
    pattern = pattern_of(claim.probe or "", study) if claim.kind == "probe" else None
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
        return f"decided by {over}, over the probe's own items and {many(seeds, 'seeds')}: no items to plan"
    if seeds < 2:
        return "one number a run and one seed: it has no interval, so this claim can only stay open; declare more seeds"
    few = "; with two its ends lie 13 standard errors away or more" if seeds == 2 else ""
    return f"one number a run: decided by {over}, a t over {many(seeds, 'seeds')}{few}"


def _probe_never(study: Study, claim: Claim, families: Mapping[str, int] | None) -> str:
    """Why a claim on a probe can only stay open: a zone that its interval averages over has too few families."""
    least = study.thresholds.families.for_interval
    for zone in averaged_zones(claim.probe or ""):
        if families is not None and families.get(zone, 0) < least:
            return (
                f"can never be decided: its interval takes at least {least} families of {zone} rows,"
                f" this split has {families.get(zone, 0)}"
            )
    return ""


def _designs(study: Study, claim: Claim, here: Sequence[str], assumed: Assumed, alpha: float) -> list[Design]:
    """The design with the items of a family independent, and with them as alike as one item."""
    families, seeds = len(set(here)), len(study.seeds)
    spec = study.evals[study.eval_of(claim)]
    sizes = tuple(sorted(Counter(here).values()))
    alike = sum(size**2 for size in sizes) / len(here)  # Kish 1965: 1 + (size - 1)·ICC at ICC 1, sizes as they are
    other = claim.reference if claim.kind == "keeps" else claim.against
    one = other == BASELINE or claim.condition == BASELINE
    shared: dict[str, Any] = {
        "items": len(here),
        "discordance": assumed.discordance,
        "seeds_a": seeds,
        "seeds_b": 0 if one else seeds,
        "seed_sd": assumed.seed_sd,
        "family_sizes": sizes if families < len(here) else None,
        "margin": None if claim.kind == "keeps" else claim.margin,
        "alpha": alpha,
        "power": assumed.power,
        "binary": claim.kind != "keeps" and (spec.kind == "match" or spec.score == "all"),
        "equal_seed_spread": study.equal_seed_spread,
        "shared_seeds": study.shared_seeds and not one,
    }
    effects = sorted({1.0, alike}) if families < len(here) else [1.0]
    return [Design(**shared, design_effect=effect) for effect in effects]


def _counts(needed: Sequence[Needed | None]) -> tuple[int | None, int | None] | None:
    """The least and the most number over the plans; an end is None where no number is enough. None without a margin."""
    known = [n for n in needed if n is not None]
    return _range([n.high for n in known]) if known else None


def _range(values: Sequence[N | None]) -> tuple[N | None, N | None]:
    """The least and the most; the most is None where one of them is."""
    known = [v for v in values if v is not None]
    return min(known) if known else None, max(known) if len(known) == len(values) else None


def _sentence(reach: ClaimReach) -> str:
    low, high = reach.detectable or (None, None)
    seeds = reach.seeds[0] if reach.seeds else 0
    where = f"{many(reach.items or 0, 'items')} of {many(reach.families or 0, 'families')}, {many(seeds, 'seeds')}"
    if reach.undecidable:
        return f"{where}: {reach.undecidable}"
    if low is None:
        return f"{where}: no difference on the score scale is detected; more items or seeds are needed"
    span = f"{low:.3f} at best, in the worst case none on the score scale"
    if high is not None:
        span = f"{low:.3f}" if high - low < 5e-4 else f"{low:.3f} to {high:.3f}"
    parts = [f"{where}: the smallest difference it detects is {span}"]
    if reach.margin is not None and reach.items_for_margin is not None:
        parts += _margin_parts(reach, *reach.items_for_margin)
    return "; ".join(parts)


def _margin_parts(reach: ClaimReach, few: int | None, many: int | None) -> Iterator[str]:
    """Whether the margin is resolved, and what would."""
    if many is not None and many <= (reach.items or 0):
        yield f"the margin {reach.margin:g} is resolved in every case"
        return
    low, high = (end or 0.0 for end in reach.chance or (None, None))
    chance = f"{low:.2f}" if high - low < 5e-3 else f"{low:.2f} to {high:.2f}"
    yield f"the margin {reach.margin:g} is not resolved in every case (chance {chance})"
    yield _takes(few, many, reach.seeds_for_margin)


def _takes(few: int | None, many: int | None, seeds: Sequence[int | None] | None) -> str:
    """What would resolve the margin with the spreads that are assumed. None: no number is enough in the worst case."""
    text = "with these seeds and the spread assumed no number of items resolves it"
    if few is not None:
        text = f"with these seeds it takes {_span(few, many)} items"
    if seeds is not None and seeds[0] is not None:
        text += f", with these items {_span(seeds[0], seeds[1])} seeds an arm"
    return text


def _span(low: int, high: int | None) -> str:
    if high is None:
        return f"{low:,} at best, and in the worst case no number of"
    return f"{low:,}" if low == high else f"{low:,} to {high:,}"
