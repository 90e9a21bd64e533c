"""Calibration: when a model says 0.8, is it right eight times in ten? Arrays only.

    found = calibration(confidence_N, correct_N, family_N)
    found.ece_debiased, found.brier, found.overconfidence     # each an Estimate with its interval

Rows are binned by confidence into bins of equal mass. With gap d_b = mean confidence - share right in bin b and w_b its
share of rows, ECE = sum_b w_b |d_b|. A noisy gap is never small in absolute value, so plain ECE is biased upward: a
perfectly calibrated model reads sqrt(2/pi) sum_b w_b sigma_b (sigma_b: standard error of d_b), not 0. The debiased form
takes the bias off that Gaussian noise adds once more to the gaps found (Kumar, Liang & Ma 2019, NeurIPS); per bin it
is then off by between -0.094 and +0.469 sigma_b, the most at perfect calibration. Intervals are widened by those two
bounds (bias-aware, Armstrong & Kolesar 2018, Econometrica 86:655), so that they hold at and away from perfection.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np

from veritune.errors import ScoreError
from veritune.probe.clusters import LEAST_FAMILIES, Floats, Ints, codes, no_interval, ratio, t_quantile
from veritune.records import Calibration, Estimate, Json

MOST_BINS = 15
ROWS_PER_BIN = 20
PLAIN_BIAS = math.sqrt(2 / math.pi)
"""Largest bias of |d + noise| in standard errors of the noise, at d = 0; it is never negative."""
DEBIASED_BIAS = (-0.094, 0.469)
"""Smallest and largest bias of the debiased form of |d|, in standard errors, over all d."""
DEBIASED_SPREAD = 1.09
"""Largest standard deviation of the debiased form of |d|, in standard errors, over all d (1.08)."""
BINNED = "equal-mass bins, bias-aware, clustered by family"


def calibration(
    confidence_N: Sequence[float | None],
    correct_N: Sequence[float | bool | None],
    family_N: Sequence[str | None] | None = None,
    *,
    bins: int | None = None,
    level: float = 0.95,
    scope: str = "",
) -> Calibration:
    """Calibration from confidences in [0, 1], outcomes (1 right, 0 wrong) and each row's family (None: a family of its
    own).

    `bins` is the most, up to 15, that leave 20 rows and 8 families in a bin. Rows without a confidence or an outcome
    are counted and left out. Equal confidences share a bin. Raises ScoreError for unequal lengths, values outside
    [0, 1], partial scores, and when no row is left.
    """
    conf_N, right_N, code_N, missing = _arrays(confidence_N, correct_N, family_N)
    n = len(conf_N)
    if bins is not None and bins < 1:
        raise ScoreError(f"bins: expected at least 1, found {bins}.")
    bin_N = equal_mass(conf_N, bins) if bins is not None else _usual_bins(conf_N, code_N)
    table = _Table.of(conf_N, right_N, code_N, bin_N)
    one_N = np.ones(n)
    accuracy = replace(ratio("accuracy", right_N, one_N, code_N, level=level), scope=scope)
    over = replace(ratio("mean confidence minus accuracy", conf_N - right_N, one_N, code_N, level=level), scope=scope)
    brier = ratio("Brier score", np.square(conf_N - right_N), one_N, code_N, level=level)
    plain, debiased = (replace(e, scope=scope) for e in table.ece(level))
    return Calibration(
        ece=plain,
        ece_debiased=debiased,
        brier=replace(brier, scope=scope, details=table.decomposition()),
        accuracy=accuracy,
        overconfidence=over,
        rms=math.sqrt(max(0.0, float(table.weight_B @ (np.square(table.gap_B) - np.square(table.se_B))))),
        bins=table.lines(level),
        n=n,
        n_families=table.n_families,
        n_missing=missing,
        reading=_reading(float(conf_N.mean()), accuracy, over, debiased),
        limits=(
            f"It sees what {_counted(len(table.weight_B), 'bin')} of about {n // len(table.weight_B)} rows can show: "
            "gaps that cancel within a bin are not seen, and it holds for questions like these."
        ),
        would_change="More rows, so that bins can be finer and the interval narrower; questions of another difficulty.",
    )


def _counted(n: int, noun: str) -> str:
    return f"{n} {noun}" + "s" * (n != 1)


def _arrays(
    confidence_N: Sequence[float | None],
    correct_N: Sequence[float | bool | None],
    family_N: Sequence[str | None] | None,
) -> tuple[Floats, Floats, Ints, int]:
    families = family_N if family_N is not None else [None] * len(confidence_N)
    if not len(confidence_N) == len(correct_N) == len(families):
        lengths = sorted({len(confidence_N), len(correct_N), len(families)})
        raise ScoreError(f"expected one confidence, outcome and family per row, found lists of lengths {lengths}.")
    kept = [i for i, (c, y) in enumerate(zip(confidence_N, correct_N)) if c is not None and y is not None]
    if not kept:
        unsure, unknown = (sum(x is None for x in values) for values in (confidence_N, correct_N))
        raise ScoreError(
            f"no row has both a confidence and an outcome: of {len(confidence_N)} rows {unsure} lack a confidence, "
            f"{unknown} an outcome (an answer that could not be extracted has none).",
            fix="Give rows that have both a confidence and an outcome.",
        )
    conf_N = np.array([confidence_N[i] for i in kept], float)
    right_N = np.array([correct_N[i] for i in kept], float)
    for what, bad_N in (
        ("a confidence in [0, 1]", ~((conf_N >= 0) & (conf_N <= 1))),
        ("an outcome of 0 or 1", ~np.isin(right_N, (0.0, 1.0))),
    ):
        if bad_N.any():
            at = int(np.flatnonzero(bad_N)[0])
            raise ScoreError(
                f"row {kept[at]}: expected {what}, found confidence {conf_N[at]} and outcome {right_N[at]}; "
                f"{int(bad_N.sum())} of {len(kept)} rows have this problem.",
                fix="Turn partial scores into 0 or 1 first: decide which of them count as right.",
            )
    return conf_N, right_N, codes([families[i] for i in kept]), len(confidence_N) - len(kept)


def equal_mass(confidence_N: Floats, bins: int) -> Ints:
    """Each row's bin 0..B-1, by rank of confidence; equal confidences share a bin, so B may be less than `bins`."""
    order = np.argsort(confidence_N, kind="stable")
    ranked = confidence_N[order]
    cuts = {round(k * len(ranked) / bins) for k in range(1, bins)}
    ends = sorted({int(np.searchsorted(ranked, ranked[c - 1], side="right")) for c in cuts if c > 0})
    made_N = np.zeros(len(ranked), dtype=np.int64)
    made_N[order] = np.searchsorted(np.array(ends), np.arange(len(ranked)), side="right")
    return np.unique(made_N, return_inverse=True)[1].astype(np.int64)


