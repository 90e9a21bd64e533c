"""Several claims at once: Holm for what was declared, Benjamini–Hochberg for what is explored."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from veritune.counting import many
from veritune.errors import ScoreError
from veritune.stats.table import Floats


def _checked(p: Sequence[float]) -> Floats:
    p_K = np.asarray(p, dtype=np.float64)
    if p_K.ndim != 1 or np.any(~(p_K >= 0)) or np.any(p_K > 1):
        raise ScoreError(f"expected p values between 0 and 1, found {list(p)[:5]}.")
    return p_K


def holm(p: Sequence[float], family_size: int | None = None) -> list[float]:
    """Holm's step-down adjusted p: max over j ≤ i of (k − j + 1)·p_(j), at most 1. Holds under any dependence.

    `family_size` k may exceed the number of p given, for claims that were declared but could not be tested.
    Source: Holm 1979, Scand J Stat 6:65. The matching intervals are at level 1 − alpha/k.

    >>> holm([0.01, 0.04, 0.03])
    [0.03, 0.06, 0.06]
    """
    p_K = _checked(p)
    k = len(p_K) if family_size is None else family_size
    if k < len(p_K):
        raise ScoreError(f"expected a family of at least {many(len(p_K), 'claims')}, found {k}.")
    order = np.argsort(p_K, kind="stable")
    adjusted = np.minimum(1.0, np.maximum.accumulate(p_K[order] * (k - np.arange(len(p_K)))))
    out = np.empty(len(p_K))
    out[order] = adjusted
    return [float(x) for x in out]


def holm_share(p: Sequence[float], alpha: float, family_size: int | None = None) -> list[float]:
    """The alpha at which Holm decides each claim: alpha/(k − j + 1) at its rank j, or at the rank where the procedure
    stopped.

    A claim is rejected exactly when its own p is at most this, so the interval at 1 − this level agrees with it: a
    claim that comes after the stop has a p no smaller than the one that stopped. Source: as `holm`.
    """
    p_K = _checked(p)
    k = len(p_K) if family_size is None else family_size
    out = np.empty(len(p_K))
    rejected = 0
    for rank, i in enumerate(np.argsort(p_K, kind="stable")):
        out[i] = alpha / (k - rejected)
        if rejected == rank and p_K[i] <= out[i]:
            rejected = rank + 1
    return [float(x) for x in out]


def benjamini_hochberg_share(p: Sequence[float], alpha: float) -> list[float]:
    """The alpha at which Benjamini–Hochberg decides each claim: alpha·R/k with R findings, alpha/k with none.

    The intervals at 1 − this level hold the false coverage rate of the findings. Source: Benjamini & Yekutieli 2005,
    J Am Stat Assoc 100:71.
    """
    found = sum(x <= alpha for x in benjamini_hochberg(p))
    return [alpha * max(1, found) / len(p)] * len(p)


def benjamini_hochberg(p: Sequence[float]) -> list[float]:
    """Benjamini–Hochberg adjusted p: min over j ≥ i of k·p_(j)/j. Bounds the share of false findings among the
    findings, for independent or positively dependent tests; not for confirmatory claims.

    Source: Benjamini & Hochberg 1995, J R Stat Soc B 57:289.

    >>> benjamini_hochberg([0.01, 0.04, 0.03])
    [0.03, 0.04, 0.04]
    """
    p_K = _checked(p)
    k = len(p_K)
    order = np.argsort(p_K, kind="stable")[::-1]
    adjusted = np.minimum(1.0, np.minimum.accumulate(p_K[order] * k / np.arange(k, 0, -1)))
    out = np.empty(k)
    out[order] = adjusted
    return [float(x) for x in out]
