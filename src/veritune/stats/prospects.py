"""The chance that the rule of decision settles a distance, before the data are there.

The rule is run on what its own ingredients may come out as, at fixed quasi-random points:

    variance over items      σ²·χ²_{n−1}/(n−1), for families the family sums themselves
    variance of run means    (τ² + ω²/n)·χ²_{S−1}/(S−1) for each arm; item-by-run noise ω²·χ²/df
    gap                      normal round its true value, variance σ²/n + Στ²/S, integrated in closed form

Each draw gives the distance from the estimate to the ends of the interval in use: Student's t united with the bounded
mean (`bounded`) on seed-averaged differences, the family interval of `families`, and the seed part of `seeds` added in
quadrature or by the larger-of rule. Two cases take the items themselves, since their mean and variance are then far
from independent: binary scores of one run a side (every 2×2 table) and of several runs where few items differ.

Axes: D draws, A arms, G families, K distinct values of a difference, J subsets of families.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray
from scipy import special
from scipy.optimize import brentq

from veritune.stats.families import FamilyRule, family_rule
from veritune.stats.seeds import Rule, seed_rule
from veritune.stats.table import Floats

DRAWS = 2048
"""Draws of the rule. Quasi-random, with the gap integrated: halving them moves a chance by under .004."""

FEW_DIFFERING = 60
"""Expected differing items below which binary items are drawn one by one. At 60 the normal model is within .02."""

_FAMILY_DRAWS, _SUBSETS, _MANY_FAMILIES = 1024, 999, 100

FEW_DISCORDANT = 1000
"""Expected discordant items of one run a side up to which every 2×2 table is counted; beyond it the normal form is
within .001."""


@dataclass(frozen=True, slots=True)
class Families:
    """The families of a design: `sizes` are items per family, `effect` is the factor by which families inflate the
    variance over items.
    """

    sizes: tuple[float, ...]
    effect: float = 1.0

    def scaled(self, n: float, items: float) -> Families:
        """Families with `n` items in total, scaled in number from `items` items with the same proportions."""
        count = max(2, round(len(self.sizes) * n / items))
        if count == len(self.sizes) and n == items:
            return self
        if count > _MANY_FAMILIES * 10:
            return Families((n / count,) * (_MANY_FAMILIES * 10), self.effect)
        place_G = (np.arange(count) + 0.5) / count * len(self.sizes)
        size_G = np.sort(self.sizes)[np.minimum(place_G.astype(int), len(self.sizes) - 1)]
        return Families(tuple(size_G * (n / size_G.sum())), self.effect)


@dataclass(frozen=True, slots=True)
class Parts:
    """The components of a design's interval, in squared score units.

    `item`: variance over items of a difference, the part that repeats in every run, family inflation left out;
    `noise`: per item and run of A and of B; `seed`: per run. `runs` are the runs of both arms, 0 for a fixed arm.
    `recipe`: the interval speaks of new seeds. `equal`: the study declared that both arms spread alike; `shared`: runs
    of the two arms share their seeds. `width` is that of the score scale, `pattern` the families of `items` items.
    """

    item: float
    noise: tuple[float, float]
    seed: float
    runs: tuple[int, int]
    recipe: bool = False
    equal: bool = False
    shared: bool = False
    width: float = 1.0
    binary: bool = False
    pattern: Families | None = None
    items: float = 0.0

    @property
    def arms(self) -> tuple[int, ...]:
        """Runs of each arm that contributes to the seed part; paired runs count as one arm."""
        seeds = tuple(s for s in self.runs if s > 0)
        return seeds[:1] if self.shared else seeds

    @property
    def per_arm(self) -> int:
        """Sides per run of an arm: 2 if runs are paired."""
        return 2 if self.shared else 1

    @property
    def table(self) -> bool:
        """True if the interval is Tango's: one binary run per side on independent items."""
        return self.binary and self.pattern is None and max(self.runs) == 1

    @property
    def effect(self) -> float:
        """Variance inflation by families."""
        return self.pattern.effect if self.pattern else 1.0

    def difference(self) -> float:
        """Variance over items of one seed-averaged difference, ignoring families."""
        return self.item + sum(x / s for x, s in zip(self.noise, self.runs) if s > 0)

    def item_variance(self, n: float) -> float:
        """Variance of the mean gap over new items."""
        return self.difference() * self.effect / n

    def seed_variance(self) -> float:
        """Variance of the mean gap over new seeds."""
        return self.seed * self.per_arm * sum(1 / s for s in self.arms) if self.recipe else 0.0

    def variance(self, n: float) -> float:
        """Variance of the mean gap over new items, and over new seeds if the interval covers them."""
        return self.item_variance(n) + self.seed_variance()


