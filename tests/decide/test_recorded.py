"""What becomes of a recorded quantity: its interval at any level, joined over runs, by hand or against scipy."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest
from scipy import stats

from veritune.decide.recorded import (
    SINGLE,
    AtLevels,
    ByLevel,
    OverRuns,
    Recorded,
    Widened,
    as_recorded,
    from_estimate,
    log_student_of,
    missing,
    number,
    over_runs,
    student_of,
)
from veritune.errors import ScoreError
from veritune.records import Estimate
from veritune.stats.intervals import Student

T = stats.t.ppf


def estimate(value: float = 0.5, low: float | None = 0.4, high: float | None = 0.6, **more: object) -> Estimate:
    given = {"level": 0.95, "n": 40, "method": "m"} | more
    return Estimate("x", value, low, high, **given)  # type: ignore[arg-type]


# ---------------------------------------------------------------- intervals at some levels

LADDER = AtLevels(((0.9, 0.42, 0.58), (0.95, 0.40, 0.60), (0.99, 0.30, 0.70)))


@pytest.mark.parametrize(
    ("level", "ends"),
    [
        (0.5, (0.42, 0.58)),
        (0.9, (0.42, 0.58)),
        (0.91, (0.40, 0.60)),
        (0.95, (0.40, 0.60)),
        (0.99, (0.30, 0.70)),
        (0.995, (-math.inf, math.inf)),
    ],
)
def test_a_level_takes_the_next_recorded_one_above_it(level: float, ends: tuple[float, float]) -> None:
    assert LADDER.interval(level) == ends


@pytest.mark.parametrize(
    ("value", "side", "alpha"),
    [
        (0.25, 1, 0.005),
        (0.30, 1, 0.025),  # an end on the value does not lie beyond it
        (0.41, 1, 0.05),
        (0.45, 1, 1.0),
        (0.65, -1, 0.025),
        (0.75, -1, 0.005),
        (0.55, -1, 1.0),
    ],
)
def test_the_least_alpha_is_that_of_the_highest_level_that_clears_the_value(
    value: float, side: int, alpha: float
) -> None:
    assert LADDER.tail(value, side) == pytest.approx(alpha)
    assert LADDER.tail(value, side) <= alpha
    assert LADDER.floor == pytest.approx(0.01) and LADDER.floor < 0.01


def test_a_function_of_the_level_holds_the_ends_of_the_levels_below_it() -> None:
    def at(level: float) -> tuple[float, float]:
        return (0.0, 1.0) if level == 0.9 else (0.2 - level / 10, 0.8 + level / 10)

    assert ByLevel(at).interval(0.95) == (0.0, 1.0)  # the 90 % interval is wider, and the 95 % one must hold it
    assert ByLevel(at).interval(0.85) == pytest.approx((0.115, 0.885))
    assert ByLevel(lambda level: (-math.inf, 0.8)).interval(0.95) == (-math.inf, math.inf)


def test_ends_recorded_at_one_level_move_outwards_and_never_inwards() -> None:
    spread = Widened((0.95, 0.1, 0.9), 0.2, 7.0)
    more = (T(0.995, 7) - T(0.975, 7)) * 0.2
    assert spread.interval(0.99) == pytest.approx((0.1 - more, 0.9 + more))
    assert spread.interval(0.95) == pytest.approx((0.1, 0.9))
    assert spread.interval(0.5) == (0.1, 0.9)


# ---------------------------------------------------------------- one quantity


def test_t_is_taken_where_se_and_df_give_the_recorded_ends() -> None:
    low, high = Student(0.5, 0.05, 20).interval(0.95)
    made = estimate(0.5, low, high, se=0.05, df=20.0)
    assert student_of(made) == Student(0.5, 0.05, 20.0)
    spread = from_estimate(made).spread
    assert spread is not None and spread.interval(0.99) == pytest.approx(
        (0.5 - T(0.995, 20) * 0.05, 0.5 + T(0.995, 20) * 0.05)
    )
    for change in ({"se": 0.051}, {"df": 19.0}, {"se": None}, {"df": None}, {"se": -0.05}, {"se": 0.0}, {"low": None}):
        assert student_of(replace(made, **change)) is None
    assert isinstance(from_estimate(replace(made, se=0.051)).spread, AtLevels)


def test_a_ratio_has_its_t_on_a_log_scale() -> None:
    student = Student(math.log(2.0), 0.1, 12)
    low, high = map(math.exp, student.interval(0.95))
    spread = log_student_of(estimate(2.0, low, high, se=0.1, df=12.0))
    assert spread is not None
    assert spread.interval(0.99) == pytest.approx(tuple(map(math.exp, student.interval(0.99))))
    assert log_student_of(estimate(2.0, low, high, se=0.2, df=12.0)) is None
    assert log_student_of(estimate(2.0, 0.0, high, se=0.1, df=12.0)) is None
    assert log_student_of(estimate(2.0, None, high, se=0.1, df=12.0)) is None
    assert log_student_of(estimate(-2.0, low, high, se=0.1, df=12.0)) is None


def test_recorded_levels_are_a_ladder_whose_rungs_hold_each_other() -> None:
    made = estimate(0.5, 0.4, 0.6, details={"intervals": {"0.99": [0.45, 0.7], "0.9": [0.35, 0.55]}})
    spread = from_estimate(made).spread
    assert isinstance(spread, AtLevels)
    assert spread.rungs == ((0.9, 0.35, 0.55), (0.95, 0.35, 0.6), (0.99, 0.35, 0.7))


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (estimate(0.5, 0.6, 0.4), "found [0.6, 0.4] around 0.5 at 0.95."),
        (estimate(0.9, 0.4, 0.6), "found [0.4, 0.6] around 0.9 at 0.95."),
        (estimate(0.5, 0.4, float("inf")), "found [0.4, inf] around 0.5 at 0.95."),
        (estimate(0.5, 0.4, 0.6, level=95.0), "found [0.4, 0.6] around 0.5 at 95.0."),
        (estimate(0.5, 0.4, 0.6, level=1.0), "found [0.4, 0.6] around 0.5 at 1.0."),
    ],
)
def test_a_damaged_interval_is_refused(made: Estimate, message: str) -> None:
    with pytest.raises(ScoreError) as error:
        from_estimate(made)
    expected = "x: expected an interval around the value at a level between 0 and 1, "
    assert (error.value.message, error.value.fix) == (
        expected + message,
        "Make the record again with the probe's own command.",
    )
    assert from_estimate(estimate(0.4, 0.4, 0.6)).spread is not None  # an end on the value is none


def test_what_lacks_an_interval_says_why() -> None:
    assert from_estimate(estimate(0.5, None, None)).lacks == SINGLE
    assert from_estimate(estimate(0.5, None, None, warnings=("few", "old"))).lacks == "few; old"
    flat = from_estimate(estimate(0.5, 0.5, 0.5, warnings=("old",)))
    why = "the recorded interval has no width: values that do not differ say nothing of the next one"
    assert (flat.lacks, flat.estimate.warnings, flat.estimate.low, flat.spread) == (why, ("old", why), None, None)
    assert number("x", 3).estimate.warnings == (SINGLE,) and number("x", 3, exact=True).estimate.warnings == ()
    assert as_recorded("x", 3).lacks == SINGLE


@pytest.mark.parametrize(
    ("quantity", "message"),
    [
        (missing("x", "never run"), "x has no value: never run."),
        (Recorded(estimate(None, None, None)), "x has no value: no reason given."),  # type: ignore[arg-type]
        (Recorded(estimate(None, None, None, warnings=("a", "b"))), "x has no value: a; b."),  # type: ignore[arg-type]
        (float("nan"), "x is nan."),
        (float("inf"), "x is inf."),
    ],
)
def test_a_quantity_without_a_value_is_refused(quantity: Recorded | float, message: str) -> None:
    with pytest.raises(ScoreError) as error:
        as_recorded("x", quantity)
    assert error.value.message == message


# ---------------------------------------------------------------- several runs


def test_runs_alone_are_a_t_interval_of_their_mean() -> None:
    values = (0.4, 0.5, 0.75)
    half = T(0.975, 2) * np.std(values, ddof=1) / math.sqrt(3)
    assert OverRuns(values, None).interval(0.95) == pytest.approx((0.55 - half, 0.55 + half))


@pytest.mark.parametrize("values", [(0.4, 0.6), (0.4, 0.5, 0.75)])
def test_items_and_runs_join_by_squares_and_with_two_runs_by_the_larger(values: tuple[float, ...]) -> None:
    items = tuple(Student(v, 0.02 * (i + 1), 30) for i, v in enumerate(values))
    mean, s = np.mean(values), len(values)
    seeds = T(0.975, s - 1) * np.std(values, ddof=1) / math.sqrt(s)
    own = np.mean([T(0.975, 30) * 0.02 * (i + 1) for i in range(s)])
    half = max(seeds, own) if s == 2 else math.hypot(seeds, own)
    assert OverRuns(values, items).interval(0.95) == pytest.approx((mean - half, mean + half))


def run(value: float | None, **more: object) -> Recorded:
    made = estimate(value, None, None, **more) if value is None else estimate(value, value - 0.1, value + 0.1, **more)  # type: ignore[arg-type]
    return Recorded(made, None if value is None else Student(value, 0.05, 30), lacks="never measured" * (value is None))


def test_one_quantity_from_several_runs() -> None:
    parts = {"r1": run(0.4, n=40, n_clusters=9), "r2": run(0.6, n=38), "r3": run(0.5, n=41, n_clusters=8)}
    joined = over_runs("x.arm", parts, "a, 3 runs")
    found = joined.estimate
    assert (found.name, found.n, found.n_clusters, found.n_seeds, found.scope) == ("x.arm", 38, 8, 3, "a, 3 runs")
    assert found.value == pytest.approx(0.5)
    assert found.method == "mean of runs, t over seeds, joined with m"
    assert found.details == {"by_run": {"r1": 0.4, "r2": 0.6, "r3": 0.5}}
    assert joined.spread is not None and (found.low, found.high) == joined.spread.interval(0.95)
    assert (joined.lacks, found.warnings) == ("", ())


def test_a_run_without_a_value_or_an_interval_takes_it_from_all() -> None:
    void = over_runs("x", {"r1": run(0.4), "r2": run(None)}, "s")
    assert (void.estimate.value, void.lacks) == (None, "run r2: never measured")
    bare = Recorded(estimate(0.5, None, None), None, lacks="3 families", remedy="more families")
    found = over_runs("x", {"r1": run(0.4), "r2": bare}, "s")
    why = "1 of 2 runs have no interval over their items (run r2: 3 families)"
    assert (found.lacks, found.estimate.low, found.estimate.high, found.spread) == (why, None, None, None)
    assert found.estimate.value == pytest.approx(0.45) and found.estimate.warnings == (why,)
    assert found.remedy == "more families"


def test_numbers_without_items_need_runs_that_differ() -> None:
    same = over_runs("x", {"r1": number("x", 2), "r2": number("x", 2)}, "s")
    assert same.lacks == "its 2 runs gave the same value: there is no spread to learn from"
    apart = over_runs("x", {"r1": number("x", 2), "r2": number("x", 3)}, "s")
    half = T(0.975, 1) * np.std([2, 3], ddof=1) / math.sqrt(2)
    assert apart.estimate.high == pytest.approx(2.5 + half)
    assert (apart.estimate.method, apart.estimate.warnings) == ("mean of runs, t over seeds", ())
    one = over_runs("x.arm", {"r1": number("x", 2)}, "s")
    assert (one.estimate.name, one.estimate.n_seeds, one.estimate.scope) == ("x.arm", 1, "s")
    agreed = over_runs("x", {"r1": number("x", 2, exact=True), "r2": number("x", 2, exact=True)}, "s")
    assert agreed.exact and agreed.estimate.n_seeds == 2
    split = over_runs("x", {"r1": number("x", 2, exact=True), "r2": number("x", 3, exact=True)}, "s")
    assert not split.exact and split.estimate.value == 2.5


def test_values_that_differ_by_rounding_are_the_same_whatever_their_size() -> None:
    for size in (1e-3, 1.0, 1e6):
        same = over_runs("x", {"r1": number("x", size), "r2": number("x", size * (1 + 1e-10))}, "s")
        assert same.spread is None
        apart = over_runs("x", {"r1": number("x", size), "r2": number("x", size * (1 + 1e-8))}, "s")
        assert apart.spread is not None
