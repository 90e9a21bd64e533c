"""Spread between seeds, added to what new items alone would do to a mean gap.

Model per arm: score[s, i] = mean + seed_s + item_i + resid_{s,i}, seeds independent between the arms, items shared.
For a contrast L = Σ_z c_z·gap_z over strata z of items (one stratum in a plain comparison, two zones in
`generalises`), all parts are quadratic forms in c, kept here as K × K matrices.

The distance from the estimate to an end of its interval joins the distance that items alone need (any valid one:
`paired` picks it) to the margins of the arms. With s² the variance of an arm's S seed means, and noise = MS_resid/n
what item-by-seed noise adds to it (which the item distance holds already):

    at least 3 seeds an arm      √[items² + Σ_arm t²_{S−1}·max(0, s² − noise)/S]                   quadrature
    an arm of 2 seeds            the larger of items and √[Σ_arm t²_{S−1}·s²/S]                    larger
    3 seeds beside more          the larger of the two above                                       both
    declared equal spread        √[items² + the larger of the pooled margin (df ΣS − arms) and Welch's]   equal

Each margin keeps its own t, since few seeds that happen to agree shrink the variance and raise a Satterthwaite df at
once. Arms that share their seeds (data order, initialisation) are one arm of the differences A_s − B_s; with 2 or 3
of them the larger-of rule holds even where sharing does nothing. Error rates: docs/theory.md.

Sources: Howe 1974, JASA 69:789, and Zou & Donner 2008, Stat Med 27:1693 (margins in quadrature); Cornfield & Tukey
1956, Ann Math Stat 27:907 (crossed random factors).

Axes: S seeds, N items, K strata.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from veritune.stats.intervals import Spread, t_quantile
from veritune.stats.table import Floats, Ints, Pair

Margins = tuple[tuple[float, float], ...]
"""Variances, each with its degrees of freedom."""

Rule = Literal["quadrature", "larger", "both", "equal"]

ROUNDING = 1e-9
"""A seed spread below this share of the score scale is rounding, not agreement: seed means that differ in the last bit
are equal."""


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """The seed variance of one arm over K strata: covariance of the seed means, and of their item-by-seed noise."""

    seeds: int
    seed_mean_S_K: Floats
    seed_K_K: Floats
    resid_K_K: Floats
    resid_clustered_K_K: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Crossed:
    """The variance components for any contrast of the stratum gaps."""

    gap_K: Floats
    n_K: Ints
    clusters_K: Ints
    item_K_K: Floats
    item_clustered_K_K: Floats
    arms: tuple[Arm, ...]
    clustered: bool
    shared: bool = False

    def item_variance(self, weight_K: Floats) -> tuple[float, float]:
        """Variance of the contrast over new items, the larger of the naive and the clustered one, and its df."""
        value = max(form(self.item_K_K, weight_K), form(self.item_clustered_K_K, weight_K))
        return value, float(max(1, int(self.clusters_K[weight_K != 0].min()) - 1))


@dataclass(frozen=True, slots=True)
class SeedSpread:
    """What the arms' seeds add to the interval's half-width over items. `net` has the noise subtracted, `raw` has
    not."""

    net: Margins
    raw: Margins
    rule: Rule

    @property
    def value(self) -> float:
        """The seed part of the variance."""
        return self.net[0][0] if self.rule == "equal" else sum(v for v, _ in self.net)

    def distance(self, items: float, alpha: float) -> float:
        """Distance from the estimate to an end with a one-sided error rate of `alpha`."""
        if self.rule == "equal":
            pooled, *own = self.net
            return math.hypot(items, math.sqrt(max(_squares((pooled,), alpha), _squares(_welch(own), alpha))))
        joined = math.hypot(items, math.sqrt(_squares(self.net, alpha)))
        larger = max(items, math.sqrt(_squares(self.raw, alpha)))
        return {"quadrature": joined, "larger": larger, "both": max(joined, larger)}[self.rule]


def _squares(margins: Margins, alpha: float) -> float:
    return sum(v * t_quantile(1 - alpha, df) ** 2 for v, df in margins if v > 0)


def _welch(margins: Sequence[tuple[float, float]]) -> Margins:
    """One margin for a sum of variances, with Satterthwaite's df (Satterthwaite 1946, Biometrics Bull 2:110)."""
    total = sum(v for v, _ in margins)
    return ((total, total**2 / sum(v**2 / df for v, df in margins)),) if total > 0 else ()


