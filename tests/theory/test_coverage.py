"""Coverage and error rates of every interval and test that `decide` offers, against theory.

Binary one-seed methods are enumerated exactly; the others are simulated with a fixed seed and judged within binomial
error. `python tests/theory/test_coverage.py` prints the tables that docs/statistics.md shows.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable

import numpy as np
import pytest
from scipy import stats

from veritune.decide.claims import ClaimSpec, Context, judge
from veritune.stats import intervals, multiplicity, paired, power, rule, seeds
from veritune.stats.table import Pair, ScoreTable

ONE = np.ones(1)


def pair_of(a, b, family_N=None, *, fixed_b=False, zone_N=None, scale=(0.0, 1.0)) -> Pair:
    """A pair from score arrays, S × N each."""
    items = tuple(map(str, range(a.shape[1])))

    def table(name, score, fixed=False):
        runs = tuple(map(str, range(len(score))))
        return ScoreTable(name, "eval", runs, items, score, zone_N=zone_N, fixed=fixed, missing=({},) * len(score))

    return Pair(table("a", a), table("b", b, fixed_b), a, b, family_N, scale)


def within(rate: float, nominal: float, reps: int, *, sigmas: float = 3.5) -> bool:
    """True when a simulated rate agrees with its nominal value within binomial error."""
    return abs(rate - nominal) <= sigmas * math.sqrt(nominal * (1 - nominal) / reps)


def at_most(rate: float, nominal: float, reps: int, *, sigmas: float = 3.5) -> bool:
    """True when a simulated rate does not exceed its nominal value beyond binomial error."""
    return rate <= nominal + sigmas * math.sqrt(nominal * (1 - nominal) / reps)


# ---------------------------------------------------------------- binary, one seed: exact enumeration


def outcomes(n: int, psi: float, gap: float) -> Iterable[tuple[int, int, float]]:
    """(n10, n01, probability) of all outcomes that matter, for n pairs with discordance ψ and the given gap."""
    p10, p01 = (psi + gap) / 2, (psi - gap) / 2
    for n10 in range(n + 1):
        rest = stats.binom.pmf(n10, n, p10)
        if rest < 1e-9:
            continue
        share = p01 / (1 - p10)
        for n01 in range(n - n10 + 1):
            probability = rest * stats.binom.pmf(n01, n - n10, share)
            if probability > 1e-8:
                yield n10, n01, probability


def binary_coverage(n: int, psi: float, gap: float) -> dict[str, float]:
    """Exact coverage of the 95 % Tango and Wald intervals."""
    tango = wald = 0.0
    for n10, n01, probability in outcomes(n, psi, gap):
        low, high = intervals.tango_interval(n10, n01, n)
        tango += probability * (low <= gap <= high)
        estimate, half = (n10 - n01) / n, 1.96 * math.sqrt(n10 + n01 - (n10 - n01) ** 2 / n) / n
        wald += probability * (abs(estimate - gap) <= half)
    return {"tango": tango, "wald": wald}


BINARY_GRID = [(n, psi, gap) for n in (30, 57, 200) for psi in (0.07, 0.3) for gap in (0.0, 0.05)]


@pytest.mark.parametrize(("n", "psi", "gap"), BINARY_GRID)
def test_tango_covers_at_least_93_percent_at_every_cell(n, psi, gap):
    assert 0.93 <= binary_coverage(n, psi, gap)["tango"] <= 0.999


def test_tango_covers_where_wald_does_not():
    found = binary_coverage(57, 0.07, 0.05)
    assert round(found["tango"], 3) == 0.952
    assert round(found["wald"], 3) == 0.909


@pytest.mark.parametrize(("n", "psi"), [(30, 0.2), (57, 0.07), (100, 0.1), (200, 0.3)])
def test_midp_and_exact_mcnemar_keep_their_level(n, psi):
    midp = exact = 0.0
    for n10, n01, probability in outcomes(n, psi, 0.0):
        midp += probability * (intervals.mcnemar_midp(n10, n01) <= 0.05)
        exact += probability * (intervals.mcnemar_exact(n10, n01) <= 0.05)
    assert exact <= midp <= 0.0515
    assert exact <= 0.05


def decision_rates(n: int, psi: float, gap: float, margin: float) -> dict[str, float]:
    """Exact probability of each word of the three-sided decision."""
    out: dict[str, float] = {}
    for n10, n01, probability in outcomes(n, psi, gap):
        wide, narrow = (intervals.tango_interval(n10, n01, n, level) for level in (0.95, 0.90))
        word = rule._word(wide, narrow, intervals.mcnemar_midp(n10, n01), margin, 0.05)[0]
        out[word] = out.get(word, 0.0) + probability
    return out


@pytest.mark.parametrize(("n", "psi", "margin"), [(200, 0.2, 0.1), (400, 0.1, 0.05)])
def test_the_decision_errs_at_most_at_its_level_on_the_edge_of_the_margin(n, psi, margin):
    on_edge = decision_rates(n, psi, margin, margin)
    assert on_edge.get("better by the margin", 0) <= 0.03
    assert on_edge.get("equivalent", 0) <= 0.055
    null = decision_rates(n, psi, 0.0, margin)
    wins = sum(p for word, p in null.items() if word.startswith(("better", "worse")))
    assert wins <= 0.0515


# ---------------------------------------------------------------- graded scores, one seed


def graded_rate(n: int, draw: Callable[[np.random.Generator, int], np.ndarray], reps: int, seed: int = 1) -> float:
    """Share of simulated 95 % intervals that miss a true mean difference of 0."""
    rng = np.random.default_rng(seed)
    options = paired.Options(draws=1999)
    missed = 0
    for _ in range(reps):
        d = draw(rng, n)
        result = paired._checkpoints(p := pair_of(d[None], np.zeros((1, n)), scale=(-9, 9)), seeds.crossed(p), options)
        low, high = result.spread.interval(0.95)
        missed += not low <= 0 <= high
    return missed / reps


GRADED = {
    "normal": lambda rng, n: rng.normal(size=n),
    "Likert difference": lambda rng, n: rng.integers(1, 6, n).astype(float) - rng.integers(1, 6, n),
    "heavy tails": lambda rng, n: rng.standard_t(3, size=n),
}


@pytest.mark.parametrize("kind", GRADED)
@pytest.mark.parametrize(("n", "reps"), [(12, 400), (60, 400), (250, 2000)])
def test_graded_intervals_miss_at_most_at_their_level(n, reps, kind):
    assert at_most(graded_rate(n, GRADED[kind], reps), 0.05, reps)


# ---------------------------------------------------------------- seeds × items


def seed_rates(
    arms: int, n_seeds: int, seed_sd: float, *, n: int = 1319, reps: int = 800, family: int = 0
) -> dict[str, float]:
    """False positive rates at 5 % for binary scores with a run-level shift of `seed_sd` in the rate; true gap 0.

    One arm: A has `n_seeds` runs against a fixed baseline of one deterministic run. With `family` > 0, items come in
    families of that size that share their difficulty and their reaction to the arm.
    """
    rng = np.random.default_rng(2)
    family_N = np.arange(n) // family if family else None
    missed = dict.fromkeys(("crossed", "item t", "seeds Welch"), 0)
    for _ in range(reps):
        item_N = rng.normal(size=n)
        a, b = (_run_scores(rng, item_N, k, seed_sd, family_N) for k in (n_seeds, n_seeds if arms == 2 else 0))
        matched = pair_of(a, b, family_N, fixed_b=arms == 1)
        parts = seeds.crossed(matched)
        gap = float(parts.gap_K[0])
        missed["crossed"] += seeds.new_items_and_seeds(parts, ONE).spread(gap).p() <= 0.05
        missed["item t"] += stats.ttest_1samp(matched.diff_N, 0).pvalue <= 0.05
        if arms == 2:
            missed["seeds Welch"] += _welch_p(a.mean(axis=1), b.mean(axis=1)) <= 0.05
    return {name: count / reps for name, count in missed.items()}


def _welch_p(x, y):
    """Two-sided Welch p; 1 when neither side varies."""
    u, v = x.var(ddof=1) / len(x), y.var(ddof=1) / len(y)
    if u + v == 0:
        return 1.0
    df = (u + v) ** 2 / (u**2 / (len(x) - 1) + v**2 / (len(y) - 1))
    return 2 * stats.t.sf(abs(x.mean() - y.mean()) / math.sqrt(u + v), df)


def _run_scores(rng, item_N, n_seeds, seed_sd, family_N):
    """Right or wrong from a latent normal: item difficulty, arm × item, run shift, run × item. `n_seeds` 0: one fixed
    run. The density of the latent at its threshold turns `seed_sd` (a rate) into a latent shift."""
    n, runs = len(item_N), max(1, n_seeds)
    own_N = rng.normal(size=n)
    if family_N is not None:
        groups = family_N.max() + 1
        item_N = 0.6 * item_N + 0.8 * rng.normal(size=groups)[family_N]
        own_N = 0.5 * own_N + 0.87 * rng.normal(size=groups)[family_N]
    noise_S_N = rng.normal(size=(runs, n))
    latent_S_N = math.sqrt(0.9) * item_N + math.sqrt(0.06) * own_N + math.sqrt(0.04) * noise_S_N
    shift_S = rng.normal(size=runs) * (seed_sd / stats.norm.pdf(1.2)) if n_seeds else np.zeros(1)
    return (latent_S_N + shift_S[:, None] > -1.2).astype(np.float64)


SEED_GRID = [(arms, k, sd) for arms in (1, 2) for k in (2, 3, 5) for sd in (0.0, 0.005, 0.015)]


@pytest.mark.parametrize(("arms", "n_seeds", "seed_sd"), SEED_GRID)
def test_the_recipe_errs_at_most_at_its_level(arms, n_seeds, seed_sd):
    assert at_most(seed_rates(arms, n_seeds, seed_sd, reps=400)["crossed"], 0.055, 400)


def test_the_recipe_holds_where_simpler_methods_fail():
    rates = seed_rates(2, 3, 0.015, reps=500)
    assert at_most(rates["crossed"], 0.05, 500)
    assert rates["item t"] > 0.2
    # Without seed spread the items alone drive the seed means apart: seeds-only Welch mistakes them for the recipe.
    assert seed_rates(2, 5, 0.0, reps=500)["seeds Welch"] > 0.15


def component_rates(arms: int, n_seeds: int, ratio: float, reps: int = 4000) -> dict[str, float]:
    """False positives of Satterthwaite's t and of the method in use when the mean squares are drawn directly.

    `ratio` is the seed variance of one run over the item variance of the mean; a run's noise is 0.3 of the latter.
    """
    rng = np.random.default_rng(3)
    noise, n = 0.3, 1319
    missed = {"Satterthwaite": 0, "in use": 0}
    for _ in range(reps):
        item = np.array([[rng.chisquare(n - 1) / (n - 1)]])
        spread = (ratio + noise) * rng.chisquare(n_seeds - 1, arms) / (n_seeds - 1)
        resid = np.array([[noise]])
        drawn = tuple(seeds.Arm(n_seeds, np.zeros((n_seeds, 1)), np.array([[x]]), resid, resid) for x in spread)
        parts = seeds.Crossed(np.zeros(1), np.array([n]), np.array([n]), item, item, drawn, clustered=False)
        variance = seeds.new_items_and_seeds(parts, ONE)
        gap = abs(rng.normal()) * math.sqrt(1 + arms * ratio / n_seeds)
        missed["in use"] += gap > variance.spread(0.0).interval(0.95)[1]
        plain = float(item[0, 0] + max(0.0, (spread.sum() - arms * noise) / n_seeds))
        df = n - 1.0
        if plain > item[0, 0]:
            df = max(1.0, plain**2 / (item[0, 0] ** 2 / df + ((spread / n_seeds) ** 2).sum() / (n_seeds - 1)))
        missed["Satterthwaite"] += gap > intervals.Student(0.0, math.sqrt(plain), df).interval(0.95)[1]
    return {name: count / reps for name, count in missed.items()}


COMPONENT_GRID = [(arms, k, r) for arms in (1, 2) for k in (2, 3, 5) for r in (0.0, 1.0, 10.0)]


@pytest.mark.parametrize(("arms", "n_seeds", "ratio"), COMPONENT_GRID)
def test_the_seed_rule_keeps_its_level_when_mean_squares_are_ideal(arms, n_seeds, ratio):
    assert at_most(component_rates(arms, n_seeds, ratio)["in use"], 0.05, 4000, sigmas=3.0)


def test_satterthwaite_alone_would_err_against_a_fixed_arm():
    assert component_rates(1, 2, 10.0)["Satterthwaite"] > 0.1
    assert component_rates(1, 3, 10.0)["Satterthwaite"] > 0.065


# ---------------------------------------------------------------- families


def family_rates(families: int, size: int, *, reps: int = 1500, uneven: bool = False) -> dict[str, float]:
    """False positives of the cluster-robust and the naive interval, graded, with shared family effects."""
    rng = np.random.default_rng(4)
    missed = {"cluster": 0, "naive": 0, "sign flip": 0}
    options = paired.Options(draws=999)
    for _ in range(reps):
        sizes = rng.integers(1, 2 * size, families) if uneven else np.full(families, size)
        family_N = np.repeat(np.arange(families), sizes)
        d = rng.normal(size=families)[family_N] + rng.normal(size=len(family_N))
        matched = pair_of(d[None], np.zeros((1, len(d))), family_N, scale=(-9, 9))
        variance = seeds.new_items(seeds.crossed(matched), ONE)
        missed["cluster"] += variance.spread(float(d.mean())).p() <= 0.05
        missed["naive"] += stats.ttest_1samp(d, 0).pvalue <= 0.05
        if families <= 12:
            missed["sign flip"] += paired.family_flips(d, family_N, options).p() <= 0.05
    return {name: count / reps for name, count in missed.items()}


@pytest.mark.parametrize("families", [8, 20, 60])
def test_cluster_robust_intervals_keep_their_level_and_naive_ones_do_not(families):
    rates = family_rates(families, 5, reps=1500)
    assert at_most(rates["cluster"], 0.05, 1500)
    assert rates["naive"] > 0.15


def test_family_sign_flips_keep_their_level_with_few_uneven_families():
    assert at_most(family_rates(8, 4, reps=800, uneven=True)["sign flip"], 0.05, 800)


@pytest.mark.parametrize(("arms", "seed_sd"), [(1, 0.01), (2, 0.0), (2, 0.015)])
def test_the_recipe_with_families_errs_at_most_at_its_level(arms, seed_sd):
    rates = seed_rates(arms, 3, seed_sd, n=600, family=6, reps=500)
    assert at_most(rates["crossed"], 0.055, 500)


# ---------------------------------------------------------------- generalises


def share_coverage(share: float, *, n: int = 150, n_seeds: int = 3, reps: int = 400, family: int = 0) -> float:
    """Share of simulated 95 % intervals that miss the true share, where the interval is bounded."""
    from veritune.decide.claims import _carried

    rng = np.random.default_rng(5)
    zone_N = np.repeat([0, 1], n)
    family_N = np.concatenate([np.arange(n) // family] * 2) if family else None
    gain_N = np.where(zone_N == 0, share * 0.3, 0.3)
    missed = bounded = 0
    for _ in range(reps):
        item_N = rng.normal(size=2 * n) * 0.3
        if family_N is not None:
            item_N = item_N + (rng.normal(size=family_N.max() + 1) * 0.2)[family_N]
        shift = rng.normal(size=(n_seeds, 1)) * 0.01
        a = gain_N + item_N + shift + rng.normal(size=(n_seeds, 2 * n)) * 0.2
        b = np.zeros((1, 2 * n))
        carried = _carried(pair_of(a, b, family_N, fixed_b=True, scale=(-9, 9)), zone_N)
        low, high = carried.interval(0.95)
        bounded += math.isfinite(low) and math.isfinite(high)
        missed += not low <= share <= high
    assert bounded > 0.99 * reps
    return missed / reps


@pytest.mark.parametrize(("share", "family"), [(0.0, 0), (0.5, 0), (1.0, 0), (0.5, 5)])
def test_the_share_interval_misses_at_most_at_its_level(share, family):
    assert at_most(share_coverage(share, family=family), 0.05, 400)


# ---------------------------------------------------------------- planning


def test_connor_items_give_the_promised_power():
    for gap, psi in ((0.1, 0.3), (0.08, 0.15)):
        n = power.mcnemar_n(gap, psi)
        found = sum(p for n10, n01, p in outcomes(n, psi, gap) if intervals.mcnemar_midp(n10, n01) <= 0.05)
        assert 0.78 <= found <= 0.83


def test_tost_items_give_the_promised_power():
    psi, margin = 0.1, 0.06
    n = power.tost_n(margin, psi)
    assert 0.76 <= decision_rates(n, psi, 0.0, margin)["equivalent"] <= 0.84


@pytest.mark.parametrize("df", [3.0, 20.0, math.inf])
def test_the_detectable_gap_is_detected_80_percent_of_the_time(df):
    gap = power.detectable_gap(0.01, df)
    rng = np.random.default_rng(6)
    se = 0.01 * (np.sqrt(rng.chisquare(df, 40_000) / df) if math.isfinite(df) else 1.0)
    t = (gap + 0.01 * rng.normal(size=40_000)) / se
    critical = stats.t.ppf(0.975, df) if math.isfinite(df) else stats.norm.ppf(0.975)
    assert within(float((np.abs(t) > critical).mean()), 0.8, 40_000)


def crossed_power(seeds_a: int, seeds_b: int, *, families: int = 16, reps: int = 1500, n: int = 48) -> dict[str, float]:
    """How often the recipe's interval excludes 0 at the gap that the plan calls detectable, and at 1.5 times it.

    Graded scores with family effects, item-by-seed noise and a spread between seeds. `seeds_b` 0: a fixed arm.
    """
    rng = np.random.default_rng(9)
    family_N = np.arange(n) * families // n
    arms = tuple(s for s in (seeds_a, seeds_b) if s)
    family_sd, item_sd, noise_sd, seed_sd = 0.05, 0.06, 0.06, 0.01
    item_variance = family_sd**2 * n / families + item_sd**2 + noise_sd**2 * len(arms)
    stable = 1 - noise_sd**2 * len(arms) / item_variance
    design = power.Design(
        n, 0.01, seeds_a, seeds_b, seed_sd, stable, 1.5, families, binary=False, item_variance=item_variance
    )
    gap = power.detectable(design)
    assert gap is not None
    hits = dict.fromkeys((1.0, 1.5), 0)
    for _ in range(reps):
        base_N = rng.normal(size=n) * 0.2
        own_N = rng.normal(size=families)[family_N] * family_sd + rng.normal(size=n) * item_sd
        a, b = (
            base_N + rng.normal(size=(s, n)) * noise_sd + rng.normal(size=(s, 1)) * seed_sd if s else base_N[None]
            for s in (seeds_a, seeds_b)
        )
        for factor in hits:
            matched = pair_of(a + own_N + factor * gap, b, family_N, fixed_b=not seeds_b, scale=(-9, 9))
            low, high = paired._recipe(matched, seeds.crossed(matched)).spread.interval(0.95)
            hits[factor] += low > 0 or high < 0
    return {f"{factor:g} × detectable": count / reps for factor, count in hits.items()}


POWER_GRID = [(2, 2), (2, 0), (3, 0), (3, 3), (5, 5)]


@pytest.mark.parametrize(("seeds_a", "seeds_b"), POWER_GRID)
def test_the_planned_gap_is_found_four_times_in_five(seeds_a, seeds_b):
    """Not above 80 % by more than the larger of two variances costs, and never far below it."""
    found = crossed_power(seeds_a, seeds_b, reps=800)["1 × detectable"]
    assert 0.75 <= found <= 0.84


# ---------------------------------------------------------------- many claims


def test_holm_holds_the_familywise_rate_and_bh_the_false_discovery_rate():
    rng = np.random.default_rng(7)
    wrong = false_share = 0.0
    reps, k, true_nulls = 3000, 10, 5
    for _ in range(reps):
        z = rng.normal(size=k) + np.where(np.arange(k) < true_nulls, 0.0, 3.0) + 0.0
        p = 2 * stats.norm.sf(np.abs(z))
        wrong += any(x <= 0.05 for x in multiplicity.holm(list(p))[:true_nulls])
        found = [x <= 0.05 for x in multiplicity.benjamini_hochberg(list(p))]
        false_share += sum(found[:true_nulls]) / max(1, sum(found))
    assert at_most(wrong / reps, 0.05, reps)
    assert at_most(false_share / reps, 0.05, reps)


def test_claims_without_an_effect_are_settled_at_most_at_alpha_together():
    rng = np.random.default_rng(8)
    kinds = [("up", "improves", None), ("by", "better_by", 0.05), ("eq", "equivalent", 0.04)]
    wrong, reps, n = 0, 300, 200
    for _ in range(reps):
        tables = {}
        for name, gap in (("up", 0.0), ("by", 0.05), ("eq", 0.04)):
            u = rng.random(n)
            a, b = (u < 0.1 + gap / 2).astype(float), ((u >= 0.1 + gap / 2) & (u < 0.2)).astype(float)
            items = tuple(map(str, range(n)))
            for condition, score in ((name, a), ("baseline", b)):
                table = ScoreTable(condition, name, ("0",), items, score[None], missing=({},), fixed=condition != name)
                tables[condition, name] = table
        claims = [ClaimSpec(n_, k, condition=n_, eval=n_, margin=m) for n_, k, m in kinds]  # type: ignore[arg-type]
        verdicts = judge(claims, tables, Context())
        wrong += any(v.status == "supported" for v in verdicts)
    assert at_most(wrong / reps, 0.05, reps)


# ---------------------------------------------------------------- the tables of docs/statistics.md


def _table(title: str, header: list[str], rows: Iterable[list[object]]) -> None:
    print(f"\n{title}\n\n| {' | '.join(header)} |\n|{' --- |' * len(header)}")
    for row in rows:
        print("| " + " | ".join(f"{x:.3f}" if isinstance(x, float) else str(x) for x in row) + " |")


def main() -> None:
    """Print every table."""
    cells = [(n, psi, gap, binary_coverage(n, psi, gap)) for n, psi, gap in BINARY_GRID]
    _table(
        "Coverage of 95 % intervals, binary, exact",
        ["n", "ψ", "gap", "Tango", "Wald"],
        ([n, f"{psi:g}", f"{gap:g}", c["tango"], c["wald"]] for n, psi, gap, c in cells),
    )
    _table(
        "Misses of 95 % intervals, graded, 2,000 runs",
        ["differences", "n", "method", "misses"],
        (
            [kind, n, "paired t" if n >= paired.T_FROM_N else "sign flips", graded_rate(n, draw, 2000)]
            for kind, draw in GRADED.items()
            for n in (12, 60, 250)
        ),
    )
    _table(
        "False positives at 5 %, seeds × items, n = 1319, 2,000 runs",
        ["replicated arms", "seeds", "seed SD", "crossed", "item t", "seeds-only Welch"],
        (
            [arms, k, f"{sd:g}", r["crossed"], r["item t"], r["seeds Welch"] if arms == 2 else "–"]
            for arms, k, sd in SEED_GRID
            for r in [seed_rates(arms, k, sd, reps=2000)]
        ),
    )
    _table(
        "False positives at 5 %, ideal mean squares, 20,000 runs",
        ["replicated arms", "seeds", "seed/item variance", "Satterthwaite", "in use"],
        ([a, k, f"{r:g}", *component_rates(a, k, r, 20_000).values()] for a, k, r in COMPONENT_GRID),
    )
    _table(
        "False positives at 5 %, families of 5, intra-class correlation ½, 1,500 runs",
        ["families", "cluster-robust", "naive t"],
        ([g, r["cluster"], r["naive"]] for g in (8, 20, 60) for r in [family_rates(g, 5)]),
    )
    _table(
        "False positives at 5 %, families of 6 × 3 seeds, n = 600, 2,000 runs",
        ["replicated arms", "seed SD", "crossed", "item t"],
        (
            [arms, f"{sd:g}", r["crossed"], r["item t"]]
            for arms in (1, 2)
            for sd in (0.0, 0.01)
            for r in [seed_rates(arms, 3, sd, n=600, family=6, reps=2000)]
        ),
    )
    _table(
        "Misses of the 95 % interval of the share carried over, 2,000 runs",
        ["true share", "families of", "misses"],
        (
            [f"{s:g}", f or "–", share_coverage(s, family=f, reps=2000)]
            for s, f in ((0.0, 0), (0.5, 0), (1.0, 0), (0.5, 5))
        ),
    )
    _table(
        "How often the gap that the plan calls detectable is found, 48 items in 16 families, 4,000 runs",
        ["seeds", "at that gap", "at 1.5 times it"],
        ([f"{a} against {b or 'a baseline'}", *crossed_power(a, b, reps=4000).values()] for a, b in POWER_GRID),
    )


if __name__ == "__main__":
    main()
