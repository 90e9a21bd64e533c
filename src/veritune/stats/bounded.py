"""An interval for a mean of bounded differences that does not trust the spread that happened to be seen.

n differences d in [−B, B], B the width of the declared score scale. Give the n differences *and one unseen item at the
worst possible value* random weights w ~ Dirichlet(1, …, 1). The lower end is the alpha quantile of Σ w·x with the
unseen item at −B, the upper end mirrors it at +B. So twelve identical differences do not make a narrow interval: n
identical pairs of difference 0 read ±(1 − alpha^{1/n})·B.

Sources: Learned-Miller & Thomas 2019, arXiv 1905.06208 (coverage conjectured, not proved; docs/theory.md has it
measured); Rubin 1981, Ann Stat 9:130 (the weights). Never read B from the data.

The quantile needs no draws. With w = E/ΣE and E independent Exp(1) variables,

    P(Σ w·x ≤ m) = P(Σ (x − m)·E ≤ 0),

a linear combination of exponentials with cumulant function K(z) = −Σ log(1 − z·(x − m)). Its distribution function at 0
is (1/2πi)∫ exp(K(z))/(−z) dz along a vertical line, taken here through the saddlepoint, where the integrand falls
fastest (Rice 1980, SIAM J Sci Stat Comput 1:438). The Lugannani–Rice formula is off by up to 5 % of p here, since the
unseen item weighs more than all others, so it is not used.

Axes: U distinct values, Q nodes of the integral.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray
from scipy.optimize import brentq

from veritune.stats.intervals import LEAST_ALPHA, TINY_P, Spread
from veritune.stats.table import Floats

_STEP = 0.06
"""Spacing of the nodes in u, where t = τ·sinh(u) and τ is the integrand's width. The trapezoid rule converges
exponentially: halving the step changes no probability by 1e-8 (tests/stats/test_bounded.py)."""

_LONG, _SHORT = 16.0, 6.0
"""How far u runs: few exponentials fall off slowly, 40 or more are below 1e-40 at sinh(6) = 202 widths."""

_BINS = 64
"""More distinct values than twice this are replaced by two points a bin with the bin's mean and variance. No end moves
by more than 1e-6 of the interval's width (tests/stats/test_bounded.py)."""


@dataclass(frozen=True, slots=True, eq=False)
class BoundedMean(Spread):
    """The Learned-Miller & Thomas interval for the mean of `diff_N`, each difference within ± `bound`.

    `units` is the number of independent items that the N differences are worth (N by default, fewer where items come
    in families): each item then weighs as a Gamma(units/N) variable and the unseen one as Gamma(1).

    >>> low, high = BoundedMean(np.repeat([0.0, 0.001, 0.002], 4), bound=1.0).interval(0.95)
    >>> f"[{low:.3f}, {high:.3f}]"
    '[-0.264, 0.265]'
    """

    diff_N: Floats
    bound: float
    units: float | None = None
    _value_U: Floats = field(init=False, repr=False)
    _weight_U: Floats = field(init=False, repr=False)
    _ends: dict[tuple[float, int], float] = field(init=False, repr=False, default_factory=dict)

    def __post_init__(self) -> None:
        value_U, count_U = _binned(*np.unique(self.diff_N, return_counts=True))
        share = 1.0 if self.units is None else self.units / len(self.diff_N)
        object.__setattr__(self, "_value_U", value_U)
        object.__setattr__(self, "_weight_U", count_U * share)

    def end(self, alpha: float, side: int) -> float:
        key = (alpha, side)
        if key not in self._ends:
            self._ends[key] = -side * self._lower(alpha, -side)
        return self._ends[key]

    def tail(self, value: float, side: int) -> float:
        return max(LEAST_ALPHA, self._below(side * value, side))

    def _lower(self, alpha: float, side: int) -> float:
        """The lower end of the mean of side·d."""
        bottom, top = -self.bound, float(np.max(side * self._value_U))
        if top <= bottom:
            return bottom
        target = math.log(alpha)

        def excess(m: float) -> float:
            return math.log(max(TINY_P, self._below(m, side))) - target

        return float(brentq(excess, bottom, top, xtol=1e-9 * self.bound, rtol=1e-10))

    def _below(self, m: float, side: int) -> float:
        """P(Σ w·x ≤ m) for x the values side·d and one unseen item at −bound."""
        step_U = np.append(side * self._value_U, -self.bound) - m
        return combination_below(step_U, np.append(self._weight_U, 1.0))


