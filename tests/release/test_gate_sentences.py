"""What a gate says, word for word, and its edges by hand: limits, headroom, licences, and who may wave what through."""

from __future__ import annotations

from collections.abc import Iterable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from veritune.records import Estimate, Verdict
from veritune.release.gate.checks import Part, _claim, _joined, _licence, _limit, _worst_block
from veritune.release.gate.noninferior import Bar, not_worse, worst
from veritune.stats.table import ScoreTable

WER: dict[str, Any] = {"metric": "wer", "higher_is_better": False}
EQUAL = "0.750 against 0.750 on 200 items: gap +0.000, 95 % interval -0.019 to +0.019, margin 0.05"
UNLOADED = f": was the adapter loaded?; {EQUAL}"


def arm(right: Iterable[int], n: int = 200, *, lost: int = 0, families: int = 0, **more: Any) -> ScoreTable:
    """`right` of n items are right; the last `lost` have no score."""
    score = np.zeros((1, n))
    score[0, list(right)] = 1
    score[0, n - lost :] = np.nan
    family = tuple(str(i * families // n) for i in range(n)) if families else None
    missing = ({"crashed": lost} if lost else {},)
    gone = np.isnan(score)
    items = tuple(map(str, range(n)))
    return ScoreTable(
        "now", "e", ("0",), items, score, missing=missing, machine_missing_S_N=gone, family_N=family, **more
    )


@pytest.mark.parametrize(
    ("candidate", "base", "bar", "status", "message"),
    [
        (
            arm(range(154)),
            arm(range(150)),
            Bar(0.05, outputs_differ=True),
            "passed",
            "0.770 against 0.750 on 200 items: gap +0.020, 95 % interval +0.001 to +0.050, margin 0.05",
        ),
        (
            arm(range(90)),
            arm(range(150)),
            Bar(0.05, outputs_differ=True),
            "failed",
            "0.450 against 0.750 on 200 items: gap -0.300, 95 % interval -0.367 to -0.241, margin 0.05",
        ),
        (
            arm(range(8, 150)),
            arm(range(150)),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "0.710 against 0.750 on 200 items: gap -0.040, 95 % interval -0.077 to -0.020, margin 0.05; "
            "the interval reaches across minus the margin; at a true gap of 0 these items pass with a chance of 0.97; "
            "to settle it: about 3,112 items",
        ),
        (
            arm(range(58), **WER),
            arm(range(50), **WER),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "0.290 against 0.250 on 200 items: gap +0.040, 95 % interval +0.020 to +0.077, margin 0.05, "
            "lower is better; the interval reaches across the margin; at a true gap of 0 these items pass with "
            "a chance of 0.97; to settle it: about 3,112 items",
        ),
        (
            arm(range(15), 20),
            arm(range(15), 20),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "0.750 against 0.750 on 20 items: gap +0.000, 95 % interval -0.161 to +0.161, margin 0.05; "
            "the interval reaches across minus the margin; under 73 items this margin cannot be shown, "
            "whatever the outcome",
        ),
        (
            arm(range(150)),
            arm(range(150)),
            Bar(0.05, outputs_differ=False),
            "undecided",
            "no output differs" + UNLOADED,
        ),
        (
            arm(range(150)),
            arm(range(150)),
            Bar(0.05),
            "undecided",
            "no score differs and the outputs are not known" + UNLOADED,
        ),
        (arm(range(150)), arm(range(150)), Bar(0.05, outputs_differ=True), "passed", EQUAL),
        (
            arm(range(10)),
            arm(range(10)),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "the base scores only 0.05: a loss of 0.05 could hardly show here; 0.050 against 0.050 on 200 items: "
            "gap +0.000, 95 % interval -0.019 to +0.019, margin 0.05",
        ),
        (
            arm(range(11)),
            arm(range(11)),
            Bar(0.05, outputs_differ=True),
            "passed",
            "0.055 against 0.055 on 200 items: gap +0.000, 95 % interval -0.019 to +0.019, margin 0.05",
        ),
        (
            arm(range(192), **WER),
            arm(range(192), **WER),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "the base scores 0.96: a loss of 0.05 could hardly show here; 0.960 against 0.960 on 200 items: "
            "gap +0.000, 95 % interval -0.019 to +0.019, margin 0.05, lower is better",
        ),
        (
            arm(range(64)),
            arm(range(4)),
            Bar(0.05, outputs_differ=True),
            "passed",
            "0.320 against 0.020 on 200 items: gap +0.300, 95 % interval +0.241 to +0.367, margin 0.05",
        ),
        (
            arm(range(150)),
            arm(range(150), lost=12),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "0.750 against 0.750 on 200 items: gap +0.000, 95 % interval -0.019 to +0.019, margin 0.05, 12 missing; "
            "12 scores are missing for reasons that are not the model's (12 crashed), and could change the answer",
        ),
        (
            arm(range(150), families=3),
            arm(range(150), families=3),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "0.750 against 0.750 on 200 items: gap +0.000, no interval can be given, margin 0.05; "
            "3 families: fewer than 4 give no interval; "
            "this margin cannot be shown, whatever the outcome (3 families: fewer than 4 give no interval)",
        ),
        (
            arm(range(15), 20),
            arm(range(15), 21),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "expected both sides to score the same items, found 1 item only in now ('20'); 20 are in both. "
            "Score the same items on both sides; unmatched items are never dropped.",
        ),
        (
            arm(range(50), metric="style", higher_is_better=None),
            arm(range(50), metric="style", higher_is_better=None),
            Bar(0.05, outputs_differ=True),
            "undecided",
            "nothing says whether higher style is better. Set `higher_is_better` in the suite.",
        ),
    ],
)
def test_what_a_comparison_came_to(
    candidate: ScoreTable, base: ScoreTable, bar: Bar, status: str, message: str
) -> None:
    found = not_worse(candidate, base, bar)
    assert (found.status, found.message) == (status, message)


def test_lower_is_better_is_the_same_comparison_turned_around() -> None:
    """58 errors against 50 are 142 right answers against 150: each number has its mirror."""
    up = not_worse(arm(range(8, 150)), arm(range(150)), Bar(0.05, outputs_differ=True)).numbers
    down = not_worse(arm(range(58), **WER), arm(range(50), **WER), Bar(0.05, outputs_differ=True)).numbers
    assert (down["gap"], down["low"], down["high"]) == pytest.approx((-up["gap"], -up["high"], -up["low"]))
    same = ("level", "n", "differing", "detectable", "needed_n", "needed_items", "reachable", "chance")
    assert {k: down[k] for k in same} == {k: up[k] for k in same}
    assert (up["candidate"], up["base"], down["candidate"], down["base"]) == (0.71, 0.75, 0.29, 0.25)
    assert up["differing"] == 8 and up["missing"] == {"candidate": 0, "base": 0}


def test_the_bounds_of_missing_scores_are_turned_around_too() -> None:
    """Two scores of the base are missing. Where higher is better the worst for the candidate is that the base had them
    right, a gap of −2/200; where lower is better that they were no errors: +2/200, the other way round."""
    up = not_worse(arm(range(150)), arm(range(150), lost=2), Bar(0.05, outputs_differ=True)).numbers["missing_bounds"]
    assert (up["worst"]["gap"], up["best"]["gap"]) == pytest.approx((-0.01, 0.0))
    plain = not_worse(arm(range(150)), arm(range(150)), Bar(0.05, outputs_differ=True)).numbers
    assert plain["missing_bounds"] is None
    lower = not_worse(arm(range(50), **WER), arm(range(50), lost=2, **WER), Bar(0.05, outputs_differ=True)).numbers
    down = lower["missing_bounds"]
    assert sorted((down["worst"]["gap"], down["best"]["gap"])) == pytest.approx([-0.01, 0.0])
    for bound in down.values():
        assert bound["low"] < bound["gap"] < bound["high"]


@pytest.mark.parametrize(
    ("statuses", "status"),
    [
        ([], "undecided"),
        (["passed"], "passed"),
        (["passed", "undecided"], "undecided"),
        (["undecided", "failed", "passed"], "failed"),
    ],
)
def test_a_gate_is_as_good_as_its_worst_part(statuses: list[Any], status: str) -> None:
    assert worst(statuses) == status
    parts = [Part(s, f"{s} {i}") for i, s in enumerate(statuses)]
    said = [p.message for p in parts if p.status == status]
    assert _joined("data", parts).message == "; ".join(said)


# ---------------------------------------------------------------- limits


@pytest.mark.parametrize(
    ("estimate", "most", "least"),
    [
        ({"value": 0.04, "low": 0.02, "high": 0.07}, "passed", "failed"),
        ({"value": 0.1, "low": 0.05, "high": 0.1}, "passed", "undecided"),
        ({"value": 0.09, "low": 0.07, "high": 0.12}, "undecided", "undecided"),
        ({"value": 0.1, "low": 0.1, "high": 0.3}, "undecided", "passed"),
        ({"value": 0.2, "low": 0.15, "high": 0.25}, "failed", "passed"),
    ],
)
def test_the_worse_end_passes_and_the_better_end_fails(estimate: dict[str, float], most: str, least: str) -> None:
    ends = f"{estimate['value']:.3g} ({estimate['low']:.3g} to {estimate['high']:.3g})"
    assert _limit("ece", estimate, most=0.1) == Part(most, f"ece {ends}, at most 0.1")  # type: ignore[arg-type]
    assert _limit("rate", estimate, least=0.1) == Part(least, f"rate {ends}, at least 0.1")  # type: ignore[arg-type]


@pytest.mark.parametrize("estimate", [None, 0.3, {}, {"value": 1, "low": None, "high": 2}, {"value": 1, "low": 0.0}])
def test_no_interval_decides_nothing(estimate: Any) -> None:
    assert _limit("ece", estimate, most=9.0) == Part("undecided", "ece: no interval was recorded")
    assert _limit("ece", {"low": 0.0, "high": 0.0}, most=9.0) == Part("passed", "ece (0 to 0), at most 9")


@pytest.mark.parametrize(
    ("estimate", "part"),
    [
        ({"worst": 1.25}, Part("passed", "peak_memory of the largest block 1.25, at most 1.25")),
        ({"worst": 1.26}, Part("undecided", "peak_memory of the largest block 1.26 times the base's, at most 1.25")),
        ({}, Part("undecided", "peak_memory: the largest block was not recorded")),
        (None, Part("undecided", "peak_memory: the largest block was not recorded")),
    ],
)
def test_the_largest_block_blocks_a_pass_and_no_more(estimate: Any, part: Part) -> None:
    assert _worst_block(estimate, 1.25) == part


# ---------------------------------------------------------------- licences and claims


def licence(found: dict[str, int] | None, rows: int, *, allowed: Iterable[str], stated: str | None = None) -> Part:
    data = SimpleNamespace(licences=tuple(allowed), licence=stated)
    case: Any = SimpleNamespace(policy=SimpleNamespace(release=SimpleNamespace(data=data)))
    return _licence(case, {"licences": found, "rows": rows})


@pytest.mark.parametrize(
    ("found", "allowed", "stated", "part"),
    [
        ({"MIT": 5, "CC0": 4}, ["mit", "cc0"], None, Part("passed", "licences MIT (5 rows), CC0 (4 rows)")),
        ({"MIT": 5, "GPL": 4}, ["mit"], None, Part("failed", "licences not allowed: GPL (4 rows)")),
        (
            {"MIT": 5, "not stated": 4},
            ["mit"],
            None,
            Part("undecided", "4 of 9 rows name no licence (state it: release.data.licence)"),
        ),
        ({"MIT": 5, "not stated": 4}, ["mit"], "MIT", Part("passed", "licences MIT (9 rows)")),
        ({"MIT": 5, "not stated": 4}, ["mit"], "GPL", Part("failed", "licences not allowed: GPL (4 rows)")),
        ({}, ["mit"], None, Part("undecided", "9 of 9 rows name no licence (state it: release.data.licence)")),
        (None, ["mit"], "MIT", Part("passed", "licences MIT (9 rows)")),
        ({"MIT": 9}, [], None, Part("undecided", "the policy allows no licence (set release.data.licences)")),
    ],
)
def test_every_row_s_licence_must_be_allowed(
    found: dict[str, int] | None, allowed: list[str], stated: str | None, part: Part
) -> None:
    assert licence(found, 9, allowed=allowed, stated=stated) == part


def claimed(**more: Any) -> Any:
    return SimpleNamespace(**{"kind": "better_by", "margin": 0.1, "condition": "wide", "share": None} | more)


def judged(status: str = "supported", low: float | None = 0.21, **more: Any) -> Verdict:
    estimate = Estimate("gap", 0.31, low, 0.41, 0.95, 29, "crossed")
    return Verdict("gains", "better_by", status, "It gained.", (estimate,), margin=0.1, **more)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("claim", "verdict", "part"),
    [
        (claimed(), judged(), Part("passed", "claim gains is supported (+0.310, +0.210 to +0.410, n 29)")),
        (claimed(), judged("refuted"), Part("failed", "claim gains is refuted (+0.310, +0.210 to +0.410, n 29)")),
        (claimed(), judged("untested", None), Part("undecided", "claim gains is untested")),
        (claimed(), None, Part("undecided", "no claim 'gains' has a verdict here")),
        (None, judged(), Part("undecided", "no claim 'gains' has a verdict here")),
        (claimed(kind="improves"), judged(), Part("undecided", "claim gains (improves) declares no margin")),
        (claimed(margin=None), judged(), Part("undecided", "claim gains (better_by) declares no margin")),
        (
            claimed(kind="generalises", share=0.5, condition="narrow"),
            judged(),
            Part("undecided", "claim gains is about narrow, not about wide"),
        ),
        (
            claimed(),
            judged(exploratory=True),
            Part("undecided", "claim gains is exploratory: it was not declared before results"),
        ),
        (
            claimed(kind="probe", threshold=0.3, condition=None),
            judged(),
            Part("passed", "claim gains is supported (+0.310, +0.210 to +0.410, n 29)"),
        ),
    ],
)
def test_a_claim_carries_a_release_by_its_declared_margin(claim: Any, verdict: Verdict | None, part: Part) -> None:
    assert _claim("gains", claim, verdict, "wide") == part
