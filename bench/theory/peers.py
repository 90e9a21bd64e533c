"""Veritune's intervals beside those of others, on the same draws: where they err and where ours are wider than needed.

    python bench/theory/peers.py [--reps 1000]

Peers: evalstats' bootstrap-t (PyPI `evalstats`; skipped with a line when it is not installed), scipy's BCa bootstrap, a
plain paired t, statsmodels' cluster-robust t (CR1, G - 1 degrees of freedom; skipped when not installed) and CR2 with
Bell & McCaffrey's degrees of freedom (own lines, Bell & McCaffrey 2002, Surv Methodol 28:169; for a mean both have a
closed form). Each cell is `share of intervals above the true gap / below it / mean width`; nominal is .025 a side. The
last table is power: how often the interval lies above 0 at a true gap of .1.
"""

from __future__ import annotations

import argparse
import math
import warnings
import zlib
from collections.abc import Callable, Sequence

import numpy as np
import theory_designs as designs
from scipy import stats
from theory_cells import beyond, options, tables
from theory_designs import Draw, Floats, Ints, Rng

from veritune.stats.intervals import Spread
from veritune.stats.paired import compare_tables

try:
    from evalstats.core.resampling import bootstrap_t_ci_1d
except ImportError:
    bootstrap_t_ci_1d = None
try:
    import statsmodels.api as sm
except ImportError:
    sm = None

DRAWS = 2000
"""Bootstrap draws of each peer."""

Interval = tuple[float, float]
Method = Callable[[Draw, Rng], Interval]


def ours(draw: Draw, rng: Rng) -> Interval:
    return _spread(draw).interval(0.95)


def _spread(draw: Draw) -> Spread:
    chosen = options(draw.declared)
    assert chosen is not None
    return compare_tables(*tables(draw), chosen).headline.spread


def _diff(draw: Draw) -> Floats:
    return draw.a_S_N.mean(axis=0) - draw.b_S_N.mean(axis=0)


def paired_t(draw: Draw, rng: Rng) -> Interval:
    diff_N = _diff(draw)
    half = stats.t.ppf(0.975, len(diff_N) - 1) * diff_N.std(ddof=1) / math.sqrt(len(diff_N))
    return diff_N.mean() - half, diff_N.mean() + half


def evalstats_bootstrap_t(draw: Draw, rng: Rng) -> Interval:
    diff_N = _diff(draw)
    low, high = bootstrap_t_ci_1d(diff_N, float(diff_N.mean()), DRAWS, 0.05, rng)
    return float(low), float(high)


def scipy_bca(draw: Draw, rng: Rng) -> Interval:
    diff_N = _diff(draw)
    if np.ptp(diff_N) == 0:
        return float(diff_N[0]), float(diff_N[0])  # scipy gives NaN: the bootstrap has a single value
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = stats.bootstrap((diff_N,), np.mean, n_resamples=DRAWS, method="BCa", rng=rng, vectorized=True)
    low, high = found.confidence_interval
    return (float(low), float(high)) if math.isfinite(low) and math.isfinite(high) else (diff_N.mean(), diff_N.mean())


def cluster_t(draw: Draw, rng: Rng) -> Interval:
    assert draw.family_N is not None
    diff_N = _diff(draw)
    fit = sm.OLS(diff_N, np.ones(len(diff_N))).fit(cov_type="cluster", cov_kwds={"groups": draw.family_N}, use_t=True)
    low, high = fit.conf_int(0.05)[0]
    return float(low), float(high)


def cr2(draw: Draw, rng: Rng) -> Interval:
    """CR2: V = Σ e_g²/(1 − w_g)/n², w_g = n_g/n, and df = (Σ Ω_gg)²/Σ Ω_gh² with Ω_gh = a_g·a_h·(n_g δ_gh − n_g n_h/n),
    a_g = (1 − w_g)^−½."""
    assert draw.family_N is not None
    diff_N = _diff(draw)
    size_G: Ints = np.bincount(draw.family_N)
    n, mean = len(diff_N), float(diff_N.mean())
    scale_G = (1 - size_G / n) ** -0.5
    sum_G = np.bincount(draw.family_N, diff_N - mean) * scale_G
    omega_G_G = np.outer(scale_G, scale_G) * (np.diag(size_G) - np.outer(size_G, size_G) / n)
    df = float(np.trace(omega_G_G) ** 2 / (omega_G_G**2).sum())
    half = float(stats.t.ppf(0.975, df)) * math.sqrt(float((sum_G**2).sum())) / n
    return mean - half, mean + half


