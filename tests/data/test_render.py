"""Rendering: exact ids, an exact mask, and a clear refusal of everything that is not exact."""

from __future__ import annotations

import copy
import warnings
from pathlib import Path
from typing import Any

import pytest

from veritune.data.render import IGNORE, Renderer, render_rows
from veritune.errors import DataError, ModelError
from veritune.records import Finding, Message, Rendered, Row

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
TRICKY = (
    "plain",
    "two\nlines\n",
    " leading and trailing ",
    "émigré 😀 naïve",
    "日本語のテキスト",
    "שלום עולם",
    "tab\tand  double",
    "\n\nbegins with lines",
    "x = 3 < 4 && y[0] == '<b>'",
    "user\nassistant\nsystem",
    "e\u0301 combining",
)


def load(folder: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(folder)


@pytest.fixture(scope="session")
def tiny_tokenizer(tiny_model: Path) -> Any:
    return load(tiny_model)


def with_template(tokenizer: Any, template: str | None) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def row(*turns: str, row_id: str = "r", system: str | None = None) -> Row:
    messages = [Message("system", system)] if system is not None else []
    messages += [Message(("user", "assistant")[i % 2], text) for i, text in enumerate(turns)]
    return Row(row_id, tuple(messages), "d.jsonl", 4)


def spoken(rendered: Rendered, tokenizer: Any) -> list[str]:
    """The labelled runs of a rendering as text."""
    runs: list[list[int]] = [[]]
    for label in rendered.labels:
        if label == IGNORE:
            runs.append([])
        else:
            runs[-1].append(label)
    return [tokenizer.decode(run, clean_up_tokenization_spaces=False) for run in runs if run]


@pytest.mark.parametrize("text", TRICKY)
def test_the_mask_covers_each_answer_and_its_end_token_and_nothing_else(tiny_tokenizer: Any, text: str) -> None:
    renderer = Renderer(tiny_tokenizer, 2000)
    made = renderer.row(row(text, text, "again", text + "!", system=text))
    assert spoken(made, tiny_tokenizer) == [f"{text}<|im_end|>", f"{text}!<|im_end|>"]
    assert made.labels[-1] != IGNORE
    assert all(label in (IGNORE, i) for i, label in zip(made.input_ids, made.labels))


@pytest.mark.parametrize("text", TRICKY)
def test_the_prompt_ids_begin_the_training_ids(tiny_tokenizer: Any, text: str) -> None:
    renderer = Renderer(tiny_tokenizer, 2000)
    example = row("one", "two", text, text)
    prompt, made = renderer.prompt_ids(example), renderer.row(example)
    assert made.input_ids[: len(prompt)] == prompt
    assert made.labels[len(prompt)] != IGNORE and made.labels[len(prompt) - 1] == IGNORE


def test_the_ids_are_the_templates_own_up_to_the_last_label(tiny_tokenizer: Any) -> None:
    renderer = Renderer(tiny_tokenizer, 500)
    example = row("ask", "answer", system="be brief")
    own = renderer.template_ids(example.messages)
    made = renderer.row(example).input_ids
    assert own[: len(made)] == made and len(own) > len(made)


def test_a_row_longer_than_the_limit_is_refused_and_one_that_just_fits_is_not(tiny_tokenizer: Any) -> None:
    example = row("ask me", "a rather long answer")
    n = len(Renderer(tiny_tokenizer, 1000).row(example).input_ids)
    assert len(Renderer(tiny_tokenizer, n).row(example).input_ids) == n
    with pytest.raises(DataError, match=rf"row 'r' \(d.jsonl:4\): {n} tokens, more than max_length {n - 1}"):
        Renderer(tiny_tokenizer, n - 1).row(example)


def test_render_rows_accounts_for_every_row(tiny_tokenizer: Any) -> None:
    renderer = Renderer(tiny_tokenizer, 60)
    rows = [row("a", "b", row_id="1"), row("a", "b " * 200, row_id="2"), row("a", "<|im_end|> b", row_id="3")]
    done, problems = render_rows(rows, renderer)
    assert [r.row_id for r in done] == ["1"]
    assert [(f.row_id, f.check, f.severity) for f in problems] == [
        ("2", "render.too_long", "error"),
        ("3", "render.control_token", "error"),
    ]


@pytest.mark.parametrize("role", ["user", "assistant", "system"])
def test_a_control_token_in_any_turn_is_refused_by_name(tiny_tokenizer: Any, role: str) -> None:
    texts = {"system": "s", "user": "u", "assistant": "a", role: "text <|im_start|> text"}
    example = row(texts["user"], texts["assistant"], system=texts["system"])
    found = Renderer(tiny_tokenizer, 500).try_row(example)
    assert isinstance(found, Finding) and "<|im_start|>" in found.message and role in found.message


def test_a_tokenizer_without_a_chat_template_is_a_model_error(tiny_tokenizer: Any) -> None:
    with pytest.raises(ModelError, match="no chat template") as caught:
        Renderer(with_template(tiny_tokenizer, None), 100)
    assert "chat_template.jinja" in caught.value.fix


ODD_TEMPLATES = {
    "thinks before it answers": (
        CHATML.replace("{{ m['content'] }}", "{% if m.role != 'user' %}<think>\n</think>\n{% endif %}{{ m.content }}"),
        "text of its own",
    ),
    "has no end token": (
        "{% for m in messages %}{{ m.role }}:\n{{ m.content }}\n{% endfor %}"
        "{% if add_generation_prompt %}assistant:\n{% endif %}",
        "never learn to stop",
    ),
    "changes the answer": (
        CHATML.replace("{{ m['content'] }}", "{{ m['content'] | upper }}"),
        r"changes the text of turn 1 \(user\)",
    ),
    "has no generation prompt": (
        CHATML.replace("<|im_start|>assistant\n{% endif %}", "<|im_start|>bot\n{% endif %}"),
        "does not follow its generation prompt: they differ from character",
    ),
    "refuses": ("{{ raise_exception('no') }}", "refuses the row"),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD_TEMPLATES)
def test_a_template_that_cannot_be_masked_exactly_is_refused_before_any_row(tiny_tokenizer: Any, name: str) -> None:
    template, says = ODD_TEMPLATES[name]
    with pytest.raises(ModelError, match=says) as caught:
        Renderer(with_template(tiny_tokenizer, template), 100)
    assert caught.value.fix


def test_a_thinking_switch_makes_a_thinking_template_usable(tiny_tokenizer: Any) -> None:
    empty = "{% if enable_thinking is defined and enable_thinking is false %}<think>\n\n</think>\n\n{% endif %}"
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{% if loop.last and m.role == 'assistant' %}"
        "<think>\n\n</think>\n\n{% endif %}{{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n" + empty + "{% endif %}"
    )
    tokenizer = with_template(tiny_tokenizer, template)
    with pytest.raises(ModelError) as caught:
        Renderer(tokenizer, 100)
    assert "enable_thinking" in caught.value.fix
    off = Renderer(tokenizer, 100, template_kwargs={"enable_thinking": False})
    assert spoken(off.row(row("ask", "answer")), tokenizer) == ["answer<|im_end|>"]
    several = off.try_row(row("ask", "answer", "more", "end"))
    assert isinstance(several, Finding) and several.check == "render.prefix"


