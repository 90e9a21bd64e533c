"""The small parts at their edges: spreads, corrections, rounding, boundaries, each by hand or against scipy."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from scipy import stats

from veritune.errors import ScoreError
from veritune.stats import centroids, lost, multiplicity, power, seeds, tails
from veritune.stats.bounded import combination_below
from veritune.stats.intervals import (
    Spread,
    Student,
    Tango,
    Unknown,
    Widest,
    mcnemar_midp,
    smallest_alpha,
    tango_interval,
    three_valued,
)
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.table import Samples, ScoreTable, pair, tables_from_counts


def table(name: str, score: Any, **more: Any) -> ScoreTable:
    score_S_N = np.atleast_2d(np.asarray(score, dtype=float))
    runs = tuple(f"s{i}" for i in range(len(score_S_N)))
    items = tuple(f"q{i}" for i in range(score_S_N.shape[1]))
    return ScoreTable(name, "sums", runs, items, score_S_N, missing=({},) * len(runs), **more)


# ---------------------------------------------------------------- spreads


def test_the_widest_of_several_weakens_every_statement() -> None:
    narrow, wide = Student(0.5, 0.1, 30), Student(0.4, 0.2, 5)
    both = Widest((narrow, wide))
    assert both.interval(0.95) == (
        min(narrow.interval(0.95)[0], wide.interval(0.95)[0]),
        max(narrow.interval(0.95)[1], wide.interval(0.95)[1]),
    )
    assert both.tail(0.1, 1) == max(narrow.tail(0.1, 1), wide.tail(0.1, 1))
    assert both.p() == max(narrow.p(), wide.p())
    assert both.floor == max(narrow.floor, wide.floor)


def test_the_least_alpha_of_a_student_is_its_p() -> None:
    spread = Student(0.5, 0.2, 12)
    assert spread.tail(0.1, 1) == pytest.approx(stats.t.sf(2, 12))
    assert spread.tail(0.9, -1) == pytest.approx(stats.t.sf(2, 12))
    assert spread.tail(0.9, 1) > 0.5
    assert smallest_alpha(spread, 0.1, side=1) == pytest.approx(2 * stats.t.sf(2, 12))
    assert smallest_alpha(spread, 0.1, side=1, sides=1) == pytest.approx(stats.t.sf(2, 12))
    assert smallest_alpha(spread, 0.6, side=1) == 1.0
    assert Unknown("why").tail(0.0, 1) == 1.0 and Unknown("why").interval(0.95) == (-math.inf, math.inf)
    assert Unknown("why").p() == 1.0


def test_a_default_tail_inverts_the_end_also_where_it_is_infinite() -> None:
    runs = Tango(9, 3, 40)
    alpha = runs.tail(0.05, 1)
    assert runs.end(alpha, -1) == pytest.approx(0.05, abs=1e-5)
    assert runs.tail(0.2, 1) == 1.0

    class Cut(Spread):
        """Ends at 0.2 and 0.8 up to 90 %, none above."""

        def end(self, alpha: float, side: int) -> float:
            return (0.5 + 0.3 * side) if alpha >= 0.05 else side * math.inf

    assert Cut().tail(0.1, 1) == pytest.approx(0.05, rel=1e-6)


# ---------------------------------------------------------------- paired binary


def test_a_table_without_losses_or_without_anything() -> None:
    """n10 = n: the lower end is (n − z²)/(n + z²); no discordant pair: ± z²/(n + z²)."""
    z2 = stats.norm.ppf(0.975) ** 2
    assert tango_interval(9, 0, 9) == pytest.approx(((9 - z2) / (9 + z2), 1.0))
    assert tango_interval(0, 9, 9) == pytest.approx((-1.0, -(9 - z2) / (9 + z2)))
    assert tango_interval(0, 0, 9) == pytest.approx((-z2 / (9 + z2), z2 / (9 + z2)))
    assert tango_interval(4, 2, 20, level=0.0) == pytest.approx((0.1, 0.1))


def test_three_values_by_hand() -> None:
    """Mean and mean square are kept: .5, .5, −.25 and 0 are up 1 and down .25 in units of .5625/1.25 = .45."""
    found = three_valued(np.array([0.5, 0.5, -0.25, 0.0]))
    assert (found.n10 * found.unit, found.n01 * found.unit) == pytest.approx((1.0, 0.25))
    assert (found.unit, found.n) == (pytest.approx(0.45), 4.0)
    assert (found.n10 - found.n01) / found.n * found.unit == pytest.approx(0.75 / 4)
    assert (found.n10 + found.n01) * found.unit**2 == pytest.approx(0.5625)
    whole = three_valued(np.array([1.0, 1, -1, 0, 0]))
    assert (whole.n10, whole.n01, whole.n, whole.unit) == (2, 1, 5.0, 1.0)
    assert whole.p() == mcnemar_midp(2, 1)
    half = three_valued(np.array([1.0, 1, -1, 0, 0]), shrink=2.0)
    assert (half.n10, half.n01, half.n) == (1.0, 0.5, 2.5)
    assert half.p() == pytest.approx(2 * stats.norm.sf(0.5 / math.sqrt(1.5)))
    assert three_valued(np.zeros(6), shrink=2.0) == Tango(0, 0, 3.0) and Tango(0, 0, 3.0).p() == 1.0


# ---------------------------------------------------------------- corrections


def test_p_at_both_ends_of_its_range() -> None:
    assert multiplicity.holm([0.0, 1.0]) == [0.0, 1.0]
    assert multiplicity.holm([0.5], 4) == [1.0]
    assert multiplicity.benjamini_hochberg([0.0, 1.0]) == [0.0, 1.0]
    for wrong in ([-0.1], [1.1], [float("nan")]):
        for correct in (multiplicity.holm, multiplicity.benjamini_hochberg):
            with pytest.raises(ScoreError) as error:
                correct(wrong)
            assert error.value.message == f"expected p values between 0 and 1, found {wrong}."
    with pytest.raises(ScoreError) as error:
        multiplicity.holm([0.1, 0.2], 1)
    assert error.value.message == "expected a family of at least 2 claims, found 1."


# ---------------------------------------------------------------- exponentials


def test_a_sum_of_steps_of_one_sign_needs_no_integral() -> None:
    one = np.ones(1)
    assert combination_below(np.array([-1.0]), one) == 1.0
    assert combination_below(np.array([1.0]), one) == 0.0
    assert combination_below(np.array([0.0]), one) == 1.0
    assert combination_below(np.array([0.0, -2.0]), np.ones(2)) == 1.0
    # P(2·E1 ≤ 3·E2) = 3/5 for independent exponentials
    assert combination_below(np.array([2.0, -3.0]), np.ones(2)) == pytest.approx(0.6, abs=1e-7)
    assert combination_below(np.array([3.0, -2.0]), np.ones(2)) == pytest.approx(0.4, abs=1e-7)


# ---------------------------------------------------------------- seeds


@pytest.mark.parametrize(("low", "high"), [(0.0, 1.0), (0.0, 100.0), (40.0, 41.0)])
@pytest.mark.parametrize(("apart", "equal"), [(0.5e-9, True), (4e-9, False)])
def test_seed_means_that_differ_by_rounding_are_equal(low: float, high: float, apart: float, equal: bool) -> None:
    """Rounding is 1e-9 of the width of the scale: two seeds 1.4 times further apart than that have a variance."""
    width = high - low
    base = low + width * np.linspace(0.2, 0.8, 12)
    a = table("a", [base, base + apart * width])
    b = table("b", [base], fixed=True)
    parts = seeds.crossed(pair(a, b, scale=(low, high)))
    assert (float(parts.arms[0].seed_K_K[0, 0]) == 0.0) is equal


def test_the_parts_of_a_crossed_design_by_hand() -> None:
    """Two seeds of four items in two strata against a fixed arm of zeros."""
    score = np.array([[1.0, 0.0, 1.0, 1.0], [1.0, 1.0, 0.0, 1.0]])
    matched = pair(table("a", score), table("b", np.zeros(4), fixed=True))
    parts = seeds.crossed(matched, np.array([0, 0, 1, 1]))
    assert parts.gap_K.tolist() == [0.75, 0.75] and parts.n_K.tolist() == [2, 2]
    # differences 1, .5 | .5, 1: residuals ± .25 in each stratum, variance .125/1/2
    assert parts.item_K_K == pytest.approx(np.diag([0.0625, 0.0625]))
    assert parts.item_clustered_K_K == pytest.approx(parts.item_K_K)
    (arm,) = parts.arms
    assert arm.seeds == 2 and arm.seed_mean_S_K.tolist() == [[0.5, 1.0], [1.0, 0.5]]
    # means .5, 1 | 1, .5: centred ∓ .25, so the variances are .125 and the covariance −.125
    assert arm.seed_K_K == pytest.approx(np.array([[0.125, -0.125], [-0.125, 0.125]]))
    # what is left of each score: ± .25 twice a stratum and seed: .25/1/2
    assert arm.resid_K_K == pytest.approx(np.diag([0.125, 0.125]))
    family = replace(matched, family_N=np.array([0, 1, 0, 1]))
    clustered = seeds.crossed(family, np.array([0, 0, 1, 1]))
    # families span the strata: residuals +.25, −.25 | −.25, +.25, factor √2/2 each
    assert clustered.item_clustered_K_K == pytest.approx(np.array([[0.0625, -0.0625], [-0.0625, 0.0625]]))
    assert clustered.clusters_K.tolist() == [2, 2] and clustered.clustered


# ---------------------------------------------------------------- comparisons


def ramp(n: int, runs: int = 1) -> Any:
    return np.linspace(0.2, 0.8, n) + 0.01 * np.arange(runs)[:, None] * (np.arange(n) % 3)


def test_seeds_that_are_shared_are_paired_on_these_very_items() -> None:
    a, b = table("a", ramp(40, 3)), table("b", ramp(40, 3)[:, ::-1] ** 2)
    found = compare_tables(a, b, PairOptions(scale=(0, 1), shared_seeds=True)).results["items"]
    assert found.method == "t over seeds, paired by seed"
    per_seed = (a.score_S_N - b.score_S_N).mean(axis=1)
    assert (found.se, found.df) == pytest.approx((per_seed.std(ddof=1) / math.sqrt(3), 2))


def test_what_few_families_rest_on_is_said() -> None:
    family = tuple(str(i // 4) for i in range(40))
    a, b = (table(n, s, family_N=family) for n, s in (("a", ramp(40)), ("b", ramp(40)[:, ::-1])))
    found = compare_tables(a, b, PairOptions(scale=(0, 1))).warnings
    assert (
        "with 10 families the interval assumes that family effects are roughly normal; families that each go one way "
        "as a whole make it err more often (docs/theory.md)" in found
    )
    # 1 − .025^{1/10} = .308
    assert "10 families (10.0 effective): up to 31 % of families could be of a kind that was not drawn" in found
    assert compare_tables(a, b, PairOptions(scale=(0, 1))).details["undrawn_share"] == pytest.approx(
        1 - 0.025 ** (1 / 10)
    )


# ---------------------------------------------------------------- centroids


def test_a_centroid_is_zero_beside_the_longest_one() -> None:
    """Rounding of long vectors leaves short ones that point nowhere: below 1e-12 or so of the longest."""
    rows = np.array([[1e6, 0.0], [0.0, 1e6], [1e6, 1e6]])
    assert centroids.m1(rows) == pytest.approx((0 + 2 / math.sqrt(2)) / 3)
    assert centroids.m1(np.array([[1e6, 0.0], [0.0, 1e6 * centroids._EPS / 2]])) is None
    assert centroids.m1(np.array([[1e6, 0.0], [0.0, 1e6 * centroids._EPS * 2]])) == pytest.approx(0)
    assert centroids.m1(np.array([[1e-3, 0.0], [0.0, centroids._EPS / 2]])) is None


def test_swaps_are_all_there_as_long_as_they_are_few() -> None:
    groups = int(math.log2(centroids.MOST_SWAPS))
    assert 2**groups == centroids.MOST_SWAPS
    every = centroids.swaps(groups)
    assert len(np.unique(every, axis=0)) == len(every) == 2**groups
    assert centroids.floor_of(groups) == 2 / 2**groups and centroids.floor_of(groups + 1) == 1 / centroids.MOST_SWAPS
    drawn = centroids.swaps(groups + 1)
    assert len(drawn) == centroids.MOST_SWAPS and not drawn[0].any()


# ---------------------------------------------------------------- planning


@pytest.mark.parametrize("wrong", [(0.0, 0.05, 0.8), (0.1, 0.0, 0.8), (0.1, 1.0, 0.8), (0.1, 0.05, 1.0)])
def test_gap_alpha_and_power_have_their_ranges(wrong: tuple[float, float, float]) -> None:
    gap, alpha, aim = wrong
    for call in (
        lambda: power.mcnemar_n(gap, 0.3, alpha=alpha, power=aim),
        lambda: power.tost_n(gap, 0.3, alpha=alpha, power=aim),
    ):
        with pytest.raises(ScoreError) as error:
            call()
        assert error.value.message == f"expected gap > 0, alpha and power in (0, 1); found {gap:g}, {alpha:g}, {aim:g}."


def test_items_below_which_nothing_shows_equivalence() -> None:
    """Binary: z²/(n + z²) < .05 from 73 on; graded: 1 − .025^{1/n} < .05 from 72 on, on a scale of 2 from 146."""
    assert power.least_items_equal(0.05, 0.025) == 73
    assert power.least_items_equal(0.05, 0.025, binary=False) == 72
    assert power.least_items_equal(0.05, 0.025, binary=False, width=2.0) == 146
    assert power.least_items_equal(1.0, 0.025) == 1


def test_a_seed_spread_declared_equal_is_pooled_by_degrees_of_freedom() -> None:
    """3 and 5 seeds, spreads 2 and 4, noises 1 and .5: (2·2 + 4·4)/6 − (2·1 + 4·.5)/6, times 1/3 + 1/5."""

    def made(runs: int, spread: float, noise: float) -> seeds.Arm:
        one = np.ones((1, 1))
        return seeds.Arm(runs, np.zeros((runs, 1)), one * spread, one * noise, one * 2 * noise)

    value, df = seeds._pooled((made(3, 2.0, 1.0), made(5, 4.0, 0.5)), np.ones(1))
    assert (value, df) == (pytest.approx((20 - 4) / 6 * (1 / 3 + 1 / 5)), 6.0)
    found = power._pooled((made(3, 2.0, 1.0), made(5, 4.0, 0.5)), 1)
    assert found.noise == (1.0, 0.5)
    assert found.sd == pytest.approx(math.sqrt(20 / 6 - 4 / 6))
    ends = [20 / 6 * 6 / stats.chi2.isf(q, 6) - 4 / 6 for q in (0.2, 0.8)]
    assert found.range == pytest.approx([math.sqrt(max(0.0, x)) for x in ends])
    assert power._pooled((made(3, 2.0, 1.0),), 2).noise == (0.5, 0.5)
    assert power._pooled((), 1) == power._SeedPilot((), 0.0, (0.0, 0.0))


def test_a_plan_without_a_gap_says_none() -> None:
    assert (power._gap(None), power._gap(0.05)) == ("none", "0.0500")


# ---------------------------------------------------------------- lost scores


def test_lost_scores_are_filled_zone_by_zone() -> None:
    """A lost one score in each zone: in `worst/best` the first zone's is the low end, the second's the high end."""
    zone = ("seen", "seen", "stranger", "stranger")
    score = np.array([[np.nan, 1.0, np.nan, 0.0]])
    a = replace(table("a", score), zone_N=zone, missing=({"crashed": 2},), machine_missing_S_N=np.isnan(score))
    b = replace(table("b", np.array([[0.0, 1.0, 1.0, 0.0]])), zone_N=zone)
    found = {f.name: f.a.score_S_N[0, [0, 2]].tolist() for f in lost.fillings(a, b, zones=("seen", "stranger"))}
    assert found["worst/best"] == [0.0, 1.0] and found["best/worst"] == [1.0, 0.0]
    assert found["worst/worst"] == [0.0, 0.0] and found["best/best"] == [1.0, 1.0]
    assert len(found) == 9
    mirrored = {f.name: f.b.score_S_N[0, [0, 2]].tolist() for f in lost.fillings(b, a, zones=("seen", "stranger"))}
    assert mirrored["worst/best"] == [1.0, 0.0] and mirrored["best/worst"] == [
        0.0,
        1.0,
    ]  # for A, so the other way round
    lower = [replace(t, higher_is_better=False) for t in (a, b)]
    turned = {f.name: f.a.score_S_N[0, [0, 2]].tolist() for f in lost.fillings(*lower, zones=("seen", "stranger"))}
    assert turned["worst/best"] == [1.0, 0.0]


# ---------------------------------------------------------------- waits


def test_requests_that_come_in_blocks_count_for_fewer() -> None:
    """Four blocks of 50 of which one is slow as a whole: between the two the share above varies by blocks as
    G/(G − 1)·Σ(over − expected)² = 4/3·(37.5² + 3·12.5²) against n·p·(1 − p) = 200·.25·.75."""
    wait_N = np.concatenate([np.linspace(0.1, 0.2, 150), np.linspace(1.0, 2.0, 50)])
    waits = tails.Waits(wait_N, np.zeros(200, int), np.repeat(np.arange(4), 50))
    effects = tails._design_effects(waits, np.argsort(wait_N, kind="stable"))
    assert effects[150] == pytest.approx(4 / 3 * (37.5**2 + 3 * 12.5**2) / (200 * 0.25 * 0.75))
    assert effects[0] == effects[200] == 1.0 and effects.min() >= 1.0
    bounds = tails.quantile_bounds(waits, 0.5, 0.0125)
    even = tails.quantile_bounds(replace(waits, block_N=np.arange(200) % 4), 0.5, 0.0125)
    assert bounds.high > even.high and bounds.low < even.low  # the same times, worth fewer requests
    assert bounds.value == even.value == wait_N[99]
    burst = tails.quantile_bounds(replace(waits, block_N=np.arange(200) % 4), 0.5, 0.0125, burst=4)
    # 50 requests that count: the largest k with the exact upper bound of k/n below .5, the least with the lower above
    k = np.arange(1, 201) / 4
    shown = stats.beta.ppf(0.0125, k, 50 - k + 1)
    assert burst.high == pytest.approx(wait_N[int(np.flatnonzero(shown >= 0.5)[0])])


# ---------------------------------------------------------------- intra-class correlation


@pytest.mark.parametrize("seed", range(5))
def test_the_p_of_the_intra_class_correlation_counts_every_swap(seed: int) -> None:
    rng = np.random.default_rng(seed)
    sides = []
    for spread in (1.0, 1.6):
        state_P_Q_H = spread * rng.normal(size=(5, 1, 4)) + rng.normal(size=(5, 6, 4))
        state_P_Q_H -= state_P_Q_H.mean(axis=0)
        rest = state_P_Q_H.reshape(5, -1)
        sides.append(centroids.Centroids(state_P_Q_H.mean(axis=1), np.zeros(4), rest @ rest.T, 6))
    base, trained = sides
    found = centroids._icc_change(base, trained, 0.95)

    def value(between: float, within: float) -> float:
        return (between - within) / (between + 5 * within)

    squares = [centroids._squares(side) for side in sides]
    gaps = []
    for swap in centroids.swaps(5):
        one, two = (
            value(*(float((np.where(swap == s, squares[0][part], squares[1][part])).sum()) for part in (0, 1)))
            for s in (0, 1)
        )
        gaps.append(two - one)
    assert gaps[0] == pytest.approx(centroids.icc(trained) - centroids.icc(base))  # type: ignore[operator]
    # deviations from five estimated means have 4/5 of the variance
    expected = np.mean(np.abs(gaps) >= math.sqrt(4 / 5) * abs(gaps[0]) - 1e-12)
    assert found.p == pytest.approx(expected)


def test_the_narrowest_interval_there_can_be() -> None:
    z2 = stats.norm.ppf(0.975) ** 2
    assert power._narrowest(50, 0.025, table=True, width=1.0, rule=None) == pytest.approx(z2 / (50 + z2))
    assert power._narrowest(50, 0.025, table=False, width=2.0, rule=None) == pytest.approx(2 * (1 - 0.025 ** (1 / 50)))
    few = power.Design(60, 0.1, family_sizes=(20, 20, 20)).family_rule()
    assert power._narrowest(60, 0.025, table=True, width=1.0, rule=few) == math.inf


def test_shared_seeds_are_as_many_on_both_sides() -> None:
    assert power.Design(100, 0.1, 3, 3, shared_seeds=True).seeds_b == 3
    with pytest.raises(ScoreError) as error:
        power.Design(100, 0.1, 3, 2, shared_seeds=True)
    assert (
        error.value.message == "expected equal numbers of seeds on both sides because they are shared, found 3 and 2."
    )


def test_one_failed_sample_is_enough_to_be_lost() -> None:
    count = np.array([[2, 1, 0]])
    failed = np.array([[0, 1, 2]])
    kept = Samples(count, failed, np.zeros((1, 3), dtype=np.int64), np.zeros((1, 3)))
    marked = lost._all_lost(replace(table("a", [[0.5, 1.0, np.nan]]), samples=kept))
    assert marked.machine_missing_S_N is not None and marked.samples is not None
    assert marked.machine_missing_S_N.tolist() == [[False, True, True]]
    assert marked.samples.lost_S_N.tolist() == failed.tolist()


def test_a_stratum_on_which_the_seeds_agree_has_no_covariance_with_the_other() -> None:
    """Seed means 0, .5 on the first stratum and equal up to 1e-12 on the second: that one's row and column are 0."""
    score = np.array([[0.0, 0.0, 0.3, 0.3], [0.5, 0.5, 0.3, 0.3 + 2e-12]])
    matched = pair(table("a", score), table("b", np.zeros(4), fixed=True), scale=(0.0, 1.0))
    (arm,) = seeds.crossed(matched, np.array([0, 0, 1, 1])).arms
    assert arm.seed_K_K.tolist() == [[0.125, 0.0], [0.0, 0.0]]


