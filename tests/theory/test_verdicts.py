"""False verdicts, coverage and power through the paths that users take, on designs whose true gap is known.

The designs are those of `bench/theory` (docs/theory.md has the full grid), here and in CI with 300 draws each and a
fixed seed; `make test-theory` takes 2,000. A test fails when an error lies above nominal + 3 standard errors. Where a
rate stands beside a cell, that is what t intervals, sign flips and G - 1 degrees of freedom gave there.
"""

from __future__ import annotations

import importlib.util
import math
import os
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import theory_cells
import theory_designs as designs
from theory_cells import NOMINAL, Cell, all_cells, beyond, claim_of, claims_at, options, rates, status, tables
from theory_designs import Arms, Draw

from veritune.config.claim import Claim
from veritune.decide.claims import ClaimContext, judge
from veritune.records import Estimate
from veritune.stats.paired import compare_tables

pytestmark = pytest.mark.theory

# By its path: `bench/train/run.py` is a module of the same name, and another test imports it.
_SPEC = importlib.util.spec_from_file_location(
    "theory_run", Path(__file__).resolve().parents[2] / "bench" / "theory" / "run.py"
)
assert _SPEC is not None and _SPEC.loader is not None
theory_run = importlib.util.module_from_spec(_SPEC)
sys.modules["theory_run"] = theory_run
_SPEC.loader.exec_module(theory_run)

REPS = int(os.environ.get("VERITUNE_THEORY_REPS", "300"))

CELLS: dict[str, Cell] = {cell.key: cell for cell in all_cells()}


def excess(key: str, reps: int = REPS) -> list[str]:
    """Errors of a cell that lie above nominal + 3 s.e., each with its rate."""
    found = rates(CELLS[key], reps, zlib.crc32(key.encode()), checked=0)
    assert found, f"{key} is not offered"
    limits = {name: NOMINAL[name] + 3 * math.sqrt(NOMINAL[name] * (1 - NOMINAL[name]) / reps) for name in found}
    return [
        f"{name} {n / reps:.3f} (nominal {NOMINAL[name]:g})" for name, n in found.items() if n / reps > limits[name]
    ]


def test_the_bench_finds_every_module_that_decides_a_rate() -> None:
    assert theory_run.code_hash() and len(set(theory_run.CODE)) == len(theory_run.CODE)


# ---------------------------------------------------------------- graded scores: the tail that was not seen

GRADED = [
    "graded | 5 % at -.76 | n = 20 | 0.08",  # .37
    "graded | 5 % at -.76 | n = 57 | 0",  # .17
    "graded | 5 % at -.76 | n = 57 | -0.08",  # .18
    "graded | 2 % at -.88 | n = 57 | 0.08",  # .32
    "graded | 2 % at -.88 | n = 150 | 0",  # .18
    "graded | 2 % at -.88 | n = 400 | 0.08",  # .11
]


@pytest.mark.parametrize("key", GRADED)
def test_a_tail_that_was_not_seen_gives_no_false_verdict(key: str) -> None:
    assert excess(key) == []


HELD = [
    "graded | normal, sd .25 | n = 57 | 0.08",
    "graded | 80 % ties, skewed | n = 57 | 0",
    "graded | lognormal | n = 57 | -0.08",
    "graded | point masses at 0 and 1 | n = 150 | 0.08",
    "graded | 7 % flips | n = 57 | 0",
    "adversarial | 5 of n lose .92, rest constant | n = 57 | 0",
    "adversarial | 3.7 of n lose .92, rest noisy | n = 150 | 0",
]


@pytest.mark.parametrize("key", HELD)
def test_other_shapes_hold_as_well(key: str) -> None:
    assert excess(key) == []


def gap_of(diff_N: np.ndarray) -> tuple[float, float]:
    """The 95 % interval of graded differences on a declared scale of [0, 1]."""
    chosen = options(None)
    estimate = compare_tables(*tables(designs.split(diff_N)), chosen).estimate(0.95)
    assert estimate.low is not None and estimate.high is not None
    return estimate.low, estimate.high


