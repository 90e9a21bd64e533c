"""The chance of a verdict is drawn from the rule itself; detectable gap, items and seeds are that chance solved."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from veritune.errors import ScoreError
from veritune.stats import power, prospects, seeds
from veritune.stats.bounded import BoundedMean
from veritune.stats.families import sign_flips
from veritune.stats.intervals import mcnemar_midp, tango_interval
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.power import Design, Needed
from veritune.stats.table import ScoreTable

DESIGNS = {
    "one run a side, binary": Design(400, 0.1),
    "one run a side, graded": Design(300, 0.05, binary=False, item_variance=0.05, stable=1.0),
    "one run a side, families": Design(300, 0.1, design_effect=1.8, families=60),
    "one run a side, one large family": Design(200, 0.1, design_effect=1.8, family_sizes=(80, *[6] * 20)),
    "five equal families": Design(100, 0.05, families=5, design_effect=1.5),
    "two seeds": Design(48, 0.011, 2, 2, seed_sd=0.009, stable=0.5, families=16, design_effect=1.6, binary=False),
    "two seeds against a baseline": Design(48, 0.02, 2, 0, seed_sd=0.012, stable=0.8, binary=False),
    "three seeds": Design(600, 0.08, 3, 3, seed_sd=0.004, stable=0.5),
    "three seeds far apart": Design(200, 0.09, 3, 3, seed_sd=0.0141, stable=0.55),
    "three seeds against a baseline": Design(600, 0.08, 3, 0, seed_sd=0.004, stable=0.5),
    "two against five": Design(600, 0.08, 2, 5, seed_sd=0.004, stable=0.2, families=100, design_effect=2.0),
    "seeds without a spread of their own": Design(600, 0.08, 3, 3, stable=0.5),
    "one seed spread, declared": Design(600, 0.08, 2, 4, seed_sd=0.004, stable=0.5, equal_seed_spread=True),
    "shared seeds": Design(600, 0.08, 4, 4, seed_sd=0.004, stable=0.5, shared_seeds=True),
}


@pytest.fixture(params=DESIGNS)
def design(request) -> Design:
    return DESIGNS[request.param]


# ---------------------------------------------------------------- one chance, solved for three unknowns


@pytest.mark.parametrize("equivalence", [False, True])
def test_the_detectable_gap_has_the_power_aimed_at(design, equivalence):
    gap = power.detectable(design, equivalence=equivalence)
    assert power.chance(design, gap, equivalence=equivalence) == pytest.approx(0.8, abs=0.005)


@pytest.mark.parametrize("equivalence", [False, True])
@pytest.mark.parametrize("factor", [0.7, 1.3])
def test_needed_items_are_the_least_that_reach_the_power(design, factor, equivalence):
    distance = factor * power.detectable(design, equivalence=equivalence)
    n = power.items_needed(design, distance, equivalence=equivalence)
    if n is None:
        assert power.chance(design, distance, items=10**9, equivalence=equivalence) < 0.8
        return
    assert power.chance(design, distance, items=n, equivalence=equivalence) >= 0.8
    fewer = n - max(1, n // 900)
    assert power.chance(design, distance, items=fewer, equivalence=equivalence) < 0.8
    assert (n <= design.items) == (factor >= 1) or design.families is not None or design.family_sizes is not None


@pytest.mark.parametrize("equivalence", [False, True])
def test_more_items_never_detect_less(design, equivalence):
    found = [power.detectable(design, items=n, equivalence=equivalence) for n in (60, 240, 1000, 10**4, 10**6)]
    values = np.array([np.inf if x is None else x for x in found])
    assert np.all(values[1:] <= 1.02 * values[:-1])


def test_needed_seeds_are_the_least_that_detect_the_distance():
    design = DESIGNS["three seeds far apart"]
    distance = 0.8 * power.detectable(design)
    s = power.seeds_needed(design, distance)
    assert s > 3
    assert power.detectable(replace(design, seeds_a=s, seeds_b=s)) <= distance
    assert power.detectable(replace(design, seeds_a=s - 1, seeds_b=s - 1)) > distance
    assert power.seeds_needed(DESIGNS["one run a side, binary"], 0.01) is None


# ---------------------------------------------------------------- binary, one run a side: every table


@pytest.mark.parametrize(
    ("n", "psi", "gap", "margin"), [(20, 0.3, 0.2, 0.3), (57, 0.2, 0.15, 0.2), (30, 0.5, 0.0, 0.4)]
)
def test_every_2x2_table_counts_with_tangos_ends_and_the_midp(n, psi, gap, margin):
    def tables(of_gap):
        up, down = (psi + of_gap) / 2, (psi - of_gap) / 2
        for m in range(n + 1):
            for b in range(m + 1):
                ways = math.lgamma(n + 1) - math.lgamma(b + 1) - math.lgamma(m - b + 1) - math.lgamma(n - m + 1)
                logs = ((b, up), (m - b, down), (n - m, 1 - psi))
                yield b, m - b, math.exp(ways + sum(k * math.log(p) for k, p in logs if k))

    told = same = 0.0
    for b, c, weight in tables(gap):
        low, high = tango_interval(b, c, n, 0.95)
        told += weight * ((low > 0 or high < 0) and mcnemar_midp(b, c) <= 0.05)
    for b, c, weight in tables(0.0):
        low, high = tango_interval(b, c, n, 0.90)
        same += weight * (-margin < low and high < margin)
    parts = prospects.Parts(psi, (0.0, 0.0), 0.0, (1, 1), binary=True)
    assert prospects.excludes(parts, n, 0.95, gap) == pytest.approx(told, abs=1e-6)
    assert prospects.inside(parts, n, 0.90, margin) == pytest.approx(same, abs=1e-6)


def test_the_normal_form_joins_the_counted_tables_without_a_step():
    parts = prospects.Parts(0.07, (0.0, 0.0), 0.0, (1, 1), binary=True)
    n = math.floor(prospects.FEW_DISCORDANT / 0.07)
    for chance, distance in ((prospects.excludes, 0.006), (prospects.inside, 0.008)):
        level = 0.95 if chance is prospects.excludes else 0.90
        assert chance(parts, n, level, distance) == pytest.approx(chance(parts, n + 1, level, distance), abs=2e-3)


def test_four_discordant_items_win_by_tango_and_not_by_the_midp():
    """(4, 0) of 20: |4|/√4 = 2 lies above 1.96, mid-p .5^4 = .0625 above .05."""
    assert prospects._critical(0.025)[4] == 5 and prospects._critical(0.025)[5] == 5


# ---------------------------------------------------------------- the bounded mean's table


SAMPLES = {
    "normal": lambda rng, n: np.clip(rng.normal(0.05, 0.25, n), -1, 1),
    "narrow": lambda rng, n: rng.normal(0.02, 0.05, n),
    "thirds": lambda rng, n: rng.choice([-1 / 3, 0, 1 / 3, 1], n, p=[0.05, 0.8, 0.1, 0.05]),
    "rare loss": lambda rng, n: rng.choice([0.04, -0.76], n, p=[0.95, 0.05]),
}


@pytest.mark.parametrize("name", SAMPLES)
@pytest.mark.parametrize("n", [12, 57, 400])
@pytest.mark.parametrize("tail", [0.025, 0.05])
def test_the_table_agrees_with_the_bounded_mean_itself(name, n, tail):
    rng = np.random.default_rng(n)
    for _ in range(3):
        diff_N = SAMPLES[name](rng, n)
        mean, sd = diff_N.mean(), diff_N.std()
        exact, skew = BoundedMean(diff_N, 1.0), ((diff_N - mean) ** 3).mean() / max(sd, 1e-9) ** 3
        se_D = np.array([diff_N.std(ddof=1) / math.sqrt(n)])
        low = prospects._bounded(se_D, np.array([skew]), 1 + mean, n, tail)[0]
        high = prospects._bounded(se_D, np.array([-skew]), 1 - mean, n, tail)[0]
        assert low == pytest.approx(mean - exact.end(tail, -1), rel=0.04)
        assert high == pytest.approx(exact.end(tail, 1) - mean, rel=0.04)


def test_identical_differences_have_the_closed_form():
    found = prospects._bounded(np.zeros(1), None, 1.0, 57, 0.025)[0]
    assert found == pytest.approx(1 - 0.025 ** (1 / 57))


# ---------------------------------------------------------------- drawn against simulated, part by part


def share_of(won: int, reps: int) -> tuple[float, float]:
    return won / reps, 0.05 + 2 * math.sqrt(0.16 / reps)


@pytest.mark.theory
@pytest.mark.parametrize(
    ("seeds", "declared"),
    [((2, 2), {}), ((3, 3), {}), ((3, 5), {}), ((2, 0), {}), ((3, 0), {}), ((2, 4), {"equal_seed_spread": True})],
)
def test_graded_runs_are_told_apart_as_often_as_planned(seeds, declared):
    rng, n, reps = np.random.default_rng(3), 40, 300
    item, noise, seed = 0.006, 0.004, 1e-4
    arms = [s for s in seeds if s]
    whole = item + noise * len(arms)
    shared = {"seed_sd": math.sqrt(seed), "stable": item / whole, "item_variance": whole, "binary": False, "width": 2.0}
    design = Design(n, whole, *seeds, **shared, **declared)
    gap = power.detectable(design)
    won = 0
    for _ in range(reps):
        base_N, own_N = 0.1 * rng.normal(size=n) + 0.4, math.sqrt(item) * rng.normal(size=n) + gap
        tables = []
        for name, s, shift_N in (("a", seeds[0], own_N), ("b", seeds[1], 0.0)):
            score = np.tile(base_N + shift_N, (max(1, s), 1))
            if s:
                score = score + math.sqrt(noise) * rng.normal(size=(s, n)) + math.sqrt(seed) * rng.normal(size=(s, 1))
            runs, items = tuple(map(str, range(max(1, s)))), tuple(map(str, range(n)))
            tables.append(ScoreTable(name, "e", runs, items, score, missing=({},) * len(runs), fixed=s == 0))
        options = PairOptions(scale=(-0.5, 1.5), **declared)
        low, high = compare_tables(*tables, options).headline.spread.interval(0.95)
        won += low > 0 or high < 0
    found, allowed = share_of(won, reps)
    assert found == pytest.approx(0.8, abs=allowed)


@pytest.mark.theory
@pytest.mark.parametrize("sizes", [(20,) * 5, (40, *[10] * 6), (60, *[6] * 19)], ids=["cr1", "cr3", "cr1+flips"])
def test_families_are_told_apart_as_often_as_planned(sizes, request):
    n, variance, family_N = sum(sizes), 0.04, np.repeat(np.arange(len(sizes)), sizes)
    design = Design(n, 0.04, item_variance=variance, binary=False, family_sizes=sizes, design_effect=1.6, width=3.0)
    assert design.family_rule().method in request.node.name
    gap = power.detectable(design)
    alike = 0.6 / (sum(s**2 for s in sizes) / n - 1)
    rng, reps, won = np.random.default_rng(4), 300, 0
    names, items = tuple(map(str, family_N)), tuple(map(str, range(n)))
    for _ in range(reps):
        own_N = rng.normal(size=len(sizes))[family_N] * math.sqrt(alike) + rng.normal(size=n) * math.sqrt(1 - alike)
        base_N = 0.5 + 0.1 * rng.normal(size=n)
        a, b = (
            ScoreTable(name, "e", ("0",), items, score[None], family_N=names, missing=({},))
            for name, score in (("a", base_N + gap + math.sqrt(variance) * own_N), ("b", base_N))
        )
        low, high = compare_tables(a, b, PairOptions(scale=(-1.0, 2.0), draws=999)).headline.spread.interval(0.95)
        won += low > 0 or high < 0
    found, allowed = share_of(won, reps)
    assert found == pytest.approx(0.8, abs=allowed)


# ---------------------------------------------------------------- what a pilot leaves open, and what is never said


def test_the_seed_range_are_the_80_percent_limits_of_a_pooled_variance():
    """df 4, v pooled: v·4/χ²_.8 = v·4/5.989 and v·4/χ²_.2 = v·4/1.649, less the noise."""
    rng = np.random.default_rng(6)
    comparison = scores(rng, 3, 3, binary=False, families=False)
    design = power.design_from(comparison)
    arms = seeds.crossed(comparison.pair).arms
    pooled = np.mean([float(arm.seed_K_K[0, 0]) for arm in arms])
    noise = np.mean([float(arm.resid_K_K[0, 0]) for arm in arms])
    expected = [math.sqrt(max(0.0, pooled * 4 / quantile - noise)) for quantile in (5.9886, 1.6488)]
    assert design.seed_range == pytest.approx(expected, rel=1e-3)
    assert design.seed_range[0] <= design.seed_sd <= design.seed_range[1]


def test_no_number_of_items_is_said_only_where_the_lower_end_of_the_spread_proves_it():
    design = Design(200, 0.09, 3, 3, seed_sd=0.02, stable=0.55, seed_range=(0.008, 0.05), margin=0.05)
    items = power.items_range(design, 0.05)
    assert items.low is not None and items.high is None and not items.impossible
    text = " ".join(power.plan(design)[0].sentences)
    assert "not settled by this pilot" in text and "no number of items is enough with these" not in text
    wide = replace(design, seed_range=(0.04, 0.2))
    assert power.items_range(wide, 0.05) == Needed(None, None)
    assert power.chance(replace(wide, seed_sd=0.04), 0.05, items=10**9) < 0.8
    assert "no number of items is enough with these" in " ".join(power.plan(wide)[0].sentences)


def test_a_spread_of_0_is_never_taken_as_known():
    """README's example: 1,834 items were once said to be enough, since the spread of 0 cost nothing."""
    design = Design(1319, 0.07, 3, 3, margin=0.01, stable=0.0)
    assert power.chance(design, 0.01, items=1834) == pytest.approx(0.47, abs=0.02)
    assert power.items_needed(design, 0.01) == pytest.approx(4380, rel=0.02)
    assert power.items_needed(design, 0.01, equivalence=True) == pytest.approx(3620, rel=0.02)


