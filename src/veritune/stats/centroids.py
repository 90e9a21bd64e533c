"""How alike several groups' centroids are before and after, by measures that see different things.

    m1                      mean cosine over all pairs of different centroids, uncentred. Rises when the groups lose
                            what sets them apart, and just as well when all of them move the same way.
    m1_around_reference     the same around an outside reference, which takes off what the reference shares.
    m1_without_top_channel  the same without the base's largest channel, which can carry most of every norm.
    icc                     share of the states' variance that the group explains, question effects removed. A shift
                            that all groups share, and a change of scale, leave it as it is.
    separation              root mean square distance of the centroids from their mean, trained over base. A shared
                            shift leaves it as it is; a change of scale does not.
    common_drift            how far the centroids' mean moved, in units of the base's separation.

So a fall of `icc` together with a smaller `separation` is a collapse, and a rise of `m1` without them a common drift.
Every p is of swaps: where nothing changed, each group's two values may change places, and so may the reference's two.
For cosines and the drift the swaps are exact. `icc` and `separation` swap each group's sums of squares about its own
side's mean, so that a common drift cannot enter; that is exact but for the estimated means, whose missing variance is
made up for: without it a p below .05 came up in 7 % of nulls of 8 (`tests/stats/test_centroids.py` has the simulation).

Axes: P groups (personas), H hidden channels, S swaps.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache

import numpy as np
import numpy.typing as npt

from veritune.records import MeasureChange
from veritune.stats.intervals import t_quantile

Floats = npt.NDArray[np.float64]

COSINES = ("m1", "m1_around_reference", "m1_without_top_channel")
MEASURES = (*COSINES, "icc", "separation", "common_drift")
NAMES = {
    "m1": "M1 (uncentred)",
    "m1_around_reference": "M1 around the reference",
    "m1_without_top_channel": "M1 without the top channel",
    "icc": "ICC",
    "separation": "separation",
    "common_drift": "common drift",
}
"""What a reader sees of each measure."""
MOST_SWAPS = 8192
"""All 2^P swaps up to 13 units, else that many drawn ones."""
_EPS = 1e-12
_NO_VARIANCE = 1e-24
"""Share of the sum of squares below which a variance is rounding: sums of centred values err by about (1e-16)²."""


@dataclass(frozen=True, slots=True, eq=False)
class Centroids:
    """Centroids at one layer of one model. `gram_P_P`: inner products of states minus their question's mean, over all
    questions.
    """

    centroid_P_H: Floats
    reference_H: Floats
    gram_P_P: Floats
    n_questions: int


@dataclass(frozen=True, slots=True)
class Swapped:
    """The result of a swap test: p, the number of groups and swaps, and the smallest p that so many units allow."""

    n_groups: int
    n: int
    p: float
    floor: float


def m1(centroid_P_H: Floats) -> float | None:
    """Mean cosine between different rows; None if a row is zero.

    >>> round(m1(np.array([[1.0, 0], [1, 1], [0, 1]])), 2)
    0.47
    """
    norm_P = np.linalg.norm(centroid_P_H, axis=1)
    if not (norm_P > _EPS * max(1.0, float(norm_P.max()))).all():
        return None
    unit = centroid_P_H / norm_P[:, None]
    cosine = unit @ unit.T
    p = len(unit)
    return float((cosine.sum() - np.trace(cosine)) / (p * (p - 1)))


def icc(side: Centroids) -> float | None:
    """Intra-class correlation of hidden states by group, with question effects removed: two-way, traces of mean
    squares.

    (MSP - MSE)/(MSP + (Q - 1) MSE). Source: Shrout & Fleiss 1979, Psychol. Bull. 86:420, ICC(3,1), over dimensions.
    None when the states do not vary at all.
    """
    between_P, within_P = _squares(side)
    return _icc_of(float(between_P.sum()), float(within_P.sum()), side.n_questions, _scale(side))


def separation(centroid_P_H: Floats) -> float:
    """Root mean square distance of the rows from their mean, in the units of the states."""
    return float(np.sqrt(np.square(centroid_P_H - centroid_P_H.mean(0)).sum() / len(centroid_P_H)))


def _squares(side: Centroids) -> tuple[Floats, Floats]:
    """Each group's share of the mean squares between groups and within them [P]; both sum to the mean squares."""
    p, q = len(side.centroid_P_H), side.n_questions
    between_P = q * np.square(side.centroid_P_H - side.centroid_P_H.mean(0)).sum(1)
    # taking off the subset's own question means once more lets the same Gram serve any subset of groups
    whole_P = np.diag(side.gram_P_P) - 2 * side.gram_P_P.mean(1) + side.gram_P_P.mean()
    return between_P / (p - 1), (whole_P - between_P) / ((p - 1) * (q - 1))


