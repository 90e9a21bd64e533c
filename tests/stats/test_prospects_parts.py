"""The pieces that chances are made of, each against scipy, a brute count or a sum by hand."""

from __future__ import annotations

import math
from itertools import combinations

import numpy as np
import pytest
from scipy import special, stats
from scipy.interpolate import RegularGridInterpolator
from scipy.optimize import minimize_scalar

from veritune.stats import prospects
from veritune.stats.intervals import mcnemar_midp, tango_interval
from veritune.stats.prospects import DRAWS, Ends, Families, Parts


def parts(**more: object) -> Parts:
    given = {"item": 0.1, "noise": (0.0, 0.0), "seed": 0.0, "runs": (1, 1)} | more
    return Parts(**given)  # type: ignore[arg-type]


# ---------------------------------------------------------------- draws


def test_the_points_fill_the_cube_evenly() -> None:
    point_D_A = prospects._points()
    assert point_D_A.shape == (DRAWS, 5)
    ratio = point_D_A[0] - 0.5 + (point_D_A[0] < 0.5)  # the first multiple of 1/φ^k, φ^6 = φ + 1
    golden = 1 / ratio[0]
    assert golden**6 == pytest.approx(golden + 1)
    assert ratio == pytest.approx([golden**-k for k in range(1, 6)])
    for u_D in point_D_A.T:
        assert u_D.min() > 0 and u_D.max() < 1
        assert stats.kstest(u_D, "uniform").statistic < 0.004
    assert np.abs(np.corrcoef(point_D_A.T) - np.eye(5)).max() < 0.06


@pytest.mark.parametrize("df", [1.0, 3.0, 40.0, 100.0, 101.0, 1000.0])
@pytest.mark.parametrize("axis", [0, 4])
def test_chi_square_over_its_df(df: float, axis: int) -> None:
    exact = stats.chi2.ppf(prospects._points()[:, axis], df) / df
    off_D = np.abs(prospects._chi_square(df, axis) - exact)
    assert off_D.max() < (8e-4 if df > 100 else 1e-9) and off_D.mean() < 4e-5


# ---------------------------------------------------------------- one binary run a side


def test_binomial_sums_and_probabilities() -> None:
    m_M = np.array([0.0, 1.0, 7.0, 7.0, 7.0, 7.0, 7.0])
    k_M = np.array([0.0, 0.0, -1.0, 0.0, 3.0, 7.0, 9.0])
    assert prospects._below(k_M, m_M, 0.3) == pytest.approx(stats.binom.cdf(k_M, m_M, 0.3))
    for n, share in ((30, 0.4), (200, 0.02), (5000, 0.1), (40, 1.0)):
        m_M, weight_M = prospects._discordant(n, share)
        assert weight_M == pytest.approx(stats.binom.pmf(m_M, n, share), rel=1e-9)
        assert weight_M.sum() == pytest.approx(1, abs=1e-8)


