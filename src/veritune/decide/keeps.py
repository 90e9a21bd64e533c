"""Claims of kind `keeps`: an arm keeps something at no more than a declared share of another arm's gain.

C is the condition, R the reference, B what both are compared with, Y the declared share. Three parts, all needed:

    gain    R − B lies above 0                        else there is no gain of which a share could be given up
    price   L(Y) = C − (1 − Y)·R − Y·B lies above 0   C gives up less than Y of the gain
    kept    the recorded quantity meets its threshold, or C is not worse than B by the margin on `kept_eval`

Supported where all three are at the claim's own level: the largest of three p is valid without a correction, since the
claim is false where any part is (Berger 1982, Technometrics 24:295). Refuted where one part fails, each at a third of
alpha (Bonferroni).

L(Y) is linear in the arms, so it is a plain paired comparison of C with the mixture (1 − Y)·R + Y·B, item by item and
seed by seed: its families, seeds and bounded scores are judged as every other gap is (`stats.paired`). The share given
up, s = 1 − (C − B)/(R − B), has its interval by inverting L(s), after Fieller 1954, J R Stat Soc B 16:175.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

from scipy.optimize import brentq

from veritune.decide.evidence import ClaimContext, Presented, Tested, Way, options_of
from veritune.decide.wording import kept_text
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats import lost
from veritune.stats.intervals import TINY_P, Spread, smallest_alpha
from veritune.stats.paired import Comparison, PairOptions, compare_tables, paired_by_seed
from veritune.stats.table import Pair, ScoreTable, pair, scale_of

if TYPE_CHECKING:
    from veritune.config.claim import Claim

REFUTING_PARTS = 3
"""Each part may refute the claim alone, at this fraction of alpha."""

WIDEST_SHARE = 16.0
"""Ends of the share beyond this many gains are given as infinite: the gain is then too small to divide by."""

Arms = tuple[ScoreTable, ScoreTable, ScoreTable]
"""Condition, reference, against, on the same items."""


@dataclass(frozen=True, slots=True, eq=False)
class GivenUp:
    """The share of the gain of `gain.a` over `gain.b` that `arm` gives up."""

    arm: ScoreTable
    gain: Pair
    base: Comparison
    options: PairOptions

    def contrast(self, share: float) -> Comparison:
        """The comparison of the arm with (1 − share)·reference + share·against."""
        low, high = self.gain.scale
        beyond = max(0.0, -share, share - 1.0) * (high - low)
        scale = (low - beyond, high + beyond) if self.gain.bounded else None
        return compare_tables(self.arm, self._mixture(share), replace(self.options, scale=scale))

    def _mixture(self, share: float) -> ScoreTable:
        a_S_N, b_S_N = self.gain.score_a_S_N, self.gain.score_b_S_N
        shown = self.gain.b if self.gain.a.fixed else self.gain.a  # the side whose runs the mixture has
        return replace(
            self.gain.a,
            condition=f"{1 - share:.4g}·{self.gain.a.condition} + {share:.4g}·{self.gain.b.condition}",
            runs=shown.runs,
            seeds=shown.seeds,
            score_S_N=(1 - share) * a_S_N + share * b_S_N,
            missing=({},) * max(len(a_S_N), len(b_S_N)),
            missing_at=(),
            machine_missing_S_N=None,
            samples=None,
            fixed=self.gain.a.fixed and self.gain.b.fixed,
        )

    @property
    def value(self) -> float | None:
        """1 − (C − B)/(R − B); None without a gain."""
        return 0.0 - self.contrast(0.0).gap / self.base.gap if self.base.gap else None

    def interval(self, level: float) -> tuple[float, float]:
        """Ends of the share at `level`; infinite where the gain's own interval is not above 0."""
        if not self.base.headline.spread.interval(level)[0] > 0:
            return -math.inf, math.inf
        return self._edge(level, -1), self._edge(level, 1)

    def _edge(self, level: float, side: int) -> float:
        """Where the interval of L(s) leaves 0: L rises with s, so it lies below 0 far down and above 0 far up."""

        def clear(share: float) -> float:
            return side * self.contrast(share).headline.spread.end((1 - level) / 2, -side)

        inner = self.value or 0.0
        # At the estimate L is 0, so that its end there, in gains, is about how far the edge lies.
        step = max(1e-4, -clear(inner) / abs(self.base.gap))
        while clear(inner + side * step) <= 0:
            step *= 2
            if not step <= WIDEST_SHARE:
                return side * math.inf
        return float(brentq(clear, inner, inner + side * step, xtol=1e-5)) if clear(inner) < 0 else inner


