"""The shapes uncertainty comes in. Each gives an interval at any level and a one-sided p for any value.

Tango     paired binary scores                    score interval, mid-p McNemar
Student   a mean with a standard error and df     t interval, t test
Flips     a sample of sign-flipped means          test-inversion interval, sign-flip p
Widest    several of these                        the widest interval, the largest p
Unknown   no spread to learn from                 no interval
(BoundedMean is in `bounded`, Combined, which adds the spread between seeds, in `seeds`.)

Ends may be infinite: then no bound can be given at that level.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import brentq

from veritune.stats.table import Floats

TINY_P = 1e-300
"""A p that underflows is reported as below this; p is never 0."""

LEAST_ALPHA = 1e-12
"""The smallest error rate that `Spread.tail` resolves by inversion."""


class Spread(ABC):
    """The uncertainty of a mean difference, as an interface that gives one-sided ends."""

    __slots__ = ()

    @abstractmethod
    def end(self, alpha: float, side: int) -> float:
        """The lower (side −1) or upper (+1) end with a one-sided error rate of `alpha` in (0, 0.5]."""

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided interval at `level` in (0, 1)."""
        alpha = (1 - level) / 2
        return self.end(alpha, -1), self.end(alpha, 1)

    def tail(self, value: float, side: int) -> float:
        """One-sided p: the smallest alpha at which the lower end (side +1) lies above `value`, or the upper end (−1)
        below it.

        1.0 where no alpha up to 0.5 does. The default inverts `end`, which moves outwards as alpha falls.
        """
        return _inverted(self, value, side)

    def p(self) -> float:
        """Two-sided p of a difference of 0, in (0, 1]."""
        return min(1.0, max(TINY_P, 2 * min(self.tail(0.0, 1), self.tail(0.0, -1))))

    @property
    def floor(self) -> float:
        """The smallest p that this method can return."""
        return TINY_P


def _inverted(spread: Spread, value: float, side: int) -> float:
    def excess(log_alpha: float) -> float:
        return side * (spread.end(math.exp(log_alpha), -side) - value)

    top, bottom = math.log(0.5), math.log(LEAST_ALPHA)
    if not excess(top) > 0:
        return 1.0
    least = excess(bottom)
    if least > 0:
        return LEAST_ALPHA
    if math.isfinite(least):
        return math.exp(float(brentq(excess, bottom, top, xtol=1e-7)))
    for _ in range(44):  # an infinite end has no root to interpolate; halving needs only the sign
        middle = (top + bottom) / 2
        top, bottom = (middle, bottom) if excess(middle) > 0 else (top, middle)
    return math.exp(top)


def normal_quantile(probability: float) -> float:
    """The quantile of the standard normal distribution."""
    return float(special.ndtri(probability))


def t_quantile(probability: float, df: float) -> float:
    """The quantile of Student's t distribution; normal for infinite df."""
    return normal_quantile(probability) if math.isinf(df) else float(special.stdtrit(df, probability))


# ---------------------------------------------------------------- paired binary


def _tango_low(b: float, c: float, n: float, z: float) -> float:
    """Lower end for gap (b − c)/n: the root of (b − c − nΔ) = z·√(n(2q + Δ(1 − Δ))), q the constrained MLE."""

    def excess(delta: float) -> float:
        linear = -b - c + (2 * n - b + c) * delta
        root = math.sqrt(max(0.0, linear * linear + 8 * n * c * delta * (1 - delta)))
        q = (root - linear) / (4 * n)
        variance = n * (2 * q + delta * (1 - delta))
        return b - c - n * delta - z * math.sqrt(max(0.0, variance))

    gap = (b - c) / n
    if gap <= -1:
        return -1.0
    if b + c == 0:
        return -z * z / (n + z * z)  # here and below the estimate is a root too, but not the interval's end
    if c == 0 and b >= n:
        return (n - z * z) / (n + z * z)
    if excess(gap) >= 0:  # z is 0 within rounding
        return gap
    return float(brentq(excess, -1.0, gap, xtol=1e-14))


