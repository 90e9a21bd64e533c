"""Score tables: what is refused, what is counted, what is kept."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest

from veritune.errors import ScoreError
from veritune.records import Score
from veritune.stats.agreement import krippendorff_alpha
from veritune.stats.paired import compare_tables
from veritune.stats.table import Columns, Missing, ScoreTable, pair


def scores(run="r0", n=5, **changes):
    values = changes.pop("values", [float(i % 2) for i in range(n)])
    return [
        Score(run, "sums", f"q{i}", v, None if v is not None else "crashed", **changes) for i, v in enumerate(values)
    ]


def test_scores_become_a_table_in_their_order():
    table = ScoreTable.from_scores(scores() + scores("r1"), condition="a")
    assert table.runs == ("r0", "r1")
    assert table.items == ("q0", "q1", "q2", "q3", "q4")
    assert table.score_S_N.tolist() == [[0, 1, 0, 1, 0]] * 2


def test_repeated_and_absent_ids_are_named_with_counts():
    rows = [*scores(), scores()[1], scores()[3], *scores("r1")[:4]]
    with pytest.raises(ScoreError) as error:
        ScoreTable.from_scores(rows, condition="a")
    assert "2 ids twice in a, run 'r0' ('q1', 'q3')" in str(error.value)
    assert "1 item missing from a, run 'r1' ('q4')" in str(error.value)


def test_unmatched_ids_are_named_on_both_sides():
    a = ScoreTable.from_scores(scores(n=20), condition="A")
    b = ScoreTable.from_scores([*scores(n=6)[1:], Score("r0", "sums", "x", 1.0)], condition="B")
    with pytest.raises(ScoreError) as error:
        pair(a, b)
    assert "15 items only in A ('q0', 'q6', 'q7' and 12 more)" in str(error.value)
    assert "1 item only in B ('x'); 5 are in both" in str(error.value)


def test_scores_of_two_evals_are_not_paired_and_a_name_on_one_side_holds_for_both():
    a, b = (ScoreTable.from_scores(scores(), condition=name) for name in "ab")
    with pytest.raises(ScoreError, match="found 'sums' in a and 'times' in b"):
        pair(a, replace(b, eval="times"))
    assert pair(replace(a, eval=""), b).a.eval == "sums"


def test_nan_is_refused_by_item():
    with pytest.raises(ScoreError, match="NaN or infinite, first at item 'q1'"):
        ScoreTable.from_scores(scores(values=[1.0, float("nan"), 0.0]))


def test_no_scores_and_mixed_evals_are_refused():
    with pytest.raises(ScoreError, match="found none"):
        ScoreTable.from_scores([])
    with pytest.raises(ScoreError, match="one eval, found 2: other, sums"):
        ScoreTable.from_scores([*scores(), Score("r0", "other", "q9", 1.0)])


def test_missing_scores_are_counted_by_run_and_reason():
    rows = scores(values=[1.0, None, 0.0]) + [
        Score("r1", "sums", f"q{i}", None, r) for i, r in enumerate(("truncated", "truncated", "crashed"))
    ]
    table = ScoreTable.from_scores(rows)
    assert table.missing == ({"crashed": 1}, {"crashed": 1, "truncated": 2})
    assert table.machine_missing_S_N.tolist() == [[False, True, False], [False, False, True]]


def test_missing_scores_follow_the_policy_and_none_is_silent():
    a = ScoreTable.from_scores(scores(values=[1.0, None, 0.0, 1.0]), condition="a")
    b = ScoreTable.from_scores(scores(values=[1.0, 0.0, 0.0, 0.0]), condition="b")
    with pytest.raises(ScoreError, match=r"1 of 4 in a, 0 of 4 in b \(1 crashed\); pairs are never dropped"):
        pair(a, b, missing=Missing("error"))
    assert pair(a, b).diff_N.tolist() == [0, 0, 0, 1]
    assert pair(a, b, missing=Missing("best")).diff_N.tolist() == [0, 1, 0, 1]
    assert pair(b, a, missing=Missing("worst")).diff_N.tolist() == [0, -1, 0, -1]
    assert pair(a, b, missing=Missing("fail", 0.5)).diff_N.tolist() == [0, 0.5, 0, 1]
    estimate = compare_tables(a, b).estimate()
    assert any("1 of 4 scores missing (r0: 1 crashed), counted as 0" in w for w in estimate.warnings)
    assert estimate.details["a"]["scored"] == 3


def test_samples_must_be_declared_and_are_averaged_with_their_variance():
    rows = [Score("r", "sums", i, v) for i, v in (("q0", 1.0), ("q0", 0.0), ("q0", None), ("q1", 1.0))]
    with pytest.raises(ScoreError, match="1 id more than once"):
        ScoreTable.from_scores(rows)
    table = ScoreTable.from_scores(rows, samples=True)
    assert table.score_S_N.tolist() == [[0.5, 1.0]]
    assert table.samples.count_S_N.tolist() == [[2, 1]]
    assert table.samples.failed_S_N.tolist() == [[1, 0]]
    assert table.samples.variance_S_N[0, 0] == 0.5
    assert np.isnan(table.samples.variance_S_N[0, 1])
    # mean of two items, sampling variances ½/2 and ½/1
    assert table.samples.mean_se == pytest.approx(np.sqrt(0.25 + 0.5) / 2)


def test_the_same_sample_twice_is_refused():
    rows = [Score("r", "sums", "q0", v, parts={"sample": k}) for v, k in ((1.0, 1), (0.0, 2), (0.0, 2))]
    with pytest.raises(ScoreError, match="1 sample occurring twice"):
        ScoreTable.from_scores(rows)


def test_raters_are_averaged_and_their_agreement_kept():
    rows = [
        Score("r", "sums", f"q{i}", float(v), parts={"rater": k})
        for k, ratings in (("x", (1, 2, 3, 5)), ("y", (1, 2, 4, 5)))
        for i, v in enumerate(ratings)
    ]
    table = ScoreTable.from_scores(rows)
    assert table.score_S_N.tolist() == [[1, 2, 3.5, 5]]
    expected = krippendorff_alpha(np.array([[1, 2, 3, 5], [1, 2, 4, 5]], dtype=float))
    assert table.samples.raters.alpha == pytest.approx(expected.alpha)
    assert table.samples.raters.raters == 2


def test_zones_restrict_and_an_empty_zone_says_what_there_is():
    rows = [Score("r", "sums", f"q{i}", 1.0, zone="seen" if i < 3 else "stranger") for i in range(5)]
    table = ScoreTable.from_scores(rows, condition="a")
    assert table.in_zone("stranger").items == ("q3", "q4")
    with pytest.raises(ScoreError, match="no items in zone 'sibling'; found 3 in seen, 2 in stranger"):
        table.in_zone("sibling")


def test_families_must_be_whole_and_agree():
    with pytest.raises(ScoreError, match="1 item without a family"):
        ScoreTable.from_scores([Score("r", "s", "q0", 1.0, family="f"), Score("r", "s", "q1", 1.0)])
    a = ScoreTable.from_scores([Score("r", "s", f"q{i}", 1.0, family="f") for i in range(2)], condition="a")
    b = ScoreTable.from_scores([Score("r", "s", f"q{i}", 1.0, family=f"f{i}") for i in range(2)], condition="b")
    with pytest.raises(ScoreError, match="disagree on families: item 'q0' is in 'f' in a and in 'f0' in b"):
        pair(a, b)


def test_equal_ids_that_ask_different_things_are_refused():
    def side(name, contents):
        return ScoreTable.from_columns(
            Columns("s", ["r"] * 2, ["1", "2"], [1.0, 0.0], content=contents), condition=name
        )

    with pytest.raises(ScoreError, match="1 item with the same id but different questions"):
        pair(side("a", ["x", "y"]), side("b", ["x", "z"]))


def test_scores_outside_the_declared_scale_are_refused():
    table = ScoreTable.from_scores(scores(values=[1.0, 7.0]))
    with pytest.raises(ScoreError, match="the scale is 0 to 5, found scores from 1 to 7"):
        pair(table, table, scale=(0, 5))


def test_a_fixed_arm_has_one_run():
    with pytest.raises(ScoreError, match="a fixed arm has one run, found 2"):
        ScoreTable.from_scores(scores() + scores("r1"), fixed=True)


NAN = float("nan")


@pytest.mark.parametrize(("level", "alpha"), [("nominal", 0.743), ("ordinal", 0.815), ("interval", 0.849)])
def test_krippendorffs_alpha_reproduces_his_example(level, alpha):
    """Krippendorff 2011, section C: four observers, twelve units, seven missing ratings."""
    ratings = [
        [1, 2, 3, 3, 2, 1, 4, 1, 2, NAN, NAN, NAN],
        [1, 2, 3, 3, 2, 2, 4, 1, 2, 5, NAN, 3],
        [NAN, 3, 3, 3, 2, 3, 4, 2, 2, 5, 1, NAN],
        [1, 2, 3, 3, 2, 4, 4, 1, 2, 5, 1, NAN],
    ]
    found = krippendorff_alpha(np.array(ratings), level)
    assert round(found.alpha, 3) == alpha
    assert (found.raters, found.units, found.ratings) == (4, 11, 40)


def test_alpha_is_undefined_rather_than_perfect_for_a_constant():
    assert krippendorff_alpha(np.ones((2, 5))).alpha is None
    assert krippendorff_alpha(np.array([[1.0, NAN], [NAN, 2.0]])).reason == "no item was rated twice"