def _scale(side: Centroids) -> float:
    return max(1.0, side.n_questions * float(np.square(side.centroid_P_H).sum()))


def _icc_of(between: float, within: float, n_questions: int, scale: float) -> float | None:
    bottom = between + (n_questions - 1) * within
    return (between - within) / bottom if bottom > _NO_VARIANCE * scale else None


def _without(side: Centroids, group: int) -> Centroids:
    gram_P_P = np.delete(np.delete(side.gram_P_P, group, 0), group, 1)
    return Centroids(np.delete(side.centroid_P_H, group, 0), side.reference_H, gram_P_P, side.n_questions)


# ---------------------------------------------------------------- changes


def changes(base: Centroids, trained: Centroids, level: float = 0.95) -> dict[str, MeasureChange]:
    """Every measure in `MEASURES` before and after."""
    channel = int(np.square(base.centroid_P_H).sum(0).argmax())
    made = {}
    for name in COSINES:
        a_P_H, b_P_H = (_cosined(side, name, channel) for side in (base, trained))
        around = name == "m1_around_reference"
        n_swaps, p_value = reference_p(base, trained) if around else permutation_p(a_P_H, b_P_H)
        swapped = Swapped(len(a_P_H), n_swaps, p_value, floor_of(len(a_P_H) + around))
        made[name] = _cosine_change(a_P_H, b_P_H, level, swapped)
    made["icc"] = _icc_change(base, trained, level)
    made["separation"] = _separation_change(base, trained, level)
    made["common_drift"] = _drift_change(base, trained, level)
    return made


def _sides(base: bool, trained: bool) -> str:
    return "both models" if base and trained else "the base" if base else "the trained model"


def _cosined(side: Centroids, name: str, channel: int) -> Floats:
    if name == "m1_around_reference":
        return side.centroid_P_H - side.reference_H
    return np.delete(side.centroid_P_H, channel, axis=1) if name == "m1_without_top_channel" else side.centroid_P_H


def _cosine_change(a_P_H: Floats, b_P_H: Floats, level: float, swapped: Swapped) -> MeasureChange:
    before, after = m1(a_P_H), m1(b_P_H)
    if before is None or after is None:
        where = _sides(before is None, after is None)
        return MeasureChange(before, after, reason=f"a centroid of {where} is zero and has no direction")

    def without(group: int) -> float | None:
        left, right = m1(np.delete(a_P_H, group, 0)), m1(np.delete(b_P_H, group, 0))
        return None if left is None or right is None else right - left

    return _change(before, after, after - before, without, level, swapped)


def _icc_change(base: Centroids, trained: Centroids, level: float) -> MeasureChange:
    before, after = icc(base), icc(trained)
    if before is None or after is None:
        return MeasureChange(before, after, reason=f"the states of {_sides(before is None, after is None)} do not vary")

    def without(group: int) -> float | None:
        left, right = icc(_without(base, group)), icc(_without(trained, group))
        return None if left is None or right is None else right - left

    q = base.n_questions
    between_S, within_S = (_swapped(*pair) for pair in zip(_squares(base), _squares(trained)))

    def value(side: int) -> Floats:
        top_S, rest_S = between_S[side], within_S[side]
        bottom_S = top_S + (q - 1) * rest_S
        return np.divide(top_S - rest_S, bottom_S, out=np.zeros_like(top_S), where=bottom_S > 0)

    swapped = _swaps_of(value(1) - value(0), len(base.centroid_P_H))
    return _change(before, after, after - before, without, level, swapped)


