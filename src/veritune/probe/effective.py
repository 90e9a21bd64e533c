"""How many independent examples a data set acts like, from the inner products of its per-example gradients.

Model: a row's gradient is a common part, a part of its family's and a part of its own. On unit gradients, with the mean
cosine of siblings s, of strangers t, and of a row with itself 1,

    rho = (s - t)/(1 - t)          n_eff = n / (1 + (sum_f n_f^2/n - 1) rho)

is the design effect of survey sampling (Kish 1965, Survey Sampling, ch. 5): n rows whose families share rho of their
variance move the mean gradient as n_eff unrelated rows would. n originals repeated k times give n. Without families,
`directions` gives (tr S)^2/tr(S^2) of the gradients' covariance S. Arrays only: no model is needed here.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from veritune.config.thresholds import DEFAULTS, GradientThresholds, Thresholds
from veritune.counting import many
from veritune.errors import DataError
from veritune.records import Estimate, JsonLike

Floats = npt.NDArray[np.float64]
Ints = npt.NDArray[np.int64]

LEAST_DRAWN = 8
"""Families with siblings that a sample draws at least: as many as an interval needs unless a study asks for more."""

MOST_COMPARED = 24
"""Families whose cosines with one another a record holds: as many as a figure can name."""

ONE_DIRECTION = "one_direction"
"""Key in an estimate's details: all gradients point one way, so that the rows act like about one example."""


@dataclass(frozen=True)
class Sample:
    """The rows that were measured, and how many rows they represent.

    index_N: their places in the data; family_N: codes 0..F-1; size_F: each code's rows in the whole data, families
    that were not measured included at the end; weight_N: rows each measured row stands for; pair_weight_F: sibling
    pairs that each family stands for (0 for a family measured once).
    """

    index_N: Ints
    family_N: Ints
    size_F: Ints
    weight_N: Floats
    pair_weight_F: Floats
    whole: bool

    @property
    def n_rows(self) -> int:
        return int(self.size_F.sum())


@dataclass(frozen=True)
class SamplePlan:
    """How many rows to measure if the data is too large to measure all."""

    max_rows: int = 256
    families: int = 32
    per_family: int = 2
    singles: int = 32
    seed: int = 0


def choose(families: Sequence[str], plan: SamplePlan | None = None) -> Sample:
    """Choose the rows to measure: all of them up to `max_rows`, else siblings from a few families and single rows.

    A family that holds more than its share of all sibling pairs is always taken; the rest are drawn alike, and weights
    carry the chance of being drawn. Raises DataError for no rows.
    """
    plan = plan or SamplePlan()
    if not families:
        raise DataError(
            "a gradient probe needs rows, but none were given.", fix="Check the data file and the requested zone."
        )
    order = {name: code for code, name in enumerate(dict.fromkeys(families))}
    code_N = np.array([order[name] for name in families], dtype=np.int64)
    size_F = np.bincount(code_N)
    if len(code_N) <= plan.max_rows:
        return _sample(np.arange(len(code_N)), code_N, size_F, np.ones(len(code_N)), np.ones(len(size_F)))
    draw = np.random.default_rng(plan.seed)
    taken_F = _draw_families(size_F, plan.families, draw)
    singles = _draw_singles(size_F, plan.singles, draw)
    rows: list[int] = []
    weights: list[float] = []
    for codes, per in ((taken_F, plan.per_family), (singles, 1)):
        for code, chance in codes.items():
            mine = np.flatnonzero(code_N == code)
            picked = np.sort(draw.choice(mine, size=min(per, len(mine)), replace=False))
            rows.extend(picked.tolist())
            weights.extend([len(mine) / len(picked) / chance] * len(picked))
    chance_F = np.ones(len(size_F))
    for code, chance in taken_F.items():
        chance_F[code] = chance
    order_N = np.argsort(rows)
    return _sample(np.array(rows)[order_N], code_N, size_F, np.array(weights)[order_N], chance_F)


