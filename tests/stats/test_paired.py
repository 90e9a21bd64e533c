"""One comparison: published values, invariants, and agreement with scipy and statsmodels."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy import optimize, stats

from veritune import records
from veritune.errors import ScoreError
from veritune.stats import intervals, paired, seeds
from veritune.stats.families import sign_flips
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.table import ScoreTable


def table(name, score, **more) -> ScoreTable:
    score = np.atleast_2d(np.asarray(score, dtype=float))
    runs = tuple(str(i) for i in range(len(score)))
    items = more.pop("items", tuple(f"q{i}" for i in range(score.shape[1])))
    return ScoreTable(name, "sums", runs, items, score, missing=({},) * len(score), **more)


ONE_EACH = np.ones(10, dtype=np.int64)


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
    flips = sign_flips(np.array([1.0, 2.0, 3.0]), ONE_EACH[:3])
    assert sorted(flips.low_R) == [1, 1.5, 2, 2, 2, 2.5, 3]
    assert flips.p() == 2 / 8
    assert flips.interval(0.75) == (1.0, 3.0)
    assert flips.interval(0.95) == (-math.inf, math.inf)


# ---------------------------------------------------------------- oracles


@pytest.mark.parametrize("seed", range(4))
def test_the_t_side_of_a_graded_interval_agrees_with_scipy(seed):
    rng = np.random.default_rng(seed)
    a, b = rng.normal(size=(2, 300))
    comparison = compare_tables(table("a", a), table("b", b), PairOptions(scale=(-5, 5)))
    student, bounded = comparison.headline.spread.parts
    oracle = stats.ttest_rel(a, b)
    assert student.p() == pytest.approx(oracle.pvalue)
    assert student.interval(0.95) == pytest.approx(tuple(oracle.confidence_interval()))
    estimate = comparison.estimate()
    assert estimate.p == max(student.p(), bounded.p())
    assert (estimate.low, estimate.high) == (bounded.interval(0.95)[0], bounded.interval(0.95)[1])


def test_exact_mcnemar_agrees_with_scipy_and_statsmodels():
    from statsmodels.stats.contingency_tables import mcnemar

    for n10, n01 in ((3, 11), (0, 5), (8, 8), (40, 61)):
        assert intervals.mcnemar_exact(n10, n01) == pytest.approx(stats.binomtest(n10, n10 + n01).pvalue)
        oracle = mcnemar([[9, n10], [n01, 9]], exact=True).pvalue
        assert intervals.mcnemar_exact(n10, n01) == pytest.approx(oracle)


def test_exact_sign_flips_agree_with_scipys_permutation_test():
    d = np.random.default_rng(3).normal(0.4, 1, 9)
    oracle = stats.permutation_test((d,), np.mean, permutation_type="samples", n_resamples=np.inf, axis=-1)
    assert sign_flips(d, ONE_EACH[:9]).p() == pytest.approx(oracle.pvalue)


def test_sign_flip_interval_holds_exactly_the_shifts_the_test_accepts():
    d = np.random.default_rng(5).normal(0.3, 1, 10)
    low, high = sign_flips(d, ONE_EACH).interval(0.9)
    for shift, inside in ((low - 1e-6, False), (low + 1e-6, True), (high - 1e-6, True), (high + 1e-6, False)):
        assert (sign_flips(d - shift, ONE_EACH).p() > 0.1) == inside


def test_the_cluster_robust_part_agrees_with_statsmodels():
    import statsmodels.api as sm

    rng = np.random.default_rng(2)
    family = np.repeat(np.arange(40), rng.integers(5, 8, 40))
    d = rng.normal(size=40)[family] + rng.normal(size=len(family)) + 0.2
    names = tuple(map(str, family))
    comparison = compare_tables(table("a", d, family_N=names), table("b", 0 * d), PairOptions(scale=(-5, 5)))
    fit = sm.OLS(d, np.ones(len(d))).fit(cov_type="cluster", cov_kwds={"groups": family}, use_t=True)
    student = comparison.headline.spread.parts[0]
    assert student.se == pytest.approx(fit.bse[0])
    assert comparison.estimate().df == 39
    assert student.p() == pytest.approx(fit.pvalues[0])
    assert student.interval(0.95) == pytest.approx(tuple(fit.conf_int()[0]))


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
    one = compare_tables(table("a", a, **more), table("b", b, **more), PairOptions(draws=999))
    other = compare_tables(table("b", b, **more), table("a", a, **more), PairOptions(draws=999))
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


@pytest.mark.parametrize("width", [1.0, 1e-9, 1e9])
def test_item_order_changes_no_family_flip(width):
    """More than 16 uneven families, so that flips are drawn: their order hangs on sums whose last bit order changes."""
    rng = np.random.default_rng(3)
    family_N = np.repeat(np.arange(30), rng.integers(1, 12, 30))
    a, b = width * rng.random((2, 1, len(family_N)))
    wanted = None
    for seed in range(4):
        order_N = np.random.default_rng(seed).permutation(len(family_N))
        names = tuple(str(i) for i in family_N[order_N])
        items = tuple(f"q{i}" for i in order_N)
        arms = (table(x, y[:, order_N], items=items, family_N=names) for x, y in (("a", a), ("b", b)))
        flips = compare_tables(*arms, PairOptions(scale=(0, width))).headline.spread.parts[1]
        wanted = flips.low_R if wanted is None else wanted
        assert np.array_equal(flips.low_R, wanted)


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
    bounds = PairOptions(scale=(-2, 2))
    clustered = compare_tables(table("a", d, family_N=family), table("b", 0 * d), bounds)
    assert clustered.details["design_effect"] < 0.1
    plain = compare_tables(table("a", d), table("b", 0 * d), bounds).estimate()
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


@pytest.mark.parametrize(
    ("seeds_a", "seeds_b", "how"), [(3, 3, "added"), (4, 5, "added"), (3, 5, "ways"), (2, 4, "larger")]
)
def test_seed_margins_join_the_item_distance_by_the_rule(seeds_a, seeds_b, how):
    rng = np.random.default_rng(7)
    a, b = (0.5 + 0.05 * rng.normal(size=(s, 40)) + 0.03 * rng.normal(size=(s, 1)) for s in (seeds_a, seeds_b))
    comparison = compare_tables(table("a", a), table("b", b))
    gap = (a.mean(axis=0) - b.mean(axis=0)).mean()
    items = gap - comparison.results["checkpoints"].spread.interval(0.95)[0]
    net = raw = 0.0
    for y in (a, b):
        s = len(y)
        resid = y - y.mean(axis=0) - y.mean(axis=1, keepdims=True) + y.mean()
        noise = (resid**2).sum() / ((s - 1) * 39) / 40
        spread = y.mean(axis=1).var(ddof=1)
        t = stats.t.ppf(0.975, s - 1)
        net += t**2 * max(0.0, spread - noise) / s
        raw += t**2 * spread / s
    joined, larger = math.sqrt(items**2 + net), max(items, math.sqrt(raw))
    expected = {"added": joined, "larger": larger, "ways": max(joined, larger)}[how]
    estimate = comparison.estimate()
    assert estimate.low == pytest.approx(gap - expected, abs=1e-9)
    assert how in estimate.method
    assert "new items and new seeds" in estimate.scope
    tail = comparison.headline.spread.tail(0.0, 1 if gap > 0 else -1)
    assert estimate.p == pytest.approx(min(1.0, 2 * tail), rel=1e-5)


def test_seeds_that_agree_add_nothing_and_say_so():
    rng = np.random.default_rng(8)
    item = rng.random(60)
    a = item + 0.05 * rng.normal(size=(3, 60))
    a -= a.mean(axis=1, keepdims=True) - 0.5
    comparison = compare_tables(table("a", a), table("b", np.tile(item[::-1], (3, 1))), PairOptions(scale=(-2, 2)))
    recipe, checkpoints = comparison.estimate(estimand="recipe"), comparison.estimate(estimand="checkpoints")
    assert (recipe.low, recipe.high) == pytest.approx((checkpoints.low, checkpoints.high))
    assert any("spread no more" in w for w in recipe.warnings)


def test_seed_means_that_differ_in_the_last_bit_are_equal():
    a = np.full((3, 50), 0.4)
    a[:, ::2] = 0.7
    a[1] += 1e-16 * np.arange(50)
    comparison = compare_tables(table("a", a), table("b", np.full((1, 50), 0.1), fixed=True))
    assert comparison.results["items"].spread.interval(0.95) == (-math.inf, math.inf)
    assert "no seed spread" in comparison.results["items"].spread.reason


def test_all_estimands_are_named_and_only_possible_ones_given():
    rng = np.random.default_rng(9)
    a, b = rng.random((3, 50)), rng.random((1, 50))
    assert set(compare_tables(table("a", a), table("b", b)).results) == {"checkpoints", "items"}
    fixed = compare_tables(table("a", a), table("b", b, fixed=True))
    assert set(fixed.results) == {"recipe", "checkpoints", "items"}
    assert "seed margins squared and added" in fixed.estimate().method
    assert "fixed arm, no seeds" in fixed.estimate().scope
    assert set(compare_tables(table("a", b), table("b", b + 0.1)).results) == {"checkpoints"}


def test_two_seeds_take_the_larger_of_item_and_seed_margins():
    rng = np.random.default_rng(10)
    a = rng.random((2, 400)) / 2 + np.array([[0.0], [0.05]])
    comparison = compare_tables(table("a", a), table("b", rng.random((1, 400)), fixed=True))
    margin = stats.t.ppf(0.975, 1) * math.sqrt(a.mean(axis=1).var(ddof=1) / 2)
    low, high = comparison.headline.spread.interval(0.95)
    assert (low, high) == pytest.approx((comparison.gap - margin, comparison.gap + margin))


def test_a_declared_equal_spread_pools_the_arms_and_says_so():
    rng = np.random.default_rng(11)
    a, b = (0.5 + 0.02 * rng.normal(size=(2, 300)) + 0.01 * rng.normal(size=(2, 1)) for _ in "ab")
    plain = compare_tables(table("a", a), table("b", b)).estimate()
    pooled = compare_tables(table("a", a), table("b", b), PairOptions(equal_seed_spread=True)).estimate()
    assert pooled.high - pooled.low < plain.high - plain.low
    assert "one seed spread assumed" in pooled.method
    assert any("assumed to be the same in both arms, as declared" in w for w in pooled.warnings)


def test_shared_seeds_are_paired_by_seed_whatever_their_order():
    rng = np.random.default_rng(12)
    shift = 0.05 * rng.normal(size=(5, 1))
    a = 0.5 + shift + 0.02 * rng.normal(size=(5, 300))
    b = 0.48 + shift + 0.02 * rng.normal(size=(5, 300))
    shared = PairOptions(shared_seeds=True)
    plain = compare_tables(table("a", a), table("b", b)).estimate()
    paired_ = compare_tables(table("a", a), table("b", b), shared).estimate()
    assert paired_.low > 0 > plain.low
    assert "paired by seed" in paired_.method
    turned = table("b", b[::-1])
    turned = ScoreTable("b", "sums", turned.runs[::-1], turned.items, turned.score_S_N, missing=turned.missing)
    assert compare_tables(table("a", a), turned, shared).estimate().low == paired_.low
    files = ScoreTable("b", "sums", tuple("vwxyz"), turned.items, b, missing=turned.missing)
    assert compare_tables(table("a", a), files, shared).estimate().low == paired_.low
    other = ScoreTable("b", "sums", ("0", "1", "2", "3"), turned.items, b[:4], missing=turned.missing[:4])
    with pytest.raises(ScoreError, match="expected the same seeds"):
        compare_tables(table("a", a), other, shared)


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
    estimate = compare_tables(table("a", score), table("b", score), PairOptions(scale=(0, 10))).estimate()
    assert estimate.high == pytest.approx(10 * (1 - 0.025 ** (1 / 60)), rel=1e-9)
    almost = compare_tables(table("a", score + 1e-4 * score), table("b", score), PairOptions(scale=(0, 10))).estimate()
    assert almost.high - almost.low == pytest.approx(estimate.high - estimate.low, rel=1e-2)


def test_graded_scores_beyond_0_to_1_ask_for_their_bounds():
    score = np.random.default_rng(0).random(60) * 5
    estimate = compare_tables(table("a", score + 1), table("b", score)).estimate()
    assert (estimate.low, estimate.high, estimate.p) == (None, None, None)
    assert any("declare the scale" in w for w in estimate.warnings)
    assumed = compare_tables(table("a", score / 10), table("b", score / 20)).estimate()
    assert any("assumed to lie between 0 and 1" in w for w in assumed.warnings)
    declared = compare_tables(table("a", score / 10), table("b", score / 20), PairOptions(scale=(0, 1))).estimate()
    assert not any("assumed" in w for w in declared.warnings)


def test_no_end_lies_beyond_the_scale():
    estimate = compare_tables(table("a", [0.1, 0.9]), table("b", [0.8, 0.0])).estimate()
    assert (estimate.low, estimate.high) == (-1.0, 1.0)


def test_zeros_and_ones_on_a_longer_scale_are_graded():
    score = np.arange(40) % 2
    wide = compare_tables(table("a", score), table("b", 1 - score), PairOptions(scale=(0, 5))).estimate()
    assert "Learned-Miller" in wide.method
    assert wide.high > compare_tables(table("a", score), table("b", 1 - score)).estimate().high


def test_skewed_and_few_valued_differences_are_named():
    b = np.full(57, 0.5)
    a = np.where(np.arange(57) < 3, b - 0.45, b + 0.03)
    found = compare_tables(table("a", a), table("b", b)).estimate()
    assert any("skewed" in w for w in found.warnings)
    assert any("take 2 values on 57 items" in w for w in found.warnings)


def test_a_constant_difference_keeps_a_width_from_the_scale():
    score = np.round(np.random.default_rng(0).random(60) * 64) / 128
    estimate = compare_tables(table("a", score + 0.25), table("b", score)).estimate()
    # One unseen item may lie at −1: 0.25·(1 − w) − w with w ~ Beta(1, 60).
    assert estimate.low == pytest.approx(0.25 - 1.25 * (1 - 0.025 ** (1 / 60)))
    assert estimate.high == pytest.approx(0.25 + 0.75 * (1 - 0.025 ** (1 / 60)))
    records.dumps(estimate)


def test_a_constant_arm_is_named():
    estimate = compare_tables(table("a", np.ones(30)), table("b", np.arange(30) % 2)).estimate()
    assert any(w.startswith("a: every score is 1") for w in estimate.warnings)


@pytest.mark.parametrize(("families", "says"), [(1, "1 family"), (3, "3 families: fewer than 4")])
def test_too_few_families_have_no_interval(families, says):
    rng = np.random.default_rng(0)
    for s in (1, 3):
        a, b = (rng.random((2, s, 30)) < 0.5) * 1.0
        names = tuple(str(i % families) for i in range(30))
        one = compare_tables(table("a", a, family_N=names), table("b", b)).estimate()
        assert (one.low, one.high) == (None, None)
        assert any(says in w for w in one.warnings)


def test_families_say_their_effective_number_and_what_was_not_drawn():
    rng = np.random.default_rng(0)
    a, b = rng.random((2, 1, 60))
    comparison = compare_tables(table("a", a, family_N=tuple(str(i // 6) for i in range(60))), table("b", b))
    assert comparison.details["effective_families"] == pytest.approx(10)
    assert any("10 families (10.0 effective): up to 31 %" in w for w in comparison.estimate().warnings)


def test_one_item_has_no_interval_and_says_so():
    estimate = compare_tables(table("a", [0.1]), table("b", [0.2])).estimate()
    assert estimate.low is None
    assert any("one item" in w for w in estimate.warnings)


def test_ten_million_draws_are_refused_before_anything_is_allocated():
    with pytest.raises(ScoreError, match="found 10,000,000"):
        PairOptions(draws=10_000_000)


def test_a_resampled_p_is_never_below_its_floor():
    family = tuple(str(i) for i, k in enumerate([30] + [2] * 40) for _ in range(k))
    a, b = np.ones(len(family)), np.zeros(len(family))
    b[0] = 1
    estimate = compare_tables(table("a", a, family_N=family), table("b", b), PairOptions(draws=999)).estimate()
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
