"""Planning: how many items, and the smallest gap a design can detect, before money is spent.

Conventions: `gap` and `margin` in score units; ψ (`discordance`) the share of items on which one run of A and one of
B differ; `power` the chance to see a true gap at level `alpha`, two-sided.

Closed forms come first. A `Design` is judged by one model (`prospects`): the chance that the interval which will be
used lies beyond 0. The smallest detectable gap, and the items and seeds that settle a distance, are this one chance
solved for three unknowns, so they cannot disagree. A comparison is planned from by the design that its scores imply.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from scipy import special
from scipy.optimize import brentq

from veritune.errors import ScoreError
from veritune.stats import prospects
from veritune.stats import seeds as crossed_seeds
from veritune.stats.intervals import Unknown, normal_quantile, t_quantile
from veritune.stats.paired import Comparison
from veritune.stats.seeds import SeedSpread, seed_rule


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
    without seeds. `design_effect` is the variance inflation by families; their number grows with that of the items.
    `item_variance` is what a pilot measured in place of discordance × design effect, None without one.
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
    binary: bool = True
    item_variance: float | None = None

    def __post_init__(self) -> None:
        if self.items < 2 or self.seeds_a < 1 or self.seeds_b < 0:
            raise ScoreError(
                f"expected at least 2 items, 1 seed for A and 0 for B; found {self.items}, {self.seeds_a}, "
                f"{self.seeds_b}."
            )
        most = 1.0 if self.item_variance is None else math.inf
        if not 0 < self.discordance <= most or self.seed_sd < 0 or self.design_effect <= 0:
            raise ScoreError(
                f"expected a discordance in (0, 1], seed_sd ≥ 0 and design_effect > 0; found "
                f"{self.discordance:g}, {self.seed_sd:g}, {self.design_effect:g}."
            )
        _check(1.0 if self.margin is None else self.margin, self.alpha, self.power)

    @property
    def arms(self) -> tuple[int, ...]:
        """Runs of each arm that has seeds by nature."""
        return tuple(s for s in (self.seeds_a, self.seeds_b) if s > 0)

    @property
    def single(self) -> bool:
        """True with one run a side."""
        return max(self.arms) == 1

    @property
    def recipe(self) -> bool:
        """True when the interval will speak of new seeds: every arm with seeds has several."""
        return min(self.arms) > 1


@dataclass(frozen=True, slots=True)
class Plan:
    """What a design can say. `stable` tells which assumption the numbers rest on; gaps are in score units.

    `detectable` is None when no gap is ever detected (too few families for any test). `if_estimated` is the same where
    a design says that seeds add no spread of their own (seed_sd 0) but the interval has to estimate that from the runs.
    `can_say_equivalent` is False when half the expected 1 − 2·alpha interval reaches the margin. `items_*` are None
    when no number of items suffices with these seeds; `seeds_for_margin` then tells how many do with these items.
    """

    design: Design
    stable: float
    se: float
    df: float
    detectable: float | None
    if_estimated: float | None
    can_say_equivalent: bool | None
    items_for_margin: int | None
    items_for_equivalence: int | None
    seeds_for_margin: int | None
    sentences: tuple[str, ...]


def plan(design: Design) -> tuple[Plan, ...]:
    """The design's prospects: one plan, or two (seeds flip other items, the same items) when `stable` is unknown."""
    return tuple(_plan(one) for one in _assumed(design))


def _assumed(design: Design) -> tuple[Design, ...]:
    """The design with `stable` filled in: both ends where it is unknown and matters."""
    if design.stable is not None:
        return (design,)
    shares = (1.0,) if design.single else (0.0, 1.0)
    return tuple(replace(design, stable=share) for share in shares)


def _parts(design: Design, *, estimated: bool | None = None) -> prospects.Parts:
    """The design's variances. The seed part is estimated from the runs unless the design declares that it is 0."""
    stable = 1.0 if design.stable is None else design.stable
    item = design.discordance * design.design_effect if design.item_variance is None else design.item_variance
    if estimated is None:
        estimated = design.seed_sd > 0 or design.item_variance is not None
    return prospects.Parts(
        item=item * stable,
        noise=item * (1 - stable) / len(design.arms),
        seed=design.seed_sd**2,
        seeds=design.arms,
        spread=design.recipe and estimated,
    )