def _draw_families(size_F: Ints, k: int, draw: np.random.Generator) -> dict[int, float]:
    """Families with siblings and the chance each had to be drawn."""
    many = np.flatnonzero(size_F > 1)
    if len(many) <= k:
        return {int(code): 1.0 for code in many}
    pairs = (size_F * (size_F - 1)).astype(float)
    certain = [int(code) for code in many if pairs[code] > pairs[many].sum() / k]
    rest = np.array([code for code in many if code not in set(certain)])
    n = max(k - len(certain), LEAST_DRAWN)
    drawn = draw.choice(rest, size=min(n, len(rest)), replace=False)
    return dict.fromkeys(certain, 1.0) | {int(code): len(drawn) / len(rest) for code in np.sort(drawn)}


def _draw_singles(size_F: Ints, k: int, draw: np.random.Generator) -> dict[int, float]:
    alone = np.flatnonzero(size_F == 1)
    if not len(alone):
        return {}
    drawn = np.sort(draw.choice(alone, size=min(k, len(alone)), replace=False))
    return {int(code): len(drawn) / len(alone) for code in drawn}


def _sample(index_N: Ints, all_codes: Ints, size_F: Ints, weight_N: Floats, chance_F: Floats) -> Sample:
    code_N = all_codes[index_N]
    seen = np.unique(code_N)
    unseen = np.setdiff1d(np.arange(len(size_F)), seen)
    new_N = np.searchsorted(seen, code_N)
    size = np.concatenate([size_F[seen], size_F[unseen]])
    measured_F = np.bincount(new_N)
    pairs_F = np.where(measured_F > 1, size_F[seen] * (size_F[seen] - 1) / chance_F[seen], 0.0)
    return Sample(index_N, new_N, size, weight_N, pairs_F, len(index_N) == len(all_codes))


def restrict(sample: Sample, families: Sequence[str], keep: npt.NDArray[np.bool_]) -> tuple[Sample, Ints]:
    """The part of a sample inside a subset of the data (a mask over all rows), and its indices in the sample.

    Family sizes are counted inside the subset; chances of being drawn stay those of the whole sample.
    """
    place_K = np.flatnonzero(keep[sample.index_N])
    order = {name: code for code, name in enumerate(dict.fromkeys(f for f, k in zip(families, keep) if k))}
    size_F = np.bincount([order[f] for f, k in zip(families, keep) if k], minlength=len(order))
    code_N = np.array([order[families[i]] if keep[i] else -1 for i in range(len(families))])
    chance_F = np.ones(len(order))
    for i in place_K:
        code = sample.family_N[i]
        pairs = sample.size_F[code] * (sample.size_F[code] - 1)
        if sample.pair_weight_F[code] > 0:
            chance_F[code_N[sample.index_N[i]]] = pairs / sample.pair_weight_F[code]
    part = _sample(sample.index_N[place_K], code_N, size_F, sample.weight_N[place_K], chance_F)
    return replace(part, whole=sample.whole), place_K


# ---------------------------------------------------------------- with families


@dataclass(frozen=True)
class Alignment:
    """Mean cosines and the quantities derived from them. Every value has a family-jackknife interval or a reason why
    not.
    """

    sibling: Estimate
    stranger: Estimate
    gap: Estimate
    rho: Estimate
    n_eff: Estimate

    def estimates(self) -> tuple[Estimate, ...]:
        return (self.sibling, self.stranger, self.gap, self.rho, self.n_eff)


