"""Planning: what a design can decide, and the items and seeds that a distance takes, before money is spent.

Conventions: `gap` and `margin` in score units; ψ (`discordance`) the share of items on which one run of A and one of
B differ; `power` the chance to see a true gap at level `alpha`, two-sided.

One model (`prospects`) gives the chance that the interval in use lies beyond 0, or inside ± a margin. The smallest
detectable gap and the items and seeds that settle a distance are this one chance solved for three unknowns, so they
agree. A comparison is planned from by the design that its scores imply.

The spread between seeds is hardly known from a pilot of few seeds. It enters at the ends of its 80 % range, and counts
come as a range: `Needed.low` at the lower end, `Needed.high` at the upper one. "No number of items" is stated only
where it holds at the lower end with endless items.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

import numpy as np
from scipy import special

from veritune.errors import ScoreError
from veritune.stats import prospects
from veritune.stats import seeds as crossed_seeds
from veritune.stats.families import FamilyRule, family_rule
from veritune.stats.intervals import Unknown, normal_quantile
from veritune.stats.paired import Comparison

if TYPE_CHECKING:
    from veritune.records import JsonLike

MOST_SEEDS = 50
"""Seeds per arm up to which a plan looks for enough."""


def mcnemar_n(gap: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Number of items for a McNemar test to detect `gap`: [z_{α/2}·√ψ + z_β·√(ψ − δ²)]²/δ², rounded up.

    Source: Connor 1987, Biometrics 43:207. One run a side, independent items. A gap cannot exceed the discordance.
    """
    _check(gap, alpha, power)
    if not abs(gap) <= discordance <= 1:
        raise ScoreError(
            f"expected a discordance between the gap and 1, found gap {gap:g} and discordance {discordance:g}.",
            fix="Raise the discordance: a gap of δ needs at least a share δ of items on which the sides differ.",
        )
    z = normal_quantile(1 - alpha / 2) * math.sqrt(discordance)
    z += normal_quantile(power) * math.sqrt(discordance - gap**2)
    return math.ceil((z / gap) ** 2)


def tost_n(margin: float, discordance: float, *, alpha: float = 0.05, power: float = 0.8) -> int:
    """Number of items to show equivalence within ± `margin` when the true gap is 0: (z_{1−α} + z_{1−β/2})²·ψ/margin².

    At the defaults (z_.95 + z_.90)². Source: Julious 2004, Stat Med 23:1921.
    """
    _check(margin, alpha, power)
    z = normal_quantile(1 - alpha) + normal_quantile(1 - (1 - power) / 2)
    return math.ceil(z**2 * discordance / margin**2)


def _check(gap: float, alpha: float, power: float) -> None:
    if not (abs(gap) > 0 and 0 < alpha < 1 and 0 < power < 1):
        raise ScoreError(f"expected gap > 0, alpha and power in (0, 1); found {gap:g}, {alpha:g}, {power:g}.")


# ---------------------------------------------------------------- designs


