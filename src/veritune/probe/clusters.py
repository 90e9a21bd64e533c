"""Means and ratios of sums with intervals by family: rows of one family are one draw. Arrays only."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import numpy.typing as npt

from veritune.records import Estimate

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

MIN_FAMILIES = 8
SAME = "both models give the same value on every row: nothing was trained, or the two are one model"


def t_quantile(probability: float, df: float) -> float:
    """The t below which a share `probability` of Student's distribution with `df` degrees of freedom lies."""
    from scipy.special import stdtrit

    return float(stdtrit(df, probability))


def codes(labels: Sequence[Any]) -> Ints:
    """Labels to 0..F-1 in order of first appearance; None makes a family of its own."""
    seen: dict[Any, int] = {}
    return np.array([seen.setdefault(("alone", i) if x is None else x, len(seen)) for i, x in enumerate(labels)])


def ratio(name: str, top_N: Floats, bottom_N: Floats, family_N: Ints, *, level: float = 0.95) -> Estimate:
    """sum(top)/sum(bottom) with the linearised cluster variance, t with F - 1 degrees of freedom.

    A mean over rows has bottom 1; a mean per token has the row's tokens. Never narrower than with rows as draws.
    Fewer than 8 families give no interval. Source: Cochran 1977, Sampling Techniques, ch. 6 and 9.
    """
    n, total = len(top_N), float(bottom_N.sum())
    n_families = len(np.unique(family_N)) if n else 0
    blank = Estimate(name, None, None, None, level, n, "ratio of sums, clustered by family", n_clusters=n_families)
    if total <= 0:
        return replace(blank, warnings=("nothing to average",))
    value = float(top_N.sum() / total)
    if n_families < MIN_FAMILIES:
        why = f"no interval: {n_families} families, fewer than {MIN_FAMILIES} say too little"
        return replace(blank, value=value, warnings=(why,))
    residual_N = top_N - value * bottom_N
    se = np.sqrt(max(_variance(residual_N, family_N), _variance(residual_N, np.arange(n)))) / total
    if se == 0:
        return replace(
            blank, value=value, warnings=("no interval: every row gave the same value, so spread says nothing",)
        )
    half = t_quantile(0.5 + level / 2, n_families - 1) * float(se)
    return replace(blank, value=value, low=value - half, high=value + half, se=float(se), df=float(n_families - 1))


def _variance(residual_N: Floats, cluster_N: Ints) -> float:
    sums = np.bincount(cluster_N - cluster_N.min(), residual_N)
    g = len(np.unique(cluster_N))
    return float(g / (g - 1) * np.square(sums).sum())


def difference(name: str, value_N: Floats, first_N: Any, family_N: Ints, *, level: float = 0.95) -> Estimate:
    """Mean over the rows where `first_N` is true minus the mean over the others; families may lie on both sides.

    Linearised cluster variance, never below that of rows as draws; t with the smaller side's families - 1. Fewer than
    8 families on a side give no interval.
    """
    first_N = np.asarray(first_N, bool)
    sides = [first_N, ~first_N]
    method = "difference of two means, clustered by family"
    blank = Estimate(name, None, None, None, level, len(value_N), method)
    if not (first_N.any() and (~first_N).any()):
        return replace(blank, warnings=("one of the two sides has no rows",))
    families = [len(np.unique(family_N[side])) for side in sides]
    means = [float(value_N[side].mean()) for side in sides]
    value = means[0] - means[1]
    blank = replace(blank, value=value, n_clusters=len(np.unique(family_N)))
    if min(families) < MIN_FAMILIES:
        why = f"no interval: {min(families)} families on one side, fewer than {MIN_FAMILIES} say too little"
        return replace(blank, warnings=(why,))
    influence_N = np.where(first_N, (value_N - means[0]) / sides[0].sum(), -(value_N - means[1]) / sides[1].sum())
    se = float(np.sqrt(max(_variance(influence_N, family_N), _variance(influence_N, np.arange(len(value_N))))))
    if se == 0:
        return replace(blank, warnings=("no interval: every row gave the same value, so spread says nothing",))
    df = float(min(families) - 1)
    half = t_quantile(0.5 + level / 2, df) * se
    return replace(blank, low=value - half, high=value + half, se=se, df=df)
