"""The three-sided rule, planning, and corrections for many claims."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from veritune.errors import ScoreError
from veritune.stats import intervals, multiplicity, power
from veritune.stats.paired import compare_tables
from veritune.stats.rule import _word, check_margin, check_rule, decide, frozen_rule
from veritune.stats.table import ScoreTable


def table(name, score):
    score = np.atleast_2d(np.asarray(score, dtype=float))
    runs = tuple(str(i) for i in range(len(score)))
    items = tuple(f"q{i}" for i in range(score.shape[1]))
    return ScoreTable(name, "sums", runs, items, score, missing=({},) * len(score))


# ---------------------------------------------------------------- the rule


@pytest.mark.parametrize(
    ("wide", "narrow", "p", "word"),
    [
        ((0.02, 0.06), (0.025, 0.055), 0.001, "better by the margin"),
        ((-0.06, -0.02), (-0.055, -0.025), 0.001, "worse by the margin"),
        ((-0.008, 0.009), (-0.006, 0.007), 0.8, "equivalent"),
        ((0.001, 0.009), (0.002, 0.008), 0.01, "equivalent"),
        ((0.001, 0.03), (0.004, 0.026), 0.03, "better, size unresolved"),
        ((-0.03, -0.001), (-0.026, -0.004), 0.03, "worse, size unresolved"),
        ((-0.005, 0.02), (-0.003, 0.018), 0.2, "inconclusive"),
        ((0.001, 0.03), (0.004, 0.026), 0.06, "inconclusive"),
        ((0.02, 0.06), (0.025, 0.055), 0.06, "inconclusive"),
    ],
)
def test_the_words_of_the_rule(wide, narrow, p, word):
    assert _word(wide, narrow, p, 0.01, 0.05)[0] == word


def test_without_a_margin_size_is_never_claimed():
    assert _word((0.2, 0.6), (0.25, 0.5), 0.001, None, 0.05)[0] == "better, size unresolved"
    assert _word((-0.1, 0.1), (-0.05, 0.05), 0.5, None, 0.05)[0] == "inconclusive"


def test_the_decision_rests_on_ci95_for_wins_and_ci90_for_equivalence():
    kind = np.repeat([0, 1, 2], [540, 45, 15])
    comparison = compare_tables(table("a", kind != 2), table("b", kind != 1))
    one, two = comparison.estimate(0.95), comparison.estimate(0.90)
    decision = decide(comparison, 0.027)
    assert one.low < 0.027 < two.low
    assert decision.interval == (one.low, one.high)
    assert decision.equivalence_interval == (two.low, two.high)
    assert decision.word == "better, size unresolved"
    assert decide(comparison, 0.02).word == "better by the margin"


def test_five_equal_families_with_a_large_effect_can_win():
    rng = np.random.default_rng(0)
    family = tuple(str(i // 40) for i in range(200))
    a = rng.random(200) * 0.05 + 0.4
    one = table("a", a)
    one = ScoreTable("a", "sums", one.runs, one.items, one.score_S_N, family_N=family, missing=one.missing)
    comparison = compare_tables(one, table("b", a - 0.2 + rng.random(200) * 0.05))
    assert decide(comparison, None).word == "better, size unresolved"


@pytest.mark.parametrize(
    ("up", "words"),
    [
        (True, ("better by the margin", "better, size unresolved")),
        (False, ("worse by the margin", "worse, size unresolved")),
        (None, ("higher by the margin", "higher, size unresolved")),
    ],
)
def test_the_word_follows_the_direction_of_the_metric(up, words):
    for margin, word in zip((0.05, None), words):
        assert _word((0.1, 0.2), (0.11, 0.19), 0.001, margin, 0.05, up)[0] == word
    mirror = {"better": "worse", "worse": "better", "higher": "lower"}
    for margin, word in zip((0.05, None), words):
        side, rest = word[: len(word.split()[0].rstrip(","))], word[len(word.split()[0].rstrip(",")) :]
        assert _word((-0.2, -0.1), (-0.19, -0.11), 0.001, margin, 0.05, up)[0] == mirror[side] + rest
    assert _word((-0.02, 0.02), (-0.01, 0.01), 0.9, 0.05, 0.05, up)[0] == "equivalent"


def test_the_frozen_rule_follows_the_direction_and_needs_one():
    a, b = table("a", np.full(20, 0.2)), table("b", np.full(20, 0.3))
    for up, winner in ((True, "b"), (False, "a")):
        arms = (replace(t, higher_is_better=up) for t in (a, b))
        assert frozen_rule(compare_tables(*arms), {"min_gap": 0.05, "every_seed": True})["winner"] == winner
    unknown = (replace(t, higher_is_better=None, metric="style") for t in (a, b))
    with pytest.raises(ScoreError, match="nothing says whether higher scores are better"):
        frozen_rule(compare_tables(*unknown), {"min_gap": 0.05})


@pytest.mark.parametrize(
    "rule", [{}, {"min_gap": True}, {"min_gap": -0.1}, {"min_gap": "x"}, {"min_gap": 0.1, "every_seed": 2}]
)
def test_a_frozen_rule_that_is_not_understood_is_refused(rule):
    with pytest.raises(ScoreError):
        check_rule(rule)


def test_without_an_interval_the_reason_says_so_and_not_that_it_holds_0():
    one, two = table("a", np.linspace(0.3, 0.6, 30)), table("b", np.full(30, 0.3))
    decision = decide(compare_tables(replace(one, family_N=("f",) * 30), replace(two, family_N=("f",) * 30)), None)
    assert decision.word == "inconclusive"
    assert decision.reason.startswith("no interval") and "holds 0" not in decision.reason


@pytest.mark.parametrize(
    ("margin", "says"), [(0.0, "above 0"), (-0.1, "above 0"), (1.0, "Did you mean 0.01"), (5, "0.05")]
)
def test_a_margin_outside_the_scale_is_refused(margin, says):
    with pytest.raises(ScoreError, match=says):
        check_margin(margin, (0.0, 1.0))
    check_margin(5.0, (0.0, 100.0))


def test_the_frozen_rule_knows_its_keys_and_every_seed():
    a, b = table("a", np.eye(3, 40) + 0.5), table("b", np.full((3, 40), 0.5))
    comparison = compare_tables(a, b)
    assert frozen_rule(comparison, {"min_gap": 0.02})["winner"] == "a"
    assert frozen_rule(comparison, {"min_gap": 0.03})["winner"] is None
    uneven = compare_tables(table("a", np.array([[0.9] * 40, [0.4] * 40])), table("b", np.full((2, 40), 0.5)))
    assert frozen_rule(uneven, {"min_gap": 0.02})["winner"] == "a"
    assert frozen_rule(uneven, {"min_gap": 0.02, "every_seed": True})["winner"] is None
    with pytest.raises(ScoreError, match="ignored silently"):
        frozen_rule(comparison, {"min_gap": 0.02, "mingap": 1})


# ---------------------------------------------------------------- planning


def test_connor_by_hand():
    # [1.95996·√.2 + .84162·√(.2 − .01)]²/.01 = [.87652 + .36685]²/.01 = 154.6
    assert power.mcnemar_n(0.1, 0.2) == 155


def test_tost_by_hand():
    # (1.64485 + 1.28155)²·.1/.0025 = 8.5638·40 = 342.6
    assert power.tost_n(0.05, 0.1) == 343


def test_more_items_seeds_or_power_move_the_plan_the_right_way():
    design = power.Design(800, 0.1, 3, 3, seed_sd=0.005, stable=0.5, margin=0.02)
    base = power.plan(design)[0]
    assert power.plan(replace(design, items=3200))[0].detectable < base.detectable
    assert power.plan(replace(design, seeds_a=6, seeds_b=6))[0].detectable < base.detectable
    assert power.plan(replace(design, power=0.9))[0].detectable > base.detectable
    assert power.plan(replace(design, families=80, design_effect=2.0))[0].detectable > base.detectable


def test_a_plan_says_the_chance_and_what_resolves_the_margin():
    (out,) = power.plan(power.Design(1319, 0.0707, margin=0.01))
    assert out.can_say_equivalent is True and out.chance_of_equivalence < 0.001
    text = " ".join(out.sentences)
    assert "it takes about 5,5" in text and "cannot" not in text
    assert abs(out.items_for_margin.low - power.mcnemar_n(0.01, 0.0707)) <= 25
    (never,) = power.plan(power.Design(10_000, 0.05, 2, 2, seed_sd=0.02, stable=1.0, margin=0.01))
    assert never.items_for_margin.impossible
    assert "no number of items is enough with these" in " ".join(never.sentences)


def test_no_equivalence_is_ever_said_where_the_plan_calls_it_unreachable():
    """33 items: identical outputs read ± 1.645²/(33 + 1.645²) = .0758."""
    (out,) = power.plan(power.Design(33, 0.1, margin=0.07))
    assert out.can_say_equivalent is False
    assert 'can never say "equivalent"' in " ".join(out.sentences)
    for up in range(5):
        for down in range(5):
            a, b = np.zeros(33), np.zeros(33)
            a[:up], b[up : up + down] = 1, 1
            assert decide(compare_tables(table("a", a), table("b", b)), 0.07).word != "equivalent"


def test_a_pilot_gives_back_the_design_it_was_drawn_from():
    rng = np.random.default_rng(2)
    n, s = 20_000, 8
    item = rng.normal(size=n)
    a, b = (
        0.5 + 0.1 * item + 0.05 * rng.normal(size=n) + 0.02 * rng.normal(size=(s, n)) + 0.003 * rng.normal(size=(s, 1))
        for _ in range(2)
    )
    design = power.design_from(compare_tables(table("a", a), table("b", b)), margin=0.01)
    assert design.discordance == pytest.approx(2 * (0.05**2 + 0.02**2), rel=0.05)
    assert design.stable == pytest.approx(0.05**2 / (0.05**2 + 0.02**2), abs=0.03)
    assert design.seed_sd == pytest.approx(0.003, rel=0.6)
    assert design.seed_range[0] < design.seed_sd < design.seed_range[1]


def test_a_pilot_without_any_difference_is_refused():
    score = np.arange(30) % 2
    with pytest.raises(ScoreError, match="the same on every item"):
        power.design_from(compare_tables(table("a", score), table("b", score)))


def test_the_grid_has_one_row_per_cell_and_assumption():
    design = power.Design(500, 0.1, 3, 3)
    rows = power.detectable_grid(design, [100, 400], [1, 3])
    assert len(rows) == 2 * (1 + 2)
    assert all(r["detectable"] > 0 for r in rows)


# ---------------------------------------------------------------- many claims


def test_corrections_agree_with_statsmodels_and_scipy():
    from statsmodels.stats.multitest import multipletests

    rng = np.random.default_rng(0)
    for k in (1, 2, 7, 40):
        p = list(rng.random(k) ** 2)
        assert multiplicity.holm(p) == pytest.approx(list(multipletests(p, method="holm")[1]))
        assert multiplicity.benjamini_hochberg(p) == pytest.approx(list(stats.false_discovery_control(p)))


def test_holm_by_hand():
    assert multiplicity.holm([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.06, 0.06])
    assert multiplicity.holm([0.01], 5) == pytest.approx([0.05])
    assert multiplicity.benjamini_hochberg([0.01, 0.04, 0.03]) == pytest.approx([0.03, 0.04, 0.04])


@pytest.mark.parametrize("broken", [[-0.1], [1.1], [float("nan")]])
def test_what_is_no_p_is_refused(broken):
    with pytest.raises(ScoreError):
        multiplicity.holm(broken)


def test_the_smallest_alpha_of_an_interval_is_its_p():
    student = intervals.Student(0.03, 0.012, 25.0)
    assert intervals.smallest_alpha(student, 0.0, side=1) == pytest.approx(student.p())
    one_sided = stats.t.sf((0.03 - 0.01) / 0.012, 25)
    assert intervals.smallest_alpha(student, 0.01, side=1, sides=1) == pytest.approx(one_sided)
    assert intervals.smallest_alpha(student, 0.04, side=1) == 1.0
    assert intervals.smallest_alpha(student, 0.06, side=-1) == pytest.approx(2 * stats.t.sf(0.03 / 0.012, 25))