@dataclass(frozen=True, slots=True)
class Combined(Spread):
    """An estimate whose items and seeds both vary: the ends of `items`, moved outwards by what the seeds add."""

    center: float
    items: Spread
    seeds: SeedSpread

    def end(self, alpha: float, side: int) -> float:
        distance = max(0.0, side * (self.items.end(alpha, side) - self.center))
        return self.center + side * self.seeds.distance(distance, alpha)

    @property
    def floor(self) -> float:
        return self.items.floor


# ---------------------------------------------------------------- components


def crossed(pair: Pair, stratum_N: Ints | None = None, *, shared: bool = False) -> Crossed:
    """The variance components of `pair`; `stratum_N` assigns each item to a stratum 0..K−1 (by default all to one).

    `shared` treats the differences of runs of equal seed as one arm (the pair's runs must line up).
    """
    z_N = np.zeros(pair.n, dtype=np.int64) if stratum_N is None else stratum_N
    n_K = np.bincount(z_N)
    clusters_K = n_K if pair.family_N is None else _clusters(pair.family_N, z_N, len(n_K))
    diff_N = pair.diff_N
    gap_K = np.bincount(z_N, weights=diff_N) / n_K
    resid_N = diff_N - gap_K[z_N]
    layout = _ItemLayout(z_N, n_K, pair.family_N, clusters_K, (ROUNDING * (pair.scale[1] - pair.scale[0])) ** 2)
    sides = [pair.score_a_S_N, pair.score_b_S_N]
    if shared:
        sides = [pair.score_a_S_N - pair.score_b_S_N]
    arms = tuple(_arm(score, layout) for score in sides if score.shape[0] > 1)
    return Crossed(
        gap_K=gap_K,
        n_K=n_K,
        clusters_K=clusters_K,
        item_K_K=layout.naive(resid_N[None]),
        item_clustered_K_K=layout.clustered(resid_N[None]),
        arms=arms,
        clustered=pair.family_N is not None,
        shared=shared,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _ItemLayout:
    """Which stratum and family each item is in, and the variance below which seed means are equal."""

    z_N: Ints
    n_K: Ints
    family_N: Ints | None
    clusters_K: Ints
    rounding: float

    def naive(self, resid_S_N: Floats) -> Floats:
        """Covariance of the stratum means from S rows of centered residuals, with items independent. K × K,
        diagonal."""
        square = np.zeros(len(self.n_K))
        for resid_N in resid_S_N:
            square += np.bincount(self.z_N, weights=resid_N**2, minlength=len(self.n_K))
        rows = max(1, len(resid_S_N) - 1)
        return np.diag(square / np.maximum(1, self.n_K - 1) / self.n_K / rows)

    def clustered(self, resid_S_N: Floats) -> Floats:
        """The same as `naive` with families as clusters; families may span strata, so the matrix is full."""
        if self.family_N is None:
            return self.naive(resid_S_N)
        k = len(self.n_K)
        factor_K = np.sqrt(self.clusters_K / np.maximum(1, self.clusters_K - 1)) / self.n_K
        cell_N = self.family_N * k + self.z_N
        size = (int(self.family_N.max()) + 1) * k
        total = np.zeros((k, k))
        for resid_N in resid_S_N:
            sum_G_K = np.bincount(cell_N, weights=resid_N, minlength=size).reshape(-1, k) * factor_K
            total += sum_G_K.T @ sum_G_K
        return total / max(1, len(resid_S_N) - 1)


def _clusters(family_N: Ints, z_N: Ints, k: int) -> Ints:
    return np.array([len(np.unique(family_N[z_N == z])) for z in range(k)], dtype=np.int64)


def _arm(score_S_N: Floats, layout: _ItemLayout) -> Arm:
    seeds = score_S_N.shape[0]
    mean_S_K = np.stack([np.bincount(layout.z_N, weights=row) / layout.n_K for row in score_S_N])
    center_S_K = mean_S_K - mean_S_K.mean(axis=0)
    resid_S_N = score_S_N - score_S_N.mean(axis=0) - center_S_K[:, layout.z_N]
    seed_K_K = center_S_K.T @ center_S_K / (seeds - 1)
    equal_K = np.diag(seed_K_K) <= layout.rounding
    seed_K_K[equal_K, :] = 0.0
    seed_K_K[:, equal_K] = 0.0
    return Arm(
        seeds=seeds,
        seed_mean_S_K=mean_S_K,
        seed_K_K=seed_K_K,
        resid_K_K=layout.naive(resid_S_N),
        resid_clustered_K_K=layout.clustered(resid_S_N),
    )


def seed_spread(parts: Crossed, weight_K: Floats, *, equal: bool = False) -> SeedSpread | None:
    """What new seeds add to the contrast; None if no arm has several runs. `equal`: equal spreads are declared.

    The noise taken off is the smaller of the naive and the clustered one, so that no seed spread is taken for noise.
    """
    if not parts.arms:
        return None
    raw, net = [], []
    for arm in parts.arms:
        noise = min(form(arm.resid_K_K, weight_K), form(arm.resid_clustered_K_K, weight_K))
        spread = form(arm.seed_K_K, weight_K)
        raw.append((spread / arm.seeds, arm.seeds - 1.0))
        net.append((max(0.0, spread - noise) / arm.seeds, arm.seeds - 1.0))
    rule = seed_rule([arm.seeds for arm in parts.arms], shared=parts.shared, equal=equal)
    if rule == "equal":
        net.insert(0, _pooled(parts.arms, weight_K))
    return SeedSpread(tuple(net), tuple(raw), rule)


def seed_rule(seeds: Sequence[int], *, shared: bool = False, equal: bool = False) -> Rule:
    """How the seed variances of arms with these numbers of seeds are combined (table above). A fixed arm has no
    entry."""
    if equal and len(seeds) > 1:
        return "equal"
    if min(seeds) == 2 or (shared and min(seeds) == 3):
        return "larger"
    return "both" if min(seeds) == 3 and max(seeds) > 3 else "quadrature"


def welch(parts: Crossed, weight_K: Floats) -> tuple[float, float] | None:
    """Variance of the contrast over new seeds on these same items, and its df; None if the seeds do not differ."""
    margins = [(form(arm.seed_K_K, weight_K) / arm.seeds, arm.seeds - 1.0) for arm in parts.arms]
    return next(iter(_welch(margins)), None)


def _pooled(arms: Sequence[Arm], weight_K: Floats) -> tuple[float, float]:
    """The seed part with one spread for all arms: pooled variance times Σ1/S, and its df."""
    df = sum(arm.seeds - 1 for arm in arms)
    spread = sum((arm.seeds - 1) * form(arm.seed_K_K, weight_K) for arm in arms) / df
    noises = [min(form(arm.resid_K_K, weight_K), form(arm.resid_clustered_K_K, weight_K)) for arm in arms]
    noise = sum((arm.seeds - 1) * x for arm, x in zip(arms, noises)) / df
    return max(0.0, spread - noise) * sum(1 / arm.seeds for arm in arms), float(df)


def form(matrix_K_K: Floats, weight_K: Floats) -> float:
    """The quadratic form wᵀMw, at least 0."""
    return max(0.0, float(weight_K @ matrix_K_K @ weight_K))
