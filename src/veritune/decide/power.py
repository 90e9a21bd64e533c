"""Planning: how many items, and the smallest gap a design can detect, before money is spent.

Conventions: `gap` and `margin` in score units; ψ (`discordance`) the share of items on which one run of A and one of
B differ; `power` the chance to see a true gap at level `alpha`, two-sided.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import special

from veritune.decide.intervals import normal_quantile, t_quantile
from veritune.decide.paired import Comparison
from veritune.decide.seeds import Variance
from veritune.errors import ScoreError


def mcnemar_n(gap: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items for a McNemar test to detect `gap`: [z_{α/2}·√ψ + z_β·√(ψ − δ²)]²/δ², rounded up.

    Source: Connor 1987, Biometrics 43:207. One run a side, independent items. A gap cannot exceed the discordance.
    """
    _check(gap, alpha, power)
    if not abs(gap) <= discordance <= 1:
        raise ScoreError(
            f"expected a discordance between the gap and 1, found gap {gap:g} and discordance {discordance:g}.",
            fix="A gap of δ needs at least a share δ of items on which the sides differ.",
        )
    z = normal_quantile(1 - alpha / 2) * math.sqrt(discordance)
    z += normal_quantile(power) * math.sqrt(discordance - gap**2)
    return math.ceil((z / gap) ** 2)