@pytest.mark.parametrize(("sizes", "says"), [((40, 40, 40), "3 families"), ((100, *[2] * 10), "unequal size")])
def test_families_that_allow_no_interval_detect_nothing_and_say_why(sizes, says):
    design = Design(120, 0.05, family_sizes=sizes, design_effect=1.5, margin=0.1)
    (plan,) = power.plan(design)
    assert plan.detectable is None and plan.chance_at_margin == 0 and plan.can_say_equivalent is False
    assert says in plan.withheld and says in plan.sentences[0]


def test_five_equal_families_have_power():
    design = Design(100, 0.05, families=5, design_effect=1.5)
    assert power.chance(design, 0.15) > 0.9


def test_equivalence_needs_59_graded_items_even_of_identical_outputs():
    """1 − .05^(1/n) < .05 from n = 59 on; Tango's 1.645²/(n + 1.645²) < .05 from 52 on."""
    assert power.least_items_equal(0.05, binary=False) == 59
    assert power.least_items_equal(0.05) == 52
    assert power.least_items_equal(5.0, binary=False, width=100.0) == 59
    for n, can in ((58, False), (59, True)):
        design = Design(n, 0.01, binary=False, item_variance=1e-8, margin=0.05)
        assert power.plan(design)[0].can_say_equivalent is can
        same = ScoreTable("a", "e", ("0",), tuple(map(str, range(n))), np.full((1, n), 0.5), missing=({},))
        comparison = compare_tables(same, replace(same, condition="b"), PairOptions(scale=(0.0, 1.0)))
        assert power.can_show_equivalence(comparison, 0.05) is can
        assert (comparison.headline.spread.interval(0.9)[1] < 0.05) is can


