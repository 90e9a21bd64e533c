"""Known fields: each is honoured, refused by name, or counted and shown; nothing vanishes."""

# ruff: noqa: E501 - records are read more easily on one line

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from veritune.data import fields
from veritune.data.columns import parse_columns
from veritune.data.load import Loaded, load_rows, require_clean
from veritune.errors import DataError, InputError
from veritune.records import Message

GOOD = {"messages": [{"role": "user", "content": "ask"}, {"role": "assistant", "content": "answer"}]}


def load(folder: Path, *records: Any, name: str = "d.jsonl", **reading: Any) -> Loaded:
    lines = [r if isinstance(r, str) else json.dumps(r) for r in records]
    (folder / name).write_text("\n".join(lines) + "\n", encoding="utf-8")
    return load_rows(folder / name, **reading)


def chat(**on_answer: Any) -> dict[str, Any]:
    return {"messages": [GOOD["messages"][0], {**GOOD["messages"][1], **on_answer}]}


def notes(loaded: Loaded) -> dict[str, str]:
    return {f.check: f.message for f in loaded.notes}


# ---------------------------------------------------------------- the table, field by field

VALUES: dict[str, Any] = {
    "train_on_input": True,
    "train_on_inputs": True,
    "prefix": True,
    "chat_template_kwargs": {"a": 1},
    **{name: [1, 2] for name in fields.TOKEN_COLUMNS},
}


@pytest.mark.parametrize("name", [f.name for f in fields.FIELDS if f.fate == "refused" and f.level == "row"])
def test_every_refused_column_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    value = VALUES.get(name, ["something"])
    if name in fields.BESIDE_TURNS:
        loaded = load(tmp_path, {name: value}, {**GOOD, name: value})
        assert name in loaded.rejects[0].message and loaded.rejects[0].check == "load.missing_messages"
        assert f"{name} (1 of 1 rows)" in notes(loaded)["load.unused"], "beside turns it is shown"
        return
    (finding,) = load(tmp_path, {**GOOD, name: value}).rejects
    assert finding.check in ("load.refused_field", "load.preference") and name in finding.message
    assert "--columns" in finding.message, "the message names the way out"
    spared = load(tmp_path, {**GOOD, name: value}, columns={"ignore": name})
    assert len(spared.rows) == 1 and name in notes(spared)["load.unused"]


@pytest.mark.parametrize("name", [f.name for f in fields.FIELDS if f.fate == "refused" and f.level == "message"])
def test_every_refused_key_of_a_message_is_refused_by_its_name(tmp_path: Path, name: str) -> None:
    (finding,) = load(tmp_path, chat(**{name: VALUES.get(name, "something")})).rejects
    assert finding.check == "load.refused_field" and f"messages[1].{name}" in finding.message
    assert len(load(tmp_path, chat(**{name: None})).rows) == 1


@pytest.mark.parametrize("field", [f for f in fields.FIELDS if f.fate == "unused"], ids=lambda f: f.name)
def test_every_unused_field_is_counted_and_shown(tmp_path: Path, field: fields.KnownField) -> None:
    record = {**GOOD, field.name: True} if field.level == "row" else chat(**{field.name: "x"})
    shown = notes(load(tmp_path, record))["load.unused"]
    assert shown == f"not used in training: {field.name} (1 of 1 rows)" or f"messages[].{field.name} (1 turn)" in shown


def test_fields_that_nobody_knows_are_counted_too(tmp_path: Path) -> None:
    odd = {**chat(mood="calm"), "shard": 3}
    assert notes(load(tmp_path, odd, GOOD))["load.unused"] == (
        "not used in training: shard (1 of 2 rows), messages[].mood (1 turn)"
    )


def test_the_docs_have_the_table() -> None:
    page = Path(__file__).parents[2] / "docs" / "fields.md"
    assert fields.table() in page.read_text("utf-8"), "python docs/make_fields.py"


# ---------------------------------------------------------------- what is honoured