def test_a_template_that_strips_contents_labels_what_it_writes(tiny_tokenizer: Any) -> None:
    tokenizer = with_template(tiny_tokenizer, CHATML.replace("m['content']", "m['content'] | trim"))
    made = Renderer(tokenizer, 200).row(row("ask", "  answer \n", "more", "  answer "))
    assert spoken(made, tokenizer) == ["answer<|im_end|>", "answer<|im_end|>"]


def test_a_token_across_the_boundary_is_refused(tiny_tokenizer: Any) -> None:
    tokenizer = with_template(
        tiny_tokenizer,
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}",
    )
    assert len(tokenizer.tokenize(" h")) == 1
    found = Renderer(tokenizer, 200, check=False).try_row(row("ask", "hare"))
    assert isinstance(found, Finding) and found.check == "render.straddle"


def test_a_boundary_that_trimmed_offsets_hide_is_still_refused(tiny_tokenizer: Any) -> None:
    from tokenizers import processors

    tokenizer = with_template(
        tiny_tokenizer,
        "{% for m in messages %}<|im_start|>{{ m['role'] }} {{ m['content'] }}<|im_end|>\n{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant {% endif %}",
    )
    tokenizer.backend_tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    found = Renderer(tokenizer, 200, check=False).try_row(row("ask", "hare"))
    assert isinstance(found, Finding) and found.check == "render.prefix"
    assert "the tokens of the prompt alone and of the prompt within the whole row differ from token" in found.message


