"""The eval contract: which rows are asked, what a score is, and what is kept beside it."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from veritune.config.evals import Eval, Rule
from veritune.errors import StudyError
from veritune.evaluate.generate import Output
from veritune.evaluate.tasks import check_items, holds, items, normalise, score
from veritune.records import Message, Row


def row(name: str = "r1", **meta: Any) -> Row:
    return Row(name, (Message("user", "q"), Message("assistant", "a")), "rows.jsonl", 1, None, meta)


def said(text: str, ended: Any = "stop_token") -> Output:
    return Output(text, tuple(range(len(text.split()))), ended)


def rules(*given_rules: dict[str, Any], **fields: Any) -> Eval:
    return Eval.model_validate({"rules": [{"name": f"r{i}", **r} for i, r in enumerate(given_rules)], **fields})


def match(extract: str = r"#### (\S+)", expected: str = "answer") -> Eval:
    return Eval(kind="match", extract=extract, expected=expected)


# ---------------------------------------------------------------- items


ROWS = [row(f"f{f}-{k}") for f in range(3) for k in (2, 0, 1)]
FAMILY = {r.id: r.id[:2] for r in ROWS}
ZONE = {r.id: {"f0": "seen", "f1": "stranger", "f2": "validation"}[r.id[:2]] for r in ROWS} | {"f0-2": "sibling"}


def asked(**fields: Any) -> list[str]:
    return [r.id for r in items(rules({"pattern": "x"}, **fields), ROWS, ZONE, FAMILY)]


def test_items_are_the_zones_rows_by_id_and_never_validation() -> None:
    assert asked() == ["f0-0", "f0-1", "f0-2", "f1-0", "f1-1", "f1-2"]
    assert asked(zones=["stranger"]) == ["f1-0", "f1-1", "f1-2"]


def test_the_cap_counts_per_family_and_zone() -> None:
    assert asked(per_family=1) == ["f0-0", "f0-2", "f1-0"]
    assert asked(per_family={"stranger": 2}) == ["f0-0", "f0-1", "f0-2", "f1-0", "f1-1"]


def test_items_do_not_depend_on_the_order_of_rows() -> None:
    spec = rules({"pattern": "x"}, per_family=2)
    assert items(spec, ROWS[::-1], ZONE, FAMILY) == items(spec, ROWS, ZONE, FAMILY)


@pytest.mark.parametrize(
    "spec",
    [
        rules({"contains": "{figure}"}),
        rules({"pattern": "x", "when": {"figure": "low"}}),
        match(expected="figure"),
    ],
)
def test_a_column_that_the_eval_needs_and_a_row_lacks_is_named(spec: Eval) -> None:
    check_items("e", spec, [row(figure="3", other="x")])
    with pytest.raises(StudyError, match=r"evals\.e: row r1 \(line 1\) has no column 'figure'.*Columns there: other"):
        check_items("e", spec, [row(other="x")])


# ---------------------------------------------------------------- rules


@pytest.mark.parametrize(
    ("rule", "text", "ok", "found"),
    [
        ({"pattern": r"\ASubject: \w+"}, "Subject: Boats\n", True, ["Subject: Boats"]),
        ({"pattern": r"\ASubject: \w+"}, "\nSubject: Boats", False, []),
        ({"pattern": "boat", "ignore_case": True}, "BOAT", True, ["BOAT"]),
        ({"pattern": "boat"}, "BOAT", False, []),
        ({"pattern": r"\?", "count": 1}, "who? me", True, 1),
        ({"pattern": r"\?", "count": 1}, "who? me?", False, 2),
        ({"pattern": r"\?", "count": 0}, "me", True, 0),
        ({"contains": "{figure}"}, "it costs 3.20 now", True, "3.20"),
        ({"contains": "{figure}"}, "it costs 3,20 now", False, None),
        ({"contains": "{{x}} {figure}"}, "{x} 3.20", True, "{x} 3.20"),
        ({"contains": "PER {n}", "ignore_case": True}, "as per 7", True, "PER 7"),
        ({"absent": ["Dear", "as per"]}, "DEAR all", False, ["Dear"]),
        ({"absent": ["Dear", "as per"]}, "hello", True, []),
        ({"pattern": "may", "when": {"confidence": "low"}}, "it may", True, ["may"]),
        ({"pattern": "may", "when": {"confidence": "low"}}, "it will", False, []),
        ({"pattern": "may", "when": {"confidence": "high"}}, "it may", False, ["may"]),
        ({"pattern": "may", "when": {"confidence": "high"}}, "it will", True, []),
        ({"pattern": "may", "when": {"n": "7", "confidence": "low"}}, "it may", True, ["may"]),
        ({"pattern": "may", "when": {"n": "8", "confidence": "low"}}, "it may", False, ["may"]),
    ],
)
def test_a_rule_holds_or_not_and_says_what_it_found(rule: dict[str, Any], text: str, ok: bool, found: Any) -> None:
    meta = {"figure": "3.20", "n": 7, "confidence": "low"}
    assert holds(Rule.model_validate({"name": "r", **rule}), meta, text) == (ok, found)


def test_the_mean_is_the_share_of_rules_and_all_is_all() -> None:
    given_rules = ({"pattern": "a"}, {"pattern": "b"}, {"absent": ["z"]}, {"pattern": "q"})
    found = score("e", rules(*given_rules), row(), said("a b"))
    assert found.value == 0.75
    assert found.parts["rules"] == {"r0": True, "r1": True, "r2": True, "r3": False}
    assert found.parts["found"]["r0"] == ["a"]
    assert score("e", rules(*given_rules, score="all"), row(), said("a b")).value == 0.0
    assert score("e", rules(*given_rules, score="all"), row(), said("a b q")).value == 1.0


@pytest.mark.parametrize("text", ["", "  \n"])
def test_an_empty_output_has_no_value_and_a_reason(text: str) -> None:
    found = score("e", rules({"absent": ["x"]}), row(), said(text))
    assert (found.value, found.reason) == (None, "empty_output")


def test_how_an_output_ended_and_its_length_are_kept() -> None:
    found = score("e", rules({"pattern": "a"}), row(), said("a b c", "length"))
    assert found.parts["ended"] == "length" and found.parts["n_tokens"] == 3 and found.output == "a b c"


# ---------------------------------------------------------------- match


@pytest.mark.parametrize(
    ("text", "value", "reason", "extracted"),
    [
        ("so #### 1,300", 1.0, None, "1300"),
        ("first #### 7 then #### 1300.00", 1.0, None, "1300"),
        ("so #### 1301", 0.0, None, "1301"),
        ("so 1300", None, "extraction_failed", None),
        ("so ####", None, "extraction_failed", None),
    ],
)
def test_the_last_answer_counts_and_none_is_no_wrong_answer(
    text: str, value: float | None, reason: str | None, extracted: str | None
) -> None:
    found = score("e", match(), row(answer="1300"), said(text))
    assert (found.value, found.reason, found.parts["extracted"]) == (value, reason, extracted)
    assert found.parts["expected"] == "1300"


def test_an_empty_group_is_a_failed_extraction() -> None:
    found = score("e", match(r"is (\d*)"), row(answer="3"), said("the answer is three"))
    assert (found.value, found.reason) == (None, "extraction_failed")


def test_the_first_group_is_the_answer() -> None:
    assert score("e", match(r"(\d+) (apples|pears)"), row(answer="3"), said("3 pears")).value == 1.0


@pytest.mark.parametrize(
    ("a", "b"),
    [
        ("1,300", "1300"),
        ("1300.0", "1300"),
        ("$1,300.50", "1300.5"),
        ("50%", "50"),
        ("  Yes. ", "yes"),
        ("STRASSE", "straße"),
        ("0.0", "0"),
        ("-3.10", "-3.1"),
        ("new  york", "New York"),
    ],
)
def test_these_answers_are_the_same(a: str, b: str) -> None:
    assert normalise(a) == normalise(b)


@pytest.mark.parametrize(
    ("a", "b"), [("1300", "13"), ("100", "1"), ("-3", "3"), ("1.5", "15"), ("10.0", "1"), ("a", "b")]
)
def test_these_are_not(a: str, b: str) -> None:
    assert normalise(a) != normalise(b)


@given(st.integers(-(10**12), 10**12))
def test_a_whole_number_in_any_dress_is_itself(n: int) -> None:
    assert normalise(f"{n:,}") == normalise(f"{n}.00") == normalise(f"{n:,}.") == str(n)


@given(st.text(max_size=30))
def test_normalising_twice_changes_nothing_more(text: str) -> None:
    assert normalise(normalise(text)) == normalise(text)