# ---------------------------------------------------------------- the two chances


def excludes(parts: Parts, n: float, level: float, gap: float) -> float:
    """The chance that the interval at `level` on `n` items lies beyond 0 when the true gap is `gap` ≥ 0."""
    if parts.table:
        return _table_excludes(parts, n, (1 - level) / 2, gap)
    return _ends(parts, n, (1 - level) / 2, gap).excludes(gap)


def inside(parts: Parts, n: float, level: float, margin: float) -> float:
    """The chance that the interval at `level` lies inside ± `margin` when the true gap is 0."""
    if parts.table:
        return _table_inside(parts, n, (1 - level) / 2, margin)
    return _ends(parts, n, (1 - level) / 2, 0.0).inside(margin)


def least(reach: Callable[[float], float], target: float, most: float) -> float | None:
    """The smallest distance up to `most` at which `reach` is `target`; None if there is none."""
    if reach(most) < target:
        return None
    low = most
    while reach(low) >= target:
        low /= 4
        if low < 1e-12 * most:
            return low
    return float(brentq(lambda x: reach(x) - target, low, most, xtol=1e-7 * most, rtol=1e-6))


@dataclass(frozen=True, slots=True, eq=False)
class Ends:
    """Distances from the estimate to the lower and upper end of its interval, the estimate's drawn deviation from the
    true gap, and the remaining standard deviation.
    """

    shift_D: Floats
    low_D: Floats
    high_D: Floats
    sd: float

    def excludes(self, gap: float) -> float:
        """The chance that the interval lies beyond 0 on either side."""
        above_D = special.ndtr((gap + self.shift_D - self.low_D) / self.sd)
        below_D = special.ndtr((-gap - self.shift_D - self.high_D) / self.sd)
        return float((above_D + below_D).mean())

    def inside(self, margin: float) -> float:
        """The chance that the interval lies inside ± `margin` when the true gap is 0."""
        top_D = special.ndtr((margin - self.high_D - self.shift_D) / self.sd)
        bottom_D = special.ndtr((self.low_D - margin - self.shift_D) / self.sd)
        return float(np.maximum(0.0, top_D - bottom_D).mean())


def _ends(parts: Parts, n: float, tail: float, gap: float) -> Ends:
    """The rule on every draw: the distance over items, then the seed part."""
    if parts.pattern is not None:
        items = _family_ends(parts, n, tail, gap)
    elif _few_differing(parts, n, gap):
        items = _counted_ends(parts, n, tail, gap)
    else:
        items = _normal_ends(parts, n, tail, gap)
    if not parts.recipe:
        return items
    sd = math.sqrt(items.sd**2 + parts.seed_variance())
    low_D, high_D = _with_seeds(parts, n, tail, items.low_D, items.high_D)
    return Ends(_all_draws(items.shift_D), low_D, high_D, max(sd, 1e-12))


# ---------------------------------------------------------------- the distance over items


def _normal_ends(parts: Parts, n: float, tail: float, gap: float) -> Ends:
    """Items as if normal: the larger of Student's t and the bounded mean, from the same drawn variance."""
    se_D = np.sqrt(parts.difference() / n * _chi_square(n - 1.0, 0))
    student_D = special.stdtrit(min(n - 1.0, 1e9), 1 - tail) * se_D
    # The deviation of the estimate at which an end just meets its edge is small beside the scale: take the true gap.
    low_D = np.maximum(student_D, _bounded(se_D, None, parts.width + gap, n, tail))
    high_D = np.maximum(student_D, _bounded(se_D, None, parts.width - gap, n, tail))
    return Ends(np.zeros(1), low_D, high_D, math.sqrt(parts.item_variance(n)))


def _few_differing(parts: Parts, n: float, gap: float) -> bool:
    if not parts.binary or n > 1e6:
        return False
    value_K, share_K = _difference_shares(parts, gap)
    return n * float(share_K[value_K != 0].sum()) < FEW_DIFFERING


