"""Every sentence that a verdict can say, word for word: whoever writes one down writes these words."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from veritune.config.claim import Claim
from veritune.decide import wording
from veritune.decide.claims import ClaimContext, judge
from veritune.decide.recorded import number
from veritune.errors import ScoreError
from veritune.records import Estimate, Verdict
from veritune.stats.intervals import Student
from veritune.stats.paired import PairOptions
from veritune.stats.table import ScoreTable

N = 600
ITEMS = tuple(map(str, range(N)))


def arm(name: str, right: int, *, runs: int = 1, fixed: bool = False, lost: int = 0, **more: Any) -> ScoreTable:
    """`right` items of 600 are right; run r errs on r items of its own. The last `lost` have no score."""
    score = np.tile((np.arange(N) < right) * 1.0, (runs, 1))
    for r in range(runs):
        score[r, r * (r + 1) // 2 : r * (r + 1) // 2 + r] = 0
    score[:, N - lost :] = np.nan
    missing = ({"crashed": lost} if lost else {},) * runs
    gone = np.isnan(score)
    labels = tuple(map(str, range(runs)))
    return ScoreTable(
        name, "sums", labels, ITEMS, score, missing=missing, fixed=fixed, machine_missing_S_N=gone, **more
    )


BASE = arm("b", 300, fixed=True)


def claim(kind: str, **more: Any) -> Claim:
    return Claim(**{"name": "c", "kind": kind, "eval": "sums", "condition": "a", "against": "b", "zone": None} | more)


def found(
    a: ScoreTable, b: ScoreTable = BASE, *, kind: str = "improves", context: ClaimContext | None = None, **more: Any
) -> Verdict:
    return judge([claim(kind, **more)], {("a", "sums"): a, ("b", "sums"): b}, context)[0]


UP = "0.567 against 0.500, gap +0.067, 95 % interval [0.049, 0.090] (600 items)."
DOWN = "0.433 against 0.500, gap -0.067, 95 % interval [-0.090, -0.049] (600 items)."
SAME = "0.503 against 0.500, gap +0.003, 95 % interval [-0.003, 0.012] (600 items)"
INSIDE = "0.503 against 0.500, gap +0.003, 90 % interval [-0.001, 0.010] (600 items)."
BELOW = (
    "0.487 against 0.500, gap -0.013, 95 % interval [-0.026, -0.007] (600 items); this design detects 0.0122 or more."
)
ABOVE = "0.517 against 0.500, gap +0.017, 95 % interval [0.009, 0.030] (600 items); this design detects 0.0138 or more."


@pytest.mark.parametrize(
    ("kind", "right", "margin", "sentence"),
    [
        ("improves", 340, None, f"This adapter of a scores higher than b on sums: {UP}"),
        ("improves", 260, None, f"This adapter of a does not improve on b on sums: {DOWN}"),
        (
            "improves",
            302,
            None,
            f"Whether this adapter of a scores higher than b on sums stays open: {SAME}; "
            "this design detects 0.0112 or more.",
        ),
        ("better_by", 340, 0.02, f"This adapter of a is better by more than 0.02 than b on sums: {UP}"),
        ("better_by", 302, 0.05, f"This adapter of a is not better by 0.05 than b on sums: {SAME}."),
        ("better_by", 310, 0.02, f"Whether this adapter of a is better by 0.02 than b on sums stays open: {ABOVE}"),
        ("equivalent", 302, 0.02, f"This adapter of a is equivalent within ± 0.02 to b on sums: {INSIDE}"),
        ("equivalent", 340, 0.02, f"This adapter of a differs by more than 0.02 from b on sums: {UP}"),
        (
            "equivalent",
            310,
            0.02,
            f"Whether this adapter of a is equivalent within ± 0.02 to b on sums stays open: {ABOVE}",
        ),
        ("not_worse", 302, 0.02, f"This adapter of a is not worse by 0.02 or more than b on sums: {SAME}."),
        ("not_worse", 260, 0.02, f"This adapter of a is worse by more than 0.02 than b on sums: {DOWN}"),
        ("not_worse", 292, 0.02, f"Whether this adapter of a stays within 0.02 below b on sums stays open: {BELOW}"),
        (
            "no_regression",
            302,
            0.02,
            f"This adapter of a shows no regression of 0.02 or more against b on sums: {SAME}.",
        ),
        ("no_regression", 260, 0.02, f"This adapter of a regresses by more than 0.02 against b on sums: {DOWN}"),
        (
            "no_regression",
            292,
            0.02,
            f"Whether this adapter of a regresses by 0.02 or more against b on sums stays open: {BELOW}",
        ),
        ("differ", 340, 0.02, f"This adapter of a differs by more than 0.02 from b on sums: {UP}"),
        ("differ", 302, 0.02, f"This adapter of a differs by less than 0.02 from b on sums: {INSIDE}"),
        (
            "differ",
            310,
            0.02,
            f"Whether this adapter of a differs by more than 0.02 from b on sums stays open: {ABOVE}",
        ),
    ],
)
def test_a_claim_about_a_gap(kind: str, right: int, margin: float | None, sentence: str) -> None:
    assert found(arm("a", right), kind=kind, margin=margin).sentence == sentence


@pytest.mark.parametrize(
    ("a", "b", "options", "who"),
    [
        (arm("a", 340, runs=3), BASE, PairOptions(), "With 3 seeds, a"),
        (arm("a", 340, runs=3), arm("b", 300), PairOptions(), "This set of adapters of a"),
        (arm("a", 340, runs=3), arm("b", 300, runs=3), PairOptions(), "With 3 seeds, a"),
        (arm("a", 340, runs=3), arm("b", 300, runs=2), PairOptions(), "With 3 against 2 seeds, a"),
        (
            arm("a", 340, runs=3),
            arm("b", 300, runs=3),
            PairOptions(shared_seeds=True),
            "With 3 seeds shared by both arms, a",
        ),
        (
            arm("a", 340, runs=3),
            arm("b", 300, runs=3),
            PairOptions(equal_seed_spread=True),
            "With 3 seeds of a spread declared equal, a",
        ),
    ],
)
def test_who_the_numbers_speak_of(a: ScoreTable, b: ScoreTable, options: PairOptions, who: str) -> None:
    assert found(a, b, context=ClaimContext(options=options)).sentence.split(" scores ")[0] == who


def test_an_open_claim_about_a_recipe_names_its_seeds_last() -> None:
    sentence = found(arm("a", 303, runs=3)).sentence
    assert sentence.startswith("Whether a scores higher than b on sums stays open: 0.503 against 0.500, gap +0.003, ")
    assert " (600 items), 3 seeds; this design detects " in sentence


def test_families_missing_scores_and_a_zone_stand_in_the_sentence() -> None:
    family, zone = tuple(str(i // 20) for i in range(N)), ("stranger",) * N
    a = arm("a", 500, lost=12, family_N=family, zone_N=zone)
    b = replace(BASE, family_N=family, zone_N=zone)
    sentence = found(a, b, zone="stranger").sentence
    assert sentence.startswith("This adapter of a scores higher than b on stranger items of sums: 0.833 against 0.500")
    assert sentence.endswith(" (600 items in 30 families, 12 of 1,200 scores missing).")


def test_the_correction_that_widened_the_interval_is_named() -> None:
    tables = {("a", "sums"): arm("a", 340), ("b", "sums"): BASE, ("z", "sums"): arm("z", 302)}
    for correction, named in (("confirmatory", "Holm"), ("exploratory", "Benjamini–Hochberg")):
        first, _ = judge(
            [
                claim("improves", correction=correction),
                claim("improves", name="d", condition="z", correction=correction),
            ],
            tables,
        )
        assert f"97.5 % interval [0.047, 0.093], {named} over 2 claims (600 items)." in first.sentence


# ---------------------------------------------------------------- what may not be written

GENERAL = "“a is better (or worse) than b in general”: one model and one eval were measured."
BECAUSE = "“a works because …”: an NLL or a score difference names no mechanism."
RECIPE = "“the recipe a …”: without several seeds on each trained side the numbers speak of adapters."
EQUAL = (
    "“a and b are equal”, “no difference”, “no effect”: a high p is not equality, "
    "no equivalence within a margin was shown."
)
LEARNED = "“a learned the style”, “the task”: whether it was learned or memorised was not tested: no zones."
TREND = "“a tends to be better”, “a trend”: the interval decides, not the point estimate."
RELEVANT = "“by a relevant amount”: no margin was declared, so the size is unresolved."
PREDICTED = "“as predicted”, “confirmed”: the claim is exploratory."


@pytest.mark.parametrize(
    ("right", "runs", "more", "lines"),
    [
        (340, 1, {}, [GENERAL, BECAUSE, RECIPE, LEARNED, RELEVANT]),
        (340, 3, {}, [GENERAL, BECAUSE, LEARNED, RELEVANT]),
        (340, 1, {"margin": 0.02}, [GENERAL, BECAUSE, RECIPE, LEARNED]),
        (340, 1, {"correction": "exploratory"}, [GENERAL, BECAUSE, RECIPE, LEARNED, RELEVANT, PREDICTED]),
        (260, 1, {}, [GENERAL, BECAUSE, RECIPE, LEARNED]),
        (302, 1, {}, [GENERAL, BECAUSE, RECIPE, EQUAL, LEARNED, TREND]),
        (302, 1, {"kind": "equivalent", "margin": 0.02}, [GENERAL, BECAUSE, RECIPE]),
        (310, 1, {"kind": "equivalent", "margin": 0.02}, [GENERAL, BECAUSE, RECIPE, EQUAL, TREND]),
    ],
)
def test_what_may_not_be_written_about_a_gap(right: int, runs: int, more: dict[str, Any], lines: list[str]) -> None:
    verdict = found(arm("a", right, runs=runs), **more)
    assert list(verdict.may_not) == lines


def test_a_claim_without_scores() -> None:
    verdict = found(arm("a", 302), condition="never_run")
    assert verdict.sentence == (
        "The claim 'c' was not tested: no scores of 'never_run' on 'sums'. Run and score it, then decide again."
    )
    lines = (GENERAL, BECAUSE, RECIPE, EQUAL.replace("a and b", "never_run and b"))
    assert list(verdict.may_not) == [
        line.replace("“a ", "“never_run ").replace("recipe a", "recipe never_run") for line in lines
    ]


# ---------------------------------------------------------------- shares


def zoned(seen: float, stranger: float, name: str = "a", runs: int = 1) -> ScoreTable:
    """300 items a zone that alternate by ± .05 around .3, the arm's gain added, so both gaps are exact."""
    wave = np.where(np.arange(N) % 2, 0.05, -0.05) * (1 if name == "a" else -1)
    score = np.tile(0.3 + wave + np.repeat([seen, stranger], N // 2), (runs, 1))
    zones = ("seen",) * (N // 2) + ("stranger",) * (N // 2)
    labels = tuple(map(str, range(runs)))
    return ScoreTable(name, "sums", labels, ITEMS, score, zone_N=zones, missing=({},) * runs)


def test_a_share_that_carries_over() -> None:
    base = zoned(0, 0, "b")
    yes, no, still_open, nothing, loss = (
        found(zoned(*gains), base, kind="generalises", share=0.5)
        for gains in ((0.2, 0.18), (0.2, 0.02), (0.2, 0.1), (0.0, 0.1), (-0.1, 0.1))
    )
    to = "of its seen gain over b to stranger items of sums"
    gaps = "on 300 stranger items, {} on 300 seen items"
    assert yes.sentence.startswith(
        f"This adapter of a carries at least 0.5 {to}: share 0.900, 95 % interval [0.789, 1.024]; "
    )
    assert yes.sentence.endswith(f"; gap +0.180 {gaps.format('+0.200')}.")
    assert no.sentence.startswith(f"This adapter of a does not carry at least 0.5 {to}: share 0.100, ")
    assert still_open.sentence.startswith(
        f"Whether this adapter of a carries at least 0.5 {to} stays open: share 0.500, "
    )
    assert nothing.sentence.startswith(
        f"Whether this adapter of a carries at least 0.5 {to} stays open (the gap on seen "
    )
    assert nothing.sentence.endswith(
        " itself is not clear of 0): share not defined, no interval: unbounded: the gap on seen is not clear of 0; "
        f"gap +0.100 {gaps.format('+0.000')}."
    )
    assert (
        f"does not carry at least 0.5 {to} (there is no gain to carry over): share -1.000, no interval" in loss.sentence
    )
    assert yes.may_not[-1] == "“a generalises” without the zones: the share speaks of seen and stranger."
    share = yes.estimates[0]
    assert share.name == "share of the seen gap carried to stranger"
    assert share.method == "Fieller-type inversion of the gap contrast, seeds × items"
    assert share.scope.endswith(", relative to 300 items of zone seen")
    assert nothing.estimates[0].warnings == ("unbounded: the gap on seen is not clear of 0",)
    assert nothing.details["reason"] == "the gap on seen itself is not clear of 0"


def test_an_open_share_of_a_recipe_names_its_seeds_last() -> None:
    verdict = found(zoned(0.2, 0.1, runs=3), zoned(0, 0, "b", runs=3), kind="generalises", share=0.5)
    assert verdict.sentence.startswith("Whether a carries at least 0.5 ")
    assert verdict.sentence.endswith(" on 300 seen items, 3 seeds.")


def test_a_share_under_a_correction_keeps_the_uncorrected_one_last() -> None:
    tables = {("a", "sums"): zoned(0.2, 0.18), ("b", "sums"): zoned(0, 0, "b")}
    two = [claim("generalises", name=name, share=share) for name, share in (("c", 0.5), ("d", 0.88))]
    first, second = judge(two, tables)
    assert [e.level for e in first.estimates] == pytest.approx([0.975, 0.95, 0.95, 0.95])
    assert first.estimates[-1].name == first.estimates[0].name and first.estimates[-1].low > first.estimates[0].low
    assert [e.level for e in second.estimates] == pytest.approx([0.95, 0.95, 0.95])


def test_a_loss_on_the_trained_rows_refutes_at_its_own_p() -> None:
    verdict = found(zoned(-0.02, 0.1), zoned(0, 0, "b"), kind="generalises", share=0.5)
    seen = verdict.estimates[2]
    assert verdict.details["reason"] == "there is no gain to carry over"
    assert verdict.details["p_before_correction"] == pytest.approx(seen.p, rel=1e-3)


# ---------------------------------------------------------------- probes


def estimate(value: float, low: float, high: float, level: float = 0.95, n: int = 9, **more: Any) -> Estimate:
    return Estimate("x", value, low, high, level, n, "m", **more)


@pytest.mark.parametrize(
    ("probe", "sentence"),
    [
        (
            0.4,
            "x is 0.4 (n = 1); whether it meets the declared threshold > 0.3 stays open: "
            "a single recorded number: its uncertainty is not known.",
        ),
        (
            estimate(0.4, 0.2, 0.6),
            "x is 0.400, 95 % interval [0.200, 0.600] (n = 9); whether it meets the declared threshold > 0.3 "
            "stays open, its interval holds the threshold.",
        ),
        (
            estimate(0.5, 0.4, 0.6),
            "x is 0.500, 95 % interval [0.400, 0.600] (n = 9) and meets the declared threshold > 0.3.",
        ),
        (
            estimate(0.2, 0.1, 0.29),
            "x is 0.200, 95 % interval [0.100, 0.290] (n = 9) and does not meet the declared threshold > 0.3.",
        ),
        (
            number("x", 0.4, exact=True),
            "x is 0.4, a count, not an estimate, and meets the declared threshold > 0.3.",
        ),
        (
            number("x", 0.2, exact=True),
            "x is 0.2, a count, not an estimate, and does not meet the declared threshold > 0.3.",
        ),
        (
            estimate(0.5, 0.31, 0.69, 0.5),
            "x is 0.500, 50 % interval [0.310, 0.690] (n = 9); whether it meets the declared threshold > 0.3 "
            "stays open: it has an interval at 50 % and none at 95 % (two-sided), where this claim is decided; "
            "record its interval at 95 %, or its standard error and degrees of freedom.",
        ),
        (
            estimate(0.5, 0.4, 0.6, n=1200, n_clusters=21, n_seeds=3, scope="a, the strangers"),
            "x of a, the strangers is 0.500, 95 % interval [0.400, 0.600] (n = 1,200, 21 families, 3 seeds) "
            "and meets the declared threshold > 0.3.",
        ),
        (
            estimate(0.5, 0.4, 0.6, n=1, n_seeds=3),
            "x is 0.500, 95 % interval [0.400, 0.600] (3 seeds) and meets the declared threshold > 0.3.",
        ),
        (
            estimate(0.5, 0.4, 0.6, n=1, n_seeds=1),
            "x is 0.500, 95 % interval [0.400, 0.600] (1 seed) and meets the declared threshold > 0.3.",
        ),
    ],
)
def test_a_claim_about_a_probe(probe: Any, sentence: str) -> None:
    about = Claim(name="c", kind="probe", probe="x", op=">", threshold=0.3)
    assert judge([about], {}, ClaimContext(probes={"x": probe}))[0].sentence == sentence


CAUSED = "“{} caused the result”: a probe explains at most; only an intervention shows a cause."
ONE_RUN = "“the recipe …”: one run was measured, another seed may read differently."


def probe_verdicts(*probes: Any, **more: Any) -> Sequence[Verdict]:
    named = {f"x{i}": probe for i, probe in enumerate(probes)}
    claims = [Claim(name=n, kind="probe", probe=n, op=">", threshold=0.3, **more) for n in named]
    return judge(claims, {}, ClaimContext(probes=named))


def test_what_may_not_be_written_about_a_probe() -> None:
    exact, three = probe_verdicts(number("x", 0.4, exact=True), estimate(0.4, 0.2, 0.6, n_seeds=3))
    assert exact.may_not == (CAUSED.format("x0"),)
    assert three.may_not == (
        CAUSED.format("x1"),
        "“x1 > 0.3”, “about there”, “a trend”: the interval decides, not the value.",
    )
    (one,) = probe_verdicts(estimate(0.5, 0.4, 0.6))
    assert one.may_not == (CAUSED.format("x0"), ONE_RUN)
    (late,) = probe_verdicts(estimate(0.5, 0.4, 0.6), correction="exploratory")
    assert late.may_not == (CAUSED.format("x0"), ONE_RUN, PREDICTED)


def test_a_probe_names_the_correction_only_where_it_widened_the_interval() -> None:
    def student(value: float) -> Estimate:
        return estimate(value, *Student(value, 0.05, 20).interval(0.95), n=40, n_clusters=21, se=0.05, df=20.0)

    first, second = probe_verdicts(student(0.5), student(0.31))
    assert first.sentence == (
        "x0 is 0.500, 97.5 % interval [0.379, 0.621], Holm over 2 claims (n = 40, 21 families) "
        "and meets the declared threshold > 0.3."
    )
    assert "x1 is 0.310, 95 % interval [0.206, 0.414] (n = 40, 21 families); whether it meets" in second.sentence


# ---------------------------------------------------------------- the grade's evidence


def whys(verdict: Verdict) -> dict[str, str]:
    return {name: f"{e['state']}: {e['why']}" for name, e in verdict.confidence["evidence"].items()}


def test_the_grade_s_evidence_in_words() -> None:
    assert whys(found(arm("a", 340), kind="better_by", margin=0.02)) == {
        "seeds": "poor: 1 seed on the arm with the fewest",
        "units": "good: 600 independent items",
        "power": "weak: smallest detectable gap 0.0291, margin 0.02",
        "missing": "good: 0 of 1200 scores missing",
        "contamination": "weak: eval contamination: unchecked",
        "replication": "weak: not repeated on another model or eval",
    }
    family = tuple(str(i // 20) for i in range(N))
    known = ClaimContext(evidence={"*": {"contamination": "clean"}, "c": {"replicated": True}})
    a = arm("a", 500, runs=3, lost=2, family_N=family)
    assert whys(found(a, replace(BASE, family_N=family), context=known)) == {
        "seeds": "good: 3 seeds on the arm with the fewest",
        "units": "weak: 30 families, worth 30",
        "power": "good: the interval decided the claim",
        "missing": "weak: 6 of 2400 scores missing",
        "contamination": "good: eval contamination: clean",
        "replication": "good: repeated on another model or eval",
    }
    poor = ClaimContext(evidence={"c": {"contamination": "found", "replicated": False}})
    named = whys(found(arm("a", 302, runs=2), context=poor))
    assert named["seeds"] == "weak: 2 seeds on the arm with the fewest"
    assert named["power"] == "weak: the interval did not decide the claim"
    assert named["contamination"] == "poor: eval contamination: found"
    assert named["replication"] == "poor: a replication failed"


def test_the_grade_of_a_probe_in_words() -> None:
    one, many = probe_verdicts(estimate(0.5, 0.4, 0.6, n=1), estimate(0.5, 0.4, 0.6, n=99, n_clusters=12, n_seeds=3))
    assert whys(one)["seeds"] == "poor: 1 run" and "units" not in whys(one)
    assert whys(many)["seeds"] == "good: 3 runs"
    assert whys(many)["units"].endswith(": 12 independent units")


# ---------------------------------------------------------------- the words they are made of


@pytest.mark.parametrize(
    ("p", "floor", "text"),
    [
        (None, None, "no p"),
        (0.0, None, "p < 1e-4"),
        (9.99e-5, None, "p < 1e-4"),
        (1e-4, None, "p = 1.0e-04"),
        (0.000999, None, "p = 1.0e-03"),
        (0.001, None, "p = 0.001"),
        (0.0123, None, "p = 0.012"),
        (0.02, 0.02, "p ≤ 0.02"),
        (0.021, 0.02, "p = 0.021"),
        (0.0005, 0.0005, "p < 5.0e-04"),
        (0.001, 0.001, "p ≤ 0.001"),
    ],
)
def test_p_is_never_0_and_a_floor_is_an_upper_bound(p: float | None, floor: float | None, text: str) -> None:
    assert wording.p_text(p, floor) == text


def test_numbers_have_four_decimals_below_10_and_four_digits_above() -> None:
    assert [wording.number(x) for x in (0.5, 9.99999, 10.0, -10.0, 12345.6)] == [
        "0.5000",
        "10.0000",
        "10",
        "-10",
        "1.235e+04",
    ]
    assert [wording.signed(x) for x in (0.5, -0.5, 10.0, 123.456)] == ["+0.5000", "-0.5000", "+10", "+123.5"]
    assert [wording.level_text(x) for x in (0.95, 1 - 0.05 / 3, 0.99949, 0.9995, 1 - 0.05 / 500)] == [
        "95 %",
        "98.3 %",
        "99.9 %",
        "99.95 %",
        "99.99 %",
    ]


def test_a_number_that_rounds_to_0_has_no_sign() -> None:
    assert [wording._fixed(x, 3) for x in (-0.0001, 0.0, -0.5, 9.9996, 12.5)] == [
        "0.000",
        "0.000",
        "-0.500",
        "10.000",
        "12.5",
    ]
    assert [wording._fixed(x, 3, sign=True) for x in (-0.0001, -0.5, 0.5, -12.5)] == [
        "0.000",
        "-0.500",
        "+0.500",
        "-12.5",
    ]


@pytest.mark.parametrize(
    ("low", "places"),
    [(-0.1, 3), (0.0006, 3), (0.0004, 4), (0.00004, 5), (4e-7, 7), (4e-8, 8), (4e-12, 8)],
)
def test_decimals_are_as_many_as_keep_an_end_off_the_edge_and_at_most_8(low: float, places: int) -> None:
    assert wording._places(estimate(0.5, low, 0.6), (0.0,)) == places
    assert wording._places(replace(estimate(0.5, low, 0.6), low=None), (0.0,)) == 3


@pytest.mark.parametrize(
    ("outcome", "text"),
    [
        (
            {"rule": {"min_gap": 0.01, "every_seed": True}, "winner": None, "gap": 0.0053, "per_seed": [0.01, -0.002]},
            "min_gap 0.01, every seed: no winner (gap +0.0053; by seed +0.0100, -0.0020)",
        ),
        (
            {"rule": {"min_gap": 0.01}, "winner": "a", "gap": 0.02, "per_seed": [0.02]},
            "min_gap 0.01: new wins (gap +0.0200)",
        ),
        ({"rule": {"min_gap": 0.01}, "winner": "b", "gap": -0.02}, "min_gap 0.01: old wins (gap -0.0200)"),
        (
            {"rule": {"min_gap": 0.01}, "winner": None, "gap": 0.02, "withheld": "3 crashed"},
            "min_gap 0.01: no winner (gap +0.0200); withheld: 3 crashed",
        ),
    ],
)
def test_a_frozen_rule_in_words(outcome: dict[str, Any], text: str) -> None:
    assert wording.rule_text(outcome, "new", "old") == text


def test_a_rate_has_its_denominator_its_runs_and_what_is_missing() -> None:
    one = {"runs": ["0"], "n": 600, "scored": 600, "mean": 0.5, "total": 300.0}
    two = {"runs": ["0", "1"], "n": 600, "scored": 1190, "mean": 0.5, "total": 600.0}
    assert wording.rate_text(one, binary=True) == "0.5000 (300/600)"
    assert wording.rate_text(two, binary=True) == "0.5000 (600/1200 over 2 runs, 10 missing)"
    assert wording.rate_text(one, binary=False) == "0.5000 (mean of 600)"
    assert wording.rate_text(two, binary=False) == "0.5000 (mean of 1200 over 2 runs, 10 missing)"


def test_an_interval_or_why_there_is_none() -> None:
    none = Estimate("x", 0.5, None, None, 0.95, 9, "m")
    assert wording.interval_text(estimate(0.5, 0.4, 0.6)) == "95 % interval [+0.4000, +0.6000]"
    assert wording.interval_text(none) == "no interval: none can be given"
    assert wording.interval_text(replace(none, warnings=("first", "3 families"))) == "no interval: 3 families"


def test_two_claims_of_one_name() -> None:
    with pytest.raises(ScoreError) as error:
        judge([claim("improves"), claim("improves")], {})
    assert error.value.message == "expected each claim to have its own name, found 'c' twice."


@pytest.mark.parametrize(("up", "says"), [(False, "lower is better"), (None, "the direction is not known")])
def test_scores_of_another_direction(up: bool | None, says: str) -> None:
    a, b = (replace(t, metric="wer", higher_is_better=up) for t in (arm("a", 302), BASE))
    assert found(a, b, kind="not_worse", margin=0.02).sentence == (
        "The claim 'c' was not tested: a claim of kind 'not_worse' reads higher scores as better; "
        f"in wer {says}. State the direction of the scores, or swap the arms where lower is better."
    )