def unit(gram_N_N: Floats) -> Floats:
    """Cosines from inner products [N, N]; the diagonal is exactly 1. Raises DataError for a row without a gradient."""
    norm_N = np.sqrt(np.diag(gram_N_N))
    if not np.isfinite(gram_N_N).all() or not (norm_N > 0).all():
        bad = np.flatnonzero(~(np.isfinite(norm_N) & (norm_N > 0)))
        where = f"row {int(bad[0])} of those measured" if bad.size else "an inner product"
        raise DataError(
            f"{where} has a zero or non-finite gradient: its direction is undefined.",
            fix="Check for NaN losses, overflow, or a model with nothing to train.",
        )
    cosine_N_N: Floats = gram_N_N / np.outer(norm_N, norm_N)
    np.fill_diagonal(cosine_N_N, 1.0)
    return cosine_N_N


def align(gram_N_N: Floats, sample: Sample, *, level: float = 0.95, thresholds: Thresholds = DEFAULTS) -> Alignment:
    """Sibling and stranger means of an inner-product matrix [N, N] (cosines, or raw products), rho and n_eff.

    rho and n_eff are withheld where rho would be a ratio of rounding errors (all gradients point one way) or came out
    at a value that no correlation within families can have.
    """
    sums = _Sums.of(gram_N_N, sample)
    if len(sums.cross_F) < 2:
        return _without_strangers(sums, sample, level)
    point = sums.means()
    leave_out = np.array([_four(*sums.means(without=f)) for f in range(len(sums.cross_F))])
    groups, least = sums.effective_families, thresholds.families.for_interval
    names = ("sibling", "stranger", "gap", "rho")
    made = [
        _jackknifed(blank, value, leave_out[:, k], groups, least)
        for k, (name, value) in enumerate(zip(names, _four(*point)))
        for blank in [Estimate(name, None, None, None, level, 0, "family jackknife")]
    ]
    n_multi = int((sample.pair_weight_F > 0).sum())
    sibling, stranger, gap, rho = (replace(e, n=len(gram_N_N), n_clusters=n_multi) for e in made)
    rho = _possible(rho, point, sample, thresholds.gradients)
    return Alignment(sibling, stranger, gap, rho, _n_eff(rho, sample))


def _possible(rho: Estimate, means: tuple[float, float, float], sample: Sample, limits: GradientThresholds) -> Estimate:
    """rho, or without a value and why: strangers all but equal, or a value outside [-1/(m - 1), 1].

    m is the smallest number of measured rows of a family with siblings: their gradients' squared sum is not negative.
    """
    _, stranger, self_ = means
    if np.isfinite(stranger) and stranger >= limits.identical * self_:
        why = (
            f"the gradients of strangers are all but equal (mean cosine {stranger / self_:.4f}), so that what sets "
            "siblings apart is of the size of rounding"
        )
        return replace(rho, value=None, low=None, high=None, warnings=(why,), details={ONE_DIRECTION: True})
    count_F = np.bincount(sample.family_N)
    if rho.value is None or not (count_F > 1).any():
        return rho
    least = -1.0 / float(count_F[count_F > 1].min() - 1)
    if least - limits.rho_slack <= rho.value <= 1 + limits.rho_slack:
        return rho
    why = (
        f"the correlation within families came out at {rho.value:.3g}, outside its possible range "
        f"[{least:.3g}, 1]: the measured rows are too few or of too unequal norms"
    )
    return replace(rho, value=None, low=None, high=None, warnings=(why,))