def _counted_ends(parts: Parts, n: float, tail: float, gap: float) -> Ends:
    """Binary items of several runs, drawn: how many items have each difference."""
    value_K, share_K = _difference_shares(parts, gap)
    count_D_K = np.random.default_rng(0).multinomial(round(n), share_K, size=DRAWS).astype(np.float64)
    mean_D = count_D_K @ value_K / n
    rest_D_K = value_K - mean_D[:, None]
    square_D = (count_D_K * rest_D_K**2).sum(axis=1) / n
    cube_D = (count_D_K * rest_D_K**3).sum(axis=1) / n
    skew_D = cube_D / np.maximum(square_D, 1e-30) ** 1.5
    se_D = np.sqrt(square_D / (n - 1))
    student_D = special.stdtrit(n - 1.0, 1 - tail) * se_D
    low_D = np.maximum(student_D, _bounded(se_D, skew_D, parts.width + mean_D, n, tail))
    high_D = np.maximum(student_D, _bounded(se_D, -skew_D, parts.width - mean_D, n, tail))
    return Ends(mean_D - gap, low_D, high_D, 1e-9)


@lru_cache(maxsize=256)
def _difference_shares(parts: Parts, gap: float) -> tuple[Floats, Floats]:
    """The values of a seed-averaged binary difference and their shares, with mean `gap` and the variances of `parts`.

    Where the lasting variance allows it the gap sits on items that differ in every run (±1). Else it is spread: on a
    share q of the items A is right more often by x < 1, qx = gap. On the others each run strays from its item's usual
    score with a probability that gives the noise that is left.
    """
    square = min(1.0, parts.item + gap**2)
    steady, share_q, rates = max(square, gap), 0.0, (1.0, 0.0)
    if 0 < square < gap and min(parts.runs) > 0:
        misfit, partial_q, partial = _partial(parts.noise, gap, square / gap)
        if misfit < gap - square:  # closer to the variances than the gap on items that always differ
            steady, share_q, rates = 0.0, partial_q, partial
    left = [max(0.0, x - share_q * p * (1 - p)) / max(1e-9, 1 - share_q) for x, p in zip(parts.noise, rates)]
    strays = [(1 - math.sqrt(max(0.0, 1 - 4 * min(0.25, x)))) / 2 for x in left]
    value, share = _minus(*(_side(s, x) for s, x in zip(parts.runs, strays)))
    more, share_more = _minus(*(_side(s, p) for s, p in zip(parts.runs, rates)))
    rest = 1 - steady - share_q
    values = np.round(np.concatenate([value, -value, more, [1.0, -1.0]]), 9)
    ends = [(steady + gap) / 2, (steady - gap) / 2] if steady else [0.0, 0.0]
    shares = np.concatenate([share * rest / 2, share * rest / 2, share_more * share_q, ends])
    value_K, place = np.unique(values, return_inverse=True)
    share_K = np.maximum(0.0, np.bincount(place, weights=shares))
    return value_K, share_K / share_K.sum()


def _partial(noise: tuple[float, float], gap: float, part: float) -> tuple[float, float, tuple[float, float]]:
    """Items on which A is right more often by `part`: how far their noise and that of the rest (at most 1/4 an item)
    miss the arms' noise, their share, and the rates of both arms on them, round the center that misses least."""
    share = min(1.0, gap / part)
    center_C = np.linspace(part / 2, 1 - part / 2, 801)
    misfit_C = np.zeros(len(center_C))
    for side, x in zip((1, -1), noise):
        rate_C = center_C + side * part / 2
        used_C = share * rate_C * (1 - rate_C)
        misfit_C += np.maximum(0.0, used_C - x) + np.maximum(0.0, x - used_C - (1 - share) / 4)
    best = int(misfit_C.argmin())
    center = float(center_C[best])
    return float(misfit_C[best]), share, (min(1.0, center + part / 2), max(0.0, center - part / 2))


def _minus(a: tuple[Floats, Floats], b: tuple[Floats, Floats]) -> tuple[Floats, Floats]:
    """Values and shares of a difference of two independent variables."""
    return np.subtract.outer(a[0], b[0]).ravel(), np.multiply.outer(a[1], b[1]).ravel()


def _side(runs: int, stray: float) -> tuple[Floats, Floats]:
    if runs == 0:
        return np.zeros(1), np.ones(1)
    k = np.arange(runs + 1)
    share = special.binom(runs, k) * stray**k * (1 - stray) ** (runs - k)
    return k / runs, share


# ---------------------------------------------------------------- the bounded mean, approximated