def test_the_critical_count_by_brute_force() -> None:
    """The least n10 of m that wins: z > 1.96 and a mid-p of at most .05, both as a reader computes them."""
    for tail in (0.025, 0.005):
        found = prospects._critical(tail)
        z = stats.norm.ppf(1 - tail)
        for m in range(80):
            wins = [
                b
                for b in range(m // 2, m + 1)
                if 2 * b - m > z * math.sqrt(m) and mcnemar_midp(b, m - b) <= 2 * tail * (1 + 1e-12)
            ]
            assert found[m] == (wins[0] if wins else m + 1), m


def constrained(b: float, c: float, n: float, delta: float) -> float:
    """2q + Δ(1 − Δ) with q by maximum likelihood under n10/n − n01/n = Δ."""

    def loss(q: float) -> float:
        return -(special.xlogy(b, q + delta) + special.xlogy(c, q) + special.xlogy(n - b - c, 1 - 2 * q - delta))

    low, high = max(0.0, -delta), (1 - delta) / 2
    q = minimize_scalar(loss, bounds=(low + 1e-12, high - 1e-12), method="bounded", options={"xatol": 1e-12}).x
    return 2 * q + delta * (1 - delta)


@pytest.mark.parametrize(
    ("b", "c", "n", "delta"), [(9, 4, 60, 0.05), (9, 4, 60, -0.1), (0, 5, 40, 0.02), (30, 2, 50, 0.4)]
)
def test_the_constrained_variance_is_that_of_the_likelihood(b: int, c: int, n: int, delta: float) -> None:
    assert prospects._constrained(b, c, n, delta) == pytest.approx(constrained(b, c, n, delta), abs=1e-6)


def tables(n: int, share: float, gap: float) -> list[tuple[int, int, float]]:
    """(n10, n01, probability) of every 2×2 table of n items."""
    p = [(share + gap) / 2, (share - gap) / 2]
    found = []
    for b in range(n + 1):
        for c in range(n + 1 - b):
            found.append((b, c, float(stats.multinomial.pmf([b, c, n - b - c], n, [*p, 1 - sum(p)]))))
    return [t for t in found if t[2] > 1e-12]


def test_the_chance_of_a_table_is_the_sum_over_all_tables() -> None:
    n, share = 40, 0.3
    design = parts(item=share, binary=True)
    for gap in (0.0, 0.15):
        wins = 0.0
        for b, c, p in tables(n, share, gap):
            low, high = tango_interval(b, c, n, 0.95)
            wins += p * ((low > 0 or high < 0) and mcnemar_midp(b, c) <= 0.05)
        assert prospects.excludes(design, n, 0.95, gap) == pytest.approx(wins, abs=1e-9)
    margin, within = 0.2, 0.0
    for b, c, p in tables(n, share, 0.0):
        low, high = tango_interval(b, c, n, 0.9)
        within += p * (-margin < low and high < margin)
    assert prospects.inside(design, n, 0.9, margin) == pytest.approx(within, abs=1e-9)


def test_many_discordant_items_are_as_a_normal_variable() -> None:
    """One item more than the exact count takes changes a chance by under .003."""
    share = 0.25
    n = prospects.FEW_DISCORDANT / share
    design = parts(item=share, binary=True)
    for gap in (0.0, 0.02, 0.03):
        exact, normal = (prospects.excludes(design, k, 0.95, gap) for k in (n, n + 4))
        assert normal == pytest.approx(exact, abs=0.003)
    for margin in (0.015, 0.02, 0.03):
        exact, normal = (prospects.inside(design, k, 0.9, margin) for k in (n, n + 4))
        assert normal == pytest.approx(exact, abs=0.005)


def test_the_first_integer_from_which_something_holds() -> None:
    low_M, high_M = np.array([0.0, 0.0, -1.0, 4.0]), np.array([100.0, 5.0, 3.0, 5.0])
    edge_M = np.array([37.0, 9.0, 0.0, 5.0])
    assert prospects._first(lambda x_M: x_M >= edge_M, low_M, high_M).tolist() == [37, 5, 0, 5]


# ---------------------------------------------------------------- ends


def test_one_draw_is_the_normal_formula() -> None:
    ends = Ends(np.array([0.1]), np.array([1.0]), np.array([1.5]), 2.0)
    norm = stats.norm.cdf
    assert ends.excludes(0.7) == pytest.approx(norm((0.7 + 0.1 - 1.0) / 2) + norm((-0.7 - 0.1 - 1.5) / 2))
    assert ends.inside(3.0) == pytest.approx(norm((3 - 1.5 - 0.1) / 2) - norm((1.0 - 3 - 0.1) / 2))
    assert ends.inside(0.2) == 0.0
    two = Ends(np.array([0.1, 0.0]), np.array([1.0, 0.2]), np.array([1.5, 0.2]), 2.0)
    alone = Ends(np.array([0.0]), np.array([0.2]), np.array([0.2]), 2.0)
    assert two.excludes(0.7) == pytest.approx((ends.excludes(0.7) + alone.excludes(0.7)) / 2)


def test_the_least_distance() -> None:
    assert prospects.least(lambda x: min(1.0, x), 0.8, 1.0) == pytest.approx(0.8, abs=1e-6)
    assert prospects.least(lambda x: min(1.0, x), 0.8, 0.8) == pytest.approx(0.8, abs=1e-6)
    assert prospects.least(lambda x: x / 2, 0.8, 1.0) is None
    assert prospects.least(lambda x: 1.0, 0.8, 1.0) == pytest.approx(0, abs=1e-11)


def test_the_parts_of_a_variance() -> None:
    design = parts(item=0.2, noise=(0.06, 0.03), seed=0.01, runs=(3, 2), recipe=True)
    assert design.difference() == pytest.approx(0.2 + 0.06 / 3 + 0.03 / 2)
    assert design.item_variance(50) == pytest.approx(0.235 / 50)
    assert design.seed_variance() == pytest.approx(0.01 * (1 / 3 + 1 / 2))
    assert design.variance(50) == pytest.approx(0.235 / 50 + 0.01 * 5 / 6)
    assert (design.arms, design.per_arm) == ((3, 2), 1)
    fixed = parts(noise=(0.06, 0.0), seed=0.01, runs=(3, 0), recipe=True)
    assert fixed.arms == (3,) and fixed.difference() == pytest.approx(0.12)
    shared = parts(seed=0.01, runs=(3, 3), recipe=True, shared=True)
    assert (shared.arms, shared.per_arm) == ((3,), 2) and shared.seed_variance() == pytest.approx(0.02 / 3)
    assert parts(seed=0.01, runs=(3, 3)).seed_variance() == 0.0
    clustered = parts(pattern=Families((2.0, 2.0), 1.5))
    assert clustered.effect == 1.5 and clustered.item_variance(4) == pytest.approx(0.1 * 1.5 / 4)
    assert parts(binary=True).table and not parts(binary=True, runs=(2, 1)).table and not clustered.table


def test_normal_items_are_student_s_t_united_with_the_bounded_mean() -> None:
    """With the scale far away the bounded mean is nearly normal, so t is the wider; close by the unseen one decides."""
    design = parts(item=0.04)
    ends = prospects._normal_ends(design, 30, 0.025, 0.0)
    se_D = np.sqrt(0.04 / 30 * prospects._chi_square(29.0, 0))
    assert ends.sd == pytest.approx(math.sqrt(0.04 / 30))
    assert (ends.low_D >= stats.t.ppf(0.975, 29) * se_D - 1e-12).all()
    assert ends.low_D == pytest.approx(ends.high_D)
    up = prospects._normal_ends(design, 30, 0.025, 0.5)
    assert (up.low_D >= up.high_D).all() and (up.low_D > up.high_D).any()  # more room below than above
    near = prospects._bounded(se_D, None, 1.5, 30, 0.025)
    assert up.low_D == pytest.approx(np.maximum(stats.t.ppf(0.975, 29) * se_D, near))


# ---------------------------------------------------------------- binary items of several runs


def test_a_run_s_share_is_binomial_and_a_difference_that_of_two() -> None:
    value_K, share_K = prospects._side(4, 0.3)
    assert value_K.tolist() == [0, 0.25, 0.5, 0.75, 1]
    assert share_K == pytest.approx(stats.binom.pmf(range(5), 4, 0.3))
    value_K, share_K = prospects._side(0, 0.3)
    assert (value_K.tolist(), share_K.tolist()) == ([0.0], [1.0])
    value_K, share_K = prospects._minus(prospects._side(1, 0.2), prospects._side(1, 0.5))
    found = sorted(zip(value_K.tolist(), share_K.round(9).tolist()))
    assert found == [(-1.0, 0.4), (0.0, 0.1), (0.0, 0.4), (1.0, 0.1)]


@pytest.mark.parametrize("gap", [0.0, 0.02, 0.05])
@pytest.mark.parametrize("noise", [(0.0, 0.0), (0.02, 0.02), (0.04, 0.04)])
def test_the_shares_of_differences_have_the_gap_and_the_variances(noise: tuple[float, float], gap: float) -> None:
    """Steady items at ±1, which never stray, and strays on the others: mean = gap, variance = both parts."""
    design = parts(item=0.06, noise=noise, runs=(3, 2), binary=True)
    value_K, share_K = prospects._difference_shares(design, gap)
    assert share_K.sum() == pytest.approx(1) and (np.diff(value_K) > 0).all() and np.abs(value_K).max() <= 1
    assert float(share_K @ value_K) == pytest.approx(gap, abs=1e-9)
    steady = 0.06 + gap**2
    expected = steady + (1 - steady) * (noise[0] / 3 + noise[1] / 2)
    assert float(share_K @ value_K**2) == pytest.approx(expected, rel=1e-6)


def test_a_gap_on_items_that_differ_in_some_runs_only() -> None:
    """A lasting variance below what the gap takes at ±1: A is right more often by part of 1 on more items."""
    design = parts(item=0.02, noise=(0.15, 0.15), runs=(4, 4), binary=True)
    value_K, share_K = prospects._difference_shares(design, 0.05)
    assert float(share_K @ value_K) == pytest.approx(0.05, abs=1e-9)
    assert float(share_K @ value_K**2) == pytest.approx(0.02 + 0.05**2 + 0.3 / 4, rel=0.03)
    # A third of the items differ by .15: at the end of the scale A never strays there and B does at .85·.15/3 = .0425.
    misfit, share, (high, low) = prospects._partial((0.03, 0.03), 0.05, 0.15)
    assert (misfit, share, high - low) == pytest.approx((0.85 * 0.15 / 3 - 0.03, 1 / 3, 0.15))
    assert high == pytest.approx(1) or low == pytest.approx(0)
    # Noise of .3 an item is more than there can be: the third strays at rates round a half, the others at 1/4.
    misfit, share, rates = prospects._partial((0.3, 0.3), 0.05, 0.15)
    assert rates == pytest.approx((0.575, 0.425))
    assert misfit == pytest.approx(2 * (0.3 - 0.575 * 0.425 / 3 - (2 / 3) / 4))
    misfit, share, rates = prospects._partial((0.0, 0.0), 0.3, 0.2)
    assert share == 1.0 and rates[0] - rates[1] == pytest.approx(0.2)
    # All items differ by .2: with both rates at an end, .2 and 0 or 1 and .8, the noise is .16, and none was allowed.
    assert misfit == pytest.approx(0.16, abs=1e-9)


def test_few_differing_items_are_drawn() -> None:
    design = parts(item=0.05, noise=(0.01, 0.01), runs=(2, 2), binary=True)
    assert prospects._few_differing(design, 100, 0.0)
    assert not prospects._few_differing(design, 5000, 0.0)
    assert not prospects._few_differing(parts(item=0.05, runs=(2, 2)), 100, 0.0)
    ends = prospects._counted_ends(design, 100, 0.025, 0.02)
    assert ends.shift_D.mean() == pytest.approx(0, abs=0.002)
    spread = 0.05 + 0.01  # lasting, and the noise of two runs a side
    assert ends.shift_D.var() == pytest.approx(spread / 100, rel=0.1)
    assert (ends.low_D > 0).all() and ends.sd == 1e-9
    # t with the drawn variance, never below the bounded mean of ten thousand equal differences
    assert (ends.low_D >= 1 - 0.025 ** (1 / 100) - 0.02).all()


# ---------------------------------------------------------------- the bounded mean, approximated


def test_between_the_nodes_of_the_table() -> None:
    rng = np.random.default_rng(0)
    table = rng.random((len(prospects._RATIO), len(prospects._SKEW)))
    ratio_D, skew_D = rng.uniform(0, 100, 400), rng.uniform(-1.5, 1.5, 400)
    ratio_D[:3], skew_D[:3] = [0, 100, 0.15], [-1.5, 1.5, 0.3]
    expected = RegularGridInterpolator((prospects._RATIO, prospects._SKEW), table)(np.stack([ratio_D, skew_D], 1))
    assert prospects._bilinear(table, ratio_D, skew_D) == pytest.approx(expected)


@pytest.mark.parametrize("skew", [-1.2, -0.4, 0.0, 0.4, 1.2])
def test_a_skewed_variable_is_a_gamma_variable(skew: float) -> None:
    z = np.linspace(-2.5, 2.5, 21)
    found = prospects._skewed_cdf(z, np.full(21, skew))
    assert found == pytest.approx(stats.pearson3.cdf(z, skew), abs=0.006)
    mixed = prospects._skewed_cdf(np.array([0.5, 0.5]), np.array([0.0, skew]))
    assert mixed[0] == pytest.approx(stats.norm.cdf(0.5)) and mixed[1] == pytest.approx(found[12], abs=0.05)


def test_the_distance_of_the_bounded_mean_is_that_of_real_items() -> None:
    from veritune.stats.bounded import BoundedMean

    rng = np.random.default_rng(4)
    for n, sd in ((20, 0.02), (60, 0.1), (400, 0.2)):
        diff_N = rng.normal(size=n)
        diff_N = sd * (diff_N - diff_N.mean()) / diff_N.std(ddof=1)
        low, _ = BoundedMean(diff_N, 1.0).interval(0.95)
        se = np.array([sd / math.sqrt(n)])
        assert prospects._bounded(se, None, 1.0, n, 0.025)[0] == pytest.approx(-low, rel=0.04)
    # no spread at all: (1 − α^{1/n})·room; beyond every ratio of the table: the normal quantile
    assert prospects._bounded(np.zeros(1), None, 1.0, 20, 0.025)[0] == pytest.approx(1 - 0.025 ** (1 / 20))
    assert prospects._bounded(np.ones(1), None, 1.0, 1e9, 0.025)[0] == pytest.approx(1.959964, abs=1e-5)
    wide = prospects._bounded(np.array([1.0, 2.0]), None, 1.0, 500, 0.025)
    assert wide[1] - wide[0] == pytest.approx(stats.norm.ppf(0.975) * math.sqrt(499 / 501), rel=1e-6)
    skewed = [prospects._bounded(np.array([0.02]), np.array([s]), 1.0, 40, 0.025)[0] for s in (-1.0, 0.0, 1.0)]
    plain = prospects._bounded(np.array([0.02]), None, 1.0, 40, 0.025)[0]
    assert skewed[0] > skewed[1] > skewed[2] and skewed[1] == pytest.approx(plain)


# ---------------------------------------------------------------- families


def test_what_a_design_effect_means_for_these_sizes() -> None:
    """Two of 2: Σn_g²/n = 2, so an effect of 1.5 is ρ = .5, and a sum of two such items has variance 2·(1 + .5)."""
    assert prospects._alike(Families((2.0, 2.0), 1.5)) == pytest.approx(0.5)
    assert prospects._family_variance(Families((2.0, 2.0), 1.5)) == pytest.approx([3, 3])
    assert prospects._alike(Families((3.0, 1.0), 1.75)) == pytest.approx(0.75 / 1.5)  # Σn² = 10, over 4: 2.5
    assert prospects._family_variance(Families((3.0, 1.0), 1.75)) == pytest.approx([3 * 2, 1])
    assert prospects._alike(Families((2.0, 2.0), 9.0)) == 1.0
    assert prospects._alike(Families((1.0, 1.0), 2.0)) == 0.0


def test_more_items_come_in_more_families_of_the_same_proportions() -> None:
    pattern = Families((6.0, 1.0, 3.0), 1.5)
    assert pattern.scaled(10, 10) is pattern
    double = pattern.scaled(20, 10)
    assert (double.sizes, double.effect) == ((1, 1, 3, 3, 6, 6), 1.5)
    assert pattern.scaled(5, 10).sizes == pytest.approx((5 * 1 / 7, 5 * 6 / 7))
    assert sum(pattern.scaled(7, 10).sizes) == pytest.approx(7)
    assert len(pattern.scaled(1, 10).sizes) == 2
    many = pattern.scaled(1e5, 10)
    assert len(many.sizes) == 1000 and set(many.sizes) == {1e5 / 30000}


def test_flips_of_few_families_are_counted_over_all_subsets() -> None:
    sum_G, size_G = np.array([3.0, -1.0, 4.0, 2.0]), np.array([2.0, 1.0, 3.0, 1.0])
    means = sorted(sum(sum_G[list(s)]) / sum(size_G[list(s)]) for k in range(1, 5) for s in combinations(range(4), k))
    low, high = prospects._flipped_ends(sum_G[None], size_G, 0.125)  # 15 subsets: rank ⌊.125·16⌋ = 2
    assert (low[0], high[0]) == pytest.approx((means[1], means[-2]))
    low, high = prospects._flipped_ends(sum_G[None], size_G, 0.0625)
    assert (low[0], high[0]) == pytest.approx((means[0], means[-1]))
    low, high = prospects._flipped_ends(sum_G[None], size_G, 0.06)
    assert (low[0], high[0]) == (-math.inf, math.inf)


def test_flips_of_many_families_are_order_statistics_of_random_subsets() -> None:
    rng = np.random.default_rng(3)
    size_G = rng.integers(1, 9, 10).astype(float)
    sum_G = rng.normal(size=10) * size_G
    pick = np.random.default_rng(1).integers(0, 2, size=(prospects._SUBSETS, 10)).astype(float)
    pick = pick[pick.sum(axis=1) > 0]
    means = np.sort(pick @ sum_G / (pick @ size_G))
    rank = math.floor(0.025 * (len(pick) + 1))
    low, high = prospects._flipped_ends(sum_G[None], size_G, 0.025)
    assert (low[0], high[0]) == pytest.approx((means[rank - 1], means[-rank]))
    low, high = prospects._flipped_ends(sum_G[None], size_G, 1e-5)  # never wider than all that was drawn
    assert (low[0], high[0]) == pytest.approx((means[0], means[-1]))
    nine = prospects._flipped_ends(sum_G[None, :9], size_G[:9], 1e-5)
    assert nine[0][0] == -math.inf  # nine families are few: nothing is drawn, and nothing reaches that far


def test_many_families_are_a_chi_square_with_their_effective_number() -> None:
    """200 families of 5, effect 2: ρ = .25, each sum of variance 10; equal ones are worth all 200."""
    pattern = Families((5.0,) * 200, 2.0)
    design = parts(item=0.1, pattern=pattern, items=1000.0)
    drawn = prospects._many_families(design, pattern, 0.025, 1000)
    expected = np.sqrt(0.1 * 2 / 1000 * prospects._chi_square(199.0, 0))
    assert drawn.se_D == pytest.approx(np.maximum(expected, math.sqrt(0.1 / 1000)))
    assert drawn.low_D == pytest.approx(stats.t.ppf(0.975, 199) * drawn.se_D)
    assert drawn.items_D.tolist() == [500] and drawn.shift_D.tolist() == [0]
    unequal = Families((1.0,) * 150 + (17.0,) * 50, 2.0)
    variance_G = prospects._family_variance(unequal)
    df = 200 * variance_G.mean() ** 2 / (variance_G**2).mean()
    drawn = prospects._many_families(design, unequal, 0.025, 1000)
    expected = np.sqrt(0.1 * 2 / 1000 * prospects._chi_square(df - 1, 0))
    assert drawn.se_D == pytest.approx(np.maximum(expected, math.sqrt(0.1 / 1000)))
    more = prospects._many_families(design, pattern, 0.025, 5000)
    assert more.low_D / more.se_D == pytest.approx(stats.t.ppf(0.975, 999))


@pytest.mark.parametrize(("sizes", "method"), [((5.0,) * 20, "cr1"), ((9.0, 4.0, 5.0, 3.0, 4.0, 5.0), "cr3")])
def test_few_families_are_drawn_with_the_variance_of_their_rule(sizes: tuple[float, ...], method: str) -> None:
    pattern = Families(sizes, 2.0)
    n = float(sum(sizes))
    design = parts(item=0.1, pattern=pattern, items=n)
    rule = prospects.sized_rule(sizes)
    assert rule.method == method
    drawn = prospects._few_families(design, pattern, 0.025, n)
    assert drawn.shift_D.var() == pytest.approx(0.1 * 2 / n, rel=0.1)
    assert drawn.shift_D.mean() == pytest.approx(0, abs=1e-12)  # each draw beside its mirror
    assert drawn.low_D == pytest.approx(stats.t.ppf(0.975, rule.df) * drawn.se_D)
    if method == "cr1":
        assert float((drawn.se_D**2).mean()) == pytest.approx(0.1 * 2 / n, rel=0.1)
    assert (drawn.items_D <= n).all() and (drawn.items_D < n).any()


# ---------------------------------------------------------------- the seed part


def test_the_seed_part_without_noise_is_t_squared_times_its_variance() -> None:
    design = parts(seed=0.01, runs=(3, 5), recipe=True)
    own_D, raw_D = prospects._seed_squares(design, 100, 0.025)
    expected = sum(
        stats.t.ppf(0.975, s - 1) ** 2 * 0.01 * prospects._chi_square(s - 1.0, 1 + a) / s for a, s in enumerate((3, 5))
    )
    assert own_D == pytest.approx(expected) and raw_D == pytest.approx(expected)
    noisy = parts(seed=0.0, noise=(0.4, 0.4), runs=(3, 5), recipe=True)
    own_D, raw_D = prospects._seed_squares(noisy, 100, 0.025)
    assert (own_D <= raw_D).all() and float(own_D.mean()) < 0.6 * float(raw_D.mean())
    shared = parts(seed=0.01, noise=(0.1, 0.3), runs=(4, 4), recipe=True, shared=True)
    mean_D = (0.02 + 0.4 / 100) * prospects._chi_square(3.0, 1)
    _, raw_D = prospects._seed_squares(shared, 100, 0.025)
    assert raw_D == pytest.approx(stats.t.ppf(0.975, 3) ** 2 * mean_D / 4)


def test_the_pooled_seed_part_by_hand() -> None:
    """Arms of 3 and 5 runs, mean squares 2 and 4, noise 1 and .5: pooled (2·2 + 4·4)/6 less (2·1 + 4·.5)/6."""
    mean_A, noise_A = [np.array([2.0]), np.array([4.0])], [np.array([1.0]), np.array([0.5])]
    pooled = stats.t.ppf(0.975, 6) ** 2 * (20 / 6 - 4 / 6) * (1 / 3 + 1 / 5)
    net = [1 / 3, 3.5 / 5]
    df = sum(net) ** 2 / (net[0] ** 2 / 2 + net[1] ** 2 / 4)
    welch = stats.t.ppf(0.975, df) ** 2 * sum(net)
    found = prospects._declared_equal((3, 5), mean_A, noise_A, 0.025)
    assert found[0] == pytest.approx(max(pooled, welch))
    lopsided = prospects._declared_equal((3, 5), [np.array([9.0]), np.array([0.1])], noise_A, 0.025)
    alone = stats.t.ppf(0.975, 2) ** 2 * 8 / 3  # the second arm is all noise: Welch's on the first
    assert lopsided[0] == pytest.approx(max(alone, stats.t.ppf(0.975, 6) ** 2 * (18.4 / 6 - 4 / 6) * (1 / 3 + 1 / 5)))
    nothing = prospects._declared_equal((3, 5), [np.array([0.1]), np.array([0.1])], noise_A, 0.025)
    assert nothing[0] == 0


@pytest.mark.parametrize(
    ("runs", "how", "rule"),
    [((4, 4), {}, "quadrature"), ((2, 4), {}, "larger"), ((3, 5), {}, "both"), ((3, 3), {"shared": True}, "larger")],
)
def test_the_seed_part_joins_by_the_rule_for_these_arms(runs: tuple[int, int], how: dict[str, bool], rule: str) -> None:
    design = parts(seed=0.01, noise=(0.3, 0.3), runs=runs, recipe=True, **how)
    own_D, raw_D = prospects._seed_squares(design, 100, 0.025)
    low_D, high_D = prospects._with_seeds(design, 100, 0.025, np.array([0.2]), np.array([0.1]))
    for item, found in ((0.2, low_D), (0.1, high_D)):
        added, larger = np.sqrt(item**2 + own_D), np.maximum(item, np.sqrt(raw_D))
        expected = {"quadrature": added, "larger": larger, "both": np.maximum(added, larger)}[rule]
        assert found == pytest.approx(expected)


def test_draws_of_two_lengths_are_lined_up() -> None:
    one, half = np.array([1.0]), np.arange(float(DRAWS // 2))
    assert prospects._all_draws(one) is one
    assert prospects._all_draws(half).tolist() == [*half, *half]


def test_item_by_run_noise_with_and_without_families() -> None:
    plain = parts(noise=(0.1, 0.1), runs=(3, 3))
    assert prospects._noise_share(plain, 50, 3, 3) == pytest.approx(prospects._chi_square(98.0, 3))
    clustered = parts(noise=(0.1, 0.1), runs=(3, 3), pattern=Families((5.0,) * 10), items=50.0)
    expected = np.minimum(1.0, prospects._chi_square(2 * 19.0, 3))  # 100 items: 20 families
    assert prospects._noise_share(clustered, 100, 3, 3) == pytest.approx(expected)