def judge_keeps(claim: Claim, arms: Arms, kept: Tested, context: ClaimContext) -> Tested:
    """The claim's evidence from its three arms and from what must be kept. Raises ScoreError if the arms cannot be
    combined: different items, or numbers of runs that do not pair.
    """
    if kept.status == "untested":
        raise ScoreError(kept.reason)
    options = options_of(arms[0].eval, context)
    tested = _tested(claim, _given_up(arms, options), kept)
    filled = list(_fillings(arms, options))
    if not filled:
        return tested
    others = {name: _tested(claim, _given_up(other, options), kept) for name, other in filled}

    def show(alpha: float, way: Way | None) -> Presented:
        shown = tested.show(alpha, way)
        under = {name: (found.status if found else "inconclusive") for name, found in _at(others, alpha)}
        why = lost.could_change_any(arms, way.status, under.values()) if way else ""
        return replace(shown, fragile=shown.fragile or why, details={**shown.details, "lost_bounds": under})

    return replace(tested, show=show)


def _at(others: dict[str, Tested], alpha: float) -> Iterator[tuple[str, Way | None]]:
    yield from ((name, other.way(alpha)) for name, other in others.items())


def _fillings(arms: Arms, options: PairOptions) -> Iterator[tuple[str, Arms]]:
    """The arms under each combination of extremes of the scores that the machine lost; none where it lost none."""
    scale, _ = scale_of(arms[0], arms[1], options.scale)
    ways = [lost.corners(table, scale) for table in arms]
    if any(len(way) > 1 for way in ways):
        for (one, c), (two, r), (three, b) in itertools.product(*ways):
            yield "/".join((one, two, three)), (c, r, b)


def _given_up(arms: Arms, options: PairOptions) -> GivenUp:
    c, r, b = arms
    gain = pair(r, b, scale=options.scale, missing=options.missing)
    if options.shared_seeds:
        gain = paired_by_seed(gain)
    runs_r, runs_b = len(gain.score_a_S_N), len(gain.score_b_S_N)
    if runs_r != runs_b and not (gain.a.fixed or gain.b.fixed):
        raise ScoreError(
            f"expected as many runs of {b.condition} as of {r.condition}, found {runs_b} and {runs_r}.",
            fix="Train both conditions with the same seeds: the gain over a trained arm is computed run by run.",
        )
    return GivenUp(c, gain, compare_tables(r, b, options), options)


def _tested(claim: Claim, given: GivenUp, kept: Tested) -> Tested:
    share = claim.share or 0.0
    at_share = given.contrast(share)
    base, price = given.base.headline.spread, at_share.headline.spread
    gained = smallest_alpha(base, 0, side=1)
    yes, no = _least(kept, "supported"), _least(kept, "refuted")

    def refuted(p: float, reason: str) -> Way:
        return Way(min(1.0, REFUTING_PARTS * p), "refuted", reason=reason, parts=REFUTING_PARTS)

    ways = (
        Way(max(gained, smallest_alpha(price, 0, side=1), yes), "supported"),
        refuted(max(gained, smallest_alpha(price, 0, side=-1)), "it gives up more than that"),
        refuted(smallest_alpha(base, 0, side=-1), f"{claim.reference} has no gain to keep: it lost"),
        refuted(no, f"it does not keep {kept_text(claim)}"),
    )

    def show(alpha: float, way: Way | None) -> Presented:
        level_alpha = alpha / (way.parts if way else 1)
        beside = kept.show(level_alpha, kept.way(level_alpha))
        first = _share_estimate(given, level_alpha, claim, way)
        gains = (_gain(given, claim.alpha), given.base.estimate(1 - claim.alpha))
        estimates = (first, *gains, *beside.estimates[:1])
        if level_alpha != claim.alpha:
            estimates += (_share_estimate(given, claim.alpha, claim, None),)
        reason = "" if way else "; ".join(_open(claim, (gained, yes, no), price, beside.reason, alpha))
        details = {"share_declared": share, "reference": claim.reference, "kept": kept_text(claim)}
        return Presented(estimates, reason, details, fragile=beside.fragile if way else "")

    warnings = (
        *kept.warnings,
        *(given.base.warnings if given.base.pair.b.n_missing + given.base.pair.a.n_missing else ()),
    )
    return Tested(
        claim, ways, show, comparison=_with_missing(at_share, given.gain), warnings=tuple(dict.fromkeys(warnings))
    )


