"""The share of one zone's gain that another zone shows, with an interval that allows for a tail that was not seen.

A zone's mean gain at a common base loss comes from least squares of gain on base loss within the zone. Its uncertainty
is that of a mean over families of the rows' pseudo-values, gain + n·influence, by the rule that the family sizes allow.

The share is T/S, T the zone's gain and S that of seen rows. Its ends are the θ at which T − θ·S leaves 0, by the
distances of T and S from their own ends (MOVER; Zou & Donner 2008, Stat Med 27:1693; with t distances this is Fieller
1954, J R Stat Soc B 16:175):

    (T − θS)² = a² + θ²b² − 2θ·r·a·b          a: T to its end on one side, b: S to its end on the other

Gains are skewed: a few families may gain most, and the families drawn may hold none of them. So the upper end of S
allows for one unseen family that loses all of its base loss, and that of T for one that carries all (θ = 1), with the
weight that Learned-Miller & Thomas give it (1 − alpha^{1/G} for equal gains). Measured in bench/probe/zone_gap.py.
Siblings' families are seen families, so that what one carries is seen: their share, which decides no word, has neither.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from veritune.probe.clusters import Bools, FamilyMean, Floats, Ints, no_interval


@dataclass(frozen=True, slots=True, eq=False)
class ZoneGain:
    """One zone's mean gain at the common base loss, and pseudo-values per row whose mean is that gain."""

    mean: FamilyMean
    value_N: Floats
    family_N: Ints
    slope: float | None
    overlaps: bool = True

    @property
    def n(self) -> int:
        return len(self.value_N)

    @property
    def n_families(self) -> int:
        return self.mean.rule.families

    def without_interval(self, least: int) -> str | None:
        """Why the gain has no interval; None if it has one."""
        if self.n_families < least:
            return no_interval(self.n_families, least)
        return f"no interval: {self.mean.rule.reason}" if self.mean.rule.method == "withheld" else None


def zone_gain(base_N: Floats, gain_N: Floats, family_N: Ints, mask_N: Bools, reference: float, least: int) -> ZoneGain:
    """The zone's mean gain at the base loss `reference`, by least squares; the plain mean below `least` rows."""
    b, g, f = base_N[mask_N], gain_N[mask_N], family_N[mask_N]
    n, spread = len(b), float(np.square(b - b.mean()).sum())
    one_N = np.ones(n)
    # Below this the base losses are equal up to rounding, and a slope on them would be noise.
    if n < least or spread < 1e-12 * max(1.0, float(np.square(b).sum())):
        return ZoneGain(FamilyMean.of(g, one_N, f), g, f, None)
    slope = float((b - b.mean()) @ g) / spread
    residual = g - g.mean() - slope * (b - b.mean())
    leverage = 1 / n + (b - b.mean()) * (reference - b.mean()) / spread
    influence = leverage * residual * math.sqrt(n / (n - 2))
    value = g.mean() + slope * (reference - b.mean()) + n * influence
    low, high = np.quantile(b, (0.05, 0.95))
    return ZoneGain(FamilyMean.of(value, one_N, f), value, f, slope, bool(low <= reference <= high))


def share_interval(
    to: ZoneGain, seen: ZoneGain, most: float | None, alpha: float, *, siblings: bool = False
) -> tuple[float, float] | tuple[None, None]:
    """Ends of the share at one-sided error `alpha`; (None, None) if the gain on seen rows is not clearly above zero.

    `most` is the largest gain that a seen family can have at the common base loss, None where nothing bounds it. For
    `siblings` no family that was not drawn is allowed for.
    """
    t, s = to.mean.value, seen.mean.value
    r = _correlation(to, seen)
    t_low, t_top = to.mean.distance(alpha, -1), to.mean.distance(alpha, 1)
    s_low, s_top = seen.mean.distance(alpha, -1), seen.mean.distance(alpha, 1)
    if s_low >= s or math.isinf(max(t_low, t_top, s_top)):
        return None, None
    t_high = to.mean.distance(alpha, 1, cap=None if siblings else s)
    s_high = seen.mean.distance(alpha, 1, cap=None if siblings else most)
    # θ > 0 sets the lower end of T against the upper end of S, θ < 0 against its lower end; the other way round above.
    # Only what the families drawn share is correlated, not the allowance for those that were not.
    low_b, low_own = (s_high, s_top) if t_low <= t else (s_low, s_low)
    high_b, high_own = (s_low, s_low) if t + t_high >= 0 else (s_high, s_top)
    low = _end(t, s, (t_low, low_b, r * t_low * low_own), -1)
    return low, _end(t, s, (t_high, high_b, r * t_top * high_own), 1)


def _end(t: float, s: float, distances: tuple[float, float, float], side: int) -> float:
    """The θ below (side -1) or above t/s with (t − θs)² = a² + θ²b² − 2θ·c, for `distances` (a, b, c)."""
    a, b, shared = distances
    square, middle, rest = s * s - b * b, t * s - shared, t * t - a * a
    root = side * math.sqrt(max(0.0, middle * middle - square * rest))
    # Of (middle + root)/square and rest/(middle - root), which are equal, the one that subtracts no equal numbers.
    if middle * root > 0:
        return (middle + root) / square
    return rest / (middle - root) if middle != root else 0.0


def _correlation(to: ZoneGain, seen: ZoneGain) -> float:
    """Correlation of the two gains through families that lie in both zones; 0 where none does."""
    if not len(np.intersect1d(to.family_N, seen.family_N)):
        return 0.0
    size = int(max(to.family_N.max(), seen.family_N.max())) + 1
    sums = [np.bincount(z.family_N, (z.value_N - z.mean.value) / z.n, size) for z in (to, seen)]
    spread = math.sqrt(float(sums[0] @ sums[0]) * float(sums[1] @ sums[1]))
    return float(np.clip(sums[0] @ sums[1] / spread, -1, 1)) if spread > 0 else 0.0