def _by_score(design: Design) -> bool:
    """True where the interval is Tango's: one binary run a side on independent items."""
    return design.single and design.binary and design.families is None and design.design_effect == 1


def _unit_df(design: Design, n: float) -> float:
    """Degrees of freedom over n items; families grow in number with the items."""
    return max(1.0, (design.families or design.items) * n / design.items - 1)


_ENDLESS = 1e12
"""Items without end: what is left is the spread between seeds."""


def _halves(design: Design, n: float, *, equivalence: bool, estimated: bool | None = None) -> prospects.Halves:
    level = 1 - (2 if equivalence else 1) * design.alpha
    df = min(1e7, _unit_df(design, n))
    return prospects.halves(_parts(design, estimated=estimated), n, df, level)


def detectable(
    design: Design, *, items: int | None = None, equivalence: bool = False, estimated: bool | None = None
) -> float | None:
    """The smallest gap that the interval in use tells from 0 with the design's power; None when none is ever told.

    With `equivalence` the smallest margin within which a true gap of 0 is shown. `items` other than the design's
    rescale its families. Satterthwaite's interval gets a few per cent wider again when items no longer matter
    beside three or four seeds: the gap is therefore never below that of endless items.
    """
    n = design.items if items is None else items
    if _by_score(design):
        if equivalence:
            return _equivalence_z(design) * math.sqrt(design.discordance / n)
        return _score_gap(n, design)
    chance = "inside" if equivalence else "excludes_zero"
    sizes = (n, _ENDLESS) if _parts(design, estimated=estimated).spread else (n,)
    found = [
        _halves(design, size, equivalence=equivalence, estimated=estimated).least(chance, design.power)
        for size in sizes
    ]
    floor = _score_gap(n / design.design_effect, design) if _has_floor(design, equivalence) else 0.0
    return None if floor is None else max(*found, floor)


def _has_floor(design: Design, equivalence: bool) -> bool:
    """True where the score interval on the effective number of items bounds the cluster-robust one from below."""
    return design.single and design.binary and not equivalence


def items_needed(design: Design, distance: float, *, equivalence: bool = False) -> int | None:
    """The least number of items, with the design's seeds, at which `detectable` is at most `distance`.

    None when no number of items is enough: then only more seeds help.
    """
    _check(distance, design.alpha, design.power)
    if _by_score(design):
        if equivalence:
            return tost_n(distance, design.discordance, alpha=design.alpha, power=design.power)
        near = min(distance, 1.0)
        return mcnemar_n(near, max(near, design.discordance), alpha=design.alpha, power=design.power)
    if _parts(design).spread and not _reaches(design, _ENDLESS, distance, equivalence):
        return None
    low, high = 1, 2
    while not _reaches(design, high, distance, equivalence):
        low, high = high, high * 2
        if high > _ENDLESS:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if _reaches(design, middle, distance, equivalence) else (middle, high)
    return high


def _reaches(design: Design, n: float, distance: float, equivalence: bool) -> bool:
    """Whether n items tell a gap of `distance` from 0 (or show equivalence within it) with the design's power."""
    if _has_floor(design, equivalence):
        floor = _score_gap(n / design.design_effect, design)
        if floor is None or floor > distance:
            return False
    found = _halves(design, n, equivalence=equivalence)
    return (found.inside(distance) if equivalence else found.excludes_zero(distance)) >= design.power