def tost_n(margin: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Items to show equivalence within ± `margin` when the true gap is 0: (z_{1−α} + z_{1−β/2})²·ψ/margin².

    At the defaults (z_.95 + z_.90)². Source: Julious 2004, Stat Med 23:1921.
    """
    _check(margin, alpha, power)
    z = normal_quantile(1 - alpha) + normal_quantile(1 - (1 - power) / 2)
    return math.ceil(z**2 * discordance / margin**2)


def mcnemar_gap(n: int, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest gap that `n` items detect: `mcnemar_n` solved for δ. None when even δ = ψ is too small."""
    from scipy.optimize import brentq

    a, b = normal_quantile(1 - alpha / 2), normal_quantile(power)

    def excess(gap: float) -> float:
        spread = a * math.sqrt(discordance) + b * math.sqrt(max(0.0, discordance - gap**2))
        return math.sqrt(n) * gap - spread

    if n < 1 or discordance <= 0 or excess(discordance) < 0:
        return None
    return float(brentq(excess, 0.0, discordance, xtol=1e-12))


def detectable_gap(se: float, df: float, *, alpha: float = 0.05, power: float = 0.8) -> float:
    """The smallest gap a t test with this standard error detects: noncentral t, df degrees of freedom.

    Solves P(|T'| > t_crit; ncp = δ/se) = power. Source: `scipy.stats.nct`; Johnson, Kotz & Balakrishnan 1995, ch. 31.
    """
    from scipy.optimize import brentq

    critical = t_quantile(1 - alpha / 2, df)

    def shortfall(ncp: float) -> float:
        return power - _t_power(ncp, critical, df)

    start = critical + normal_quantile(power)
    high = max(1.0, start)
    while shortfall(high) > 0:
        high *= 2
    return se * float(brentq(shortfall, 0.0, high, xtol=1e-10))


def _t_power(ncp: float, critical: float, df: float) -> float:
    if math.isinf(df) or df > 1e6:
        return float(special.ndtr(ncp - critical) + special.ndtr(-ncp - critical))
    upper, lower = (float(special.nctdtr(df, ncp, x)) for x in (critical, -critical))
    if math.isnan(upper) or math.isnan(lower):  # the series fails far out in a tail, at 1 to 3 df above all
        return _t_power_integral(ncp, critical, df)
    return 1 - upper + lower


def _t_power_integral(ncp: float, critical: float, df: float) -> float:
    """The same probability as a mean over the standard error's own distribution, s² ~ χ²(df) / df."""
    from scipy.integrate import quad

    def given(share: float) -> float:
        bound = critical * math.sqrt(special.chdtri(df, share) / df)
        return float(special.ndtr(ncp - bound) + special.ndtr(-ncp - bound))

    return float(quad(given, 0.0, 1.0, epsabs=1e-10, limit=200)[0])


def _check(gap: float, alpha: float, power: float) -> None:
    if not (abs(gap) > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise ScoreError(f"expected gap > 0, alpha and power in (0, 1); found {gap:g}, {alpha:g}, {power:g}.")


# ---------------------------------------------------------------- designs


@dataclass(frozen=True, slots=True)
class Design:
    """What a study will have. Units are score units; variances follow the crossed model of `seeds`.

    `discordance` is ψ for one run a side (for graded scores: the variance over items of one run's difference).
    `stable` is the share of it that repeats in every seed: 1 when seeds flip the same items, 0 when they flip
    independent ones; unknown before a pilot, and then both ends are reported. `seed_sd` is the standard deviation
    of a run's mean score between seeds beyond what its items explain. `seeds_b` 0 means a fixed arm, a baseline
    without seeds. `design_effect` is the variance inflation by families.
    """

    items: int
    discordance: float
    seeds_a: int = 1
    seeds_b: int = 1
    seed_sd: float = 0.0
    stable: float | None = None
    design_effect: float = 1.0
    families: int | None = None
    margin: float | None = None
    alpha: float = 0.05
    power: float = 0.8

    def __post_init__(self) -> None:
        if self.items < 2 or self.seeds_a < 1 or self.seeds_b < 0:
            raise ScoreError(
                f"expected at least 2 items, 1 seed for A and 0 for B; found {self.items}, {self.seeds_a}, "
                f"{self.seeds_b}."
            )
        if not 0 < self.discordance <= 1 or self.seed_sd < 0 or self.design_effect <= 0:
            raise ScoreError(
                f"expected a discordance in (0, 1], seed_sd ≥ 0 and design_effect > 0; found "
                f"{self.discordance:g}, {self.seed_sd:g}, {self.design_effect:g}."
            )
        _check(1.0 if self.margin is None else self.margin, self.alpha, self.power)


@dataclass(frozen=True, slots=True)
class Plan:
    """What a design can say. `stable` tells which assumption the numbers rest on; gaps are in score units.

    `can_say_equivalent` is False when z_{1−α}·se ≥ margin: then no data whatever would show equivalence.
    """

    design: Design
    stable: float
    se: float
    df: float
    detectable: float
    can_say_equivalent: bool | None
    items_for_margin: int | None
    items_for_equivalence: int | None
    sentences: tuple[str, ...]


def plan(design: Design) -> tuple[Plan, ...]:
    """The design's prospects: one plan, or two (seeds flip other items, the same items) when `stable` is unknown."""
    if design.stable is not None:
        return (_plan(design, design.stable),)
    if max(design.seeds_a, design.seeds_b) == 1:
        return (_plan(design, 1.0),)
    return _plan(design, 0.0), _plan(design, 1.0)


def _variance(design: Design, stable: float) -> Variance:
    """The variance of the mean gap that the design should have, with the same rules as `seeds`."""
    arms = [s for s in (design.seeds_a, design.seeds_b) if s > 0]
    noise = sum(1 / s for s in arms) / len(arms)
    item = design.discordance * (stable + (1 - stable) * noise) * design.design_effect / design.items
    item_df = float((design.families or design.items) - 1)
    terms = [(design.seed_sd**2 / s, s - 1.0) for s in arms if s > 1]
    seed = sum(v for v, _ in terms)
    if seed == 0:
        return Variance(item, item_df, df=item_df)
    seeds_df = seed**2 / sum(v**2 / d for v, d in terms)
    df = (item + seed) ** 2 / (item**2 / item_df + sum(v**2 / d for v, d in terms))
    return Variance(item, item_df, seed, seeds_df, df, added=len(terms) < 2 or min(d for _, d in terms) < 2)


def _plan(design: Design, stable: float) -> Plan:
    variance = _variance(design, stable)
    item, seed, se, df = variance.item, variance.seeds, variance.se, variance.effective_df()
    single = max(design.seeds_a, design.seeds_b) <= 1 and design.design_effect == 1 and design.families is None
    gap = mcnemar_gap(design.items, design.discordance, alpha=design.alpha, power=design.power) if single else None
    if gap is None:
        gap = detectable_gap(se, df, alpha=design.alpha, power=design.power)
    margin = design.margin
    reachable = None if margin is None else normal_quantile(1 - design.alpha) * se < margin
    for_margin = for_equal = None
    if margin is not None:
        for_margin = items_needed(margin, item * design.items, seed, alpha=design.alpha, power=design.power)
        if single and design.discordance >= margin:
            for_margin = mcnemar_n(margin, design.discordance, alpha=design.alpha, power=design.power)
        for_equal = items_needed(
            margin, item * design.items, seed, alpha=design.alpha, power=design.power, equivalence=True
        )
    sentences = _plan_sentences(design, gap, reachable, for_margin, for_equal)
    return Plan(design, stable, se, df, gap, reachable, for_margin, for_equal, sentences)


def items_needed(
    margin: float,
    item_variance: float,
    seed_variance: float,
    *,
    alpha: float = 0.05,
    power: float = 0.8,
    equivalence: bool = False,
) -> int | None:
    """Items that settle `margin` when the mean gap has variance item_variance/n + seed_variance.

    n = item_variance/(margin²/z² − seed_variance), z = z_{α/2} + z_β, or z_{1−α} + z_{1−β/2} for equivalence at a true
    gap of 0. None when no number of items suffices: then only more seeds help.
    """
    z = normal_quantile(1 - alpha / 2) + normal_quantile(power)
    if equivalence:
        z = normal_quantile(1 - alpha) + normal_quantile(1 - (1 - power) / 2)
    room = (margin / z) ** 2 - seed_variance
    return math.ceil(item_variance / room) if room > 0 else None


def _plan_sentences(
    design: Design, gap: float, reachable: bool | None, for_margin: int | None, for_equal: int | None
) -> tuple[str, ...]:
    share = f"{100 * design.power:g} %"
    lines = [f"The smallest gap this design detects with {share} power is {gap:.4f}."]
    if design.margin is None:
        return tuple(lines)
    if gap > design.margin:
        lines.append(f"That lies above the declared margin of {design.margin:g}: the margin cannot be resolved.")
    if reachable is False:
        lines.append(f'This design can never say "equivalent" at ± {design.margin:g}, whatever comes out.')
    for what, n in (("To resolve a gap of the margin", for_margin), ("To show equivalence", for_equal)):
        if n is None:
            lines.append(f"{what} no number of items suffices with these seeds: add seeds.")
        elif n > design.items:
            lines.append(f"{what} takes about {n:,} items with these seeds.")
    return tuple(lines)


def detectable_grid(design: Design, items: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Figure data: one row per items × seeds (both arms; a fixed B stays fixed) with the detectable gap."""
    rows = []
    for s in seeds:
        for n in items:
            families = None
            if design.families is not None:
                families = max(2, round(design.families * n / design.items))
            cell = replace(design, items=n, seeds_a=s, seeds_b=s if design.seeds_b else 0, families=families)
            for outcome in plan(cell):
                rows.append({"items": n, "seeds": s, "stable": outcome.stable, "detectable": outcome.detectable})
    return rows


# ---------------------------------------------------------------- from scores


def design_from(comparison: Comparison, *, margin: float | None = None, alpha: float = 0.05) -> Design:
    """The design that pilot scores imply: ψ, seed SD, the stable share and the design effect as estimated there.

    For graded scores `discordance` holds the item variance of one run's difference, which may not exceed 1: rescale
    scores to [0, 1] first. Raises ScoreError when the pilot shows no difference on any item.
    """
    from veritune.decide import seeds as crossed_seeds

    pair = comparison.pair
    parts = crossed_seeds.crossed(pair)
    a, b = pair.score_a_S_N, pair.score_b_S_N
    one_run = float(((a[:, None] - b[None, :]) - (a.mean() - b.mean())).var(axis=-1).mean())
    averaged = float(parts.item_K_K[0, 0]) * pair.n
    if one_run == 0:
        raise ScoreError(
            "the pilot scores are the same on every item: nothing to plan from.",
            fix="Give a discordance instead, or check that the adapter was loaded.",
        )
    noise = 1 / len(a) if pair.b.fixed else (1 / len(a) + 1 / len(b)) / 2
    stable = None if noise == 1 else min(1.0, max(0.0, (averaged / one_run - noise) / (1 - noise)))
    seed_variance = [
        max(0.0, float(arm.seed_K_K[0, 0] - min(arm.resid_K_K[0, 0], arm.resid_clustered_K_K[0, 0])))
        for arm in parts.arms
    ]
    naive, clustered = float(parts.item_K_K[0, 0]), float(parts.item_clustered_K_K[0, 0])
    return Design(
        items=pair.n,
        discordance=comparison.details.get("discordance") or min(1.0, one_run),
        seeds_a=len(a),
        seeds_b=0 if pair.b.fixed else len(b),
        seed_sd=math.sqrt(sum(seed_variance) / len(seed_variance)) if seed_variance else 0.0,
        stable=stable,
        design_effect=max(1.0, clustered / naive) if naive > 0 else 1.0,
        families=pair.n_families,
        margin=margin,
        alpha=alpha,
    )


def detectable_in(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest gap that a comparison like this one detects; None when its spread is unknown or 0."""
    result, pair = comparison.headline, comparison.pair
    discordance = comparison.details.get("discordance")
    if result.method == "Tango score interval" and discordance:
        gap = mcnemar_gap(pair.n, discordance, alpha=alpha, power=power)
        if gap is not None:
            return gap
    if not result.se:
        return None
    return detectable_gap(result.se, result.df or max(1, pair.n - 1), alpha=alpha, power=power)


def items_to_settle(
    comparison: Comparison, margin: float, *, alpha: float = 0.05, equivalence: bool = False
) -> int | None:
    """Items, with the seeds at hand, that would settle `margin` with 80 % power; None when items cannot.

    For equivalence the true gap is taken to be 0.
    """
    discordance = comparison.details.get("discordance")
    if comparison.headline.method == "Tango score interval" and discordance:
        if equivalence:
            return tost_n(margin, discordance, alpha=alpha)
        return mcnemar_n(margin, max(discordance, margin), alpha=alpha)
    return items_for_distance(comparison, margin, alpha=alpha, equivalence=equivalence)


def items_for_distance(
    comparison: Comparison, distance: float, *, alpha: float = 0.05, equivalence: bool = False
) -> int | None:
    """Items, with the seeds at hand, that tell a gap from an edge this far away; None when items cannot."""
    result = comparison.headline
    if not result.se or distance <= 0:
        return None
    item = comparison.results["checkpoints"].se or 0.0
    seed = max(0.0, result.se**2 - item**2)
    return items_needed(distance, item**2 * comparison.pair.n, seed, alpha=alpha, equivalence=equivalence)