# ---------------------------------------------------------------- a comparison is planned from by the same model


def scores(rng, seeds_a, seeds_b, *, binary, families, n=96):
    """Two arms; `seeds_b` 0 is a fixed baseline."""
    item = rng.normal(size=n)

    def arm(name, runs, gain):
        own = rng.normal(size=n) * 0.5 + (np.repeat(rng.normal(size=n // 4), 4) if families else 0)
        latent = item + own + gain + 0.3 * rng.normal(size=(max(1, runs), n)) + 0.1 * rng.normal(size=(max(1, runs), 1))
        score = (latent > -0.5) * 1.0 if binary else 1 / (1 + np.exp(-latent))
        family = tuple(str(i // 4) for i in range(n)) if families else None
        labels = tuple(map(str, range(max(1, runs))))
        items = tuple(map(str, range(n)))
        return ScoreTable(
            name, "e", labels, items, score, family_N=family, missing=({},) * len(labels), fixed=runs == 0
        )

    return compare_tables(arm("a", seeds_a, 0.2), arm("b", seeds_b, 0.0), PairOptions(scale=(0.0, 1.0)))


@pytest.mark.parametrize("families", [False, True])
@pytest.mark.parametrize("binary", [False, True])
@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(1, 1), (1, 0), (2, 0), (2, 2), (3, 3), (3, 1), (2, 5)])
def test_comparison_design_grid_and_plan_name_one_detectable_gap(seeds_a, seeds_b, binary, families):
    comparison = scores(
        np.random.default_rng(seeds_a * 10 + seeds_b), seeds_a, seeds_b, binary=binary, families=families
    )
    design = power.design_from(comparison)
    found = power.detectable_in(comparison)
    assert found == power.detectable(design) == power.plan(design)[0].detectable
    (row,) = power.detectable_grid(design, [design.items], [design.seeds_a])
    assert row["detectable"] == found
    if found is not None:
        settling = power.to_settle(comparison, [(1.2 * found, False)])
        assert settling.items.low is not None and settling.items.low <= design.items


@pytest.mark.parametrize("families", [False, True])
@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(1, 1), (2, 0), (2, 2), (3, 3), (4, 0)])
def test_the_implied_design_has_the_item_variance_of_the_comparison(seeds_a, seeds_b, families):
    comparison = scores(np.random.default_rng(4), seeds_a, seeds_b, binary=False, families=families)
    design = power.design_from(comparison)
    parts = power.parts(design)
    assert parts.item_variance(design.items) == pytest.approx(comparison.results["checkpoints"].se ** 2)
    if seeds_a == seeds_b == 3:
        assert parts.variance(design.items) == pytest.approx(comparison.headline.se**2)


@pytest.mark.parametrize("differing", [0, 1])
def test_runs_that_stray_more_than_items_last_leave_no_lasting_variance(differing):
    """Two runs a side that contradict each other on every item: seed-averaged, no item differs, or one by a half."""
    base_N = np.arange(40) % 2 * 1.0
    a, b = np.array([base_N, 1 - base_N]), np.array([base_N, 1 - base_N])
    a[0, :differing] = 1
    items = tuple(map(str, range(40)))
    tables = [ScoreTable(n, "e", ("0", "1"), items, x, missing=({}, {})) for n, x in (("a", a), ("b", b))]
    comparison = compare_tables(*tables, PairOptions(scale=(0.0, 1.0)))
    design = power.design_from(comparison)
    assert design.stable == pytest.approx(0)
    assert power.parts(design).difference() > 0
    assert power.to_settle(comparison, [(0.05, False), (0.05, True)]) is not None


def test_every_distance_has_to_be_settled():
    comparison = scores(np.random.default_rng(1), 3, 3, binary=True, families=False)
    near, far = (power.to_settle(comparison, [(d, False)]) for d in (0.2, 0.4))
    both = power.to_settle(comparison, [(0.4, False), (0.2, False)])
    assert both.items.low == max(near.items.low, far.items.low)
    assert power.to_settle(comparison, [(0.0, False)]) is None


@pytest.mark.parametrize(
    "broken",
    [
        {"items": 1},
        {"discordance": 0.0},
        {"discordance": 1.5},
        {"seeds_a": 0},
        {"seed_sd": -1.0},
        {"margin": 0.0},
        {"alpha": 0.0},
        {"power": 1.0},
        {"width": 0.0},
        {"stable": -0.1},
        {"stable": 1.1},
        {"design_effect": 2.0},
        {"family_sizes": (10, 20)},
        {"seeds_a": 2, "seeds_b": 3, "shared_seeds": True},
    ],
)
def test_an_impossible_design_is_refused(broken):
    with pytest.raises(ScoreError):
        Design(**{"items": 100, "discordance": 0.1, **broken})


def test_flipped_ends_are_those_of_the_family_flips_and_widen_what_t_gives():
    size_G = np.array([40.0, 10, 10, 10, 10, 10, 10, 10])
    sum_D_G = np.random.default_rng(0).normal(size=(5, 8)) * size_G
    low_D, high_D = prospects._flipped_ends(sum_D_G, size_G, 0.025)
    for d, sum_G in enumerate(sum_D_G):
        exact = sign_flips(sum_G, size_G.astype(int))
        assert (low_D[d], high_D[d]) == pytest.approx((exact.end(0.025, -1), exact.end(0.025, 1)))
    parts = prospects.Parts(0.04, (0.0, 0.0), 0.0, (1, 1), pattern=prospects.Families(tuple(size_G)), items=110)
    drawn = prospects._few_families(parts, parts.pattern, 0.025, 110.0)
    assert float((drawn.low_D > drawn.se_D * stats.t.ppf(0.975, 7) * (1 + 1e-9)).mean()) > 0.1