def _separation_change(base: Centroids, trained: Centroids, level: float) -> MeasureChange:
    before, after = separation(base.centroid_P_H), separation(trained.centroid_P_H)
    tiny = _EPS * max(float(np.linalg.norm(side.centroid_P_H)) for side in (base, trained))
    if before <= tiny or after <= tiny:
        return MeasureChange(
            before, after, reason=f"the centroids of {_sides(before <= tiny, after <= tiny)} are all the same"
        )

    def without(group: int) -> float | None:
        left, right = (separation(np.delete(side.centroid_P_H, group, 0)) for side in (base, trained))
        return right / left - 1 if left > tiny else None

    one_S, two_S = _swapped(_squares(base)[0], _squares(trained)[0])
    swapped = _swaps_of(np.log(two_S) - np.log(one_S), len(base.centroid_P_H))
    return _change(before, after, after / before - 1, without, level, swapped)


def _drift_change(base: Centroids, trained: Centroids, level: float) -> MeasureChange:
    unit = separation(base.centroid_P_H)
    if unit <= _EPS * float(np.linalg.norm(base.centroid_P_H)):
        return MeasureChange(
            None, None, reason="the base's centroids are all the same: no unit to measure the drift in"
        )
    moved_P_H = trained.centroid_P_H - base.centroid_P_H

    def drift(rows_P_H: Floats) -> float:
        return float(np.linalg.norm(rows_P_H.mean(0))) / unit

    swap_S_P = swaps(len(moved_P_H))
    statistic_S = np.square((1 - 2 * swap_S_P) @ moved_P_H).sum(1)
    p_value = float((statistic_S >= statistic_S[0] * (1 - 1e-9)).mean())
    swapped = Swapped(len(moved_P_H), len(swap_S_P), p_value, floor_of(len(moved_P_H)))
    whole = drift(moved_P_H)
    return _change(0.0, whole, whole, lambda group: drift(np.delete(moved_P_H, group, 0)), level, swapped)


def _change(
    before: float,
    after: float,
    change: float,
    without: Callable[[int], float | None],
    level: float,
    swapped: Swapped,
) -> MeasureChange:
    n_groups = swapped.n_groups
    left = [without(group) for group in range(n_groups)]
    low = high = None
    if all(value is not None for value in left):
        leave_P = np.array(left, float)
        se = float(np.sqrt((n_groups - 1) / n_groups * np.square(leave_P - leave_P.mean()).sum()))
        half = t_quantile(0.5 + level / 2, n_groups - 1) * se
        low, high = change - half, change + half
    return MeasureChange(before, after, change, low, high, swapped.p, swapped.floor, swapped.n)


# ---------------------------------------------------------------- swaps


def floor_of(n_groups: int) -> float:
    """The smallest two-sided p of a test by swaps of `n_groups`: if all swaps are tried, that of one swap and its
    mirror image; if swaps are drawn, that of the observed one.
    """
    return 2 / 2**n_groups if 2**n_groups <= MOST_SWAPS else 1 / MOST_SWAPS


@cache
def swaps(n_groups: int, seed: int = 0) -> Floats:
    """Which groups are swapped [S, P]: all 2^P patterns up to `MOST_SWAPS`, else that many drawn ones; row 0 swaps
    nothing.
    """
    if 2**n_groups <= MOST_SWAPS:
        return (np.arange(2**n_groups)[:, None] >> np.arange(n_groups) & 1).astype(float)
    drawn_S_P = np.random.default_rng(seed).integers(0, 2, (MOST_SWAPS, n_groups)).astype(float)
    drawn_S_P[0] = 0
    return drawn_S_P


def permutation_p(a_P_H: Floats, b_P_H: Floats, *, seed: int = 0) -> tuple[int, float]:
    """Number of swaps and the two-sided p of the change in M1 when each group's two centroids are swapped at random;
    the observed order counts as one (Phipson & Smyth 2010).
    """
    swap_S_P = swaps(len(a_P_H), seed)
    statistic_S = _m1_differences(_unit_gram(np.concatenate([a_P_H, b_P_H])), swap_S_P)
    return len(swap_S_P), _two_sided(statistic_S)


def reference_p(base: Centroids, trained: Centroids, *, seed: int = 0) -> tuple[int, float]:
    """The same as `permutation_p` for M1 around the reference. The reference is one more unit whose two values are
    swapped.

    All groups share its chance deviation: with the groups swapped alone, a p below .05 came up in 32 % of nulls of 12.
    """
    swap_S_U = swaps(len(base.centroid_P_H) + 1, seed)
    both_K_H = np.concatenate([base.centroid_P_H, trained.centroid_P_H])
    grams = [_unit_gram(both_K_H - reference_H) for reference_H in (base.reference_H, trained.reference_H)]
    kept_S = swap_S_U[:, -1] == 0
    statistic_S = np.empty(len(swap_S_U))
    for mask_S, (one, two) in ((kept_S, grams), (~kept_S, grams[::-1])):
        statistic_S[mask_S] = _m1_differences(one, swap_S_U[mask_S, :-1], two)
    return len(swap_S_U), _two_sided(statistic_S)


