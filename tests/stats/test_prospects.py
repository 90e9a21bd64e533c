"""One planning model: the detectable gap, the items and the seeds that settle a distance cannot disagree."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from veritune.stats import power, prospects
from veritune.stats.paired import compare_tables
from veritune.stats.power import Design
from veritune.stats.table import ScoreTable

DESIGNS = {
    "one run a side, binary": Design(400, 0.1),
    "one run a side, graded": Design(300, 0.05, binary=False, item_variance=0.05, stable=1.0),
    "one run a side, families": Design(300, 0.1, design_effect=1.8, families=60),
    "two seeds": Design(48, 0.011, 2, 2, seed_sd=0.009, stable=0.5, families=16, design_effect=1.6),
    "two seeds against a baseline": Design(48, 0.02, 2, 0, seed_sd=0.012, stable=0.8, families=16),
    "three seeds": Design(600, 0.08, 3, 3, seed_sd=0.004, stable=0.5),
    "three seeds far apart": Design(200, 0.09, 3, 3, seed_sd=0.0141, stable=0.55),
    "three seeds against a baseline": Design(600, 0.08, 3, 0, seed_sd=0.004, stable=0.5),
    "two against five": Design(600, 0.08, 2, 5, seed_sd=0.004, stable=0.2, families=100, design_effect=2.0),
    "seeds without a spread of their own": Design(600, 0.08, 3, 3, stable=0.5),
}


@pytest.fixture(params=DESIGNS)
def design(request) -> Design:
    return DESIGNS[request.param]


@pytest.mark.parametrize("equivalence", [False, True])
@pytest.mark.parametrize("factor", [0.6, 0.9, 1.0, 1.3])
def test_needed_items_are_the_least_at_which_the_distance_is_detectable(design, factor, equivalence):
    distance = factor * power.detectable(design, equivalence=equivalence)
    n = power.items_needed(design, distance, equivalence=equivalence)
    if n is None:
        assert power.detectable(design, items=10**9, equivalence=equivalence) > distance
        return
    assert power.detectable(design, items=n, equivalence=equivalence) <= distance * (1 + 1e-7)
    fewer = power.detectable(design, items=n - 1, equivalence=equivalence)
    assert fewer is None or fewer > distance * (1 - 1e-7)


def test_the_items_a_design_has_settle_what_it_detects(design):
    assert power.items_needed(design, power.detectable(design) * (1 + 1e-6)) <= design.items


@pytest.mark.parametrize("equivalence", [False, True])
def test_more_items_never_detect_less(design, equivalence):
    found = [power.detectable(design, items=n, equivalence=equivalence) for n in (30, 60, 120, 500, 2000, 10**4, 10**6)]
    values = np.array([np.inf if x is None else x for x in found])
    assert np.all(np.diff(values) <= 1e-6 * values[1:])


def test_needed_seeds_are_the_least_that_detect_the_distance():
    design = DESIGNS["two seeds"]
    distance = 0.6 * power.detectable(design)
    s = power.seeds_needed(design, distance)
    assert s > 2
    assert power.detectable(replace(design, seeds_a=s, seeds_b=s)) <= distance
    assert power.detectable(replace(design, seeds_a=s - 1, seeds_b=s - 1)) > distance
    assert power.seeds_needed(DESIGNS["one run a side, binary"], 0.01) is None


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

    return compare_tables(arm("a", seeds_a, 0.2), arm("b", seeds_b, 0.0))


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
    for factor in (0.5, 0.8, 1.2):
        n = power.items_to_settle(comparison, factor * found)
        assert n is None or (n <= design.items) == (factor >= 1)


@pytest.mark.parametrize("families", [False, True])
@pytest.mark.parametrize(("seeds_a", "seeds_b"), [(1, 1), (2, 0), (2, 2), (3, 3), (4, 0)])
def test_the_implied_design_has_the_item_variance_of_the_comparison(seeds_a, seeds_b, families):
    comparison = scores(np.random.default_rng(4), seeds_a, seeds_b, binary=False, families=families)
    design = power.design_from(comparison)
    parts = power._parts(design)
    assert parts.item_variance(design.items) == pytest.approx(comparison.results["checkpoints"].se ** 2)
    if seeds_a == seeds_b == 3:
        assert parts.variance(design.items) == pytest.approx(comparison.headline.se**2)


def test_graded_scores_on_a_wide_scale_keep_their_variance():
    """A variance above 1 was once cut to 1, which promised gaps that the design could not see."""
    rng = np.random.default_rng(0)
    items, one, two = tuple(map(str, range(300))), *rng.normal(size=(2, 1, 300)) * 20
    a, b = (ScoreTable(x, "e", ("0",), items, y, missing=({},)) for x, y in (("a", one), ("b", two)))
    comparison = compare_tables(a, b)
    assert power.detectable_in(comparison) == pytest.approx(power.detectable_gap(comparison.headline.se, 299), rel=1e-4)


def test_so_few_families_that_no_test_can_win_detect_nothing():
    design = Design(100, 0.05, families=5, design_effect=1.5)
    assert power.detectable(design) is None
    assert power.detectable(replace(design, families=6)) > 0
    assert power.items_needed(design, 0.2) > 100
    assert "no gap can ever" in power.plan(design)[0].sentences[0]


# ---------------------------------------------------------------- the quadrature


def test_without_seeds_the_chance_is_that_of_the_noncentral_t():
    parts = prospects.Parts(0.06, 0.0, 0.0, (1, 1), spread=False)
    for df in (7.0, 40.0, 1318.0):
        found = prospects.halves(parts, 100, df, 0.95).least("excludes_zero", 0.8)
        assert found == pytest.approx(power.detectable_gap(parts.item_variance(100) ** 0.5, df), rel=1e-4)


@pytest.mark.parametrize("seeds", [(2,), (3,), (2, 2), (3, 3), (2, 4), (5, 5)])
@pytest.mark.parametrize("seed", [0.0, 2e-4, 5e-3])
def test_the_quadrature_agrees_with_drawn_mean_squares(seeds, seed):
    """The same chance by drawing mean squares and handing them to `seeds.new_items_and_seeds` itself."""
    from veritune.stats import seeds as crossed

    n, units, reps, rng = 60, 20, 4000, np.random.default_rng(1)
    parts = prospects.Parts(0.05, 0.02, seed, seeds, spread=True)
    gap = prospects.halves(parts, n, units - 1.0, 0.95).least("excludes_zero", 0.8)
    hits = 0
    for _ in range(reps):
        item = np.array([[parts.item_variance(n) * rng.chisquare(units - 1) / (units - 1)]])
        noise = np.array([[parts.noise / n]])
        arms = tuple(
            crossed.Arm(
                s,
                np.zeros((s, 1)),
                np.array([[(seed + parts.noise / n) * rng.chisquare(s - 1) / (s - 1)]]),
                noise,
                noise,
            )
            for s in seeds
        )
        made = crossed.Crossed(np.zeros(1), np.array([n]), np.array([units]), item, item, arms, clustered=True)
        center = gap + parts.variance(n) ** 0.5 * rng.normal()
        low, high = crossed.new_items_and_seeds(made, np.ones(1)).spread(center).interval(0.95)
        hits += low > 0 or high < 0
    assert hits / reps == pytest.approx(0.8, abs=0.025)
