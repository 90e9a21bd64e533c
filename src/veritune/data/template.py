"""What a tokenizer's folder says of rendering: its chat template, the variables it reads, its twins, its stop tokens.

Templates are programs. Nothing here guesses what one does from its source beyond the names it reads; what it writes is
found by rendering (`render.py`, `written.py`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from veritune.data.fields import REASONING_KEYS
from veritune.errors import ModelError, did_you_mean
from veritune.records import JsonLike, Message, tools_text
from veritune.untrusted import parse_json, read_bytes

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

_THINK = re.compile(r"<think>.*?</think>\s*", re.DOTALL)
_GENERATION = re.compile(r"\{%(-?)\s*(end)?generation\s*(-?)%\}")
_GIVEN = {
    *("messages", "tools", "documents", "add_generation_prompt", "raise_exception", "strftime_now"),
    *("bos_token", "eos_token", "pad_token", "unk_token", "sep_token", "cls_token", "mask_token"),
    *("additional_special_tokens", "namespace", "range", "dict", "lipsum", "cycler", "joiner"),
}
_OURS = {
    *("messages", "conversation", "tools", "documents", "add_generation_prompt", "continue_final_message"),
    *("chat_template", "tokenize", "padding", "truncation", "max_length", "return_tensors", "return_dict"),
    *("return_assistant_tokens_mask", "tokenizer_kwargs"),
}


def template_of(tokenizer: PreTrainedTokenizerBase) -> str:
    """The chat template. Raises ModelError for a slow tokenizer and for one without a template."""
    if not getattr(tokenizer, "is_fast", False):
        raise ModelError(
            f"{type(tokenizer).__name__} gives no character offsets; expected a fast tokenizer.",
            fix="Load it with AutoTokenizer from a folder that holds tokenizer.json.",
        )
    try:
        template = tokenizer.get_chat_template()
    except (ValueError, AttributeError):
        template = None
    if not template:
        raise ModelError(
            f"The tokenizer of {getattr(tokenizer, 'name_or_path', '') or 'this model'} has no chat template.",
            fix="Put a chat_template.jinja beside tokenizer.json (the instruct version of the model has one).",
        )
    return str(template)


def tool_template_of(tokenizer: PreTrainedTokenizerBase, template: str) -> str:
    """The template that renders rows with tools: the one named `tool_use` where a tokenizer has several."""
    named = tokenizer.chat_template
    return str(named.get("tool_use", template)) if isinstance(named, Mapping) else template


def has_generation_tags(template: str) -> bool:
    """Whether the template marks the assistant's part itself, with `{% generation %}`."""
    return _GENERATION.search(template) is not None


def variables_of(template: str) -> tuple[str, ...]:
    """Names that the template reads and that neither the conversation nor the tokenizer provides, sorted.

    Empty where the template cannot be parsed: rendering then says why.
    """
    from jinja2 import TemplateSyntaxError, meta, nodes
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    def plain(tag: re.Match[str]) -> str:
        left, end, right = tag[1], tag[2] or "", tag[3]
        return f"{{%{left} {end}if {'' if end else 'true '}{right}%}}"

    environment = ImmutableSandboxedEnvironment(extensions=["jinja2.ext.loopcontrols"])
    try:
        parsed = environment.parse(_GENERATION.sub(plain, template))
    except TemplateSyntaxError:
        return ()
    # A name that is set in one branch counts as undeclared in another; it is the user's only where `is defined` asks.
    own = {name.name for name in parsed.find_all(nodes.Name) if name.ctx == "store"}
    inside = {
        id(test)
        for macro in parsed.find_all(nodes.Macro)
        for test in macro.find_all(nodes.Test)
        if isinstance(test.node, nodes.Name) and test.node.name in {argument.name for argument in macro.args}
    }
    tests = [t for t in parsed.find_all(nodes.Test) if t.name in ("defined", "undefined") and id(t) not in inside]
    asked = {t.node.name for t in tests if isinstance(t.node, nodes.Name)}
    return tuple(sorted(meta.find_undeclared_variables(parsed) - _GIVEN - (own - asked)))


def check_kwargs(kwargs: Mapping[str, JsonLike], variables: tuple[str, ...]) -> None:
    """Raises ModelError for a template variable that the template does not read, or that users must not set."""
    for name in kwargs:
        if name in _OURS or not isinstance(name, str):
            raise ModelError(
                f"template_kwargs: {name!r} is set by the rendering itself.", fix="Name variables of the template only."
            )
        if name not in variables:
            raise ModelError(
                f"template_kwargs: the chat template reads no variable {name!r}{did_you_mean(name, variables)}.",
                fix=f"Variables that it reads: {', '.join(variables) or 'none'}; leave out all others.",
            )


# ---------------------------------------------------------------- identities


def template_identity(template: str, tool_template: str, kwargs: Mapping[str, JsonLike]) -> str:
    """Everything that determines a rendering: the template, its counterpart for tools if it has one, and the
    variables."""
    whole = template if tool_template == template else f"{template}\n{tool_template}"
    return whole if not kwargs else whole + "\n" + json.dumps(kwargs, sort_keys=True, default=str)