def methods(*, clustered: bool) -> dict[str, Method]:
    """Ours and the peers that apply and are installed."""
    found: dict[str, Method] = {"Veritune": ours}
    if clustered:
        if sm is None:
            print("statsmodels is not installed: its cluster-robust t is skipped")
        else:
            found["statsmodels, CR1"] = cluster_t
        found["CR2, Bell–McCaffrey"] = cr2
        return found
    found["paired t"] = paired_t
    if bootstrap_t_ci_1d is None:
        print("evalstats is not installed: its bootstrap-t is skipped (pip install evalstats)")
    else:
        found["evalstats, bootstrap-t"] = evalstats_bootstrap_t
    found["scipy, BCa"] = scipy_bca
    return found


Design = tuple[str, Callable[[float], Callable[[Rng], Draw]]]
"""A name, and the draws at a true gap."""

WIDTHS = 25
"""Draws whose interval of ours is computed in full; the others only as far as 0 is excluded (see `theory_cells`)."""


def _graded(shape: str, n: int) -> Design:
    return f"{shape}, n = {n}", lambda mean: designs.graded(shape, n, mean)


GRADED: list[Design] = [
    (f"identical outputs, n = {n}", lambda mean, n=n: lambda rng: designs.split(np.full(n, mean))) for n in (12, 57)
]
GRADED += [_graded(shape, n) for shape in ("5 % at -.76", "2 % at -.88") for n in (20, 57, 150, 400)]
GRADED += [_graded(shape, n) for shape in ("80 % ties, skewed", "lognormal", "normal, sd .25") for n in (20, 57, 150)]

FAMILIES: list[Design] = [
    (
        f"{sizes}, G = {g}, {kind}",
        lambda mean, s=sizes, g=g, k=kind: designs.families(s, g, "strong", mean, binary=k == "binary"),
    )
    for kind in ("graded", "binary")
    for sizes in ("equal", "one of 40 %", "two of 35 %", "Zipf")
    for g in (6, 8, 20, 40)
]

POWER: list[Design] = [_graded("normal, sd .25", n) for n in (20, 57, 150)]


def _wrong(name: str, method: Method, draw: Draw, rng: Rng, width: bool) -> tuple[bool, bool, float]:
    """Whether the interval lies above 0, below it, and its width where asked for."""
    if name != "Veritune" or width:
        low, high = method(draw, rng)
        return low > 0, high < 0, high - low
    spread = _spread(draw)
    return beyond(spread, 0.0, 1), beyond(spread, 0.0, -1), math.nan


def compare(design: Design, found: dict[str, Method], reps: int, mean: float = 0.0) -> list[str]:
    """One line of the table."""
    name, make = design
    rng = np.random.default_rng(zlib.crc32(name.encode()))
    drawn = [make(mean)(rng) for _ in range(reps)]
    cells = []
    for label, method in found.items():
        rows = np.array([_wrong(label, method, d, rng, i < WIDTHS) for i, d in enumerate(drawn)], dtype=float)
        above, below = rows[:, 0].mean(), rows[:, 1].mean()
        width_R = rows[np.isfinite(rows[:, 2]), 2]
        width = f"{width_R.mean():.2f}" if len(width_R) else "no interval"
        if len(width_R) and width_R.max() < 1e-9:
            width = "a point"
        cells.append(f"{above:.3f}" if mean else f"{above:.3f} / {below:.3f} / {width}")
    return [name, *cells]


def table(title: str, found: dict[str, Method], rows: Sequence[Design], reps: int, mean: float = 0.0) -> None:
    print(f"\n### {title} (R = {reps:,})\n\n| design | {' | '.join(found)} |\n{'| --- ' * (len(found) + 1)}|")
    for design in rows:
        print(f"| {' | '.join(compare(design, found, reps, mean))} |", flush=True)


def main() -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--reps", type=int, default=1000)
    reps = parser.parse_args().reps
    single, clustered = methods(clustered=False), methods(clustered=True)
    table("Families, strong effects, true gap 0", clustered, FAMILIES, reps)
    table("Graded scores, one run a side, true gap 0", single, GRADED, reps)
    table("Power at a gap of .1: families", clustered, FAMILIES, reps, 0.1)
    table("Power at a gap of .1: graded scores", single, POWER, reps, 0.1)


if __name__ == "__main__":
    main()
