"""One comparison: published values, invariants, and agreement with scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from veritune import records
from veritune.errors import ScoreError
from veritune.stats import intervals, paired, seeds
from veritune.stats.paired import Options, compare_tables, sign_flips
from veritune.stats.table import ScoreTable


def table(name, score, **more) -> ScoreTable:
    score = np.atleast_2d(np.asarray(score, dtype=float))
    runs = tuple(str(i) for i in range(len(score)))
    items = more.pop("items", tuple(f"q{i}" for i in range(score.shape[1])))
    return ScoreTable(name, "sums", runs, items, score, missing=({},) * len(score), **more)


def from_counts(n10: int, n01: int, both: int, neither: int) -> tuple[ScoreTable, ScoreTable]:
    kind = np.repeat([0, 1, 2, 3], [both, n10, n01, neither])
    return table("a", kind < 2), table("b", (kind == 0) | (kind == 2))


# ---------------------------------------------------------------- published and hand-worked values


def test_tango_and_mcnemar_reproduce_the_airway_reactivity_example():
    """Fagerland, Lydersen & Laake 2013/2014: 7 against 1 of 21 pairs."""
    low, high = intervals.tango_interval(1, 7, 21)
    assert (round(low, 3), round(high, 3)) == (-0.517, -0.026)
    assert round(intervals.mcnemar_midp(1, 7), 3) == 0.039
    assert round(intervals.mcnemar_exact(1, 7), 3) == 0.070


def test_no_discordance_gives_z_squared_over_n_plus_z_squared():
    z = stats.norm.ppf(0.975)
    low, high = intervals.tango_interval(0, 0, 50)
    assert high == pytest.approx(z**2 / (50 + z**2), abs=1e-12)
    assert low == -high


def test_midp_by_hand():
    # k = 1 of m = 4: 2·[5/16 − ½·4/16] = 6/16
    assert intervals.mcnemar_midp(1, 3) == pytest.approx(6 / 16)
    assert intervals.mcnemar_exact(1, 3) == pytest.approx(10 / 16)


@pytest.mark.parametrize(
    ("n10", "n01", "n"), [(5, 2, 57), (3, 0, 57), (9, 1, 57), (12, 7, 100), (0, 4, 9), (40, 38, 80)]
)
def test_tango_ends_where_the_score_statistic_is_z(n10, n01, n):
    """The statistic with its constrained likelihood maximised numerically instead of in closed form."""

    def statistic(gap):
        def loss(q):
            cells = ((n10, q + gap), (n01, q), (n - n10 - n01, 1 - 2 * q - gap))
            return -sum(c * math.log(p) for c, p in cells if c) if min(p for _, p in cells) > 0 else 1e9

        low, high = max(0.0, -gap) + 1e-13, (1 - gap) / 2 - 1e-13
        q = optimize.minimize_scalar(loss, bounds=(low, high), method="bounded", options={"xatol": 1e-13}).x
        return (n10 - n01 - n * gap) / math.sqrt(n * (2 * q + gap * (1 - gap)))

    low, high = intervals.tango_interval(n10, n01, n)
    z = stats.norm.ppf(0.975)
    assert statistic(low) == pytest.approx(z, abs=2e-4)
    assert statistic(high) == pytest.approx(-z, abs=2e-4)


@pytest.mark.parametrize(("n10", "n01", "n"), [(9, 0, 9), (0, 9, 9), (1, 0, 1), (0, 0, 1), (5, 5, 10)])
def test_tango_stays_inside_plus_minus_one_and_holds_the_estimate(n10, n01, n):
    low, high = intervals.tango_interval(n10, n01, n)
    assert -1 <= low <= (n10 - n01) / n <= high <= 1
    assert low < high


def test_sign_flips_by_hand():
    # Differences 1, 2, 3: the 7 subset means are 1, 2, 3, 1.5, 2, 2.5, 2; the smallest p is 2/8.
    flips = sign_flips(np.array([1.0, 2.0, 3.0]))
    assert sorted(flips.low_R) == [1, 1.5, 2, 2, 2, 2.5, 3]
    assert flips.p() == 2 / 8
    assert flips.interval(0.75) == (1.0, 3.0)
    assert flips.interval(0.95) == (-math.inf, math.inf)


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("seed", range(4))
def test_paired_t_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 300))
    estimate = compare_tables(table("a", a), table("b", b)).estimate()
    oracle = stats.ttest_rel(a, b)
    assert estimate.p == pytest.approx(oracle.pvalue)
    assert (estimate.low, estimate.high) == pytest.approx(tuple(oracle.confidence_interval()))


def test_exact_mcnemar_agrees_with_scipy_and_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    for n10, n01 in ((3, 11), (0, 5), (8, 8), (40, 61)):
        assert intervals.mcnemar_exact(n10, n01) == pytest.approx(stats.binomtest(n10, n10 + n01).pvalue)
        oracle = mcnemar([[9, n10], [n01, 9]], exact=True).pvalue
        assert intervals.mcnemar_exact(n10, n01) == pytest.approx(oracle)


def test_exact_sign_flips_agree_with_scipys_permutation_test():
    d = np.random.default_rng(3).normal(0.4, 1, 9)
    oracle = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf, axis=-1)
    assert sign_flips(d).p() == pytest.approx(oracle.pvalue)


def test_sign_flip_interval_holds_exactly_the_shifts_the_test_accepts():
    d = np.random.default_rng(5).normal(0.3, 1, 10)
    low, high = sign_flips(d).interval(0.9)
    for shift, inside in ((low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)):
        assert (sign_flips(d - shift).p() > 0.1) == inside


def test_cluster_robust_interval_agrees_with_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(2)
    family = np.repeat(np.arange(40), rng.integers(1, 9, 40))
    d = rng.normal(size=40)[family] + rng.normal(size=len(family)) + 0.2
    names = tuple(map(str, family))
    estimate = compare_tables(table("a", d, family_N=names), table("b", 0 * d)).estimate()
    fit = sm.OLS(d, np.ones(len(d))).fit(cov_type="cluster", cov_kwds={"groups": family}, use_t=True)
    assert estimate.se == pytest.approx(fit.bse[0])
    assert estimate.df == 39
    assert estimate.p == pytest.approx(fit.pvalues[0])
    assert (estimate.low, estimate.high) == pytest.approx(tuple(fit.conf_int()[0]))


# ---------------------------------------------------------------- invariants


CASES = {
    "binary": lambda rng, s, n: (rng.random((s, n)) < 0.7) * 1.0,
    "graded": lambda rng, s, n: rng.random((s, n)),
}


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("s", "n"), [(1, 60), (1, 300), (3, 120)])
@pytest.mark.parametrize("families", [False, True])
def test_swapping_the_arms_negates_and_nothing_else_changes(kind, s, n, families):
    rng = np.random.default_rng(1)
    a, b = (CASES[kind](rng, s, n) for _ in range(2))
    more = {"family_N": tuple(str(i // 4) for i in range(n))} if families else {}
    one = compare_tables(table("a", a, **more), table("b", b, **more), Options(draws=999))
    other = compare_tables(table("b", b, **more), table("a", a, **more), Options(draws=999))
    for estimand in one.results:
        x, y = one.estimate(estimand=estimand), other.estimate(estimand=estimand)
        assert x.value == pytest.approx(-y.value, abs=1e-12)
        # Monte Carlo flips draw the same patterns for sorted units, so mirrored data meet mirrored-rank draws.
        tolerance = 0.02 if "Monte Carlo" in x.method else 1e-9
        assert x.low == pytest.approx(-y.high, abs=tolerance)
        assert x.high == pytest.approx(-y.low, abs=tolerance)
        assert x.p == pytest.approx(y.p, abs=0.05 if "Monte Carlo" in x.method else 1e-9)


@pytest.mark.parametrize("kind", CASES)
@pytest.mark.parametrize(("s", "n"), [(1, 60), (3, 120)])
def test_item_order_does_not_matter(kind, s, n):
    rng = np.random.default_rng(2)
    a, b = (CASES[kind](rng, s, n) for _ in range(2))
    order = rng.permutation(n)
    family = tuple(str(i // 3) for i in range(n))
    one = compare_tables(table("a", a, family_N=family), table("b", b)).estimate()
    names = tuple(f"q{i}" for i in order)
    shuffled = table("a", a[:, order], items=names, family_N=tuple(family[i] for i in order))
    other = compare_tables(shuffled, table("b", b)).estimate()
    plain = compare_tables(table("a", a), table("b", b)).estimate()
    reordered = compare_tables(table("a", a[:, order], items=names), table("b", b)).estimate()
    for x, y in ((one, other), (plain, reordered)):
        assert (x.value, x.low, x.high, x.p) == pytest.approx((y.value, y.low, y.high, y.p), abs=1e-12)


def test_renaming_an_arm_changes_names_only():
    a, b = from_counts(9, 4, 60, 20)
    one = compare_tables(a, b).estimate()
    renamed = ScoreTable("zeta", a.eval, ("other",), a.items, a.score_S_N, missing=a.missing)
    other = compare_tables(renamed, b).estimate()
    assert (one.value, one.low, one.high, one.p) == (other.value, other.low, other.high, other.p)
    assert "zeta" in other.name


def test_every_item_its_own_family_is_no_family():
    rng = np.random.default_rng(3)
    a, b = rng.random((2, 1, 250))
    own = tuple(f"f{i}" for i in range(250))
    plain = compare_tables(table("a", a), table("b", b)).estimate()
    single = compare_tables(table("a", a, family_N=own), table("b", b)).estimate()
    assert (plain.low, plain.high, plain.method) == (single.low, single.high, single.method)


def test_duplicating_every_item_inside_its_family_adds_no_certainty():
    rng = np.random.default_rng(4)
    a, b = rng.normal(size=(2, 1, 80)) + np.repeat(rng.normal(size=(2, 1, 40)), 2, axis=2)
    family = tuple(f"f{i // 2}" for i in range(80))
    one = compare_tables(table("a", a, family_N=family), table("b", b)).estimate()
    names = tuple(f"q{i}.{k}" for k in range(3) for i in range(80))
    tripled = [table(x, np.tile(y, 3), items=names, family_N=family * 3) for x, y in (("a", a), ("b", b))]
    other = compare_tables(*tripled).estimate()
    assert other.n == 240
    assert (other.low, other.high) == pytest.approx((one.low, one.high), abs=1e-9)


def test_negative_correlation_inside_families_never_narrows_the_interval():
    d = np.tile([1.0, -1.0], 150) + np.random.default_rng(0).normal(size=300) * 0.01
    family = tuple(f"f{i // 2}" for i in range(300))
    clustered = compare_tables(table("a", d, family_N=family), table("b", 0 * d))
    assert clustered.details["design_effect"] < 0.1
    plain = compare_tables(table("a", d), table("b", 0 * d)).estimate()
    found = clustered.estimate()
    assert found.high - found.low >= plain.high - plain.low


def test_singleton_families_leave_the_crossed_variance_as_it_is():
    rng = np.random.default_rng(6)
    a, b = rng.random((2, 3, 90))
    plain = seeds.crossed(paired.pair(table("a", a), table("b", b)))
    assert plain.item_K_K == pytest.approx(plain.item_clustered_K_K)
    family = (*(f"f{i}" for i in range(88)), "f88", "f88")
    grouped = seeds.crossed(paired.pair(table("a", a, family_N=family), table("b", b)))
    for one, other in zip(plain.arms, grouped.arms):
        assert one.resid_K_K == pytest.approx(other.resid_K_K)
        assert other.resid_clustered_K_K == pytest.approx(one.resid_K_K, rel=0.2)


# ---------------------------------------------------------------- the crossed variance, by hand


def test_crossed_variance_follows_its_formula():
    rng = np.random.default_rng(7)
    a = rng.normal(size=(3, 40)) + rng.normal(size=(3, 1)) * 2
    b = rng.normal(size=(4, 40)) + rng.normal(size=(4, 1)) * 2
    comparison = compare_tables(table("a", a), table("b", b))
    d = a.mean(axis=0) - b.mean(axis=0)
    value, terms = d.var(ddof=1) / 40, [(d.var(ddof=1) / 40, 39)]
    for y in (a, b):
        s = len(y)
        resid = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
        ms_resid = (resid**2).sum() / ((s - 1) * 39)
        mean_var = y.mean(axis=1).var(ddof=1)
        value += mean_var / s - ms_resid / (40 * s)
        terms += [(mean_var / s, s - 1), (-ms_resid / (40 * s), (s - 1) * 39)]
    estimate = comparison.estimate()
    assert estimate.se == pytest.approx(math.sqrt(value))
    assert estimate.df == pytest.approx(value**2 / sum(v**2 / k for v, k in terms))
    half = stats.t.ppf(0.975, estimate.df) * math.sqrt(value)
    assert (estimate.low, estimate.high) == pytest.approx((d.mean() - half, d.mean() + half))
    assert "new items and new seeds" in estimate.scope
    assert estimate.method == "seeds × items, crossed"


def test_the_variance_never_falls_below_that_of_new_items():
    rng = np.random.default_rng(8)
    item = rng.normal(size=60)
    a = item + rng.normal(size=(3, 60))
    a -= a.mean(axis=1, keepdims=True)
    comparison = compare_tables(table("a", a), table("b", rng.normal(size=(3, 60)) * 0 + item[::-1]))
    recipe, checkpoints = comparison.estimate(estimand="recipe"), comparison.estimate(estimand="checkpoints")
    assert recipe.se == pytest.approx(checkpoints.se)
    assert any("seed variance" in w for w in recipe.warnings)


def test_all_estimands_are_named_and_only_possible_ones_given():
    rng = np.random.default_rng(9)
    a, b = rng.random((3, 50)), rng.random((1, 50))
    assert set(compare_tables(table("a", a), table("b", b)).results) == {"checkpoints", "items"}
    fixed = compare_tables(table("a", a), table("b", b, fixed=True))
    assert set(fixed.results) == {"recipe", "checkpoints", "items"}
    assert "margins squared and added" in fixed.estimate().method
    assert "fixed arm, no seeds" in fixed.estimate().scope
    assert set(compare_tables(table("a", b), table("b", b + 0.1)).results) == {"checkpoints"}


def test_few_seeds_against_a_fixed_arm_are_wider_than_satterthwaite():
    rng = np.random.default_rng(10)
    a = rng.random((2, 400)) + np.array([[0.0], [0.05]])
    comparison = compare_tables(table("a", a), table("b", rng.random((1, 400)), fixed=True))
    variance = seeds.new_items_and_seeds(seeds.crossed(comparison.pair), np.ones(1))
    # Two runs against a fixed arm: nothing is subtracted.
    assert variance.seeds == pytest.approx(a.mean(axis=1).var(ddof=1) / 2)
    low, high = variance.spread(0.0).interval(0.95)
    assert high > stats.t.ppf(0.975, variance.df) * variance.se
    assert variance.effective_df() == pytest.approx(comparison.estimate().df)
    assert stats.t.ppf(0.975, variance.effective_df()) * variance.se == pytest.approx(high)
    assert low == -high


# ---------------------------------------------------------------- bad and thin input


def test_identical_outputs_warn_that_the_adapter_may_not_be_loaded():
    for s in (1, 3):
        score = np.tile(np.arange(40) % 2, (s, 1))
        comparison = compare_tables(table("a", score), table("b", score))
        estimate = comparison.estimate()
        assert estimate.low < 0 < estimate.high
        assert estimate.p == 1
        assert any("never loaded" in w for w in estimate.warnings)


def test_identical_graded_outputs_keep_a_width_from_the_scale():
    score = np.random.default_rng(0).random(60)
    estimate = compare_tables(table("a", score), table("b", score), Options(scale=(0, 10))).estimate()
    assert estimate.high == pytest.approx(10 * 1.96**2 / (60 + 1.96**2), rel=1e-3)


def test_a_constant_difference_has_no_interval_and_says_why():
    score = np.random.default_rng(0).random(60) / 2
    estimate = compare_tables(table("a", score + 0.25), table("b", score)).estimate()
    if estimate.se != 0:
        score = np.round(score * 64) / 64
        estimate = compare_tables(table("a", score + 0.25), table("b", score)).estimate()
    assert (estimate.low, estimate.high, estimate.p) == (None, None, None)
    assert any("constant" in w for w in estimate.warnings)
    records.dumps(estimate)


def test_a_constant_arm_is_named():
    estimate = compare_tables(table("a", np.ones(30)), table("b", np.arange(30) % 2)).estimate()
    assert any(w.startswith("a: every score is 1") for w in estimate.warnings)


def test_one_family_has_no_interval():
    rng = np.random.default_rng(0)
    for s in (1, 3):
        a, b = (rng.random((2, s, 30)) < 0.5) * 1.0
        one = compare_tables(table("a", a, family_N=("f",) * 30), table("b", b)).estimate()
        assert (one.low, one.high) == (None, None)
        assert any("one family" in w for w in one.warnings)


def test_few_families_bring_the_sign_flip_beside_and_a_warning():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 60))
    comparison = compare_tables(table("a", a, family_N=tuple(str(i // 6) for i in range(60))), table("b", b))
    assert comparison.details["family_sign_flip"]["exact"]
    assert any("10 families" in w for w in comparison.estimate().warnings)


def test_too_few_items_for_a_sign_flip_interval_give_none_and_say_so():
    estimate = compare_tables(table("a", [0.1, 0.5, 0.9]), table("b", [0.2, 0.1, 0.3])).estimate()
    assert estimate.low is None
    assert any("too few" in w for w in estimate.warnings)


def test_ten_million_draws_are_refused_before_anything_is_allocated():
    with pytest.raises(ScoreError, match="found 10,000,000"):
        Options(draws=10_000_000)


def test_a_resampled_p_is_never_below_its_floor():
    rng = np.random.default_rng(0)
    a = rng.random(60)
    estimate = compare_tables(table("a", a + 5), table("b", rng.random(60) / 9), Options(draws=999)).estimate()
    assert estimate.p == estimate.p_floor == 2 / 1000


def test_p_never_underflows_to_zero():
    assert intervals.mcnemar_midp(5000, 0) > 0
    assert intervals.mcnemar_exact(5000, 0) > 0
    assert intervals.Student(1.0, 1e-9, 100.0).p() > 0


def test_an_estimate_is_the_same_bytes_every_time_and_holds_no_nan():
    rng = np.random.default_rng(1)
    a, b = rng.random((2, 1, 70))
    one, two = (records.dumps(compare_tables(table("a", a), table("b", b)).estimate()) for _ in range(2))
    assert one == two
    assert "NaN" not in one


@pytest.mark.parametrize("seed", range(20))
def test_the_root_agrees_with_brentq(seed):
    rng = np.random.default_rng(seed)
    shift, power = rng.random(), int(rng.integers(1, 6))
    calls = []

    def f(x):
        calls.append(x)
        return math.copysign(abs(x - shift) ** power, x - shift) + 0.3 * (x - shift)

    for low, high in ((-1.0, 2.0), (shift, 3.0), (-5.0, shift)):
        assert intervals.root(f, low, high, xtol=1e-13) == pytest.approx(optimize.brentq(f, -9, 9), abs=1e-11)
    assert len(calls) < 200
    with pytest.raises(ValueError, match="one sign"):
        intervals.root(f, shift + 1, shift + 2, xtol=1e-12)
