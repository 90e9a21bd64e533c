"""Claims of kind `keeps`: something is kept, at no more than a declared share of another arm's gain."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from veritune import records
from veritune.config.claim import Claim
from veritune.config.load import parse_study
from veritune.decide.claims import ClaimContext, judge
from veritune.decide.evidence import options_of
from veritune.decide.keeps import _given_up
from veritune.decide.reach import resolution
from veritune.errors import StudyError
from veritune.records import Estimate, Verdict, to_json
from veritune.report import views
from veritune.stats.intervals import t_quantile
from veritune.stats.table import ScoreTable
from veritune.writeup.quantities.verdicts import of_verdict

N = 300
SCALES = {"exam": (0.0, 1.0), "old": (0.0, 1.0)}


def arm(name: str, mean: float, *, eval: str = "exam", runs: int = 3, sd: float = 0.04, seed: int = 0) -> ScoreTable:
    """Graded scores around `mean` on N items, easy or hard alike for all arms; the baseline is one fixed run."""
    runs = 1 if name == "baseline" else runs
    item_N = np.random.default_rng(99).normal(size=N) * 0.05
    rng = np.random.default_rng([seed, *name.encode()])
    score = np.clip(mean + item_N + rng.normal(size=(runs, N)) * sd, 0, 1)
    names = tuple(f"{name}-{s}" for s in range(runs))
    seeds = tuple(map(str, range(runs)))
    items = tuple(map(str, range(N)))
    fixed = name == "baseline"
    return ScoreTable(name, eval, names, items, score, fixed=fixed, seeds=seeds, missing=({},) * runs)


def tables(soft: float, plain: float = 0.7, base: float = 0.3, old: float = 0.6, **more) -> dict:
    made = [arm("soft", soft, **more), arm("plain", plain, **more), arm("baseline", base, **more)]
    own = {**more, "seed": more.get("seed", 0) + 1}
    made += [arm("soft", old, eval="old", **own), arm("baseline", 0.6, eval="old", **own)]
    return {(table.condition, table.eval): table for table in made}


def keeps(**more) -> Claim:
    given = {"kept_eval": "old", "margin": 0.05} if "probe" not in more else {}
    fields = {"eval": "exam", "zone": None, "condition": "soft", "reference": "plain", "share": 0.2, **given, **more}
    return Claim(name="c", kind="keeps", **fields)


def judged(scores: dict, claim: Claim | None = None, **context) -> Verdict:
    (found,) = judge([claim or keeps()], scores, ClaimContext(scales=SCALES, **context))
    records.dumps(found)
    return found


@pytest.mark.parametrize(
    ("soft", "old", "status", "because"),
    [
        (0.67, 0.60, "supported", ""),  # gives up .03 of .40
        (0.56, 0.60, "refuted", "gives up more"),  # .14 of .40
        (0.62, 0.60, "inconclusive", "not clear of 0.2"),  # .08 of .40: the edge itself
        (0.67, 0.40, "refuted", "does not keep old"),
        (0.67, 0.55, "inconclusive", "whether it keeps old"),
        (0.80, 0.60, "supported", ""),  # gains more than the reference
    ],
)
def test_every_part_of_the_claim_decides(soft: float, old: float, status: str, because: str) -> None:
    found = judged(tables(soft, old=old))
    assert found.status == status, found.sentence
    assert because in found.sentence
    assert found.estimates[0].value == pytest.approx((0.7 - soft) / 0.4, abs=0.03)


def test_a_reference_without_a_gain_supports_nothing_and_one_that_lost_refutes() -> None:
    open_ = judged(tables(0.3, plain=0.3))
    assert open_.status == "inconclusive" and "gain of plain over baseline itself" in open_.sentence
    assert (open_.estimates[0].low, open_.estimates[0].high) == (None, None)
    lost = judged(tables(0.3, plain=0.2))
    assert lost.status == "refuted" and "no gain to keep" in lost.sentence


def test_the_share_and_its_contrast_are_those_worked_by_hand() -> None:
    """One run each: (C, R, B) means .6, .7, .2 give up .1 of .5; L(.5) = .6 − .35 − .1."""
    flat = {name: replace(arm(name, 0.5, runs=1), score_S_N=np.full((1, N), x)) for name, x in
            (("soft", 0.6), ("plain", 0.7), ("baseline", 0.2))}  # fmt: skip
    given = _given_up((flat["soft"], flat["plain"], flat["baseline"]), options_of("exam", ClaimContext(scales=SCALES)))
    assert given.value == pytest.approx(0.2)
    assert given.contrast(0.5).gap == pytest.approx(0.15)
    assert given.contrast(0.2).gap == pytest.approx(0.0, abs=1e-12)


@pytest.mark.parametrize("shared", [False, True])
@pytest.mark.parametrize("seed", range(3))
def test_the_interval_shown_is_the_one_that_decides(seed: int, shared: bool) -> None:
    soft = (0.61, 0.63, 0.65)[seed]
    found = judged(tables(soft, seed=seed), options=replace(ClaimContext().options, shared_seeds=shared))
    share = found.estimates[0]
    assert share.low is not None and share.high is not None and share.low < (share.value or 0) < share.high
    assert (found.status == "supported") == (share.high < 0.2)


def few(name: str, *right: int) -> ScoreTable:
    """Eight items a run, so many of them right."""
    score = np.array([[1.0] * n + [0.0] * (8 - n) for n in right])
    table = arm(name, 0.5, runs=len(right))
    return replace(table, score_S_N=score, items=table.items[:8])


def test_a_gain_that_is_clear_is_not_said_to_be_unclear_where_its_share_has_no_bounds() -> None:
    """Eight items, all of the gain kept: the gain is clear of 0, and an end of its share lies many gains away."""
    arms = [few("soft", 7, 8, 8), few("plain", 7, 8, 8), few("baseline", 0)]
    half = 0.0041 * t_quantile(0.975, 2.0)
    kept = Estimate("icc", -0.04, -0.04 - half, -0.04 + half, 0.95, 12, "t", se=0.0041, df=2.0)  # p .010
    name = "geometry.m1_change.2.last.soft"
    claim = keeps(probe=name, op=">", threshold=0.0, share=0.5, alpha=0.0125)
    found = judged({(t.condition, t.eval): t for t in arms}, claim, probes={name: kept})
    assert found.status == "inconclusive"
    assert "the gain of plain over baseline is clear of 0, but an end lies more than 16 gains away" in found.sentence
    assert f"it does not keep {name} > 0 at this level, but a part that refutes alone takes a third" in found.sentence
    assert math.copysign(1.0, found.estimates[0].value or 0.0) == 1.0  # 0, not -0


def test_a_recorded_quantity_may_be_what_is_kept() -> None:
    claim = keeps(probe="geometry.m1_change.2.last.soft", op="<=", threshold=0.05)
    record = {"geometry.m1_change.2.last.soft": Estimate("m1", 0.01, 0.0, 0.02, 0.99, 12, "t", se=None)}
    assert judged(tables(0.67), claim, probes=record).status == "supported"
    worse = {name: replace(e, value=0.09, low=0.07, high=0.11) for name, e in record.items()}
    assert judged(tables(0.67), claim, probes=worse).status == "refuted"
    assert judged(tables(0.67), claim).status == "untested"
    number = dict.fromkeys(record, 0.01)
    assert judged(tables(0.67), claim, probes=number).status == "inconclusive"


def test_scores_that_the_machine_lost_open_the_claim() -> None:
    made = tables(0.67)
    for name in ("soft", "plain", "baseline"):
        whole = made[name, "exam"]
        score = whole.score_S_N.copy()
        score[:, :90] = np.nan
        gone = ({"crashed": 90},) * len(score)
        holed = replace(whole, score_S_N=score, missing=gone, machine_missing_S_N=np.isnan(score))
        found = judged(made | {(name, "exam"): holed})
        assert found.status == "inconclusive" and "could change" in found.sentence, name


def test_an_arm_without_scores_leaves_it_untested_and_names_it() -> None:
    made = tables(0.67)
    del made["plain", "exam"]
    assert "plain" in judged(made).sentence and judged(made).status == "untested"


def test_several_runs_of_the_third_arm_must_pair_with_the_references() -> None:
    made = tables(0.67)
    trained = replace(arm("baseline", 0.3), fixed=False)
    two = replace(arm("other", 0.3, runs=2), condition="baseline")
    assert judged(made | {("baseline", "exam"): trained}).status == "untested"
    assert "found 2 and 3" in judged(made | {("baseline", "exam"): two}).sentence


def test_what_may_not_be_written_says_that_the_reference_was_not_asked() -> None:
    text = " ".join(judged(tables(0.67)).may_not)
    assert "that plain loses it is another claim" in text and "at no cost" in text


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"share": None}, "needs `share`"),
        ({"share": 1.0}, "below 1"),
        ({"reference": None}, "needs `reference`"),
        ({"margin": None}, "needs `margin` beside `kept_eval`"),
        (
            {"kept_eval": None, "margin": None},
            "`kind: keeps` needs exactly one thing to keep: `probe`, `op` and `threshold`, or `kept_eval` and `margin`",
        ),
        (
            {"probe": "nll.stranger.soft", "op": "<", "threshold": 1.0},
            "`kind: keeps` needs exactly one thing to keep: `probe`, `op` and `threshold`, or `kept_eval` and `margin`",
        ),
        ({"kept_eval": None, "margin": None, "probe": "nll.stranger.soft", "op": "<"}, "needs `threshold`"),
    ],
)
def test_an_incomplete_declaration_is_refused(changes: dict, message: str) -> None:
    fields = {**keeps().model_dump(), **changes}
    with pytest.raises(ValueError, match=message):
        Claim(**fields)
    with pytest.raises(ValueError, match="takes no `reference`"):
        Claim(name="c", kind="improves", condition="soft", reference="plain")


def test_the_page_and_the_write_up_name_the_share_both_gains_and_what_is_kept() -> None:
    claim = keeps()
    found = judged(tables(0.67), claim)
    card = views._card(found, claim)
    assert card.asks == "soft keeps old within 0.05 below baseline for at most 0.2 of the gain of plain over baseline"
    assert [line.is_gap for line in card.estimates] == [False, True, True, False]
    assert card.plot is not None and any("declared share 0.2" in mark.label for mark in card.plot.lines)
    named = {q.name: q for q in of_verdict(to_json(found), claim.model_dump(), ["exam", "old"], "verdicts/0")}
    assert named["share.c"].value == found.estimates[0].value and named["share_declared.c"].value == 0.2
    assert named["gap.c.own"].value == found.estimates[1].value
    assert (named["gap.c.reference"].scope.condition, named["gap.c.kept"].scope.eval) == ("plain", "old")


def test_a_plan_says_what_gain_the_reference_needs(study) -> None:
    """Of the tiny study: an arm that gives up nothing needs a gain of the detectable difference over the share."""
    settings = study.settings()
    evals = settings["evals"]
    evals["old"] = {**evals["style"], "zones": ["stranger"]}
    claim = {"name": "c", "kind": "keeps", "condition": "all_layer", "reference": "attention_only", "eval": "style",
             "share": 0.5, "kept_eval": "old", "margin": 0.1}  # fmt: skip
    parsed = parse_study({**settings, "claims": [claim]})
    items = [("stranger", f"f{i // 4}") for i in range(400)]
    (reach,) = resolution(parsed, {"style": items, "old": items})
    assert reach.detectable is not None and reach.detectable[1] is not None
    assert f"attention_only gains {reach.detectable[1] / 0.5:.2f} or more" in reach.sentence
    assert "old, planned as a claim of its own" in reach.sentence and reach.items_for_margin is None
    for change, message in (
        ({"reference": "all_layer"}, "is already one side of this claim; name a third arm"),
        ({"reference": "atention_only"}, "did you mean"),
        ({"kept_eval": "odl"}, "unknown eval 'odl'"),
        ({"kept_zone": "seen"}, "no items in zone 'seen'"),
    ):
        with pytest.raises(StudyError, match=message):
            parse_study({**settings, "claims": [{**claim, **change}]})
