"""Means and ratios of sums with intervals by family: rows of one family are one draw. Arrays only.

Axes: N rows, G families. Which interval holds depends on the family sizes (`stats.families`): CR1 alone, CR1 united
with sign flips of whole families, CR3, or none.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt
from scipy.optimize import brentq
from scipy.special import stdtrit

from veritune.config.thresholds import DEFAULTS
from veritune.counting import many
from veritune.records import Estimate, JsonLike
from veritune.stats.bounded import combination_below
from veritune.stats.families import FamilyRule, cr1, cr3, family_rule, family_sums, sign_flips
from veritune.stats.intervals import Spread, Student, Unknown, Widest

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]
Bools = npt.NDArray[np.bool_]

LEAST_FAMILIES = DEFAULTS.families.for_interval
SAME = "both models give the same value on every row: nothing was trained, or the two are one model"
LADDER = (0.95, 0.975, 0.98, 0.985, 0.99, 0.995, 0.998, 0.999)
"""Levels that up to fifty claims sharing an alpha of .05 may need: 1 − .05/k for k = 1 to 50."""
FLAT = "no interval: every row gave the same value, so spread says nothing"


def t_quantile(probability: float, df: float) -> float:
    """The t below which a share `probability` of Student's distribution with `df` degrees of freedom lies."""
    return float(stdtrit(df, probability))


def codes(labels: Sequence[Hashable]) -> Ints:
    """Labels as codes 0..F-1 in order of first appearance; each None becomes a family of its own."""
    seen: dict[Hashable, int] = {}
    return np.array([seen.setdefault(("alone", i) if x is None else x, len(seen)) for i, x in enumerate(labels)])


@dataclass(frozen=True, slots=True, eq=False)
class FamilyMean:
    """sum(top)/sum(bottom) over rows in families: its value, and the uncertainty that the family sizes allow.

    `se` is the larger of the families' and the rows' standard error, 0 where nothing varies.
    """

    value: float
    se: float
    spread: Spread
    rule: FamilyRule
    top_G: Floats
    bottom_G: Floats

    @classmethod
    def of(cls, top_N: Floats, bottom_N: Floats, family_N: Ints) -> FamilyMean:
        """The mean from rows: `bottom_N` is what each row adds to the divisor, 1 for a mean over rows, or its tokens.
        Not all may be 0.
        """
        _, code_N = np.unique(family_N, return_inverse=True)
        top_G, bottom_G = family_sums(top_N, code_N), family_sums(bottom_N, code_N)
        top_G, bottom_G = top_G[bottom_G > 0], bottom_G[bottom_G > 0]
        total = float(bottom_G.sum())
        value = float(top_G.sum()) / total
        size_G = np.rint(bottom_G).astype(np.int64)
        rule = family_rule(size_G)
        residual_N = (top_N - value * bottom_N) / total
        n = len(top_N)
        rows = n / max(1, n - 1) * float(residual_N @ residual_N)
        families = (cr3 if rule.method == "cr3" else cr1)(top_G, size_G) if len(top_G) > 1 else 0.0
        se = math.sqrt(max(families, rows))
        return cls(value, se, _spread(rule, Student(value, se, rule.df), top_G, size_G), rule, top_G, bottom_G)

    def distance(self, alpha: float, side: int, cap: float | None = None) -> float:
        """Distance from the value to its lower (side -1) or upper (+1) end at one-sided error `alpha`; infinite if
        there is no end.

        With `cap` the end also allows for one unseen family of mean size at that value: see `capped_end`.
        """
        end = self.spread.end(alpha, side)
        if cap is not None and math.isfinite(end) and self._beyond(end, side, cap) > alpha:
            end = self.capped_end(alpha, side, cap)
        return max(0.0, side * (end - self.value))

    def capped_end(self, alpha: float, side: int, cap: float) -> float:
        """The end of Learned-Miller & Thomas (2019, arXiv 1905.06208): families *and one unseen family at `cap`* get
        Dirichlet(1, ..., 1) weights; this is the alpha quantile of the weighted mean. Equal families of one value v
        read v + (1 - alpha^(1/G))·(cap - v).
        """
        ends_G = np.append(self.top_G / self.bottom_G, cap)
        near, far = sorted((float(ends_G.min()), float(ends_G.max())), reverse=side < 0)
        if near == far:
            return far
        # P(weighted mean beyond m) falls from 1 at the nearest value to 0 at the farthest.
        return float(
            brentq(lambda m: self._beyond(m, side, cap) - alpha, near, far, xtol=1e-9 * abs(far - near), rtol=1e-10)
        )

    def _beyond(self, m: float, side: int, cap: float) -> float:
        """P(weighted mean lies beyond m on `side`). The unseen family has the root mean square size: with the mean size
        `memorises` was wrong in .08 of runs where 40 families had Zipf sizes (bench/probe/zone_gap.py, "rare").
        """
        size = math.sqrt(float(self.bottom_G @ self.bottom_G) / len(self.bottom_G))
        step_G = np.append(m * self.bottom_G - self.top_G, size * (m - cap))
        return combination_below(side * step_G, np.ones(len(step_G)))


def _spread(rule: FamilyRule, student: Student, top_G: Floats, size_G: Ints) -> Spread:
    if rule.method == "withheld":
        return Unknown(rule.reason)
    if rule.method == "cr1+flips":
        return Widest((student, sign_flips(top_G, size_G)))
    return student