_RATIO = np.array([0, 0.15, 0.3, 0.5, 0.75, 1, 1.5, 2, 3, 4, 6, 8, 12, 20, 40, 100.0])
_SKEW = np.array([-1.5, -1.0, -0.6, -0.3, 0.0, 0.3, 0.6, 1.0, 1.5])


def _bounded(se_D: Floats, skew_D: Floats | None, room: float | Floats, n: float | Floats, tail: float) -> Floats:
    """Distance to the end of the bounded mean: n differences with this standard error (of the sample variance) and
    skewness (None: 0), the unseen item `room` away from their mean.

    The weighted mean is (1 − w)·V − w·room, w ~ Beta(1, n) for the unseen item and V the Dirichlet mean of the others,
    nearly normal with variance s²/(n + 1) and skewness 2·skew·√(n + 1)/(n + 2). Its quantile depends on the ratio of
    standard error to room/n, and on the skewness of V: it is tabulated and interpolated. Where `n` differs by draw
    (effective numbers of items) the table of their median stands for all; its units hold what matters of n.
    """
    middle = float(np.median(n))
    if middle > 1e8:
        return np.asarray(special.ndtri(1 - tail) * se_D)
    unit = np.maximum(room, 1e-9) / n
    ratio_D = se_D * math.sqrt((middle - 1) / (middle + 1)) / unit
    items, near_D = float(min(round(middle), 2000)), np.minimum(ratio_D, _RATIO[-1])
    if skew_D is None:
        y_D = np.interp(near_D, _RATIO, _bounded_table(items, tail, (0.0,))[:, 0])
    else:
        own_D = np.clip(2 * skew_D * math.sqrt(middle + 1) / (middle + 2), _SKEW[0], _SKEW[-1])
        y_D = _bilinear(_bounded_table(items, tail, tuple(_SKEW)), near_D, own_D)
    beyond_D = np.maximum(0.0, ratio_D - _RATIO[-1]) * special.ndtri(1 - tail)
    return np.asarray((y_D + beyond_D) * unit)


def _bilinear(table_R_K: Floats, ratio_D: Floats, skew_D: Floats) -> Floats:
    r_D = np.clip(np.searchsorted(_RATIO, ratio_D, side="right") - 1, 0, len(_RATIO) - 2)
    k_D = np.clip(np.searchsorted(_SKEW, skew_D, side="right") - 1, 0, len(_SKEW) - 2)
    a_D = (ratio_D - _RATIO[r_D]) / (_RATIO[r_D + 1] - _RATIO[r_D])
    b_D = (skew_D - _SKEW[k_D]) / (_SKEW[k_D + 1] - _SKEW[k_D])
    low_D = table_R_K[r_D, k_D] * (1 - b_D) + table_R_K[r_D, k_D + 1] * b_D
    high_D = table_R_K[r_D + 1, k_D] * (1 - b_D) + table_R_K[r_D + 1, k_D + 1] * b_D
    return np.asarray(low_D * (1 - a_D) + high_D * a_D)


@lru_cache(maxsize=256)
def _bounded_table(n: float, tail: float, skews: tuple[float, ...]) -> Floats:
    """The distance in units of room/n over `_RATIO` × `skews`, by bisection on P(weighted mean ≤ mean − distance)."""
    # Nodes of the unseen item's weight, w = 1 − exp(−e/n) with e ~ Exp(1): fine where e is common, coarse in its tail.
    e_Q = np.concatenate([np.arange(0.02, 6, 0.04), np.arange(6.1, 20, 0.2)])
    weight_Q = np.exp(-e_Q) * np.where(e_Q < 6, 0.04, 0.2)
    weight_Q /= weight_Q.sum()
    lost_Q, grown_Q = n * -np.expm1(-e_Q / n), np.exp(e_Q / n)
    ratio_R, skew_K = _RATIO[1:, None, None], np.array(skews)[:, None]
    low = np.zeros((len(_RATIO) - 1, len(skews)))
    high = low + _RATIO[1:, None] * 8 + 4.0 - math.log(tail)
    for _ in range(26):
        middle = (low + high) / 2
        z = (lost_Q - middle[..., None]) * grown_Q / ratio_R
        enough = (_skewed_cdf(z, skew_K) * weight_Q).sum(axis=-1) <= tail
        low, high = np.where(enough, low, middle), np.where(enough, middle, high)
    none = np.full((1, len(skews)), n * (1 - tail ** (1 / n)))
    return np.concatenate([none, high])