def test_the_reference_is_one_more_group_that_changes_places() -> None:
    rng = np.random.default_rng(1)
    base, trained = (centroids.Centroids(rng.normal(size=(5, 4)), rng.normal(size=4), np.eye(5), 6) for _ in range(2))
    found = centroids.changes(base, trained)
    assert found["m1_around_reference"].floor == centroids.floor_of(6) == 2 / 64
    assert found["m1"].floor == found["icc"].floor == centroids.floor_of(5) == 2 / 32


def test_what_is_needed_runs_over_the_seed_spread() -> None:
    design = power.Design(100, 0.1, 3, 3, seed_sd=0.03, seed_range=(0.01, 0.05))
    assert power._range(design, lambda d: round(1000 * d.seed_sd)) == power.Needed(10, 50)
    assert power._range(replace(design, seed_range=None), lambda d: round(1000 * d.seed_sd)) == power.Needed(30, 30)


@pytest.mark.parametrize("counts", [[(-1, 2, 3, 4)], [(0, 0, 0, 0)], [(1, 2, 3, 4), (1, 2, 3, 5)], []])
def test_counts_that_are_no_tables(counts: list[tuple[int, int, int, int]]) -> None:
    with pytest.raises(ScoreError, match="expected 2×2 tables of the same number of items"):
        tables_from_counts(counts)


@pytest.mark.parametrize("start", [10, 137, 5000])
def test_the_items_that_are_needed_are_the_least_that_are_enough(start: int) -> None:
    needed = power.items_needed(power.Design(start, 0.3), 0.15)
    assert needed is not None and needed < 1000
    design = power.Design(100, 0.3)
    assert power.chance(design, 0.15, items=needed) >= 0.8 > power.chance(design, 0.15, items=needed - 1)
