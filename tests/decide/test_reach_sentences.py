"""What a plan says of each claim before anything is spent, word for word."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest

from veritune.config.claim import Claim
from veritune.decide import reach
from veritune.records import Assumed, ClaimReach
from veritune.stats.power import Design, Needed, least_items_equal

PLACE = "120 items of 40 families, 3 seeds"


def reached(**more: Any) -> ClaimReach:
    given: dict[str, Any] = {"items": 120, "families": 40, "seeds": (3, 3), "detectable": (0.05, 0.05), "margin": None}
    return ClaimReach(**({"claim": "c", "kind": "improves", "sentence": ""} | given | more))


@pytest.mark.parametrize(
    ("found", "text"),
    [
        ({}, f"{PLACE}: the smallest difference it detects is 0.050"),
        ({"seeds": (1, 1)}, "120 items of 40 families, 1 seed: the smallest difference it detects is 0.050"),
        ({"detectable": (0.05, 0.0504)}, f"{PLACE}: the smallest difference it detects is 0.050"),
        ({"detectable": (0.05, 0.0506)}, f"{PLACE}: the smallest difference it detects is 0.050 to 0.051"),
        (
            {"detectable": (0.05, None)},
            f"{PLACE}: the smallest difference it detects is 0.050 at best, in the worst case none on the score scale",
        ),
        (
            {"detectable": (None, None)},
            f"{PLACE}: no difference on the score scale is detected; more items or seeds are needed",
        ),
        ({"undecidable": "no verdict is possible: 3 families"}, f"{PLACE}: no verdict is possible: 3 families"),
        (
            {"margin": 0.1, "items_for_margin": (90, 120)},
            f"{PLACE}: the smallest difference it detects is 0.050; the margin 0.1 is resolved in every case",
        ),
        (
            {"margin": 0.1, "items_for_margin": (90, 1210), "chance": (0.5, 0.81), "seeds_for_margin": (5, 7)},
            f"{PLACE}: the smallest difference it detects is 0.050; the margin 0.1 is not resolved in every case "
            "(chance 0.50 to 0.81); with these seeds it takes 90 to 1,210 items, with these items 5 to 7 seeds an arm",
        ),
        (
            {"margin": 0.1, "items_for_margin": (1210, 1210), "chance": (0.5, 0.504), "seeds_for_margin": (None, None)},
            f"{PLACE}: the smallest difference it detects is 0.050; the margin 0.1 is not resolved in every case "
            "(chance 0.50); with these seeds it takes 1,210 items",
        ),
        (
            {"margin": 0.1, "items_for_margin": (1210, None), "chance": (0.1, 0.5), "seeds_for_margin": (5, None)},
            f"{PLACE}: the smallest difference it detects is 0.050; the margin 0.1 is not resolved in every case "
            "(chance 0.10 to 0.50); with these seeds it takes 1,210 at best, and in the worst case no number of items, "
            "with these items 5 at best, and in the worst case no number of seeds an arm",
        ),
        (
            {"margin": 0.1, "items_for_margin": (None, None), "chance": (0.1, 0.1)},
            f"{PLACE}: the smallest difference it detects is 0.050; the margin 0.1 is not resolved in every case "
            "(chance 0.10); with these seeds and the spread assumed no number of items resolves it",
        ),
    ],
)
def test_what_a_design_reaches(found: dict[str, Any], text: str) -> None:
    assert reach._sentence(reached(**found)) == text


def test_ranges_over_what_is_not_known() -> None:
    assert reach._range([3, 1, 2]) == (1, 3)
    assert reach._range([3, None, 2]) == (2, None)
    assert reach._range([None, None]) == (None, None)
    assert reach._counts([Needed(2, 5), None, Needed(3, 9)]) == (5, 9)
    assert reach._counts([Needed(2, None), Needed(3, 9)]) == (9, None)
    assert reach._counts([None, None]) is None


def claim(kind: str, margin: float | None = None) -> Claim:
    return Claim(name="c", kind=kind, eval="e", condition="a", margin=margin)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("about", "design", "text"),
    [
        (claim("equivalent", 0.02), Design(100, 0.1), "under {} items would be enough"),
        (claim("equivalent", 0.2), Design(100, 0.1), ""),
        (claim("improves"), Design(100, 0.1), ""),
        (
            claim("better_by", 0.9),
            Design(3, 0.1),
            "can never be supported: not even a win on all 3 items would be enough",
        ),
        (
            claim("improves"),
            Design(60, 0.1, family_sizes=(20, 20, 20)),
            "no verdict is possible: 3 families: fewer than 4 give no interval",
        ),
    ],
)
def test_what_can_never_be_decided(about: Claim, design: Design, text: str) -> None:
    if "{}" in text:
        text = "can never be `equivalent`: not even identical outputs on " + text.format(least_items_equal(0.02, 0.05))
    assert reach._never(about, design) == text


# ---------------------------------------------------------------- a study's claims


def study(*claims: Claim, seeds: tuple[int, ...] = (0, 1, 2)) -> Any:
    spec = SimpleNamespace(kind="match", score="all")
    made = {"claims": claims, "seeds": seeds, "evals": {"e": spec}, "equal_seed_spread": False, "shared_seeds": True}
    return SimpleNamespace(**made, eval_of=lambda _: "e")


def items(families: int, each: int, zone: str = "stranger") -> dict[str, list[tuple[str, str]]]:
    return {"e": [(zone, f"f{i}") for i in range(families) for _ in range(each)]}


def test_limits_name_the_claims_that_can_never_be_decided() -> None:
    few = study(claim("improves"), claim("equivalent", 0.5))
    why = "no verdict is possible: 3 families: fewer than 4 give no interval"
    assert reach.limits(few, items(3, 20)) == [f"c: {why}", f"c: {why}"]
    assert reach.limits(few, items(60, 1)) == []
    assert reach.limits(few, items(1, 1)) == []


def test_a_design_is_planned_with_alike_and_with_independent_families() -> None:
    about = claim("improves")
    alike = reach._designs(study(about), about, ["a"] * 6 + ["b"] * 2, Assumed(), 0.05)
    # Kish: Σ size²/n = (36 + 4)/8
    assert [d.design_effect for d in alike] == [1.0, 5.0] and alike[0].family_sizes == (2, 6)
    (single,) = reach._designs(study(about), about, ["a", "b", "c"], Assumed(), 0.05)
    assert single.design_effect == 1.0 and single.family_sizes is None
    assert (single.seeds_a, single.seeds_b, single.shared_seeds) == (3, 0, False)  # against the baseline
    pair = Claim(name="c", kind="improves", eval="e", condition="a", against="b")
    assert [(d.seeds_b, d.shared_seeds) for d in reach._designs(study(pair), pair, ["a", "b"], Assumed(), 0.05)] == [
        (3, True)
    ]


def test_one_item_says_nothing() -> None:
    found = reach._claim(study(claim("improves")), claim("improves"), items(1, 1), Assumed(), 1)
    assert (found.sentence, found.design) == ("1 item: nothing can be said", None)


@pytest.mark.parametrize(
    ("uncertainty", "seeds", "confirmatory", "text"),
    [
        (None, 3, 1, "no probe of this study records it"),
        ("exact", 3, 1, "a count: compared as it is, without a share of the error rate"),
        (
            "items",
            3,
            1,
            "decided by its interval, over the probe's own items and 3 seeds: no items to plan",
        ),
        (
            "items",
            1,
            4,
            "decided by its interval at 98.75 %, over the probe's own items and 1 seed: no items to plan",
        ),
        (
            "runs",
            1,
            1,
            "one number a run and one seed: it has no interval, so this claim can only stay open; declare more seeds",
        ),
        (
            "runs",
            2,
            1,
            "one number a run: decided by its interval, a t over 2 seeds; "
            "with two its ends lie 13 standard errors away or more",
        ),
        ("runs", 3, 2, "one number a run: decided by its interval at 97.5 %, a t over 3 seeds"),
    ],
)
def test_what_decides_a_claim_on_a_probe(
    monkeypatch: pytest.MonkeyPatch, uncertainty: str | None, seeds: int, confirmatory: int, text: str
) -> None:
    pattern = None if uncertainty is None else SimpleNamespace(uncertainty=uncertainty, made_by="weights")
    monkeypatch.setattr(reach, "pattern_of", lambda name, study: pattern)
    about = Claim(name="c", kind="probe", probe="x.arm", op=">", threshold=0.3)
    found = reach._claim(study(about, seeds=tuple(range(seeds))), about, {}, Assumed(), confirmatory)
    assert (found.sentence, found.items) == (text, None)