def _skewed_cdf(z: Floats, skew: Floats) -> Floats:
    """Distribution function of a standardised gamma variable of this skewness (Wilson & Hilferty 1931)."""
    small = np.abs(skew) < 1e-9
    if small.all():
        return np.asarray(special.ndtr(z))
    g = np.where(small, 1.0, np.abs(skew))
    shape = 4 / g**2
    base = np.maximum(0.0, 1 + np.sign(skew) * z / np.sqrt(shape))
    cube = np.sign(skew) * (np.cbrt(base) - (1 - 1 / (9 * shape))) * 3 * np.sqrt(shape)
    return np.asarray(special.ndtr(np.where(small, z, cube)))


# ---------------------------------------------------------------- families


def _family_ends(parts: Parts, n: float, tail: float, gap: float) -> Ends:
    """The interval that the family sizes allow, on drawn family sums of seed-averaged differences."""
    assert parts.pattern is not None
    families, sd = parts.pattern.scaled(n, parts.items or n), math.sqrt(parts.item_variance(n))
    if len(families.sizes) <= _MANY_FAMILIES and sized_rule(families.sizes).method == "withheld":
        return Ends(np.zeros(1), np.full(1, math.inf), np.full(1, math.inf), sd)
    drawn = (_many_families if len(families.sizes) > _MANY_FAMILIES else _few_families)(parts, families, tail, n)
    low_D = np.maximum(drawn.low_D, _floor(parts, drawn, n, tail, gap))
    high_D = np.maximum(drawn.high_D, _floor(parts, drawn, n, tail, -gap))
    return Ends(drawn.shift_D, low_D, high_D, sd if len(drawn.shift_D) == 1 else 1e-9)


@dataclass(frozen=True, slots=True, eq=False)
class _FamilyDraws:
    """Draws of the estimate's deviation, the distances that families alone need, the standard error and the effective
    number of items."""

    shift_D: Floats
    low_D: Floats
    high_D: Floats
    se_D: Floats
    items_D: Floats


@lru_cache(maxsize=256)
def sized_rule(sizes: tuple[float, ...]) -> FamilyRule:
    """The family rule for these sizes, which may be fractions after scaling; only their proportions matter."""
    return family_rule(np.round(np.array(sizes) * 1000).astype(np.int64))


def _alike(families: Families) -> float:
    """The intra-class correlation ρ that the design effect means for these sizes: 1 + (Σn_g²/n − 1)·ρ."""
    size_G = np.array(families.sizes)
    most = float((size_G**2).sum() / size_G.sum())
    return min(1.0, (families.effect - 1) / (most - 1)) if most > 1 else 0.0


def _family_variance(families: Families) -> Floats:
    """Variance of each family's sum for items of variance 1: n_g·(1 + (n_g − 1)·ρ)."""
    size_G = np.array(families.sizes)
    return np.asarray(np.maximum(0.0, size_G * (1 + (size_G - 1) * _alike(families))))


def _many_families(parts: Parts, families: Families, tail: float, n: float) -> _FamilyDraws:
    """Enough families for a χ² with their effective number: the flips then agree with t."""
    variance_G = _family_variance(families)
    count = len(variance_G) * (n / sum(families.sizes))
    df = count * float(variance_G.mean()) ** 2 / float((variance_G**2).mean())
    se_D = np.sqrt(parts.item_variance(n) * _chi_square(max(1.0, df - 1), 0))
    se_D = np.maximum(se_D, math.sqrt(parts.difference() / n))
    half_D = special.stdtrit(min(count - 1, 1e9), 1 - tail) * se_D
    return _FamilyDraws(np.zeros(1), half_D, half_D, se_D, np.full(1, n / families.effect))