@pytest.mark.parametrize("key", fields.REASONING_KEYS)
def test_reasoning_is_kept_beside_the_content(tmp_path: Path, key: str) -> None:
    (row,) = load(tmp_path, chat(**{key: "since"})).rows
    assert row.messages[1] == Message("assistant", "answer", "since")
    part = [{"type": "thinking", "thinking": "since"}, {"type": "text", "text": "answer"}]
    assert load(tmp_path, chat(content=part)).rows[0].messages == row.messages


@pytest.mark.parametrize("key", fields.LOSS_KEYS)
def test_a_flag_takes_the_loss_off_a_turn(tmp_path: Path, key: str) -> None:
    two = [*chat(**{key: 0})["messages"], *GOOD["messages"]]
    (row,) = load(tmp_path, {"messages": two}).rows
    assert [m.trained for m in row.messages] == [False, False, False, True]
    (finding,) = load(tmp_path, chat(**{key: 0})).rejects
    assert finding.check == "load.no_loss"
    (finding,) = load(tmp_path, chat(**{key: 0.5})).rejects
    assert (
        finding.message == f"messages[1].{key} is 0.5: a turn carries loss or none; fractions of it are not supported"
    )
    asked = {"messages": [{**GOOD["messages"][0], key: True}, GOOD["messages"][1]]}
    assert "asks for loss on a user turn" in load(tmp_path, asked).rejects[0].message


def test_a_system_column_beside_messages_is_the_system_turn(tmp_path: Path) -> None:
    (row,) = require_clean(load(tmp_path, {**GOOD, "system": "be brief"})).rows
    assert row.messages[0] == Message("system", "be brief")
    clash = {"messages": [{"role": "system", "content": "be long"}, *GOOD["messages"]], "system": "be brief"}
    assert load(tmp_path, clash).rejects[0].check == "load.two_systems"


def test_history_comes_before_the_question(tmp_path: Path) -> None:
    record = {"instruction": "And 11 more?", "output": "25", "system": "sums", "history": [["3 and 11?", "14"]]}
    (row,) = require_clean(load(tmp_path, record)).rows
    assert [m.content for m in row.messages] == ["sums", "3 and 11?", "14", "And 11 more?", "25"]
    assert load(tmp_path, {**record, "history": "long"}).rejects[0].check == "load.bad_history"
    messages = [{"role": "user", "content": "before"}, {"role": "assistant", "content": "then"}]
    assert [m.content for m in load(tmp_path, {**record, "history": messages}).rows[0].messages][-4:-2] == [
        "before",
        "then",
    ]


def test_the_last_turn_alone_can_carry_the_loss(tmp_path: Path) -> None:
    (row,) = load(tmp_path, {"messages": GOOD["messages"] * 3}, train_on="last").rows
    assert [m.trained for m in row.messages] == [False] * 5 + [True]


# ---------------------------------------------------------------- preference sets


@pytest.mark.parametrize(
    ("record", "option"),
    [
        ({"prompt": "ask", "chosen": "good", "rejected": "bad"}, "user=prompt,assistant=chosen"),
        ({"chosen": GOOD["messages"], "rejected": GOOD["messages"]}, "messages=chosen"),
        ({"question": "ask", "chosen": "good", "rejected": "bad"}, "user=question,assistant=chosen"),
        ({"prompt": GOOD["messages"][:1], "chosen": GOOD["messages"][1:], "rejected": GOOD["messages"][1:]}, "user=prompt,assistant=chosen"),
    ],
)  # fmt: skip
def test_a_preference_set_is_named_with_the_option_that_trains_on_it(tmp_path: Path, record: Any, option: str) -> None:
    (finding,) = load(tmp_path, record).rejects
    assert finding.check == "load.preference"
    assert finding.message.startswith("this is a preference set (chosen, rejected)") and option in finding.message
    loaded = require_clean(load(tmp_path, record, columns=parse_columns(option)))
    assert loaded.rows[0].target in ("good", "answer")
    assert "rejected (1 of 1 rows)" in notes(loaded)["load.unused"]


