"""Row checks: each fires where it should, stays quiet where it should not, and is counted by reason and source."""

from __future__ import annotations

import importlib.util
from collections.abc import Iterator
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from veritune.data.quality import (
    QualityConfig,
    boxed,
    check_rows,
    final_answer,
    load_patterns,
    number_of,
    same_answer,
    scripts_of,
)
from veritune.errors import DataError
from veritune.records import Message, Row


def row(answer: str, question: str = "How is the weather in the old town?", row_id: str = "r", **meta: Any) -> Row:
    return Row(row_id, (Message("user", question), Message("assistant", answer)), "d.jsonl", 1, None, meta)


def reasons(*rows: Row, **config: Any) -> set[str]:
    found = check_rows(rows, QualityConfig(**config)).findings
    return {f.check.removeprefix("quality.") for f in found if f.row_id is not None}


# ---------------------------------------------------------------- answers


@pytest.mark.parametrize(
    ("text", "inside"),
    [
        (r"so \boxed{12}.", "12"),
        (r"\boxed{\frac{1}{2}} and", r"\frac{1}{2}"),
        (r"\boxed{1} then \boxed{ {a} b }", " {a} b "),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{12", None),
        (r"\boxed{1} and \boxed{2", "1"),
        ("none", None),
    ],
)
def test_boxed_counts_braces(text: str, inside: str | None) -> None:
    assert boxed(text) == inside


def test_the_final_answer_is_boxed_or_the_last_hash_line() -> None:
    assert final_answer("a\n#### 5\nb\n#### 1,200 \n") == "1,200"
    assert final_answer("#### 5\n\\boxed{6}") == "6"
    assert final_answer("the answer is 5") is None


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("1,250.50", Fraction(2501, 2)),
        ("$-3$", -3),
        ("−3", -3),
        (r"\frac{1}{2}", Fraction(1, 2)),
        (r"\dfrac{6}{4}", Fraction(3, 2)),
        ("2 1/2", Fraction(5, 2)),
        (r"50\%", 50),
        (r"12\text{ cm}", 12),
        (".5", Fraction(1, 2)),
        ("18.0", 18),
        ("1/0", None),
        ("x+1", None),
        ("1,25", None),
        ("3 4", None),
        ("", None),
    ],
)
def test_numbers_are_exact(text: str, value: Any) -> None:
    assert number_of(text) == value


def test_same_answer_by_number_or_by_bare_text() -> None:
    assert same_answer("0.5", r"\frac12".replace("12", "{1}{2}"))
    assert same_answer(r"\text{Paris}", " paris.")
    assert same_answer(r"\left(1, 2\right)", "(1,2)")
    assert not same_answer("12", "21") and not same_answer("a+b", "a-b")


# ---------------------------------------------------------------- checks, one by one

FIRES: list[tuple[str, Row]] = [
    ("empty_target", row("\u200b \n")),
    ("empty_target", Row("r", (Message("user", "ask"),))),
    ("role_order", Row("r", (Message("assistant", "a"), Message("user", "b"), Message("assistant", "c")))),
    ("truncated", row("It is warm because of the")),
    ("truncated", row("```python\nprint(1)\n")),
    ("truncated", row(r"so the answer is \boxed{12")),
    ("truncated", row("fine.", finish_reason="length")),
    ("generation_debris", row("fine", "Rewritten problem: how many boats?")),
    ("generation_debris", row("Here is the rewritten question: how many?")),
    ("generation_debris", row("### Response: yes")),
    ("generation_debris", row("Dear [insert name here], hello.")),
    ("generation_debris", row("Dear {{ name }}, hello.")),
    ("repair_phrase", row("So we need to set the value to 12 for it to work.")),
    ("repair_phrase", row("Let me adjust the problem so that it is whole.")),
    ("repair_phrase", row("There seems to be a mistake in the problem, so 4.")),
    ("refusal", row("I'm sorry, but I can't help with that.")),
    ("refusal", row("As an AI language model, I do not have a town.")),
    ("refusal", row("I cannot assist with this request.")),
    ("control_characters", row("a\x00b")),
    ("control_characters", row("fine", "zero\u200bwidth")),
    ("mixed_languages", row("Это очень длинный ответ на русском языке, " + "but half of it is in English, you see.")),
    (
        "mixed_languages",
        row("回答は日本語で書かれています" * 5, "Please answer this question about the weather in town"),
    ),
    ("expected_answer", row("it is\n#### 12", expected_answer="13")),
    ("expected_answer", row(r"it is \boxed{\frac{1}{2}}", expected_answer=0.25)),
    ("no_final_answer", row("It is twelve.", expected_answer="12")),
    ("impossible_count", row("#### 2.5", "How many children came to the party?")),
    ("impossible_count", row("#### -3", "How many red apples are left?")),
    ("impossible_count", row("So there are 7.5 children in the class.")),
]