@dataclass(frozen=True, slots=True)
class Design:
    """The design of a planned study. Units are score units; variances follow the crossed model of `seeds`.

    `discordance` is ψ for one run a side (for graded scores: the variance over items of one run's difference).
    `stable` is the share of it that repeats in every seed: 1 when seeds flip the same items, 0 when they flip
    independent ones; unknown before a pilot, and then both ends are reported. `seed_sd` is the standard deviation
    of a run's mean score between seeds beyond what its items explain, `seed_range` its 80 % limits from a pilot (None:
    assumed). `seeds_b` 0 means a fixed arm, a baseline without seeds. `design_effect` is the variance inflation by
    families, `family_sizes` the items in each (equal ones where only `families` is given); their number grows with that
    of the items. `item_variance` is what a pilot measured in place of the discordance. `width` is that of the declared
    score scale. `equal_seed_spread` and `shared_seeds` are what the study declares of its seeds. `noise_a` is A's share
    of what does not repeat (one half where both arms stray alike; a rate near 1 strays less).

    >>> Design(items=1319, discordance=0.07, seeds_a=3, seeds_b=3).items
    1319
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
    family_sizes: tuple[int, ...] | None = None
    seed_range: tuple[float, float] | None = None
    width: float = 1.0
    equal_seed_spread: bool = False
    shared_seeds: bool = False
    noise_a: float = 0.5

    def __post_init__(self) -> None:
        if self.items < 2 or self.seeds_a < 1 or self.seeds_b < 0:
            raise ScoreError(
                f"expected at least 2 items, 1 seed for A and 0 for B; found {self.items}, {self.seeds_a}, "
                f"{self.seeds_b}."
            )
        most = 1.0 if self.item_variance is None else math.inf
        if not 0 < self.discordance <= most or self.seed_sd < 0 or self.design_effect <= 0 or self.width <= 0:
            raise ScoreError(
                f"expected a discordance in (0, 1], seed_sd ≥ 0, design_effect > 0 and width > 0; found "
                f"{self.discordance:g}, {self.seed_sd:g}, {self.design_effect:g}, {self.width:g}."
            )
        if self.stable is not None and not 0 <= self.stable <= 1:
            raise ScoreError(f"expected a stable share from 0 to 1, found {self.stable:g}.")
        if self.shared_seeds and self.seeds_a != self.seeds_b:
            raise ScoreError(
                f"expected equal numbers of seeds on both sides because they are shared, found {self.seeds_a} "
                f"and {self.seeds_b}."
            )
        if self.family_sizes is not None and sum(self.family_sizes) != self.items:
            raise ScoreError(
                f"expected family sizes that add up to {self.items} items, found {sum(self.family_sizes)}.",
                fix="Give the number of items in each family.",
            )
        if self.sizes is None and self.design_effect != 1:
            raise ScoreError(
                f"a design effect of {self.design_effect:g} needs families, found none.",
                fix="Give the number of families or their sizes.",
            )
        _check(1.0 if self.margin is None else self.margin, self.alpha, self.power)

    @property
    def arms(self) -> tuple[int, ...]:
        """The number of runs of each arm that has seeds."""
        return tuple(s for s in (self.seeds_a, self.seeds_b) if s > 0)

    @property
    def single(self) -> bool:
        """True if each side has one run."""
        return max(self.arms) == 1

    @property
    def recipe(self) -> bool:
        """True if the interval covers new seeds: every arm with seeds has several."""
        return min(self.arms) > 1

    @property
    def sizes(self) -> tuple[float, ...] | None:
        """Items per family; None if every item is independent."""
        if self.family_sizes is not None:
            return self.family_sizes
        return None if self.families is None else (self.items / self.families,) * self.families

    def family_rule(self) -> FamilyRule | None:
        """The interval rule for the family sizes; None without families."""
        return None if self.sizes is None else prospects.sized_rule(self.sizes)


@dataclass(frozen=True, slots=True)
class Needed:
    """How many items, or seeds per arm, settle a distance: `low` with the seed spread at the lower end of its 80 %
    range, `high` at its upper end. None: no number settles it (for seeds: none up to 50).
    """

    low: int | None
    high: int | None

    @property
    def impossible(self) -> bool:
        """True if no number is enough even with the smallest seed spread that is compatible with the pilot."""
        return self.low is None


@dataclass(frozen=True, slots=True)
class PowerPlan:
    """What a design can detect. `stable` names the assumption behind the numbers; gaps are in score units.

    `detectable` is the gap told from 0 with the design's power, at the seed spread as estimated or assumed, and
    `detectable_range` the same at the two ends of that spread; None where no gap on the score scale is.
    `chance_at_margin` is the power at a gap of the margin, `chance_of_equivalence` that to show equivalence at a true
    gap of 0. `can_say_equivalent` is False only where it is proved: not even identical outputs would do. `withheld` is
    why the families give no interval, empty where they do.
    """

    design: Design
    stable: float
    se: float
    detectable: float | None
    detectable_range: tuple[float | None, float | None]
    chance_at_margin: float | None
    chance_of_equivalence: float | None
    can_say_equivalent: bool | None
    items_for_margin: Needed | None
    items_for_equivalence: Needed | None
    seeds_for_margin: Needed | None
    seeds_for_equivalence: Needed | None
    withheld: str
    sentences: tuple[str, ...]


def plan(design: Design) -> tuple[PowerPlan, ...]:
    """What the design can detect: one plan, or two (seeds flip different items, or the same items) if `stable` is
    unknown.

    >>> plan(Design(items=1319, discordance=0.07, margin=0.01))[0].sentences[0]
    'The smallest gap this design detects with 80 % power is 0.0203.'
    """
    return tuple(_plan(one) for one in _assumed(design))


def _assumed(design: Design) -> tuple[Design, ...]:
    """The design with `stable` filled in: both ends where it is unknown and matters."""
    if design.stable is not None:
        return (design,)
    shares = (1.0,) if design.single else (0.0, 1.0)
    return tuple(replace(design, stable=share) for share in shares)


def _spreads(design: Design) -> tuple[Design, Design]:
    """The design at the lower and the upper end of its seed spread."""
    if design.seed_range is None or not design.recipe:
        return design, design
    low, high = (replace(design, seed_sd=sd, seed_range=None) for sd in design.seed_range)
    return low, high


def parts(design: Design) -> prospects.Parts:
    """The variances behind a design's interval."""
    stable = 1.0 if design.stable is None else design.stable
    sizes = design.sizes
    table = design.single and design.binary and sizes is None  # Tango's interval needs ψ, not a variance
    item = design.discordance if design.item_variance is None or table else design.item_variance
    noise, share = item * (1 - stable), design.noise_a if design.seeds_b else 1.0
    return prospects.Parts(
        item=item * stable,
        noise=(noise * share, noise * (1 - share)),
        seed=design.seed_sd**2,
        runs=(design.seeds_a, design.seeds_b),
        recipe=design.recipe,
        equal=design.equal_seed_spread,
        shared=design.shared_seeds and not design.single,
        width=design.width,
        binary=design.binary,
        pattern=None if sizes is None else prospects.Families(sizes, design.design_effect),
        items=design.items,
    )


