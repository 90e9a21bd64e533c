"""Rendering statistics, packing, parity and the token view."""

from __future__ import annotations

import copy
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from veritune.data.parity import (
    ALL,
    Packed,
    attention_leak,
    check_packing,
    check_parity,
    default_system,
    first_divergence,
    html_view,
    pack,
    packing_efficiency,
    padding_efficiency,
    render_stats,
    template_quirks,
)
from veritune.data.render import IGNORE, Renderer
from veritune.records import Message, Rendered, Row

CHATML = (
    "{% for m in messages %}<|im_start|>{{ m['role'] }}\n{{ m['content'] }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
DEFAULT = "{% if messages[0]['role'] != 'system' %}<|im_start|>system\nBe kind.<|im_end|>\n{% endif %}"


@pytest.fixture(scope="session")
def tokenizer(tiny_model: Path) -> Any:
    from transformers import AutoTokenizer

    return AutoTokenizer.from_pretrained(tiny_model)


def with_template(tokenizer: Any, template: str) -> Any:
    other = copy.deepcopy(tokenizer)
    other.chat_template = template
    return other


def row(row_id: str, question: str, answer: str, source: str = "s", system: str | None = None) -> Row:
    turns = (Message("user", question), Message("assistant", answer))
    return Row(row_id, (Message("system", system), *turns) if system else turns, source)


def test_token_counts_are_those_of_the_renderings_by_source(tokenizer: Any) -> None:
    rows = [row(f"a{i}", "ask", "word " * (i + 1), "a") for i in range(6)] + [row("b", "ask", "end", "b")]
    renderer = Renderer(tokenizer, 500)
    stats = render_stats(rows, renderer)
    made = [renderer.row(r) for r in rows]
    lengths = [len(m.input_ids) for m in made]
    assert (stats.tokens[ALL].n, stats.tokens["a"].n, stats.tokens["b"].n) == (7, 6, 1)
    assert stats.n_tokens == sum(lengths) and stats.n_target == sum(m.n_target for m in made)
    assert stats.tokens[ALL].mean == pytest.approx(np.mean(lengths)) and stats.tokens["a"].max == max(lengths[:6])
    assert stats.tokens["a"].p90 == pytest.approx(np.percentile(lengths[:6], 90))
    assert stats.prompt_tokens["b"].mean == len(renderer.prompt_ids(rows[-1]))


def test_truncation_counts_rows_that_would_lose_answer_tokens(tokenizer: Any) -> None:
    rows = [row("fits", "a", "b"), row("half", "a", "b " * 60), row("gone", "a " * 80, "b c d")]
    renderer = Renderer(tokenizer, 40)
    cut = render_stats(rows, renderer).truncation[ALL]
    whole = Renderer(tokenizer, 999)
    labels = [whole.row(r).labels for r in rows]
    lost = [sum(label != IGNORE for label in one[40:]) for one in labels]
    assert lost[0] == 0 < lost[1] and lost[2] == sum(label != IGNORE for label in labels[2])
    assert (cut.over, cut.lose_answer, cut.lose_all, cut.answer_tokens_lost) == (2, 2, 1, sum(lost))


def test_the_system_prompt_is_costed_and_the_templates_own_is_found(tokenizer: Any) -> None:
    plain = Renderer(tokenizer, 500)
    n = len(tokenizer("Be kind.", add_special_tokens=False)["input_ids"])
    rows = [row("a", "ask", "answer", system="Be kind."), row("b", "ask", "answer")]
    stats = render_stats(rows, plain)
    assert (stats.system_tokens, stats.system_prompts, stats.default_system) == (n, 1, None)
    own = Renderer(with_template(tokenizer, DEFAULT + CHATML), 500)
    assert default_system(own) == "Be kind."
    assert render_stats(rows, own).system_tokens == 2 * n


def test_rows_with_nothing_to_learn_from_are_named(tokenizer: Any) -> None:
    open_end = Row("open", (Message("user", "ask"),))
    stats = render_stats([row("a", "ask", "b"), row("empty", "ask", " \n"), open_end], Renderer(tokenizer, 99))
    assert stats.nothing_to_learn == ("empty", "open") and stats.n_rows == 1


@pytest.mark.parametrize(
    ("lengths", "share", "bins"),
    [([10], 1.0, 1), ([6, 4, 5, 5], 1.0, 2), ([6, 6, 6], 0.6, 3), ([7, 3, 2], 0.6, 2), ([], None, 0)],
)
def test_packing_efficiency_by_hand(lengths: list[int], share: float | None, bins: int) -> None:
    assert packing_efficiency(lengths, 10) == (share if share is None else pytest.approx(share), bins)


def test_padding_efficiency_by_hand() -> None:
    assert padding_efficiency([10, 5, 5], 2) == pytest.approx(20 / 25)
    assert padding_efficiency([], 2) is None


# ---------------------------------------------------------------- packing


def rendered(n: int, start: int) -> Rendered:
    ids = tuple(range(start, start + n))
    return Rendered(f"r{start}", ids, ids)


def block_mask(packed: Packed) -> Any:
    segment = packed.segment_L
    causal = np.tril(np.ones((len(segment), len(segment)), bool))
    return causal & (segment[:, None] == segment[None, :])


def test_a_clean_pack_leaks_nothing() -> None:
    packed = pack([rendered(4, 10), rendered(3, 20), rendered(5, 30)])
    assert packed.position_ids == (0, 1, 2, 3, 0, 1, 2, 0, 1, 2, 3, 4)
    assert check_packing(packed, block_mask(packed)) == []


def test_each_leak_of_a_pack_is_found() -> None:
    packed = pack([rendered(4, 10), rendered(3, 20)])
    loss = Packed(packed.input_ids, packed.input_ids, packed.position_ids, packed.start_R1)
    positions = Packed(packed.input_ids, packed.labels, tuple(range(7)), packed.start_R1)
    assert [f.check for f in check_packing(loss)] == ["packing.loss"]
    assert [f.check for f in check_packing(positions)] == ["packing.positions"]
    (attention,) = check_packing(packed, np.tril(np.ones((7, 7), bool)))
    assert attention.check == "packing.attention" and attention.evidence["n"] == 12


def test_the_attention_leak_of_a_real_model_is_measured(tiny_model: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM

    model = AutoModelForCausalLM.from_pretrained(tiny_model).eval()
    rows = [rendered(6, 10), rendered(5, 20)]

    def forward(blocked: bool) -> Any:
        def run(packed: Packed) -> Any:
            mask = block_mask(packed) if blocked else np.tril(np.ones((len(packed.input_ids),) * 2, bool))
            bias = torch.tensor(np.where(mask, 0.0, -1e30), dtype=torch.float32)[None, None]
            positions = packed.position_ids
            with torch.no_grad():
                out = model(
                    torch.tensor([packed.input_ids]), attention_mask=bias, position_ids=torch.tensor([positions])
                )
            return out.logits[0].numpy()

        return run

    assert attention_leak(forward(blocked=True), rows) < 1e-4
    assert attention_leak(forward(blocked=False), rows) > 1e-3


# ---------------------------------------------------------------- parity


def test_parity_holds_for_a_plain_template_and_names_the_tokens(tokenizer: Any) -> None:
    findings, facts = check_parity([row("a", "ask", "answer"), row("b", "x", "y")], Renderer(tokenizer, 99))
    assert findings == []
    assert (facts["rows"], facts["ids_differ"], facts["end_tokens"]) == (2, 0, ["<|im_end|>"])


def test_a_stop_token_that_training_never_shows_is_an_error(tokenizer: Any) -> None:
    findings, _ = check_parity([row("a", "ask", "answer")], Renderer(tokenizer, 99), stop_ids=[0])
    assert [(f.check, f.severity) for f in findings] == [("parity.stop", "error")]
    assert "<|im_end|>" in findings[0].message and "<|endoftext|>" in findings[0].message


def test_templates_with_habits_are_named(tokenizer: Any) -> None:
    def checks(template: str) -> list[str]:
        return [f.check for f in template_quirks(Renderer(with_template(tokenizer, template), 99))]

    assert checks(CHATML) == []
    assert checks(DEFAULT + CHATML) == ["parity.default_system"]
    assert checks("{% if date_string is defined %}{{ date_string }}{% endif %}" + CHATML) == [
        "parity.date",
        "parity.variables",
    ]
    thinks = CHATML.replace(
        "assistant\n{% endif %}", "assistant\n{% if enable_thinking %}<think>{% endif %}{% endif %}"
    )
    assert checks(thinks) == ["parity.thinking"]


def test_the_first_diverging_token_is_shown_with_context(tokenizer: Any) -> None:
    rows = [row("a", "ask the harbor", "answer", system="x"), row("b", "ask the harbor", "answer")]
    serving = Renderer(with_template(tokenizer, DEFAULT + CHATML), 99)
    found = first_divergence(rows, Renderer(tokenizer, 99), serving)
    assert found is not None and (found.row_id, found.n_differing_rows, found.n_rows) == ("b", 1, 2)
    assert found.index == 1 and found.shared == "<|im_start|>"
    assert found.left_ids != found.right_ids and found.left[0] != found.right[0]
    assert first_divergence(rows, serving, serving) is None


# ---------------------------------------------------------------- the view


class Spans(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.spans: list[tuple[str, str]] = []
        self._class = ""

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self._class = str(dict(attrs).get("class")) if tag == "span" else ""

    def handle_data(self, data: str) -> None:
        if self._class:
            self.spans.append((self._class, data))

    def handle_endtag(self, tag: str) -> None:
        self._class = ""


def test_the_view_shows_every_token_with_its_mask_and_escapes_the_row(tokenizer: Any) -> None:
    nasty = "<script>alert('x')</script> & \"quoted\""
    page = html_view(row("<b>id</b>", nasty, nasty), Renderer(tokenizer, 500))
    parser = Spans()
    parser.feed(page)
    assert "script" not in parser.tags and "b" not in parser.tags
    shown = parser.spans[4:]
    assert "".join(t for c, t in shown if c == "on") == nasty
    assert [t for c, t in shown if c == "end"] == ["<|im_end|>"]
    assert "".join(t for _, t in shown).replace("⏎", "").startswith(f"<|im_start|>user\n{nasty}<|im_end|>")
    assert [c for c, _ in shown][-1] == "cut"


def test_characters_split_over_tokens_are_shown_once(tokenizer: Any) -> None:
    page = html_view(row("r", "ask", "a😀b"), Renderer(tokenizer, 500))
    assert page.count("😀") == 1