QUIET: list[tuple[str, Row]] = [
    ("truncated", row("42")),
    ("truncated", row("```\ncode\n```\nDone")),
    ("truncated", row("done (really)")),
    ("generation_debris", row("The paper was rewritten by its author.")),
    ("generation_debris", row("f-string: {value}, list[int], a [link](url)")),
    ("repair_phrase", row("We need to set the table before dinner.")),
    ("repair_phrase", row("Set the value of x to 3 and solve.")),
    ("refusal", row("I was sorry to hear that they cannot help.")),
    ("control_characters", row("tabs\tand\nlines\r\n and zero width joiner \u200d")),
    ("mixed_languages", row("The angle α and β of the Δ in the figure are equal to π over four, roughly, as drawn.")),
    ("mixed_languages", row("Это ответ на русском языке со словом Python и с кодом ```print('hello world, again')```")),
    ("expected_answer", row("#### 1,200", expected_answer=1200)),
    ("expected_answer", row(r"\boxed{\dfrac{1}{2}}", expected_answer="0.5")),
    ("no_final_answer", row("So the answer is 12.", expected_answer=12)),
    ("impossible_count", row("#### 2.5", "How many hours did the children walk?")),
    ("impossible_count", row("#### 2.5", "On average, how many children are there?")),
    ("impossible_count", row("It costs $7.50 children pay half. There are 7.0 children.")),
    ("impossible_count", row("Each walks 2.5 miles.")),
]


@pytest.mark.parametrize(("reason", "bad"), FIRES)
def test_a_check_fires(reason: str, bad: Row) -> None:
    assert reason in reasons(bad)


@pytest.mark.parametrize(("reason", "good"), QUIET)
def test_a_check_stays_quiet(reason: str, good: Row) -> None:
    assert reason not in reasons(good)


def test_a_finding_gives_the_reason_and_what_was_found() -> None:
    (finding,) = [f for f in check_rows([row("Well.\n### Response: yes")]).findings if f.row_id]
    assert finding.check == "quality.generation_debris" and finding.evidence["found"] == "### response:"
    assert (finding.row_id, finding.source, finding.line) == ("r", "d.jsonl", 1)


# ---------------------------------------------------------------- checks of the set


def test_one_prompt_with_different_final_answers_is_a_conflict_and_other_words_are_a_note() -> None:
    question = "What is six times seven here?"
    rows = [row("so\n#### 42", question, "a"), row("thus\n#### 42.0", question, "b")]
    assert {f.check: f.severity for f in check_rows(rows).findings if f.row_id} == {"quality.several_answers": "note"}
    found = check_rows([*rows, row("#### 41", "what  is SIX times seven here?", "c")])
    assert found.counts["conflict"]["rows"] == 3
    assert found.counts["conflict"]["severity"] == "warning"


def test_the_same_question_under_another_system_prompt_is_no_conflict() -> None:
    def under(system: str, answer: str) -> Row:
        turns = (Message("system", system), Message("user", "What is two plus two?"), Message("assistant", answer))
        return Row(system, turns)

    assert "conflict" not in reasons(under("in binary", "#### 100"), under("in decimal", "#### 4"))


def test_a_copy_of_an_earlier_row_is_a_note_that_names_it() -> None:
    rows = [row("Sunny.", row_id="a"), row("Rainy.", row_id="b"), row(" SUNNY. ", row_id="c")]
    (copy,) = [f for f in check_rows(rows).findings if f.check == "quality.duplicate"]
    assert (copy.row_id, copy.severity, copy.evidence["first"]) == ("c", "note", "a")


def test_short_prompts_do_not_conflict() -> None:
    assert not reasons(row("#### 1", "Continue.", "a"), row("#### 2", "Continue.", "b")) & {
        "conflict",
        "several_answers",
    }