_ENDLESS = 1e12
"""Items without end: what is left is the spread between seeds."""


def chance(design: Design, distance: float, *, items: float | None = None, equivalence: bool = False) -> float:
    """The chance that a true gap of `distance` is distinguished from 0; with `equivalence`, that a true gap of 0 is
    shown to lie within ± `distance`. Another number of `items` than the design's scales its families.

    >>> round(chance(Design(items=1319, discordance=0.07), 0.02), 2)
    0.79
    """
    n = design.items if items is None else items
    if equivalence:
        return prospects.inside(parts(design), n, 1 - 2 * design.alpha, distance)
    return prospects.excludes(parts(design), n, 1 - design.alpha, distance)


def detectable(design: Design, *, items: int | None = None, equivalence: bool = False) -> float | None:
    """The smallest gap that the interval distinguishes from 0 with the design's power; None if no gap on the scale is
    large enough.

    With `equivalence` the smallest margin within which a true gap of 0 is shown.

    >>> round(detectable(Design(items=1319, discordance=0.07)), 3)
    0.02
    """

    def reach(distance: float) -> float:
        return chance(design, distance, items=items, equivalence=equivalence)

    return prospects.least(reach, design.power, design.width)


def items_needed(design: Design, distance: float, *, equivalence: bool = False) -> int | None:
    """The smallest number of items, with the design's seeds and seed spread, at which the chance of settling `distance`
    reaches the design's power (above 2,000 exact to a thousandth). None if no number of items is enough.

    >>> items_needed(Design(items=1319, discordance=0.07), 0.01) > 5000
    True
    """
    _check(distance, design.alpha, design.power)

    def enough(n: float) -> bool:
        return chance(design, distance, items=n, equivalence=equivalence) >= design.power

    if distance >= design.width and not enough(design.items):
        distance = design.width
    if not enough(_ENDLESS):
        return None
    low, high = 1, design.items
    if enough(high):
        while high > 2 and enough(high // 2):
            high //= 2
        low = max(1, high // 2)
    while not enough(high):
        low, high = high, high * 2
    while high - low > max(1, low // 1000):
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def seeds_needed(design: Design, distance: float, *, equivalence: bool = False, most: int = MOST_SEEDS) -> int | None:
    """The smallest number of seeds per arm (a fixed arm stays fixed) that settles `distance` with the design's items.

    None when `most` seeds do not, and for one run a side, where the seed spread is unknown.

    >>> seeds_needed(Design(items=1319, discordance=0.07), 0.02) is None
    True
    """
    if not design.recipe:
        return None

    def enough(s: int) -> bool:
        cell = replace(design, seeds_a=s, seeds_b=s if design.seeds_b else 0)
        return chance(cell, distance, equivalence=equivalence) >= design.power

    low, high = 1, 2
    while not enough(high):
        if high >= most:
            return None
        low, high = high, min(most, high * 2)
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high


def _range(design: Design, settle: Callable[[Design], int | None]) -> Needed:
    low, high = _spreads(design)
    least = settle(low)
    return Needed(least, least if high == low else settle(high))


def items_range(design: Design, distance: float, *, equivalence: bool = False) -> Needed:
    """`items_needed` at both ends of the seed spread."""
    return _range(design, lambda one: items_needed(one, distance, equivalence=equivalence))


def seeds_range(design: Design, distance: float, *, equivalence: bool = False) -> Needed:
    """`seeds_needed` at both ends of the seed spread."""
    return _range(design, lambda one: seeds_needed(one, distance, equivalence=equivalence))


# ---------------------------------------------------------------- what can never be said


def best_half(design: Design) -> float:
    """Half the width of the interval at 1 − 2·alpha if no item differs in any run: the narrowest possible one."""
    table = design.single and design.binary
    return _narrowest(design.items, design.alpha, table=table, width=design.width, rule=design.family_rule())


def best_low(design: Design) -> float:
    """The highest possible lower end of the interval at 1 − alpha: that of A winning every item in every run.

    −∞ where the families give no interval.
    """
    rule, n = design.family_rule(), design.items
    if rule is not None and rule.method == "withheld":
        return -math.inf
    if design.single and design.binary:
        z = normal_quantile(1 - design.alpha / 2)
        return (n - z * z) / (n + z * z)
    return design.width * (1 + 2 * math.expm1(math.log(design.alpha / 2) / n))


def can_show_equivalence(comparison: Comparison, margin: float, *, alpha: float = 0.05) -> bool:
    """False if it is proved that these items cannot show equivalence within ± `margin`, whatever the outcome."""
    pair = comparison.pair
    table = pair.is_binary and len(pair.score_a_S_N) == len(pair.score_b_S_N) == 1
    rule = None if pair.family_N is None else family_rule(np.bincount(pair.family_N))
    width = pair.scale[1] - pair.scale[0]
    return _narrowest(pair.n, alpha, table=table, width=width, rule=rule) < margin


def _narrowest(n: int, alpha: float, *, table: bool, width: float, rule: FamilyRule | None) -> float:
    """Tango's z²/(n + z²) for one binary run a side (`table`), else (1 − alpha^{1/n})·width; infinite where the family
    sizes allow no interval. With families this is a bound: their items count for at most one each."""
    if rule is not None and rule.method == "withheld":
        return math.inf
    if table:
        z = normal_quantile(1 - alpha)
        return z * z / (n + z * z)
    return float(-math.expm1(math.log(alpha) / n)) * width


def least_items_equal(margin: float, alpha: float = 0.05, *, binary: bool = True, width: float = 1.0) -> int:
    """The number of items below which not even identical outputs show equivalence within ± `margin` at `alpha`
    (one-sided).

    Binary, one run a side: the least n with z²/(n + z²) < margin. Otherwise the least with (1 − alpha^{1/n})·width <
    margin: 59 for a margin of .05 on scores from 0 to 1.

    >>> least_items_equal(0.05, binary=False)
    59
    """
    _check(margin, alpha, 0.5)
    if margin >= width:
        return 1
    if binary:
        z = normal_quantile(1 - alpha)
        return math.floor(z * z * (1 - margin) / margin) + 1
    return math.floor(math.log(alpha) / math.log1p(-margin / width)) + 1


# ---------------------------------------------------------------- a plan in words


def _plan(design: Design) -> PowerPlan:
    margin, rule = design.margin, design.family_rule()
    low, high = (detectable(one) for one in _spreads(design))
    gap = low if design.seed_range is None else detectable(design)
    draft = PowerPlan(
        design=design,
        stable=1.0 if design.stable is None else design.stable,
        se=math.sqrt(parts(design).variance(design.items)),
        detectable=gap,
        detectable_range=(low, high),
        chance_at_margin=None,
        chance_of_equivalence=None,
        can_say_equivalent=None,
        items_for_margin=None,
        items_for_equivalence=None,
        seeds_for_margin=None,
        seeds_for_equivalence=None,
        withheld=rule.reason if rule is not None and rule.method == "withheld" else "",
        sentences=(),
    )
    if margin is not None:
        draft = replace(
            draft,
            chance_at_margin=chance(design, margin),
            chance_of_equivalence=chance(design, margin, equivalence=True),
            can_say_equivalent=best_half(design) < margin,
            items_for_margin=items_range(design, margin),
            items_for_equivalence=items_range(design, margin, equivalence=True),
            seeds_for_margin=seeds_range(design, margin) if design.recipe else None,
            seeds_for_equivalence=seeds_range(design, margin, equivalence=True) if design.recipe else None,
        )
    return replace(draft, sentences=tuple(_sentences(draft)))


def _sentences(found: PowerPlan) -> Iterator[str]:
    design, gap, margin = found.design, found.detectable, found.design.margin
    share = f"{100 * design.power:g} %"
    if found.withheld:
        yield f"No verdict is possible with these families: {found.withheld}."
    elif gap is None:
        yield f"No gap on the score scale is detected with {share} power."
    else:
        low, high = found.detectable_range
        ends = "" if low == high else f" ({_gap(low)} to {_gap(high)} over the seed spread's 80 % range)"
        yield f"The smallest gap this design detects with {share} power is {gap:.4f}{ends}."
    if design.recipe and design.seed_range is None:
        yield (
            f"Assumed: a seed SD of {design.seed_sd:g}. `compare` will not know it and estimates it from the runs; "
            "these numbers include what that costs."
        )
    if margin is None:
        return
    if found.can_say_equivalent is False:
        yield f'This design can never say "equivalent" at ± {margin:g}: not even identical outputs would be enough.'
    grow = " (families growing with them)" if design.sizes is not None else ""
    yield from _needs(
        f"A gap of the margin{grow}", found.chance_at_margin, found.items_for_margin, found.seeds_for_margin
    )
    yield from _needs(
        "Equivalence at a true gap of 0",
        found.chance_of_equivalence,
        found.items_for_equivalence,
        found.seeds_for_equivalence,
    )


def _needs(what: str, likely: float | None, items: Needed | None, seeds: Needed | None) -> Iterator[str]:
    if likely is None or items is None:
        return
    yield f"{what} is shown with a chance of {likely:.2f}; it takes {describe_needed(items, seeds)}."


def _gap(value: float | None) -> str:
    return "none" if value is None else f"{value:.4f}"


def describe_needed(items: Needed, seeds: Needed | None) -> str:
    """The items and the seeds per arm that settle a distance, as text."""
    if seeds is None:
        return f"about {_span(items, '')} items" if items.low is not None else "more than any number of items"
    text = describe_items(items)
    if seeds.low is None:
        return f"{text} ({MOST_SEEDS} seeds per arm would not do with these items)"
    return f"{text}; or {_span(seeds, f'more than {MOST_SEEDS}')} seeds per arm with these items"


def describe_items(items: Needed) -> str:
    """The number of items as text. "No number" is the proved case; if only the spread's upper end forbids it, the text
    leaves it open.
    """
    if items.low is None:
        return "more seeds, since no number of items is enough with these"
    if items.high is None:
        return (
            f"about {items.low:,} items if the seed spread is at the lower end of its 80 % range, and at its upper end "
            "no number of items (not settled by this pilot)"
        )
    return f"about {_span(items, '')} items with these seeds"


def _span(needed: Needed, beyond: str) -> str:
    if needed.high is None:
        return f"{needed.low:,} to {beyond}"
    return f"{needed.low:,}" if needed.low == needed.high else f"{needed.low:,} to {needed.high:,}"


def detectable_grid(design: Design, items: Sequence[int], seeds: Sequence[int]) -> list[dict[str, JsonLike]]:
    """Data for a figure: one row per items × seeds (both arms; a fixed B stays fixed) with the detectable gap.

    The design's own seeds stand for both arms as they are, also where they differ.
    """
    rows: list[dict[str, JsonLike]] = []
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
    """The design implied by pilot scores: ψ, seed SD and its range, the stable share, item variance and families.

    Seed variance and noise are pooled over the arms. Raises ScoreError when the pilot shows no difference on any item.
    """
    pair = comparison.pair
    if not pair.is_binary and not pair.bounded:
        raise ScoreError(
            f"expected a declared scale of the graded scores, found none (they run from {pair.scale[0]:g} to "
            f"{pair.scale[1]:g}).",
            fix="Declare the lowest and the highest possible score: --scale 0 10.",
        )
    shared = comparison.options.shared_seeds and len(pair.score_a_S_N) > 1
    found = crossed_seeds.crossed(pair, shared=shared)
    a, b = pair.score_a_S_N, pair.score_b_S_N
    one_run = float(((a[:, None] - b[None, :]) - (a.mean() - b.mean())).var(axis=-1).mean())
    if one_run == 0:
        raise ScoreError(
            "the pilot scores are the same on every item: there is no variation to plan from.",
            fix="Give a discordance instead, or check that the adapter was loaded.",
        )
    arms = (len(a),) if pair.b.fixed else (len(a), len(b))
    naive, clustered = float(found.item_K_K[0, 0]), float(found.item_clustered_K_K[0, 0])
    spread, item = _pooled(found.arms, 2 if shared else 1), naive * pair.n
    noises = [x * pair.n for x in spread.noise] if len(spread.noise) == len(arms) else [0.0] * len(arms)
    averaged = sum(x / s for x, s in zip(noises, arms))
    if 0 < item < averaged:  # the noise explains more than all of it: take as much as there is
        noises = [x * item / averaged for x in noises]
    lasting = max(0.0, item - sum(x / s for x, s in zip(noises, arms)))
    whole = lasting + sum(noises)
    sizes = None if pair.family_N is None else tuple(int(x) for x in np.bincount(pair.family_N))
    return Design(
        items=pair.n,
        discordance=comparison.details.get("discordance") or one_run,
        seeds_a=len(a),
        seeds_b=0 if pair.b.fixed else len(b),
        seed_sd=spread.sd,
        stable=lasting / whole if found.arms else None,
        design_effect=max(1.0, clustered / naive) if naive > 0 and sizes is not None else 1.0,
        family_sizes=sizes,
        margin=margin,
        alpha=alpha,
        power=power,
        binary=pair.is_binary,
        item_variance=whole,
        seed_range=spread.range if found.arms else None,
        width=pair.scale[1] - pair.scale[0],
        equal_seed_spread=comparison.options.equal_seed_spread,
        shared_seeds=shared,
        noise_a=noises[0] / sum(noises) if sum(noises) > 0 else 0.5,
    )


@dataclass(frozen=True, slots=True)
class _SeedPilot:
    """What a pilot shows of its runs: each side's noise in a run's mean, and the seed SD with its 80 % limits."""

    noise: tuple[float, ...]
    sd: float
    range: tuple[float, float]


def _pooled(arms: Sequence[crossed_seeds.Arm], per_arm: int) -> _SeedPilot:
    """Seed variance pooled over the arms by degrees of freedom; `per_arm` sides stand behind each run.

    With v the pooled variance of the seed means on df = ΣS − arms, its 80 % limits are v·df/χ²_{.8} and v·df/χ²_{.2}.
    """
    df = sum(arm.seeds - 1 for arm in arms)
    if df == 0:
        return _SeedPilot((), 0.0, (0.0, 0.0))
    weight = [(arm.seeds - 1) / df for arm in arms]
    noise_A = [min(float(arm.resid_K_K[0, 0]), float(arm.resid_clustered_K_K[0, 0])) / per_arm for arm in arms]
    noise = sum(w * x for w, x in zip(weight, noise_A))
    mean = sum(w * float(arm.seed_K_K[0, 0]) for w, arm in zip(weight, arms)) / per_arm
    shares = (1.0, df / float(special.chdtri(df, 0.2)), df / float(special.chdtri(df, 0.8)))
    sd, low, high = (math.sqrt(max(0.0, mean * share - noise)) for share in shares)
    return _SeedPilot(tuple(noise_A * per_arm), sd, (low, high))


def implied(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> Design | None:
    """The design of a comparison; None if its spread is unknown or nothing differs."""
    if isinstance(comparison.headline.spread, Unknown):
        return None
    try:
        return design_from(comparison, alpha=alpha, power=power)
    except ScoreError:
        return None


def detectable_in(comparison: Comparison, *, alpha: float = 0.05, power: float = 0.8) -> float | None:
    """The smallest gap that a comparison of this design detects; None if its spread is unknown or 0."""
    design = implied(comparison, alpha=alpha, power=power)
    return None if design is None else detectable(design)


@dataclass(frozen=True, slots=True)
class Settling:
    """What would settle a comparison: items with the present seeds, or seeds per arm with the present items (None: one
    run).
    """

    items: Needed
    seeds: Needed | None

    @property
    def text(self) -> str:
        """The numbers as text: "about 400 items with these seeds, or 5 to 12 seeds per arm with these items"."""
        return describe_needed(self.items, self.seeds)


def to_settle(
    comparison: Comparison, distances: Sequence[tuple[float, bool]], *, alpha: float = 0.05, power: float = 0.8
) -> Settling | None:
    """Items and seeds that settle all of the given distances (distance, whether it is a margin of equivalence).

    For equivalence the true gap is taken to be 0. None when the design is unknown or a distance is 0.
    """
    design = implied(comparison, alpha=alpha, power=power)
    if design is None or not distances or any(distance <= 0 for distance, _ in distances):
        return None
    items = [items_range(design, distance, equivalence=equal) for distance, equal in distances]
    if not design.recipe:
        return Settling(_most(items), None)
    return Settling(_most(items), _most([seeds_range(design, x, equivalence=equal) for x, equal in distances]))


def _most(needed: Sequence[Needed]) -> Needed:
    """What is enough for all of them."""

    def end(counts: Sequence[int | None]) -> int | None:
        return None if None in counts else max(n for n in counts if n is not None)

    return Needed(end([x.low for x in needed]), end([x.high for x in needed]))


def chance_again(
    comparison: Comparison, distance: float, *, alpha: float = 0.05, equivalence: bool = False
) -> float | None:
    """The chance that another study of this design settles the distance; None if the design is unknown."""
    design = implied(comparison, alpha=alpha)
    return None if design is None or distance <= 0 else chance(design, distance, equivalence=equivalence)
