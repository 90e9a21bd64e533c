"""Binary scores of one run a side enumerated exactly, planning formulas, corrections for several claims.

What can only be simulated stands in `test_verdicts`. `python tests/theory/test_coverage.py` prints the coverage of the
binary intervals.
"""

from __future__ import annotations

import math
from collections.abc import Iterable

import numpy as np
import pytest
from scipy import stats

from veritune.config.claim import Claim
from veritune.decide.claims import ClaimContext, judge
from veritune.stats import intervals, multiplicity, power, rule
from veritune.stats.table import ScoreTable

pytestmark = pytest.mark.theory


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
    wrong, reps, n = 0, 100, 200
    for _ in range(reps):
        tables = {}
        for name, gap in (("up", 0.0), ("by", 0.05), ("eq", 0.04)):
            u = rng.random(n)
            a, b = (u < 0.1 + gap / 2).astype(float), ((u >= 0.1 + gap / 2) & (u < 0.2)).astype(float)
            items = tuple(map(str, range(n)))
            for condition, score in ((name, a), ("baseline", b)):
                table = ScoreTable(condition, name, ("0",), items, score[None], missing=({},), fixed=condition != name)
                tables[condition, name] = table
        claims = [Claim(name=n_, kind=k, condition=n_, eval=n_, zone=None, margin=m) for n_, k, m in kinds]
        verdicts = judge(claims, tables, ClaimContext())
        wrong += any(v.status == "supported" for v in verdicts)
    assert at_most(wrong / reps, 0.05, reps)


# ---------------------------------------------------------------- the table of docs/theory.md


def main() -> None:
    """Print the coverage of paired binary intervals."""
    print("| n | ψ | gap | Tango | Wald |\n| --- | --- | --- | --- | --- |")
    for n, psi, gap in BINARY_GRID:
        found = binary_coverage(n, psi, gap)
        print(f"| {n} | {psi:g} | {gap:g} | {found['tango']:.3f} | {found['wald']:.3f} |")


if __name__ == "__main__":
    main()