def test_a_length_outlier_is_judged_within_its_source() -> None:
    def made(i: int, n: int, source: str) -> Row:
        return Row(f"{source}{i}", (Message("user", f"q {i}"), Message("assistant", "x" * n)), source)

    rows = [made(i, 100 + i % 7, "a") for i in range(40)] + [made(i, 5000 + i, "b") for i in range(40)]
    assert "length_outlier" not in reasons(*rows)
    assert check_rows([*rows, made(99, 5000, "a")]).counts["length_outlier"]["by_source"] == {"a": 1}
    few = [made(i, 100, "c") for i in range(5)]
    assert "length_outlier" not in reasons(*few, made(9, 9000, "c"))


def test_unlicensed_rows_are_counted_where_licences_are_named() -> None:
    rows = [row("a.", row_id="1", license="MIT"), row("b.", row_id="2", license=None), row("c.", row_id="3")]
    assert check_rows(rows).counts["unlicensed"]["rows"] == 2
    allowed = check_rows(rows, QualityConfig(allowed_licences=("apache-2.0",)))
    assert allowed.counts["unlicensed"]["rows"] == 3
    (note,) = check_rows([row("a.")]).findings
    assert note.severity == "note" and note.row_id is None and "no row names a licence" in note.message


def test_counts_are_rows_by_reason_and_source() -> None:
    rows = [
        Row(f"{s}{i}", (Message("user", f"question number {i} {s}"), Message("assistant", text)), s)
        for s in ("a", "b")
        for i, text in enumerate(["I'm sorry, but I cannot say.", "Fine.", "As an AI language model, I pass."])
    ]
    result = check_rows(rows)
    assert result.counts["refusal"] == {
        "rows": 4,
        "n_rows": 6,
        "severity": "warning",
        "by_source": {"a": 2, "b": 2},
    }
    assert result.rows_by_source == {"a": 3, "b": 3} and len(result.flagged) == 4


# ---------------------------------------------------------------- a user's patterns and functions


def test_a_users_file_adds_patterns_and_reasons_and_switches_off(tmp_path: Path) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(
        "refusal: {patterns: ['\\bno comment\\b']}\n"
        "shouting: {says: it shouts, where: [user], severity: note, patterns: ['!!!']}\n"
        "repair_phrase: {skip: true}\n"
        "generation_debris: {replace: true, patterns: ['xyzzy']}\n"
        "countable: {nouns: wombats}\n",
        "utf-8",
    )
    config = {"patterns": (own,)}
    assert reasons(row("No comment."), **config) == {"refusal"}
    assert "refusal" in reasons(row("As an AI language model, I pass."), **config)
    assert reasons(row("Fine.", "Now!!!"), **config) == {"shouting"}
    assert not reasons(row("we need to set the value to 3"), **config)
    assert not reasons(row("### Response: x"), **config) and reasons(row("xyzzy."), **config)
    assert "impossible_count" in reasons(row("There are 2.5 wombats here."), **config)


@pytest.mark.parametrize(
    ("content", "says"),
    [
        ("refusal: {patterns: ['(unclosed']}", "no regular expression"),
        ("refusal: {pattern: ['x']}", "holds"),
        ("refusal: {patterns: x}", "expected a list"),
        ("refusal: {where: [tool], patterns: ['x']}", "where"),
        ("- a list", "holds a list"),
        ("a: [", "cannot be read"),
    ],
)
def test_a_pattern_file_that_cannot_be_used_is_named(tmp_path: Path, content: str, says: str) -> None:
    own = tmp_path / "own.yaml"
    own.write_text(content, "utf-8")
    with pytest.raises(DataError, match=says) as caught:
        check_rows([row("a.")], QualityConfig(patterns=(own,)))
    assert "own.yaml" in str(caught.value)


def test_a_function_is_a_check() -> None:
    def too_short(row: Row) -> str | None:
        return "the answer is one word" if len((row.target or "").split()) < 2 else None

    def many(row: Row) -> Iterator[str]:
        yield from ("first", "second")

    result = check_rows([row("Yes."), row("Yes, it is.", row_id="s")], QualityConfig(checks=(too_short, many)))
    assert result.counts["too_short"]["rows"] == 1 and result.counts["many"]["rows"] == 2
    assert "quality.too_short" in {f.check for f in result.findings}