def _binned(value_U: Floats, count_U: NDArray[np.int64]) -> tuple[Floats, Floats]:
    """Values and counts, or two points a bin (mean ± sd, half the count each) where there are many values."""
    if len(value_U) <= 2 * _BINS:
        return np.asarray(value_U, dtype=np.float64), np.asarray(count_U, dtype=np.float64)
    low, high = value_U[0], value_U[-1]
    bin_U = np.minimum((_BINS * ((value_U - low) / (high - low))).astype(np.int64), _BINS - 1)
    total_B: Floats = np.bincount(bin_U, weights=count_U).astype(np.float64)
    mean_B = np.bincount(bin_U, weights=value_U * count_U) / np.maximum(total_B, 1.0)
    sd_B = np.sqrt(np.bincount(bin_U, weights=(value_U - mean_B[bin_U]) ** 2 * count_U) / np.maximum(total_B, 1.0))
    used = total_B > 0
    points = np.concatenate([(mean_B - sd_B)[used], (mean_B + sd_B)[used]])
    return points, np.tile(total_B[used] / 2, 2)


def combination_below(step_U: Floats, weight_U: Floats) -> float:
    """The probability P(Σ step·G ≤ 0) for independent G ~ Gamma(weight, 1)."""
    keep = step_U != 0
    step_U, weight_U = step_U[keep], weight_U[keep]
    if not len(step_U) or step_U.max() < 0:
        return 1.0
    if step_U.min() > 0:
        return 0.0
    s = _saddlepoint(step_U, weight_U)
    # The pole at 0 must not touch the line: keep half a standard deviation, or half the way to the next singularity.
    apart = 0.5 / math.sqrt(float(weight_U @ step_U**2))
    if s <= 0:
        line = min(s, -min(apart, 0.5 / -float(step_U.min())))
        return min(1.0, max(0.0, _integral(step_U, weight_U, line)))
    line = max(s, min(apart, 0.5 / float(step_U.max())))
    return min(1.0, max(0.0, 1.0 - _integral(step_U, weight_U, line)))


def _saddlepoint(step_U: Floats, weight_U: Floats) -> float:
    """The s with K'(s) = Σ weight·step/(1 − s·step) = 0, between the singularities 1/min(step) and 1/max(step)."""
    low, high = 1.0 / float(step_U.min()), 1.0 / float(step_U.max())
    inside = 1e-12

    def slope(s: float) -> float:
        return float((weight_U * step_U / (1.0 - s * step_U)).sum())

    low, high = low * (1 - inside), high * (1 - inside)
    if slope(low) >= 0:
        return low
    if slope(high) <= 0:
        return high
    return float(brentq(slope, low, high, xtol=1e-13 * (high - low), rtol=1e-13))


def _integral(step_U: Floats, weight_U: Floats, line: float) -> float:
    """(1/π)∫_0^∞ Re[exp(K(z))/∓z] dt along z = line + it: the tail on the side of `line`."""
    width = 1.0 / math.sqrt(float((weight_U * (step_U / (1.0 - line * step_U)) ** 2).sum()))
    u_Q = np.arange(0.0, _SHORT if weight_U.sum() >= 40 else _LONG, _STEP)
    z_Q = line + 1j * width * np.sinh(u_Q)
    log_Q = -(np.log(1.0 - np.multiply.outer(z_Q, step_U)) * weight_U).sum(axis=1) - np.log(z_Q if line > 0 else -z_Q)
    value_Q = np.exp(log_Q).real * width * np.cosh(u_Q)
    value_Q[0] /= 2
    return float(value_Q.sum()) * _STEP / math.pi