def test_the_next_turns_opening_token_is_no_end_token(tiny_tokenizer: Any) -> None:
    template = (
        "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}"
        "{% if loop.last and m.role == 'assistant' %}<|im_end|>{% endif %}{% endfor %}"
        "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
    )
    renderer = Renderer(with_template(tiny_tokenizer, template), 200)
    assert isinstance(renderer.try_row(row("ask", "answer")), Rendered)
    found = renderer.try_row(row("ask", "answer", "more", "end"))
    assert isinstance(found, Finding) and found.check == "render.no_end_token"


def test_hashes_follow_template_and_tokenizer_and_not_padding(tiny_tokenizer: Any) -> None:
    one = Renderer(tiny_tokenizer, 100)
    other = Renderer(with_template(tiny_tokenizer, "{# other #}" + CHATML), 100)
    assert one.template_sha256 != other.template_sha256 and one.tokenizer_sha256 == other.tokenizer_sha256
    padded = copy.deepcopy(tiny_tokenizer)
    padded(["a", "b c d"], padding=True, truncation=True, max_length=2)
    assert Renderer(padded, 100).tokenizer_sha256 == one.tokenizer_sha256
    grown = copy.deepcopy(tiny_tokenizer)
    grown.add_tokens(["extra"])
    assert Renderer(grown, 100).tokenizer_sha256 != one.tokenizer_sha256


# ---------------------------------------------------------------- the real tokenizer, and TRL


@pytest.mark.model
@pytest.mark.parametrize("text", [t for t in TRICKY if not t.startswith("\n")])
def test_the_real_tokenizer_is_masked_exactly(smollm2: Path, text: str) -> None:
    tokenizer = load(smollm2)
    made = Renderer(tokenizer, 2000).row(row(text, text, "again", text))
    assert spoken(made, tokenizer) == [f"{text}<|im_end|>"] * 2
    whole = tokenizer.decode(made.input_ids, clean_up_tokenization_spaces=False)
    assert whole.startswith("<|im_start|>system\nYou are a helpful AI assistant named SmolLM")


@pytest.mark.model
def test_an_answer_whose_first_token_melts_into_the_prompt_is_refused(smollm2: Path) -> None:
    found = Renderer(load(smollm2), 2000).try_row(row("ask", "\n\nbegins with lines"))
    assert isinstance(found, Finding) and found.check == "render.straddle"


@pytest.mark.model
def test_ids_and_mask_equal_trls_for_prompt_and_completion(smollm2: Path, gsm8k: Path, tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    datasets = pytest.importorskip("datasets")
    from transformers import AutoModelForCausalLM, LlamaConfig

    from veritune.data.load import load_rows

    tokenizer = load(smollm2)
    tricky = [row(t, t, row_id=f"x{i}") for i, t in enumerate(TRICKY) if not t.startswith("\n")]
    rows = [*load_rows(gsm8k / "test.jsonl").rows[:40], *tricky]
    renderer = Renderer(tokenizer, 1024)
    pairs = [{"prompt": renderer.text(r.prompt, prompt=True), "completion": str(r.target)} for r in rows]
    datasets.disable_progress_bars()
    small = {"hidden_size": 8, "intermediate_size": 8, "num_hidden_layers": 1, "num_attention_heads": 2}
    config = LlamaConfig(vocab_size=len(tokenizer), num_key_value_heads=2, eos_token_id=tokenizer.eos_token_id, **small)
    settings = {"use_cpu": True, "bf16": False, "max_length": 1024, "report_to": "none", "completion_only_loss": True}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", FutureWarning)
        trainer = trl.SFTTrainer(
            AutoModelForCausalLM.from_config(config),
            trl.SFTConfig(output_dir=str(tmp_path), **settings),
            train_dataset=datasets.Dataset.from_list(pairs),
            processing_class=tokenizer,
        )
    theirs = [trainer.data_collator([example]) for example in trainer.train_dataset]
    for r, batch in zip(rows, theirs, strict=True):
        ours = renderer.row(r)
        assert ours.input_ids == tuple(batch["input_ids"][0].tolist()), r.id
        assert ours.labels == tuple(batch["labels"][0].tolist()), r.id