def tango_interval(n10: float, n01: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for (n10 − n01)/n from paired binary outcomes.

    T(Δ) = (n10 − n01 − nΔ)/√(n(2q̃ + Δ(1 − Δ))) with q̃ = (√(B² − 4AC) − B)/2A, A = 2n,
    B = −n10 − n01 + (2n − n10 + n01)Δ, C = −n01·Δ(1 − Δ); the interval holds every Δ with |T| ≤ z.
    Without discordant pairs it is ±z²/(n + z²). Source: Tango 1998, Stat Med 17:891. Not for clustered items:
    there it is too narrow (see `families`). Swapping the arms mirrors it exactly.

    >>> low, high = tango_interval(54, 47, 1319)
    >>> f"[{low:.4f}, {high:.4f}]"
    '[-0.0098, 0.0205]'
    """
    z = normal_quantile(0.5 + level / 2)
    return _tango_low(n10, n01, n, z), -_tango_low(n01, n10, n, z)


def mcnemar_midp(n10: int, n01: int) -> float:
    """Mid-p McNemar: 2·[F(k; m, ½) − ½·f(k; m, ½)], k = min, m = n10 + n01. Source: Fagerland et al. 2013, BMC
    Med Res Methodol 13:91. 1 when m = 0. Not for clustered items.

    >>> round(mcnemar_midp(54, 47), 3)
    0.488
    """
    m, k = n10 + n01, min(n10, n01)
    if n10 == n01:
        return 1.0
    below = float(special.bdtr(k - 1, m, 0.5)) if k else 0.0
    return max(TINY_P, min(1.0, below + float(special.bdtr(k, m, 0.5))))


def mcnemar_exact(n10: int, n01: int) -> float:
    """Exact McNemar: the two-sided binomial p of n10 out of n10 + n01 at ½. Conservative; shown beside the mid-p.

    >>> round(mcnemar_exact(54, 47), 3)
    0.551
    """
    if n10 == n01:
        return 1.0
    return max(TINY_P, min(1.0, 2.0 * float(special.bdtr(min(n10, n01), n10 + n01, 0.5))))


@dataclass(frozen=True, slots=True)
class Tango(Spread):
    """Paired binary counts. On an effective number of items they may be fractions; `unit` is the size of one step."""

    n10: float
    n01: float
    n: float
    unit: float = 1.0

    def end(self, alpha: float, side: int) -> float:
        z = normal_quantile(1 - alpha)
        up, down = (self.n10, self.n01) if side < 0 else (self.n01, self.n10)
        return -side * _tango_low(up, down, self.n, z) * self.unit

    def p(self) -> float:
        if self.unit == 1.0 and float(self.n10).is_integer() and float(self.n01).is_integer():
            return mcnemar_midp(int(self.n10), int(self.n01))
        m = self.n10 + self.n01
        z = abs(self.n10 - self.n01) / math.sqrt(m) if m else 0.0
        return max(TINY_P, 2.0 * float(special.ndtr(-z)))


def three_valued(diff_N: Floats, shrink: float = 1.0) -> Tango:
    """A three-valued variable with the mean and mean square of `diff_N`, on N/shrink items (shrink ≥ 1).

    With differences in {−1, 0, 1} and no shrinking this is the 2×2 table itself; with all differences 0 it is the
    empty table on those items, so that an interval never collapses to a point.
    """
    up, down = float(diff_N[diff_N > 0].sum()), -float(diff_N[diff_N < 0].sum())
    n = len(diff_N) / shrink
    if up + down == 0:
        return Tango(0, 0, n)
    unit = float((diff_N**2).sum()) / (up + down)
    if abs(unit - 1) < 1e-12 and shrink == 1.0:
        return Tango(round(up), round(down), n)
    return Tango(up / unit / shrink, down / unit / shrink, n, unit)


# ---------------------------------------------------------------- means


@dataclass(frozen=True, slots=True)
class Student(Spread):
    """A t interval: center ± t·se with `df` degrees of freedom."""

    center: float
    se: float
    df: float

    def end(self, alpha: float, side: int) -> float:
        return self.center + side * t_quantile(1 - alpha, self.df) * self.se

    def tail(self, value: float, side: int) -> float:
        distance = side * (self.center - value)
        if distance <= 0:
            return 1.0
        if self.se == 0:
            return TINY_P
        t = distance / self.se
        return max(TINY_P, float(special.ndtr(-t) if math.isinf(self.df) else special.stdtr(self.df, -t)))


@dataclass(frozen=True, slots=True, eq=False)
class Flips(Spread):
    """Sign-flip test and its inversion, exact or Monte Carlo.

    Flipping the signs of a subset F of d − Δ leaves a sum at least as large as the observed one exactly when the
    mean of d over F is at most Δ. So p(Δ) = (1 + #{mean_F ≤ Δ})/(R + 1) one-sided over R subsets, and the
    interval's ends are order statistics of the subset means (Hartigan 1969, JASA 64:1303; the +1: Phipson & Smyth
    2010). Two-sided p is twice the smaller side. `low_R`/`high_R` are sorted subset means, an empty subset counted
    as −inf in the one and +inf in the other. Assumes differences symmetric about the center.
    """

    low_R: Floats
    high_R: Floats
    exact: bool

    def end(self, alpha: float, side: int) -> float:
        rank = math.floor(alpha * (len(self.low_R) + 1) + 1e-9)
        if rank < 1:
            return side * math.inf
        return float(self.low_R[rank - 1] if side < 0 else self.high_R[-rank])

    def tail(self, value: float, side: int) -> float:
        size = len(self.low_R) + 1
        if side > 0:
            count = 1 + int(np.searchsorted(self.low_R, value, side="right"))
        else:
            count = 1 + len(self.high_R) - int(np.searchsorted(self.high_R, value, side="left"))
        return count / size

    @property
    def floor(self) -> float:
        return 2.0 / (len(self.low_R) + 1)


@dataclass(frozen=True, slots=True)
class Widest(Spread):
    """The widest of several intervals and the largest of their p values, so that each part can only weaken a
    statement."""

    parts: tuple[Spread, ...]

    def end(self, alpha: float, side: int) -> float:
        return side * max(side * part.end(alpha, side) for part in self.parts)

    def tail(self, value: float, side: int) -> float:
        return max(part.tail(value, side) for part in self.parts)

    def p(self) -> float:
        return max(part.p() for part in self.parts)

    @property
    def floor(self) -> float:
        return max(part.floor for part in self.parts)


@dataclass(frozen=True, slots=True)
class Unknown(Spread):
    """The uncertainty is unknown; `reason` says why there is no interval."""

    reason: str

    def end(self, alpha: float, side: int) -> float:
        return side * math.inf

    def tail(self, value: float, side: int) -> float:
        return 1.0


def smallest_alpha(spread: Spread, excludes: float, *, side: int, sides: int = 2) -> float:
    """The smallest alpha at which the interval at level 1 − 2·alpha/sides lies beyond `excludes` on `side` (+1: above).

    With `sides` 2 it belongs to a two-sided statement (level 1 − alpha), with 1 to a one-sided one
    (level 1 − 2·alpha). 1.0 when no alpha below 1 does.
    """
    return min(1.0, sides * spread.tail(excludes, side))
