"""Items in families: which interval holds depends on the family sizes alone, so it is known before the data are.

G families of n_g items, n in all, w_g = n_g/n, S_g the sum of a family's differences, e_g = S_g − n_g·mean.

    largest at most 1.5 × the mean size, G ≥ 12; or exactly equal, G ≥ 4  CR1, t with G − 1 df
    any other sizes, G ≥ 8                                                CR1 united with sign flips of whole families
    any other sizes, 4 ≤ G ≤ 7                                            CR3, t with Bell–McCaffrey df
    fewer than 4 families, or fewer than 3 effective ones (CR3: 3.5)      withheld

    CR1    V = G/(G − 1)·Σ e_g²/n²
    CR3    V = (G − 1)/G·Σ e_g²/(n − n_g)²
    df     (ΣΩ_gg)²/ΣΩ_gh², Ω_gh = a_g·a_h·(n_g·[g = h] − n_g·n_h/n), a_g = 1/(1 − w_g)
    flips  order statistics of Σ_J S_g/Σ_J n_g over subsets J of families: the sign-flip test at the tested margin, so
           they guard every kind of claim

Sources: Cameron & Miller 2015, J Hum Resour 50:317 (CR1); Bell & McCaffrey 2002, Surv Methodol 28:169, and MacKinnon,
Nielsen & Webb 2023, J Econometrics 232:272 (CR3 and its df); Hartigan 1969, JASA 64:1303, and Canay, Romano & Shaikh
2017, Econometrica 85:1013 (flips).

The number of *effective families* is that df + 1: G for equal families, 2.5 when one of twenty holds 60 % of the items.
CR1 alone errs up to three times too often where one family holds 40 % of the items, and CR2 with its own df still errs
with two large families (docs/theory.md). No rule knows of a kind of family that was not drawn: up to 1 − .025^{1/G} of
families could be of one (`undrawn`).
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np

from veritune.counting import many
from veritune.stats.intervals import Flips
from veritune.stats.table import Floats, Ints

Method = Literal["cr1", "cr1+flips", "cr3", "withheld"]

FEWEST = 4
"""Families below which no interval is given: with three the t quantile (df 2) already spans most scales."""

FEWEST_EFFECTIVE = 3.0
"""Effective families below which no interval is given. Measured: at df 1.5 (one family of 60 %) CR3 never decides and
CR1 errs .10 to .29 for a nominal .025."""

FEWEST_EFFECTIVE_CR3 = 3.5
"""The same for CR3, which no sign flips guard. With two families of 35 % among 6 (3.4 effective) that each go one way
as a whole it errs .13 for .025."""

EVEN, EVEN_FROM = 1.5, 12
"""Largest family over mean size up to which G − 1 degrees of freedom hold, and from how many families on (.030 for a
nominal .025; with 8 families .036, at 1.8 times the mean .041)."""

MANY = 8
"""Families from which flips of whole families can reach p = .01 (2^-7) and CR1 beside them holds."""

_EXACT_UNITS = 16
_CHUNK_CELLS = 4_000_000


@dataclass(frozen=True, slots=True)
class FamilyRule:
    """The method for these family sizes, its degrees of freedom, and the reason if no interval is given."""

    method: Method
    families: int
    effective: float
    df: float
    reason: str = ""

    @property
    def text(self) -> str:
        """The method as text."""
        name = {
            "cr1": "cluster-robust t",
            "cr1+flips": "cluster-robust t and sign flips of whole families, the wider",
            "cr3": "cluster-robust t (CR3, Bell–McCaffrey df)",
            "withheld": "none",
        }[self.method]
        return name if self.method == "withheld" else f"{name}, over {many(self.families, 'families')}"


def family_rule(size_G: Ints) -> FamilyRule:
    """The rule for families of these sizes (items each, all above 0).

    >>> family_rule(np.array([5, 5, 5, 5, 5, 5])).method
    'cr1'
    >>> family_rule(np.array([40, 3, 3])).method
    'withheld'
    """
    families = len(size_G)
    effective = effective_families(size_G)
    largest = int(size_G.max()) if families else 0
    share = largest / max(1, int(size_G.sum()))
    if families < FEWEST:
        reason = f"{families} famil{'y' if families == 1 else 'ies'}: fewer than {FEWEST} give no interval"
        return FamilyRule("withheld", families, effective, 0.0, reason)
    equal = largest == int(size_G.min())
    least = FEWEST_EFFECTIVE if families >= MANY or equal else FEWEST_EFFECTIVE_CR3
    if effective < least:
        reason = (
            f"{many(families, 'families')} of unequal size are worth {effective:.1f} (the largest holds "
            f"{100 * share:.0f} % of "
            f"the items): fewer than {least:g} effective families give no interval"
        )
        return FamilyRule("withheld", families, effective, 0.0, reason)
    even = largest <= EVEN * float(size_G.mean())
    if (even and families >= EVEN_FROM) or equal:
        return FamilyRule("cr1", families, effective, families - 1.0)
    if families >= MANY:
        return FamilyRule("cr1+flips", families, effective, families - 1.0)
    return FamilyRule("cr3", families, effective, effective - 1.0)


def effective_families(size_G: Ints) -> float:
    """The effective number of families: Bell–McCaffrey degrees of freedom of CR3 under independent items, plus 1; 1 for
    a single family.

    >>> round(effective_families(np.array([40] + [4] * 15)), 1)
    4.4
    """
    if len(size_G) < 2:
        return float(len(size_G))
    n = float(size_G.sum())
    size = size_G.astype(np.float64)
    square_G = (1.0 / (1.0 - size / n)) ** 2
    own_G, cross_G = square_G * size, square_G * size**2 / n
    trace = float((own_G - cross_G).sum())
    squares = float((own_G**2 - 2 * own_G * cross_G).sum()) + float(cross_G.sum()) ** 2
    return trace**2 / squares + 1.0


def undrawn(families: int, alpha: float = 0.025) -> float:
    """The largest share of families that could be of a kind absent from the sample: 1 − alpha^{1/G}.

    >>> round(undrawn(20), 2)
    0.17
    """
    return 1.0 - float(alpha ** (1.0 / families))


def family_sums(value_N: Floats, family_N: Ints) -> Floats:
    """Sum of each family's values [G]. Values are sorted first, so that the order of items does not change the last
    bit.
    """
    order_N = np.lexsort((value_N, family_N))
    return np.bincount(family_N[order_N], weights=value_N[order_N]).astype(np.float64)


def cr1(sum_G: Floats, size_G: Ints) -> float:
    """Cluster-robust variance of the mean, G/(G − 1)·Σ e_g²/n²."""
    families, n = len(size_G), float(size_G.sum())
    rest_G = sum_G - size_G * (sum_G.sum() / n)
    return families / max(1, families - 1) * float((rest_G**2).sum()) / n**2


def cr3(sum_G: Floats, size_G: Ints) -> float:
    """Jackknife cluster-robust variance of the mean, (G − 1)/G·Σ e_g²/(n − n_g)²."""
    families, n = len(size_G), float(size_G.sum())
    rest_G = sum_G - size_G * (sum_G.sum() / n)
    return (families - 1) / families * float(((rest_G / (n - size_G)) ** 2).sum())


def sign_flips(sum_G: Floats, size_G: Ints, *, draws: int = 9_999, seed: int = 0) -> Flips:
    """Sign flips of whole families as subset means Σ_J S_g/Σ_J n_g; the interval's ends are order statistics of these
    means.

    Exact for at most 16 families (all 2^G − 1 subsets), else `draws` random ones. The families are sorted first, so
    their order does not change the draws; sums from `family_sums` keep that of the items from changing them either.
    See `intervals.Flips` for the formula.
    """
    order_G = np.lexsort((size_G, sum_G))
    sums_G, sizes_G = sum_G[order_G].astype(np.float64), size_G[order_G].astype(np.float64)
    families = len(sums_G)
    exact = families <= _EXACT_UNITS
    rows = 2**families - 1 if exact else draws
    rng = np.random.default_rng(seed)
    mean_R = np.empty(rows)
    step = max(1, _CHUNK_CELLS // families)
    for start in range(0, rows, step):
        stop = min(rows, start + step)
        if exact:
            pattern = np.arange(start + 1, stop + 1)[:, None] >> np.arange(families) & 1
        else:
            pattern = rng.integers(0, 2, size=(stop - start, families), dtype=np.int8)
        chosen = pattern.astype(np.float64)
        count = chosen @ sizes_G
        with np.errstate(invalid="ignore", divide="ignore"):
            mean_R[start:stop] = np.where(count > 0, chosen @ sums_G / count, np.nan)
    empty = np.isnan(mean_R)
    low_R, high_R = np.where(empty, -math.inf, mean_R), np.where(empty, math.inf, mean_R)
    return Flips(np.sort(low_R), np.sort(high_R), exact)