def _with_missing(at_share: Comparison, gain: Pair) -> Comparison:
    """The contrast with the missing scores of both arms of the mixture counted on its side."""
    side = at_share.details["b"]
    gone = gain.a.n_missing + gain.b.n_missing
    return replace(at_share, details={**at_share.details, "b": {**side, "scored": side["scored"] - gone}})


def _least(tested: Tested, status: str) -> float:
    """The least alpha at which `tested` ends as `status`; an exact quantity ends at every alpha or at none."""
    if tested.exact:
        return TINY_P if tested.status == status else 1.0
    return min((way.p for way in tested.ways if way.status == status), default=1.0)


def _open(claim: Claim, least: tuple[float, float, float], price: Spread, why: str, alpha: float) -> Iterator[str]:
    """The parts that keep the claim open."""
    gained, yes, no = least
    if gained > alpha:
        yield f"the gain of {claim.reference} over {claim.against} itself is not clear of 0"
    elif smallest_alpha(price, 0, side=1) > alpha:
        yield f"the share given up is not clear of {claim.share:g}"
    if no <= alpha:
        yield f"it does not keep {kept_text(claim)} at this level, but a part that refutes alone takes a third of it"
    elif yes > alpha:
        yield f"whether it keeps {kept_text(claim)} is open" + (f" ({why})" if why else "")


def _gain(given: GivenUp, alpha: float) -> Estimate:
    """The gain of the arm itself over `against`."""
    return compare_tables(given.arm, given.gain.b, given.options).estimate(1 - alpha)


def _share_estimate(given: GivenUp, alpha: float, claim: Claim, way: Way | None) -> Estimate:
    """The share given up with its interval at 1 − alpha. An end never lies on the other side of the declared share
    than the test, whose root finding it repeats in another direction."""
    low, high = given.interval(1 - alpha)
    declared = claim.share or 0.0
    if way is not None and way.status == "supported":
        high = min(high, math.nextafter(declared, -math.inf))
    bounded = math.isfinite(low) and math.isfinite(high)
    matched = given.contrast(declared).pair
    gain = f"the gain of {claim.reference} over {claim.against}"
    unclear = f"unbounded: {gain} is not clear of 0"
    if given.base.headline.spread.interval(1 - alpha)[0] > 0:
        unclear = f"unbounded: {gain} is clear of 0, but an end lies more than {WIDEST_SHARE:g} gains away"
    return Estimate(
        name=f"share of the gain of {claim.reference} over {claim.against} that {claim.condition} gives up",
        value=given.value,
        low=low if bounded else None,
        high=high if bounded else None,
        level=1 - alpha,
        n=matched.n,
        method="Fieller-type inversion of the three-arm contrast, seeds × items",
        scope=given.base.scope.replace(f"{claim.reference} (", f"{claim.condition} and {claim.reference} (", 1),
        n_clusters=matched.n_families,
        n_seeds=max(map(len, (matched.score_a_S_N, matched.score_b_S_N))),
        warnings=() if bounded else (unclear,),
    )