def test_a_check_that_raises_or_answers_nonsense_is_named() -> None:
    def broken(row: Row) -> str | None:
        raise KeyError("x")

    def wrong(row: Row) -> Any:
        return [3]

    for check, says in ((broken, "'broken' failed on row 'r'"), (wrong, "'wrong' gave a int")):
        with pytest.raises(DataError, match=says):
            check_rows([row("a.")], QualityConfig(checks=(check,)))


def test_a_check_can_be_switched_off_and_an_unknown_name_is_refused() -> None:
    assert "refusal" not in reasons(row("As an AI language model, I pass."), off=("refusal",))
    with pytest.raises(DataError, match="unknown check 'refusals'"):
        check_rows([row("a.")], QualityConfig(off=("refusals",)))


def test_built_in_patterns_compile_and_say_what_is_wrong() -> None:
    patterns, nouns = load_patterns()
    assert {p.reason for p in patterns} >= {"generation_debris", "repair_phrase", "refusal", "truncated"}
    assert all(p.says and p.where for p in patterns) and "people" in nouns


def test_scripts_are_counted_by_letters() -> None:
    assert scripts_of("abc 12") == {"Latin": 3}
    assert scripts_of("дом home \\alpha") == {"Latin": 4, "Cyrillic": 3}


def test_good_data_is_left_alone(gsm8k: Path) -> None:
    from veritune.data.load import load_rows

    rows = load_rows(gsm8k / "test.jsonl").rows
    assert len(check_rows(rows).flagged) <= 0.005 * len(rows)


NASTY = [
    "\n",
    " ",
    "#",
    "## ",
    "{{ ",
    "{{a",
    "1",
    "1.1",
    "```\n",
    "\\boxed{",
    "\\boxed{{1",
    "a ",
    "the ",
    "#### ",
    "####\n",
    "\\text{",
]


