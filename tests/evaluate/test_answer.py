"""`kind: answer`: which answer an output gives, when it is the expected one, and what counts as no answer."""

from __future__ import annotations

from typing import Any, Literal

import pytest

from veritune.config.evals import Eval
from veritune.data.answers import extract, last_number, number_of, same_answer
from veritune.errors import StudyError
from veritune.evaluate import tasks
from veritune.evaluate.generate import Output
from veritune.records import Message, Row

SPEC = Eval.model_validate({"kind": "answer"})


def item(answer: str, **meta: Any) -> Row:
    return Row("i", (Message("user", "How many?"), Message("assistant", answer)), "b.jsonl", 1, None, meta)


def scored(text: str, expected: str, ended: Literal["stop_token", "length"] = "stop_token") -> Any:
    return tasks.score("bench", SPEC, item(expected), Output(text, (1,), ended))


@pytest.mark.parametrize(
    ("text", "expected", "extracted", "by"),
    [
        (r"so \boxed{\frac{\sqrt{3}}{2}}.", r"\dfrac{\sqrt3}{2}", r"\frac{\sqrt{3}}{2}", "boxed"),
        (r"first \boxed{3}, then \boxed{4}", "4", "4", "boxed"),
        ("2 + 2 = 4\n#### 4", "4", "4", "hashes"),
        ("He pays $1,250.00 in all.", "1250", "1,250.00", "last_number"),
        ("It is 3 of 10-5", "5", "5", "last_number"),
        ("The temperature is -5 degrees", "-5", "-5", "last_number"),
        ("Let me think.\nThe answer is Monday.", "Monday", "Monday.", "last_line"),
        ("Answer: (B)", "(B)", "(B)", "last_line"),
    ],
)
def test_the_answer_is_found_by_its_sign(text: str, expected: str, extracted: str, by: str) -> None:
    found = scored(text, expected)
    assert (found.value, found.parts["extracted"], found.parts["by"]) == (1.0, extracted, by)


def test_a_box_outweighs_a_number_behind_it() -> None:
    assert scored(r"\boxed{7}. I checked 12 times.", "12").value == 0.0
    assert scored(r"\boxed{7}. I checked 12 times.", "7").value == 1.0


def test_an_output_without_an_answer_is_counted_apart_and_never_called_wrong() -> None:
    found = scored("I do not know.", "12")
    assert (found.value, found.reason, found.parts["expected"]) == (None, "extraction_failed", "12")
    assert scored(r"\boxed{}", "12").reason == "extraction_failed"
    assert scored("   ", "12").reason == "empty_output"


def test_a_cut_output_gives_an_answer_only_where_it_marked_one() -> None:
    assert scored("3 boxes of 4 make 12", "12", "length").reason == "extraction_failed"
    assert scored(r"\boxed{12} because 3 boxes of", "12", "length").value == 1.0
    assert scored(r"and so \boxed{12", "12", "length").reason == "extraction_failed"


def test_the_expected_answer_is_the_column_or_the_end_of_the_answer_turn() -> None:
    assert tasks.expected_answer(SPEC, item("3 * 4 = 12\n#### 12")) == "12"
    column = Eval.model_validate({"kind": "answer", "expected": "gold"})
    assert tasks.expected_answer(column, item("ignored", gold=12)) == "12"
    with pytest.raises(
        StudyError, match=r"item i \(line 1\): expected a final answer in its answer turn, found 300 char"
    ):
        tasks.check_items("bench", SPEC, [item("x" * 300)])
    with pytest.raises(StudyError, match="expected a final answer in column 'gold', found none"):
        tasks.check_items("bench", column, [item("ignored", gold=["a"])])


@pytest.mark.parametrize(
    ("a", "b", "same"),
    [
        (r"\$12", "12", True),
        ("1{,}300", "1300.0", True),
        (r"\frac12", "0.5", True),
        (r"12\text{ cm}", "12", True),
        ("12 million", "12", False),
        ("12 cm", "12 m", False),
        ("2^3", "23", False),
        (r"10^{5}", "105", False),
        ("x²", "x2", False),
        ("12 pi", "12", False),
        ("3/0", "3", False),
        (r"\frac{a}{b}", r"\frac{b}{a}", False),
    ],
)
def test_answers_that_are_the_same_and_that_only_look_it(a: str, b: str, same: bool) -> None:
    assert same_answer(a, b) is same and same_answer(b, a) is same


def test_hostile_text_takes_no_time_and_is_no_number() -> None:
    long = "9" * 100_000
    assert number_of(long) is None and last_number(long) == long
    assert extract("{" * 50_000 + r"\boxed{" * 20_000, "12") is None
    assert not same_answer(r"\frac" * 30, "1 " * 90)
