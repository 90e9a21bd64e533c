"""Claims: each kind's rule, corrections, missing scores, and what may and may not be written."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from scipy.special import stdtr

from veritune import records
from veritune.config.claim import Claim
from veritune.decide.claims import ClaimContext, judge
from veritune.decide.recorded import OverRuns, from_estimate, missing, number, over_runs
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats.intervals import Student
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


def about(name, kind, condition="a", **more):
    """A claim on `condition` against `b`, over all zones of the eval `sums`."""
    return Claim(name=name, kind=kind, **{"eval": "sums", "condition": condition, "against": "b", "zone": None, **more})


def about_probe(name, probe, op=">", threshold=0.3, **more):
    return Claim(name=name, kind="probe", probe=probe, op=op, threshold=threshold, **more)


def verdict(kind, a, b, **more):
    context = more.pop("context", None)
    return judged(about("c", kind, **more), a, b, context)


def judged(claim, a, b, context=None):
    (found,) = judge([claim], {("a", "sums"): a, ("b", "sums"): b}, context)
    records.dumps(found)
    return found


def unchecked(claim, **changes):
    """A claim that no study file can hold: `model_copy` does not validate, and judge must not trust that it did."""
    return claim.model_copy(update=changes)


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
    found = judged(unchecked(about("c", kind, margin=0.02), margin=None), side("a", 302), BASE)
    assert found.status == "untested"
    assert "needs a margin" in found.sentence


def test_a_margin_outside_the_scale_is_untested_and_says_what_was_meant():
    found = verdict("equivalent", side("a", 302), BASE, margin=2.0)
    assert found.status == "untested"
    assert "below 1, the width of the scale" in found.sentence
    assert "Did you mean 0.02?" in found.sentence


def test_missing_tables_probes_and_zones_are_untested_with_the_reason():
    claims = [
        about("one", "improves", "zeta"),
        about_probe("two", "norm", ">", 1.0),
        about("three", "improves", zone="stranger"),
        unchecked(about("four", "generalises", share=0.5), share=None),
    ]
    found = judge(claims, {("a", "sums"): side("a", 302), ("b", "sums"): BASE})
    assert [v.status for v in found] == ["untested"] * 4
    for v, says in zip(found, ("no scores of 'zeta'", "no record of the probe", "no items in zone", "needs a share")):
        assert says in v.sentence
        assert v.confidence["grade"] == "none"


def test_two_claims_of_one_name_are_refused():
    claim = about_probe("c", "x", ">", 1.0)
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
    claim = unchecked(about("c", "improves"), rule={"min_gap": 0.05, "min_seeds": 3})
    unknown = judged(claim, side("a", 340), BASE)
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
    claim = about("c", "improves")
    (alone,) = judge([claim], tables)
    assert alone.status == "supported"
    p = alone.details["p_corrected"]
    others = [about(f"x{i}", "improves", "never_run") for i in range(3)]
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
        about(f"c{i}", k, margin=float(rng.choice([0.02, 0.05])), correction=correction) for i, k in enumerate(kinds)
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
        about("first", "improves"),
        about("second", "improves", "c"),
        about("third", "better_by", "c", margin=0.006),
    ]
    first, second, third = judge(claims, tables)
    assert first.estimates[0].level == pytest.approx(1 - 0.05 / 3)
    assert second.estimates[0].level == third.estimates[0].level == pytest.approx(1 - 0.05 / 2)
    assert [v.status for v in (first, second, third)] == ["supported", "inconclusive", "inconclusive"]
    assert "98.3 % interval" in first.sentence
    assert "Holm over 3 claims" in first.sentence


def test_lost_scores_are_bounded_at_the_alpha_that_decides():
    tables = {("a", "sums"): side("a", 322, missing=12), ("b", "sums"): BASE}
    claims = [about("c", "improves")]
    claims += [about(f"x{i}", "improves", "never_run") for i in range(30)]
    found = judge(claims, tables)[0]
    worst = found.details["missing_bounds"]["worst"]
    assert (worst["low"] > 0) == (worst["status"] == "supported")


def test_exploratory_claims_do_not_cost_confirmatory_ones_and_say_what_they_are():
    tables = {("a", "sums"): side("a", 306), ("b", "sums"): BASE}
    claims = [
        about("c", "improves"),
        about("e", "differ", margin=0.001, correction="exploratory"),
    ]
    first, second = judge(claims, tables)
    assert first.details["claims_in_family"] == 1
    assert second.exploratory
    assert any("as predicted" in text for text in second.may_not)


def test_claim_order_does_not_matter():
    tables = {("a", "sums"): side("a", 308), ("b", "sums"): BASE}
    claims = [
        about("c1", "improves"),
        about("c2", "equivalent", margin=0.03),
        about("c3", "better_by", margin=0.05),
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
    context = ClaimContext(failure_values={"sums": 0.48})
    found = verdict("generalises", lost, b, share=0.5, context=context)
    assert found.status == "inconclusive" and "60 crashed" in found.details["reason"]
    assert {k: v for k, v in found.details["lost_bounds"].items() if "best" not in k}["worst/worst"] != "supported"


def test_missing_scores_of_both_zones_count_as_evidence():
    a, b = zoned(0.2, 0.18), zoned(0, 0, name="b", seed=1)
    why = verdict("generalises", a, b, share=0.5).confidence["evidence"]["missing"]["why"]
    assert why == f"0 of {a.score_S_N.size + b.score_S_N.size} scores missing"


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
    claim = unchecked(about("c", "generalises", share=0.5), rule={"min_gap": 0.1})
    found = judged(claim, zoned(0.2, 0.18), zoned(0, 0, name="b", seed=1))
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
        claims.append(about(f"c{i}", "generalises", f"a{i}", share=float(rng.choice([0.4, 0.6, 0.7]))))
    for claim, found in zip(claims, judge(claims, tables)):
        share = found.estimates[0]
        low, high = (-np.inf, np.inf) if share.low is None else (share.low, share.high)
        expected = "supported" if low > claim.share else "refuted" if high < claim.share else "inconclusive"
        assert found.status == expected
        assert len(found.sentence.split()) <= 45


def test_the_share_interval_ends_where_the_contrast_meets_its_margin_of_error():
    from veritune.decide.shares import carried_over
    from veritune.stats.paired import PairOptions, pair

    a, b = zoned(0.2, 0.1, runs=3), zoned(0, 0, name="b", seed=1)
    b = ScoreTable("b", "sums", ("0",), b.items, b.score_S_N[:1], zone_N=b.zone_N, fixed=True, missing=({},))
    zones = [compare_tables(a.in_zone(z), b.in_zone(z)) for z in ("stranger", "seen")]
    carried = carried_over(pair(a, b), np.repeat([1, 0], N // 2), zones, PairOptions())
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
        found = verdict("generalises", *tables, share=0.3, context=ClaimContext(scales={"sums": (0, scale)}))
        shares.append((found.estimates[0].low, found.estimates[0].value, found.estimates[0].high))
    assert shares[0] == pytest.approx(shares[1])


# ---------------------------------------------------------------- probes


def probe_verdicts(*probes, op=">", threshold=0.3, **more):
    """One claim a quantity, all with one op and threshold."""
    named = {f"x{i}": probe for i, probe in enumerate(probes)}
    claims = [about_probe(name, name, op, threshold, **more) for name in named]
    found = judge(claims, {}, ClaimContext(probes=named))
    for verdict_ in found:
        records.dumps(verdict_)
    return found


def t_estimate(value, se=0.05, df=20.0, level=0.95) -> Estimate:
    low, high = Student(value, se, df).interval(level)
    return Estimate("x", value, low, high, level, 40, "t", n_clusters=21, se=se, df=df)


@pytest.mark.parametrize(
    ("probe", "status", "says"),
    [
        (0.4, "inconclusive", "a single recorded number: its uncertainty is not known"),
        (1e9, "inconclusive", "a single recorded number"),
        (-1e9, "inconclusive", "a single recorded number"),
        (Estimate("x", 0.4, 0.2, 0.6, 0.95, 9, "m"), "inconclusive", "its interval holds the threshold"),
        (Estimate("x", 0.5, 0.4, 0.6, 0.95, 9, "m"), "supported", "95 % interval [0.400, 0.600]"),
        (Estimate("x", 0.2, 0.1, 0.29, 0.95, 9, "m"), "refuted", "does not meet"),
        (Estimate("x", 0.5, 0.31, 0.69, 0.5, 9, "m"), "inconclusive", "an interval at 50 % and none at 95 %"),
        (Estimate("x", 0.5, 0.5, 0.5, 0.95, 9, "m"), "inconclusive", "no width"),
        (Estimate("x", 0.5, 0.6, 0.4, 0.95, 9, "m"), "untested", "expected an interval"),
        (Estimate("x", 0.5, 0.4, 0.6, 95, 9, "m"), "untested", "at a level between 0 and 1"),
        (
            Estimate("x", 9.0, 0.4, 0.6, 0.95, 9, "m"),
            "untested",
            ": expected an interval around the value at a level between 0 and 1, found [",
        ),
        (Estimate("x", 0.5, 0.4, float("nan"), 0.95, 9, "m"), "untested", "expected an interval"),
        (Estimate("x", None, None, None, 0.95, 0, "m", warnings=("never measured",)), "untested", "never measured"),
        (Estimate("x", 0.9, None, None, 0.95, 4, "m", warnings=("3 families",)), "inconclusive", "3 families"),
        (float("nan"), "untested", "is nan"),
        (number("x", 0.4, exact=True), "supported", "a count, not an estimate"),
        (number("x", 0.2, exact=True), "refuted", "a count, not an estimate"),
    ],
)
def test_a_probe_is_decided_by_its_interval_and_never_by_its_value(probe, status, says):
    (found,) = probe_verdicts(probe)
    assert found.status == status
    assert says in found.sentence


@pytest.mark.parametrize(
    ("op", "ends", "status"),
    [
        (">=", (0.3, 0.5), "supported"),
        (">", (0.3, 0.5), "inconclusive"),
        ("<", (0.3, 0.5), "refuted"),
        ("<=", (0.3, 0.5), "inconclusive"),
        ("<=", (0.1, 0.3), "supported"),
        ("<", (0.1, 0.3), "inconclusive"),
        (">", (0.1, 0.3), "refuted"),
        (">=", (0.1, 0.3), "inconclusive"),
    ],
)
def test_an_end_on_the_threshold_meets_only_the_ops_that_hold_it(op, ends, status):
    (found,) = probe_verdicts(Estimate("x", sum(ends) / 2, *ends, 0.95, 9, "m"), op=op)
    assert found.status == status


def test_an_interval_recorded_at_one_level_decides_no_claim_that_the_correction_leaves_less():
    recorded = Estimate("x", 0.5, 0.31, 0.69, 0.95, 9, "m")
    assert probe_verdicts(recorded)[0].status == "supported"
    first, second = probe_verdicts(recorded, recorded)
    assert first.status == second.status == "inconclusive"
    assert "none at 97.5 %" in first.sentence and "Holm" not in first.sentence.split(";")[0]
    assert (first.estimates[0].low, first.estimates[0].level) == (0.31, 0.95)
    wide = Estimate("x", 0.5, 0.31, 0.69, 0.975, 9, "m")
    assert [v.status for v in probe_verdicts(wide, wide)] == ["supported"] * 2
    assert probe_verdicts(recorded, recorded, correction="exploratory")[0].status == "supported"


def test_an_estimate_with_its_standard_error_has_an_interval_at_the_level_that_decides():
    found = probe_verdicts(t_estimate(0.5), 0.9, t_estimate(0.31))
    assert [v.status for v in found] == ["supported", "inconclusive", "inconclusive"]
    assert "98.3 % interval" in found[0].sentence and "Holm over 3 claims" in found[0].sentence
    low, _ = Student(0.5, 0.05, 20).interval(1 - 0.05 / 3)
    assert found[0].estimates[0].low == pytest.approx(low)
    assert found[0].estimates[-1].level == 0.95
    assert found[1].details.get("decided_at_alpha") is None
    # intervals recorded at several levels come before t, and the lowest level that is high enough decides
    rungs = {"intervals": {"0.95": [0.35, 0.65], "0.98": [0.29, 0.7], "0.99": [0.28, 0.72]}}
    laddered = replace(t_estimate(0.5), low=0.35, high=0.65, details=rungs)
    alone, (first, _) = probe_verdicts(laddered)[0], probe_verdicts(laddered, laddered)
    assert alone.status == "supported" and first.status == "inconclusive"
    assert (first.estimates[0].low, first.estimates[0].high) == (0.29, 0.7)
    crossed = {"intervals": {"0.95": [0.25, 0.65], "0.99": [0.4, 0.6]}}  # the wider ends of a lower level stay
    assert probe_verdicts(replace(laddered, low=0.25, details=crossed))[0].status == "inconclusive"
    # an estimate whose ends are not those of its se and df is known at its own level only
    odd = replace(t_estimate(0.5), low=0.45)
    assert probe_verdicts(odd, odd)[0].status == "inconclusive"


def test_probes_share_alpha_with_the_claims_on_scores_and_counts_do_not():
    tables = {("a", "sums"): side("a", 340), ("b", "sums"): BASE}
    gap = about("gap", "improves")
    probe = about_probe("probe", "x", ">", 0.3)
    count = about_probe("count", "n", ">", 0.3)
    context = ClaimContext(probes={"x": t_estimate(0.41), "n": number("n", 0.4, exact=True)})
    alone = judge([probe], tables, context)[0].details
    both = judge([gap, probe, count], tables, context)
    assert both[0].details["claims_in_family"] == both[1].details["claims_in_family"] == 2
    assert alone["p_before_correction"] == both[1].details["p_before_correction"] == pytest.approx(2 * stdtr(20, -2.2))
    assert both[1].details["decided_at_alpha"] == 0.05  # the gap was decided first and leaves all of it
    assert "p_corrected" not in both[2].details and both[2].status == "supported"
    open_gap = judge([gap, probe], {**tables, ("a", "sums"): side("a", 302)}, context)
    assert open_gap[1].status == "inconclusive" and open_gap[1].details["decided_at_alpha"] == 0.025


def test_twenty_claims_at_the_boundary_are_rarely_supported():
    """20 true means on the threshold, t with 20 df: any supported at most .05 + 3 s.e., through `judge` itself."""
    draws, k, df = 400, 20, 20
    rng = np.random.default_rng(3)
    value_R_K = rng.standard_normal((draws, k))
    se_R_K = np.sqrt(rng.chisquare(df, (draws, k)) / df)
    any_supported = 0
    for value_K, se_K in zip(value_R_K, se_R_K):
        found = probe_verdicts(*(t_estimate(v, se, df) for v, se in zip(value_K, se_K)), op=">=", threshold=0.0)
        any_supported += any(v.status == "supported" for v in found)
    assert any_supported / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)
    # each alone has the plain rate on its side, so that the test above can fail
    alone = (value_R_K / se_R_K > Student(0, 1, df).interval(0.95)[1]).any(axis=1).mean()
    assert alone > 0.3


def test_the_grade_of_a_probe_names_its_seeds_and_units():
    named = probe_verdicts(t_estimate(0.5))[0].confidence["evidence"]
    assert named["seeds"]["state"] == "poor" and named["units"] == {"state": "weak", "why": "21 independent units"}
    assert any("the recipe" in text for text in probe_verdicts(t_estimate(0.5))[0].may_not)


# ---------------------------------------------------------------- probes over several runs


def test_several_runs_join_the_spread_of_seeds_with_that_of_items():
    parts = {run: from_estimate(t_estimate(v)) for run, v in zip("abc", (0.5, 0.52, 0.57))}
    found = over_runs("x", parts, "the recipe")
    values = np.array([0.5, 0.52, 0.57])
    seeds = Student(0.0, float(values.std(ddof=1)) / np.sqrt(3), 2).interval(0.98)[1]
    items = Student(0.0, 0.05, 20).interval(0.98)[1]
    low, high = found.spread.interval(0.98)
    assert (low, high) == pytest.approx(
        (values.mean() - np.hypot(seeds, items), values.mean() + np.hypot(seeds, items))
    )
    two = over_runs("x", dict(list(parts.items())[:2]), "the recipe")
    half = max(Student(0.0, 0.01, 1).interval(0.98)[1], items)
    assert two.spread.interval(0.98) == pytest.approx((0.51 - half, 0.51 + half))
    assert found.estimate.n_seeds == 3 and found.estimate.details["by_run"]["c"] == 0.57


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"a": number("x", 0.4)}, "a single recorded number"),
        ({"a": number("x", 0.4), "b": number("x", 0.4 + 1e-13)}, "gave the same value"),
        (
            {"a": from_estimate(t_estimate(0.4)), "b": from_estimate(Estimate("x", 0.4, None, None, 0.95, 9, "m"))},
            "1 of 2",
        ),
    ],
)
def test_runs_that_leave_no_interval_say_why(parts, says):
    found = over_runs("x", parts, "")
    assert found.spread is None
    (verdict_,) = probe_verdicts(found, threshold=0.1)
    assert verdict_.status == "inconclusive" and says in verdict_.sentence


def test_a_run_without_a_value_leaves_none():
    found = over_runs("x", {"a": number("x", 0.4), "b": missing("x", "it diverged")}, "")
    (verdict_,) = probe_verdicts(found)
    assert verdict_.status == "untested" and "run b: it diverged" in verdict_.sentence


def test_counts_that_agree_are_exact_and_counts_that_differ_are_not():
    same = over_runs("x", {"a": number("x", 0.4, exact=True), "b": number("x", 0.4, exact=True)}, "")
    assert same.exact
    apart = over_runs("x", {"a": number("x", 0.4, exact=True), "b": number("x", 0.2, exact=True)}, "")
    assert not apart.exact and apart.spread is not None


@pytest.mark.parametrize("runs", [2, 3, 5])
def test_coverage_over_seeds_and_items(runs):
    """Seeds beside items as large, and alone: both tails beyond the 95 % interval at most .05 + 3 s.e."""
    rng, draws, out = np.random.default_rng(runs), 2000, 0
    for _ in range(draws):
        item, seed_S = rng.standard_normal(), rng.standard_normal(runs)
        spreads = tuple(Student(float(item + s), 1.0, np.inf) for s in seed_S)
        low, high = OverRuns(tuple(s.center for s in spreads), spreads).interval(0.95)
        out += not low <= 0 <= high
    assert out / draws <= 0.05 + 3 * np.sqrt(0.05 * 0.95 / draws)


# ---------------------------------------------------------------- confidence


def test_the_grade_follows_the_named_evidence():
    good = {"c": {"contamination": "clean", "replicated": True}}
    a = side("a", 400, runs=3)
    high = verdict("better_by", a, BASE, margin=0.08, context=ClaimContext(evidence=good))
    assert high.status == "supported"
    assert {k: v["state"] for k, v in high.confidence["evidence"].items()} == dict.fromkeys(
        ("seeds", "units", "power", "missing", "contamination", "replication"), "good"
    )
    assert high.confidence["grade"] == "high"
    assert verdict("better_by", a, BASE, margin=0.08).confidence["grade"] == "moderate"
    found = {"*": {"contamination": "found", "replicated": True}}
    assert verdict("better_by", a, BASE, margin=0.08, context=ClaimContext(evidence=found)).confidence["grade"] == "low"
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