@pytest.mark.parametrize("n", [8, 20, 57, 150])
@pytest.mark.parametrize("jitter", [0.0, 1e-17, 0.002])
def test_identical_and_nearly_identical_outputs_never_give_a_narrow_interval(n: int, jitter: float) -> None:
    low, high = gap_of(jitter * np.random.default_rng(1).random(n))
    least = 1 - 0.025 ** (1 / n)
    assert low <= -least + 0.002 + 1e-6 and high >= least - 1e-6


@pytest.mark.parametrize(("n", "word"), [(58, "inconclusive"), (59, "supported")])
def test_identical_graded_outputs_are_equivalent_within_5_points_from_59_items_on(n: int, word: str) -> None:
    claim = claim_of("equivalent", 0.05)
    spread = compare_tables(*tables(designs.split(np.zeros(n))), options(None)).headline.spread
    assert status(claim, spread) == word


# ---------------------------------------------------------------- families of unequal size

FAMILIES = [
    "families | one of 40 %, strong, graded | G = 6 | 0.1",  # .056
    "families | one of 40 %, strong, graded | G = 8 | 0",  # .112 of intervals miss
    "families | one of 40 %, strong, graded | G = 20 | 0",  # .092, two-sided .172
    "families | one of 40 %, strong, graded | G = 20 | 0.1",  # .068
    "families | one of 40 %, strong, binary | G = 20 | -0.1",
    "families | two of 35 %, strong, graded | G = 20 | 0",  # two-sided .288
    "families | Zipf, strong, graded | G = 20 | 0",
    "families | one of 80 %, strong, graded | G = 20 | 0",
    "family seeds | one of 40 %, graded, 3 v 3 | G = 20 | 0",
    "family seeds | two of 35 %, binary, 2 v 5 | G = 20 | 0.1",
]


@pytest.mark.parametrize("key", FAMILIES)
def test_families_of_unequal_size_give_no_false_verdict(key: str) -> None:
    assert excess(key) == []


def power(draw: Draw, claim: Claim) -> bool:
    spread = compare_tables(*tables(draw), options(draw.declared)).headline.spread
    return status(claim, spread) == "supported"


def share(make, claim: Claim, reps: int = 100) -> float:
    """How often a claim is supported."""
    rng = np.random.default_rng(5)
    return sum(power(make(rng), claim) for _ in range(reps)) / reps


IMPROVES = claim_of("improves")


@pytest.mark.parametrize(("count", "least"), [(5, 0.5), (8, 0.8), (20, 0.95)])
def test_few_equal_families_with_a_large_gap_can_be_decided(count: int, least: float) -> None:
    """Sign flips alone reach no p below .0625 with five families, so that no gap could ever be shown."""
    assert share(designs.families("equal", count, "weak", 0.2, binary=False), IMPROVES) >= least


def test_unequal_families_keep_their_power() -> None:
    assert share(designs.families("one of 40 %", 20, "strong", 0.2, binary=True), IMPROVES) >= 0.5


@pytest.mark.parametrize(("sizes", "count"), [("one of 80 %", 20), ("one of 90 %", 8), ("equal", 3)])
def test_too_few_effective_families_withhold_the_verdict_and_say_why(sizes: str, count: int) -> None:
    draw = designs.families(sizes, count, "weak", 0.3, binary=False)(np.random.default_rng(3))
    a, b = tables(draw)
    (verdict,) = judge([IMPROVES], {("a", "eval"): a, ("b", "eval"): b}, ClaimContext(scales={"eval": (0.0, 1.0)}))
    assert verdict.status == "inconclusive"
    assert verdict.estimates[0].low is None
    assert "famil" in str(verdict.details["reason"])


# ---------------------------------------------------------------- several seeds

UNEQUAL_SPREADS = [
    ("seeds | 2 v 10, one arm, large spread | n = 200 | 0", 1500),  # .041, two-sided .071
    ("seeds | 2 v 2, one arm, large spread | n = 200 | 0", 500),
    ("seeds | 3 v 3, one arm, large spread | n = 200 | 0", 500),
]