def tokenizer_identity(tokenizer: PreTrainedTokenizerBase) -> str:
    """The tokenizer's whole definition, except truncation and padding, which callers switch on and off."""
    parts = json.loads(tokenizer.backend_tokenizer.to_str())
    parts.pop("truncation", None)
    parts.pop("padding", None)
    parts["special_tokens_map"] = {k: str(v) for k, v in tokenizer.special_tokens_map.items()}
    return json.dumps(parts, sort_keys=True, ensure_ascii=False)


# ---------------------------------------------------------------- messages as templates take them


def template_turn(message: Message, template: str) -> dict[str, JsonLike]:
    """A message in the form that a template expects: arguments as objects, reasoning under the key that the template
    reads.

    A developer's turn is called system where the template does not know the role.
    """
    role = "system" if message.role == "developer" and "developer" not in template else message.role
    turn: dict[str, Any] = {"role": role, "content": message.content}
    if message.reasoning is not None:
        turn[reasoning_key(template) or REASONING_KEYS[0]] = message.reasoning
    if message.tool_calls is not None:
        turn["tool_calls"] = [
            {
                **({"id": call.id} if call.id is not None else {}),
                "type": "function",
                "function": {"name": call.name, "arguments": json.loads(call.arguments)},
            }
            for call in message.tool_calls
        ]
    for key in ("tool_call_id", "name"):
        if getattr(message, key) is not None:
            turn[key] = getattr(message, key)
    return turn


def reasoning_key(template: str) -> str | None:
    """The key under which the template reads an assistant's reasoning; None where it reads none."""
    return next((key for key in REASONING_KEYS if re.search(rf"\.{key}\b|['\"]{key}['\"]", template)), None)


def texts_of(message: Message) -> tuple[str, ...]:
    """Every text of a message that a template may write."""
    calls = tuple(text for call in message.tool_calls or () for text in (call.name, call.arguments))
    return (message.content, *((message.reasoning,) if message.reasoning is not None else ()), *calls)


def without_reasoning(message: Message) -> Message:
    """The turn without its reasoning, whether that was a separate field or a block in the content."""
    content = _THINK.sub("", message.content).strip() if "</think>" in message.content else message.content
    return replace(message, reasoning=None, content=content)


def tools_json(tools: tuple[Mapping[str, JsonLike], ...] | None) -> str:
    """Declared tools as one JSON text, empty for none."""
    return tools_text(tools) or ""


# ---------------------------------------------------------------- the folder


@dataclass(frozen=True, slots=True)
class Stops:
    """The token ids at which generation stops, and the file that lists them."""

    ids: tuple[int, ...]
    source: str


def stops_of(tokenizer: PreTrainedTokenizerBase, folder: str | Path | None = None) -> Stops:
    """The ids at which generation stops, found as transformers does: generation_config.json, else config.json, else the
    tokenizer.

    `folder` defaults to where the tokenizer was loaded from. Raises ModelError where a file cannot be read.
    """
    place = Path(folder if folder is not None else getattr(tokenizer, "name_or_path", "") or "")
    for name in ("generation_config.json", "config.json"):
        ids = _eos_of(place / name) if place.is_dir() and (place / name).is_file() else ()
        if ids:
            return Stops(ids, name)
    eos = tokenizer.eos_token_id
    return Stops(() if eos is None else (int(eos),), "the tokenizer")


def _eos_of(path: Path) -> tuple[int, ...]:
    try:
        found = parse_json(read_bytes(path), finite=False)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"{path} cannot be read: {error}.", fix="Correct the file, or download it again with the model."
        ) from error
    eos = found.get("eos_token_id") if isinstance(found, dict) else None
    if eos is None:
        return ()
    ids = eos if isinstance(eos, list) else [eos]
    if not all(isinstance(i, int) and not isinstance(i, bool) for i in ids):
        raise ModelError(f"{path}: eos_token_id is {eos!r}; expected an id or a list of ids.", fix="Correct it.")
    return tuple(sorted(set(ids)))


def twin_templates(tokenizer: PreTrainedTokenizerBase) -> tuple[str, ...]:
    """Files in the tokenizer's folder with a chat template other than the one in use, which is listed first."""
    place = Path(getattr(tokenizer, "name_or_path", "") or "")
    if not place.is_dir():
        return ()
    held: dict[str, str] = {}
    if (place / "chat_template.jinja").is_file():
        held["chat_template.jinja"] = (place / "chat_template.jinja").read_text("utf-8", "replace")
    for name in ("tokenizer_config.json", "chat_template.json", "processor_config.json"):
        try:
            found = parse_json(read_bytes(place / name), finite=False) if (place / name).is_file() else {}
        except ValueError:
            continue
        template = found.get("chat_template") if isinstance(found, dict) else None
        if isinstance(template, list):
            named = [t for t in template if isinstance(t, dict) and t.get("name") == "default"]
            template = named[-1].get("template") if named else None
        if isinstance(template, str):
            held[name] = template
    if len({text.strip() for text in held.values()}) < 2:
        return ()
    used = tokenizer.chat_template
    used = str(used.get("default") if isinstance(used, Mapping) else used).strip()
    mine = next((name for name, text in held.items() if text.strip() == used), "a template given in Python")
    return (mine, *(name for name, text in held.items() if text.strip() != used))
