"""Which interval families of these sizes allow, its pieces by hand and by brute force."""

from __future__ import annotations

import numpy as np
import pytest

from veritune.stats.families import cr1, cr3, effective_families, family_rule, sign_flips, undrawn


@pytest.mark.parametrize(
    ("sizes", "method"),
    [
        ([5] * 4, "cr1"),
        ([5] * 5, "cr1"),
        ([5] * 40, "cr1"),
        ([4, 6] * 6, "cr1"),  # largest 1.2 times the mean
        ([4, 6] * 4, "cr1+flips"),  # the same with 8 families
        ([5] * 11 + [7], "cr1"),  # 1.35 times
        ([5] * 11 + [8], "cr1+flips"),  # 1.52 times
        ([4, 6] * 3, "cr3"),
        ([5, 5, 5, 5, 6], "cr3"),
        ([40] + [60 / 19] * 19, "cr1+flips"),
        ([40, 12, 12, 12, 12, 12], "cr3"),
        ([35, 35, 8, 8, 7, 7], "withheld"),  # 3.4 effective families, and no flips below 8
        ([35, 35] + [5] * 6, "cr1+flips"),
        ([5] * 3, "withheld"),
        ([60] + [2] * 20, "withheld"),
        ([90] + [1] * 10, "withheld"),
        ([30, 2, 2, 2], "withheld"),
    ],
)
def test_sizes_alone_pick_the_method(sizes, method):
    rule = family_rule(np.round(sizes).astype(int))
    assert rule.method == method
    assert bool(rule.reason) == (method == "withheld")


def test_the_reason_names_the_effective_number_and_the_largest_family():
    rule = family_rule(np.array([60] + [2] * 20))
    assert "21 families of unequal size are worth 2.6 (the largest holds 60 % of the items)" in rule.reason


@pytest.mark.parametrize("families", [2, 4, 7, 30])
def test_equal_families_are_worth_their_number(families):
    assert effective_families(np.full(families, 6)) == pytest.approx(families)


def test_effective_families_by_the_matrix_itself():
    size_G = np.array([12, 3, 3, 4, 9, 1])
    n, a_G = size_G.sum(), 1 / (1 - size_G / size_G.sum())
    omega = np.outer(a_G, a_G) * (np.diag(size_G) - np.outer(size_G, size_G) / n)
    assert effective_families(size_G) == pytest.approx(np.trace(omega) ** 2 / (omega**2).sum() + 1)


def test_cr3_is_the_jackknife_over_families():
    rng = np.random.default_rng(0)
    size_G = np.array([12, 3, 3, 4, 9])
    family_N = np.repeat(np.arange(5), size_G)
    d_N = rng.normal(size=size_G.sum())
    sum_G = np.bincount(family_N, weights=d_N)
    left_out = np.array([d_N[family_N != g].mean() for g in range(5)])
    assert cr3(sum_G, size_G) == pytest.approx(4 / 5 * ((left_out - d_N.mean()) ** 2).sum())


def test_cr1_with_equal_families_is_the_t_variance_of_their_means():
    mean_G = np.random.default_rng(1).normal(size=9)
    assert cr1(mean_G * 4, np.full(9, 4)) == pytest.approx(mean_G.var(ddof=1) / 9)


def test_flips_keep_their_level_at_any_margin_with_one_large_family():
    """Symmetric family effects around a mean of .1: the lower end lies above .1 in at most 2.5 % of draws."""
    rng = np.random.default_rng(2)
    size_G = np.array([24] + [4] * 9)
    above = 0
    for _ in range(1500):
        sum_G = size_G * (0.1 + rng.normal(size=10) * 0.3)
        above += sign_flips(sum_G, size_G).end(0.025, -1) > 0.1
    assert above <= 1500 * 0.025 + 3 * np.sqrt(1500 * 0.025 * 0.975)


def test_undrawn_share_of_ten_families():
    assert undrawn(10) == pytest.approx(0.31, abs=0.005)
    assert (1 - undrawn(10)) ** 10 == pytest.approx(0.025)