@pytest.mark.parametrize(("key", "reps"), UNEQUAL_SPREADS)
def test_arms_that_spread_unequally_give_no_false_verdict(key: str, reps: int) -> None:
    """Satterthwaite's df errs 1.5 times too often here, which 300 draws would not show."""
    assert excess(key, max(REPS, reps)) == []


SEEDS = [
    "seeds | 3 v 10, equal, large spread | n = 200 | 0",
    "seeds | 3 v 3, binary | n = 200 | 0",
    "seeds | 3 v 3, declared equal, mid spread | n = 200 | 0",
    "seeds | 3 v 3, declared shared, sharing does nothing, large spread | n = 200 | 0",
    "few items | rate 0.98, 5 v 5, scores turn | n = 8 | -0.1",
    "few items | rate 0.02, 3 v 3, scores turn | n = 12 | 0.1",
    "tail seeds | 5 % at -.76, 3 v 3 | n = 20 | 0",
    "tail seeds | 5 % at -.76, 5 v 5 | n = 57 | 0",
]


@pytest.mark.parametrize("key", SEEDS)
def test_several_seeds_give_no_false_verdict(key: str) -> None:
    assert excess(key) == []


def test_seed_means_that_differ_in_the_last_bit_are_no_spread() -> None:
    score = np.full((3, 40), 0.3)
    score[1] += 1e-16
    a, b = tables(Draw(score + np.linspace(-0.2, 0.2, 40), score - 0.1))
    comparison = compare_tables(a, b, options(None))
    assert comparison.headline.estimand == "recipe"
    low, high = comparison.headline.spread.interval(0.95)
    assert high - low > 0.05
    assert comparison.results["items"].spread.interval(0.95) == (-math.inf, math.inf)


def test_arms_that_share_their_seeds_gain_power_when_the_study_says_so() -> None:
    """A gap of .1 under a seed spread of .06 that the arms share: the larger-of rule for three seeds."""

    def draws(declared: str | None):
        make = designs.seeded(Arms(3, 3, 0.01, 0.01, declared, shared=0.06), 200)

        def draw(rng: np.random.Generator) -> Draw:
            part = make(rng)
            return Draw(np.clip(part.a_S_N + 0.1, 0, 1), part.b_S_N, declared=declared)

        return draw

    assert share(draws("shared"), IMPROVES, 25) > share(draws(None), IMPROVES, 25) + 0.3


# ---------------------------------------------------------------- generalisation

GENERALISES = [
    "generalises | one of 40 %, strong, families in one zone, 1 v 1 | G = 20 | 0.5",
    "generalises | two of 35 %, strong, families in both zones, 1 v 1 | G = 20 | 0.5",
    "generalises | Zipf, weak, families in one zone, 1 v 1 | G = 8 | 0.5",
]


@pytest.mark.parametrize("key", GENERALISES)
def test_a_share_at_its_boundary_is_neither_supported_nor_refuted(key: str) -> None:
    assert excess(key, min(REPS, 200)) == []


KEEPS = [
    "keeps | price, normal, 1 v 1 | n = 200 | 0.2",
    "keeps | price, normal, 3 v 3 | n = 200 | 0.2",
    "keeps | price, 5 % at -.38, 1 v 1 | n = 57 | 0.2",
    "keeps | price, one of 40 %, 3 v 3 | G = 20 | 0.2",
    "keeps | price, two of 35 %, 1 v 1 | G = 20 | 0.2",
    "keeps | no gain, 3 v 3 | n = 200 | 0",
    "keeps | kept at its margin, 1 v 1 | n = 200 | -0.3",
]


@pytest.mark.parametrize("key", KEEPS)
def test_a_price_at_its_boundary_is_neither_supported_nor_refuted(key: str) -> None:
    assert excess(key, min(REPS, 300)) == []


