"""Every field of a row or a message that a known training format gives a meaning, and what happens to it here.

The one table of the reader, the docs (`docs/fields.md`) and the tests. A field that is not in it is kept beside the
row, counted, and shown as not used.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Level = Literal["row", "message"]
Fate = Literal["honoured", "refused", "unused"]

OPENAI, TRL, AXOLOTL, FACTORY = "OpenAI", "TRL", "Axolotl", "LLaMA-Factory"
SHAREGPT, ALPACA, MLX, TINKER, SWIFT, MISTRAL = "ShareGPT", "Alpaca", "MLX", "Tinker", "ms-swift", "Mistral"


@dataclass(frozen=True, slots=True)
class KnownField:
    """One known field: where it occurs, who uses it, and what the reader does with it. `what` completes "name: ..."."""

    name: str
    level: Level
    fate: Fate
    what: str
    used_by: tuple[str, ...] = ()


def _row(fate: Fate, what: str, used_by: tuple[str, ...], *names: str) -> tuple[KnownField, ...]:
    return tuple(KnownField(name, "row", fate, what, used_by) for name in names)


def _message(fate: Fate, what: str, used_by: tuple[str, ...], *names: str) -> tuple[KnownField, ...]:
    return tuple(KnownField(name, "message", fate, what, used_by) for name in names)


_PREFERENCE = "one half of a preference pair; training on one answer takes --columns"
_MEDIA = "only text can be rendered"
_ASIDE = "beside the turns; a warning names the mapping that trains on it (`reasoning=`, a template for `user`)"
_TOKENS = "rows that are already tokenised; give the texts instead, so that template and mask can be checked"

FIELDS: tuple[KnownField, ...] = (
    *_row("honoured", "the turns", (OPENAI, TRL, MLX, TINKER), "messages"),
    *_row("honoured", "the turns", (SHAREGPT, AXOLOTL, FACTORY), "conversations", "conversation"),
    *_row("honoured", "the user's turn, a text or messages", (TRL, MLX, AXOLOTL, FACTORY), "prompt"),
    *_row("honoured", "the answer, a text or messages", (TRL, MLX), "completion"),
    *_row("honoured", "the answer", (FACTORY, SWIFT), "response"),
    *_row("honoured", "the user's turn", (ALPACA, AXOLOTL, FACTORY), "instruction", "question", "problem", "query"),
    *_row("honoured", "the answer", (ALPACA, AXOLOTL, FACTORY), "output", "answer", "solution"),
    *_row("honoured", "joined to `instruction` by a blank line; else the user's turn", (ALPACA, FACTORY), "input"),
    *_row("honoured", "the system turn, beside messages too", (ALPACA, FACTORY, SHAREGPT), "system", "system_prompt"),
    *_row("honoured", "earlier turns, [question, answer] pairs or messages", (ALPACA, FACTORY), "history"),
    *_row("honoured", "declared tools, a list or its JSON text", (OPENAI, TRL, MLX, AXOLOTL, FACTORY), "tools"),
    *_row("honoured", "declared tools, in the older form that `tools` replaced", (OPENAI,), "functions"),
    *_row("honoured", "the row's id", (), "id"),
    *_row("honoured", "true: a good answer; false (KTO): refused, a rejected one", (TRL,), "label"),
    *_row("honoured", "as `label`", (FACTORY,), "kto_tag"),
    *_row("refused", _PREFERENCE, (TRL, AXOLOTL, FACTORY), "chosen", "rejected"),
    *_row("refused", _PREFERENCE, (OPENAI,), "preferred_output", "non_preferred_output"),
    *_row("refused", _PREFERENCE, (SWIFT,), "rejected_response", "rejected_messages"),
    *_row("refused", _PREFERENCE, (), "chosen_response", "chosen_messages", "response_j", "response_k"),
    *_row("refused", _MEDIA, (TRL, FACTORY, AXOLOTL, SWIFT), "image", "images", "video", "videos", "audio", "audios"),
    *_row("refused", "set model.template_kwargs for the whole study", (TRL, AXOLOTL), "chat_template_kwargs"),
    *_row("refused", "documents for the template's retrieval are not rendered", (AXOLOTL,), "documents"),
    *_row("refused", "true: loss on prompts, which is not supported", (AXOLOTL,), "train_on_input", "train_on_inputs"),
    *_row("refused", "template-free segments; write turns", (AXOLOTL,), "segments"),
    *_row("refused", "whole texts without turns: no prompt, no answer, no loss mask", (MLX, TRL, AXOLOTL), "text"),
    *_row("refused", _TOKENS, (TRL, AXOLOTL, TINKER), "input_ids", "labels", "attention_mask", "assistant_masks"),
    *_row("refused", _TOKENS, (TRL, TINKER), "completion_mask", "target_tokens", "weights", "model_input"),
    *_row("unused", "a setting of the API; it is not rendered", (OPENAI,), "parallel_tool_calls"),
    *_row("unused", "a setting of the API; it is not rendered", (OPENAI,), "tool_choice", "response_format"),
    *_row("unused", "a setting of the trainer", (SWIFT,), "channel"),
    *_row("unused", _ASIDE, (), "reasoning_content", "reasoning", "thinking", "context", "passage"),
    *_message("honoured", "who speaks", (OPENAI, TRL, MLX, TINKER), "role"),
    *_message("honoured", "who speaks", (SHAREGPT, FACTORY), "from"),
    *_message("honoured", "the text of the turn", (OPENAI, TRL, MLX, TINKER), "content"),
    *_message("honoured", "the text of the turn", (SHAREGPT, FACTORY), "value"),
    *_message("honoured", "reasoning, where the template renders it", (OPENAI, TRL), "reasoning_content"),
    *_message("honoured", "as `reasoning_content`", (TRL, TINKER), "reasoning", "thinking"),
    *_message("honoured", "0: no loss on this answer; 1: loss; anything between is refused", (OPENAI,), "weight"),
    *_message("honoured", "as `weight`", (SWIFT,), "loss", "loss_scale", "loss_weight"),
    *_message("honoured", "false: no loss on this answer", (AXOLOTL,), "train", "training"),
    *_message("honoured", "false: no loss on this answer", (TINKER,), "trainable"),
    *_message("honoured", "calls of tools, rendered and trained on", (OPENAI, TRL, MLX, TINKER), "tool_calls"),
    *_message("honoured", "one call, in the older form that `tool_calls` replaced", (OPENAI,), "function_call"),
    *_message("honoured", "the call that a tool's turn answers", (OPENAI, TRL, TINKER), "tool_call_id"),
    *_message("honoured", "the tool that answers; not used for other roles", (OPENAI, TRL, TINKER), "name"),
    *_message("refused", "loss on parts of a turn is not supported", (AXOLOTL,), "train_detail", "training_detail"),
    *_message("refused", "a prefix that the model continues is not rendered", (MISTRAL,), "prefix"),
    *_message("refused", "write the refusal as `content`", (OPENAI,), "refusal"),
    *_message("refused", _MEDIA, (OPENAI, TRL, SWIFT), "image", "images", "video", "videos", "audio"),
    *_message("unused", "a setting of the API; it is not rendered", (OPENAI,), "cache_control", "annotations"),
)  # fmt: skip

ROW_FIELDS = {field.name: field for field in FIELDS if field.level == "row"}
MESSAGE_FIELDS = {field.name: field for field in FIELDS if field.level == "message"}

MESSAGE_COLUMNS = ("messages", "conversations", "conversation")
SYSTEM_COLUMNS = ("system", "system_prompt")
TOOL_COLUMNS = ("tools", "functions")
LABEL_COLUMNS = ("label", "kto_tag")
REASONING_KEYS = ("reasoning_content", "reasoning", "thinking")
LOSS_KEYS = ("weight", "loss", "loss_scale", "loss_weight", "train", "training", "trainable")
TRAIN_ON_INPUT = ("train_on_input", "train_on_inputs")

PREFERENCE_PAIRS = (
    ("chosen", "rejected"),
    ("preferred_output", "non_preferred_output"),
    ("chosen_response", "rejected_response"),
    ("chosen_messages", "rejected_messages"),
    ("response_j", "response_k"),
    ("response", "rejected_response"),
    ("messages", "rejected_messages"),
    ("messages", "rejected_response"),
)
"""(the column with the better answer, the one with the worse) of preference sets."""

RIVALS = (
    ("response_0", "response_1"),
    ("response1", "response2"),
    ("response_1", "response_2"),
    ("response_a", "response_b"),
    ("answer_a", "answer_b"),
    ("completion_a", "completion_b"),
    ("conversation_a", "conversation_b"),
    ("human_ref_A", "human_ref_B"),
    ("output_1", "output_2"),
)
"""Two answers of which another column says which is better (PKU-SafeRLHF, HelpSteer, arenas, SHP, AlpacaEval)."""

TOKEN_COLUMNS = frozenset(f.name for f in ROW_FIELDS.values() if f.what == _TOKENS)

BESIDE_TURNS = ("text", "input_ids", "labels", "attention_mask", "assistant_masks", "completion_mask", "segments",
                "target_tokens", "weights", "model_input")  # fmt: skip
"""Refused where a row has nothing else; beside turns, which say the same, they are shown as not used."""

PAIRS = (
    ("prompt", "completion"),
    ("prompt", "response"),
    ("question", "answer"),
    ("instruction", "output"),
    ("instruction", "response"),
    ("question", "response"),
    ("problem", "solution"),
    ("query", "response"),
    ("input", "output"),
)
PROMPTS = tuple(dict.fromkeys(prompt for prompt, _ in PAIRS))
ANSWERS = tuple(dict.fromkeys(answer for _, answer in PAIRS))
CONTEXTS = ("context", "passage")
"""Texts that a question is about. Which place in the prompt they take is the user's choice, so they are mapped."""

