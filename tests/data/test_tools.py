"""Tool conversations: read in every form, rendered by five families' templates, masked on calls and answers alone."""

# ruff: noqa: E501 - templates and rows are read more easily on one line

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.data.tool_templates import TEMPLATES, TOOLS, call, tokenizer_with, tool_row

from veritune.data.load import load_rows, require_clean
from veritune.data.parity import check_parity
from veritune.data.render import IGNORE, Renderer
from veritune.probe.study import read_zones
from veritune.records import Finding, Message, Row, ToolCall

CALLS = {
    "qwen": '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Arnau", "hour": 7}}\n</tool_call><|im_end|>',
    "hermes": '<tool_call>\n{"name": "tide", "arguments": {"harbour": "Arnau", "hour": 7}}\n</tool_call><|im_end|>',
    "llama": '{"name": "tide", "parameters": {"harbour": "Arnau", "hour": 7}}<|eom_id|>',
    "mistral": '[TOOL_CALLS][{"name": "tide", "arguments": {"harbour": "Arnau", "hour": 7}}]<|im_end|>',
    "xml": "<function=tide><parameter=harbour>\nArnau\n</parameter><parameter=hour>\n7\n</parameter></function><|im_end|>",
}


@pytest.fixture(scope="session")
def base(smollm2: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(smollm2)


def spoken(row: Row, renderer: Renderer) -> list[str]:
    """The labelled runs of a row as text."""
    runs: list[list[int]] = [[]]
    for label in renderer.row(row).labels:
        runs.append([]) if label == IGNORE else runs[-1].append(label)
    return [renderer.tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs if run]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_loss_falls_on_calls_and_answers_and_nothing_else(base: Any, name: str) -> None:
    template = TEMPLATES[name]
    renderer = Renderer(tokenizer_with(base, template), 1000)
    assert spoken(tool_row(), renderer) == [CALLS[name], f"It is 3.1 m in Arnau.{template.end}"]


@pytest.mark.parametrize("name", TEMPLATES)
def test_the_ids_are_the_templates_own_and_begin_with_the_prompts(base: Any, name: str) -> None:
    renderer, row = Renderer(tokenizer_with(base, TEMPLATES[name]), 1000), tool_row()
    ids = renderer.row(row).input_ids
    assert ids == renderer.template_ids(row.messages, row.tools)[: len(ids)]
    prompt = renderer.prompt_ids(row)
    assert ids[: len(prompt)] == prompt
    assert "tide" in renderer.tokenizer.decode(prompt), "the prompt declares the tools"


def test_a_row_that_ends_on_its_call_trains_the_call(base: Any) -> None:
    renderer, row = Renderer(tokenizer_with(base, TEMPLATES["qwen"]), 1000), tool_row()
    assert spoken(replace(row, messages=row.messages[:2]), renderer) == [CALLS["qwen"]]


def test_text_that_a_template_writes_behind_the_call_is_refused(base: Any) -> None:
    """Gemma 4's manner: call, answer of the tool, then what the assistant said before it called."""
    behind = (
        "{% for t in tools or [] %}{{ t | tojson }}\n{% endfor %}"
        "{% for m in messages %}{% if m.role != 'tool' %}<|im_start|>{{ m.role }}\n{% if m.tool_calls %}"
        "{% for c in m.tool_calls %}<|call|>{{ c.function.name }}{{ c.function.arguments | tojson }}<|/call|>{% endfor %}"
        "{% if not loop.last %}<|result|>{{ messages[loop.index].content }}<|/result|>{% endif %}{% endif %}{{ m.content }}<|im_end|>\n"
        "{% endif %}{% endfor %}{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    template = replace(TEMPLATES["qwen"], text=behind, specials=("<|call|>", "<|/call|>", "<|result|>", "<|/result|>"))
    renderer = Renderer(tokenizer_with(base, template), 900, check=False)
    made = tool_row()
    assert spoken(made, renderer)[0].endswith("<|/call|>")
    said = replace(made.messages[1], content="Let me look at the tide table first.")
    found = renderer.try_row(replace(made, messages=(made.messages[0], said, *made.messages[2:])))
    assert isinstance(found, Finding) and "writes the text of assistant turn 2 after its call" in found.message


def test_probes_render_rows_with_their_tools_and_the_loss_that_was_asked_for(base: Any, tmp_path: Path) -> None:
    made = tool_row()
    record = {"messages": [m.to_chat() for m in made.messages], "tools": list(TOOLS)}
    files = {"seen": tmp_path / "seen.jsonl"}
    files["seen"].write_text(json.dumps(record) + "\n", encoding="utf-8")
    renderer = Renderer(tokenizer_with(base, TEMPLATES["qwen"]), 900)
    zoned, last = read_zones(files, renderer), read_zones(files, renderer, train_on="last")
    assert zoned.rendered[0].labels == renderer.row(made).labels, "the declared tools stand in the prompt"
    assert spoken(last.rows[0], renderer) == spoken(zoned.rows[0], renderer)[-1:]


def test_weight_zero_takes_the_loss_off_a_call(base: Any) -> None:
    renderer, row = Renderer(tokenizer_with(base, TEMPLATES["hermes"]), 1000), tool_row()
    turns = [replace(m, weight=0) if m.tool_calls else m for m in row.messages]
    assert spoken(replace(row, messages=tuple(turns)), renderer) == ["It is 3.1 m in Arnau.<|im_end|>"]


def test_every_end_token_of_a_call_must_be_one_that_generation_stops_on(base: Any) -> None:
    renderer = Renderer(tokenizer_with(base, TEMPLATES["llama"]), 1000)
    ids = {name: renderer.tokenizer.convert_tokens_to_ids(name) for name in ("<|eot_id|>", "<|eom_id|>")}
    found, _ = check_parity([tool_row()], renderer, stop_ids=[ids["<|eot_id|>"]])
    (stop,) = [f for f in found if f.check == "parity.stop"]
    assert "trained to end on <|eot_id|>, <|eom_id|>, generation stops on <|eot_id|>" in stop.message
    found, _ = check_parity([tool_row()], renderer, stop_ids=list(ids.values()))
    assert not [f for f in found if f.check == "parity.stop"]


def without(text: str, *parts: str) -> str:
    for part in parts:
        assert part in text
        text = text.replace(part, "")
    return text


@pytest.mark.parametrize(
    ("change", "check", "says"),
    [
        (lambda t: without(t, "{%- for tool in tools %}\n{{ tool | tojson }}{%- endfor %}"), "tools", "the name of the tool 'tide'"),
        (lambda t: t.replace("call.function.arguments | tojson", "'{}'"), "turn_missing", "assistant turn 2 (an argument)"),
        (lambda t: t.replace("{{ call.function.name }}", "tool"), "turn_missing", "assistant turn 2 (the call's name)"),
        (lambda t: t.replace("{{ m.content }}\n</tool_response>", "\n</tool_response>"), "turn_missing", "turn 3 (tool)"),
        (lambda t: t.replace("m.tool_calls", "m.called"), "tools", "does not render the tool calls of turn 2"),
    ],
)  # fmt: skip
def test_what_a_template_leaves_out_of_a_tool_conversation_is_refused_by_name(
    base: Any, change: Any, check: str, says: str
) -> None:
    template = replace(TEMPLATES["qwen"], text=change(TEMPLATES["qwen"].text))
    found = Renderer(tokenizer_with(base, template), 1000).try_row(tool_row())
    assert isinstance(found, Finding) and found.check == f"render.{check}"
    assert says in found.message


def test_numbers_that_a_template_drops_are_missed_too(base: Any) -> None:
    text = TEMPLATES["xml"].text.replace("arguments.items() %}", "arguments.items() if value is string %}")
    found = Renderer(tokenizer_with(base, replace(TEMPLATES["xml"], text=text)), 1000).try_row(tool_row())
    assert isinstance(found, Finding) and "does not write assistant turn 2 (an argument)" in found.message


def test_what_a_template_refuses_is_said_in_its_own_words(base: Any) -> None:
    renderer = Renderer(tokenizer_with(base, TEMPLATES["mistral"]), 1000)
    row = tool_row()
    longer = [replace(m, tool_calls=(call("Arnau", call_id="call_1"),)) if m.tool_calls else m for m in row.messages]
    found = renderer.try_row(replace(row, messages=tuple(longer)))
    assert isinstance(found, Finding)
    assert (
        "the chat template refuses the row: Tool call IDs should be alphanumeric strings with length 9!"
        in found.message
    )


def test_a_template_that_knows_no_tools_refuses_rows_with_tools(base: Any) -> None:
    plain = Renderer(base, 1000)
    found = plain.try_row(replace(tool_row(), messages=(Message("user", "ask"), Message("assistant", "answer"))))
    assert isinstance(found, Finding) and found.check == "render.tools"
    assert "the template does not write the declared tools" in found.message


# ---------------------------------------------------------------- forms in files

FUNCTION = TOOLS[0]["function"]
QUESTION = {"role": "user", "content": "How high is the tide in Arnau?"}
RESULT = {"role": "tool", "tool_call_id": "abcdef123", "name": "tide", "content": '{"height": "3.1 m"}'}
ANSWER = {"role": "assistant", "content": "It is 3.1 m in Arnau."}
ARGUMENTS = {"harbour": "Arnau", "hour": 7}


def called(arguments: Any, **more: Any) -> dict[str, Any]:
    function = {"name": "tide", "arguments": arguments}
    return {"role": "assistant", "content": None, "tool_calls": [{"id": "abcdef123", "type": "function", "function": function}], **more}  # fmt: skip


FORMS = {
    "arguments as text": {"messages": [QUESTION, called(json.dumps(ARGUMENTS)), RESULT, ANSWER], "tools": list(TOOLS)},
    "arguments as an object": {"messages": [QUESTION, called(ARGUMENTS), RESULT, ANSWER], "tools": list(TOOLS)},
    "tools as text": {"messages": [QUESTION, called(ARGUMENTS), RESULT, ANSWER], "tools": json.dumps(list(TOOLS))},
    "bare functions": {"messages": [QUESTION, called(ARGUMENTS), RESULT, ANSWER], "tools": [FUNCTION]},
    "tools as texts": {"messages": [QUESTION, called(ARGUMENTS), RESULT, ANSWER], "tools": [json.dumps(FUNCTION)]},
    "functions": {"messages": [QUESTION, called(ARGUMENTS), RESULT, ANSWER], "functions": [FUNCTION]},
    "result as an object": {"messages": [QUESTION, called(ARGUMENTS), {**RESULT, "content": {"height": "3.1 m"}}, ANSWER], "tools": list(TOOLS)},
}  # fmt: skip


@pytest.mark.parametrize("form", FORMS)
def test_every_form_of_tools_and_calls_is_read_as_one(tmp_path: Path, form: str) -> None:
    path = tmp_path / "tools.jsonl"
    path.write_text(json.dumps(FORMS[form]) + "\n", encoding="utf-8")
    (row,) = require_clean(load_rows(path)).rows
    assert row.messages == tool_row().messages
    assert json.loads(json.dumps(row.tools)) == json.loads(json.dumps(list(TOOLS)))
    assert row.target == "It is 3.1 m in Arnau." and 'tide({"harbour": "Arnau", "hour": 7})' in row.text("assistant")


def test_older_forms_are_read_as_calls(tmp_path: Path) -> None:
    function = {"name": "tide", "arguments": '{"harbour": "Arnau"}'}
    old = {"messages": [QUESTION, {"role": "assistant", "content": None, "function_call": function}]}
    result = {"from": "observation", "value": "3.1 m"}
    said = [{"from": "human", "value": "?"}, {"from": "function_call", "value": json.dumps(function)}, result]
    shared = {"conversations": [*said, {"from": "gpt", "value": "3.1 m."}], "tools": json.dumps([FUNCTION])}
    path = tmp_path / "old.jsonl"
    path.write_text(json.dumps(old) + "\n" + json.dumps(shared) + "\n", encoding="utf-8")
    first, second = require_clean(load_rows(path)).rows
    made = ToolCall("tide", '{"harbour": "Arnau"}')
    assert first.messages[1].tool_calls == second.messages[1].tool_calls == (made,)
    assert [m.role for m in second.messages] == ["user", "assistant", "tool", "assistant"]


@pytest.mark.parametrize(
    ("messages", "check", "says"),
    [
        ([QUESTION, RESULT, ANSWER], "role_order", "turn 2 (tool) does not answer a call"),
        ([QUESTION, called(ARGUMENTS), RESULT, RESULT, ANSWER], "role_order", "turn 4 (tool) does not answer a call"),
        ([QUESTION, called(ARGUMENTS), {**RESULT, "tool_call_id": "other"}, ANSWER], "tool_call_id", "answers the call 'other', which was not made"),
        ([QUESTION, called(ARGUMENTS), QUESTION, ANSWER], "role_order", "the calls of the turn before are not answered"),
        ([QUESTION, called("{not json"), RESULT, ANSWER], "tool_arguments", "is text that is not a JSON object"),
        ([QUESTION, called('{"a": 1, "a": 2}'), RESULT, ANSWER], "tool_arguments", "a key occurs twice in one object"),
        ([QUESTION, called([1]), RESULT, ANSWER], "tool_arguments", "is not an object"),
        ([{**QUESTION, "tool_calls": called(ARGUMENTS)["tool_calls"]}, ANSWER], "tool_call", ": only the assistant can call tools"),
        ([QUESTION, called(ARGUMENTS), RESULT], "no_assistant", "the last turn is not the assistant's"),
    ],
)  # fmt: skip
def test_a_broken_tool_conversation_is_refused_by_name(tmp_path: Path, messages: Any, check: str, says: str) -> None:
    path = tmp_path / "bad.jsonl"
    path.write_text(json.dumps({"messages": messages, "tools": list(TOOLS)}) + "\n", encoding="utf-8")
    (finding,) = load_rows(path).rejects
    assert finding.check == f"load.{check}" and says in finding.message


def test_calls_made_at_once_in_a_turn_each_are_one_turn(tmp_path: Path) -> None:
    calls = [{"from": "function_call", "value": json.dumps({"name": "tide", "arguments": {"hour": h}})} for h in (1, 2)]
    answers = [{"from": "observation", "value": f"{h} m"} for h in (1, 2)]
    turns = [{"from": "human", "value": "ask"}, *calls, *answers, {"from": "gpt", "value": "done"}]
    path = tmp_path / "calls.jsonl"
    path.write_text(json.dumps({"conversations": turns, "tools": list(TOOLS)}) + "\n", encoding="utf-8")
    (row,) = require_clean(load_rows(path)).rows
    assert [m.role for m in row.messages] == ["user", "assistant", "tool", "tool", "assistant"]
    assert [c.arguments for c in row.messages[1].tool_calls or ()] == ['{"hour": 1}', '{"hour": 2}']


def test_nulls_that_parquet_fills_in_are_no_arguments(tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    rows = [
        {"messages": [QUESTION, called({"harbour": "Arnau"}), RESULT, ANSWER]},
        {"messages": [QUESTION, called({"hour": 7}), RESULT, ANSWER]},
    ]
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "t.parquet")
    first, second = require_clean(load_rows(tmp_path / "t.parquet")).rows
    assert first.messages[1].tool_calls[0].arguments == '{"harbour": "Arnau"}'  # type: ignore[index]
    assert second.messages[1].tool_calls[0].arguments == '{"hour": 7}'  # type: ignore[index]


def test_calls_without_declared_tools_and_of_others_are_said(tmp_path: Path) -> None:
    other = [{"type": "function", "function": {"name": "wind"}}]
    path = tmp_path / "t.jsonl"
    rows = [{"messages": [QUESTION, called(ARGUMENTS), RESULT, ANSWER], **more} for more in ({}, {"tools": other})]
    path.write_text("".join(json.dumps(r) + "\n" for r in rows), encoding="utf-8")
    notes = {f.check: f.message for f in load_rows(path).notes}
    assert notes["load.no_tools"] == "1 of 2 rows that call tools declare none (no `tools`)"
    assert notes["load.undeclared_tool"] == "called but not declared: tide (1)"


def test_a_written_version_reads_back_as_the_same_rows(tmp_path: Path) -> None:
    from veritune.data.review import rows_hash, write_version

    turns = [replace(m, reasoning="let me see", weight=0) if m.tool_calls else m for m in tool_row().messages]
    rows = [tool_row("a"), replace(tool_row("b", "Cadiz"), messages=tuple(turns))]
    write_version(rows, tmp_path / "v.jsonl", parents=[], rejects={}, how="test")
    back = require_clean(load_rows(tmp_path / "v.jsonl")).rows
    assert [(r.messages, r.tools) for r in back] == [(r.messages, r.tools) for r in rows]
    assert rows_hash(back) == rows_hash(rows) != rows_hash([replace(r, tools=None) for r in rows])


# ---------------------------------------------------------------- evals


@pytest.mark.parametrize(
    ("text", "equal", "names"),
    [
        ('<tool_call>\n{"name": "tide", "arguments": {"hour": 7, "harbour": "Arnau"}}\n</tool_call>', True, True),
        ('{"name": "tide", "parameters": {"harbour": "Arnau", "hour": 8}}', False, True),
        ("<function=tide><parameter=harbour>\nArnau\n</parameter><parameter=hour>\n7\n</parameter></function>", True, True),
        ('[{"name": "tide", "arguments": {"harbour": "Arnau", "hour": 7}}, {"name": "tide", "arguments": {}}]', False, False),
        ("It is 3.1 m.", False, False),
        ('{"name": "tide", "arguments": "{\\"harbour\\": \\"Arnau\\", \\"hour\\": 7}"}', True, True),
    ],
)  # fmt: skip
def test_an_output_is_scored_by_the_calls_that_it_makes(text: str, equal: bool, names: bool) -> None:
    from veritune.evaluate.calls import calls_hold

    row = replace(tool_row(), messages=tool_row().messages[:2])
    assert calls_hold("equal", row, text)[0] is equal
    assert calls_hold("names", row, text)[0] is names
    assert calls_hold("equal", tool_row(), "It is 3.1 m.")[0], "an answer without calls asks for none"
    assert not calls_hold("names", tool_row(), '{"name": "tide", "arguments": {}}')[0]


@pytest.mark.parametrize("where", ["arguments", "tools"])
def test_half_a_surrogate_pair_inside_json_text_is_refused(tmp_path: Path, where: str) -> None:
    half = '{"name": "tide", "description": "\\ud800"}'
    arguments, tools = (half, "[]") if where == "arguments" else ("{}", f"[{half}]")
    path = tmp_path / "t.jsonl"
    path.write_text(json.dumps({"messages": [QUESTION, called(arguments), RESULT, ANSWER], "tools": tools}) + "\n")
    (finding,) = load_rows(path).rejects
    assert finding.check == "load.surrogate"
