"""What the statistics say in words, word for word: methods, reasons, warnings and refusals."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veritune.errors import ScoreError
from veritune.stats import paired, rule, tails
from veritune.stats.intervals import Unknown
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.power import Design
from veritune.stats.reasons import REASONS, is_models, lost_text
from veritune.stats.table import Missing, ScoreTable, direction_of, pair, tables_from_counts


def table(name: str, score: Any, *, families: Any = None, **more: Any) -> ScoreTable:
    score_S_N = np.atleast_2d(np.asarray(score, dtype=float))
    runs = tuple(f"s{i}" for i in range(len(score_S_N)))
    items = tuple(f"q{i}" for i in range(score_S_N.shape[1]))
    family = None if families is None else tuple(map(str, families))
    given = {"missing": ({},) * len(runs), "family_N": family} | more
    return ScoreTable(name, "sums", runs, items, score_S_N, **given)


def ramp(n: int, runs: int = 1, low: float = 0.2, high: float = 0.8) -> Any:
    """Graded scores, each run a little off the others."""
    return np.linspace(low, high, n) + 0.01 * np.arange(runs)[:, None] * (np.arange(n) % 3)


# ---------------------------------------------------------------- the rule's reasons

OPEN = "the 95 % interval holds 0 and the 90 % interval leaves the margin"
UNITS = "Give a margin in the scores' own units."
DISCORDANCE = "expected a discordance in (0, 1], seed_sd ≥ 0, design_effect > 0 and width > 0; found "


@pytest.mark.parametrize(
    ("wide", "narrow", "p", "margin", "word", "reason"),
    [
        ((0.02, 0.06), (0.03, 0.05), 0.001, 0.01, "better by the margin", "the 95 % interval lies beyond the margin"),
        ((-0.06, -0.02), (-0.05, -0.03), 0.05, 0.01, "worse by the margin", "the 95 % interval lies beyond the margin"),
        ((-0.02, 0.02), (-0.009, 0.009), 0.9, 0.01, "equivalent", "the 90 % interval lies inside ± the margin"),
        (
            (0.001, 0.03),
            (0.004, 0.026),
            0.03,
            0.01,
            "better, size unresolved",
            "the 95 % interval excludes 0 but reaches across the margin",
        ),
        ((0.2, 0.6), (0.25, 0.5), 0.001, None, "better, size unresolved", "the 95 % interval excludes 0"),
        (
            (0.2, 0.6),
            (0.25, 0.5),
            0.0612,
            None,
            "inconclusive",
            "the 95 % interval excludes 0 but the test does not agree (p = 0.0612)",
        ),
        ((-0.2, 0.6), (-0.1, 0.5), 0.3, None, "inconclusive", "the 95 % interval holds 0"),
        (
            (-0.2, 0.6),
            (-0.1, 0.5),
            0.3,
            0.01,
            "inconclusive",
            OPEN,
        ),
        ((0.0, 0.6), (0.01, 0.5), 0.05, None, "inconclusive", "the 95 % interval holds 0"),
        ((-0.6, 0.0), (-0.5, -0.01), 0.05, None, "inconclusive", "the 95 % interval holds 0"),
        (
            (0.01, 0.06),
            (0.02, 0.05),
            0.001,
            0.01,
            "better, size unresolved",
            "the 95 % interval excludes 0 but reaches across the margin",
        ),
        ((-0.02, 0.02), (-0.01, 0.009), 0.9, 0.01, "inconclusive", OPEN),
        ((-0.02, 0.02), (-0.009, 0.01), 0.9, 0.01, "inconclusive", OPEN),
    ],
)
def test_the_word_and_why(
    wide: tuple[float, float], narrow: tuple[float, float], p: float, margin: float | None, word: str, reason: str
) -> None:
    assert rule._word(wide, narrow, p, margin, 0.05) == (word, reason)


def test_the_level_in_the_reason_is_the_one_that_decided() -> None:
    assert rule._word((0.2, 0.6), (0.25, 0.5), 0.001, None, 0.01)[1] == "the 99 % interval excludes 0"
    assert (
        rule._word((-0.02, 0.02), (-0.009, 0.009), 0.9, 0.01, 0.01)[1] == "the 98 % interval lies inside ± the margin"
    )


@pytest.mark.parametrize(
    ("margin", "scale", "message", "fix"),
    [
        (0.0, (0.0, 1.0), "below 1, the width of the scale 0 to 1; found 0.", UNITS),
        (1.0, (0.0, 1.0), "below 1, the width of the scale 0 to 1; found 1.", "Did you mean 0.01?"),
        (5, (0.0, 1.0), "below 1, the width of the scale 0 to 1; found 5.", "Did you mean 0.05?"),
        (100, (0.0, 1.0), "below 1, the width of the scale 0 to 1; found 100.", "Did you mean 1?"),
        (101, (0.0, 1.0), "below 1, the width of the scale 0 to 1; found 101.", UNITS),
        (4, (1.0, 5.0), "below 4, the width of the scale 1 to 5; found 4.", UNITS),
    ],
)
def test_a_margin_outside_the_scale(margin: float, scale: tuple[float, float], message: str, fix: str) -> None:
    with pytest.raises(ScoreError) as error:
        rule.check_margin(margin, scale)
    assert (error.value.message, error.value.fix) == (f"expected a margin above 0 and {message}", fix)


def test_a_frozen_rule_on_scores_of_no_known_direction() -> None:
    arms = (table(n, ramp(9), higher_is_better=None, metric="style") for n in "ab")
    with pytest.raises(ScoreError) as error:
        rule.frozen_rule(compare_tables(*arms), {"min_gap": 0.05})
    assert error.value.message == "a frozen rule names a winner, but nothing says whether higher scores are better."
    assert error.value.fix == "State the direction: --higher-is-better or --lower-is-better."


@pytest.mark.parametrize(
    ("gaps", "rule_", "winner", "per_seed"),
    [
        ([0.1, 0.1], {"min_gap": 0.1}, "a", [0.1, 0.1]),
        ([-0.1, -0.1], {"min_gap": 0.1}, "b", [-0.1, -0.1]),
        ([0.3, -0.1], {"min_gap": 0.05, "every_seed": True}, None, [0.3, -0.1]),
        ([0.3, -0.1], {"min_gap": 0.05}, "a", [0.3, -0.1]),
        ([-0.3, -0.1], {"min_gap": 0.05, "every_seed": True}, "b", [-0.3, -0.1]),
        ([0.2, 0.0], {"min_gap": 0.05, "every_seed": True}, None, [0.2, 0.0]),
        ([0.0, 0.0], {"min_gap": 0}, None, [0.0, 0.0]),
    ],
)
def test_a_frozen_rule_to_the_letter(
    gaps: list[float], rule_: dict[str, Any], winner: str | None, per_seed: list[float]
) -> None:
    base = np.full((1, 8), 0.5)
    a, b = table("a", base + np.array(gaps)[:, None]), table("b", base, fixed=True)
    found = rule.frozen_rule(compare_tables(a, b), rule_)
    assert (found["winner"], found["satisfied"]) == (winner, winner == "a")
    assert found["per_seed"] == pytest.approx(per_seed)


# ---------------------------------------------------------------- methods


def test_a_gap_of_exactly_the_least_one_wins_whatever_its_last_bit_is() -> None:
    """5 seeds of 10 more right answers out of 1,000: the mean of the differences is .009999999999999997."""
    rng, n = np.random.default_rng(0), 1000
    a, b = np.zeros((5, n)), np.zeros((5, n))
    for s in range(5):
        a[s, rng.permutation(n)[: n // 2 + 10]] = 1
        b[s, rng.permutation(n)[: n // 2]] = 1
    comparison = compare_tables(table("a", a), table("b", b))
    assert rule.frozen_rule(comparison, {"min_gap": 0.01, "every_seed": True})["winner"] == "a"
    assert rule.frozen_rule(comparison, {"min_gap": 0.01001})["winner"] is None
    turned = compare_tables(table("b", b), table("a", a))
    assert rule.frozen_rule(turned, {"min_gap": 0.01})["winner"] == "b"


def headline(a: ScoreTable, b: ScoreTable, **how: Any) -> tuple[str, str]:
    result = compare_tables(a, b, PairOptions(**how)).headline
    return result.method, result.p_method


LMT = "Learned-Miller & Thomas"


def test_the_method_names_what_was_done() -> None:
    half = np.arange(40) % 2
    one, two = (table(n, s) for n, s in (("a", half), ("b", np.roll(half, 1) * (np.arange(40) < 30))))
    assert headline(one, two) == ("Tango score interval", "mid-p McNemar")
    a, b = table("a", ramp(40)), table("b", ramp(40)[:, ::-1])
    assert headline(a, b, scale=(0, 1)) == (f"the wider of paired t and {LMT}", "the larger of both p")
    many, other = table("a", ramp(40, 3)), table("b", ramp(40, 3)[:, ::-1])
    averaged = f"the wider of paired t and {LMT}, seeds averaged"
    seeds = "inversion of the interval"
    assert headline(many, other, scale=(0, 1)) == (
        f"seeds × items: seed margins squared and added; items: {averaged}",
        seeds,
    )
    assert headline(many, other, scale=(0, 1), shared_seeds=True) == (
        f"seeds × items: paired by seed, the larger of the item and seed margins; items: {averaged}",
        seeds,
    )
    assert headline(many, other, scale=(0, 1), equal_seed_spread=True) == (
        f"seeds × items: one seed spread assumed for both arms; items: {averaged}",
        seeds,
    )
    two_runs, five_runs = table("a", ramp(40, 2)), table("b", ramp(40, 5)[:, ::-1])
    assert "the larger of the item and seed margins" in headline(two_runs, other, scale=(0, 1))[0]
    assert "the larger of two ways to add seed margins" in headline(many, five_runs, scale=(0, 1))[0]


@pytest.mark.parametrize(
    ("families", "method", "p_method"),
    [
        (np.repeat(range(20), 2), "cluster-robust t, over 20 families", "cluster-robust t test"),
        (
            np.repeat(range(10), [3, 3, 3, 3, 3, 3, 3, 3, 3, 13]),
            "cluster-robust t and sign flips of whole families, the wider, over 10 families",
            "sign flips of families and cluster-robust t",
        ),
        (
            np.repeat(range(6), [6, 6, 6, 6, 6, 10]),
            "cluster-robust t (CR3, Bell–McCaffrey df), over 6 families",
            "cluster-robust t test",
        ),
    ],
)
def test_the_method_for_families(families: Any, method: str, p_method: str) -> None:
    a = table("a", ramp(40), families=families)
    b = table("b", ramp(40)[:, ::-1], families=families)
    found = compare_tables(a, b, PairOptions(scale=(0, 1))).headline
    assert (found.method, found.p_method) == (method, p_method)


def test_seeds_on_these_very_items() -> None:
    many, other = table("a", ramp(40, 3)), table("b", ramp(40, 3)[:, ::-1])
    found = compare_tables(many, other, PairOptions(scale=(0, 1))).results["items"]
    assert (found.method, found.p_method) == ("Welch t over seeds", "t test")
    same = compare_tables(
        table("a", np.tile(ramp(40), (3, 1))), table("b", ramp(40)[:, ::-1]), PairOptions(scale=(0, 1))
    )
    assert isinstance(same.results["items"].spread, Unknown)
    assert same.results["items"].estimand == "items" and same.results["items"].gap == pytest.approx(same.gap)
    assert same.results["items"].spread.reason == (
        "all seeds scored the same on these items: no seed spread to learn from"
    )


@pytest.mark.parametrize(
    ("a", "b", "how", "reason"),
    [
        (
            table("a", np.full(9, 7.5)),
            table("b", np.full(9, 7.5)),
            {},
            "every score on both sides is the same constant",
        ),
        (table("a", [0.2]), table("b", [0.7]), {"scale": (0, 1)}, "one item: nothing to learn an interval from"),
        (
            table("a", np.linspace(-3, 7, 9)),
            table("b", np.linspace(-2, 7, 9)),
            {},
            "graded scores from -3 to 7 without declared bounds: a rare loss that was not seen could be of any size; "
            "declare the scale that scores can take (--scale LOW HIGH)",
        ),
    ],
)
def test_why_there_is_no_interval(a: ScoreTable, b: ScoreTable, how: dict[str, Any], reason: str) -> None:
    result = compare_tables(a, b, PairOptions(**how)).headline
    assert isinstance(result.spread, Unknown)
    assert result.spread.reason == reason
    assert (result.method, result.p_method) == ("none", "none")


# ---------------------------------------------------------------- warnings and scope


def test_what_an_interval_rests_on() -> None:
    a = ramp(400)
    a[0, :3] += 0.19
    found = compare_tables(table("a", a), table("b", ramp(400))).warnings
    assert "scores are assumed to lie between 0 and 1; no scale was declared (--scale)" in found
    # three of 400 differences are .19: p = .0075, skewness (1 − 2p)/√(p(1 − p))
    p = 3 / 400
    assert (
        f"the differences are skewed (skewness {(1 - 2 * p) / (p * (1 - p)) ** 0.5:+.1f}): "
        "few items carry much of the gap" in found
    )
    assert "the differences take 2 values on 400 items" in found
    same = compare_tables(table("a", ramp(400)), table("b", ramp(400) - 0.1), PairOptions(scale=(0, 1))).warnings
    assert "the differences take 1 value on 400 items" in same
    assert not any("skewed" in line or "assumed to lie" in line for line in same)


def test_identical_constant_and_missing_scores_are_warned_of() -> None:
    score = (np.arange(30) % 2).astype(float)
    gone = score.copy()
    gone[-2:] = np.nan
    lost = table("b", gone, missing=({"crashed": 1, "truncated": 1},))
    found = compare_tables(table("a", np.ones(30)), lost).warnings
    assert "a: every score is 1, a constant teaches nothing about items" in found
    assert "b: 2 of 30 scores missing (s0: 1 crashed, 1 truncated), counted as 0" in found
    worst = compare_tables(table("a", np.ones(30)), lost, PairOptions(missing=Missing("worst"))).warnings
    assert "b: 2 of 30 scores missing (s0: 1 crashed, 1 truncated), counted as the worst case" in worst
    assert compare_tables(table("a", score), table("b", score)).warnings == (
        "no item differs between the sides: identical outputs may mean that the adapter was never loaded",
    )


def test_the_scope_names_arms_seeds_items_and_zones() -> None:
    a, b = table("tuned", ramp(6, 3), zone_N=("seen", "stranger") * 3), table("base", ramp(6), fixed=True)
    found = compare_tables(a, replace(b, zone_N=a.zone_N), PairOptions(scale=(0, 1))).scope
    assert found == "tuned (3 seeds) against base (fixed arm, no seeds), 6 items of sums of zone seen, stranger"
    plain = compare_tables(table("", ramp(6)), table("", ramp(6)), PairOptions(scale=(0, 1))).scope
    assert plain == "A (1 seed) against B (1 seed), 6 items of sums"


def test_seeds_without_a_partner() -> None:
    a, b = (table(n, ramp(6, 2), seeds=s) for n, s in (("a", ("1", "2")), ("b", ("1", "3"))))
    with pytest.raises(ScoreError) as error:
        compare_tables(a, b, PairOptions(scale=(0, 1), shared_seeds=True))
    assert error.value.message == "expected the same seeds on both sides, found 1, 2 and 1, 3."
    assert error.value.fix == ("Train both arms with the same seeds, or do not declare shared seeds.")


def test_a_seed_spread_that_items_explain_and_declared_assumptions_are_said() -> None:
    many, other = table("a", ramp(40, 3)), table("b", ramp(40, 3)[:, ::-1])
    found = compare_tables(many, other, PairOptions(scale=(0, 1), equal_seed_spread=True)).warnings
    assert "the seed spread is assumed to be the same in both arms, as declared" in found
    named = [replace(t, runs=tuple(f"{t.condition}-{r}" for r in t.runs)) for t in (many, other)]
    found = compare_tables(*named, PairOptions(scale=(0, 1), shared_seeds=True)).warnings
    assert "runs are paired in the order given: their names are no seeds" in found


def test_draws_are_bounded() -> None:
    most = paired.MAX_DRAWS
    for draws in (98, most + 1):
        with pytest.raises(ScoreError) as error:
            PairOptions(draws=draws)
        assert error.value.message == f"expected 99 to {most:,} resampling draws, found {draws:,}."
        assert error.value.fix == f"Lower it: {most:,} draws already resolve p to {1 / most:g}; nothing was allocated."
    assert (PairOptions(draws=99).draws, PairOptions(draws=most).draws) == (99, most)


# ---------------------------------------------------------------- tables


@pytest.mark.parametrize(
    ("a", "b", "message", "fix"),
    [
        (
            table("a", ramp(3), metric="wer", higher_is_better=False),
            table("b", ramp(3), metric="acc", higher_is_better=True),
            "the sides disagree on the direction: lower is better in a (wer), higher in b (acc).",
            "Compare the same metric on both sides, or state the direction: --lower-is-better or --higher-is-better.",
        ),
        (
            table("", ramp(3), metric="", higher_is_better=True),
            table("", ramp(3), metric="", higher_is_better=False),
            "the sides disagree on the direction: higher is better in A (unnamed metric), lower in B (unnamed metric).",
            "Compare the same metric on both sides, or state the direction: --lower-is-better or --higher-is-better.",
        ),
    ],
)
def test_sides_of_two_directions(a: ScoreTable, b: ScoreTable, message: str, fix: str) -> None:
    with pytest.raises(ScoreError) as error:
        direction_of(a, b)
    assert (error.value.message, error.value.fix) == (message, fix)


@pytest.mark.parametrize(
    ("metrics", "binary", "directions", "expected"),
    [
        (("", ""), True, (None, None), True),
        (("", "wer"), True, (None, None), None),
        (("", ""), False, (None, None), None),
        (("wer", "wer"), False, (None, False), False),
        (("", ""), False, (True, None), True),
    ],
)
def test_a_direction_is_what_either_side_knows(
    metrics: tuple[str, str], binary: bool, directions: tuple[Any, Any], expected: bool | None
) -> None:
    score = [0, 1, 1] if binary else [0, 0.5, 1]
    a, b = (table(n, score, metric=m, higher_is_better=d) for n, m, d in zip("ab", metrics, directions))
    assert direction_of(a, b) is expected


def test_policies_and_counts_that_are_none() -> None:
    with pytest.raises(ScoreError) as error:
        Missing("drop")  # type: ignore[arg-type]
    assert error.value.message.startswith("expected missing scores to be handled by fail, error, worst, best")
    assert error.value.message.endswith("; found 'drop'.")
    with pytest.raises(ScoreError) as error:
        tables_from_counts([(1, 2, 3, 4)], names=("x", "x"))
    assert error.value.message == "expected two different names, found 'x' twice."


def test_counts_are_lined_up_as_their_table_says() -> None:
    a, b = tables_from_counts([(2, 1, 3, 4), (1, 1, 4, 4)])
    assert a.score_S_N.shape == b.score_S_N.shape == (2, 10)
    assert a.score_S_N.sum(axis=1).tolist() == [5, 5] and b.score_S_N.sum(axis=1).tolist() == [4, 5]
    for s, counts in enumerate([(2, 1, 3, 4), (1, 1, 4, 4)]):
        found = paired.two_by_two(a.score_S_N[s], b.score_S_N[s])
        assert (found["only_a"], found["only_b"], found["both"], found["neither"]) == counts
    assert (len(a.runs), a.missing) == (2, ({}, {}))


def test_items_that_only_one_side_scored() -> None:
    with pytest.raises(ScoreError) as error:
        pair(table("a", ramp(4)), table("b", ramp(6)))
    assert error.value.message == (
        "expected both sides to score the same items, found 2 items only in b ('q4', 'q5'); 4 are in both."
    )


# ---------------------------------------------------------------- reasons


def test_whose_doing_each_reason_is() -> None:
    """A model's failure counts as a failure; whatever the machine lost never decides. The table is the promise."""
    models = {"empty_output", "extraction_failed", "no_answer", "empty", "invalid", "truncated", "refused"}
    assert {name for name, reason in REASONS.items() if reason.owner == "model"} == models
    assert {name for name in REASONS if is_models(name)} == models
    assert not is_models(None) and not is_models("odd") and not is_models("")
    assert is_models("truncated or empty") and not is_models("truncated or crashed") and not is_models("odd or empty")
    assert all(len(reason.why.split()) >= 2 for reason in REASONS.values())


