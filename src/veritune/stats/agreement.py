"""Agreement between raters: Krippendorff's alpha, for any number of raters, missing ratings and levels of measurement.

    alpha = 1 − D_observed/D_expected

from the coincidences of values within units (items), each unit of m ratings weighing its m(m − 1) pairs by 1/(m − 1).
Differences: nominal 0/1; ordinal the squared sum of the ranks' frequencies between two values, ends halved; interval
the squared difference. 1 is perfect, 0 what chance gives, below 0 systematic disagreement.

Source: Krippendorff 2011, Computing Krippendorff's Alpha-Reliability; Hayes & Krippendorff 2007, Commun Methods Meas
1:77. It describes ratings; it is no test, and says nothing about whether the raters are right.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from veritune.errors import ScoreError

Level = Literal["nominal", "ordinal", "interval"]


@dataclass(frozen=True, slots=True)
class Agreement:
    """Krippendorff's alpha and the counts behind it; `alpha` is None with a `reason` if it is not defined."""

    alpha: float | None
    level: Level
    raters: int
    units: int
    ratings: int
    reason: str = ""


def krippendorff_alpha(value_R_N: NDArray[np.float64], level: Level = "interval") -> Agreement:
    """Krippendorff's alpha of ratings, raters × units, NaN where a rater did not rate. Units with one rating do not
    count.

    Undefined (None) when no unit has two ratings or when all values are the same: agreement without variation cannot
    be told from a constant. Raises ScoreError for an unknown level.

    >>> import numpy as np
    >>> round(krippendorff_alpha(np.array([[1.0, 2, 3, 3], [1, 2, 3, 4]])).alpha, 2)
    0.89
    """
    raters, units = value_R_N.shape
    rater_R, unit_R = np.nonzero(~np.isnan(value_R_N))
    return _alpha(value_R_N[rater_R, unit_R], unit_R, units, raters, level)


def of_columns(rater: Sequence[str], unit_R: NDArray[np.int64], value_R: NDArray[np.float64]) -> Agreement | None:
    """Interval alpha of ratings in columns (one row per rating); None when no column names the raters."""
    if not len(rater):
        return None
    present = ~np.isnan(value_R)
    return _alpha(value_R[present], unit_R[present], int(unit_R.max()) + 1, len(set(rater)), "interval")


def _alpha(value_R: NDArray[np.float64], unit_R: NDArray[np.int64], units: int, raters: int, level: Level) -> Agreement:
    per_unit = np.bincount(unit_R, minlength=units)
    keep = per_unit[unit_R] > 1
    value_R, unit_R = value_R[keep], unit_R[keep]
    n_units = int((per_unit > 1).sum())

    def result(alpha: float | None, reason: str = "") -> Agreement:
        return Agreement(alpha, level, raters, n_units, len(value_R), reason)

    if not n_units:
        return result(None, "no item was rated twice")
    if value_R.min() == value_R.max():
        return result(None, "every rating is the same")
    if level == "interval":
        return result(_interval_alpha(value_R, unit_R, units))
    values, code_R = np.unique(value_R, return_inverse=True)
    count_U_V = np.zeros((units, len(values)))
    np.add.at(count_U_V, (unit_R, code_R), 1.0)
    count_U_V = count_U_V[per_unit > 1]
    weight_U = 1.0 / (count_U_V.sum(axis=1) - 1)
    coincidence = (count_U_V * weight_U[:, None]).T @ count_U_V - np.diag(weight_U @ count_U_V)
    total_V = coincidence.sum(axis=1)
    difference = _difference(values, total_V, level)
    expected = float(total_V @ difference @ total_V) / (total_V.sum() - 1)
    return result(1.0 - float((coincidence * difference).sum()) / expected)


def _interval_alpha(value_R: NDArray[np.float64], unit_R: NDArray[np.int64], units: int) -> float:
    """Alpha for squared differences by sums of squares, without a table of all values."""
    value_R = value_R - value_R.mean()
    m_U = np.bincount(unit_R, minlength=units)
    sum_U = np.bincount(unit_R, weights=value_R, minlength=units)
    square_U = np.bincount(unit_R, weights=value_R**2, minlength=units)
    used = m_U > 1
    observed = float((2 * (m_U * square_U - sum_U**2)[used] / (m_U[used] - 1)).sum())
    n = len(value_R)
    expected = 2 * (n * float((value_R**2).sum()) - float(value_R.sum()) ** 2) / (n - 1)
    return 1.0 - observed / expected


def _difference(values: NDArray[np.float64], total_V: NDArray[np.float64], level: Level) -> NDArray[np.float64]:
    """Squared difference of each pair of values at a level of measurement, V × V."""
    if level == "nominal":
        return 1.0 - np.eye(len(values))
    if level == "ordinal":
        rank_V = np.cumsum(total_V) - total_V / 2
        return (rank_V[:, None] - rank_V[None, :]) ** 2
    raise ScoreError(f"expected a level of nominal, ordinal or interval, found {level!r}.")
