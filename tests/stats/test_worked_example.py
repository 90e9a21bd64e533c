"""The GSM8K example that the documentation works through, reproduced to the last digit it gives.

The per-seed 2×2 tables fix each seed's gap, p and discordance. They do not fix which items the seeds flip: the
interval over new items lies between that of seeds flipping other items and that of seeds flipping the same ones.
"""

from __future__ import annotations

import numpy as np
import pytest

from veritune.stats import power
from veritune.stats.paired import compare_tables
from veritune.stats.rule import decide, frozen_rule
from veritune.stats.table import ScoreTable

N = 1319
TABLES = ((54, 47, 1139, 79), (49, 43, 1147, 80), (46, 41, 1148, 84))
ITEMS = tuple(f"gsm8k-{i}" for i in range(N))


def arms(*, same_items: bool) -> tuple[ScoreTable, ScoreTable]:
    """An arrangement over items with the published tables on its diagonal: seeds flip the same items, or others."""
    a, b = np.zeros((3, N)), np.zeros((3, N))
    rng = np.random.default_rng(0)
    shuffle = np.argsort(rng.random(N))
    for s, (only_a, only_b, both, neither) in enumerate(TABLES):
        kind = np.repeat([1, 2, 0, 3], [only_a, only_b, both, neither])
        place = shuffle if same_items else np.argsort(rng.random(N))
        a[s, place], b[s, place] = kind < 2, (kind == 0) | (kind == 2)
    runs = ("0", "1", "2")
    return tuple(ScoreTable(n, "gsm8k", runs, ITEMS, x, missing=({},) * 3) for n, x in (("attention", a), ("all", b)))


@pytest.fixture(params=[True, False], ids=["same items", "other items"])
def comparison(request):
    return compare_tables(*arms(same_items=request.param))


def test_rates_gaps_and_p_of_each_seed(comparison):
    assert comparison.pair.score_a_S_N.sum(axis=1).tolist() == [1193, 1196, 1194]
    assert comparison.pair.score_b_S_N.sum(axis=1).tolist() == [1186, 1190, 1189]
    assert [round(t["midp"], 2) for t in comparison.details["tables"]] == [0.49, 0.53, 0.59]
    found = [(t["only_a"], t["only_b"], t["both"], t["neither"]) for t in comparison.details["tables"]]
    assert found == list(TABLES)


def test_mean_gap_and_the_frozen_threshold_give_no_winner(comparison):
    assert round(comparison.gap, 5) == 0.00455
    assert frozen_rule(comparison, {"min_gap": 0.01})["winner"] is None


def test_over_new_items_it_is_inconclusive_and_not_equivalent(comparison):
    decision = decide(comparison, 0.01)
    assert decision.word == "inconclusive"
    assert decision.equivalence_interval[1] > 0.01


def test_detectable_gap_runs_from_19_to_21_thousandths():
    discordance = np.mean([t[0] + t[1] for t in TABLES]) / N
    other, same = power.plan(power.Design(N, discordance, 3, 3, margin=0.01))
    assert (round(other.detectable, 3), round(same.detectable, 3)) == (0.019, 0.021)
    # A seed spread of 0 is assumed and still estimated: three runs an arm have to show it.
    assert "estimates it from the runs" in other.sentences[1]
    assert 0.2 < same.chance_at_margin < other.chance_at_margin < 0.4


def test_resolving_the_threshold_takes_about_5550_items_on_one_seed():
    discordance = np.mean([t[0] + t[1] for t in TABLES]) / N
    assert round(power.mcnemar_n(0.01, discordance), -1) == 5550