def _usual_bins(conf_N: Floats, code_N: Ints) -> Ints:
    """As many bins as leave enough rows and families in each for its standard error to mean something."""
    for bins in range(max(1, min(MOST_BINS, len(conf_N) // ROWS_PER_BIN)), 1, -1):
        bin_N = equal_mass(conf_N, bins)
        if min(len(np.unique(code_N[bin_N == b])) for b in range(bin_N.max() + 1)) >= LEAST_FAMILIES:
            return bin_N
    return np.zeros(len(conf_N), dtype=np.int64)


def folded_mean(gap: Floats, sd: Floats) -> Floats:
    """E|X| of X normal with mean `gap` and standard deviation `sd` (0 gives |gap|)."""
    from scipy.special import ndtr

    z = np.divide(gap, sd, out=np.zeros_like(gap), where=sd > 0)
    noisy = sd * PLAIN_BIAS * np.exp(-(z**2) / 2) + gap * (2 * ndtr(z) - 1)
    return np.where(sd > 0, noisy, np.abs(gap))


@dataclass(frozen=True)
class _Table:
    """Rows in bins. `weight`, `gap` and its standard error by family, `se`, are [B]."""

    conf_N: Floats
    right_N: Floats
    code_N: Ints
    bin_N: Ints
    weight_B: Floats
    gap_B: Floats
    se_B: Floats

    @classmethod
    def of(cls, conf_N: Floats, right_N: Floats, code_N: Ints, bin_N: Ints) -> _Table:
        count_B = np.bincount(bin_N).astype(float)
        gap_B = np.bincount(bin_N, conf_N - right_N) / count_B
        se_B = np.array([_gap_se(conf_N[m], right_N[m], code_N[m]) for m in (bin_N == b for b in range(len(count_B)))])
        return cls(conf_N, right_N, code_N, bin_N, count_B / len(bin_N), gap_B, se_B)

    @property
    def n_families(self) -> int:
        return len(np.unique(self.code_N))

    def ece(self, level: float) -> tuple[Estimate, Estimate]:
        """The expected calibration error: (plain, debiased)."""
        noise = float(self.weight_B @ self.se_B)
        plain = float(self.weight_B @ np.abs(self.gap_B))
        again = float(self.weight_B @ folded_mean(self.gap_B, self.se_B))
        facts = {"bins": len(self.weight_B), "if_calibrated": PLAIN_BIAS * noise}
        n = len(self.conf_N)
        blank = Estimate("ECE", plain, None, None, level, n, BINNED, n_clusters=self.n_families, details=facts)
        said = f"biased upward: a perfectly calibrated model would read about {PLAIN_BIAS * noise:.3f} here"
        first = replace(blank, warnings=(said,))
        second = replace(blank, name="ECE, debiased", value=max(0.0, 2 * plain - again))
        if self.n_families < LEAST_FAMILIES:
            why = no_interval(self.n_families, LEAST_FAMILIES)
            return replace(first, warnings=(said, why)), replace(second, warnings=(why,))
        se, df = self._spread(), float(self.n_families - 1)
        half = t_quantile(0.5 + level / 2, df) * se
        low, high = plain - PLAIN_BIAS * noise - half, plain + half
        first = replace(first, low=max(0.0, low), high=min(1.0, high), se=se, df=df)
        wide, raw = DEBIASED_SPREAD, 2 * plain - again
        low, high = raw - DEBIASED_BIAS[1] * noise - wide * half, raw - DEBIASED_BIAS[0] * noise + wide * half
        return first, replace(second, low=max(0.0, low), high=min(1.0, high), se=wide * se, df=df)

    def _spread(self) -> float:
        """Standard error of sum_b w_b s_b d_b with the signs found; never below that of independent bins."""
        sign_N = np.where(self.gap_B >= 0, 1.0, -1.0)[self.bin_N]
        residual_N = sign_N * (self.conf_N - self.right_N - self.gap_B[self.bin_N]) / len(self.bin_N)
        sums_F = np.bincount(self.code_N, residual_N)
        g = self.n_families
        clustered = float(g / max(g - 1, 1) * np.square(sums_F).sum())
        return math.sqrt(max(clustered, float(np.square(self.weight_B * self.se_B).sum())))

    def decomposition(self) -> dict[str, float]:
        """Brier = reliability - resolution + uncertainty + within_bin, exactly.

        Murphy 1973, J. Appl. Meteorol. 12:595; `within_bin` is what bins leave out (Stephenson et al. 2008).
        """
        base = float(self.right_N.mean())
        right_B = np.bincount(self.bin_N, self.right_N) / np.bincount(self.bin_N)
        reliability = float(self.weight_B @ np.square(self.gap_B))
        resolution = float(self.weight_B @ np.square(right_B - base))
        uncertainty = base * (1 - base)
        whole = float(np.square(self.conf_N - self.right_N).mean())
        return {
            "reliability": reliability,
            "resolution": resolution,
            "uncertainty": uncertainty,
            "within_bin": whole - (reliability - resolution + uncertainty),
        }

    def lines(self, level: float) -> tuple[Json, ...]:
        """The reliability table, lowest confidence first."""
        made: list[Json] = []
        for b in range(len(self.weight_B)):
            mask_N = self.bin_N == b
            conf, right, code = self.conf_N[mask_N], self.right_N[mask_N], self.code_N[mask_N]
            n, families = len(conf), len(np.unique(code))
            low = high = None
            if families >= LEAST_FAMILIES:
                low, high = _wilson(
                    float(right.mean()), n, float(self.se_B[b]), t_quantile(0.5 + level / 2, families - 1)
                )
            made.append(
                {
                    "from": float(conf.min()),
                    "to": float(conf.max()),
                    "n": n,
                    "n_families": families,
                    "confidence": float(conf.mean()),
                    "accuracy": float(right.mean()),
                    "accuracy_low": low,
                    "accuracy_high": high,
                    "gap": float(self.gap_B[b]),
                }
            )
        return tuple(made)


def _gap_se(conf: Floats, right: Floats, code: Ints) -> float:
    """Standard error of a bin's mean confidence minus accuracy: by family, never below that of rows as draws.

    The share right is pulled towards one half by one row of each kind, so that a bin that is all right is not certain.
    """
    n = len(conf)
    residual = conf - right - float((conf - right).mean())
    g = len(np.unique(code))
    sums = np.bincount(np.unique(code, return_inverse=True)[1], residual)
    clustered = g / (g - 1) * float(np.square(sums).sum()) / n**2 if g > 1 else 0.0
    pulled = (float(right.sum()) + 1) / (n + 2)
    return math.sqrt(max(clustered, pulled * (1 - pulled) / n))


def _wilson(share: float, n: int, se: float, t: float) -> tuple[float, float]:
    """Wilson's score interval at the effective number of rows that the clustered error implies, at most n."""
    pulled = (share * n + 1) / (n + 2)
    m = min(float(n), pulled * (1 - pulled) / se**2) if se > 0 else float(n)
    middle = (share + t * t / (2 * m)) / (1 + t * t / m)
    half = t / (1 + t * t / m) * math.sqrt(share * (1 - share) / m + t * t / (4 * m * m))
    return max(0.0, middle - half), min(1.0, middle + half)


def _reading(said: float, accuracy: Estimate, over: Estimate, ece: Estimate) -> str:
    word = "calibrated as far as can be told"
    if over.low is not None and over.high is not None and over.low > 0:
        word = f"overconfident by {over.value:.3f} ({over.low:.3f} to {over.high:.3f})"
    elif over.low is not None and over.high is not None and over.high < 0:
        word = f"underconfident by {-(over.value or 0):.3f} ({-over.high:.3f} to {-over.low:.3f})"
    elif ece.low:
        word = "neither over- nor underconfident on average, and off in places"
    elif ece.low is None:
        word = "too few families to say whether that is calibrated"
    bounds = f" ({ece.low:.3f} to {ece.high:.3f})" if ece.low is not None and ece.high is not None else ""
    return (
        f"It is {said:.0%} sure on average and right {accuracy.value:.0%} of {accuracy.n} times: {word}; "
        f"debiased ECE {ece.value:.3f}{bounds}."
    )