@dataclass(frozen=True)
class _Sums:
    """Weighted sums of the matrix by family, from which any family can be left out in O(1)."""

    own_F: Floats
    sibling_F: Floats
    pair_weight_F: Floats
    cross_F: Floats
    within_F: Floats
    weight_F: Floats

    @classmethod
    def of(cls, gram_N_N: Floats, sample: Sample) -> _Sums:
        n_f = int(sample.family_N.max()) + 1
        v_N = sample.weight_N
        weighted = gram_N_N * np.outer(v_N, v_N)
        member_F_N = np.zeros((n_f, len(v_N)))
        member_F_N[sample.family_N, np.arange(len(v_N))] = 1.0
        within_F = np.einsum("fi,ij,fj->f", member_F_N, weighted, member_F_N, optimize=True)
        plain_F = np.einsum("fi,ij,fj->f", member_F_N, gram_N_N, member_F_N, optimize=True)
        own_F = member_F_N @ np.diag(gram_N_N)
        count_F = member_F_N.sum(1)
        pairs_F = np.maximum(count_F * (count_F - 1), 1)
        sibling_F = np.where(count_F > 1, (plain_F - own_F) / pairs_F, 0.0)
        weighted_own_F = member_F_N @ (np.diag(gram_N_N) * v_N)
        return cls(
            weighted_own_F, sibling_F, sample.pair_weight_F, member_F_N @ weighted.sum(1), within_F, member_F_N @ v_N
        )

    @property
    def effective_families(self) -> float:
        """The effective number of families with siblings: how many families of equal size would have the same
        weight."""
        w_F = self.pair_weight_F
        return float(w_F.sum() ** 2 / np.square(w_F).sum()) if w_F.any() else 0.0

    def means(self, without: int | None = None) -> tuple[float, float, float]:
        """Mean cosines (sibling, stranger, self), optionally without one family. NaN if no pair remains."""
        keep_F = np.ones(len(self.cross_F), bool)
        cross = self.cross_F.sum() - self.within_F.sum()
        if without is not None:
            keep_F[without] = False
            cross -= 2 * (self.cross_F[without] - self.within_F[without])
        v_F, w_F = self.weight_F[keep_F], self.pair_weight_F[keep_F]
        stranger_pairs = v_F.sum() ** 2 - np.square(v_F).sum()
        sibling = float(w_F @ self.sibling_F[keep_F] / w_F.sum()) if w_F.sum() > 0 else float("nan")
        stranger = float(cross / stranger_pairs) if stranger_pairs > 0 else float("nan")
        return sibling, stranger, float(self.own_F[keep_F].sum() / v_F.sum())


def _four(sibling: float, stranger: float, self_: float) -> tuple[float, float, float, float]:
    gap = sibling - stranger
    return sibling, stranger, gap, gap / (self_ - stranger) if self_ > stranger else float("nan")


def _jackknifed(blank: Estimate, value: float, leave_F: Floats, groups: float, least: int) -> Estimate:
    """A value with the t interval of its delete-one-family jackknife; NaN becomes None with a reason."""
    from scipy.special import stdtrit

    if not np.isfinite(value):
        why = "no family has two measured rows" if blank.name != "stranger" else "only one family"
        return replace(blank, warnings=(why,))
    blank = replace(blank, value=float(value))
    usable = leave_F[np.isfinite(leave_F)]
    if groups < least or len(usable) < len(leave_F):
        why = f"no interval: families with siblings weigh like {groups:.1f}, and fewer than {least} say too little"
        return replace(blank, warnings=(why,))
    f = len(usable)
    se = float(np.sqrt((f - 1) / f * np.square(usable - usable.mean()).sum()))
    half = float(stdtrit(groups - 1, 0.5 + blank.level / 2)) * se
    return replace(blank, low=value - half, high=value + half, se=se, df=groups - 1)


def effective_n(rho: float, size_F: Ints | Sequence[int]) -> float:
    """n/(1 + (sum n_f^2/n - 1) rho) for families of these sizes; rho outside [0, 1] is clipped to it.

    n is the number of rows. Source: the design effect of unequal clusters, Kish 1965.

    >>> effective_n(0.0, [4, 4, 4]), effective_n(1.0, [4, 4, 4])
    (12.0, 3.0)
    """
    size = np.asarray(size_F, dtype=float)
    n = size.sum()
    return float(n / (1 + (np.square(size).sum() / n - 1) * min(max(rho, 0.0), 1.0)))