@pytest.mark.parametrize(
    ("record", "way"),
    [
        # OpenAI's form: the prompt is an object of messages
        ({"input": {"messages": GOOD["messages"][:1]}, "preferred_output": GOOD["messages"][1:], "non_preferred_output": GOOD["messages"][1:]}, "write the turns of input and preferred_output as one list of messages"),
        # HH-RLHF's form: two transcripts
        ({"chosen": "\n\nHuman: ask\n\nAssistant: good", "rejected": "\n\nHuman: ask\n\nAssistant: bad"}, "chosen holds a whole conversation as one text: write it as a list of messages"),
        ({**GOOD, "rejected_response": "bad"}, "--columns messages=messages trains"),
    ],
)  # fmt: skip
def test_a_preference_set_names_an_option_only_where_it_works(tmp_path: Path, record: Any, way: str) -> None:
    (finding,) = load(tmp_path, record).rejects
    assert finding.check == "load.preference" and way in finding.message
    assert ("--columns" in finding.message) is ("--columns" in way)


@pytest.mark.parametrize("label", [0, 0.0, "0"])
def test_labels_that_are_numbers_are_a_warning(tmp_path: Path, label: Any) -> None:
    for record in ({"prompt": "q", "completion": "a"}, GOOD):
        loaded = load(tmp_path, {**record, "label": label}, {**record, "label": 1})
        assert "label is 0 in 1 row: in a KTO preference set" in notes(loaded)["load.preference_label"]
        assert "load.preference_label" not in notes(load(tmp_path, {**record, "label": label}, {**record, "label": 2}))
    (finding,) = load(tmp_path, {**GOOD, "kto_tag": label}).rejects
    assert "kto_tag is false" in finding.message


@pytest.mark.parametrize("false", [False, "False"])
def test_rejected_answers_of_a_kto_set_are_not_trained_on(tmp_path: Path, false: Any) -> None:
    rows = [{"prompt": f"q{i}", "completion": "a", "label": label} for i, label in enumerate([True, false, False])]
    loaded = load(tmp_path, *rows)
    assert len(loaded.rows) == 1 and [f.check for f in loaded.rejects] == ["load.preference"] * 2
    assert "label is false" in loaded.rejects[0].message
    assert "label is true in 1 row, read as good answers" in notes(loaded)["load.preference_label"]
    assert len(load(tmp_path, *rows, columns={"ignore": "label"}).rows) == 3
    assert len(load(tmp_path, {"prompt": "q", "completion": "a", "label": 0}).rows) == 1, "a class label is none"


# ---------------------------------------------------------------- columns


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("user=q,assistant=a", {"user": "q", "assistant": "a"}),
        ('user: "{table}\\n{question}", assistant: answer', {"user": "{table}\n{question}", "assistant": "answer"}),
        ("{user: '{a}, then {b}', assistant: c}", {"user": "{a}, then {b}", "assistant": "c"}),
        ("user={a}, and {b},assistant=c,ignore=d|e", {"user": "{a}, and {b}", "assistant": "c", "ignore": "d|e"}),
        ("messages=chosen", {"messages": "chosen"}),
    ],
)
def test_columns_are_written_in_one_line(text: str, meant: dict[str, str]) -> None:
    assert parse_columns(text) == meant


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("usr=q,assistant=a", "did you mean 'user'?"),
        ("user=q,asistant=a", "'asistant' is not a role (did you mean 'assistant'?)"),
        ("user=,assistant=a", "user has no column"),
        ("user=a,user=b", "user is mapped twice"),
        ("nothing", "expected role=column pairs"),
    ],
)
def test_a_wrong_mapping_is_one_sentence(text: str, says: str) -> None:
    with pytest.raises(InputError) as caught:
        parse_columns(text)
    assert says in f"{caught.value.message}"


def test_a_template_fills_columns_of_any_kind(tmp_path: Path) -> None:
    record = {"table": [[1, "é"]], "question": "how many?", "n": 14}
    mapping = {"user": "{table}\n{question}", "assistant": "{n} of {{them}}"}
    (row,) = require_clean(load(tmp_path, record, columns=mapping)).rows
    assert [m.content for m in row.messages] == ['[[1, "é"]]\nhow many?', "14 of {them}"]
    (finding,) = load(tmp_path, {**record, "table": None}, columns=mapping).rejects
    assert (finding.check, finding.field) == ("load.null_content", "table")
    (finding,) = load(tmp_path, {"question": "x", "n": 1}, columns=mapping).rejects
    assert (finding.check, finding.field) == ("load.column_missing", "table")
    with pytest.raises(DataError, match="braces that name no column"):
        load(tmp_path, record, columns={"user": "{}", "assistant": "n"})


