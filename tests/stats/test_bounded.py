"""The Learned-Miller & Thomas interval: closed forms, draws of its own definition, and what it may never do."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import stats

from veritune.stats import bounded
from veritune.stats.bounded import BoundedMean, combination_below

SHAPES = {
    "normal": lambda rng, n: np.clip(rng.normal(0.05, 0.25, n), -1, 1),
    "rare loss": lambda rng, n: np.where(rng.random(n) < 0.05, -0.76, 0.04),
    "ties": lambda rng, n: rng.choice([0.0, 0.2, -0.4], n, p=[0.8, 0.15, 0.05]),
}


@pytest.mark.parametrize("n", [1, 2, 8, 12, 57, 400])
@pytest.mark.parametrize("alpha", [0.05, 0.025, 0.0005])
def test_identical_pairs_read_the_closed_form(n, alpha):
    spread = BoundedMean(np.zeros(n), 1.0)
    assert spread.end(alpha, 1) == pytest.approx(1 - alpha ** (1 / n), abs=1e-8)
    assert spread.end(alpha, -1) == pytest.approx(-spread.end(alpha, 1), abs=1e-8)


def test_identical_outputs_are_equivalent_at_5_percent_from_59_items_on():
    assert BoundedMean(np.zeros(58), 1.0).end(0.05, 1) > 0.05 > BoundedMean(np.zeros(59), 1.0).end(0.05, 1)


@pytest.mark.parametrize("kind", SHAPES)
@pytest.mark.parametrize("n", [3, 20, 150])
def test_ends_are_the_quantiles_of_dirichlet_means_with_one_unseen_item(kind, n):
    rng = np.random.default_rng(n)
    diff_N = SHAPES[kind](rng, n)
    weight_R_N = rng.dirichlet(np.ones(n + 1), 100_000)
    spread = BoundedMean(diff_N, 1.0)
    for alpha in (0.025, 0.2):
        low = np.quantile(weight_R_N @ np.append(diff_N, -1.0), alpha)
        high = np.quantile(weight_R_N @ np.append(diff_N, 1.0), 1 - alpha)
        # Six standard errors of a drawn quantile, by the density around it.
        error = 6 * np.sqrt(alpha / 100_000) / (alpha / (diff_N.mean() - low))
        assert spread.end(alpha, -1) == pytest.approx(low, abs=error)
        assert spread.end(alpha, 1) == pytest.approx(high, abs=error)


def test_two_gammas_against_the_beta_distribution():
    # P(a·G1 − b·G2 ≤ 0) = P(G1/(G1 + G2) ≤ b/(a + b)) with a Beta(k1, k2) share.
    for a, b, k1, k2 in ((1.0, 2.0, 3.0, 1.0), (0.3, 0.1, 0.5, 2.5), (1.0, 1.0, 20.0, 1.0)):
        expected = stats.beta(k1, k2).cdf(b / (a + b))
        assert combination_below(np.array([a, -b]), np.array([k1, k2])) == pytest.approx(expected, abs=1e-9)
    assert combination_below(np.array([1.0, 2.0]), np.ones(2)) == 0.0
    assert combination_below(np.array([-1.0]), np.ones(1)) == 1.0


@pytest.mark.parametrize("kind", SHAPES)
def test_the_tail_is_the_alpha_whose_end_it_is(kind):
    spread = BoundedMean(SHAPES[kind](np.random.default_rng(1), 57), 1.0)
    for alpha in (0.2, 0.025, 1e-4):
        assert spread.tail(spread.end(alpha, -1), 1) == pytest.approx(alpha, rel=1e-5)
        assert spread.tail(spread.end(alpha, 1), -1) == pytest.approx(alpha, rel=1e-5)


def test_finer_nodes_and_no_bins_change_nothing_that_is_read(monkeypatch):
    diff_N = np.clip(np.random.default_rng(2).lognormal(-3, 1, 900) - 0.08, -1, 1)
    coarse = [BoundedMean(diff_N, 1.0).end(0.025, side) for side in (-1, 1)]
    monkeypatch.setattr(bounded, "_STEP", 0.03)
    monkeypatch.setattr(bounded, "_BINS", 10**6)
    fine = [BoundedMean(diff_N, 1.0).end(0.025, side) for side in (-1, 1)]
    assert coarse == pytest.approx(fine, abs=1e-6 * (fine[1] - fine[0]))


def test_order_mirror_and_scale():
    diff_N = SHAPES["rare loss"](np.random.default_rng(3), 40)
    one, turned = BoundedMean(diff_N, 1.0), BoundedMean(diff_N[::-1], 1.0)
    assert one.interval(0.95) == turned.interval(0.95)
    low, high = BoundedMean(-diff_N, 1.0).interval(0.95)
    assert (-high, -low) == pytest.approx(one.interval(0.95), abs=1e-9)
    scaled = BoundedMean(10 * diff_N, 10.0).interval(0.95)
    assert scaled == pytest.approx(tuple(10 * x for x in one.interval(0.95)), abs=1e-7)


def test_fewer_units_widen_it():
    diff_N = SHAPES["normal"](np.random.default_rng(4), 60)
    plain, clustered = BoundedMean(diff_N, 1.0), BoundedMean(diff_N, 1.0, units=15)
    assert clustered.end(0.025, -1) < plain.end(0.025, -1) < plain.end(0.025, 1) < clustered.end(0.025, 1)
    same = BoundedMean(np.zeros(60), 1.0, units=15)
    assert same.end(0.025, 1) == pytest.approx(1 - 0.025 ** (1 / 15))


@pytest.mark.parametrize("value", [-1.0, 1.0])
def test_differences_at_the_bound_stay_within_it(value):
    spread = BoundedMean(np.full(9, value), 1.0)
    low, high = spread.interval(0.95)
    assert -1 <= low <= high <= 1
    assert {low, high} & {value}