def _n_eff(rho: Estimate, sample: Sample) -> Estimate:
    made = replace(rho, name="n_eff", method="design effect, family jackknife on rho", se=None, df=None)
    made = replace(made, scope="the interval: which families were drawn, nothing else")
    sizes: dict[str, Any] = {**rho.details, "n_rows": sample.n_rows, "n_families": len(sample.size_F)}
    if rho.value is None:
        if sample.size_F.max() == 1 and ONE_DIRECTION not in rho.details:
            why = "every row is its own family: nothing to compare siblings by"
            return replace(made, warnings=(*rho.warnings, why), details=sizes)
        return replace(made, details=sizes)
    made = replace(made, value=effective_n(rho.value, sample.size_F), details=sizes)
    if rho.value <= 0:
        made = replace(made, warnings=(*made.warnings, "siblings are no more alike than strangers: n_eff is all rows"))
    if rho.low is None or rho.high is None:
        return made
    if rho.high <= 0 and sample.size_F.max() > 1:  # both ends would be all rows: an interval of width 0
        why = "siblings are clearly less alike than strangers: these labels are not families, and give no interval"
        return replace(made, low=None, high=None, warnings=(why, *made.warnings))
    return replace(made, low=effective_n(rho.high, sample.size_F), high=effective_n(rho.low, sample.size_F))


def disagreement(n_eff: Estimate, spread: Estimate, factor: float) -> dict[str, JsonLike]:
    """Whether n_eff by families is more than `factor` times `directions`, beyond both intervals.

    Directions need no labels: far fewer of them say that rows of different families are alike, so that labels miss
    relatives. More of them say nothing: the spread may have any number of directions, n_eff at most the number of rows.
    `disagree` is None with `reason` where one of the two is not known.
    """
    made: dict[str, Any] = {"n_eff": n_eff.value, "directions": spread.value, "factor": factor}
    if n_eff.value is None or spread.value is None:
        missing = n_eff if n_eff.value is None else spread
        why = missing.warnings[0] if missing.warnings else "not measured"
        return made | {"disagree": None, "ratio": None, "reason": f"{missing.name}: {why}"}
    ratio = n_eff.value / spread.value
    low, high = n_eff.low or n_eff.value, spread.high or spread.value
    return made | {"disagree": ratio > factor and low > high, "ratio": ratio, "reason": None}


def worth(n_eff: Estimate, n_rows: int, thresholds: Thresholds = DEFAULTS) -> dict[str, JsonLike]:
    """The range of what the rows may be worth in training: n_eff's interval, each end scaled by what calibration runs
    showed (`gradients.worth_low`, `worth_high`), within 1..n_rows.

    The interval of n_eff is for the families drawn. Runs of few models showed how far n_eff itself lies from the number
    of unrelated rows with the same held-out loss; this span adds that. It is a span of what was seen, without a
    confidence level. `low` and `high` are None with `reason` where n_eff has no interval.
    """
    smallest, largest = thresholds.gradients.worth_low, thresholds.gradients.worth_high
    seen: dict[str, JsonLike] = {
        "n_eff_over_worth": (smallest, largest),
        "what": "span seen in calibration runs, not a confidence interval",
    }
    if n_eff.low is None or n_eff.high is None:
        return {"low": None, "high": None, "reason": "n_eff has no interval", **seen}
    low, high = n_eff.low / largest, n_eff.high / smallest
    return {"low": max(low, 1.0), "high": min(high, float(n_rows)), "reason": None, **seen}


def _without_strangers(sums: _Sums, sample: Sample, level: float) -> Alignment:
    why = "one family only: there are no strangers to compare siblings with"
    none = Estimate(
        "", None, None, None, level, len(sample.family_N), "family jackknife", warnings=(why,), n_clusters=1
    )
    sibling, _, _ = sums.means()
    first = replace(none, name="sibling", value=sibling if np.isfinite(sibling) else None)
    rest = [replace(none, name=name) for name in ("stranger", "gap", "rho", "n_eff")]
    return Alignment(first, *rest)