def test_the_answers_column_stays_for_rules_and_follows_an_edit(tmp_path: Path) -> None:
    from dataclasses import replace

    from veritune.data.review import ReviewDecision, apply_decisions, row_sha256

    (row,) = load(tmp_path, {"prompt": "ask", "completion": "answer"}).rows
    assert row.meta == {"completion": "answer"}
    edit = ReviewDecision(row.id, "edit", "wrong", "me", row_sha256(row), (*row.prompt, Message("assistant", "better")))
    (after,) = apply_decisions([row], [edit]).rows
    assert after == replace(row, messages=edit.messages, meta={"completion": "better"})


def test_turns_that_a_mapping_leaves_out_are_a_warning(tmp_path: Path) -> None:
    record = {"q": "ask", "a": "answer", "system": "be brief", "history": [["x", "y"]]}
    loaded = load(tmp_path, record, columns={"user": "q", "assistant": "a"})
    said = [f.message for f in loaded.notes if f.check == "load.unmapped"]
    assert said[0] == "system holds turns in 1 of 1 rows and is not mapped, so it is not trained on: add system=system"
    assert len(said) == 2


def test_a_family_column_is_told_when_it_is_seen(tmp_path: Path) -> None:
    rows = [{**GOOD, "original": f"o{i // 2}"} for i in range(4)]
    said = notes(load(tmp_path, *rows))["load.family_column"]
    assert said == (
        "column 'original' has 2 values in 4 rows: it may name each row's original (--family-field original)"
    )
    assert "load.family_column" not in notes(load(tmp_path, *rows, family_field="original"))


@pytest.mark.parametrize(
    ("record", "way"),
    [
        ({"frage": "ask", "antwort": "answer"}, "--columns user=frage,assistant=antwort"),
        ({"Question": "ask", "Complex_CoT": "because", "Response": "answer"}, "--columns user=Question,assistant=Response"),
        ({"problem": "ask", "expected_answer": "4", "generated_solution": "answer"}, "--columns user=problem,assistant=generated_solution"),
        ({"system": "be brief", "query": "ask", "model_answer": "answer", "score": 3}, "--columns system=system,user=query,assistant=model_answer"),
        ({"context": "text", "query": "ask", "model_answer": "answer"}, r"""--columns 'user: "{context}\n\n{query}", assistant: model_answer'"""),
        ({"id": "a", "turns": GOOD["messages"], "score": 3}, "--columns messages=turns"),
    ],
)  # fmt: skip
def test_unknown_columns_come_with_the_option_that_maps_them(tmp_path: Path, record: Any, way: str) -> None:
    (finding,) = load(tmp_path, record).rejects
    assert finding.message.endswith(f"for example {way}")
    option = way.removeprefix("--columns ").strip("'")
    assert require_clean(load(tmp_path, record, columns=parse_columns(option))).rows[0].target == "answer"


@pytest.mark.parametrize(
    ("record", "says"),
    [
        ({"data_source": "x", "reward_model": {"ground_truth": "4"}}, "map a column with questions and one with answers"),
        ({"prompt": "q", "completions": ["a", "b"], "labels": [True, False]}, "completions holds several answers"),
        ({"history": "post", "human_ref_A": "a", "labels": 1}, "none of the known columns is there"),
    ],
)  # fmt: skip
def test_what_has_no_turns_is_not_called_tokenised(tmp_path: Path, record: Any, says: str) -> None:
    (finding,) = load(tmp_path, record).rejects
    assert says in finding.message and "tokenised" not in finding.message


