"""Missing scores: whose doing each reason is, and what the lost ones could hide."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

import veritune
from veritune.errors import ScoreError
from veritune.records import Score
from veritune.stats import lost
from veritune.stats.paired import PairOptions, compare_tables
from veritune.stats.reasons import NO_REASON, REASONS, is_models, lost_text, unknown_reasons
from veritune.stats.rule import decide_tables, frozen_rule_tables
from veritune.stats.table import Missing, ScoreTable, pair

SRC = Path(veritune.__file__).parent


def table(name, values, *, reasons=None, up=True, samples=False, metric="") -> ScoreTable:
    """A table of q0, q1, ...; None is missing for its reason (`crashed` unless `reasons` names another)."""
    rows = []
    for i, cell in enumerate(values):
        for k, value in enumerate(cell if isinstance(cell, tuple) else (cell,)):
            text = value if isinstance(value, str) else None
            number = None if text else value
            reason = text or ((reasons or {}).get(i, "crashed") if number is None else None)
            rows.append(Score("r0", "sums", f"q{i}", number, reason, parts={"sample": k} if samples else {}))
    made = ScoreTable.from_scores(rows, condition=name, samples=samples)
    object.__setattr__(made, "higher_is_better", up)
    object.__setattr__(made, "metric", metric)
    return made


# ---------------------------------------------------------------- reasons


@pytest.mark.parametrize("path", ["evaluate/tasks.py", "evaluate/logs", "release/gate/safety.py"])
def test_every_reason_that_we_write_is_in_the_table(path):
    files = sorted((SRC / path).glob("*.py")) if (SRC / path).is_dir() else [SRC / path]
    text = "\n".join(file.read_text(encoding="utf-8") for file in files)
    written = set(re.findall(r"(?<!: )None, \"([a-z_]+)\"", text)) | set(re.findall(r"reason=\"([a-z_]+)\"", text))
    written |= set(re.findall(r"\"([a-z_]+)\" if (?:failed|value is None)", text))
    assert len(written) >= 2
    assert written <= set(REASONS), written - set(REASONS)


def test_an_empty_output_is_the_models_and_an_unknown_reason_is_not():
    assert is_models("empty_output") and is_models("extraction_failed") and is_models("no_answer")
    assert not any(map(is_models, ("crashed", "timeout", "not_scored", "pattern_too_slow", "disk_full", None)))
    assert lost_text([{"crashed": 2, "empty_output": 5}, {"disk_full": 1}]) == (
        "2 crashed, 1 disk_full (a reason that is not known, so the machine's)"
    )
    assert unknown_reasons([{"crashed": 2, "disk_full": 1, NO_REASON: 3}]) == ["disk_full"]


# ---------------------------------------------------------------- fillings


def test_lost_scores_are_filled_at_both_ends_and_mixed_and_the_models_failures_never():
    a = table("a", [1.0, None, None, None, 0.0], reasons={3: "extraction_failed"})
    b = table("b", [None, 1.0, 0.0, 0.0, 0.0])
    found = {f.name: pair(f.a, f.b) for f in lost.fillings(a, b)}
    assert list(found) == ["worst", "best", "mixed"]
    assert found["worst"].score_a_S_N.tolist() == [[1, 0, 0, 0, 0]]
    assert found["worst"].score_b_S_N.tolist() == [[1, 1, 0, 0, 0]]
    assert found["best"].score_a_S_N.tolist() == [[1, 1, 1, 0, 0]]
    assert found["best"].score_b_S_N.tolist() == [[0, 1, 0, 0, 0]]
    assert found["mixed"].score_a_S_N[0, 1] != found["mixed"].score_a_S_N[0, 2]


def test_where_lower_is_better_the_worst_for_a_is_the_high_end_and_a_failure_counts_as_high():
    a, b = table("a", [0.2, None, "truncated"], up=False), table("b", [0.3, 0.3, 0.3], up=False)
    worst, best, _ = lost.fillings(a, b)
    assert pair(worst.a, worst.b).score_a_S_N.tolist() == [[0.2, 1.0, 1.0]]
    assert pair(best.a, best.b).score_a_S_N.tolist() == [[0.2, 0.0, 1.0]]
    assert pair(a, b).filled == 1.0


def test_what_one_side_knows_holds_for_both_and_a_contradiction_is_refused():
    known, bare = table("a", [0.1, 0.2], up=False, metric="wer"), table("b", [0.1, 0.3], up=None, metric="error")
    assert pair(known, bare).higher_is_better is False
    with pytest.raises(
        ScoreError, match=r"disagree on the direction: lower is better in a \(wer\), higher in b \(acc\)"
    ):
        pair(known, table("b", [0.1, 0.3], up=True, metric="acc"))


def test_without_a_direction_and_a_failure_value_the_models_failures_are_open_too():
    a, b = table("a", [0.2, "truncated"], up=None, metric="style"), table("b", [0.3, 0.3], up=None, metric="style")
    assert {pair(f.a, f.b).score_a_S_N[0, 1] for f in lost.fillings(a, b)} == {0.0, 1.0}
    assert lost.fillings(a, b, missing=Missing("fail", 0.5)) == []


def test_each_zone_is_filled_in_its_own_way():
    rows = [
        Score("r0", "s", f"q{i}", None if i % 2 else 1.0, "crashed", zone=z) for i, z in enumerate(("x", "x", "y", "y"))
    ]
    a = ScoreTable.from_scores(rows, condition="a")
    b = ScoreTable.from_scores([Score("r0", "s", f"q{i}", 1.0, zone=z) for i, z in enumerate("xxyy")], condition="b")
    found = {f.name: f.a.score_S_N[0, [1, 3]].tolist() for f in lost.fillings(a, b, zones=("x", "y"))}
    assert len(found) == 9
    assert found["worst/best"] == [0, 1] and found["best/worst"] == [1, 0]


def test_a_run_without_any_score_is_refused_and_one_of_failures_alone_is_not():
    with pytest.raises(ScoreError, match=r"run 'r0': expected scores, found none in 3 items \(3 crashed\)"):
        pair(table("a", [None] * 3), table("b", [1.0] * 3))
    assert pair(table("a", ["empty_output"] * 3), table("b", [1.0] * 3)).diff_N.tolist() == [-1, -1, -1]


# ---------------------------------------------------------------- samples


def test_a_failed_sample_of_the_model_counts_in_its_items_mean_and_a_lost_one_does_not():
    a = table("a", [(1.0, "no_answer"), (1.0, None), (None, None), (1.0, 0.0)], samples=True)
    b = table("b", [(1.0, 1.0)] * 4, samples=True)
    assert pair(a, b).score_a_S_N.tolist() == [[0.5, 1.0, 0.0, 0.5]]
    worst, best, _ = lost.fillings(a, b)
    assert pair(worst.a, worst.b).score_a_S_N.tolist() == [[0.5, 0.5, 0.0, 0.5]]
    assert pair(best.a, best.b).score_a_S_N.tolist() == [[0.5, 1.0, 1.0, 0.5]]


# ---------------------------------------------------------------- decisions


def test_a_win_that_lost_scores_could_take_away_is_withheld_with_the_reasons_named():
    a, b = [1.0] * 30 + [0.0] * 30, [1.0] * 18 + [0.0] * 42
    assert decide_tables(table("a", a), table("b", b), PairOptions(), None).decision.word == "better, size unresolved"
    gone = b[:18] + [None] * 12 + b[30:]
    found = decide_tables(table("a", a), table("b", gone), PairOptions(), None)
    assert found.decision.word == "inconclusive"
    assert "12 scores are missing for reasons that are not the model's (12 crashed)" in found.decision.reason
    failed = b[:18] + ["extraction_failed"] * 12 + b[30:]
    found = decide_tables(table("a", a), table("b", failed), PairOptions(), None)
    assert (found.decision.word, found.withheld, found.bounds) == ("better, size unresolved", "", ())


def test_an_equivalence_is_withheld_as_a_win_is():
    a = [1.0] * 300 + [0.0] * 300
    assert decide_tables(table("a", a), table("b", a), PairOptions(), 0.05).decision.word == "equivalent"
    found = decide_tables(table("a", [None] * 60 + a[60:]), table("b", [0.0] * 60 + a[60:]), PairOptions(), 0.05)
    assert compare_tables(table("a", [None] * 60 + a[60:]), table("b", [0.0] * 60 + a[60:])).gap == 0
    assert found.decision.word == "inconclusive" and found.withheld


def test_a_frozen_rule_names_no_winner_that_lost_scores_could_change():
    a, b = table("a", [1.0] * 8 + [0.0] * 2), table("b", [1.0] * 6 + [None] * 2 + [0.0] * 2)
    found = frozen_rule_tables(a, b, PairOptions(), {"min_gap": 0.1}, compare_tables(a, b))
    assert (found["winner"], found["satisfied"]) == (None, False)
    assert "2 crashed" in found["withheld"]
    whole = table("b", [1.0] * 6 + [0.0] * 4)
    assert frozen_rule_tables(a, whole, PairOptions(), {"min_gap": 0.1}, compare_tables(a, whole))["winner"] == "a"


def test_the_mixed_filling_has_a_spread_that_neither_end_has():
    rng = np.random.default_rng(0)
    kept = (0.5 + 0.04 * rng.standard_normal(260)).round(3).tolist()
    a, b = table("a", [None] * 8 + kept), table("b", [0.5] * 8 + kept)
    se = {f.name: compare_tables(f.a, f.b).headline.se for f in lost.fillings(a, b)}
    assert se["mixed"] > max(se["worst"], se["best"])


def test_a_part_of_a_table_keeps_each_reason():
    rows = [
        Score("r0", "s", f"q{i}", None, r, zone="x" if i < 2 else "y") for i, r in enumerate(("truncated", "crashed"))
    ]
    rows += [Score("r0", "s", "q2", None, "refused", zone="y"), Score("r0", "s", "q3", 1.0, zone="y")]
    whole = ScoreTable.from_scores(rows)
    assert whole.in_zone("x").missing == ({"crashed": 1, "truncated": 1},)
    assert whole.in_zone("y").missing == ({"refused": 1},)
    assert whole.in_zone("y").machine_missing_S_N.sum() == 0
    by_hand = replace(whole, missing_at=())
    assert not unknown_reasons(by_hand.in_zone("x").missing)


def test_a_table_made_by_hand_without_marks_has_lost_what_its_reasons_do_not_cover():
    whole, b = table("a", [1.0, None, 0.0]), table("b", [1.0, 1.0, 0.0])
    bare = replace(whole, machine_missing_S_N=None, missing=({},), missing_at=())
    assert len(lost.fillings(bare, b)) == 3
    assert lost.fillings(replace(bare, missing=({"truncated": 1},)), b) == []


def test_a_filling_keeps_the_direction_that_the_scores_at_hand_have():
    a, b = table("a", [1.0, None, 0.0], up=None), table("b", [1.0, 1.0, 0.0], up=None)
    assert {pair(f.a, f.b).higher_is_better for f in lost.fillings(a, b, scale=(0.0, 2.0))} == {True}


def test_a_failed_sample_is_refused_where_missing_scores_are():
    a, b = table("a", [(1.0, "no_answer"), (1.0, 1.0)], samples=True), table("b", [(1.0, 1.0)] * 2, samples=True)
    with pytest.raises(ScoreError, match="1 of 2 in a, 0 of 2 in b"):
        pair(a, b, missing=Missing("error"))
    with pytest.raises(ScoreError, match="found 'drop'"):
        Missing("drop")
