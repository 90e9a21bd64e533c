"""Quantiles of waiting times, and their ratio between two arms, with bounds that hold in the tail.

A mean of logs hides the tail: 2 % of requests that take ten times longer raise a geometric mean by 4.7 %. A quantile
shows them, and needs many requests: below log(error)/log(q) of them no order statistic bounds the q-quantile.

A bound is a test inverted: v bounds the q-quantile from above when the share of requests that took at most v is shown
to be at least q, by the exact binomial (Clopper & Pearson 1934) with the effective number of requests n/deff (Korn &
Graubard 1998, Survey Methodology 24:193, without their t factor). deff is how much more the share above v varies
between blocks of one stratum than requests drawn singly would, at that very v and never below 1. Where no request took
longer than v nothing clusters and the bound is the exact one: bursts of slow requests that were not seen cannot be
estimated, so `burst`, their declared length, divides n from the start. Pooling strata of fixed sizes is conservative
(Hoeffding 1956, Ann Math Stat 27:713).

A request without an answer counts as infinitely slow and is never dropped.

Axes: N requests of one arm, sorted by time; G blocks.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from veritune.counting import many

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True, eq=False)
class Waits:
    """The waiting times of one arm: seconds [N] (inf: no answer), with the stratum (rate) and the block of each
    request.

    >>> import numpy as np
    >>> Waits(np.array([0.1, np.inf]), np.zeros(2, int), np.arange(2)).value_N.size
    2
    """

    value_N: Floats
    stratum_N: Ints
    block_N: Ints

    @property
    def lost(self) -> int:
        """The number of requests without an answer."""
        return int(np.isinf(self.value_N).sum())


@dataclass(frozen=True, slots=True)
class Bounds:
    """A quantile with one-sided bounds; `low` is 0 and `high` inf if there is none."""

    value: float
    low: float
    high: float


@dataclass(frozen=True, slots=True)
class QuantileRatio:
    """The ratio of new to old at one quantile. `low` 0 and `high` inf: unbounded. `needed` is the smallest number of
    requests per arm with which a bound exists; `reason` says why there is none.
    """

    q: float
    value: float | None
    low: float
    high: float
    n: int
    lost: tuple[int, int]
    needed: int
    reason: str = ""

    def against(self, limit: float) -> Literal["passed", "failed", "undecided"]:
        """Whether the ratio is shown to be at most `limit`, shown to be above it, or neither."""
        return "passed" if self.high <= limit else "failed" if self.low > limit else "undecided"


def requests_needed(q: float, alpha: float = 0.05, burst: int = 1) -> int:
    """Least requests per arm that give the ratio of two latency quantiles (`q` each) a two-sided interval at 1 - alpha:
    burst·log(alpha/4)/log(q). `burst` requests count as one, since neighbours slow down together.

    >>> requests_needed(0.99)
    437
    """
    return math.ceil(burst * math.log(alpha / 4) / math.log(q) - 1e-9)


def quantile_bounds(waits: Waits, q: float, error: float, burst: int = 1) -> Bounds:
    """The q-quantile of one arm with a lower and an upper bound, each wrong with probability at most `error`.

    Every stratum needs two blocks or more: within one block nothing tells how blocks differ.
    """
    from scipy.special import betaincinv

    n = len(waits.value_N)
    order = np.argsort(waits.value_N, kind="stable")
    sorted_N = waits.value_N[order]
    value = float(sorted_N[min(n - 1, max(0, math.ceil(q * n) - 1))])
    deff_K = np.maximum(burst, _design_effects(waits, order))  # K = 0..n requests at or below the threshold

    at_most_N = np.searchsorted(sorted_N, sorted_N, side="right")
    n_eff_N = n / deff_K[at_most_N]
    hits_N = at_most_N / n * n_eff_N
    shown_N = betaincinv(hits_N, n_eff_N - hits_N + 1, error)  # lower end of the share at or below
    above = np.flatnonzero(shown_N >= q)

    below_N = np.searchsorted(sorted_N, sorted_N, side="left")
    n_eff_N = n / deff_K[below_N]
    hits_N = below_N / n * n_eff_N
    most_N = betaincinv(hits_N + 1, n_eff_N - hits_N, 1 - error)  # upper end of the share below
    under = np.flatnonzero(most_N <= q)
    return Bounds(
        value,
        low=float(sorted_N[under[-1]]) if under.size else 0.0,
        high=float(sorted_N[above[0]]) if above.size else math.inf,
    )


def _design_effects(waits: Waits, order: Ints) -> Floats:
    """How much more the share above each threshold varies between blocks than for requests drawn singly [n + 1].

    Entry k is for a threshold with k requests at or below it. Sum over strata of G/(G - 1) · sum over blocks of
    (exceedances - expected)², over the sum of n p (1 - p); never below 1.
    """
    pairs, cluster_N = np.unique(np.stack([waits.stratum_N, waits.block_N]), axis=1, return_inverse=True)
    stratum_G = pairs[0]
    cluster_N = cluster_N.reshape(-1)[order]
    n = len(order)
    one_N_G = (cluster_N[:, None] == np.arange(len(stratum_G))).astype(float)
    size_G = one_N_G.sum(0)
    over_K_G = size_G - np.concatenate([np.zeros((1, len(size_G))), one_N_G.cumsum(0)])
    between_K, single_K = np.zeros(n + 1), np.zeros(n + 1)
    for stratum in np.unique(stratum_G):
        mine = stratum_G == stratum
        n_blocks, n_requests = int(mine.sum()), size_G[mine].sum()
        share_K = over_K_G[:, mine].sum(1) / n_requests
        rest_K_G = over_K_G[:, mine] - share_K[:, None] * size_G[mine]
        between_K += n_blocks / (n_blocks - 1) * np.square(rest_K_G).sum(1)
        single_K += n_requests * share_K * (1 - share_K)
    return np.maximum(1.0, np.divide(between_K, single_K, out=np.ones(n + 1), where=single_K > 1e-9))


def quantile_ratio(new: Waits, old: Waits, q: float, alpha: float = 0.05, burst: int = 1) -> QuantileRatio:
    """The ratio of two arms' q-quantiles with a two-sided interval at 1 - alpha or more.

    `burst` is how many slow requests in a row are taken to have one cause, 1 for none. Each arm's bounds err with
    alpha/4: the ends divide, and Bonferroni holds without independence.

    >>> import numpy as np
    >>> wait_N, rate_N, block_N = np.linspace(0.1, 0.5, 2000), np.zeros(2000, int), np.arange(2000)
    >>> ratio = quantile_ratio(Waits(1.1 * wait_N, rate_N, block_N), Waits(wait_N, rate_N, block_N), 0.95)
    >>> f"{ratio.value:.2f} [{ratio.low:.2f}, {ratio.high:.2f}]"
    '1.10 [1.08, 1.12]'
    """
    n, needed = min(len(new.value_N), len(old.value_N)), requests_needed(q, alpha, burst)
    lost = (new.lost, old.lost)
    blank = QuantileRatio(q, None, 0.0, math.inf, n, lost, needed)
    if not n:
        return _because(blank, "no requests were recorded")
    if min(_fewest_blocks(new), _fewest_blocks(old)) < 2:
        return _because(blank, "one block a rate says nothing about how blocks differ; measure two or more")
    after, before = (quantile_bounds(arm, q, alpha / 4, burst) for arm in (new, old))
    if math.isinf(before.value) or math.isinf(before.low):
        return _because(blank, f"{many(old.lost, 'requests')} of the base had no answer: its own quantile is not known")
    low = after.low / before.high if before.high > 0 else 0.0
    high = after.high / before.low if before.low > 0 else math.inf
    value = after.value / before.value if before.value > 0 and math.isfinite(after.value) else None
    reason = ""
    if math.isinf(high):
        if n < needed:
            reason = f"{many(n, 'requests')} an arm bound no such quantile, at least {needed} are needed"
        elif new.lost:
            reason = f"{many(new.lost, 'requests')} had no answer and count as slow"
        else:
            reason = f"slow requests come together in blocks: {n} requests say less than {needed} single ones would"
    return QuantileRatio(q, value, low, high, n, lost, needed, reason)


def _because(blank: QuantileRatio, reason: str) -> QuantileRatio:
    return QuantileRatio(blank.q, None, 0.0, math.inf, blank.n, blank.lost, blank.needed, reason)


def _fewest_blocks(waits: Waits) -> int:
    return min(len(np.unique(waits.block_N[waits.stratum_N == s])) for s in np.unique(waits.stratum_N))