@pytest.mark.parametrize(
    ("beside", "way"),
    [
        ({"thinking": "because"}, "--columns 'user: question, reasoning: thinking, assistant: answer'"),
        ({"context": "a passage"}, r"""--columns 'user: "{context}\n\n{question}", assistant: answer'"""),
    ],
)
def test_reasoning_and_passages_beside_the_turns_are_a_warning(tmp_path: Path, beside: Any, way: str) -> None:
    record = {"question": "ask", "answer": "answer", **beside}
    assert notes(load(tmp_path, record))["load.unmapped"].endswith(f"not trained on: {way}")
    (row,) = require_clean(
        load(tmp_path, record, columns=parse_columns(way.removeprefix("--columns ").strip("'")))
    ).rows
    said = " ".join(f"{m.reasoning or ''} {m.content}" for m in row.messages)
    assert all(text in said for text in beside.values())
    empty = load(tmp_path, {**record, **dict.fromkeys(beside, "")})
    assert not {"load.unmapped", "load.unused"} & notes(empty).keys(), "an empty column says nothing"


# ---------------------------------------------------------------- roles, tables, parts


@pytest.mark.parametrize(("speaker", "role"), [("Human", "user"), ("bing", "assistant"), ("Chatbot", "assistant")])
def test_speakers_are_known_in_any_case(tmp_path: Path, speaker: str, role: str) -> None:
    turns = [{"from": "User", "value": "ask"}, {"from": "GPT", "value": "answer"}]
    turns[role == "assistant"]["from"] = speaker
    assert [m.role for m in require_clean(load(tmp_path, {"conversations": turns})).rows[0].messages] == [
        "user",
        "assistant",
    ]


def test_turns_under_other_keys_are_refused_by_their_keys(tmp_path: Path) -> None:
    (finding,) = load(tmp_path, {"conversation": [{"speaker": "human", "text": "ask"}]}).rejects
    assert "conversation[0] has no role: its keys are speaker, text; expected role and content" in finding.message


def test_a_developer_is_a_role(tmp_path: Path) -> None:
    record = {"messages": [{"role": "developer", "content": "be brief"}, *GOOD["messages"]]}
    assert require_clean(load(tmp_path, record)).rows[0].messages[0] == Message("developer", "be brief")


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_of_a_csv_is_found(tmp_path: Path, delimiter: str) -> None:
    loaded = load(tmp_path, f"question{delimiter}answer{delimiter}note", f"a{delimiter}b{delimiter}x, y" if delimiter != "," else 'a,b,"x; y"', name="t.csv")  # fmt: skip
    assert [m.content for m in require_clean(loaded).rows[0].messages] == ["a", "b"]
    assert ("load.delimiter" in notes(loaded)) is (delimiter != ",")


def test_two_csv_columns_of_one_name_are_refused(tmp_path: Path) -> None:
    (finding,) = load(tmp_path, "question,answer,answer", "a,b,c", name="t.csv").rejects
    assert "two columns are called 'answer'" in finding.message


def test_text_alone_is_called_by_its_name(tmp_path: Path) -> None:
    (finding,) = load(tmp_path, {"text": "### Question: a"}).rejects
    assert finding.message == "no turns: text holds whole texts without turns: no prompt, no answer, no loss mask"


def test_an_id_that_is_no_key_comes_with_the_way_out(tmp_path: Path) -> None:
    loaded = load(tmp_path, {**GOOD, "id": "web"}, {**GOOD, "id": "web"})
    assert "--id-field '' names rows by file and line" in loaded.rejects[0].message
    assert len(load(tmp_path, {**GOOD, "id": "web"}, {**GOOD, "id": "web"}, id_field="").rows) == 2


# ---------------------------------------------------------------- neighbours of the kinds above


@pytest.mark.parametrize("column", ["answer", "question"])
def test_a_list_of_texts_is_refused_and_never_joined(tmp_path: Path, column: str) -> None:
    """nq_open gives several right answers a question; `Paris` and `Paris, France` are not `ParisParis, France`."""
    record = {"question": "capital?", "answer": "Paris", column: ["Paris", "Paris, France"]}
    (finding,) = load(tmp_path, record).rejects
    assert f"{column} holds 2 texts, and nothing says which one counts" in finding.message
    assert len(load(tmp_path, {**record, column: ["Paris"]}).rows) == 1