def by_family(
    gram_N_N: Floats, sample: Sample, identical: float = DEFAULTS.gradients.identical
) -> list[dict[str, Any]]:
    """n_f/(1 + (n_f - 1) rho_f) for each measured family, without an interval: one family is one draw.

    rho and n_eff are None where `align` would withhold them.
    """
    sums = _Sums.of(gram_N_N, sample)
    _, stranger, self_ = sums.means()
    count_F = np.bincount(sample.family_N)
    made: list[dict[str, Any]] = []
    for code in np.flatnonzero(count_F > 1):
        size = int(sample.size_F[code])
        rho = _four(float(sums.sibling_F[code]), stranger, self_)[3]
        if stranger >= identical * self_ or not -1 / (count_F[code] - 1) - 1e-6 <= rho <= 1 + 1e-6:
            rho = float("nan")
        value = effective_n(rho, [size]) if np.isfinite(rho) else None
        made.append(
            {
                "family": int(code),
                "n_rows": size,
                "n_measured": int(count_F[code]),
                "sibling": float(sums.sibling_F[code]),
                "rho": rho if np.isfinite(rho) else None,
                "n_eff": value,
            }
        )
    return made


def between_families(cosine_N_N: Floats, sample: Sample, most: int = MOST_COMPARED) -> dict[str, Any]:
    """Mean cosines between families [F, F]; the diagonal is over siblings, without each row's own 1.

    The `most` families with the most measured rows, in the order of the data; `rows` are those measured of each, `of`
    the families measured in all. A family of one row has None on the diagonal.
    """
    count_F = np.bincount(sample.family_N)
    kept = np.sort(np.argsort(-count_F, kind="stable")[:most])
    member_F_N = (sample.family_N[None, :] == kept[:, None]).astype(float)
    size_F = member_F_N.sum(1)
    sums_F_F = member_F_N @ cosine_N_N @ member_F_N.T
    pairs_F_F = np.outer(size_F, size_F)
    own = np.arange(len(kept))
    sums_F_F[own, own] -= (member_F_N * np.diag(cosine_N_N)).sum(1)
    pairs_F_F[own, own] -= size_F
    cosine = [
        [float(s) / float(n) if n else None for s, n in zip(sums, pairs)] for sums, pairs in zip(sums_F_F, pairs_F_F)
    ]
    return {"families": kept.tolist(), "rows": size_F.astype(int).tolist(), "cosine": cosine, "of": len(count_F)}


# ---------------------------------------------------------------- without families


def directions(
    gram_N_N: Floats,
    *,
    sketch_dims: int | None = None,
    level: float = 0.95,
    identical: float = DEFAULTS.gradients.identical,
) -> Estimate:
    """The number of directions, (tr S)^2/tr(S^2) of the covariance S, with both traces by unbiased U-statistics and a
    row jackknife on the log scale.

    `sketch_dims` removes what a sketch of D numbers adds: 1/d = 1/d_sketch - 1/D. Rows must be a simple random sample
    of what the number is to speak of. Withheld where the mean cosine reaches `identical`: what is left of the gradients
    without their mean is then of the size of rounding. Source of tr(S^2): Song et al. 2012, J. Mach. Learn. Res.
    13:1393, eq. 4.
    """
    n = len(gram_N_N)
    none = Estimate("directions", None, None, None, level, n, "U-statistics, row jackknife on the log")
    if n < 8:
        return replace(none, warnings=(f"{many(n, 'rows', 'are')} too few: at least 8 are needed",))
    mean = float((gram_N_N.sum() - np.trace(gram_N_N)) / (n - 1) / np.trace(gram_N_N))
    if mean >= identical:
        why = f"the rows' gradients are all but equal (mean cosine {mean:.4f}): they act like about one example"
        return replace(none, warnings=(why,), details={ONE_DIRECTION: True})
    value = _directions(gram_N_N, sketch_dims)
    if value is None:
        why = "more directions than these rows, or a sketch of this size, can distinguish"
        return replace(none, warnings=(why,))
    keep = [np.delete(np.arange(n), i) for i in range(n)]
    leave = [_directions(gram_N_N[np.ix_(k, k)], sketch_dims) for k in keep]
    if any(v is None for v in leave):
        return replace(none, value=value, warnings=("no interval: the value is undefined without one of the rows",))
    from scipy.special import stdtrit

    log_N = np.log(np.array(leave, dtype=float))
    se = float(np.sqrt((n - 1) / n * np.square(log_N - log_N.mean()).sum()))
    half = float(stdtrit(n - 1, 0.5 + level / 2)) * se
    low, high = value * float(np.exp(-half)), value * float(np.exp(half))
    few = (f"near the number of rows measured ({n}): read it as at least this many",) if value > n / 2 else ()
    return replace(none, value=value, low=low, high=high, se=se, df=float(n - 1), warnings=few)