def _unit_gram(rows_K_H: Floats) -> Floats:
    norm_K = np.linalg.norm(rows_K_H, axis=1, keepdims=True)
    unit_K_H = np.divide(rows_K_H, norm_K, out=np.zeros_like(rows_K_H), where=norm_K > 0)
    return np.asarray(unit_K_H @ unit_K_H.T)


def _m1_differences(one_K_K: Floats, swap_S_P: Floats, two_K_K: Floats | None = None) -> Floats:
    """M1 of the second side less that of the first for every swap, up to a factor [S].

    Rows 0..P-1 of the Gram matrices are the base's, P..2P-1 the trained model's; the first side is read from `one_K_K`.
    """
    first_S_K = np.concatenate([1 - swap_S_P, swap_S_P], 1)
    second_S_K = 1 - first_S_K
    sums = [
        ((rows_S_K @ (gram_K_K - np.diag(np.diag(gram_K_K)))) * rows_S_K).sum(1)
        for rows_S_K, gram_K_K in ((first_S_K, one_K_K), (second_S_K, one_K_K if two_K_K is None else two_K_K))
    ]
    return np.asarray(sums[1] - sums[0])


def _swapped(a_P: Floats, b_P: Floats) -> tuple[Floats, Floats]:
    """Sums over groups of the first and the second side, for every swap [S]."""
    swap_S_P = swaps(len(a_P))
    return (1 - swap_S_P) @ a_P + swap_S_P @ b_P, swap_S_P @ a_P + (1 - swap_S_P) @ b_P


def _two_sided(statistic_S: Floats, shrink: float = 1.0) -> float:
    """The share of swaps at least as far from 0 as `shrink` times the observed one, row 0."""
    return float((np.abs(statistic_S) >= shrink * abs(statistic_S[0]) - _EPS).mean())


def _swaps_of(statistic_S: Floats, n_groups: int) -> Swapped:
    """The p of a statistic of deviations from estimated means: they have (P - 1)/P of the variance, as its swaps do."""
    p_value = _two_sided(statistic_S, math.sqrt((n_groups - 1) / n_groups))
    return Swapped(n_groups, len(statistic_S), p_value, floor_of(n_groups))


# ---------------------------------------------------------------- where a change of M1 comes from


def m1_parts(base_P_H: Floats, trained_P_H: Floats) -> tuple[float, float] | None:
    """The change of M1 in two parts: from moving the centroids' mean, and from their arrangement around it; the parts
    add up to it.

    Shapley values of the two steps from base to trained, the mean of both orders. None where a step has no direction.
    """
    mean_a, mean_b = base_P_H.mean(0), trained_P_H.mean(0)
    before, after = m1(base_P_H), m1(trained_P_H)
    drifted, rearranged = m1(base_P_H - mean_a + mean_b), m1(trained_P_H - mean_b + mean_a)
    if before is None or after is None or drifted is None or rearranged is None:
        return None
    drift = ((drifted - before) + (after - rearranged)) / 2
    return drift, after - before - drift


def adjusted(p_of: dict[str, list[float]]) -> dict[str, list[float]]:
    """Benjamini-Hochberg over all values of all names together, but never below the correction over a name's own
    values.

    The second keeps true changes of one measure (a drift in every layer, say) from paying for a false one of another.
    """
    from scipy.stats import false_discovery_control

    flat = [p for values in p_of.values() for p in values]
    if not flat:
        return {name: [] for name in p_of}
    whole, made = iter(false_discovery_control(flat).tolist()), {}
    for name, values in p_of.items():
        own = false_discovery_control(values).tolist() if values else []
        made[name] = [max(next(whole), mine) for mine in own]
    return made


def cells_needed(floor: float, n_cells: int, alpha: float) -> int:
    """How many of `n_cells` must have the smallest possible p before any of them can be below `alpha` after the
    correction.
    """
    return math.ceil(floor * n_cells / alpha - 1e-9)