@pytest.mark.parametrize(
    "empty", [{"messages": None}, {"conversations": []}, {"prompt": None, "completion": None}, {"messages": ""}]
)
@pytest.mark.parametrize("said", [{"instruction": "ask", "output": "answer"}, {"conversation": GOOD["messages"]}])
def test_columns_that_a_union_of_sources_left_empty_do_not_hide_the_turns(
    tmp_path: Path, empty: dict[str, Any], said: dict[str, Any]
) -> None:
    (row,) = require_clean(load(tmp_path, {**empty, **said})).rows
    assert [m.content for m in row.messages] == ["ask", "answer"]


@pytest.mark.parametrize("off", ["0", "false", "False", "0.0"])
def test_a_flag_in_words_takes_the_loss_off_too(tmp_path: Path, off: str) -> None:
    two = [*chat(weight=off)["messages"], *chat(weight="1")["messages"]]
    (row,) = load(tmp_path, {"messages": two}).rows
    assert [m.trained for m in row.messages] == [False, False, False, True]


def test_a_message_with_two_different_texts_is_refused(tmp_path: Path) -> None:
    (finding,) = load(tmp_path, chat(value="another")).rejects
    assert finding.message == "messages[1] has content and value, which differ"
    assert len(load(tmp_path, chat(content="", value="another")).rows) == 1
    assert len(load(tmp_path, chat(value="answer")).rows) == 1


def test_a_message_without_a_text_says_what_it_holds(tmp_path: Path) -> None:
    gemini = {"messages": [{"role": "user", "parts": [{"text": "ask"}]}, GOOD["messages"][1]]}
    assert load(tmp_path, gemini).rejects[0].message == (
        "messages[0] has neither content nor value; what it holds is role, parts"
    )
    part = chat(content=[{"type": "text", "text": None}])
    assert load(tmp_path, part).rejects[0].message == "messages[1].content[0] is a text part without a text"


def test_a_call_in_a_text_is_named_where_its_answer_is_refused(tmp_path: Path) -> None:
    turns = [("human", "ask"), ("gpt", "<tool_call>{}</tool_call>"), ("tool", "3"), ("gpt", "three")]
    (finding,) = load(tmp_path, {"conversations": [{"from": a, "value": b} for a, b in turns]}).rejects
    assert "the turn before writes its call into its text; write it as tool_calls" in finding.message


def test_an_id_that_is_no_name_says_the_way_out(tmp_path: Path) -> None:
    assert load(tmp_path, {**GOOD, "id": 7.0}).rows[0].id == "7", "pandas writes integers so beside a missing one"
    for odd in (0.5, ["a"], True):
        assert "--id-field '' names rows by file and line" in load(tmp_path, {**GOOD, "id": odd}).rejects[0].message
        assert len(load(tmp_path, {**GOOD, "id": odd}, id_field="").rows) == 1


@pytest.mark.parametrize(("better", "worse"), [("chosen_response", "rejected_response"), ("response_j", "response_k")])
def test_the_way_out_of_a_preference_set_is_never_the_worse_answer(tmp_path: Path, better: str, worse: str) -> None:
    (finding,) = load(tmp_path, {"prompt": "ask", worse: "a longer answer, and wrong", better: "answer"}).rejects
    assert finding.check == "load.preference" and f"--columns user=prompt,assistant={better}" in finding.message


@pytest.mark.parametrize(("one", "other"), fields.RIVALS)
def test_two_answers_that_another_column_judges_are_a_preference_set(tmp_path: Path, one: str, other: str) -> None:
    (finding,) = load(tmp_path, {"prompt": "ask", one: "answer", other: "another", "winner": 0}).rejects
    assert finding.check == "load.preference" and "which one is better stands in another column" in finding.message
    assert "--columns" not in finding.message


@pytest.mark.parametrize("word", ["rejected", "Undesirable"])
def test_a_label_in_words_marks_rejected_answers_too(tmp_path: Path, word: str) -> None:
    record = {"prompt": "ask", "completion": "answer"}
    (finding,) = load(tmp_path, {**record, "label": word}).rejects
    assert finding.check == "load.preference" and f"label is {word}:" in finding.message
    assert len(load(tmp_path, {**record, "label": "desirable"}).rows) == 1
    assert len(load(tmp_path, {**record, "label": "sports"}).rows) == 1, "a class is none"