def _directions(gram_N_N: Floats, sketch_dims: int | None) -> float | None:
    n = len(gram_N_N)
    off = gram_N_N - np.diag(np.diag(gram_N_N))
    trace = np.trace(gram_N_N) / n - off.sum() / (n * (n - 1))
    row_N = off.sum(1) / (n - 2)
    centred = off - row_N[:, None] - row_N[None, :] + off.sum() / ((n - 1) * (n - 2))
    np.fill_diagonal(centred, 0.0)
    trace_sq = np.square(centred).sum() / (n * (n - 3))
    if trace <= 0 or trace_sq <= 0:
        return None
    inverse = trace_sq / trace**2 - (1 / sketch_dims if sketch_dims else 0.0)
    return float(1 / inverse) if inverse > 0 else None


# ---------------------------------------------------------------- families that nobody labelled


@dataclass(frozen=True)
class FamiliesFound:
    """Families by gradient: a code per row, and edges (row, row, mean cosine, "gradient") that join each family."""

    family_N: Ints
    edges: tuple[tuple[int, int, float | None, str], ...]
    threshold: float

    @property
    def sizes(self) -> Mapping[int, int]:
        codes, counts = np.unique(self.family_N, return_counts=True)
        return dict(zip(codes.tolist(), counts.tolist()))


def find_families(gram_N_N: Floats, threshold: float = DEFAULTS.gradients.family_cosine) -> FamiliesFound:
    """Families by average-link clustering of mean-centred cosines; rows are joined while their mean cosine exceeds
    `threshold`.

    Gradients share a large common part, so cosines are taken after the mean gradient is removed. The threshold 0.3 was
    set on one model; 0.4 joins fewer. Cost O(N^2 log N) time and O(N^2) memory.
    """
    from scipy.cluster.hierarchy import fcluster, linkage
    from scipy.spatial.distance import squareform

    n = len(gram_N_N)
    if n < 2:
        return FamiliesFound(np.zeros(n, dtype=np.int64), (), threshold)
    mean_N = gram_N_N.mean(1)
    centred = gram_N_N - mean_N[:, None] - mean_N[None, :] + gram_N_N.mean()
    norm_N = np.sqrt(np.maximum(np.diag(centred), np.finfo(float).tiny))
    cosine = np.clip(centred / np.outer(norm_N, norm_N), -1, 1)
    distance = 1 - (cosine + cosine.T) / 2
    np.fill_diagonal(distance, 0.0)
    label_N = fcluster(linkage(squareform(distance, checks=False), "average"), 1 - threshold, "distance")
    _, first_N, code_N = np.unique(label_N, return_index=True, return_inverse=True)
    order = np.argsort(np.argsort(first_N))
    code_N = order[code_N].astype(np.int64)
    edges: list[tuple[int, int, float | None, str]] = []
    for code in np.unique(code_N):
        member = np.flatnonzero(code_N == code)
        for i in member[1:]:
            others = member[member != i]
            edges.append((int(member[0]), int(i), float(cosine[i, others].mean()), "gradient"))
    return FamiliesFound(code_N, tuple(edges), threshold)
