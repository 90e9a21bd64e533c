"""Claims: each kind's rule, corrections, missing scores, and what may and may not be written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from veritune import records
from veritune.decide.claims import ClaimSpec, Context, judge
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats.paired import compare_tables
from veritune.stats.table import ScoreTable

N = 600


def side(name, right, *, runs=1, fixed=False, missing=0, reason="crashed") -> ScoreTable:
    """A table whose first `right` items are right in every run; the last `missing` are missing for `reason`."""
    score = np.tile((np.arange(N) < right) * 1.0, (runs, 1))
    rng = np.random.default_rng(runs)
    for row in score:  # each run errs on a few items of its own
        row[rng.choice(right, 3 * (runs > 1), replace=False)] = 0
    score[:, N - missing :] = np.nan if missing else score[:, N:]
    machine = np.isnan(score) & (reason not in {"extraction_failed"})
    items = tuple(map(str, range(N)))
    labels = tuple(map(str, range(runs)))
    reasons = ({reason: missing} if missing else {},) * runs
    return ScoreTable(name, "sums", labels, items, score, missing=reasons, fixed=fixed, machine_missing_S_N=machine)


def verdict(kind, a, b, **more):
    context = more.pop("context", None)
    tables = {("a", "sums"): a, ("b", "sums"): b}
    claim = ClaimSpec("c", kind, "sums", "a", "b", **more)
    (found,) = judge([claim], tables, context)
    records.dumps(found)
    return found


BASE = side("b", 300, fixed=True)


@pytest.mark.parametrize(
    ("kind", "right", "margin", "status"),
    [
        ("improves", 340, None, "supported"),
        ("improves", 260, None, "refuted"),
        ("improves", 302, None, "inconclusive"),
        ("improves", 302, 0.05, "refuted"),
        ("better_by", 340, 0.02, "supported"),
        ("better_by", 302, 0.05, "refuted"),
        ("better_by", 320, 0.03, "inconclusive"),
        ("equivalent", 302, 0.02, "supported"),
        ("equivalent", 340, 0.02, "refuted"),
        ("equivalent", 310, 0.02, "inconclusive"),
        ("not_worse", 302, 0.02, "supported"),
        ("not_worse", 340, 0.02, "supported"),
        ("not_worse", 260, 0.02, "refuted"),
        ("not_worse", 292, 0.02, "inconclusive"),
        ("not_worse", 294, 0.02, "inconclusive"),  # the 90 % interval alone would support it
        ("equivalent", 294, 0.02, "supported"),
        ("no_regression", 302, 0.02, "supported"),
        ("no_regression", 260, 0.02, "refuted"),
        ("differ", 340, 0.02, "supported"),
        ("differ", 260, 0.02, "supported"),
        ("differ", 302, 0.02, "refuted"),
        ("differ", 310, 0.02, "inconclusive"),
    ],
)
def test_each_kind_follows_its_rule(kind, right, margin, status):
    assert verdict(kind, side("a", right), BASE, margin=margin).status == status


@pytest.mark.parametrize("kind", ["better_by", "equivalent", "not_worse", "no_regression"])
def test_a_claim_without_the_margin_it_needs_is_untested(kind):
    found = verdict(kind, side("a", 302), BASE)
    assert found.status == "untested"
    assert "needs a margin" in found.sentence


def test_a_margin_outside_the_scale_is_untested_and_says_what_was_meant():
    found = verdict("equivalent", side("a", 302), BASE, margin=2.0)
    assert found.status == "untested"
    assert "below 1, the width of the scale" in found.sentence
    assert "Did you mean 0.02?" in found.sentence


def test_missing_tables_probes_and_zones_are_untested_with_the_reason():
    claims = [
        ClaimSpec("one", "improves", "sums", "zeta", "b"),
        ClaimSpec("two", "probe", probe="norm", op=">", threshold=1.0),
        ClaimSpec("three", "improves", "sums", "a", "b", zone="stranger"),
        ClaimSpec("four", "generalises", "sums", "a", "b"),
    ]
    found = judge(claims, {("a", "sums"): side("a", 302), ("b", "sums"): BASE})
    assert [v.status for v in found] == ["untested"] * 4
    for v, says in zip(found, ("no scores of 'zeta'", "no record of the probe", "no items in zone", "needs a share")):
        assert says in v.sentence
        assert v.confidence["grade"] == "none"


def test_two_claims_of_one_name_are_refused():
    claim = ClaimSpec("c", "probe", probe="x", op=">", threshold=1.0)
    with pytest.raises(ScoreError, match="'c' twice"):
        judge([claim, claim], {})


def test_one_seed_speaks_of_an_adapter_and_several_of_a_recipe():
    one = verdict("improves", side("a", 340), BASE)
    assert one.sentence.startswith("This adapter of a scores")
    assert any("the recipe" in text for text in one.may_not)
    many = verdict("improves", side("a", 340, runs=3), BASE)
    assert many.sentence.startswith("With 3 seeds, a scores")
    assert not any("the recipe" in text for text in many.may_not)
    unfixed = verdict("improves", side("a", 340, runs=3), side("b", 300))
    assert unfixed.sentence.startswith("This set of adapters of a scores")
    assert any("the recipe" in text for text in unfixed.may_not)


def test_a_fixed_baseline_is_named_in_the_scope():
    found = verdict("improves", side("a", 340, runs=3), BASE)
    assert "b (fixed arm, no seeds)" in found.details["scope"]
    assert found.details["scope"] == found.estimates[0].scope


def test_inconclusive_forbids_equal_and_trend():
    found = verdict("improves", side("a", 302), BASE)
    assert any("are equal" in text for text in found.may_not)
    assert any("a trend" in text for text in found.may_not)
    assert "stays open" in found.sentence


def test_every_verdict_on_scores_forbids_general_superiority_and_mechanism():
    for right in (260, 302, 340):
        found = verdict("improves", side("a", right), BASE)
        assert any("in general" in text for text in found.may_not)
        assert any("NLL" in text for text in found.may_not)


def test_the_sentence_is_short_and_the_estimate_carries_the_rest():
    found = verdict("improves", side("a", 340), BASE)
    assert found.sentence == (
        "This adapter of a scores higher than b on sums: 0.567 against 0.500, gap +0.067, "
        "95 % interval [0.049, 0.090] (600 items)."
    )
    (estimate,) = found.estimates
    assert (estimate.details["a"]["total"], estimate.details["b"]["total"], estimate.n) == (340, 300, 600)
    assert estimate.method == "Tango score interval"
    assert estimate.p < 1e-4


@pytest.mark.parametrize("runs", [1, 3])
@pytest.mark.parametrize("right", [260, 302, 310, 340])
def test_no_sentence_is_longer_than_45_words(right, runs):
    for kind in ("improves", "better_by", "equivalent", "not_worse", "no_regression", "differ"):
        found = verdict(kind, side("a", right, runs=runs), BASE, margin=0.02)
        assert len(found.sentence.split()) <= 45, found.sentence
        assert found.sentence.count(". ") == 0


def test_printed_ends_never_touch_an_edge_that_the_interval_clears():
    from veritune.decide.wording import _places

    assert _places(Estimate("x", 0.02, 0.00031, 0.04, 0.95, 9, "m"), (0.0,)) == 4
    assert _places(Estimate("x", 0.02, 0.0204, 0.04, 0.95, 9, "m"), (0.02, -0.02)) == 4
    assert _places(Estimate("x", 0.02, -0.1, 0.04, 0.95, 9, "m"), (0.0,)) == 3


def test_the_frozen_rule_runs_to_the_letter_beside_the_verdict():
    found = verdict("improves", side("a", 340), BASE, rule={"min_gap": 0.1})
    assert found.status == "supported"
    assert found.details["frozen_rule"]["winner"] is None
    assert verdict("improves", side("a", 340), BASE, rule={"min_gap": 0.05}).details["frozen_rule"]["winner"] == "a"
    unknown = verdict("improves", side("a", 340), BASE, rule={"min_gap": 0.05, "min_seeds": 3})
    assert unknown.status == "untested"
    assert "ignored silently" in unknown.sentence


def test_detectable_and_needed_items_follow_the_margin():
    found = verdict("equivalent", side("a", 310), BASE, margin=0.02)
    # 600 items, 10 discordant: 80 % of draws at a gap of .0138 give 6 or more net wins, which the mid-p test needs.
    assert found.detectable == pytest.approx(0.0138, abs=2e-4)
    # The gap of 10/600 lies 2/600 inside the margin: far more items than the margin alone would take.
    assert found.needed_n > 15 * N
    assert verdict("equivalent", side("a", 302), BASE, margin=0.02).needed_n is None
    assert f"this design detects {found.detectable:.3g} or more" in found.sentence


# ---------------------------------------------------------------- corrections


def test_holm_counts_declared_claims_even_when_they_were_not_tested():
    tables = {("a", "sums"): side("a", 306), ("b", "sums"): BASE}
    claim = ClaimSpec("c", "improves", "sums", "a", "b")
    (alone,) = judge([claim], tables)
    assert alone.status == "supported"
    p = alone.details["p_corrected"]
    others = [ClaimSpec(f"x{i}", "improves", "sums", "never run", "b") for i in range(3)]
    together = judge([claim, *others], tables)[0]
    assert together.details["p_corrected"] == pytest.approx(4 * p)
    assert together.status == "inconclusive"
    assert together.details["claims_in_family"] == 4


def random_study(rng):
    """Claims of every kind on two random arms, with or without families and seeds; gaps near the claims' edges."""
    n, runs = int(rng.choice([60, 240, 600])), int(rng.choice([1, 2, 3]))
    family = tuple(str(i // (n // 24)) for i in range(n)) if rng.random() < 0.4 else None
    ability = rng.random(n)
    items = tuple(map(str, range(n)))

    def arm(name, gain, runs, fixed=False):
        score = (ability + 0.15 * rng.normal(size=(runs, n)) < 0.5 + gain + 0.02 * rng.normal(size=(runs, 1))) * 1.0
        labels = tuple(map(str, range(runs)))
        return ScoreTable(name, "sums", labels, items, score, family_N=family, missing=({},) * runs, fixed=fixed)

    tables = {
        ("a", "sums"): arm("a", rng.choice([0, 0.03, 0.06, 0.12]), runs),
        ("b", "sums"): arm("b", 0, 1, fixed=True),
    }
    kinds = rng.permutation([*EDGES, "improves", "differ"])[: rng.integers(1, 6)]
    correction = rng.choice(["confirmatory", "exploratory"])
    claims = [
        ClaimSpec(f"{i}", k, "sums", "a", "b", margin=float(rng.choice([0.02, 0.05])), correction=correction)
        for i, k in enumerate(kinds)
    ]
    return claims, tables


EDGES = ("improves", "better_by", "equivalent", "not_worse", "no_regression", "differ")


def says(kind, low, high, m):
    """What a reader concludes from an interval alone: (supported, refuted)."""
    return {
        "improves": (low > 0, high < 0 or (-m < low and high < m)),
        "better_by": (low > m, high < m),
        "equivalent": (-m < low and high < m, low > m or high < -m),
        "not_worse": (low > -m, high < -m),
        "no_regression": (low > -m, high < -m),
        "differ": (low > m or high < -m, -m < low and high < m),
    }[kind]


@pytest.mark.parametrize("seed", range(30))
def test_the_interval_shown_is_the_one_that_decides(seed):
    claims, tables = random_study(np.random.default_rng(seed))
    for claim, found in zip(claims, judge(claims, tables)):
        first = found.estimates[0]
        yes, no = says(claim.kind, first.low, first.high, claim.margin)
        expected = "supported" if yes else "refuted" if no else "inconclusive"
        if found.status == "inconclusive" and expected != "inconclusive":
            assert "does not" in found.details["reason"]  # another test vetoes, and the sentence says so
            assert found.details["reason"] in found.sentence
        else:
            assert found.status == expected, (claim.kind, found.sentence)
        alpha = found.details["decided_at_alpha"]
        assert first.level in (1 - alpha, 1 - 2 * alpha)
        assert (alpha == claim.alpha) == ("over" not in found.sentence.split("interval")[1])
        plain = 1 - claim.alpha
        assert first.level == plain or found.estimates[-1].level == plain
        assert (found.details["p_corrected"] <= claim.alpha) == (found.details["p_before_correction"] <= alpha)


def test_the_level_is_holms_step_down_level():
    tables = {("a", "sums"): side("a", 340), ("b", "sums"): BASE, ("c", "sums"): side("c", 304)}
    claims = [
        ClaimSpec("first", "improves", "sums", "a", "b"),
        ClaimSpec("second", "improves", "sums", "c", "b"),
        ClaimSpec("third", "better_by", "sums", "c", "b", margin=0.006),
    ]
    first, second, third = judge(claims, tables)
    assert first.estimates[0].level == pytest.approx(1 - 0.05 / 3)
    assert second.estimates[0].level == third.estimates[0].level == pytest.approx(1 - 0.05 / 2)
    assert [v.status for v in (first, second, third)] == ["supported", "inconclusive", "inconclusive"]
    assert "98.3 % interval" in first.sentence
    assert "Holm over 3 claims" in first.sentence


def test_lost_scores_are_bounded_at_the_alpha_that_decides():
    tables = {("a", "sums"): side("a", 322, missing=12), ("b", "sums"): BASE}
    claims = [ClaimSpec("c", "improves", "sums", "a", "b")]
    claims += [ClaimSpec(f"x{i}", "improves", "sums", "never run", "b") for i in range(30)]
    found = judge(claims, tables)[0]
    worst = found.details["missing_bounds"]["worst"]
    assert (worst["low"] > 0) == (worst["status"] == "supported")


def test_exploratory_claims_do_not_cost_confirmatory_ones_and_say_what_they_are():
    tables = {("a", "sums"): side("a", 306), ("b", "sums"): BASE}
    claims = [
        ClaimSpec("c", "improves", "sums", "a", "b"),
        ClaimSpec("e", "differ", "sums", "a", "b", correction="exploratory"),
    ]
    first, second = judge(claims, tables)
    assert first.details["claims_in_family"] == 1
    assert second.exploratory
    assert any("as predicted" in text for text in second.may_not)


def test_claim_order_does_not_matter():
    tables = {("a", "sums"): side("a", 308), ("b", "sums"): BASE}
    claims = [
        ClaimSpec("1", "improves", "sums", "a", "b"),
        ClaimSpec("2", "equivalent", "sums", "a", "b", margin=0.03),
        ClaimSpec("3", "better_by", "sums", "a", "b", margin=0.05),
    ]
    forward = {v.claim: v for v in judge(claims, tables)}
    backward = {v.claim: v for v in judge(claims[::-1], tables)}
    assert forward == backward


# ---------------------------------------------------------------- missing scores


def test_lost_scores_that_could_change_the_answer_make_it_inconclusive():
    found = verdict("improves", side("a", 320), side("b", 300, fixed=True, missing=60))
    assert found.status == "inconclusive"
    assert "not the model's" in found.details["reason"]
    assert found.details["missing_bounds"]["worst"]["status"] != "supported"


def test_lost_scores_that_cannot_change_the_answer_do_not():
    found = verdict("improves", side("a", 360), side("b", 300, fixed=True, missing=10))
    assert found.status == "supported"
    assert found.confidence["evidence"]["missing"]["state"] == "weak"


def test_failed_extractions_count_as_failures_and_are_counted_apart():
    found = verdict("improves", side("a", 340), side("b", 300, fixed=True, missing=60, reason="extraction_failed"))
    assert found.status == "supported"
    assert "60 of 1,200 scores missing" in found.sentence
    assert found.details["missing_bounds"]["worst"]["gap"] < found.estimates[0].value


def test_only_what_the_machine_lost_is_filled_when_it_is_asked_what_could_change():
    """Sixty failures of the model at their best for A would undo the win; they are the model's, and one is lost."""
    a = side("a", 340)
    b = side("b", 300, fixed=True, missing=60, reason="extraction_failed")
    one_lost = np.zeros_like(b.score_S_N, dtype=bool)
    one_lost[0, -1] = True
    b = replace(b, machine_missing_S_N=one_lost, missing=({"extraction_failed": 59, "crashed": 1},))
    found = verdict("improves", a, b)
    assert found.status == "supported"
    assert found.details["missing_bounds"]["worst"]["status"] != "supported"
    assert set(found.details["lost_bounds"].values()) == {"supported"}


def test_an_unknown_reason_is_named_in_the_verdict():
    found = verdict("improves", side("a", 360), side("b", 300, fixed=True, missing=5, reason="disk_full"))
    assert any("'disk_full': a reason that is not known" in w for w in found.warnings)


def test_lost_scores_open_a_share_carried_over_as_well():
    a, b = zoned(0.2, 0.18), zoned(0, 0, name="b", seed=1)
    assert verdict("generalises", a, b, share=0.5).status == "supported"
    gone = np.zeros_like(a.score_S_N, dtype=bool)
    gone[0, -60:] = True
    lost = replace(
        a, score_S_N=np.where(gone, np.nan, a.score_S_N), machine_missing_S_N=gone, missing=({"crashed": 60},)
    )
    context = Context(failure_values={"sums": 0.48})
    found = verdict("generalises", lost, b, share=0.5, context=context)
    assert found.status == "inconclusive" and "60 crashed" in found.details["reason"]
    assert {k: v for k, v in found.details["lost_bounds"].items() if "best" not in k}["worst/worst"] != "supported"


# ---------------------------------------------------------------- direction, rules, memorisation


@pytest.mark.parametrize(("up", "says"), [(False, "lower is better"), (None, "the direction is not known")])
def test_a_claim_of_better_or_worse_needs_scores_that_are_higher_is_better(up, says):
    a, b = (replace(t, higher_is_better=up, metric="wer") for t in (side("a", 340), BASE))
    for kind, more in (("improves", {}), ("better_by", {"margin": 0.01}), ("not_worse", {"margin": 0.02})):
        found = verdict(kind, a, b, **more)
        assert found.status == "untested" and says in found.sentence
    assert verdict("differ", a, b, margin=0.02).status == "supported"
    assert verdict("equivalent", a, b, margin=0.5).status == "supported"


def test_a_frozen_rule_on_a_claim_without_a_gap_is_not_ignored():
    found = verdict("generalises", zoned(0.2, 0.18), zoned(0, 0, name="b", seed=1), share=0.5, rule={"min_gap": 0.1})
    assert found.status == "untested" and "frozen rule" in found.sentence


def test_a_frozen_rule_has_no_winner_that_lost_scores_could_change():
    found = verdict("improves", side("a", 320), side("b", 300, fixed=True, missing=60), rule={"min_gap": 0.03})
    assert (found.details["frozen_rule"]["winner"], found.details["frozen_rule"]["a"]) == (None, "a")
    assert "60 crashed" in found.details["frozen_rule"]["withheld"]


def test_an_improvement_says_when_memorisation_was_not_tested():
    def zones(*names):
        mark = tuple(names[i % len(names)] for i in range(N)) if names else None
        return replace(side("a", 340), zone_N=mark), replace(BASE, zone_N=mark)

    for names, zone, says in (
        ((), None, "no zones"),
        (("stranger",), "stranger", "one zone (stranger)"),
        (("seen", "stranger"), "seen", "one zone (seen)"),
        (("seen", "stranger"), None, "the zones seen, stranger were pooled"),
        (("seen", "stranger"), "stranger", ""),
    ):
        found = verdict("improves", *zones(*names), zone=zone)
        assert found.details.get("memorisation", "") == says
        assert any("learned or memorised was not tested" in w for w in found.warnings) == bool(says)
        assert any("“a learned the style”" in line for line in found.may_not) == bool(says)
    assert "memorisation" not in verdict("differ", *zones(), margin=0.02).details


# ---------------------------------------------------------------- generalises


def zoned(gain_seen, gain_stranger, *, runs=1, name="a", seed=0) -> ScoreTable:
    rng = np.random.default_rng(seed)
    zones = ("seen",) * (N // 2) + ("stranger",) * (N // 2)
    gain = np.repeat([gain_seen, gain_stranger], N // 2)
    score = np.clip(0.3 + gain + rng.normal(size=(runs, N)) * 0.05, 0, 1)
    items = tuple(map(str, range(N)))
    return ScoreTable(name, "sums", tuple(map(str, range(runs))), items, score, zone_N=zones, missing=({},) * runs)


@pytest.mark.parametrize(
    ("seen", "stranger", "share", "status"),
    [
        (0.2, 0.18, 0.5, "supported"),
        (0.2, 0.02, 0.5, "refuted"),
        (0.2, 0.1, 0.5, "inconclusive"),
        (0.0, 0.1, 0.5, "inconclusive"),
        (-0.1, 0.1, 0.5, "refuted"),
    ],
)
def test_generalises_follows_its_rule(seen, stranger, share, status):
    found = verdict("generalises", zoned(seen, stranger), zoned(0, 0, name="b", seed=1), share=share)
    assert found.status == status


def test_the_share_is_unbounded_when_the_seen_gap_holds_zero():
    found = verdict("generalises", zoned(0.001, 0.1), zoned(0, 0, name="b", seed=1), share=0.5)
    share = found.estimates[0]
    assert (share.low, share.high) == (None, None)
    assert any("unbounded" in w for w in share.warnings)


@pytest.mark.parametrize("seed", range(12))
def test_the_share_interval_shown_is_the_one_that_decides(seed):
    rng = np.random.default_rng(seed)
    tables = {("b", "sums"): zoned(0, 0, name="b", seed=100 + seed)}
    claims = []
    for i in range(3):
        tables[f"a{i}", "sums"] = zoned(0.04, rng.choice([0.02, 0.03]), name=f"a{i}", seed=10 * seed + i)
        claims.append(ClaimSpec(f"{i}", "generalises", "sums", f"a{i}", "b", share=float(rng.choice([0.4, 0.6, 0.7]))))
    for claim, found in zip(claims, judge(claims, tables)):
        share = found.estimates[0]
        low, high = (-np.inf, np.inf) if share.low is None else (share.low, share.high)
        expected = "supported" if low > claim.share else "refuted" if high < claim.share else "inconclusive"
        assert found.status == expected
        assert len(found.sentence.split()) <= 45


def test_the_share_interval_ends_where_the_contrast_meets_its_margin_of_error():
    from veritune.decide.claims import _carried
    from veritune.stats.paired import Options, pair

    a, b = zoned(0.2, 0.1, runs=3), zoned(0, 0, name="b", seed=1)
    b = ScoreTable("b", "sums", ("0",), b.items, b.score_S_N[:1], zone_N=b.zone_N, fixed=True, missing=({},))
    zones = [compare_tables(a.in_zone(z), b.in_zone(z)) for z in ("stranger", "seen")]
    carried = _carried(pair(a, b), np.repeat([1, 0], N // 2), zones, Options())
    for end, edge in zip(carried.interval(0.95), (0, 1)):
        assert carried.contrast(end).interval(0.95)[1 - edge if edge else 0] is not None
        low, high = carried.contrast(end).interval(0.95)
        assert min(abs(low), abs(high)) == pytest.approx(0, abs=1e-9)


def test_scaling_both_gaps_leaves_the_share():
    shares = []
    for scale in (1.0, 2.0):
        tables = [
            ScoreTable(t.condition, "sums", t.runs, t.items, t.score_S_N * scale, zone_N=t.zone_N, missing=t.missing)
            for t in (zoned(0.2, 0.1), zoned(0, 0, name="b", seed=1))
        ]
        found = verdict("generalises", *tables, share=0.3, context=Context(scales={"sums": (0, scale)}))
        shares.append((found.estimates[0].low, found.estimates[0].value, found.estimates[0].high))
    assert shares[0] == pytest.approx(shares[1])


# ---------------------------------------------------------------- probes


@pytest.mark.parametrize(
    ("probe", "status"),
    [
        (0.4, "supported"),
        (0.2, "refuted"),
        (Estimate("x", 0.4, 0.2, 0.6, 0.95, 9, "m"), "inconclusive"),
        (Estimate("x", 0.5, 0.4, 0.6, 0.95, 9, "m"), "supported"),
        (Estimate("x", None, None, None, 0.95, 0, "m", warnings=("never measured",)), "untested"),
    ],
)
def test_probes_meet_their_threshold_with_their_whole_interval(probe, status):
    claim = ClaimSpec("c", "probe", probe="x", op=">", threshold=0.3)
    (found,) = judge([claim], {}, Context(probes={"x": probe}))
    assert found.status == status
    records.dumps(found)


# ---------------------------------------------------------------- confidence


def test_the_grade_follows_the_named_evidence():
    good = {"c": {"contamination": "clean", "replicated": True}}
    a = side("a", 400, runs=3)
    high = verdict("better_by", a, BASE, margin=0.08, context=Context(evidence=good))
    assert high.status == "supported"
    assert {k: v["state"] for k, v in high.confidence["evidence"].items()} == dict.fromkeys(
        ("seeds", "units", "power", "missing", "contamination", "replication"), "good"
    )
    assert high.confidence["grade"] == "high"
    assert verdict("better_by", a, BASE, margin=0.08).confidence["grade"] == "moderate"
    found = {"*": {"contamination": "found", "replicated": True}}
    assert verdict("better_by", a, BASE, margin=0.08, context=Context(evidence=found)).confidence["grade"] == "low"
    assert verdict("better_by", side("a", 400), BASE, margin=0.08).confidence["grade"] == "low"


def test_power_is_judged_by_the_interval_where_no_margin_is_needed():
    settled = verdict("improves", side("a", 340), BASE).confidence["evidence"]["power"]
    assert settled == {"state": "good", "why": "the interval decided the claim"}
    assert verdict("improves", side("a", 302), BASE).confidence["evidence"]["power"]["state"] == "weak"
    a, b = zoned(0.2, 0.18), zoned(0, 0, name="b", seed=1)
    assert verdict("generalises", a, b, share=0.5).confidence["evidence"]["power"]["state"] == "good"


def test_the_first_estimate_is_the_one_the_comparison_leads_with():
    a = side("a", 340, runs=3)
    assert verdict("improves", a, BASE).estimates[0] == compare_tables(a, BASE).estimate()
