"""What a template leaves out, cuts or changes, its twins and variables, and what generation stops on."""

# ruff: noqa: E501 - templates are read more easily on one line

from __future__ import annotations

import copy
import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from veritune.data.audit import AuditConfig, audit_data, render_text
from veritune.data.parity import check_parity
from veritune.data.render import Renderer
from veritune.data.template import stops_of, variables_of
from veritune.errors import ModelError
from veritune.records import Finding, Message, Row

TURN = "<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n"
ASKS = "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
CHATML = "{% for m in messages %}" + TURN + "{% endfor %}" + ASKS
THINKS = (
    "{%- set ns = namespace(last=-1) %}{%- for m in messages %}{%- if m.role == 'user' %}"
    "{%- set ns.last = loop.index0 %}{%- endif %}{%- endfor %}"
    "{%- for m in messages %}{%- set c = m.content %}{%- set r = '' %}{%- if m.role == 'assistant' %}"
    "{%- if m.reasoning_content is string %}{%- set r = m.reasoning_content %}"
    "{%- elif '</think>' in c %}{%- set r = c.split('</think>')[0].split('<think>')[-1].strip() %}"
    "{%- set c = c.split('</think>')[-1].lstrip() %}{%- endif %}{%- endif %}"
    "{{- '<|im_start|>' + m.role + '\n' }}"
    "{%- if r and loop.index0 > ns.last %}{{- '<think>\n' + r + '\n</think>\n\n' }}{%- endif %}"
    "{{- c + '<|im_end|>\n' }}{%- endfor %}"
    "{%- if add_generation_prompt %}{{- '<|im_start|>assistant\n' }}"
    "{%- if enable_thinking is defined and enable_thinking is false %}{{- '<think>\n\n</think>\n\n' }}{%- endif %}{%- endif %}"
)  # fmt: skip


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def row(*turns: str, system: str | None = "Answer as the night clerk of the ferry.", **last: Any) -> Row:
    messages = [Message("system", system)] if system else []
    messages += [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    if last:
        messages[-1] = Message("assistant", turns[-1], **last)
    return Row("r", tuple(messages), "d.jsonl", 4)


CONVERSATION = row("How many cars are waiting?", "Fourteen of them.", "And how many vans?", "Eleven of them.")


@pytest.mark.parametrize(
    ("template", "check", "says"),
    [
        ("{% for m in messages if m.role != 'system' %}" + TURN + "{% endfor %}" + ASKS, "turn_missing", "does not write turn 1 (system)"),
        (CHATML.replace("m.content", "(m.content[:20] if m.role == 'system' else m.content)"), "turn_changed", "changes the text of turn 1 (system): expected 'the night clerk of the ferry.', found 'the night <|im_end|>"),
        (CHATML.replace("m.content", "(m.content | upper if m.role == 'user' else m.content)"), "turn_changed", "changes the text of turn 2 (user)"),
        (CHATML.replace("m.content", "m.content.replace('cars', 'carts')"), "turn_changed", "changes the text of turn 2 (user): expected 'w many cars are waiting?', found 'w many carts"),
        ("{% set messages = messages[-2:] if messages | length > 3 else messages %}" + CHATML, "turn_missing", "does not write turn 1 (system)"),
        ("{% for m in messages if not (m.role == 'user' and 'cars' in m.content) %}" + TURN + "{% endfor %}" + ASKS, "turn_missing", "does not write turn 2 (user)"),
        (CHATML.replace("m.content", "m.content.split('.')[0]"), "turn_changed", "turn 1 (system)"),
        (CHATML.replace("m.content", "m.content | e").replace("| e", "| replace('?', '.')"), "turn_changed", "turn 2 (user)"),
    ],
)  # fmt: skip
def test_a_turn_that_is_left_out_cut_or_changed_is_named(tokenizer: Any, template: str, check: str, says: str) -> None:
    found = Renderer(with_template(tokenizer, template), 200, check=False).try_row(CONVERSATION)
    assert isinstance(found, Finding), "a turn was lost in silence"
    assert found.check == f"render.{check}" and says in found.message


@pytest.mark.parametrize(
    "template",
    [
        CHATML,
        CHATML.replace("m.content", "m.content | trim"),
        # the system prompt in the first user turn, as in Gemma's and Mistral's manner
        "{% if messages[0].role == 'system' %}{% set s = messages[0].content + '\n\n' %}{% set messages = messages[1:] %}"
        "{% endif %}{% for m in messages %}<|im_start|>{{ m.role }}\n{% if loop.first and s %}{{ s }}{% endif %}"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + ASKS,
        # a template that looks at texts
        "{% for m in messages %}{% if m.content.startswith('How many') %}{% endif %}" + TURN + "{% endfor %}" + ASKS,
        "{% for m in messages %}<|im_start|>{{ 'asker' if m.content.startswith('How many') else m.role }}\n"
        "{{ m.content }}<|im_end|>\n{% endfor %}" + ASKS,
    ],
)
def test_templates_that_write_every_turn_are_let_through(tokenizer: Any, template: str) -> None:
    made = Renderer(with_template(tokenizer, template), 200, check=False).try_row(CONVERSATION)
    assert not isinstance(made, Finding), made.message  # type: ignore[union-attr]


def test_short_turns_do_not_pass_by_chance(tokenizer: Any) -> None:
    dropped = "{% for m in messages %}{% if loop.index0 != 1 %}" + TURN + "{% endif %}{% endfor %}" + ASKS
    found = Renderer(with_template(tokenizer, dropped), 200, check=False).try_row(row("14", "14", "14", "14"))
    assert isinstance(found, Finding) and "does not write turn 2 (user)" in found.message


# ---------------------------------------------------------------- reasoning

THOUGHTS = ("3 plus 11?", "<think>\n3 and 11\n</think>\n\n14", "Double it.", "<think>\ntwice 14\n</think>\n\n28")


def test_reasoning_is_rendered_and_trained_on(tokenizer: Any) -> None:
    renderer = Renderer(with_template(tokenizer, THINKS), 200)
    made = renderer.row(row("3 plus 11?", "14", system=None, reasoning="3 and 11"))
    target = renderer.tokenizer.decode([i for i in made.labels if i >= 0])
    assert target == "<think>\n3 and 11\n</think>\n\n14<|im_end|>"
    plain = Renderer(with_template(tokenizer, CHATML), 200).try_row(row("a", "b", system=None, reasoning="c"))
    assert isinstance(plain, Finding) and "does not render the reasoning of turn 2" in plain.message


def test_reasoning_taken_out_of_earlier_turns_is_explained(tokenizer: Any) -> None:
    from veritune.data.turns import last_alone

    renderer, talk = Renderer(with_template(tokenizer, THINKS), 200), row(*THOUGHTS, system=None)
    found = renderer.try_row(talk)
    assert isinstance(found, Finding) and found.check == "render.think_stripped"
    assert "removes the reasoning (<think>...</think>) from assistant turn 2, which is not the last" in found.message
    assert "data.train_on: last in a study; --train-on last" in found.evidence["fix"]
    last = Row("r", tuple(last_alone(talk.messages)))
    made = renderer.row(last)
    assert renderer.tokenizer.decode([i for i in made.labels if i >= 0]) == f"{THOUGHTS[3]}<|im_end|>"
    findings, _ = check_parity([last], renderer)
    assert "removes the reasoning from earlier turns in 1 of 1 rows" in " ".join(f.message for f in findings)


def test_a_template_that_always_thinks_is_fit_for_rows_that_reason(tokenizer: Any) -> None:
    always = THINKS.replace("{%- if r and loop", "{%- if m.role == 'assistant' and loop")
    renderer = Renderer(with_template(tokenizer, always), 200)
    assert not isinstance(renderer.try_row(row("a?", "14", system=None, reasoning="c d")), Finding)
    found = renderer.try_row(row("a?", "14", system=None))
    assert isinstance(found, Finding) and found.check == "render.gap"


# ---------------------------------------------------------------- variables


def test_the_way_out_fits_the_turn_whose_reasoning_is_taken(tokenizer: Any) -> None:
    strips = CHATML.replace("m.content", "m.content.split('</think>')[-1].lstrip()")
    single = row("3 plus 11?", "<think>\n3 and 11\n</think>\n\n14", system=None)
    found = Renderer(with_template(tokenizer, strips), 200).try_row(single)
    assert isinstance(found, Finding) and found.check == "render.think_stripped"
    assert "--train-on last" not in found.evidence["fix"], "it is the last turn already"
    assert "keeps reasoning" in found.evidence["fix"]
    thought = "\n{{ '<think>' + m.reasoning_content + '</think>' if m.reasoning_content }}{{"
    reads = strips.replace("\n{{", thought, 1)
    found = Renderer(with_template(tokenizer, reads), 200).try_row(single)
    assert isinstance(found, Finding) and "reasoning_content beside the content" in found.evidence["fix"]


def test_a_turn_that_is_rendered_otherwise_within_a_conversation_is_named(tokenizer: Any) -> None:
    """Qwen3's manner: an empty block of reasoning before the last answer alone."""
    manner = CHATML.replace(
        "{{ m.content }}",
        "{% if m.role == 'assistant' and loop.last %}<think>\n\n</think>\n\n{% endif %}{{ m.content }}",
    )
    found = Renderer(with_template(tokenizer, manner), 200, check=False).try_row(
        row("one?", "1", "two?", "2", system=None)
    )
    assert isinstance(found, Finding) and found.check == "render.prefix"
    assert "writes assistant turn 2 differently if more turns follow" in found.message
    assert "--train-on last" in found.evidence["fix"]
    switch = manner + "{% if enable_thinking is defined %}{% endif %}"
    found = Renderer(with_template(tokenizer, switch), 200, check=False).try_row(row("one?", "1", system=None))
    assert isinstance(found, Finding) and "--template-kwargs enable_thinking=false" in found.evidence["fix"]


def test_the_token_that_generation_stops_on_is_trained_where_it_follows_another(tokenizer: Any) -> None:
    """Cohere's manner: the answer ends on one special token and the turn on the next."""
    two = with_template(tokenizer, CHATML.replace("<|im_end|>", "<|answer_end|><|im_end|>"))
    two.add_special_tokens({"additional_special_tokens": ["<|answer_end|>"]})
    made = Renderer(two, 200).row(row("3 plus 11?", "14", "and 2?", "16", system=None))
    assert two.eos_token == "<|im_end|>"
    assert two.decode([i for i in made.labels if i >= 0]) == "14<|answer_end|><|im_end|>16<|answer_end|><|im_end|>"


def test_the_variables_that_a_template_reads_are_found() -> None:
    assert variables_of(THINKS) == ("enable_thinking",)
    assert variables_of(
        "{% if not date_string is defined %}{% set date_string = '1' %}{% endif %}{{ date_string }}"
    ) == ("date_string",)
    assert variables_of(
        "{% if x %}{% set own = 1 %}{% endif %}{{ own }}{% generation %}{{ y }}{% endgeneration %}"
    ) == (
        "x",
        "y",
    )
    assert variables_of("{% broken") == ()


def test_a_macros_arguments_are_no_variables() -> None:
    macro = "{% macro show(content) %}{% if content is undefined %}{% elif content is string %}{{ content }}{% endif %}{% endmacro %}"
    assert (
        variables_of(macro + "{% for m in messages %}{% set content = show(m.content) %}{{ content }}{% endfor %}")
        == ()
    )


def test_a_variable_must_be_the_templates(tokenizer: Any) -> None:
    thinks = with_template(tokenizer, THINKS)
    with pytest.raises(ModelError, match=r"reads no variable 'enable_thinkin' \(did you mean 'enable_thinking'"):
        Renderer(thinks, 100, template_kwargs={"enable_thinkin": False})
    with pytest.raises(ModelError, match="'tools' is set by the rendering itself"):
        Renderer(thinks, 100, template_kwargs={"tools": []})
    on, off = (Renderer(thinks, 100, template_kwargs={"enable_thinking": v}, check=False) for v in (True, False))
    assert on.template_sha256 != off.template_sha256
    findings, facts = check_parity([], off)
    assert facts["template_variables"] == {"enable_thinking": False}
    assert "depends on enable_thinking (set to False)" in " ".join(f.message for f in findings)


# ---------------------------------------------------------------- masks, doubled tokens, twins, stops


def findings_of(tokenizer: Any, *rows: Row) -> dict[str, Finding]:
    found, _ = check_parity(rows or [CONVERSATION], Renderer(tokenizer, 200))
    return {f.check: f for f in found}


def test_the_templates_own_generation_mask_is_compared(tokenizer: Any) -> None:
    def marked(after: str) -> str:
        mark = "{% generation %}{{ m.content }}" + after.replace("END", "{% endgeneration %}")
        return (
            "{% for m in messages %}<|im_start|>{{ m.role }}\n{% if m.role == 'assistant' %}" + mark + "{% else %}"
            "{{ m.content }}<|im_end|>{% endif %}\n{% endfor %}" + ASKS
        )

    assert "parity.generation_mask" not in findings_of(with_template(tokenizer, marked("<|im_end|>END")))
    found = findings_of(with_template(tokenizer, marked("END<|im_end|>")))["parity.generation_mask"]
    assert found.severity == "warning"
    assert "differs from the loss here in 1 of 1 rows" in found.message
    assert "'<|im_end|>', with loss here and without in the template" in found.message


def test_a_special_token_that_the_tokenizer_adds_once_more_is_named(tokenizer: Any) -> None:
    from tokenizers import processors

    template = "<|endoftext|>" + CHATML
    twice, once = with_template(tokenizer, template), with_template(tokenizer, template)
    twice.backend_tokenizer.post_processor = processors.TemplateProcessing(
        single="<|endoftext|> $A", special_tokens=[("<|endoftext|>", 0)]
    )
    assert "parity.bos" not in findings_of(once)
    found = findings_of(twice)["parity.bos"]
    assert found.severity == "warning"
    assert "template and tokenizer both write <|endoftext|>" in found.message
    assert "use add_special_tokens=False" in found.message
    twice.chat_template = CHATML
    assert findings_of(twice)["parity.bos"].severity == "note"


def test_two_templates_in_one_folder_are_named(tiny_model: Path, tmp_path: Path) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "twins"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors"))
    (folder / "chat_template.jinja").write_text(CHATML, encoding="utf-8")
    assert "parity.two_templates" not in findings_of(AutoTokenizer.from_pretrained(folder))
    config = json.loads((folder / "tokenizer_config.json").read_text())
    (folder / "tokenizer_config.json").write_text(json.dumps({**config, "chat_template": CHATML.replace("\n", " ")}))
    found = findings_of(AutoTokenizer.from_pretrained(folder))["parity.two_templates"]
    assert found.message == (
        "two chat templates that differ: chat_template.jinja is used here, tokenizer_config.json by other tools"
    )


@pytest.mark.parametrize(
    ("generation", "config", "stops", "source"),
    [
        ({"eos_token_id": 0}, {"eos_token_id": 2}, (0,), "generation_config.json"),
        ({"eos_token_id": [2, 0]}, {"eos_token_id": 1}, (0, 2), "generation_config.json"),
        ({}, {"eos_token_id": 1}, (1,), "config.json"),
        (None, {}, (2,), "the tokenizer"),
    ],
)
def test_stop_tokens_come_from_the_file_that_generation_reads(
    tiny_model: Path, tmp_path: Path, generation: Any, config: Any, stops: Any, source: str
) -> None:
    from transformers import AutoTokenizer

    folder = tmp_path / "model"
    shutil.copytree(tiny_model, folder, ignore=shutil.ignore_patterns("*.safetensors", "generation_config.json"))
    if generation is not None:
        (folder / "generation_config.json").write_text(json.dumps(generation))
    (folder / "config.json").write_text(json.dumps(config))
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    assert (stops_of(tokenizer, folder).ids, stops_of(tokenizer, folder).source) == (stops, source)
    tokenizer.name_or_path = str(folder)
    error = findings_of(tokenizer).get("parity.stop")
    assert (error is None) is (2 in stops)
    if error is not None:
        assert error.message.endswith(f"({source})") and error.severity == "error"


def test_a_broken_generation_config_is_one_sentence(tmp_path: Path, tokenizer: Any) -> None:
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": "two"}')
    with pytest.raises(ModelError, match="eos_token_id is 'two'; expected an id or a list of ids"):
        stops_of(tokenizer, tmp_path)


# ---------------------------------------------------------------- the screen


def test_the_audit_says_why_rows_cannot_be_rendered(tokenizer: Any) -> None:
    no_system = (
        "{% if messages[0].role == 'system' %}{{ raise_exception('System role not supported') }}{% endif %}" + CHATML
    )
    rows = [{"messages": [m.to_chat() for m in CONVERSATION.messages]} for _ in range(3)]
    report = audit_data(rows, tokenizer=with_template(tokenizer, no_system), config=AuditConfig(near_duplicates=False))
    screen = render_text(report)
    assert "3 x template: first rows:1: the chat template refuses the row: System role not supported" in screen
    mixed = [*rows[:1], {"messages": [m.to_chat() for m in CONVERSATION.messages[1:]]}]
    screen = render_text(audit_data(mixed, tokenizer=with_template(tokenizer, no_system)))
    assert "1 x template: first rows:1: the chat template refuses the row" in screen
    assert report.exit_code == 1
