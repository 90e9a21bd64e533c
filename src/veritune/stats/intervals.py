"""The shapes uncertainty comes in. Each gives an interval at any level and a two-sided p of "no difference".

Tango    paired binary scores                    score interval, mid-p McNemar
Student  a mean with a standard error and df     t interval, t test
Added    a mean with variances of few df          their margins squared and added
Flips    a sample of sign-flipped means          test-inversion interval, sign-flip p
Widest   several of these                        the widest interval, the largest p
Unknown  no spread to learn from                 no interval

Endpoints may be infinite: then no bound can be given at that level.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from scipy import special

from veritune.stats.table import Floats

TINY_P = 1e-300
"""A p that underflows is reported as below this; p is never 0."""


class Spread(Protocol):
    """Uncertainty about a mean difference."""

    def interval(self, level: float) -> tuple[float, float]:
        """Two-sided interval at `level` in (0, 1)."""
        ...

    def p(self) -> float:
        """Two-sided p of a difference of 0, in (0, 1]."""
        ...


def root(f: Callable[[float], float], low: float, high: float, *, xtol: float) -> float:
    """The x in [low, high] at which f changes sign, within `xtol`. f(low) and f(high) must differ in sign.

    Inverse quadratic interpolation or bisection, as Chandrupatla 1997, Adv Eng Softw 28:145. Written out because
    importing scipy.optimize for this one function takes longer than a whole comparison.
    """
    a, b = high, low
    f_a, f_b = f(a), f(b)
    if f_a == 0 or f_b == 0:
        return a if f_a == 0 else b
    if (f_a > 0) == (f_b > 0):
        raise ValueError(f"f has one sign at {low!r} and {high!r}")
    share = 0.5
    while True:
        x = a + share * (b - a)
        f_x = f(x)
        if (f_x > 0) == (f_a > 0):
            c, f_c = a, f_a
        else:
            c, f_c, b, f_b = b, f_b, a, f_a
        a, f_a = x, f_x
        best = a if abs(f_a) < abs(f_b) else b
        tolerance = (4e-16 * abs(best) + xtol) / abs(b - c) if b != c else 1.0
        if f_a == 0 or tolerance > 0.5:
            return best
        place, height = (a - b) / (c - b), (f_a - f_b) / (f_c - f_b)
        share = 0.5
        if height**2 < place and (1 - height) ** 2 < 1 - place:
            share = f_a / (f_b - f_a) * f_c / (f_b - f_c)
            share += (c - a) / (b - a) * f_a / (f_c - f_a) * f_b / (f_c - f_b)
        share = min(1 - tolerance, max(tolerance, share))


def normal_quantile(probability: float) -> float:
    """The standard normal quantile."""
    return float(special.ndtri(probability))


def t_quantile(probability: float, df: float) -> float:
    """Student's t quantile; the normal one for infinite df."""
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
    return root(excess, -1.0, gap, xtol=1e-14)


def tango_interval(n10: float, n01: float, n: float, level: float = 0.95) -> tuple[float, float]:
    """Tango's score interval for (n10 − n01)/n from paired binary outcomes.

    T(Δ) = (n10 − n01 − nΔ)/√(n(2q̃ + Δ(1 − Δ))) with q̃ = (√(B² − 4AC) − B)/2A, A = 2n,
    B = −n10 − n01 + (2n − n10 + n01)Δ, C = −n01·Δ(1 − Δ); the interval holds every Δ with |T| ≤ z.
    Without discordant pairs it is ±z²/(n + z²). Source: Tango 1998, Stat Med 17:891. Not for clustered items:
    there it is too narrow (see `families`). Swapping the arms mirrors it exactly.
    """
    z = normal_quantile(0.5 + level / 2)
    return _tango_low(n10, n01, n, z), -_tango_low(n01, n10, n, z)


def mcnemar_midp(n10: int, n01: int) -> float:
    """Mid-p McNemar: 2·[F(k; m, ½) − ½·f(k; m, ½)], k = min, m = n10 + n01. Source: Fagerland et al. 2013, BMC
    Med Res Methodol 13:91. 1 when m = 0. Not for clustered items."""
    m, k = n10 + n01, min(n10, n01)
    if n10 == n01:
        return 1.0
    below = float(special.bdtr(k - 1, m, 0.5)) if k else 0.0
    return max(TINY_P, min(1.0, below + float(special.bdtr(k, m, 0.5))))


def mcnemar_exact(n10: int, n01: int) -> float:
    """Exact McNemar: the two-sided binomial p of n10 out of n10 + n01 at ½. Conservative; shown beside the mid-p."""
    if n10 == n01:
        return 1.0
    return max(TINY_P, min(1.0, 2.0 * float(special.bdtr(min(n10, n01), n10 + n01, 0.5))))


