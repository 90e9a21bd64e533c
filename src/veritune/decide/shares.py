"""Claims of kind `generalises`: how much of a gap on one zone carries to another."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy.optimize import brentq

from veritune.decide.evidence import ClaimContext, Presented, Tested, Way, options_of
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats import seeds
from veritune.stats.intervals import Spread, Student, Unknown, smallest_alpha
from veritune.stats.paired import Comparison, PairOptions, compare_tables, paired_by_seed
from veritune.stats.table import Ints, Pair, ScoreTable, pair

if TYPE_CHECKING:
    from veritune.config.claim import Claim


@dataclass(frozen=True, slots=True)
class Difference(Spread):
    """The contrast Δ_to − ρ·Δ_from, from valid intervals of both: distances squared and added, and never narrower than
    the contrast's own t.

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
    """How much of a gap on one zone carries over to another: ρ = Δ_to/Δ_from, by inverting L(ρ) = Δ_to − ρ·Δ_from.

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
        spread: Spread = Difference(*self.items, gaps, share, Student(center, math.sqrt(value), df))
        added = seeds.seed_spread(self.parts, weight_K, equal=self.equal) if self.recipe else None
        return seeds.Combined(center, spread, added) if added else spread

    def interval(self, level: float) -> tuple[float, float]:
        """Bounds on ρ at `level`; infinite if Δ_from's own interval contains 0."""
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


def carried_over(matched: Pair, z_N: Ints, comparisons: Sequence[Comparison], options: PairOptions) -> Carried:
    """The share carried over, from the pair of both zones, each item's zone (0 `to`, 1 `from`) and the comparisons of
    the two zones.
    """
    to, base = comparisons
    return Carried(
        parts=seeds.crossed(matched, z_N, shared=options.shared_seeds and not (matched.a.fixed or matched.b.fixed)),
        items=(to.results["checkpoints"].spread, base.results["checkpoints"].spread),
        base=base.headline.spread,
        recipe="recipe" in base.results,
        equal=options.equal_seed_spread,
    )


def judge_share(claim: Claim, a: ScoreTable, b: ScoreTable, context: ClaimContext) -> Tested:
    """A claim's evidence from both arms with all zones. Raises ScoreError if the share or a zone is missing."""
    share = claim.share
    if share is None or not math.isfinite(share):
        raise ScoreError(
            "a claim of kind 'generalises' needs a share: the smallest part of the gap that must carry over."
        )
    options = options_of(a.eval, context)
    zones = (claim.to_zone, claim.from_zone)
    comparisons = [compare_tables(a.in_zone(z), b.in_zone(z), options) for z in zones]
    matched = pair(*(_two_zones(t, zones) for t in (a, b)), scale=options.scale, missing=options.missing)
    z_N = np.array([zones.index(z) for z in matched.a.zone_N or ()])
    if options.shared_seeds:
        matched = paired_by_seed(matched)
    carried = carried_over(matched, z_N, comparisons, options)
    base, contrast = carried.base, carried.contrast(share)
    gained = smallest_alpha(base, 0, side=1)
    ways = (
        Way(max(gained, smallest_alpha(contrast, 0, side=1)), "supported"),
        Way(max(gained, smallest_alpha(contrast, 0, side=-1)), "refuted"),
        Way(smallest_alpha(base, 0, side=-1), "refuted", reason="there is no gain to carry over"),
    )

    def show(alpha: float, way: Way | None) -> Presented:
        bounded = gained <= alpha
        first = _share_estimate(claim, comparisons, carried, matched, alpha if bounded else None)
        reason = "" if bounded or way else f"the gap on {claim.from_zone} itself is not clear of 0"
        estimates = (first, *(c.estimate(1 - claim.alpha) for c in comparisons))
        if alpha != claim.alpha:
            plain = claim.alpha if gained <= claim.alpha else None
            estimates += (_share_estimate(claim, comparisons, carried, matched, plain),)
        return Presented((replace(first, level=1 - alpha), *estimates[1:]), reason, {"share_declared": share})

    return Tested(claim, ways, show, comparison=comparisons[0], beside=(comparisons[1],))


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
