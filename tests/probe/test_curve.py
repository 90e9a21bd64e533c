"""A run's curve: which earlier checkpoint would have done, in hand-worked numbers, and when nothing may be said."""

from __future__ import annotations

import json

import pytest

from veritune.probe.curve import Costs, read_curve
from veritune.records import CheckpointCandidate, dumps
from veritune.report.curve import curve_table


def at(step: int, nll: float, **sources: float) -> CheckpointCandidate:
    return CheckpointCandidate(step, nll, None, by_source=sources or None)


FALLING = (at(8, 2.10), at(16, 1.53), at(48, 1.50))
"""From 2.5: gains .40, .97 and 1.00."""


def test_the_earliest_step_that_keeps_most_of_the_gain_is_named_with_what_it_costs() -> None:
    costs = {
        0: Costs({"seen": 2.5, "stranger": 2.5}, m1=0.80, icc=0.30),
        16: Costs({"seen": 1.5, "stranger": 1.7}, m1=0.85, icc=0.25),
        48: Costs({"seen": 0.5, "stranger": 1.5}, m1=0.90, icc=0.20),
    }
    curve = read_curve(FALLING, 48, 2.5, costs)
    assert curve.advised == 16 and curve.chosen == 48
    assert curve.reading == (
        "Step 16 keeps 97% of the gain of step 48 (1.0000 nats per token) in 33% of the steps; M1 changes by +0.0500 "
        "instead of +0.1000, 50% of it, ICC changes by -0.0500 instead of -0.1000, 50% of it, 80% of the gain carries "
        "to strangers instead of 50%. Advice only: step 48 stays the one that is scored. It is lowest at the last "
        "step: longer training may lower it further."
    )
    table = curve_table(json.loads(dumps(curve)))
    assert "48 *" in table and "+0.1000" in table and "step" in table.splitlines()[0]


def test_a_cost_that_was_not_measured_is_called_that() -> None:
    assert "what it costs elsewhere was not measured" in read_curve(FALLING, 48, 2.5).reading


@pytest.mark.parametrize(
    ("candidates", "chosen", "base", "words"),
    [
        (FALLING, 48, None, "untouched model's validation NLL is not recorded"),
        ((at(8, 2.7), at(16, 2.6)), 16, 2.5, "No checkpoint has a lower validation NLL than the untouched model"),
        ((at(8, 1.5), at(16, 1.6)), 8, 2.5, "The first checkpoint, step 8, is the best"),
        ((at(8, 2.0), at(16, 1.5)), 16, 2.5, "No earlier checkpoint keeps 95% of the gain of step 16"),
    ],
)
def test_without_an_earlier_step_none_is_advised(
    candidates: tuple[CheckpointCandidate, ...], chosen: int, base: float | None, words: str
) -> None:
    curve = read_curve(candidates, chosen, base)
    assert curve.advised is None and words in curve.reading


def test_a_turn_and_sources_that_want_another_step_are_named() -> None:
    curve = read_curve((at(8, 1.6, aug=1.2, math=2.0), at(16, 1.5, aug=1.3, math=1.7), at(24, 1.6)), 16, 2.5)
    assert "After step 16 the validation NLL rises, by 0.1000 at step 24." in curve.reading
    assert curve.reading.endswith(
        "By source the lowest NLL lies elsewhere for aug at step 8 (1.2000, +0.1000 at step 16)."
    )