@dataclass(frozen=True, slots=True)
class Tango:
    """Paired binary counts. For seed-averaged scores `unit` is the size of one step: then the counts are those of
    the three-valued variable {−unit, 0, unit} with the same first two moments, and may be fractions."""

    n10: float
    n01: float
    n: float
    unit: float = 1.0

    def interval(self, level: float) -> tuple[float, float]:
        low, high = tango_interval(self.n10, self.n01, self.n, level)
        return low * self.unit, high * self.unit

    def p(self) -> float:
        if self.unit == 1.0 and float(self.n10).is_integer() and float(self.n01).is_integer():
            return mcnemar_midp(int(self.n10), int(self.n01))
        m = self.n10 + self.n01
        z = abs(self.n10 - self.n01) / math.sqrt(m) if m else 0.0
        return max(TINY_P, 2.0 * float(special.ndtr(-z)))


def three_valued(diff_N: Floats, shrink: float = 1.0) -> Tango:
    """The three-valued variable with the mean and mean square of `diff_N`, on N/shrink items (shrink ≥ 1).

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
class Student:
    """A t interval: center ± t·se with `df` degrees of freedom."""

    center: float
    se: float
    df: float

    def interval(self, level: float) -> tuple[float, float]:
        half = t_quantile(0.5 + level / 2, self.df) * self.se
        return self.center - half, self.center + half

    def p(self) -> float:
        if self.se == 0:
            return 1.0 if self.center == 0 else TINY_P
        t = abs(self.center) / self.se
        tail = special.ndtr(-t) if math.isinf(self.df) else special.stdtr(self.df, -t)
        return max(TINY_P, 2.0 * float(tail))


@dataclass(frozen=True, slots=True)
class Added:
    """A mean whose variance is a sum of parts with few degrees of freedom each: half-width √(Σ v·t²_df).

    The parts' own margins of error, squared and added. Used where Satterthwaite's single df is too optimistic.
    Sources: Howe 1974, JASA 69:789; Zou & Donner 2008, Stat Med 27:1693.
    """

    center: float
    parts: tuple[tuple[float, float], ...]

    def interval(self, level: float) -> tuple[float, float]:
        half = math.sqrt(sum(v * t_quantile(0.5 + level / 2, df) ** 2 for v, df in self.parts if v > 0))
        return self.center - half, self.center + half

    def p(self) -> float:
        return smallest_alpha(self, 0.0, side=1 if self.center > 0 else -1)


@dataclass(frozen=True, slots=True, eq=False)
class Flips:
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

    def interval(self, level: float) -> tuple[float, float]:
        size = len(self.low_R) + 1
        rank = math.floor((1 - level) / 2 * size + 1e-9)
        if rank < 1:
            return -math.inf, math.inf
        return float(self.low_R[rank - 1]), float(self.high_R[-rank])

    def p(self) -> float:
        size = len(self.low_R) + 1
        below = 1 + int(np.searchsorted(self.low_R, 0.0, side="right"))
        above = 1 + len(self.high_R) - int(np.searchsorted(self.high_R, 0.0, side="left"))
        return min(1.0, 2.0 * min(below, above) / size)

    @property
    def floor(self) -> float:
        """The smallest p that this many flips can give."""
        return 2.0 / (len(self.low_R) + 1)


@dataclass(frozen=True, slots=True)
class Widest:
    """The widest of several intervals and the largest of their p: each part may only weaken a statement."""

    parts: tuple[Spread, ...]

    def interval(self, level: float) -> tuple[float, float]:
        lows, highs = zip(*(part.interval(level) for part in self.parts))
        return min(lows), max(highs)

    def p(self) -> float:
        return max(part.p() for part in self.parts)


@dataclass(frozen=True, slots=True)
class Unknown:
    """No spread to learn an interval from; `reason` says why."""

    reason: str

    def interval(self, level: float) -> tuple[float, float]:
        return -math.inf, math.inf

    def p(self) -> float:
        return 1.0


def smallest_alpha(spread: Spread, excludes: float, *, side: int, sides: int = 2) -> float:
    """The least alpha at which the interval at level 1 − 2·alpha/sides lies beyond `excludes` on `side` (+1: above).

    With `sides` 2 it belongs to a two-sided statement (level 1 − alpha), with 1 to a one-sided one
    (level 1 − 2·alpha). 1.0 when no alpha below 1 does. Bisection on log alpha; intervals nest.
    """

    def beyond(alpha: float) -> bool:
        low, high = spread.interval(1 - 2 * alpha / sides)
        return low > excludes if side > 0 else high < excludes

    top = 0.999 * sides / 2
    if not beyond(top):
        return 1.0
    small, large = math.log(1e-12), math.log(top)
    if beyond(1e-12):
        return 1e-12
    for _ in range(48):
        middle = (small + large) / 2
        small, large = (small, middle) if beyond(math.exp(middle)) else (middle, large)
    return math.exp(large)