@lru_cache(maxsize=64)
def _few_families(parts: Parts, families: Families, tail: float, n: float) -> _FamilyDraws:
    size_G = np.array(families.sizes)
    rule, count = sized_rule(families.sizes), len(size_G)
    rng = np.random.default_rng(0)
    sum_D_G = rng.normal(size=(_FAMILY_DRAWS // 2, count)) * np.sqrt(parts.difference() * _family_variance(families))
    sum_D_G = np.concatenate([sum_D_G, -sum_D_G])
    mean_D = sum_D_G.sum(axis=1) / n
    rest_D_G = sum_D_G - mean_D[:, None] * size_G
    if rule.method == "cr3":
        variance_D = (count - 1) / count * ((rest_D_G / (n - size_G)) ** 2).sum(axis=1)
    else:
        variance_D = count / (count - 1) * (rest_D_G**2).sum(axis=1) / n**2
    # The standard error is never below that of items taken as independent: within and between families together.
    within = parts.difference() * (1 - _alike(families)) * (n - count)
    naive_D = np.maximum(1e-300, (within + (rest_D_G**2 / size_G).sum(axis=1)) / (n - 1) / n)
    se_D = np.sqrt(np.maximum(variance_D, naive_D))
    low_D = high_D = special.stdtrit(rule.df, 1 - tail) * se_D
    if rule.method == "cr1+flips":
        bottom_D, top_D = _flipped_ends(sum_D_G, size_G, tail)
        low_D, high_D = np.maximum(low_D, mean_D - bottom_D), np.maximum(high_D, top_D - mean_D)
    return _FamilyDraws(mean_D, low_D, high_D, se_D, n / np.maximum(1.0, variance_D / naive_D))


def _floor(parts: Parts, drawn: _FamilyDraws, n: float, tail: float, gap: float) -> Floats:
    """Distance to the lower end that items need by themselves at a gap (the upper end: −gap).

    Tango's on the effective number of items for one binary run a side, else the bounded mean's on all n.
    """
    if not (parts.binary and max(parts.runs) == 1):
        naive_D = drawn.se_D * np.sqrt(drawn.items_D / n)
        return _bounded(naive_D, None, parts.width + gap, n, tail)
    items_D = np.maximum(2.0, drawn.items_D)
    z, share = float(special.ndtri(1 - tail)), min(1.0, max(parts.difference() + gap**2, abs(gap)))
    up_D, down_D = items_D * (share + gap) / 2, items_D * (share - gap) / 2
    distance_D = z * drawn.se_D
    for _ in range(12):
        spread_D = _constrained(up_D, down_D, items_D, np.maximum(-1.0, gap - distance_D))
        distance_D = z * np.sqrt(spread_D / items_D)
    return np.asarray(distance_D)


def _flipped_ends(sum_D_G: Floats, size_G: Floats, tail: float) -> tuple[Floats, Floats]:
    """Order statistics of the means over random subsets of families (over all of them where they are few)."""
    count = len(size_G)
    if count <= 9:
        pick_J_G = (np.arange(1, 2**count)[:, None] >> np.arange(count) & 1).astype(np.float64)
    else:
        pick_J_G = np.random.default_rng(1).integers(0, 2, size=(_SUBSETS, count)).astype(np.float64)
    pick_J_G = pick_J_G[pick_J_G.sum(axis=1) > 0]
    rank = math.floor(tail * (len(pick_J_G) + 1) + 1e-9)
    if rank < 1 and count <= 9:
        return np.full(len(sum_D_G), -math.inf), np.full(len(sum_D_G), math.inf)
    rank = max(1, rank)
    mean_D_J = sum_D_G @ pick_J_G.T / (pick_J_G @ size_G)
    part_D_J = np.partition(mean_D_J, (rank - 1, mean_D_J.shape[1] - rank), axis=1)
    return part_D_J[:, rank - 1], part_D_J[:, -rank]


# ---------------------------------------------------------------- the seed part


def _with_seeds(parts: Parts, n: float, tail: float, low_D: Floats, high_D: Floats) -> tuple[Floats, Floats]:
    """The distances with the seed part, by the rule for these arms (`seeds`)."""
    low_D, high_D = _all_draws(low_D), _all_draws(high_D)
    own_D, raw_D = _seed_squares(parts, n, tail)
    rule: Rule = "equal" if parts.equal and len(parts.arms) > 1 else seed_rule(parts.arms, shared=parts.shared)

    def joined(item_D: Floats) -> Floats:
        added_D, larger_D = np.sqrt(item_D**2 + own_D), np.maximum(item_D, np.sqrt(raw_D))
        if rule == "larger":
            return larger_D
        return np.maximum(added_D, larger_D) if rule == "both" else added_D

    return joined(low_D), joined(high_D)


def _all_draws(value_D: Floats) -> Floats:
    return value_D if len(value_D) in (1, DRAWS) else np.tile(value_D, DRAWS // len(value_D))


@lru_cache(maxsize=256)
def _seed_squares(parts: Parts, n: float, tail: float) -> tuple[Floats, Floats]:
    """Σ t²·max(0, s²/S − MS_resid/(nS)) and Σ t²·s²/S over the arms; the pooled rule in the first where declared."""
    own_D, raw_D = np.zeros(DRAWS), np.zeros(DRAWS)
    noises = [x for x, s in zip(parts.noise, parts.runs) if s > 0]
    noises = [sum(noises)] if parts.shared else noises
    mean_A, noise_A = [], []
    for a, s in enumerate(parts.arms):
        noise = noises[a] / n
        mean_D = (parts.seed * parts.per_arm + noise) * _chi_square(s - 1.0, 1 + a)
        noise_D = noise * _noise_share(parts, n, s, 3 + a)
        t = float(special.stdtrit(s - 1.0, 1 - tail))
        own_D = own_D + t**2 * np.maximum(0.0, mean_D - noise_D) / s
        raw_D = raw_D + t**2 * mean_D / s
        mean_A.append(mean_D)
        noise_A.append(noise_D)
    if parts.equal and len(parts.arms) == 2:
        own_D = _declared_equal(parts.arms, mean_A, noise_A, tail)
    return own_D, raw_D


def _declared_equal(arms: tuple[int, ...], mean_A: list[Floats], noise_A: list[Floats], tail: float) -> Floats:
    """The larger of the pooled seed part (df ΣS − arms) and Welch's."""
    df_A = [s - 1.0 for s in arms]
    pooled_D = sum(d * m for d, m in zip(df_A, mean_A)) / sum(df_A)
    noise_D = sum(d * m for d, m in zip(df_A, noise_A)) / sum(df_A)
    shares = sum(1 / s for s in arms)
    first_D = special.stdtrit(sum(df_A), 1 - tail) ** 2 * np.maximum(0.0, pooled_D - noise_D) * shares
    net_A = [np.maximum(0.0, m - r) / s for m, r, s in zip(mean_A, noise_A, arms)]
    total_D = sum(net_A)
    spent_D = sum(v**2 / d for v, d in zip(net_A, df_A))
    welch_D = np.where(total_D > 0, total_D**2 / np.maximum(spent_D, 1e-300), 1.0)
    return np.asarray(np.maximum(first_D, special.stdtrit(welch_D, 1 - tail) ** 2 * total_D))


def _noise_share(parts: Parts, n: float, runs: int, axis: int) -> Floats:
    """MS_resid over its mean; with families the smaller of that and the clustered one, as `seeds` takes it."""
    if parts.pattern is None:
        return _chi_square((runs - 1) * (n - 1), axis)
    families = max(2.0, len(parts.pattern.sizes) * n / (parts.items or n))
    return np.asarray(np.minimum(1.0, _chi_square((runs - 1) * (families - 1), axis)))


# ---------------------------------------------------------------- one binary run a side


def _table_excludes(parts: Parts, n: float, tail: float, gap: float) -> float:
    """Tango's interval excludes 0 (|n10 − n01| > z·√(n10 + n01)) and the mid-p test agrees, over all 2×2 tables."""
    share = min(1.0, max(parts.difference(), gap))
    if n * share > FEW_DISCORDANT:
        sd, center = math.sqrt(max(1e-300, share - gap**2)), math.sqrt(n) * gap
        reach = float(special.ndtri(1 - tail)) * math.sqrt(share)
        return float(special.ndtr((center - reach) / sd) + special.ndtr((-center - reach) / sd))
    m_M, weight_M = _discordant(round(n), share)
    least_M, up = _critical(tail)[m_M.astype(int)], (share + gap) / 2 / share
    return float(weight_M @ (1 - _below(least_M - 1, m_M, up) + _below(m_M - least_M, m_M, up)))


def _table_inside(parts: Parts, n: float, tail: float, margin: float) -> float:
    z, share = float(special.ndtri(1 - tail)), min(1.0, parts.difference())
    if n * share > FEW_DISCORDANT:
        # At ± margin the constrained variance is that of the table whose gap is the margin.
        half = z * math.sqrt(float(_constrained(n * share / 2, n * share / 2, n, margin)) / n)
        return float(max(0.0, 2 * special.ndtr((margin - half) * math.sqrt(n / share)) - 1))
    m_M, weight_M = _discordant(round(n), share)

    def inside_margin(b_M: Floats) -> NDArray[np.bool_]:
        spread_M = np.sqrt(n * _constrained(b_M, m_M - b_M, n, margin))
        return np.asarray(2 * b_M - m_M - n * margin < -z * spread_M)

    most_M = _first(lambda b_M: ~inside_margin(b_M), np.ceil(m_M / 2) - 1, m_M + 1) - 1
    kept_M = _below(most_M, m_M, 0.5) - _below(m_M - most_M - 1, m_M, 0.5)
    return float(weight_M @ np.where(2 * most_M >= m_M, kept_M, 0.0))


def _discordant(n: int, share: float) -> tuple[Floats, Floats]:
    """Numbers of discordant items within 6 standard deviations, and their probabilities."""
    reach = 6 * math.sqrt(n * share * (1 - share)) + 6
    m_M = np.arange(max(0.0, math.floor(n * share - reach)), min(n, math.ceil(n * share + reach)) + 1.0)
    choose_M = special.gammaln(n + 1.0) - special.gammaln(m_M + 1) - special.gammaln(n - m_M + 1)
    return m_M, np.exp(choose_M + special.xlogy(m_M, share) + special.xlog1py(n - m_M, -share))


def _below(k_M: Floats, m_M: Floats, p: float) -> Floats:
    """P(X ≤ k) for X ~ Binomial(m, p); 0 under 0, 1 from m on."""
    inner_M = np.clip(k_M, 0, m_M)
    return np.asarray(np.where(k_M < 0, 0.0, np.where(k_M >= m_M, 1.0, special.bdtr(inner_M, m_M.astype(int), p))))


@lru_cache(maxsize=32)
def _critical(tail: float) -> Floats:
    """The least n10 of m discordant items that wins, for every m in reach; m + 1 where none does."""
    m_M = np.arange(2.0 * FEW_DISCORDANT)
    z = float(special.ndtri(1 - tail))

    def wins(b_M: Floats) -> NDArray[np.bool_]:
        midp_M = _below(m_M - b_M - 1, m_M, 0.5) + _below(m_M - b_M, m_M, 0.5)
        return np.asarray((2 * b_M - m_M > z * np.sqrt(m_M)) & (midp_M <= 2 * tail))

    return _first(wins, np.floor(m_M / 2), m_M + 1)


def _first(holds: Callable[[Floats], NDArray[np.bool_]], low_M: Floats, high_M: Floats) -> Floats:
    """The least integer above `low` at which `holds`, which stays true from there on; `high` where it never does."""
    for _ in range(math.ceil(math.log2(float((high_M - low_M).max()) + 1)) + 1):
        middle_M = np.floor((low_M + high_M) / 2)
        apart_M = high_M - low_M > 1
        true_M = holds(middle_M)
        high_M = np.where(apart_M & true_M, middle_M, high_M)
        low_M = np.where(apart_M & ~true_M, middle_M, low_M)
    return high_M


def _constrained(b: float | Floats, c: float | Floats, n: float | Floats, delta: float | Floats) -> Floats:
    """2q̃ + Δ(1 − Δ) of Tango's score statistic at Δ (formula: `intervals.tango_interval`)."""
    linear = -b - c + (2 * n - b + c) * delta
    root = np.sqrt(np.maximum(0.0, linear * linear + 8 * n * c * delta * (1 - delta)))
    return np.asarray(np.maximum(0.0, 2 * (root - linear) / (4 * n) + delta * (1 - delta)))


# ---------------------------------------------------------------- draws


@lru_cache(maxsize=1)
def _points() -> Floats:
    """DRAWS points in (0, 1)⁵ that fill it evenly: multiples of powers of the generalised golden ratio, mod 1.

    Source: Roberts 2018, "The unreasonable effectiveness of quasirandom sequences".
    """
    ratio = 1.0
    for _ in range(60):
        ratio = (1 + ratio) ** (1 / 6)
    step = ratio ** -np.arange(1.0, 6.0)
    return np.asarray((0.5 + np.outer(np.arange(1, DRAWS + 1), step)) % 1)


@lru_cache(maxsize=512)
def _chi_square(df: float, axis: int) -> Floats:
    """χ²/df at the points of one axis; from 100 df on by Wilson and Hilferty's cube, off by
    4e-5 on average and by 8e-4 at the farthest point."""
    u_D = _points()[:, axis]
    if df > 100:
        return np.asarray((1 - 2 / (9 * df) + special.ndtri(u_D) * math.sqrt(2 / (9 * df))) ** 3)
    return np.asarray(2 * special.gammaincinv(df / 2, u_D) / df)