def test_a_price_well_inside_its_share_is_supported() -> None:
    """Nothing given up of a gain of .3, 200 items, 5 runs: the cells above could have been supported."""
    tally = theory_cells._keeps_tally(designs.Price(200, 5, given_up=0.0))
    rng = np.random.default_rng(4)
    assert sum(tally(rng, False)["keeps"] for _ in range(40)) >= 30


ZONES = [
    "zone gap | equal, strong | G = 12 | 1",  # "partly" .43
    "zone gap | skewed gains, 1 | G = 20 | 1",  # "partly" .56
    "zone gap | skewed gains, 1 | G = 20 | 0.2",
    "zone gap | one of 40 %, strong | G = 20 | 0.5",  # .076
    "zone gap | two of 35 %, strong | G = 40 | 0.2",  # .144
]


@pytest.mark.parametrize("key", ZONES)
def test_the_zone_gap_says_nothing_false(key: str) -> None:
    assert excess(key) == []


# ---------------------------------------------------------------- probes, the gate


@pytest.mark.parametrize("key", [k for k in CELLS if k.startswith("probes")])
def test_twenty_probe_claims_at_the_boundary_err_together_at_most_at_alpha(key: str) -> None:
    """Intervals read at the threshold alone gave .435, bare numbers 1."""
    assert excess(key) == []


def test_a_number_without_an_interval_is_inconclusive_and_says_so() -> None:
    claim = Claim(name="c", kind="probe", probe="p", op=">=", threshold=0.5)
    for record in (0.5001, Estimate("p", 0.9, None, None, 0.95, 10, "mean")):
        (verdict,) = judge([claim], {}, ClaimContext(probes={"p": record}))
        assert verdict.status == "inconclusive"
        assert any(word in str(verdict.details["reason"]) for word in ("interval", "uncertainty"))


@pytest.mark.parametrize("shape", ["5 % at -.76", "2 % at -.88", "80 % ties, skewed"])
def test_the_gate_does_not_pass_a_loss_of_its_margin_on_20_graded_items(shape: str) -> None:
    assert excess(f"gate | {shape} | n = 20 | -0.05") == []


# ---------------------------------------------------------------- what the bench measures is what judge says

SAME = [
    ("graded", "5 % at -.76", "n = 20"),
    ("families", "one of 40 %, strong, graded", "G = 8"),
    ("families", "two of 35 %, strong, binary", "G = 20"),
    ("few items", "rate 0.98, 3 v 3, scores turn", "n = 12"),
    ("tail seeds", "5 % at -.76, 3 v 3", "n = 20"),
    ("generalises", "one of 40 %, strong, families in one zone, 1 v 1", "G = 8"),
    ("keeps", "price, Zipf, 3 v 3", "G = 8"),
    ("keeps", "kept at its margin, 3 v 3", "n = 20"),
]


@pytest.mark.parametrize(("group", "design", "size"), SAME)
def test_a_status_read_from_the_intervals_is_the_one_that_judge_gives(group: str, design: str, size: str) -> None:
    chosen = [c for c in CELLS.values() if (c.group, c.design, c.size) == (group, design, size)]
    assert chosen
    for cell in chosen:
        total = rates(cell, 2, 11, checked=2)
        assert total is not None and "crashes" not in total


def test_a_wider_true_gap_is_supported_and_the_reading_agrees_with_judge() -> None:
    """Not only open verdicts agree: at a gap of .3 every kind is settled."""
    draw = designs.graded("normal, sd .05", 57, 0.3)(np.random.default_rng(2))
    a, b = tables(draw)
    spread = compare_tables(a, b, options(None)).headline.spread
    assert beyond(spread, 0.1, 1) and not beyond(spread, 0.5, 1)
    for truth in (0.0, 0.1, -0.1):
        for claim, *_ in claims_at(truth):
            context = ClaimContext(scales={"eval": (0.0, 1.0)})
            (verdict,) = judge([claim], {("a", "eval"): a, ("b", "eval"): b}, context)
            assert verdict.status == status(claim, spread) != "inconclusive"