def no_interval(families: int, least: int, where: str = "") -> str:
    """Why this number of families is too small for an interval."""
    return f"no interval: {many(families, 'families')}{where}, fewer than {least} say too little"


def ratio(
    name: str,
    top_N: Floats,
    bottom_N: Floats,
    family_N: Ints,
    *,
    level: float = 0.95,
    least: int = LEAST_FAMILIES,
) -> Estimate:
    """The ratio sum(top)/sum(bottom) with the linearised cluster variance and the interval that the family sizes allow.

    A mean over rows has bottom 1; a mean per token has the row's tokens. Never narrower than with rows as draws.
    Fewer than `least` families give no interval. Source: Cochran 1977, Sampling Techniques, ch. 6 and 9.
    """
    n, total = len(top_N), float(np.sum(bottom_N))
    n_families = len(np.unique(family_N)) if n else 0
    blank = Estimate(name, None, None, None, level, n, "ratio of sums, clustered by family", n_clusters=n_families)
    if total <= 0:
        return replace(blank, warnings=("nothing to average",))
    mean = FamilyMean.of(np.asarray(top_N, float), np.asarray(bottom_N, float), family_N)
    blank = replace(blank, value=mean.value)
    if n_families < least:
        return replace(blank, warnings=(no_interval(n_families, least),))
    if mean.rule.method == "withheld":
        return replace(blank, warnings=(f"no interval: {mean.rule.reason}",))
    if mean.se == 0:
        return replace(blank, warnings=(FLAT,))
    low, high = mean.spread.interval(level)
    made = replace(blank, low=low, high=high, se=mean.se, df=mean.rule.df, method=f"ratio of sums, {mean.rule.text}")
    return made if isinstance(mean.spread, Student) else replace(made, details=ladder(mean.spread.interval))


def difference(
    name: str,
    value_N: Floats,
    first_N: Bools,
    family_N: Ints,
    *,
    level: float = 0.95,
    least: int = LEAST_FAMILIES,
) -> Estimate:
    """Mean over the rows where `first_N` is true minus the mean over the others; a family may have rows on both sides.

    Each side has the interval that its own family sizes allow; `combined` adds their distances. Fewer than `least`
    families on a side give no interval.
    """
    first_N = np.asarray(first_N, bool)
    method = "difference of two means, clustered by family"
    blank = Estimate(name, None, None, None, level, len(value_N), method)
    if not (first_N.any() and (~first_N).any()):
        return replace(blank, warnings=("one of the two sides has no rows",))
    sides = [FamilyMean.of(value_N[m], np.ones(int(m.sum())), family_N[m]) for m in (first_N, ~first_N)]
    families = [len(side.top_G) for side in sides]
    blank = replace(blank, value=sides[0].value - sides[1].value, n_clusters=len(np.unique(family_N)))
    if min(families) < least:
        return replace(blank, warnings=(no_interval(min(families), least, " on one side"),))
    withheld = [side.rule.reason for side in sides if side.rule.method == "withheld"]
    if withheld:
        return replace(blank, warnings=(f"no interval: {withheld[0]}",))
    if all(side.se == 0 for side in sides):
        return replace(blank, warnings=(FLAT,))
    r = correlation(value_N, first_N, family_N)
    low, high = combined(sides[0], sides[1], r, (1 - level) / 2)
    rungs = ladder(lambda at: combined(sides[0], sides[1], r, (1 - at) / 2))
    return replace(blank, low=low, high=high, df=float(min(families) - 1), details=rungs)


def ladder(interval: Callable[[float], tuple[float, float]]) -> Mapping[str, JsonLike]:
    """`intervals` at several levels, for an estimate whose se and df do not determine them; a claim reads the level it
    needs.

    Levels without a bound are left out.
    """
    made = {f"{level:g}": interval(level) for level in LADDER}
    return {"intervals": {level: list(ends) for level, ends in made.items() if all(map(math.isfinite, ends))}}


def combined(first: FamilyMean, second: FamilyMean, r: float, alpha: float) -> tuple[float, float]:
    """Ends of first − second: √(a² + b² − 2·r·a·b) from the means' own distances a and b (MOVER).

    Source: Zou & Donner 2008, Stat Med 27:1693; `r` is the correlation of the two means.
    """
    gap = first.value - second.value
    ends = []
    for side in (-1, 1):
        a, b = first.distance(alpha, side), second.distance(alpha, -side)
        ends.append(gap + side * math.sqrt(max(0.0, a * a + b * b - 2 * r * a * b)))
    return ends[0], ends[1]


def correlation(value_N: Floats, first_N: Bools, family_N: Ints) -> float:
    """Correlation of the two sides' means through families that are on both sides; 0 if there are none."""
    both = np.intersect1d(family_N[first_N], family_N[~first_N])
    if not len(both):
        return 0.0
    size = int(family_N.max()) + 1
    sums = []
    for mask in (first_N, ~first_N):
        residual = (value_N[mask] - value_N[mask].mean()) / int(mask.sum())
        sums.append(np.bincount(family_N[mask], residual, size))
    spread = math.sqrt(float(sums[0] @ sums[0]) * float(sums[1] @ sums[1]))
    return float(np.clip(sums[0] @ sums[1] / spread, -1, 1)) if spread > 0 else 0.0