ROLES = ("system", "developer", "user", "assistant", "tool")
ROLE_ALIASES = {
    "human": "user",
    "gpt": "assistant",
    "bot": "assistant",
    "model": "assistant",
    "chatgpt": "assistant",
    "bing": "assistant",
    "bard": "assistant",
    "chatbot": "assistant",
    "ai": "assistant",
    "observation": "tool",
    "function": "tool",
    "function_response": "tool",
    "tool_response": "tool",
    "ipython": "tool",
}
CALL_ROLES = ("function_call", "tool_call")
"""ShareGPT roles whose text is the JSON of an assistant's call."""

TAKEN_OUT = frozenset(
    {f.name for f in ROW_FIELDS.values() if f.fate == "refused" and f.name not in BESIDE_TURNS}
    | {*SYSTEM_COLUMNS, *TOOL_COLUMNS, "history"}
)
"""Columns that a written version leaves out: beside `messages` they would change what its rows say."""

FAMILY_COLUMNS = ("original", "family", "original_id", "family_id", "source_id", "parent", "parent_id", "seed_id")


def table() -> str:
    """The table of `docs/fields.md`, in Markdown."""
    lines = ["| field | where | used by | here | what it means |", "| --- | --- | --- | --- | --- |"]
    for field in FIELDS:
        users = ", ".join(field.used_by) or "any"
        lines.append(f"| `{field.name}` | {field.level} | {users} | {field.fate} | {field.what} |")
    return "\n".join(lines) + "\n"