@pytest.mark.parametrize("unit", NASTY)
def test_a_long_row_of_anything_is_checked_to_the_end(unit: str) -> None:
    """Patterns that back-track over a whole text would not come to an end here."""
    text = "x " + unit * (200_000 // len(unit)) + "!"
    check_rows([row(text, text), row(text, "How many children are there?", "b", expected_answer=text)])


def test_a_final_answer_of_thousands_of_digits_is_text() -> None:
    digits = "9" * 6000
    assert number_of(digits) is None and same_answer(digits, digits) and not same_answer(digits, digits + "9")
    check_rows([row(f"#### {digits}", "How many children are there?", expected_answer=digits)])


# ---------------------------------------------------------------- whole rows


CUT = [
    "You can find the form under the following link:",
    "Sort the list first. Then walk through it and compare every item with the",
    "The account is closed at the end of the month. After that you have even",
    "That makes 40 euros for the tickets. Then we add the price of the parking spot (which is",
    "He pays the rent on the first day. The rest of the money is losses relating t",
]
WHOLE = [
    "I hope this helps",
    "See the page on ropes: https://example.org/ropes",
    "Steps:\n1. Sort the list\n2. Walk through the list of items and compare them",
    "Paris",
    "x = 3",
    "Kind regards, the team of the harbor",
    "The answer is (a) and not (b)",
    "Say hello to your new friend (the cat).",
    "```python\nprint(1)\n```",
    "Choose b",
]


@pytest.mark.parametrize("text", CUT)
def test_a_cut_answer_is_found(text: str) -> None:
    assert "truncated" in reasons(row(text, "What now?"))


@pytest.mark.parametrize("text", WHOLE)
def test_a_whole_answer_without_an_end_mark_is_none(text: str) -> None:
    assert "truncated" not in reasons(row(text, "What now?"))


def test_a_cut_word_is_told_by_the_rest_of_the_data() -> None:
    """The fragment stands nowhere else and begins a known word; a real rare word at the end does not."""
    rows = [
        row(f"The harbor keeps number {i} of the research boats for the winter.", "Why?", f"r{i}") for i in range(60)
    ]
    rows += [
        row("The harbor keeps one more of the resea", "Why?", "cut"),
        row("The harbor keeps a xylophone", "Why?", "w"),
    ]
    found = {f.row_id: f.message for f in check_rows(rows).findings if f.check == "quality.truncated"}
    assert found == {
        "cut": "its last word 'resea' is the beginning of another word: 'The harbor keeps one more of the resea'"
    }
    assert not [
        f for f in check_rows(rows, QualityConfig(off=("truncated",))).findings if f.check.endswith("truncated")
    ]


MISSING = [
    "According to the passage, why does the witness let his children work?",
    "Which of the following, if true, best supports the above argument?",
    "Summarise the article below.",
    "How tall is the tower shown? Answer as shown in the figure.",
]
HELD = [
    "The mill stood by the river for two hundred years until the flood of 1905 took its wheel away.\n"
    "According to the passage, when was the flood?",
    "Write a short article. The passage above all should be funny.",
    "How many apples does Tom have in the above-average harvest year of 12 apples?",
    "What is a passage?",
    "Translate the following text into French: the boat lies at the quay in the evening and nobody is on it any more",
]


@pytest.mark.parametrize("question", MISSING)
def test_a_prompt_that_cites_a_text_which_is_not_there_is_flagged(question: str) -> None:
    assert "missing_text" in reasons(row("The second one.", question))


@pytest.mark.parametrize("question", HELD)
def test_a_prompt_that_holds_its_text_or_cites_none_is_not(question: str) -> None:
    assert "missing_text" not in reasons(row("The second one.", question))


@pytest.mark.parametrize(
    "text",
    [
        "A new problem: Tom has 3 apples.",
        "The new problem is: Tom has 3.",
        "**Rewritten Question:** How many?",
        "Here is the modified problem:\nTom has 3.",
        "New Problem 2: Tom",
        "This question is inspired by the given problem.",
    ],
)
def test_what_generation_left_behind_is_found_in_its_common_forms(text: str) -> None:
    assert "generation_debris" in reasons(row("3", text))


@pytest.mark.parametrize(
    "text",
    [
        "We get 12, which doesn't align with the given answer of 15.",
        "This does not match any of the options, so let me recalculate.",
        "Upon re-reading the problem, the total is 9.",
        "There seems to be a discrepancy. I made a mistake in the second step.",
    ],
)
def test_repair_language_is_found(text: str) -> None:
    assert "repair_phrase" in reasons(row(text, "How many?"))


@pytest.mark.parametrize(
    "text", ["He has 4 socks that match, and the others don't match.", "A new problem arose at work."]
)
def test_ordinary_talk_of_matching_and_problems_is_neither(text: str) -> None:
    assert {"repair_phrase", "generation_debris"}.isdisjoint(reasons(row(text, "How many?")))


@pytest.mark.parametrize(
    ("text", "broken"),
    [
        ("So 7.5 small children came.", True),
        ("There are two and a half workers.", True),
        ("The number of students is 12.5.", True),
        ("That leaves 3 1/2 people.", True),
        ("He sold 1.5 times as many tickets.", False),
        ("That is 2.5 dozen eggs.", False),
        ("1.5 million people live there.", False),
        ("On average 2.4 children live in a house.", False),
        ("54/8 = 6.75 buses, so we round up to 7.", False),
        ("She bought 2.5 pounds of apples.", False),
    ],
)
def test_fractions_of_what_comes_whole_in_any_sentence(text: str, broken: bool) -> None:
    assert ("impossible_count" in reasons(row(text, "What happens then?"))) is broken


def test_labelled_public_rows_are_judged_as_the_docs_say() -> None:
    """Recall and precision on rows labelled by reading; skipped where their texts were not unpacked."""
    path = Path(__file__).parents[2] / "bench" / "audit" / "labelled.py"
    spec = importlib.util.spec_from_file_location("labelled", path)
    assert spec is not None
    assert spec.loader is not None
    labelled = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(labelled)
    try:
        counts = labelled.measure(labelled.labels())
    except FileNotFoundError as error:
        pytest.skip(f"needs the labelled texts ({error}): python bench/audit/labelled.py --fetch")
    for check, least in (("missing_text", 0.9), ("refusal", 0.9), ("truncated", 0.6)):
        for held_out in (False, True):
            n = counts[check, held_out]
            assert n["tp"] / (n["tp"] + n["fn"]) >= least, (check, held_out, n)
            assert n["tp"] / (n["tp"] + n["fp"]) >= 0.85, (check, held_out, n)
    assert counts["impossible_count", True]["fp"] == counts["impossible_count", False]["fp"] == 0
