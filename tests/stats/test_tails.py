"""Quantiles of waiting times: by hand, at the boundary by simulation, and with the fault that a mean hides."""

from __future__ import annotations

import math

import numpy as np
import pytest
from scipy.stats import binom

from veritune.stats.tails import Waits, quantile_bounds, quantile_ratio, requests_needed

RATES, BLOCKS = 2, 4


def arm(draw: np.random.Generator, n: int, *, slow: float = 0.0, factor: float = 10.0, run: int = 1) -> Waits:
    """Log-normal waits, `n` a block; a share `slow` is slower by `factor`, in runs of `run` requests."""
    total = RATES * BLOCKS * n
    stratum_N = np.repeat(np.arange(RATES), BLOCKS * n)
    value_N = np.exp(0.25 * draw.normal(size=total)) * (1 + 0.5 * stratum_N)
    for start in np.flatnonzero(draw.random(total) < slow / run):
        value_N[start : start + run] *= factor
    return Waits(value_N, stratum_N, np.tile(np.repeat(np.arange(BLOCKS), n), RATES))


def plain(value_N: np.ndarray) -> Waits:
    """Waits of one rate that alternate between two blocks."""
    n = len(value_N)
    return Waits(np.asarray(value_N, float), np.zeros(n, int), np.arange(n) % 2)


def test_bounds_are_the_order_statistics_of_the_exact_binomial() -> None:
    """100 values that fall on the blocks evenly: ranks by the binomial distribution, searched by hand."""
    n, q, error = 100, 0.9, 0.025
    value_N = np.arange(1.0, n + 1)
    low = max(r for r in range(1, n + 1) if binom.cdf(r - 1, n, q) <= error)
    high = min(r for r in range(1, n + 1) if binom.cdf(r - 1, n, q) >= 1 - error)
    found = quantile_bounds(plain(value_N), q, error)
    assert (found.low, found.value, found.high) == (low, 90.0, high)


@pytest.mark.parametrize(("q", "alpha"), [(0.99, 0.05), (0.95, 0.05), (0.99, 0.2), (0.5, 0.05)])
def test_one_request_below_the_number_needed_there_is_no_upper_bound(q: float, alpha: float) -> None:
    needed = requests_needed(q, alpha)
    draw = np.random.default_rng(0)
    new, old = (draw.exponential(size=needed) for _ in range(2))
    assert math.isfinite(quantile_ratio(plain(new), plain(old), q, alpha).high)
    short = quantile_ratio(plain(new[1:]), plain(old), q, alpha)
    assert math.isinf(short.high) and short.against(1e9) == "undecided" and f"{needed} are needed" in short.reason


def test_bounds_of_a_quantile_err_no_more_often_than_they_say() -> None:
    draw, q, error, rounds = np.random.default_rng(1), 0.99, 0.025, 600
    truth = -math.log(1 - q)
    wrong = np.zeros(2)
    for _ in range(rounds):
        found = quantile_bounds(plain(draw.exponential(size=440)), q, error)
        wrong += found.low > truth, found.high < truth
    assert (wrong / rounds <= error + 3 * math.sqrt(error * (1 - error) / rounds)).all(), wrong / rounds


@pytest.mark.parametrize(("run", "burst", "n", "rounds"), [(1, 1, 55, 200), (5, 5, 275, 60)])
def test_the_fault_that_means_hide_does_not_pass_and_an_unchanged_server_does_not_fail(
    run: int, burst: int, n: int, rounds: int
) -> None:
    """2 % of requests ten times slower; their geometric mean is 4.7 % above the base's, within any usual limit."""
    draw = np.random.default_rng(2)
    faulty, same = [], []
    for _ in range(rounds):
        base = arm(draw, n)
        faulty.append(quantile_ratio(arm(draw, n, slow=0.02, run=run), base, 0.99, burst=burst).against(2.0))
        same.append(quantile_ratio(arm(draw, n), base, 0.99, burst=burst).against(2.0))
    most = 0.025 + 3 * math.sqrt(0.025 * 0.975 / rounds)
    assert faulty.count("passed") / rounds <= most
    assert same.count("failed") / rounds <= most and same.count("passed") / rounds > 0.9


def test_at_the_boundary_one_slow_request_in_a_hundred_passes_no_more_often_than_nominal() -> None:
    """The share beyond the limit is just what q allows: the hardest null of a pass."""
    draw, rounds = np.random.default_rng(3), 400
    passed = sum(
        quantile_ratio(arm(draw, 55, slow=0.01), arm(draw, 55), 0.99).against(2.0) == "passed" for _ in range(rounds)
    )
    assert passed / rounds <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / rounds), passed / rounds


def test_a_block_that_was_slow_as_a_whole_is_no_failure_of_the_server() -> None:
    """A tenth of the blocks of either arm is three times as slow, by the machine."""
    draw, rounds = np.random.default_rng(4), 300
    failed = 0
    for _ in range(rounds):
        arms = []
        for _ in range(2):
            made = arm(draw, 100)
            slow = np.where(draw.random(RATES * BLOCKS) < 0.1, 3.0, 1.0)
            arms.append(
                Waits(made.value_N * slow[made.stratum_N * BLOCKS + made.block_N], made.stratum_N, made.block_N)
            )
        failed += quantile_ratio(*arms, 0.99).against(2.0) == "failed"
    assert failed / rounds <= 0.025 + 3 * math.sqrt(0.025 * 0.975 / rounds), failed / rounds


def test_requests_without_an_answer_are_slow_and_never_dropped() -> None:
    draw = np.random.default_rng(5)
    base, new = arm(draw, 100), arm(draw, 100)
    for share, status in ((0.01, "undecided"), (0.05, "failed")):
        lost_N = np.where(draw.random(800) < share, np.inf, new.value_N)
        found = quantile_ratio(Waits(lost_N, new.stratum_N, new.block_N), base, 0.99)
        assert found.against(2.0) == status and found.lost[0] > 0
    gone = Waits(np.where(draw.random(800) < 0.05, np.inf, base.value_N), base.stratum_N, base.block_N)
    found = quantile_ratio(new, gone, 0.99)  # a base that loses requests makes no candidate look fast
    assert found.against(2.0) == "undecided" and "of the base" in found.reason


@pytest.mark.parametrize("value", [0.0, 1.0, math.inf])
def test_requests_that_all_took_the_same_end_in_no_false_verdict(value: float) -> None:
    same = plain(np.full(500, value))
    found = quantile_ratio(same, same, 0.99)
    assert found.against(2.0) == ("passed" if value == 1.0 else "undecided")
    assert quantile_ratio(plain(np.full(500, 2.5)), plain(np.ones(500)), 0.99).against(2.0) == "failed"


def test_one_block_a_rate_and_no_requests_say_why_there_is_no_bound() -> None:
    one = Waits(np.ones(500), np.zeros(500, int), np.zeros(500, int))
    assert "one block" in quantile_ratio(one, one, 0.99).reason
    none = Waits(np.zeros(0), np.zeros(0, int), np.zeros(0, int))
    assert "no requests" in quantile_ratio(one, none, 0.99).reason
