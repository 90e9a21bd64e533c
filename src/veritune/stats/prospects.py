"""The chance that an interval will lie beyond 0, or inside a margin, before the data are there.

The rules of `seeds` and `paired` are applied to what the mean squares may come out as. The mean square over items is
v·χ²/df, that of each arm's run means likewise; the item-by-seed noise counts as known. Every such draw gives the
half-width of the interval in use (Satterthwaite's t, or margins squared and added). The gap is normal around its true
value and independent of them. The chance is the mean over the draws, by Gauss–Legendre quadrature of their quantiles.

So few seeds cost here what they cost in `compare`: their mean square is drawn too, and the degrees of freedom with it.

Sources: Satterthwaite 1946, Biometrics Bull 2:110; Cornfield & Tukey 1956, Ann Math Stat 27:907.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
from scipy import special
from scipy.optimize import brentq

from veritune.stats.table import Floats

_ITEM_NODES, _ONE_ARM_NODES, _TWO_ARM_NODES = 16, 128, 36


@dataclass(frozen=True, slots=True)
class Parts:
    """The variances behind a mean gap, in squared score units.

    `item` per item, repeating in every run; `noise` per item and run of one arm; `seed` per run. `seeds` are the runs
    of each arm that has any by nature. `spread` tells whether the interval carries a seed part that is estimated
    from the runs; without it the interval speaks of items alone.
    """

    item: float
    noise: float
    seed: float
    seeds: tuple[int, ...]
    spread: bool

    def item_variance(self, n: float) -> float:
        """Variance over items of the mean gap on n items."""
        return (self.item + self.noise * sum(1 / s for s in self.seeds)) / n

    def variance(self, n: float) -> float:
        """Variance of the mean gap over new items, and over new seeds where the interval speaks of them."""
        return self.item_variance(n) + (self.seed * sum(1 / s for s in self.seeds) if self.spread else 0.0)


@dataclass(frozen=True, slots=True, eq=False)
class Halves:
    """Half-widths that the interval may have, with their weights, and the standard deviation of the gap."""

    half_Q: Floats
    weight_Q: Floats
    sd: float

    def excludes_zero(self, gap: float) -> float:
        """The chance that the interval lies beyond 0 on either side when the true gap is `gap`."""
        upper = special.ndtr((gap - self.half_Q) / self.sd)
        lower = special.ndtr((-gap - self.half_Q) / self.sd)
        return float(self.weight_Q @ (upper + lower))

    def inside(self, margin: float) -> float:
        """The chance that the interval lies inside ± `margin` when the true gap is 0."""
        room_Q = np.maximum(0.0, margin - self.half_Q)
        return float(self.weight_Q @ (2 * special.ndtr(room_Q / self.sd) - 1))

    def least(self, chance: str, target: float) -> float:
        """The least gap (`excludes_zero`) or margin (`inside`) at which that chance reaches `target`."""
        reach = getattr(self, chance)
        high = self.sd
        while reach(high) < target:
            high *= 2
        return float(brentq(lambda x: reach(x) - target, 0.0, high, xtol=1e-9 * high))


def halves(parts: Parts, n: float, unit_df: float, level: float) -> Halves:
    """What the interval at `level` on n items with `unit_df` degrees of freedom over items may come out as."""
    share_I, weight_I = _mean_squares(unit_df, _ITEM_NODES if parts.spread else _ONE_ARM_NODES)
    item_I = parts.item_variance(n) * share_I
    sd = math.sqrt(parts.variance(n))
    if not parts.spread:
        half_I = float(_t(np.array([unit_df]), level)[0]) * np.sqrt(item_I)
        return Halves(half_I, weight_I, sd)
    seed_M, df_M, inverse_M, weight_M = _seed_part(parts, n, unit_df)
    item_I_M = item_I[:, None]
    if len(parts.seeds) < 2 or min(parts.seeds) < 3:
        t_item = _t(np.array([unit_df]), level)
        square = item_I_M * t_item**2 + seed_M * _t(df_M, level) ** 2
    else:
        total = item_I_M + seed_M
        spent = item_I_M**2 / unit_df + inverse_M
        df = np.where(seed_M > 0, np.maximum(1.0, total**2 / np.maximum(spent, 1e-300)), unit_df)
        square = total * _t(df, level) ** 2
    return Halves(np.sqrt(square).ravel(), (weight_I[:, None] * weight_M).ravel(), sd)


def _seed_part(parts: Parts, n: float, unit_df: float) -> tuple[Floats, Floats, Floats, Floats]:
    """Draws of the seed part after the noise is taken off, its Welch df, Σ v²/df of its terms, and their weights."""
    few = sum(s - 1 for s in parts.seeds) == 1
    nodes = _ONE_ARM_NODES if len(parts.seeds) == 1 else _TWO_ARM_NODES
    total, squares, weight = np.zeros(1), np.zeros(1), np.ones(1)
    noise = noise_squares = 0.0
    for s in parts.seeds:
        share_Q, weight_Q = _mean_squares(s - 1.0, nodes)
        mean_Q = (parts.seed + parts.noise / n) / s * share_Q
        total = np.add.outer(total, mean_Q).ravel()
        squares = np.add.outer(squares, mean_Q**2 / (s - 1)).ravel()
        weight = np.multiply.outer(weight, weight_Q).ravel()
        if not few:
            noise += parts.noise / n / s
            noise_squares += (parts.noise / n / s) ** 2 / ((s - 1) * unit_df)
    df = np.where(total > 0, total**2 / np.maximum(squares, 1e-300), 1.0)
    return np.maximum(0.0, total - noise), df, squares + noise_squares, weight


def _mean_squares(df: float, nodes: int) -> tuple[Floats, Floats]:
    """Quadrature nodes of χ²/df and their weights."""
    node_Q, weight_Q = np.polynomial.legendre.leggauss(nodes)
    share_Q = 2 * special.gammaincinv(df / 2, (node_Q + 1) / 2) / df
    return share_Q, weight_Q / 2


_LOG_DF = np.linspace(math.log(0.5), math.log(1e7), 800)


def _t(df_Q: Floats, level: float) -> Floats:
    """Student's t quantiles of a two-sided interval, interpolated on log df (relative error under 1e-4)."""
    if len(df_Q) == 1 and df_Q.ndim == 1:
        return np.asarray(special.stdtrit(df_Q, 0.5 + level / 2))
    log_t = np.log(special.stdtrit(np.exp(_LOG_DF), 0.5 + level / 2))
    return np.asarray(np.exp(np.interp(np.log(df_Q), _LOG_DF, log_t)))