def test_the_reasons_that_are_not_the_model_s_in_words() -> None:
    text = lost_text([{"crashed": 4, "truncated": 7}, {"crashed": 5, "disk_full": 3}])
    assert text == "9 crashed, 3 disk_full (a reason that is not known, so the machine's)"
    assert lost_text([{"truncated": 2}]) == ""


# ---------------------------------------------------------------- designs and waits


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ({"discordance": 0.0}, DISCORDANCE + "0, "),
        ({"discordance": 1.1}, DISCORDANCE + "1.1, "),
        ({"seed_sd": -0.1}, DISCORDANCE + "0.1, -0.1, "),
        ({"stable": 1.5}, "expected a stable share from 0 to 1, found 1.5."),
        ({"design_effect": 2.0}, "a design effect of 2 needs families, found none."),
    ],
)
def test_a_design_that_cannot_be(given: dict[str, Any], message: str) -> None:
    with pytest.raises(ScoreError) as error:
        Design(**{"items": 100, "discordance": 0.1} | given)
    assert error.value.message.startswith(message)


def waits(values: Any, blocks: int = 4) -> tails.Waits:
    value_N = np.asarray(values, dtype=float)
    return tails.Waits(value_N, np.zeros(len(value_N), int), np.arange(len(value_N)) % blocks)


def test_why_a_tail_is_not_bounded() -> None:
    base, n = waits(np.linspace(0.1, 0.2, 500)), 500
    assert tails.quantile_ratio(waits([]), base, 0.99).reason == "no requests were recorded"
    assert tails.quantile_ratio(waits(np.linspace(0.1, 0.2, n), 1), base, 0.99).reason == (
        "one block a rate says nothing about how blocks differ; measure two or more"
    )
    gone = np.linspace(0.1, 0.2, n)
    gone[::20] = np.inf
    assert tails.quantile_ratio(base, waits(gone), 0.99).reason == (
        "25 requests of the base had no answer: its own quantile is not known"
    )
    lost = tails.quantile_ratio(waits(gone), base, 0.99)
    assert lost.reason == "25 requests had no answer and count as slow" and lost.lost == (25, 0)
    few = tails.quantile_ratio(waits(np.linspace(0.1, 0.2, 100)), base, 0.99)
    assert few.reason == "100 requests an arm bound no such quantile, at least 437 are needed"
