"""Variance of a mean gap when seeds are crossed with items, and items come in families.

Model per arm: score[s, i] = mean + seed_s + item_i + resid_{s,i}, seeds independent between the arms, items shared.
For a contrast L = Σ_z c_z·gap_z over strata z of items (one stratum in a plain comparison, two zones in
`generalises`), all parts are quadratic forms in c, kept here as K × K matrices.

    V = item + Σ_arm [ s²_seedmean/S − resid/S ],  floored at item        (Satterthwaite degrees of freedom)
    item   s²_d/n, the variance over items of the seed-averaged difference; with families the larger of that and
           the clustered one, G/(G − 1)·Σ_g(Σ_{i∈g}(d_i − mean))²/n²
    resid  MS_resid/n of the two-way table; with families the smaller of that and its clustered counterpart

Satterthwaite's t interval is kept where both arms have at least 3 runs. With fewer (one arm against a fixed baseline,
or 2 runs) it errs up to 8 % (one arm of 3) or 13 % (one arm of 2) of the time at 5 %, because two or three runs that
happen to agree shrink the variance and raise its degrees of freedom at once. There the parts' margins of error are
squared and added, each with its own df; and an arm of 2 runs against a fixed arm subtracts no noise. That errs 5 %
of the time at most (tables in docs/statistics.md).

The subtraction takes out the item-by-seed noise that `item` already holds. With one stratum and no families this is
V = s²_d/n + Σ_arm [ s²_seedmean/S − MS_resid/(n·S) ]. An arm of one run adds nothing: its seed variance is unknown,
and the estimate speaks of that checkpoint only.

Sources: Satterthwaite 1946, Biometrics Bull 2:110; Cornfield & Tukey 1956, Ann Math Stat 27:907 (crossed random
factors); Cameron & Miller 2015, J Hum Resour 50:317 (clusters, G − 1 degrees of freedom).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from veritune.stats.intervals import Added, Student, t_quantile
from veritune.stats.table import Floats, Ints, Pair


@dataclass(frozen=True, slots=True, eq=False)
class Arm:
    """Seed variance of one arm over K strata: covariance of the seed means, and of their item-by-seed noise."""

    seeds: int
    seed_mean_S_K: Floats
    seed_K_K: Floats
    resid_K_K: Floats
    resid_clustered_K_K: Floats


@dataclass(frozen=True, slots=True, eq=False)
class Crossed:
    """Everything needed for the variance of any contrast of the stratum gaps."""

    gap_K: Floats
    n_K: Ints
    clusters_K: Ints
    item_K_K: Floats
    item_clustered_K_K: Floats
    arms: tuple[Arm, ...]
    clustered: bool


@dataclass(frozen=True, slots=True)
class Variance:
    """A variance: over items, over seeds, and the degrees of freedom of each.

    `df` is Satterthwaite's for the sum. `added` marks too few runs for that: margins are then squared and added.
    `floored` marks a seed part that came out negative and counts as 0.
    """

    item: float
    item_df: float
    seeds: float = 0.0
    seeds_df: float = math.inf
    df: float = math.inf
    added: bool = False
    floored: bool = False

    @property
    def value(self) -> float:
        """The whole variance."""
        return self.item + self.seeds

    @property
    def se(self) -> float:
        """Standard error."""
        return math.sqrt(self.value)

    def spread(self, center: float, least: float = 0.0) -> Student | Added:
        """Uncertainty of an estimate `center` with this variance; `least` is a lower bound on the variance."""
        if self.added:
            return Added(center, ((max(self.item, least - self.seeds), self.item_df), (self.seeds, self.seeds_df)))
        return Student(center, math.sqrt(max(self.value, least)), self.df)

    def effective_df(self, level: float = 0.95) -> float:
        """The df of the t interval that is as wide as this one at `level`."""
        if not self.added or self.value == 0:
            return self.df
        half = self.spread(0.0).interval(level)[1]
        low, high = math.log(0.5), math.log(1e9)
        for _ in range(60):
            middle = (low + high) / 2
            wide = t_quantile(0.5 + level / 2, math.exp(middle)) * self.se > half
            low, high = (middle, high) if wide else (low, middle)
        return math.exp(high)


def crossed(pair: Pair, stratum_N: Ints | None = None) -> Crossed:
    """Components of `pair`; `stratum_N` assigns each item to a stratum 0..K−1 (all to one by default)."""
    z_N = np.zeros(pair.n, dtype=np.int64) if stratum_N is None else stratum_N
    n_K = np.bincount(z_N)
    clusters_K = n_K if pair.family_N is None else _clusters(pair.family_N, z_N, len(n_K))
    diff_N = pair.diff_N
    gap_K = np.bincount(z_N, weights=diff_N) / n_K
    resid_N = diff_N - gap_K[z_N]
    layout = _Layout(z_N, n_K, pair.family_N, clusters_K)
    arms = tuple(_arm(score, layout) for score in (pair.score_a_S_N, pair.score_b_S_N) if score.shape[0] > 1)
    return Crossed(
        gap_K=gap_K,
        n_K=n_K,
        clusters_K=clusters_K,
        item_K_K=layout.naive(resid_N[None]),
        item_clustered_K_K=layout.clustered(resid_N[None]),
        arms=arms,
        clustered=pair.family_N is not None,
    )


@dataclass(frozen=True, slots=True, eq=False)
class _Layout:
    """Which stratum and family each item is in."""

    z_N: Ints
    n_K: Ints
    family_N: Ints | None
    clusters_K: Ints

    def naive(self, resid_S_N: Floats) -> Floats:
        """Covariance of the stratum means from S rows of centered residuals, items independent. K × K, diagonal."""
        square = np.zeros(len(self.n_K))
        for resid_N in resid_S_N:
            square += np.bincount(self.z_N, weights=resid_N**2, minlength=len(self.n_K))
        rows = max(1, len(resid_S_N) - 1)
        return np.diag(square / np.maximum(1, self.n_K - 1) / self.n_K / rows)

    def clustered(self, resid_S_N: Floats) -> Floats:
        """The same with families as clusters; families may span strata, so the matrix is full."""
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


def _arm(score_S_N: Floats, layout: _Layout) -> Arm:
    seeds = score_S_N.shape[0]
    mean_S_K = np.stack([np.bincount(layout.z_N, weights=row) / layout.n_K for row in score_S_N])
    center_S_K = mean_S_K - mean_S_K.mean(axis=0)
    resid_S_N = score_S_N - score_S_N.mean(axis=0) - center_S_K[:, layout.z_N]
    return Arm(
        seeds=seeds,
        seed_mean_S_K=mean_S_K,
        seed_K_K=center_S_K.T @ center_S_K / (seeds - 1),
        resid_K_K=layout.naive(resid_S_N),
        resid_clustered_K_K=layout.clustered(resid_S_N),
    )


def new_items(parts: Crossed, weight_K: Floats) -> Variance:
    """Variance of the contrast over new items, for the checkpoints at hand."""
    item = max(_form(parts.item_K_K, weight_K), _form(parts.item_clustered_K_K, weight_K))
    df = float(max(1, _units(parts, weight_K) - 1))
    return Variance(item, df, df=df)


def new_items_and_seeds(parts: Crossed, weight_K: Floats) -> Variance:
    """Variance of the contrast over new items and new seeds: the recipe. Arms of one run count as fixed."""
    base = new_items(parts, weight_K)
    if not parts.arms:
        return base
    noise_df = max(1, _units(parts, weight_K) - 1)
    few = sum(arm.seeds - 1 for arm in parts.arms) == 1
    means, noises = [], []
    for arm in parts.arms:
        noise = min(_form(arm.resid_K_K, weight_K), _form(arm.resid_clustered_K_K, weight_K))
        means.append((_form(arm.seed_K_K, weight_K) / arm.seeds, arm.seeds - 1.0))
        noises.append((0.0 if few else -noise / arm.seeds, (arm.seeds - 1.0) * noise_df))
    seed = sum(v for v, _ in means + noises)
    added = len(parts.arms) < 2 or min(arm.seeds for arm in parts.arms) < 3
    if seed <= 0:
        return Variance(base.item, base.df, df=base.df, added=added, floored=True)
    total = base.item + seed
    return Variance(
        item=base.item,
        item_df=base.df,
        seeds=seed,
        seeds_df=_satterthwaite(means),
        df=max(1.0, total**2 / sum(v**2 / df for v, df in [(base.item, base.df), *means, *noises])),
        added=added,
    )


def new_seeds(parts: Crossed, weight_K: Floats) -> Variance | None:
    """Variance of the contrast over new seeds on these very items (Welch); None when no arm has several runs."""
    means = [(_form(arm.seed_K_K, weight_K) / arm.seeds, arm.seeds - 1.0) for arm in parts.arms]
    if not means:
        return None
    df = _satterthwaite(means)
    return Variance(0.0, math.inf, sum(v for v, _ in means), df, df=df)


def _satterthwaite(terms: Sequence[tuple[float, float]]) -> float:
    """Degrees of freedom of a sum of mean squares: (Σv)²/Σ(v²/df); the least df when all are 0."""
    total = sum(v for v, _ in terms)
    if total <= 0:
        return min(df for _, df in terms)
    return total**2 / sum(v**2 / df for v, df in terms)


def _form(matrix_K_K: Floats, weight_K: Floats) -> float:
    return max(0.0, float(weight_K @ matrix_K_K @ weight_K))


def _units(parts: Crossed, weight_K: Floats) -> int:
    """Independent units (families, else items) of the smallest stratum that has a weight."""
    return int(parts.clusters_K[weight_K != 0].min())