def seeds_needed(design: Design, distance: float, *, equivalence: bool = False, most: int = 50) -> int | None:
    """The least seeds per arm, with the design's items, at which `detectable` is at most `distance`; None when `most`
    are not enough, or when one seed leaves their spread unknown."""
    if not design.recipe:
        return None

    def enough(s: int) -> bool:
        cell = replace(design, seeds_a=s, seeds_b=s if design.seeds_b else 0)
        endless = _reaches(cell, _ENDLESS, distance, equivalence)
        return endless and _reaches(cell, design.items, distance, equivalence)

    low, high = 1, 2
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(most, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _equivalence_z(design: Design) -> float:
    return normal_quantile(1 - design.alpha) + normal_quantile(1 - (1 - design.power) / 2)


def _score_gap(n: float, design: Design) -> float | None:
    """`mcnemar_n` solved for the gap, where a gap above the discordance raises it. None under about 4 items."""
    a, b = normal_quantile(1 - design.alpha / 2), normal_quantile(design.power)

    def excess(gap: float) -> float:
        share = max(gap, design.discordance)
        return math.sqrt(n) * gap - a * math.sqrt(share) - b * math.sqrt(max(0.0, share - gap**2))

    return float(brentq(excess, 0.0, 1.0, xtol=1e-13)) if excess(1.0) > 0 else None


@dataclass(frozen=True, slots=True)
class _Expected:
    """The distance that the design's interval is expected to have, and what it is made of."""

    item: float
    item_df: float
    seeds: SeedSpread | None

    @property
    def se(self) -> float:
        return math.sqrt(self.item + (self.seeds.value if self.seeds else 0.0))

    def half(self, alpha: float) -> float:
        items = t_quantile(1 - alpha, self.item_df) * math.sqrt(self.item)
        return self.seeds.distance(items, alpha) if self.seeds else items


def _expected(design: Design) -> _Expected:
    parts, n = _parts(design), design.items
    item, item_df = parts.item_variance(n), _unit_df(design, n)
    if not parts.spread:
        return _Expected(item, item_df, None)
    net = tuple((parts.seed / s, s - 1.0) for s in design.arms)
    raw = tuple(((parts.seed + parts.noise / n) / s, s - 1.0) for s in design.arms)
    return _Expected(item, item_df, SeedSpread(net, raw, seed_rule(design.arms)))


def _plan(design: Design) -> Plan:
    expected, margin = _expected(design), design.margin
    gap = detectable(design)
    assumed = design.recipe and not _parts(design).spread
    reachable = for_margin = for_equal = more_seeds = None
    if margin is not None:
        half = expected.half(design.alpha)
        reachable = (normal_quantile(1 - design.alpha) * expected.se if _by_score(design) else half) < margin
        for_margin = items_needed(design, margin)
        for_equal = items_needed(design, margin, equivalence=True)
        more_seeds = seeds_needed(design, margin) if for_margin is None else None
    draft = Plan(
        design=design,
        stable=1.0 if design.stable is None else design.stable,
        se=expected.se,
        df=expected.item_df,
        detectable=gap,
        if_estimated=detectable(design, estimated=True) if assumed else None,
        can_say_equivalent=reachable,
        items_for_margin=for_margin,
        items_for_equivalence=for_equal,
        seeds_for_margin=more_seeds,
        sentences=(),
    )
    return replace(draft, sentences=_plan_sentences(draft))


def _plan_sentences(found: Plan) -> tuple[str, ...]:
    design, gap, margin = found.design, found.detectable, found.design.margin
    share = f"{100 * design.power:g} %"
    if gap is None:
        return ("With so few families no gap can ever be detected: the sign flips of whole families stay above alpha.",)
    lines = [f"The smallest gap this design detects with {share} power is {gap:.4f}."]
    if found.if_estimated is not None:
        lines.append(
            f"That takes a seed SD of 0 as known. Estimated from {min(design.arms)} runs, as `compare` does, "
            f"it is {found.if_estimated:.4f}."
        )
    if margin is None:
        return tuple(lines)
    if gap > margin:
        lines.append(f"That lies above the declared margin of {margin:g}: the margin cannot be resolved.")
    if found.can_say_equivalent is False:
        lines.append(f'This design can never say "equivalent" at ± {margin:g}, whatever comes out.')
    for what, n in (
        ("To resolve a gap of the margin", found.items_for_margin),
        ("To show equivalence", found.items_for_equivalence),
    ):
        if n is None:
            lines.append(f"{what} no number of items suffices with these seeds: add seeds.")
        elif n > design.items:
            lines.append(f"{what} takes about {n:,} items with these seeds.")
    if found.seeds_for_margin is not None:
        lines.append(f"With these items, about {found.seeds_for_margin} seeds an arm would resolve it.")
    return tuple(lines)


def detectable_grid(design: Design, items: Sequence[int], seeds: Sequence[int]) -> list[dict[str, Any]]:
    """Figure data: one row per items × seeds (both arms; a fixed B stays fixed) with the detectable gap.

    The design's own seeds stand for both arms as they are, also where they differ.
    """
    rows = []
    for s in seeds:
        own = s == design.seeds_a
        cell = design if own else replace(design, seeds_a=s, seeds_b=s if design.seeds_b else 0)
        for one in _assumed(cell):
            stable = 1.0 if one.stable is None else one.stable
            rows += [{"items": n, "seeds": s, "stable": stable, "detectable": detectable(one, items=n)} for n in items]
    return rows


# ---------------------------------------------------------------- from scores


def design_from(
    comparison: Comparison, *, margin: float | None = None, alpha: float = 0.05, power: float = 0.8
) -> Design:
    """The design that pilot scores imply: ψ, seed SD, the stable share, item variance and families as estimated there.

    Seed variance and noise are pooled over the arms. Raises ScoreError when the pilot shows no difference on any item.
    """
    pair, parts = comparison.pair, crossed_seeds.crossed(comparison.pair)
    a, b = pair.score_a_S_N, pair.score_b_S_N
    one_run = float(((a[:, None] - b[None, :]) - (a.mean() - b.mean())).var(axis=-1).mean())
    if one_run == 0:
        raise ScoreError(
            "the pilot scores are the same on every item: nothing to plan from.",
            fix="Give a discordance instead, or check that the adapter was loaded.",
        )
    arms = (len(a),) if pair.b.fixed else (len(a), len(b))
    naive, clustered = float(parts.item_K_K[0, 0]), float(parts.item_clustered_K_K[0, 0])
    noise, seed = _pooled(parts.arms, pair.n)
    item, shares = max(naive, clustered) * pair.n, sum(1 / s for s in arms)
    if noise * shares > item:
        noise = item / shares
    whole = item - noise * shares + noise * len(arms)
    return Design(
        items=pair.n,
        discordance=comparison.details.get("discordance") or one_run,
        seeds_a=len(a),
        seeds_b=0 if pair.b.fixed else len(b),
        seed_sd=math.sqrt(seed),
        stable=(item - noise * shares) / whole if parts.arms else None,
        design_effect=max(1.0, clustered / naive) if naive > 0 else 1.0,
        families=pair.n_families,
        margin=margin,
        alpha=alpha,
        power=power,
        binary=pair.is_binary,
        item_variance=whole,
    )


def _pooled(arms: Sequence[crossed_seeds.Arm], n: int) -> tuple[float, float]:
    """Noise per item and run, and seed variance per run: means over the arms, weighted by degrees of freedom."""
    df = sum(arm.seeds - 1 for arm in arms)
    if df == 0:
        return 0.0, 0.0
    weight = [(arm.seeds - 1) / df for arm in arms]
    noise_A = [min(float(arm.resid_K_K[0, 0]), float(arm.resid_clustered_K_K[0, 0])) for arm in arms]
    noise = sum(w * x for w, x in zip(weight, noise_A))
    mean = sum(w * float(arm.seed_K_K[0, 0]) for w, arm in zip(weight, arms))
    return noise * n, max(0.0, mean - noise)


def _implied(comparison: Comparison, alpha: float, power: float) -> Design | None:
    """The design behind a comparison, None when its spread is unknown or nothing differs."""
    if isinstance(comparison.headline.spread, Unknown):
        return None
    try:
        return design_from(comparison, alpha=alpha, power=power)
    except ScoreError:
        return None


def detectable_in(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest gap that a comparison like this one detects; None when its spread is unknown or 0."""
    design = _implied(comparison, alpha, power)
    return None if design is None else detectable(design)


def items_to_settle(
    comparison: Comparison, distance: float, *, alpha: float = 0.05, power: float = 0.8, equivalence: bool = False
) -> int | None:
    """Items, with the seeds at hand, at which `detectable_in` would be at most `distance`; None when items cannot.

    For equivalence the true gap is taken to be 0.
    """
    design = _implied(comparison, alpha, power)
    if design is None or distance <= 0:
        return None
    return items_needed(design, distance, equivalence=equivalence)


def seeds_to_settle(
    comparison: Comparison, distance: float, *, alpha: float = 0.05, power: float = 0.8, equivalence: bool = False
) -> int | None:
    """Seeds per arm, with the items at hand, that would do the same; None when 50 would not, or one seed was run."""
    design = _implied(comparison, alpha, power)
    if design is None or distance <= 0:
        return None
    return seeds_needed(design, distance, equivalence=equivalence)
